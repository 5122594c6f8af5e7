"""Much data from alice to bob, every message by checksum, while the broker's memory is watched."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from redislink import EndpointStats
from redislink.broker import EmbeddedBroker
from tests.conftest import connect_as, make_cluster, quick_settings
from tests.support.ledger import Comparison, Ledger, compare
from tests.support.servers import Admin
from tests.support.waiting import wait_until

MB = 1_000_000
_TIMEOUT = 120.0


@dataclass(frozen=True)
class BulkOutcome:
    """How it went.

    Attributes:
        comparison: of what was sent with what was received.
        alice, bob: statistics of both endpoints.
        base_bytes: the broker's used_memory before.
        peak_bytes: the broker's own used_memory_peak afterwards.
        evicted: keys that the broker has evicted.
        window_bytes: of the endpoints.
        seconds: for all of it.
        longest_gap: seconds between two messages at bob, at most.
        keys_left: names of the session's keys after both have closed.
    """

    comparison: Comparison
    alice: EndpointStats
    bob: EndpointStats
    base_bytes: int
    peak_bytes: int
    evicted: int
    window_bytes: int
    seconds: float
    longest_gap: float
    keys_left: list[bytes]


def payload(number: int, size: int) -> bytes:
    """The same for the same number."""
    return random.Random(number).randbytes(size)


def transfer(
    server: EmbeddedBroker,
    total: int,
    message: int = 2 * MB,
    *,
    slow: bool = False,
    from_refusal: bool = False,
) -> BulkOutcome:
    """Send so many bytes as messages of a size, through a server that has just been started.

    Alice keeps more under way than the window admits. A slow bob takes one message per look at
    the broker's memory, which has no more room than the window by then. Or bob begins when
    the broker has refused something, as it is full.
    """
    cluster, settings = make_cluster(server.url, 2), quick_settings(recv_timeout=_TIMEOUT)
    admin = Admin(server)
    base = int(admin.info("memory")["used_memory"])
    with ThreadPoolExecutor(2) as pool:
        alice, bob = pool.map(lambda name: connect_as(cluster, name, settings), ("alice", "bob"))
        books = {"alice": Ledger(alice), "bob": Ledger(bob)}
        count = max(1, total // message)
        under_way = max(2, 4 * settings.window_bytes // message)
        gaps = []

        def send() -> None:
            handles = deque(
                alice.send("bob", "bulk", payload(n, message)) for n in range(min(count, under_way))
            )
            for number in range(len(handles), count):
                handles.popleft().wait(_TIMEOUT)
                handles.append(alice.send("bob", "bulk", payload(number, message)))

        def receive() -> None:
            pause = threading.Event()
            if from_refusal:
                wait_until(lambda: alice.stats().frames_refused > 0, _TIMEOUT)
            last = time.monotonic()
            for _ in range(count):
                if slow:
                    admin.info("memory")
                    pause.wait(message / MB / 100)  # 100 MB/s at most
                bob.recv("alice", "bulk")
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        started = time.monotonic()
        for work in [pool.submit(send), pool.submit(receive)]:
            work.result()
        seconds = time.monotonic() - started
        for closing in [pool.submit(alice.close), pool.submit(bob.close)]:
            closing.result()
    try:
        return BulkOutcome(
            compare({name: book.as_json() for name, book in books.items()}),
            alice.stats(),
            bob.stats(),
            base,
            int(admin.info("memory")["used_memory_peak"]),
            int(admin.info("stats")["evicted_keys"]),
            settings.window_bytes,
            seconds,
            max(gaps),
            admin(b"KEYS", b"rl:{%s:*" % cluster.session.encode()),
        )
    finally:
        admin.close()
