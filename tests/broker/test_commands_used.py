"""docs/broker.md says which commands parties send: on real servers, they send these and no others.

Two witnesses, as neither sees all: MONITOR shows each command with its keys, but neither logins
nor commands of administrators; the server's own statistics count every command, without keys.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from redislink import Endpoint, PartyTaken
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from redislink.operate import acl
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until

PAGE: Final = Path(__file__).parents[2] / "docs" / "broker.md"
DATABASE: Final = 1  # another than 0, so that SELECT is needed
CHUNK: Final = 4096
LARGE: Final = bytes(4 * CHUNK)
WAIT: Final = 20.0
_WORD = re.compile(r"`([A-Z]+(?: [A-Z]+)?)`")
_SHOWN = re.compile(r"^\+[\d.]+ \[[^\]]*\] (.*)$")
_ARGUMENT = re.compile(r'"((?:[^"\\]|\\.)*)"')


# -- what the page says ----------------------------------------------------------------------------


def kind_of(key: str) -> str:
    """claim, status or list, as the page's table says it."""
    last = key.rpartition(":")[2]
    return {"!claim": "claim", "!status": "status"}.get(last, "list")


def documented() -> tuple[dict[str, set[str]], set[str]]:
    """Kinds of keys by command, and the commands that only Sentinel or Cluster see.

    The first table of the section, and the sentences before it: those name commands without a key.
    """
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith("Commands used"))
    before, _, rest = text.partition("\n|")
    table = re.split(r"\n(?!\|)", rest)[0]
    kinds: dict[str, set[str]] = {command: set() for command in _WORD.findall(before)}
    elsewhere = set()
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        for command in _WORD.findall(cells[0]):
            where = cells[1].replace("the same", "list").replace("inbox", "list")
            kinds[command] = {kind for kind in ("claim", "status", "list") if kind in where}
            if re.search("cluster|sentinel", row, re.IGNORECASE):
                elsewhere.add(command)
    return kinds, elsewhere


def test_the_page_is_read_rightly() -> None:
    kinds, _ = documented()
    assert set(kinds) >= {"AUTH", "SELECT", "RPUSH", "BLPOP", "PING"}
    assert kinds["BLPOP"] == {"list"}
    assert kinds["DEL"] >= {"list", "claim"}
    assert kinds["GET"] == {"claim"}
    assert kinds["PING"] == kinds["AUTH"] == set()
    assert "KEYS" not in kinds, "named among those that are not used"


# -- what a server sees ----------------------------------------------------------------------------


