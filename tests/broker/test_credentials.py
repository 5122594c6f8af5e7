"""Users and passwords from files and callables: fresh for each connection, and for nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redislink import RedisLinkSettings, connect
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.credentials import Credentials, read_password
from redislink.errors import (
    BrokerAuthError,
    BrokerPermissionError,
    BrokerUnreachable,
    ConfigError,
    UsageError,
)
from redislink.operate import acl
from redislink.session.session import Session
from tests.conftest import IDENTITIES, connect_as, make_cluster, quick_settings, run_parties
from tests.support.servers import Admin


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A password file, mode 0600."""
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text("first\nnot this line\n")
    return path


class TestFile:
    @pytest.mark.parametrize(
        ("content", "password"),
        [
            *((b"pw", "pw"), (b"pw\n", "pw"), (b"pw\r\nx", "pw"), (b"\xef\xbb\xbfpw\n", "pw")),
            *((b" p w \n", " p w "), ("pä/ss@?#\n".encode(), "pä/ss@?#")),
        ],
    )
    def test_its_first_line_is_the_password(
        self, secret: Path, content: bytes, password: str
    ) -> None:
        secret.write_bytes(content)
        assert read_password(secret) == password

    @pytest.mark.parametrize("content", [b"", b"\n", b"\r\nx", b"\xff\n"])
    def test_that_holds_none(self, secret: Path, content: bytes) -> None:
        secret.write_bytes(content)
        with pytest.raises(ConfigError, match=f"password file {secret}: is empty"):
            read_password(secret)

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o660])
    def test_that_others_may_read_or_write(self, secret: Path, mode: int) -> None:
        secret.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_password(secret)

    def test_that_a_group_may_read_is_how_kubernetes_mounts_secrets(self, secret: Path) -> None:
        secret.chmod(0o440)
        assert read_password(secret) == "first"

    def test_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="BROKER_PASSWORD_FILE: there is no file"):
            RedisLinkSettings.load(_env_file=None, broker_password_file=tmp_path / "none")


def test_the_file_wins_over_the_url_and_its_user_stays(secret: Path) -> None:
    with EmbeddedBroker(options={"user": "someone on >first ~* +@all"}) as server:
        url = f"redis://someone:other@127.0.0.1:{server.port}"
        broker = Broker(url, password_file=secret, timeout=5)
        assert broker.open().execute(b"LLEN", b"x", timeout=5) == 0
        assert broker.user == "someone"


def test_what_a_callable_may_give() -> None:
    with EmbeddedBroker(options={"user": "someone on >first ~* +@all"}) as server:
        url = f"redis://someone@127.0.0.1:{server.port}"
        for given in ("first", ("first",), ("someone", "first"), ["someone", "first"]):
            connection = Broker(url, credentials=lambda given=given: given).open()
            assert connection.execute(b"LLEN", b"x", timeout=5) == 0


@pytest.mark.parametrize(
    "given",
    [None, b"bytes", 7, (), ("a", "b", "c"), ("a", 7), "\ud800", ("\udcff", "a"), "x" * 100_000],
    ids=lambda given: ascii(given)[:20],
)
def test_what_it_may_not_give(given: Any) -> None:
    broker = Broker("redis://127.0.0.1:1", credentials=lambda: given)
    with pytest.raises(ConfigError, match="let it give a password"):
        broker.open()


def test_what_is_no_callable_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="not a callable: give a function"):
        Broker("redis://127.0.0.1:1", credentials="pw")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [TimeoutError, SystemExit])
def test_a_callable_that_raises_is_tried_again_and_its_text_is_not_shown(
    kind: type[BaseException],
) -> None:
    def ask() -> str:
        raise kind("token of s3cret")

    with pytest.raises(BrokerUnreachable, match=f"raised {kind.__name__}") as caught:
        Broker("redis://127.0.0.1:1", credentials=ask).open()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("way", ["file", "callable"])
