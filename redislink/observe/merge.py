"""Reads the trace files of parties and writes them as one timeline.

Rules: files come from other parties, so anything that `TraceRecorder` would not write is a
`ConfigError` that names the file and line. If the end of a file is missing because its process was
killed, the rest of it counts.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from redislink.errors import ConfigError
from redislink.files import read_text, replacing
from redislink.observe.clocks import Alignment, align
from redislink.observe.record import FIELDS, FORMAT, SEND, STEP, WAIT
from redislink.protocol.list_names import check_name

_SHORTEST_COMPUTE: Final = 10.0
"""Microseconds between two calls above which the time between them is shown."""
_APART: Final = 0.003
"""Microseconds left free at both its ends: to a reader that adds in floating point, slices that
touch overlap, and it draws each inside the one before."""
_NOT_OURS: Final = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
    ConfigError,
)
"""The errors that come from values which `TraceRecorder` never writes."""
_MOST_READ: Final = 4 << 30
_KINDS: Final = {SEND: "send", WAIT: "wait", STEP: "step"}


class Call(NamedTuple):
    """A call of a party, or a step of its session. Times: microseconds since it began to record."""

    kind: str
    peer: str
    tag: str
    thread: int
    began: float
    took: float
    size: int
    number: int
    error: str

    @property
    def ended(self) -> float:
        """When the call returned, in microseconds since the recording began."""
        return self.began + self.took


@dataclass
class PartyTrace:
    """The contents of one file.

    Attributes:
        parties: the parties of the session, in rank order.
        epochs: for each peer, the epoch that tells this run with it from others.
        calls: its sends and receives.
        steps: the steps of its session; what each was is in ``tag``.
        monotonic_ns: the monotonic clock when the recording began.
        wall_ns: the wall clock when the recording began.
        threads: the names of threads by number, from 1.
        is_whole: whether the file has its end.
        cut_us: when the recording was cut because it became too large.
    """

    path: Path
    session: str
    party: str
    parties: list[str]
    epochs: dict[str, str]
    monotonic_ns: int
    wall_ns: int
    calls: list[Call] = field(default_factory=list)
    steps: list[Call] = field(default_factory=list)
    threads: dict[int, str] = field(default_factory=dict)
    is_whole: bool = False
    cut_us: float | None = None

    @property
    def rank(self) -> int:
        """The rank of the party."""
        return self.parties.index(self.party)


@dataclass(frozen=True)
class Merged:
    """The result of `merge`.

    Attributes:
        messages: the number of pairs of a send and its receive.
        alignment: the alignment of the parties' clocks, in microseconds.
    """

    traces: Sequence[PartyTrace]
    messages: int
    alignment: Alignment


def merge(paths: Sequence[Path], out: Path) -> Merged:
    """Put the files of all parties of a run on one time axis, with an arrow for each message.

    Args:
        paths: the files of all parties or of some, one for each.
        out: the timeline to write; an existing file is replaced.

    Raises:
        ConfigError: a file cannot be read or written, or the files are of different runs.
    """
    if any(path.resolve() == out.resolve() for path in paths):
        raise ConfigError(f"{out} is one of the files to merge: name another with --out")
    traces = sorted((read_trace(path) for path in paths), key=lambda trace: trace.rank)
    _check_one_run(traces)
    messages = [*match_messages(traces)]
    alignment = align(*_bounds(traces, messages))
    try:
        with replacing(out) as file:
            file.write('{"displayTimeUnit":"ms","otherData":')
            file.write(json.dumps(_about(traces, alignment)) + ',"traceEvents":[\n')
            separator = ""
            for event in _events(traces, messages, alignment):
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): name another file") from None
    return Merged(traces, len(messages), alignment)


def read_trace(path: Path) -> PartyTrace:
    """Read the file of one party.

    Raises:
        ConfigError: the file cannot be read, or is not a trace of redislink.
    """
    try:
        lines = read_text(path, _MOST_READ).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a trace file of redislink: it is not text") from None
    reader = _Reader(path)
    for number, line in enumerate(lines, 1):
        try:
            reader.take(json.loads(line))
        except _NOT_OURS:
            if number == len(lines) > 1:
                break  # the process was killed while it wrote this
            raise ConfigError(
                f"{path}, line {number}: is not a line of a redislink trace: pass the files of "
                "REDISLINK_TRACE_DIR, one for each party"
            ) from None
    if reader.trace is None:
        raise ConfigError(f"{path} is not a trace file of redislink: it is empty")
    return reader.trace


class _Reader:
    """Takes the values of a file's lines. A wrong one raises anything but a RedisLinkError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trace: PartyTrace | None = None
        self._thread_numbers: dict[int, int] = {}

    def take(self, value: Any) -> None:
        if self.trace is None:
            self.trace = self._describe(value)
        elif isinstance(value, list):
            if len(value) % FIELDS:
                raise ValueError("part of a call")
            fields = [iter(value)] * FIELDS
            for call in (self._call(*call) for call in zip(*fields, strict=True)):
                (self.trace.steps if call.kind == "step" else self.trace.calls).append(call)
        elif "thread" in value:
            number = self._thread_numbers[int(value["thread"])] = len(self._thread_numbers) + 1
            self.trace.threads[number] = str(value["name"])
        else:
            cut, self.trace.is_whole = value["cut_ns"], int(value["calls"]) >= 0
            self.trace.cut_us = None if cut is None else self._time(cut)

    def _describe(self, about: dict[str, Any]) -> PartyTrace:
        if about["redislink_trace"] not in (1, FORMAT):  # 1 differs only in what it lacks
            raise ValueError("another version")
        trace = PartyTrace(
            self._path,
            check_name(about["session"], "session"),
            check_name(about["party"], "party"),
            [check_name(party, "party") for party in about["parties"]],
            {str(peer): str(epoch) for peer, epoch in about["epochs"].items()},
            int(about["monotonic_ns"]),
            int(about["wall_ns"]),
        )
        if trace.party not in trace.parties:
            raise ValueError("no party")
        return trace

    def _call(
        self,
        kind: int,
        began: int,
        ended: int,
        thread: int,
        peer: int | str,
        tag: str,
        size: int,
        result: int | str,
    ) -> Call:
        trace = cast("PartyTrace", self.trace)
        if type(peer) is int and 0 <= peer < len(trace.parties):
            peer = trace.parties[peer]
        error, number = (result, 0) if isinstance(result, str) else ("", int(result))
        start = self._time(began)
        number_of = self._thread_numbers
        return Call(
            _KINDS[kind],
            str(peer),
            str(tag),
            number_of.setdefault(int(thread), len(number_of) + 1),
            start,
            self._time(ended) - start,
            int(size),
            number,
            error,
        )

    def _time(self, at: int) -> float:
        """A time in microseconds since the recording began."""
        if type(at) is not int or abs(at) >= 1 << 63:
            raise ValueError("no time")
        return (at - cast("PartyTrace", self.trace).monotonic_ns) / 1000