class Monitor:
    """What MONITOR shows while the block lasts: each command, with what followed it."""

    def __init__(self, connection: socket.socket, user: Callable[..., Any]) -> None:
        self._socket = connection
        self._user = user
        self._lines = connection.makefile("rb")
        self.seen: list[tuple[str, list[str]]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Monitor:
        self._socket.sendall(b"MONITOR\r\n")
        assert self._lines.readline() == b"+OK\r\n"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._user(b"ECHO", b"the end")  # MONITOR shows it after all that came before it
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        for line in self._lines:
            shown = _SHOWN.match(line.decode())
            assert shown is not None, line[:200]
            name, *arguments = _ARGUMENT.findall(shown[1])
            if (name, arguments) == ("ECHO", ["the end"]):
                return
            self.seen.append((name.upper(), arguments))


class Counted:
    """An administrator's connection that counts what it sends itself, since the statistics do."""

    def __init__(self, server: EmbeddedBroker) -> None:
        self._connection: BrokerConnection = Broker(server.url).open()
        self._sent: Counter[str] = Counter()
        self(b"CONFIG", b"RESETSTAT")

    def __call__(self, *command: bytes | int) -> Any:
        words = 2 if command[0] in (b"CONFIG", b"CLIENT", b"ACL") else 1
        reply = self._connection.execute(*command, timeout=5)
        name = b" ".join(word for word in command[:words] if isinstance(word, bytes))
        self._sent[name.decode().upper()] += 1
        return reply

    def others(self) -> set[str]:
        """Commands that somebody else has sent."""
        own = +self._sent
        counted: Counter[str] = Counter()
        for line in bytes(self(b"INFO", b"commandstats")).decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, values = line.removeprefix("cmdstat_").partition(":")
                fields = dict(pair.split("=") for pair in values.split(","))
                refused = int(fields["rejected_calls"])
                assert not refused, line
                counted[name.upper().replace("|", " ")] = int(fields["calls"])
        return set(counted - own)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def admin(real_server: EmbeddedBroker) -> Iterator[Counted]:
    connection = Counted(real_server)
    yield connection
    connection.close()


def everything_twice(endpoints: list[Endpoint], again: Callable[[], Any], admin: Counted) -> None:
    """All that a party can ask of an endpoint, and a connection that is cut in the middle."""

    def play(me: Endpoint) -> None:
        peers = [other.party for other in endpoints if other is not me]
        for number in range(12):  # a family of tags, long enough for lanes
            for peer in peers:
                me.send(peer, f"step-{number}", b"x")
            for peer in peers:
                assert me.recv(peer, f"step-{number}", WAIT) == b"x"
        for peer in peers:
            me.send(peer, "large", LARGE)
            me.send(peer, "here", b"y")
        for peer in peers:
            assert me.recv(peer, "large", WAIT) == LARGE
            wait_until(lambda peer=peer: me.has_message(peer, "here"), WAIT)  # type: ignore[misc]
            assert me.peek_message(peer, "here") == b"y"
            assert me.recv(peer, "here", WAIT) == b"y"
        me.flush()

    run_parties(*(lambda me=me: play(me) for me in endpoints))
    with pytest.raises(PartyTaken):
        again()
    assert admin(b"CLIENT", b"KILL", b"USER", f"{endpoints[0].session}~alice".encode()) > 0
    run_parties(*(lambda me=me: play(me) for me in endpoints))
    assert endpoints[0].stats().reconnects > 0
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.mark.slow
def test_a_session_sends_what_the_page_says_and_nothing_else(
    real_server: EmbeddedBroker, admin: Counted
) -> None:
    cluster = make_cluster(real_server.url)
    names = cluster.party_names
    users = acl.party_users(cluster.session, names, DATABASE)
    passwords = {name: acl.make_password() for name in names}
    for user in users:
        rules = (user.name, "on", acl.hash_rule(passwords[user.party]), *user.rules)
        admin(b"ACL", b"SETUSER", *(rule.encode() for rule in rules))
    url = real_server.url.removesuffix("/0") + f"/{DATABASE}"

    def join(party: str) -> Endpoint:
        user = next(user.name for user in users if user.party == party)
        own = acl.party_url(url, user, passwords[party])
        settings = quick_settings(broker_url=own, lookahead=4, chunk_bytes=CHUNK)
        return connect_as(cluster, party, settings)

    with (
        socket.create_connection(("127.0.0.1", real_server.port)) as connection,
        Monitor(log_in(connection, real_server, admin), admin) as monitor,
    ):
        endpoints = run_parties(*(lambda name=name: join(name) for name in names))
        everything_twice(endpoints, lambda: join("alice"), admin)
        counted = admin.others() - {"MONITOR"}

    kinds, elsewhere = documented()
    shown: dict[str, set[str]] = defaultdict(set)
    own = {"CONFIG", "CLIENT", "ACL", "INFO"}  # the administrator's; counted, and so not missed
    for name, arguments in monitor.seen:
        if name in own or name == "AUTH":
            continue
        if kinds.get(name):
            keys = arguments[:-1] if name == "BLPOP" else arguments[:1]
            if name == "DEL":
                keys = arguments
            for key in keys:
                assert key.startswith(f"rl:{{{cluster.session}:"), (name, key)
            shown[name] |= {kind_of(key) for key in keys}
        else:
            shown[name] |= set()
    for name, found in shown.items():
        assert name in kinds, f"{name} is sent and not in docs/broker.md"
        assert found <= kinds[name], f"{name} is sent for {found - kinds[name]} too"
    assert counted <= set(kinds), "sent and not in docs/broker.md"
    assert counted == set(kinds) - elsewhere, "in docs/broker.md and never sent"


def log_in(connection: socket.socket, server: EmbeddedBroker, admin: Counted) -> socket.socket:
    """As the server's default user."""
    password = server.url.partition("://:")[2].partition("@")[0]
    connection.sendall(f"AUTH {password}\r\n".encode())
    assert connection.recv(16) == b"+OK\r\n"
    admin(b"CONFIG", b"RESETSTAT")  # this login was ours
    return connection
