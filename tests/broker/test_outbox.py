"""`Outbox`, at a real server: what is pushed, refused, and said of it."""

import pytest

from redislink import BrokerRefused
from redislink.broker import Broker, EmbeddedBroker, Outbox
from redislink.broker.wire import ELEMENT
from redislink.errors import EndpointClosed


@pytest.fixture
def outbox(valkey):
    outbox = Outbox(Broker(valkey.url), ttl=60)
    outbox.reconnect()
    yield outbox
    outbox.close()


def test_the_broker_says_of_each_push_whether_it_took_it(outbox):
    for token in ("first", "second"):
        outbox.push(b"outbox test", (b"x", b"y"), token, clear=True)
    assert outbox.flush()
    assert outbox.collect() == [("first", True), ("second", True)]
    assert not outbox.has_unread


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000])
def test_an_element_arrives_as_its_two_parts(valkey, outbox, size):
    outbox.push(b"two parts", (b"head", b"b" * size), clear=True)
    connection = Broker(valkey.url).open()
    assert outbox.flush()
    popped = connection.execute(b"LPOP", b"two parts", timeout=5, most=ELEMENT)
    assert bytes(popped) == b"head" + b"b" * size


def test_a_refused_push_breaks_the_outbox_until_it_is_reconnected(valkey, outbox):
    Broker(valkey.url).open().execute(b"SET", b"not a list", b"1", timeout=5)
    outbox.push(b"not a list", (b"x", b""))
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerRefused)
    assert not outbox.error.retryable
    outbox.push(b"dropped", (b"x", b""), "dropped")
    outbox.reconnect()
    assert outbox.error is None
    assert outbox.flush()
    assert outbox.collect() == []


def test_no_memory_refuses_a_push_and_leaves_the_connection_in_step():
    with EmbeddedBroker(options={"maxmemory": "2mb"}) as server:
        outbox = Outbox(Broker(server.url), ttl=60)
        outbox.reconnect()
        outbox.push(b"large", (b"x", b"x" * (4 << 20)), "large")
        outbox.delete(b"large")  # needs no memory
        assert outbox.flush()
        assert outbox.collect() == [("large", False)]
        outbox.close()


def test_after_close(outbox):
    outbox.close()
    with pytest.raises(EndpointClosed):
        outbox.push(b"x", (b"x", b""))
