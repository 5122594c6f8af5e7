"""A network of access lines on one machine: TCP through a proxy with delay and bandwidth.

Rules:
- Each party has a line with its own bandwidth each way, as the ISP sells it; all connections of
  the party share it, and take turns when it is full. Between two parties lie both of their
  lines and the whole delay; between a party and the broker lie its own line and half the delay.
- A line takes bytes off a connection only when it is free, so a sender that is too fast is held
  back by TCP itself, and nothing piles up here but what is on its way.
- The kernel's congestion control sees a loopback. What it would do on a real path is modelled for
  each direction of a connection, where the profile says so (`_Congestion`): slow start, also after
  idleness, and loss. Connections are opened at once.
- One thread, one loop.

Network emulation in the kernel (``tc qdisc add … netem``) would be nearer to the truth, but
kernels for small virtual machines come without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import json
import math
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from benchmarks import processes

BROKER: Final = "broker"
"""The name of the one end that has no line of its own: its is never the narrow one."""
_PIECE_SECONDS: Final = (0.0005, 0.001)
_LEAST_PIECE: Final = 1460
_MOST_CREDIT: Final = 0.05
_RECEIVE_BUFFER: Final = 512 << 10
_PR_SET_TIMERSLACK: Final = 29
_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("@qq")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_TIMESPEC.size)
_STALE: Final = 0.005
_LONGEST_LEAD: Final = 0.0004
_ON_TIME: Final = 0.00002
_SEGMENT: Final = 1448
_FIRST_WINDOW: Final = 10 * _SEGMENT
_LEAST_TIMEOUT: Final = 0.2
_AFTER_LOSS: Final = 0.7
"""As CUBIC has it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A network between parties.

    Attributes:
        name: how tables call it.
        rtt: seconds from party to party and back.
        rate: bits per second of each party's line, each way; 0 for the bare loopback.
        up: bits per second of each party's line towards the others, if not ``rate``.
        slow_start: model TCP's slow start, at the beginning and after idleness.
        loss: share of segments that are lost, 0 to 1; needs ``slow_start``.
        jitter: most seconds that a piece takes longer than the others.
        near: share of the way between two parties that lies between the first party and the
            broker; for the others it is the rest. A half: the broker is in the middle.
    """

    name: str
    rtt: float = 0.0
    rate: float = 0.0
    up: float = 0.0
    slow_start: bool = False
    loss: float = 0.0
    jitter: float = 0.0
    near: float = 0.5

    @property
    def is_loopback(self) -> bool:
        """True if no proxy is needed."""
        return not self.rate


@dataclass(frozen=True, slots=True)
class Edge:
    """A way that connections take: who opens them, to whom, and where the latter listens."""

    source: str
    target: str
    address: tuple[str, int]


class _Congestion:
    """How much of one direction of a connection may be on its way, as Linux has it.

    It starts with ten segments and doubles them in each round trip, until one is lost; from then
    on it grows by a segment each. After idleness it is halved for each retransmission timeout that
    has passed (``tcp_slow_start_after_idle``). What is lost arrives a round trip later, two if
    nothing follows that would show it, and a timeout later if it was alone.
    """

    def __init__(self, rtt: float, loss: float, chance: Callable[[], float]) -> None:
        """Args: seconds there and back, share that is lost, random numbers from 0 to 1."""
        self._rtt = rtt
        self._loss = loss
        self._chance = chance
        self._timeout = rtt + _LEAST_TIMEOUT
        self._window = float(_FIRST_WINDOW)
        self._threshold = math.inf
        self._on_its_way: deque[tuple[float, int]] = deque()
        self._bytes = 0
        self._last_sent = -math.inf
        self._last_due = 0.0
        self.open_since = 0.0
        """When there was room again."""

    def room(self, now: float) -> int:
        """Bytes that may be sent now."""
        while self._on_its_way and self._on_its_way[0][0] <= now:
            was_full = self._bytes >= self._window
            acked_at, count = self._on_its_way.popleft()
            self._bytes -= count
            if self._window < self._threshold:
                self._window += count
            else:
                self._window += _SEGMENT * count / self._window
            if was_full:
                self.open_since = acked_at
        if not self._on_its_way:
            self._rest(now)
        return max(0, int(self._window) - self._bytes)

    def next_room(self) -> float:
        """When the next acknowledgement arrives."""
        return self._on_its_way[0][0] if self._on_its_way else math.inf

    def send(self, count: int, now: float, due: float, *, more: bool) -> float:
        """Put ``count`` bytes on their way.

        Args:
            count: bytes.
            now: the time.
            due: when they would arrive.
            more: if others follow at once.

        Returns:
            When they arrive.
        """
        if self._chance() < 1 - (1 - self._loss) ** math.ceil(count / _SEGMENT):
            self._threshold = max(2.0 * _SEGMENT, _AFTER_LOSS * self._window)
            if not more and not self._on_its_way and count <= _SEGMENT:
                due += self._timeout
                self._window = float(_SEGMENT)
            else:
                due += self._rtt if more else 2 * self._rtt
                self._window = self._threshold
        due = self._last_due = max(due, self._last_due)  # what follows waits for it
        self._last_sent = now
        self._on_its_way.append((due + self._rtt / 2, count))
        self._bytes += count
        return due

    def _rest(self, now: float) -> None:
        idle = now - self._last_sent
        if idle > self._timeout and self._window > _FIRST_WINDOW:
            self._threshold = max(self._threshold, 0.75 * self._window)
            halvings = int(idle / self._timeout)
            self._window = max(self._window / 2**halvings, float(_FIRST_WINDOW))
            self._last_sent = now


class _Line:
    """One direction of one party's line."""

    def __init__(self, profile: Profile, rate: float) -> None:
        self.rate = rate / 8
        least, most = _PIECE_SECONDS
        piece_seconds = min(max(least, profile.rtt / 20), most)
        self.piece = max(_LEAST_PIECE, int(self.rate * piece_seconds))
        self.free_at = 0.0
        self.seen_idle = True
        self.pipes: deque[_Pipe] = deque()

    def carry(self, count: int, now: float, arrival: float) -> float:
        """Put ``count`` bytes on the line; when the last of them has left."""
        # While it was never idle, it goes on from where it was, however late we woke up.
        start = arrival if self.seen_idle else max(self.free_at, now - _MOST_CREDIT)
        self.seen_idle = False
        self.free_at = max(start, self.free_at) + count / self.rate
        return self.free_at

    def forward(self, count: int, arrival: float) -> float:
        """Send on what another line has carried; when the last byte is through."""
        self.free_at = max(self.free_at + count / self.rate, arrival)
        return self.free_at