def match_messages(traces: Sequence[PartyTrace]) -> Iterator[tuple[int, Call, int, Call]]:
    """For each message (sender, its send, receiver, its receive), with parties by index.

    Messages with one tag keep their order, so the n-th message sent is the n-th received.
    """
    sent: dict[tuple[int, str, str], list[Call]] = defaultdict(list)
    received: dict[tuple[int, str, str], list[Call]] = defaultdict(list)
    for place, trace in enumerate(traces):
        for call in trace.calls:
            if not call.error:
                calls = sent if call.kind == "send" else received
                calls[place, call.peer, call.tag].append(call)
    places = {trace.party: place for place, trace in enumerate(traces)}
    for (sender, peer, tag), sends in sent.items():
        if peer not in places:
            continue
        receives = received.get((places[peer], traces[sender].party, tag), [])
        sends.sort(key=lambda call: call.number)
        receives.sort(key=lambda call: call.ended)
        for send, receive in zip(sends, receives, strict=False):  # some may not have been received
            yield sender, send, places[peer], receive


def _check_one_run(traces: Sequence[PartyTrace]) -> None:
    by_party: dict[str, PartyTrace] = {}
    for trace in traces:
        other = by_party.setdefault(trace.party, trace)
        if other is not trace:
            raise ConfigError(
                f"{other.path} and {trace.path} are both of {trace.party}: pass one of them"
            )
        if (trace.session, trace.parties) != (traces[0].session, traces[0].parties):
            raise ConfigError(
                f"{traces[0].path} is of session {traces[0].session}, {trace.path} of "
                f"{trace.session}, or their parties differ: pass the files of one"
            )
    for trace in traces:
        for peer, epoch in trace.epochs.items():
            if peer in by_party and by_party[peer].epochs.get(trace.party) != epoch:
                raise ConfigError(
                    f"{trace.path} and {by_party[peer].path} are of different runs: pass "
                    "the files of one"
                )


def _bounds(
    traces: Sequence[PartyTrace], messages: Iterable[tuple[int, Call, int, Call]]
) -> tuple[list[float], dict[tuple[int, int], float]]:
    """The arguments of `align`: offsets by the wall clocks, and bounds from the messages."""
    least: dict[tuple[int, int], float] = {}
    for sender, send, receiver, receive in messages:
        pair = sender, receiver
        least[pair] = max(least.get(pair, -math.inf), send.began - receive.ended)
    return [(trace.wall_ns - traces[0].wall_ns) / 1000 for trace in traces], least