def test_a_password_is_changed_in_the_middle_of_a_run(way: str, secret: Path) -> None:
    """The server has the new one before the file has it; connections are cut in between."""
    with EmbeddedBroker(password="first") as server:
        admin = Admin(server)
        url = f"redis://127.0.0.1:{server.port}"
        cluster = make_cluster(url, 2)
        changes = {"broker_url": url}
        options: dict[str, Any] = {}
        if way == "file":
            changes["broker_password_file"] = str(secret)
        else:
            options["credentials"] = lambda: ("default", read_password(secret))
        settings = quick_settings(**changes)
        alice, bob = run_parties(
            *(lambda n=n: connect_as(cluster, n, settings, **options) for n in ("alice", "bob"))
        )
        try:
            admin(b"CONFIG", b"SET", b"requirepass", b"second")
            admin(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
            refused = Broker(url, password_file=secret)
            with pytest.raises(BrokerAuthError):
                refused.open()
            secret.write_text("second\n")
            alice.send("bob", "tag", b"after")
            assert bob.recv("alice", "tag") == b"after"
        finally:
            run_parties(alice.close, bob.close)
            admin.close()


def test_a_password_that_was_right_once_may_be_right_again(secret: Path) -> None:
    with EmbeddedBroker(password="first") as server:
        url = f"redis://127.0.0.1:{server.port}"
        never = Broker(url, credentials=lambda: "wr0ng")
        fixed = Broker(f"redis://:first@127.0.0.1:{server.port}")
        changing = Broker(url, password_file=secret)
        for broker in (fixed, changing):
            broker.open().close()
        admin = Admin(server)
        admin(b"CONFIG", b"SET", b"requirepass", b"second")
        for broker, retryable in ((never, False), (fixed, True), (changing, True)):
            with pytest.raises(BrokerAuthError) as caught:
                broker.open()
            assert caught.value.retryable is retryable
        admin.close()
        secret.unlink()  # as when a secret is mounted anew
        with pytest.raises(BrokerUnreachable, match="check the path"):
            changing.open()
        secret.touch(0o600)
        secret.write_text("second\n")
        changing.open().close()


def test_a_password_file_is_not_for_the_cluster_files_broker(secret: Path) -> None:
    settings = RedisLinkSettings.load(_env_file=None, broker_password_file=secret)
    with pytest.raises(ConfigError, match=r"the cluster file names the broker redis://h:6379"):
        Broker.from_settings(settings, "redis://someone:pw@h")
    own = RedisLinkSettings.load(
        _env_file=None, broker_password_file=secret, broker_url="redis://me@h"
    )
    assert Broker.from_settings(own, "redis://other").label == "redis://h:6379"


def test_a_broker_has_its_credentials_already() -> None:
    for join in (connect, Session.join):
        with pytest.raises(UsageError, match="give the credentials to the broker"):
            join(
                make_cluster("redis://127.0.0.1:1", 2),
                "alice",
                quick_settings(),
                broker=Broker("redis://127.0.0.1:1"),
                identity=IDENTITIES["alice"],
                credentials=lambda: "pw",
            )


def test_who_logs_in_as_another_party_is_told_so(valkey: EmbeddedBroker) -> None:
    cluster = make_cluster(valkey.url, 2)
    users = acl.party_users(cluster.session, cluster.party_names)
    acl.apply_users(Broker(valkey.url), users, dict.fromkeys(cluster.party_names, "pw"))
    urls = {user.party: acl.party_url(valkey.url, user.name, "pw") for user in users}
    with pytest.raises(
        BrokerPermissionError, match=r"logged in to broker .* as bob's user"
    ) as caught:
        connect_as(cluster, "alice", quick_settings(broker_url=urls["bob"]))
    assert "REDISLINK_BROKER_URL to the URL with alice's user" in str(caught.value)


def test_what_is_hidden() -> None:
    credentials = Credentials("someone", "p/w@1")
    credentials.current()
    for text in ("p/w@1", "'p/w@1x'", "p%2Fw%401", "p/w%401", "a someone b", "'someone'"):
        assert "***" in credentials.hide(text)
    assert credentials.hide("someones default") == "someones default"
    short = Credentials("default", "a")
    assert short.hide("what a day, default user") == "what *** day, default user"
    assert Credentials().hide("nothing") == "nothing"


def test_of_several_brokers_each_gets_only_its_own_password(secret: Path) -> None:
    secret.write_text("first\n\nthird\n")
    settings = RedisLinkSettings.load(
        _env_file=None,
        broker_password_file=secret,
        broker_url="redis://me@a, redis://me:inurl@b redis://me:unused@c",
    )
    brokers = Broker.all_from_settings(settings, None)
    assert [broker._credentials.current() for broker in brokers] == [
        ("me", "first"),
        ("me", "inurl"),
        ("me", "third"),
    ]
    secret.write_text("first\n")
    with pytest.raises(ConfigError, match=r"has no line 2: .* in the order of the brokers"):
        brokers[1]._credentials.current()


def test_where_only_one_broker_can_be_used_several_are_refused() -> None:
    settings = RedisLinkSettings.load(_env_file=None)
    with pytest.raises(ConfigError, match=r"2 brokers \(redis://a:6379, redis://b:6379\)"):
        Broker.from_settings(settings, "redis://u:pw@a redis://b")
