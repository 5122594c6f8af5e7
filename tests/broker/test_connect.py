"""Broker URLs and connections: every failure is one BrokerError or ConfigError, in one line."""

import socket
import threading

import pytest

from redislink import (
    BrokerAuthError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
)
from redislink.broker import Broker, EmbeddedBroker, Inbox, Outbox
from redislink.errors import EndpointClosed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no scheme"),
        ("localhost:6379", "scheme"),
        ("http://host", "unknown scheme 'http'"),
        ("redis://", "without a host"),
        ("redis://host:port", "host or port is not valid"),
        ("redis://host:99999", "host or port is not valid"),
        ("redis://[::1", "host or port is not valid"),
        ("unix://", "without a path"),
        ("redis://host?socket_timeout=soon", "cannot be parsed"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Broker(url)
    assert "redis://" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("redis://user:s3cret@host:1234/2", "redis://host:1234/2"),
        ("rediss://:s3cret@host", "rediss://host:6379"),
        ("redis://[::1]:7", "redis://[::1]:7"),
        ("unix://user:s3cret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("fakeredis://name", "fakeredis://name"),
    ],
)
def test_the_label_holds_no_secret(url, label):
    assert Broker(url).label == label


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
            with pytest.raises(BrokerPermissionError, match=r"docs/broker\.md") as caught:
                connection.execute(*command, timeout=5)
            assert "payload" not in str(caught.value)
        assert connection.execute(b"LLEN", b"rl:x", timeout=5) == 0


def test_a_unix_socket(tmp_path):
    path = tmp_path / "valkey.sock"
    with EmbeddedBroker(options={"unixsocket": str(path)}):
        connection = Broker(f"unix://{path}").open()
        assert connection.execute(b"RPUSH", b"x", b"y", timeout=5) == 1


def test_an_error_reply_leaves_the_connection_in_step(valkey):
    connection = Broker(valkey.url).open()
    connection.send([(b"SET", b"string", b"1"), (b"RPUSH", b"string", b"x"), (b"GET", b"string")])
    assert connection.read(5) == b"OK"
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        connection.read(5)
    assert connection.read(5) == b"1"


def test_a_failed_push_surfaces_at_the_next_call(valkey):
    broker = Broker(valkey.url)
    broker.open().execute(b"SET", b"not a list", b"1", timeout=5)
    outbox = Outbox(broker)
    outbox.push(b"not a list", (b"x",), 60)
    with pytest.raises(BrokerRefused):
        outbox.flush()
    with pytest.raises(BrokerRefused):
        outbox.push(b"fine", (b"x",), 60)
    outbox.close()
    with pytest.raises(EndpointClosed):
        outbox.push(b"fine", (b"x",), 60)


def test_a_broker_that_dies_ends_a_waiting_receive():
    with EmbeddedBroker() as server:
        inbox = Inbox(Broker(server.url))
        outcome = []

        def wait():
            try:
                inbox.pop((b"x",), 10)
            except BrokerUnreachable as error:
                outcome.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        server.stop()
        thread.join(10)
    assert len(outcome) == 1
