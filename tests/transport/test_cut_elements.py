"""An element that is too large for the broker is pushed again in fragments, and joined."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from redislink import Endpoint
from redislink.broker import Broker

SIZE = 10_000
LIMIT = 3000


@pytest.mark.parametrize("size", [LIMIT + 1, SIZE])
def test_a_message_that_has_its_number_is_split(
    mesh: Callable[..., list[Endpoint]], size: int
) -> None:
    url = f"fakeredis://fragments-{size}"
    alice, bob = mesh(url, 2)
    core = alice.parts.core
    body = random.Random(size).randbytes(size)
    alice.send("bob", "t", body)
    alice.send("bob", "t", body[:LIMIT])
    core.element_size.limit = LIMIT
    core.tell_all(lambda delivery: delivery.reconnected(time.monotonic()))
    alice.flush()
    name = core.peers["bob"].out_list("t")
    connection = Broker(url).at(name).open()
    try:
        elements = connection.execute(b"LRANGE", name, 0, -1, timeout=5)
    finally:
        connection.close()
    # The seal and the headers make the fragments hold a little more than the body.
    assert len(elements) == -(-(size + 53) // LIMIT) + 1
    assert max(map(len, elements)) < LIMIT + 70
    assert bob.recv("alice", "t") == body
    assert bob.recv("alice", "t") == body[:LIMIT]
    assert bob.stats().duplicates_dropped == bob.stats().probes_sent == 0
    assert alice.stats().frames_resent == 2
