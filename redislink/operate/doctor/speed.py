"""Checks of the line to the broker: round trip, bandwidth, and the difference of the clocks.

Measurements use only PING, which returns any number of bytes: it needs no key, and none of the
broker's memory. Both bytes and seconds are limited.
"""

from __future__ import annotations

import statistics
import time
from secrets import token_bytes as random_bytes
from typing import Any, Final

from redislink.broker.wire import ELEMENT, pack
from redislink.errors import BrokerPermissionError, BrokerRefused
from redislink.operate.doctor.examination import Examination, NotTried, Place
from redislink.operate.doctor.finding import Verdict, passed, unseen, warned

PINGS: Final = 9
"""How many round trips are measured; fewer if they are slow."""
SLOW_SECONDS: Final = 0.2
"""With a longer round trip, computations of many rounds take very long."""
SLOW_RATE: Final = 1e6
"""In bytes per second; below it, the messages of a real model take very long."""
SKEW_SECONDS: Final = 5.0
_LEAST_PINGS: Final = 3
_PINGING_SECONDS: Final = 0.5
_SIZES: Final = (16 << 10, 128 << 10, 1 << 20)
_ROUNDS: Final = 5
_NARROW: Final = (
    "find out what limits the line (VPN, firewall, the service's plan); redislink bench measures "
    "between the parties"
)
_QUICK_SECONDS: Final = 0.1
_MEASURING_SECONDS: Final = 2.0


def round_trip(exam: Examination) -> Verdict:
    """Measure the median round trip; on a Cluster, to the slowest node.

    Raises: see `Examination.ask`.
    """
    places = exam.places()
    own, *others = [_ping(exam, place, len(places)) for place in places]
    exam.seen.round_trip = min(own)
    medians = [statistics.median(times) for times in (own, *others)]
    median = max(medians)
    slowest = medians.index(median)
    text = f"{_digits(median * 1e3)} ms, the median of {len([own, *others][slowest])}"
    if others:
        text += f", to {places[slowest].label}, the slowest of {len(places)} nodes"
    if median < SLOW_SECONDS:
        return passed(text)
    return warned(
        f"{text}: each round of a computation takes at least that",
        "use a broker that is nearer to all parties",
    )


def _ping(exam: Examination, place: Place, places: int) -> list[float]:
    times: list[float] = []
    while len(times) < PINGS and (
        len(times) < _LEAST_PINGS or sum(times) < _PINGING_SECONDS / places
    ):
        started = time.perf_counter()
        _ask(exam, place.inbox, b"PING")
        times.append(time.perf_counter() - started)
    return times


def _ask(exam: Examination, inbox: str, *command: bytes) -> Any:
    try:
        return exam.ask(inbox, *command)
    except (BrokerPermissionError, BrokerRefused):
        raise NotTried("PING is refused") from None


def bandwidth(exam: Examination) -> Verdict:
    """Measure the rate both ways with echoes, to the server that has this party's inbox.

    The reply begins when the server has everything, and ends when everything is back.

    Raises: see `Examination.ask`.
    """
    up = down = 0.0
    ends_at = time.monotonic() + min(_MEASURING_SECONDS, exam.left)
    for size in _SIZES:
        took = 0.0
        best: list[tuple[float, float]] = []
        # On a slow line, two rounds are enough.
        while len(best) < (_ROUNDS if took < _QUICK_SECONDS else 2) and (
            time.monotonic() + took < ends_at
        ):
            try:
                sent, received = _echo(exam, size)
            except TimeoutError as error:
                return warned(str(error), _NARROW)
            took = sent + received
            best.append((size / sent, size / received))
        if not best:
            break
        up, down = (max(rates) for rates in zip(*best, strict=True))
        if took > _QUICK_SECONDS:
            break
    exam.seen.rate = up
    if not up:
        raise NotTried("the time is up")
    text = f"{_rate(up)} to the broker, {_rate(down)} from it"
    if min(up, down) >= SLOW_RATE:
        return passed(text)
    return warned(f"{text}: slow", _NARROW)


def _echo(exam: Examination, size: int) -> tuple[float, float]:
    """Return the seconds that ``size`` bytes take to the broker, and back from it.

    Raises:
        TimeoutError: the echo did not begin in time.
    """
    line = exam.connection(exam.case.party)
    command = pack((b"PING", random_bytes(size)))  # random: nothing on the way can compress it
    started = time.perf_counter()
    line.write((command,))
    if not line.wait_readable(exam.patience()):
        line.close()
        waited = time.perf_counter() - started
        raise TimeoutError(f"an echo of {size} bytes had not begun after {waited:.1f} s")
    begun = time.perf_counter()
    try:
        line.read(exam.patience(), ELEMENT)
    except (BrokerPermissionError, BrokerRefused):
        raise NotTried("PING is refused") from None
    least = size / 1e11
    sent = begun - started - exam.seen.round_trip
    return max(sent, least), max(time.perf_counter() - begun, least)


def _rate(per_second: float) -> str:
    return f"{_digits(per_second / 1e6)} MB/s"


def _digits(number: float) -> str:
    """Format a number with three digits, without an exponent."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def clock(exam: Examination) -> Verdict:
    """Compare this machine's clock with the broker's; certificates and logs depend on clocks.

    Sessions do not.

    Raises: see `Examination.ask`.
    """
    before = exam.case.clock()
    try:
        reply = exam.ask(exam.case.party, b"TIME")
    except (BrokerPermissionError, BrokerRefused):
        return unseen("TIME", "its clock should be right; it matters for certificates and logs")
    after = exam.case.clock()
    try:
        theirs = int(reply[0]) + int(reply[1]) / 1e6
    except (TypeError, ValueError, IndexError):
        return unseen("TIME", "its clock should be right")
    ahead = (before + after) / 2 - theirs
    if abs(ahead) <= SKEW_SECONDS + (after - before) / 2:
        return passed(f"within {SKEW_SECONDS:g} s of the broker's")
    return warned(
        f"this machine's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the "
        "broker's: certificates may count as expired or not yet valid, and logs do not match",
        "set both by NTP (timedatectl shows whether it is on)",
    )
