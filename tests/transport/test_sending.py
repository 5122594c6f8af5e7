"""Sends: the handle of a long message, and `flush` when the broker does not take everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redislink import (
    BrokerUnreachable,
    Endpoint,
    EndpointClosed,
    RedisLinkError,
    SendTimeout,
)
from redislink.broker import Outbox

Mesh = Callable[..., list[Endpoint]]
URL = "fakeredis://sends"


def break_line(endpoint: Endpoint, error: BrokerUnreachable) -> None:
    outbox = endpoint.parts.core.outbox
    assert isinstance(outbox, Outbox)
    with outbox._lock:
        outbox._break(error)


def test_the_handle_of_a_message_of_several_chunks(mesh: Mesh) -> None:
    alice, bob = mesh(URL, 2, chunk_bytes=1024)
    request = alice.send("bob", "t", bytes(3000))
    assert not request.test()
    bob.recv("alice", "t")
    request.wait(10)
    assert request.test()


def test_after_a_reconnect_flush_waits_for_what_is_pushed_again(mesh: Mesh) -> None:
    alice, bob = mesh(URL, 2)
    break_line(alice, BrokerUnreachable("made up by the test"))
    request = alice.send("bob", "t", b"x")
    alice.flush()
    assert alice.stats().reconnects == 1
    assert bob.recv("alice", "t") == b"x"
    request.wait(10)


@pytest.mark.parametrize("error", [BrokerUnreachable("no route"), None])
def test_flush_gives_up_after_broker_timeout(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, error: BrokerUnreachable | None
) -> None:
    alice, _ = mesh(URL, 2)
    core = alice.parts.core
    with monkeypatch.context() as patch:
        patch.setattr(core, "settings", core.settings.model_copy(update={"broker_timeout": 0.0}))
        patch.setattr(core, "mend_outbox", lambda: None)
        patch.setattr(core.outbox, "flush", lambda: False)
        if error is not None:
            break_line(alice, error)
        with pytest.raises(BrokerUnreachable if error else SendTimeout) as caught:
            alice.flush()
    assert ("no route" if error else "alice: the broker has not taken everything in 0 s") in str(
        caught.value
    )


CALLS: dict[str, Callable[[Endpoint, int], object]] = {
    "send": lambda endpoint, peer: endpoint.send(peer, "t", b"x"),
    "send a long one": lambda endpoint, peer: endpoint.send(peer, "t", bytes(3 << 20)),
    "flush": lambda endpoint, _: endpoint.flush(),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_sent_once_the_session_is_over(mesh: Mesh, call: str) -> None:
    alice, bob = mesh(URL, 2)
    bob.parts.core.fail(RedisLinkError("of ours"))
    with pytest.raises(RedisLinkError, match="of ours"):
        CALLS[call](bob, 0)
    alice.abort("done")
    with pytest.raises(EndpointClosed):
        CALLS[call](alice, 1)
    assert alice.stats().messages_sent == bob.stats().messages_sent == 0