class _Pipe:
    """One direction of one connection."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        line: _Line,
        then: _Line | None,
        delay: float,
        congestion: _Congestion | None,
    ) -> None:
        self.source = source
        self.sink = sink
        self.line = line
        self.then = then
        self.delay = delay
        self.congestion = congestion
        self.last_due = 0.0
        self.unsent: deque[memoryview] = deque()
        self.source_ended = False
        self.sink_ended = False
        self.twin: _Pipe


class _Network:
    """The loop."""

    def __init__(self, profile: Profile, edges: list[Edge]) -> None:
        names = {name for edge in edges for name in (edge.source, edge.target)} - {BROKER}
        self._out = {name: _Line(profile, profile.up or profile.rate) for name in names}
        self._in = {name: _Line(profile, profile.rate) for name in names}
        self._profile = profile
        self._random = random.Random(1)
        self._first = min(names)
        self._lines = [*self._out.values(), *self._in.values()]
        self._one_way = profile.rtt / 2
        self._lead = 0.0001
        self._heap: list[tuple[float, int, _Pipe, bytes]] = []
        self._numbers = itertools.count()
        self._blocked: set[_Pipe] = set()
        self._listeners: dict[socket.socket, Edge] = {}
        for edge in edges:
            listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            listener.setblocking(False)
            self._listeners[listener] = edge

    @property
    def ports(self) -> list[int]:
        """Where each edge is entered, in order."""
        return [listener.getsockname()[1] for listener in self._listeners]

    def run(self, until: socket.socket | Any) -> None:
        """Serve until there is something to read at ``until``."""
        always = [until, *self._listeners]
        while True:
            now = time.monotonic()
            self._deliver_due(now)
            free, wake = self._free_lines(now)
            pipes = {
                pipe.source: pipe
                for line in free
                for pipe in line.pipes
                if not pipe.unsent and (pipe.congestion is None or pipe.congestion.room(now))
            }
            if self._profile.slow_start:
                wake = self._wake_for_room(free, pipes, wake)
            writers = {pipe.sink: pipe for pipe in self._blocked}
            readers = [*always, *pipes]
            ready, writable, _ = select.select(readers, writers, (), 0)
            self._note_idle(free, ready)
            if not ready and not writable:
                ready, writable = self._wait(readers, writers, wake)
            if until in ready:
                return
            for sink in writable:
                self._flush(writers[sink])
            now = time.monotonic()
            for source in ready:
                if source in self._listeners:
                    self._accept(source)
                elif not pipes[source].source_ended and pipes[source].line.free_at <= now:
                    self._take(pipes[source], now)

    def _wait(self, readers: Any, writers: Any, wake: float | None) -> tuple[list[Any], list[Any]]:
        if wake is None:
            ready, writable, _ = select.select(readers, writers, ())
            return ready, writable
        # A sleeping machine wakes late, so ask for earlier by as much as it lately was.
        asked = wake - self._lead
        timeout = asked - time.monotonic()
        if timeout > 0:
            ready, writable, _ = select.select(readers, writers, (), timeout)
            if ready or writable:
                return ready, writable
            late = time.monotonic() - asked
            self._lead = min(max(0.0, self._lead + 0.1 * (late - self._lead)), _LONGEST_LEAD)
        while time.monotonic() < wake - _ON_TIME:
            pass
        return [], []

    def _free_lines(self, now: float) -> tuple[list[_Line], float | None]:
        """The lines that can take bytes, and when the next thing is to be done."""
        wake = self._heap[0][0] if self._heap else None
        free = []
        for line in self._lines:
            if line.free_at <= now:
                free.append(line)
            elif line.pipes and (wake is None or line.free_at < wake):
                wake = line.free_at
        return free, wake

    def _wake_for_room(
        self, free: list[_Line], pipes: dict[socket.socket, _Pipe], wake: float | None
    ) -> float | None:
        """When a connection whose window is full may send again, if that is before ``wake``."""
        for line in free:
            for pipe in line.pipes:
                if pipe.source not in pipes and not pipe.unsent and pipe.congestion is not None:
                    room_at = pipe.congestion.next_room()
                    if wake is None or room_at < wake:
                        wake = room_at
        return wake

    def _note_idle(self, free: list[_Line], ready: list[socket.socket]) -> None:
        busy = set(ready)
        for line in free:
            if not line.seen_idle and not any(pipe.source in busy for pipe in line.pipes):
                line.seen_idle = True

    def _accept(self, listener: socket.socket) -> None:
        edge = self._listeners[listener]
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(edge.address, timeout=5)
        except OSError:
            near.close()  # as a refused connection looks from behind a NAT
            return
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            each.setblocking(False)
        out, into = self._out, self._in
        if edge.target == BROKER:
            share = self._profile.near
            delay = self._one_way * (share if edge.source == self._first else 1 - share)
            there = self._pipe(near, far, out[edge.source], None, delay)
            back = self._pipe(far, near, into[edge.source], None, delay)
        else:
            delay = self._one_way
            there = self._pipe(near, far, out[edge.source], into[edge.target], delay)
            back = self._pipe(far, near, out[edge.target], into[edge.source], delay)
        there.twin, back.twin = back, there
        for pipe in (there, back):
            pipe.line.pipes.append(pipe)

    def _pipe(
        self,
        source: socket.socket,
        sink: socket.socket,
        line: _Line,
        then: _Line | None,
        delay: float,
    ) -> _Pipe:
        congestion = None
        if self._profile.slow_start:
            congestion = _Congestion(2 * delay, self._profile.loss, self._random.random)
        return _Pipe(source, sink, line, then, delay, congestion)

    def _take(self, pipe: _Pipe, now: float) -> None:
        """Put one piece of a connection on its line."""
        line, most = pipe.line, pipe.line.piece
        if pipe.congestion is not None:
            room = pipe.congestion.room(now)
            if not room:
                return
            most = min(most, max(room, _SEGMENT))
        try:
            data, ancillary, _, _ = pipe.source.recvmsg(most, _ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(pipe)
            return
        line.pipes.remove(pipe)
        if data:
            line.pipes.append(pipe)  # behind those that have not had their turn
        else:
            pipe.source_ended = True
        arrival = _arrival(ancillary, now)
        if pipe.congestion is not None:
            arrival = max(arrival, pipe.congestion.open_since)
        due = line.carry(len(data), now, arrival) + pipe.delay
        if self._profile.jitter:
            due = pipe.last_due = max(
                due + self._random.random() * self._profile.jitter, pipe.last_due
            )
        if pipe.then is not None:
            due = pipe.then.forward(len(data), due)
        if pipe.congestion is not None:
            due = pipe.congestion.send(len(data), now, due, more=len(data) == most)
        heapq.heappush(self._heap, (due, next(self._numbers), pipe, data))

    def _deliver_due(self, now: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now + _ON_TIME:
            _, _, pipe, data = heapq.heappop(heap)
            if pipe.sink_ended:
                continue
            pipe.unsent.append(memoryview(data))
            if len(pipe.unsent) == 1:
                self._flush(pipe)

    def _flush(self, pipe: _Pipe) -> None:
        try:
            while pipe.unsent:
                data = pipe.unsent[0]
                if not data:
                    self._end(pipe)
                    return
                sent = pipe.sink.send(data)
                if sent < len(data):
                    pipe.unsent[0] = data[sent:]
                    raise BlockingIOError
                pipe.unsent.popleft()
            self._blocked.discard(pipe)
        except BlockingIOError:
            self._blocked.add(pipe)
        except OSError:
            self._drop(pipe)

    def _end(self, pipe: _Pipe) -> None:
        """One direction is over; the connection is, once both are."""
        pipe.sink_ended = True
        pipe.unsent.clear()
        self._blocked.discard(pipe)
        if pipe.twin.sink_ended:
            self._drop(pipe)
        else:
            with contextlib.suppress(OSError):
                pipe.sink.shutdown(socket.SHUT_WR)

    def _drop(self, pipe: _Pipe) -> None:
        for each in (pipe, pipe.twin):
            each.sink_ended = each.source_ended = True
            each.unsent.clear()
            self._blocked.discard(each)
            with contextlib.suppress(ValueError):
                each.line.pipes.remove(each)
            each.source.close()


def _arrival(ancillary: list[tuple[int, int, bytes]], now: float) -> float:
    """When the kernel got what was just read: before we woke up to read it."""
    for _, _, data in ancillary:
        seconds, nanoseconds = _TIMESPEC.unpack_from(data)
        age = time.time() - (seconds + nanoseconds * 1e-9)
        if 0 <= age < _STALE:
            return now - age
    return now


class NetworkProcess:
    """The proxy in a process of its own, which ends when this object is left, or this process."""

    def __init__(self, profile: Profile, edges: list[Edge]) -> None:
        """Args: the network, and its ways."""
        config = {
            "profile": asdict(profile),
            "edges": [[edge.source, edge.target, list(edge.address)] for edge in edges],
        }
        self._process = subprocess.Popen(
            processes.command("netproxy"),
            env=processes.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the network proxy did not start: see above")
        self.pid = self._process.pid
        self.ports: dict[tuple[str, str, int], int] = {
            (edge.source, edge.target, edge.address[1]): port
            for edge, port in zip(edges, json.loads(line), strict=True)
        }
        """Where to connect, by source, target and the target's own port."""

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> None:
    """Read a configuration line on standard input, print the ports, serve until input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000)  # ns; the default of 50 µs would show
    with contextlib.suppress(OSError):
        # A network does not wait for the parties' computing; only root may have it so.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    config = json.loads(sys.stdin.readline())
    edges = [Edge(source, target, tuple(address)) for source, target, address in config["edges"]]
    network = _Network(Profile(**config["profile"]), edges)
    print(json.dumps(network.ports), flush=True)
    network.run(sys.stdin)


if __name__ == "__main__":
    main()
