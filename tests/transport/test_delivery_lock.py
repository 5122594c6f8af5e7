"""Nobody reads or changes anything of a delivery without the endpoint's lock."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from redislink import RecvCancelled, RecvTimeout, SendTimeout
from redislink.broker import EmbeddedBroker
from redislink.protocol.delivery import Delivery
from redislink.testing import Faults, FaultyBroker
from redislink.transport import core
from redislink.transport.endpoint import Endpoint
from redislink.transport.party_status import status_of
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.waiting import wait_until
from tests.transport.test_endpoint import blocked

_offences: set[str] = set()


class GuardedDelivery(Delivery):
    """Notes every use of it by a thread that does not hold the lock of its endpoint."""

    def __getattribute__(self, name: str) -> Any:
        _check(self, name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _check(self, name)
        object.__setattr__(self, name, value)


def _check(delivery: Delivery, name: str) -> None:
    lock = object.__getattribute__(delivery, "__dict__").get("lock")
    if lock is not None and not lock._is_owned():
        caller = traceback.extract_stack(limit=3)[0]
        _offences.add(f"{name} in {caller.name}, line {caller.lineno} of {caller.filename}")


def guard(endpoints: list[Endpoint]) -> list[Endpoint]:
    for endpoint in endpoints:
        for peer in endpoint.parts.core.peers.values():
            with endpoint.parts.core.lock:
                vars(peer.delivery)["lock"] = endpoint.parts.core.lock
    return endpoints


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "Delivery", GuardedDelivery)
    _offences.clear()


def exchange(here: Endpoint, there: str) -> None:
    """All that a party does, with a peer that does the same at the same time."""
    for number in range(40):  # lanes come, and go where a number is left out
        if number % 7:
            here.send(there, f"count-{number}", b"x")
            assert here.recv(there, f"count-{number}") == b"x"
    handle = here.send(there, "large", b"y" * 300_000)
    handle.test()
    here.stats()
    status_of(here.parts.core, here.parts.closing._claim)
    here.flush()
    assert here.recv(there, "large") == b"y" * 300_000
    handle.wait()
    assert handle.test()
    here.send(there, "peeked", b"z")
    wait_until(lambda: here.has_message(there, "peeked"))
    assert here.peek_message(there, "peeked") == here.recv(there, "peeked")
    with here.announce_silence(1.0), pytest.raises(RecvTimeout):
        here.recv(there, "never", 0.4)
    thread, outcome = in_thread(lambda: here.recv(there, "cancelled"))
    wait_until(lambda: blocked(here, "cancelled"))
    here.cancel_recv(there, "cancelled")
    thread.join()
    assert isinstance(outcome[0], RecvCancelled)
    with pytest.raises(SendTimeout):
        here.send(there, "untaken", b"").wait(0.0)
    assert here.recv(there, "untaken") == b""


def test_nothing_touches_a_delivery_without_the_lock(valkey: EmbeddedBroker) -> None:
    alice, bob = guard(
        join(make_cluster(valkey.url, 2), chunk_bytes=65_536, close_timeout=2, lookahead=8)
    )
    several = [(alice, "bob"), (bob, "alice")]
    run_parties(*(lambda here=h, there=t: exchange(here, there) for h, t in several))
    alice.send("bob", "left over", b"w")
    run_parties(alice.close, bob.close)
    assert not _offences, "\n".join(sorted(_offences))


@pytest.mark.slow
def test_nor_where_the_broker_harms_what_passes(valkey: EmbeddedBroker) -> None:
    """Mending, probing, resending; then a close that waits in vain, and an abort."""
    faults = Faults(drop=0.05, duplicate=0.05, reorder=0.05, cut=0.02, refuse=0.02)
    broker = FaultyBroker(valkey.url, seed=3, faults=faults)
    cluster = make_cluster(valkey.url, 2)
    alice, bob = guard(join(cluster, broker, chunk_bytes=65_536, close_timeout=0.3))
    for number in range(30):
        alice.send("bob", f"n{number % 3}", bytes(number))
    assert [len(bob.recv("alice", f"n{number % 3}")) for number in range(30)] == [*range(30)]
    bob.parts.core.stopped.set()  # it is deaf from now on, and will not take what comes
    bob.parts.control._wait.interrupt()
    bob.parts.control._thread.join()
    bob.parts.core.stopped.clear()
    broker.faults = Faults()
    alice.send("bob", "untaken", b"w")
    alice.close()
    bob.abort("of the test")
    assert not _offences, "\n".join(sorted(_offences))


def test_a_test_that_does_not_find_it_is_none(valkey: EmbeddedBroker) -> None:
    alice, bob = guard(join(make_cluster(valkey.url, 2), close_timeout=1))
    assert alice.parts.core.peer("bob").delivery.all_acked
    assert _offences
    run_parties(alice.close, bob.close)