def _about(traces: Sequence[PartyTrace], alignment: Alignment) -> dict[str, Any]:
    clocks = zip(traces, alignment.offsets, alignment.uncertainty, strict=True)
    return {
        "session": traces[0].session,
        "contradiction_us": alignment.contradiction,
        "parties": [
            {
                "party": trace.party,
                "offset_us": offset,
                "uncertainty_us": uncertainty if math.isfinite(uncertainty) else None,
                "cut_us": trace.cut_us,
                "is_whole": trace.is_whole,
            }
            for trace, offset, uncertainty in clocks
        ],
    }


def _events(
    traces: Sequence[PartyTrace],
    messages: Iterable[tuple[int, Call, int, Call]],
    alignment: Alignment,
) -> Iterator[dict[str, Any]]:
    zero = min(
        (
            call.began + offset
            for trace, offset in zip(traces, alignment.offsets, strict=True)
            for call in (*trace.calls, *trace.steps)
        ),
        default=0.0,
    )
    shifts = [offset - zero for offset in alignment.offsets]
    for trace, shift in zip(traces, shifts, strict=True):
        yield from _tracks(trace)
        for step in trace.steps:
            yield _slice(trace, step.tag, step.thread, step.began + shift, step.took, "step")
        for call in trace.calls:
            about: dict[str, Any] = {"peer": call.peer, "tag": call.tag, "bytes": call.size}
            about |= {"error": call.error} if call.error else {}
            name, began = f"{call.kind} {call.tag}", call.began + shift
            yield _slice(trace, name, call.thread, began, call.took, call.kind) | {"args": about}
        for thread, began, took in _gaps(trace):
            began += shift + _APART
            yield _slice(trace, "compute", thread, began, took - 2 * _APART, "compute")
        if trace.cut_us is not None:
            cut = {"ph": "i", "s": "p", "name": "the trace was cut here", "pid": _pid(trace)}
            yield cut | {"tid": 0, "ts": _ns(trace.cut_us + shift) / 1000}
    for number, (sender, send, receiver, receive) in enumerate(messages, 1):
        left = _ns(send.began + shifts[sender])
        began = _ns(receive.began + shifts[receiver])
        # Inside the slice, which does not include its end.
        came = max(left, began, _ns(receive.ended + shifts[receiver]) - 1)
        yield _arrow("s", number, _pid(traces[sender]), send.thread, left)
        yield _arrow("f", number, _pid(traces[receiver]), receive.thread, came) | {"bp": "e"}


def _tracks(trace: PartyTrace) -> Iterator[dict[str, Any]]:
    named = {"ph": "M", "pid": _pid(trace)}
    yield named | {"tid": 0, "name": "process_name", "args": {"name": trace.party}}
    yield named | {"tid": 0, "name": "process_sort_index", "args": {"sort_index": trace.rank}}
    for thread, name in trace.threads.items():
        yield named | {"tid": thread, "name": "thread_name", "args": {"name": name}}


def _pid(trace: PartyTrace) -> int:
    """The party's number in the timeline: viewers take 0 for a process that they do not know."""
    return trace.rank + 1


def _slice(
    trace: PartyTrace, name: str, thread: int, began: float, took: float, kind: str
) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": kind,
        "name": name,
        "pid": _pid(trace),
        "tid": thread,
        "ts": _ns(began) / 1000,
        "dur": (_ns(began + took) - _ns(began)) / 1000,
    }


def _gaps(trace: PartyTrace) -> Iterator[tuple[int, float, float]]:
    """(thread, when, how long) for each time outside redislink between two calls.

    Each is within one step or outside all: slices lie in each other or apart.
    """
    edges = [(at, 0.0, step.thread) for step in trace.steps for at in (step.began, step.ended)]
    taken = [(call.began, call.took, call.thread) for call in trace.calls]
    ended: dict[int, float] = {}
    for began, took, thread in sorted(taken + edges):
        before = ended.get(thread, began)
        if began - before >= _SHORTEST_COMPUTE:
            yield thread, before, began - before
        ended[thread] = max(before, began + took)


def _arrow(phase: str, number: int, pid: int, thread: int, at_ns: int) -> dict[str, Any]:
    event = {"ph": phase, "cat": "message", "name": "message", "id": number, "pid": pid}
    return event | {"tid": thread, "ts": at_ns / 1000}


def _ns(us: float) -> int:
    """Whole nanoseconds, so that slices that touch also touch in the file."""
    return round(us * 1000)
