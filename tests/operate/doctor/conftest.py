"""A broker that each test may misconfigure, and the doctor who looks at it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redislink import ClusterSpec, RedisLinkSettings
from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from redislink.operate.doctor import Case, Finding, Level, Report, examine, speed
from tests.conftest import IDENTITIES, make_cluster
from tests.support.servers import KINDS, Admin, make_server

Configure = Callable[..., None]


@pytest.fixture(scope="package", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    """A server of each make; tests keep apart by sessions, and undo what they configure."""
    with make_server(request.param) as started:
        yield started


@pytest.fixture(scope="package")
def one_server() -> Iterator[EmbeddedBroker]:
    """For what does not depend on the server."""
    with EmbeddedBroker() as started:
        yield started


@pytest.fixture
def admin(server: EmbeddedBroker) -> Iterator[Admin]:
    """Commands to `server`."""
    asked = Admin(server)
    yield asked
    asked.close()


@pytest.fixture
def configure(admin: Admin) -> Iterator[Configure]:
    """``configure(maxmemory="10mb")`` sets server settings, until the end of the test."""
    before: dict[bytes, bytes] = {}

    def set_all(**settings: str | int) -> None:
        for word, value in settings.items():
            name = word.replace("_", "-").encode()
            before.setdefault(name, admin(b"CONFIG", b"GET", name)[1])
            admin(b"CONFIG", b"SET", name, str(value).encode())

    yield set_all
    for name, value in before.items():
        admin(b"CONFIG", b"SET", name, value)


@dataclass
class Told:
    """A report, by the names of its checks."""

    report: Report

    def __getitem__(self, name: str) -> Finding:
        found = {finding.name: finding for finding in self.report.findings}
        assert name in found, (name, self.report.not_tried)
        return found[name]

    @property
    def not_tried(self) -> dict[str, str]:
        return dict(self.report.not_tried)

    def check(self, name: str, level: Level, *words: str) -> Finding:
        """This check found this, in these words; whatever is wrong comes with a remedy."""
        finding = self[name]
        assert finding.level is level, finding
        said = f"{finding.text} → {finding.remedy}"
        for word in words:
            assert word in said, said
        assert bool(finding.remedy) == (level is not Level.PASS), finding
        assert said.isprintable()
        return finding


Ask = Callable[..., Told]


@pytest.fixture(scope="session")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The identity file of every party."""
    directory = tmp_path_factory.mktemp("keys")
    files = {name: directory / f"{name}.key" for name in IDENTITIES}
    for name, path in files.items():
        IDENTITIES[name].save(path, "of a test")
    return files


@pytest.fixture
def doctor(key_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """``doctor(url, party="alice", spec=…, clock=…, **settings)``: what it finds.

    Nothing that it says may hold a password of the URL. Its echoes are small, to be quick.
    """
    monkeypatch.setattr(speed, "_SIZES", speed._SIZES[:1])

    def ask(
        url: str | None,
        party: str = "alice",
        spec: ClusterSpec | None = None,
        size: int = 2,
        **changes: Any,
    ) -> Told:
        spec = make_cluster("", size, broker=None) if spec is None else spec
        clock = {"clock": changes.pop("clock")} if "clock" in changes else {}
        given = {"broker_url": url, "identity_file": key_files[party], "reply_timeout": 2.0}
        case = Case(RedisLinkSettings(_env_file=None, **given | changes), spec, party, **clock)
        report = examine(lambda: case)
        if url is not None and "@" in url:
            password = url.partition("@")[0].rpartition(":")[2]
            assert password not in str(report.findings)
        return Told(report)

    return ask


@pytest.fixture
def users(server: EmbeddedBroker, admin: Admin) -> Iterator[Callable[..., dict[str, str]]]:
    """``users(spec, "-lpop")``: a user per party, with further rules; the URL of each."""
    made: list[bytes] = []

    def make(spec: ClusterSpec, *rules: str) -> dict[str, str]:
        people = acl.party_users(spec.session, spec.party_names)
        passwords = {name: secrets.token_urlsafe(12) for name in spec.party_names}
        acl.apply_users(Broker(server.url), people, passwords)
        for user in people:
            made.append(user.name.encode())
            if rules:
                admin(b"ACL", b"SETUSER", user.name.encode(), *(rule.encode() for rule in rules))
        return {u.party: acl.party_url(server.url, u.name, passwords[u.party]) for u in people}

    yield make
    if made:
        admin(b"ACL", b"DELUSER", *made)


def contents(admin: Admin) -> dict[bytes, bytes]:
    """Every key of the server, with what it holds."""
    names = sorted(admin(b"KEYS", b"*"))
    return {name: bytes(admin(b"DUMP", name)) for name in names}
