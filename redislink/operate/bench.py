"""Measures round trips and bandwidth between the parties of a session: ``redislink bench``.

Rules: pairs are measured one after the other, so that none disturbs another. In a pair both
parties measure, in turn and each for itself, so nobody must trust a peer's numbers. Payloads are
zeros. Every step has a time limit.

The first party keeps the order: it tells the lower-ranked party of each pair to begin, and that
party reports back when the pair is done.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redislink.errors import UsageError
from redislink.transport.endpoint import Endpoint

SIZES: Final = (64, 1 << 10, 64 << 10, 1 << 20)
"""The sizes, in bytes, for which round trips are measured."""
DEFAULT_SECONDS: Final = 10.0

_BULK: Final = ((1 << 20, 16), (64 << 10, 64))
"""Bytes of a message and how many are on their way at once, for a fast line and a slow one."""
_LEAST: Final = 3
_MOST: Final = 2000
_WARM_UP: Final = 3
_END: Final = b""
_TURN: Final = "bench/turn"
_PING: Final = "bench/ping"
_PONG: Final = "bench/pong"
_DATA: Final = "bench/data"
_CREDIT: Final = "bench/credit"


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The round trips for one size.

    Attributes:
        size: bytes of the message, which is sent there and back.
        count: how many round trips were measured.
        median, p95: seconds.
    """

    size: int
    count: int
    median: float
    p95: float


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What this party measured with one peer.

    Attributes:
        peer: the peer's name.
        round_trips: one for each of `SIZES`.
        sent_per_second: bytes per second to the peer, until it had them.
        received_per_second: bytes per second from the peer, by this party's clock.
    """

    peer: str
    round_trips: tuple[RoundTrip, ...]
    sent_per_second: float
    received_per_second: float


def run_bench(
    endpoint: Endpoint,
    seconds: float = DEFAULT_SECONDS,
    on_pair: Callable[[str], None] | None = None,
) -> list[PeerResult]:
    """Measure with every peer. Every party of the session must call this.

    Args:
        endpoint: this party's endpoint; nothing else may use it meanwhile.
        seconds: about how long this party measures with each peer; the peer uses its own number.
            A message that takes longer is waited for all the same.
        on_pair: called with the peer's name when this party begins to measure with it.

    Returns:
        A result for each peer, in rank order.

    Raises:
        UsageError: ``seconds`` is not positive.
        PeerError, BrokerError: as for `Endpoint.recv`.
    """
    if not seconds > 0:
        raise UsageError(f"the seconds to measure must be more than 0, not {seconds:g}")
    me, found = endpoint.rank, []
    # All the pairs before ours come first, and others may measure for longer than we do.
    patience = endpoint.settings.recv_timeout + 10 * seconds * endpoint.world_size**2
    for low, high in itertools.combinations(range(endpoint.world_size), 2):
        is_told = low != 0
        if me == 0 and is_told:
            endpoint.send(low, _TURN, _END)
            endpoint.recv(low, _TURN, patience)
        if me not in (low, high):
            continue
        if me == low and is_told:
            endpoint.recv(0, _TURN, patience)
        pair = _Pair(endpoint, high if me == low else low, seconds, patience)
        found.append(pair.measure(on_pair))
        if me == low and is_told:
            endpoint.send(0, _TURN, _END)
    return found


class _Pair:
    """This party and one peer."""

    def __init__(self, endpoint: Endpoint, peer: int, seconds: float, patience: float) -> None:
        self._endpoint = endpoint
        self._peer = peer
        self._seconds = seconds
        self._patience = patience

    def measure(self, on_pair: Callable[[str], None] | None) -> PeerResult:
        """Measure: the lower rank goes first, and the other answers; then the other way round."""
        name = self._endpoint.cluster.party_names[self._peer]
        received = 0.0
        first = self._endpoint.rank < self._peer
        if not first:
            received = self._answer()
        if on_pair is not None:
            on_pair(name)
        round_trips = tuple(self._round_trips(size) for size in SIZES)
        self._send(_PING, _END)
        sent = self._bulk(round_trips)
        if first:
            received = self._answer()
        return PeerResult(name, round_trips, sent, received)

    def _round_trips(self, size: int) -> RoundTrip:
        payload = bytes(size)
        times: list[float] = []
        end = time.monotonic() + self._seconds / (2 * len(SIZES))
        while not times or (len(times) < _MOST and time.monotonic() < end):
            start = time.perf_counter()
            self._send(_PING, payload)
            self._recv(_PONG)
            times.append(time.perf_counter() - start)
        if len(times) > 2 * _WARM_UP:
            del times[:_WARM_UP]
        times.sort()
        p95 = times[math.ceil(0.95 * len(times)) - 1]
        return RoundTrip(size, len(times), statistics.median(times), p95)

    def _bulk(self, round_trips: tuple[RoundTrip, ...]) -> float:
        """Return the bytes per second to the peer, with a few messages under way at any time."""
        # A full window must get through in a fraction of the time that we have.
        size, window = _BULK[8 * round_trips[-1].median > self._seconds / 4]
        payload = bytes(size)
        count = taken = 0
        start = time.monotonic()
        while count < _LEAST or time.monotonic() < start + self._seconds / 2:
            if count - taken >= window:
                self._recv(_CREDIT)
                taken += 1
            self._send(_DATA, payload)
            count += 1
        for _ in range(count - taken):
            self._recv(_CREDIT)
        took = time.monotonic() - start
        self._send(_DATA, _END)
        # Do not count the time that the last credit took to come back.
        return count * size / max(took - round_trips[0].median / 2, took / 2)

    def _answer(self) -> float:
        """Be the other end of `_round_trips` and `_bulk`; return the bytes per second received."""
        while data := self._recv(_PING):
            self._send(_PONG, data)
        count, first, last = 0, 0.0, 0.0
        while data := self._recv(_DATA):
            last = time.monotonic()
            self._send(_CREDIT, _END)
            if first:
                count += len(data)
            else:
                first = last
        return count / max(last - first, 1e-9)

    def _send(self, tag: str, data: bytes) -> None:
        self._endpoint.send(self._peer, tag, data)

    def _recv(self, tag: str) -> bytes:
        return self._endpoint.recv(self._peer, tag, self._patience)
