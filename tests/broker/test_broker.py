"""`Broker`: connections that open, and why others do not, which is one error in one line."""

import socket

import pytest

from redislink import BrokerAuthError, BrokerPermissionError, BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.broker import _fake_servers


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        broker = Broker(f"redis://:s3cret@127.0.0.1:{taken.getsockname()[1]}", timeout=5)
        with pytest.raises(BrokerUnreachable, match="check that it runs") as caught:
            broker.open()
    assert "s3cret" not in str(caught.value)


def test_somebody_there_who_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = Broker(f"redis://127.0.0.1:{mute.getsockname()[1]}", timeout=0.1)
        connection = broker.open()
        with pytest.raises(BrokerUnreachable, match="waiting for a reply"):
            connection.execute(b"LLEN", b"x", timeout=0.1)
        assert not connection.usable


def test_tls_against_a_server_without_it(valkey):
    with pytest.raises(BrokerUnreachable, match="TLS"):
        Broker(valkey.url.replace("redis://", "rediss://"), timeout=0.5).open()


@pytest.mark.parametrize("credentials", [":wrong@", "nobody:wrong@", ""])
def test_credentials_that_are_not_accepted(credentials):
    with EmbeddedBroker(password="right") as server:
        broker = Broker(f"redis://{credentials}127.0.0.1:{server.port}", timeout=5)
        with pytest.raises(BrokerAuthError, match="check the user and password") as caught:
            broker.open().execute(b"LLEN", b"x", timeout=5)
        assert "wrong" not in str(caught.value)


def test_any_password_can_be_used():
    with EmbeddedBroker(password='p" \\ é:@/%?#') as server:
        assert Broker(server.url).open().execute(b"LLEN", b"x", timeout=5) == 0


def test_an_acl_that_forbids():
    with EmbeddedBroker(options={"user": "weak on >pw ~rl:* +llen +auth"}) as server:
        connection = Broker(f"redis://weak:pw@127.0.0.1:{server.port}").open()
        for command in ((b"RPUSH", b"rl:x", b"payload"), (b"LLEN", b"other")):
            with pytest.raises(BrokerPermissionError, match="redislink acl prints") as caught:
                connection.execute(*command, timeout=5)
            assert "payload" not in str(caught.value)
        assert connection.execute(b"LLEN", b"rl:x", timeout=5) == 0


def test_a_unix_socket(tmp_path):
    path = tmp_path / "valkey.sock"
    with EmbeddedBroker(options={"unixsocket": str(path)}):
        connection = Broker(f"unix://{path}").open()
        assert connection.execute(b"RPUSH", b"x", b"y", timeout=5) == 1


@pytest.mark.parametrize(
    ("url", "numbers"), [("fakeredis://one", {0}), ("fakeredis://two?db=3", {0, 3})]
)
def test_a_fakeredis_has_its_databases_before_two_threads_can_each_make_one(url, numbers):
    """It makes one at the first use, without a lock: each thread would then talk to itself."""
    Broker(url)
    server = _fake_servers[url.partition("//")[2].partition("?")[0]]
    assert set(server.dbs) == numbers
    made = dict(server.dbs)
    connections = [Broker(url).open() for _ in range(2)]
    assert connections[0].execute(b"RPUSH", b"list", b"x", timeout=5) == 1
    assert connections[1].execute(b"LLEN", b"list", timeout=5) == 1
    assert all(server.dbs[number] is made[number] for number in numbers)
    for connection in connections:
        connection.close()
