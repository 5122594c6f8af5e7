"""What parties do while they are measured. Each is called by every party at once.

Rules: rank 0 measures and returns values, in seconds; times of different parties are compared
directly, as all run on one machine and ``time.monotonic`` is the machine's clock; a warm-up
comes before each measurement; every count is bounded by time.
"""

from __future__ import annotations

import math
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.transports import Job, Joined, connect_endpoint

Values = dict[str, Any]
_LEAST: Final = 2
_MOST: Final = 5000
_WARM_EXCHANGES: Final = 20
_LOOK_EVERY: Final = 0.01
_MOST_ON_ITS_WAY: Final = 64 << 20
_LEAST_ONE_WAY: Final = 16
"""Messages from which on their latency hardly counts in what is sent in a second; unless they are
more than may be on their way."""


class _Ends:
    """Two parties' way to each other, the same for a link context and for an endpoint."""

    def __init__(
        self, first: bool, send: Callable[[bytes | str], Any], recv: Callable[[], bytes]
    ) -> None:
        self.first = first
        self.send = send
        self.recv = recv

    def ask(self, number: float) -> float:
        """The first party's number, at both."""
        if self.first:
            self.send(repr(number))
            return number
        return float(self.recv())

    def tell(self, number: float) -> float:
        """The second party's number, at both."""
        if self.first:
            return float(self.recv())
        self.send(repr(number))
        return number


def _link_ends(context: Any) -> _Ends:
    peer = 1 - context.rank
    return _Ends(
        context.rank == 0,
        lambda data: context.send_async(peer, data),
        lambda: context.recv(peer),
    )


def _payload(joined: Joined, size: int) -> bytes | str:
    return "x" * size if joined.takes_text else b"x" * size


def _endpoint_ends(endpoint: Any) -> _Ends:
    peer = 1 - endpoint.rank
    there, back = "bench/there", "bench/back"
    out, into = (there, back) if endpoint.rank == 0 else (back, there)

    def send(data: bytes | str) -> None:
        endpoint.send(peer, out, data if isinstance(data, bytes) else data.encode())

    return _Ends(endpoint.rank == 0, send, lambda: endpoint.recv(peer, into))


def _warm_up(ends: _Ends, once: Callable[[], Any], seconds: float, most: int) -> int:
    """Do it for a fourth of the time; returns how often it can be done in all of it."""
    count, took = 2, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            once()
        took = ends.ask(time.perf_counter() - start)
        if took > seconds / 4 or count >= most:
            return min(most, max(_LEAST, int(seconds * count / max(took, 1e-9))))
        count *= 4


def _round_trips(ends: _Ends, payload: bytes | str, seconds: float, most: int) -> list[float]:
    """Seconds of each."""

    def round_trip() -> float:
        start = time.perf_counter()
        if ends.first:
            ends.send(payload)
            ends.recv()
        else:
            ends.recv()
            ends.send(payload)
        return time.perf_counter() - start

    count = _warm_up(ends, round_trip, seconds, most)
    return [round_trip() for _ in range(count)]


def _after_pauses(ends: _Ends, payload: bytes | str, pause: float, count: int) -> list[float]:
    """Seconds of round trips, with nothing on its way for so long before each."""
    times = []
    for _ in range(count):
        time.sleep(pause)
        start = time.perf_counter()
        if ends.first:
            ends.send(payload)
            ends.recv()
        else:
            ends.recv()
            ends.send(payload)
        times.append(time.perf_counter() - start)
    return times


def _summary(times: list[float]) -> Values:
    times = sorted(times)
    return {
        "count": len(times),
        "min": times[0],
        "median": statistics.median(times),
        "mean": statistics.fmean(times),
        "p95": times[math.ceil(0.95 * len(times)) - 1],
    }


def _one_way(ends: _Ends, payload: bytes | str, count: int) -> float:
    """Seconds from the first send to the last receive of ``count`` messages."""
    ends.tell(0.0)
    start = time.monotonic()
    for _ in range(count):
        if ends.first:
            ends.send(payload)
        else:
            ends.recv()
    return ends.tell(time.monotonic()) - start


def _one_ways(ends: _Ends, payload: bytes | str, seconds: float, most: int) -> Values:
    # What is on its way at once is bounded here, as the sender never waits.
    bound = max(1, min(most, _MOST_ON_ITS_WAY // len(payload)))
    total = _warm_up(ends, lambda: _one_way(ends, payload, 1), seconds / 2, bound)
    warm = _one_way(ends, payload, total)
    count = int(ends.ask(min(bound, max(_LEAST_ONE_WAY, total * seconds / 3 / warm))))
    repeats = int(ends.ask(max(1, min(5, seconds * total / warm / count))))
    times = [_one_way(ends, payload, count) / count for _ in range(repeats)]
    median = statistics.median(times)
    return {
        "count": count,
        "repeats": repeats,
        "seconds": median,
        "bytes_per_second": len(payload) / median,
    }


# ---- between two parties ----


def link_round_trips(joined: Joined, work: Job) -> Values:
    """Ping-pong of each size through a link context, in as many turns as ``repeats`` says."""
    times: dict[str, list[float]] = {str(size): [] for size in work["sizes"]}
    with joined.link(work["device"]) as context:
        ends = _link_ends(context)
        # One size after the other: the small ones are not to pay for caches that the large ones
        # filled just before.
        for size in work["sizes"]:
            for _ in range(work.get("repeats", 1)):
                joined.next_turn()
                times[str(size)] += _round_trips(
                    ends, _payload(joined, size), work["seconds"], _MOST
                )
        joined.next_turn()
    return {size: _summary(found) for size, found in times.items()}


def link_after_pauses(joined: Joined, work: Job) -> Values:
    """As `link_round_trips`, with a ``pause`` in seconds before each of ``count`` round trips."""
    with joined.link(work["device"]) as context:
        ends = _link_ends(context)
        found = {}
        for size in work["sizes"]:
            payload = _payload(joined, size)
            _round_trips(ends, payload, 0.1, _MOST)
            times = _after_pauses(ends, payload, work["pause"], work["count"])
            found[str(size)] = _summary(times)
    return found


def link_one_ways(joined: Joined, work: Job) -> Values:
    """Messages of each size from rank 0 to rank 1 through a link context, in turns as above."""
    found: dict[str, list[Values]] = {str(size): [] for size in work["sizes"]}
    with joined.link(work["device"]) as context:
        ends = _link_ends(context)
        for size in work["sizes"]:
            for _ in range(work.get("repeats", 1)):
                joined.next_turn()
                found[str(size)].append(
                    _one_ways(ends, _payload(joined, size), work["seconds"], _MOST)
                )
        joined.next_turn()
    return {
        size: sorted(turns, key=lambda values: values["seconds"])[len(turns) // 2]
        for size, turns in found.items()
    }


def endpoint_round_trips(joined: Joined, work: Job) -> Values:
    """Ping-pong of each size by Endpoint.send and recv."""
    ends = _endpoint_ends(joined.endpoint)
    return {
        str(size): _summary(_round_trips(ends, bytes(size), work["seconds"], _MOST))
        for size in work["sizes"]
    }


def endpoint_one_ways(joined: Joined, work: Job) -> Values:
    """Messages of each size from rank 0 to rank 1 by Endpoint.send and recv."""
    ends = _endpoint_ends(joined.endpoint)
    return {
        str(size): _one_ways(ends, bytes(size), work["seconds"], _MOST) for size in work["sizes"]
    }


def bursts(joined: Joined, work: Job) -> Values:
    """As many 64 B messages at once from rank 0 to rank 1, by number of messages."""
    with joined.link(work["device"]) as context:
        ends = _link_ends(context)
        payload = _payload(joined, 64)
        _one_way(ends, payload, 20)
        return {
            str(count): {
                "seconds": statistics.median(
                    _one_way(ends, payload, count) for _ in range(3 if count <= 100 else 1)
                )
            }
            for count in work["counts"]
        }


def line(joined: Joined, work: Job) -> Values:
    """One large message from rank 0 to rank 1 through a link context."""
    with joined.link(work["device"]) as context:
        ends = _link_ends(context)
        payload = "x" * work["size"]
        for size in (64, 64 << 10):
            _one_way(ends, payload[:size], 1)
        return {str(work["size"]): {"seconds": _one_way(ends, payload, 1)}}


# ---- between all parties ----


def program(joined: Joined, work: Job) -> Values:
    """Run a prepared SPU program: once with its setup, then again and again."""
    import spu

    from benchmarks.programs import Prepared

    directory = Path(work["prepared"])
    prepared = Prepared(directory, joined.rank)
    with joined.link(work["device"]) as context:
        runtime = spu.Runtime(context, prepared.config)
        times = []
        for _ in range(1 + work["repeats"]):
            joined.next_turn()
            context.barrier()
            start = time.perf_counter()
            prepared.run(runtime)
            times.append(time.perf_counter() - start)
            context.barrier()
        joined.next_turn()
        name = f"result-{work['name']}-{joined.rank}"
        prepared.save_result(runtime, Path(joined.job["directory"]) / name)
        del runtime
    return {"first": times[0], "later": times[1:]}


def psi(joined: Joined, work: Job) -> Values:
    """Private set intersection of two prepared files, once."""
    from spu import psi as libpsi

    from benchmarks.programs import PSI_ID

    with tempfile.TemporaryDirectory(prefix="bench-psi-") as scratch:
        # libpsi writes files beside its input.
        source = Path(scratch) / "input.csv"
        shutil.copyfile(Path(work["prepared"]) / f"rank{joined.rank}.csv", source)
        config = libpsi.PsiExecuteConfig(
            protocol_conf=libpsi.PsiProtocolConfig(
                protocol=libpsi.parse_protocol("PROTOCOL_RR22"),
                receiver_rank=0,
                broadcast_result=True,
            ),
            input_params=libpsi.InputParams(
                path=str(source), selected_keys=[PSI_ID], keys_unique=True
            ),
            output_params=libpsi.OutputParams(path=str(Path(scratch) / "output.csv")),
        )
        with joined.link(work["device"]) as context:
            context.barrier()
            start = time.perf_counter()
            report = libpsi.psi_execute(config, context)
            seconds = time.perf_counter() - start
    return {"seconds": seconds, "intersection": int(report.intersection_count)}


# ---- many sessions ----


def sessions(job: Job, index: int, work: Job) -> Values:
    """Exchanges in many sessions at once, a thread for each party of each session.

    In an exchange, each party sends a message to one of the others and receives one of another;
    which ones, changes from one exchange to the next. So each party has one message on its way.

    Args:
        job: its parties are those of every session.
        index: of this process.
        work: ``count`` of sessions; ``size`` in bytes, 0 if all are idle; ``seconds``; among how
            many processes the ``ranks`` of a session are divided, and how many ``groups`` of
            processes there are for the sessions.

    Returns:
        For each session, from a process with rank 0: exchanges, the median of their seconds, and
        the seconds of all but the first. From the first process: what the broker took meanwhile,
        and how long that was.
    """
    ranks = range(index % work["ranks"], len(job["parties"]), work["ranks"])
    numbers = range(index // work["ranks"], work["count"], work["groups"])
    chosen = [(number, rank) for number in numbers for rank in ranks]
    endpoints: list[Any] = [None] * len(chosen)
    found: list[Values] = []
    broker = BrokerWatch(job["broker_pids"], job["broker_ports"]) if index == 0 else None

    def connect(place: int) -> None:
        number, rank = chosen[place]
        endpoints[place] = connect_endpoint(job, rank, f"{job['session']}.{number}")

    def play(place: int) -> None:
        if not work["size"]:
            time.sleep(work["seconds"])
            return
        values = _exchanges(endpoints[place], bytes(work["size"]), work["seconds"])
        if values is not None:
            found.append(values)

    def meet(where: str) -> None:
        """Wait until every process has come so far."""
        directory = Path(job["directory"])
        (directory / f"{where}{index}").touch()
        while len(list(directory.glob(f"{where}*"))) < work["ranks"] * work["groups"]:
            time.sleep(_LOOK_EVERY)

    _in_threads(connect, len(chosen))
    meet("joined")
    if broker is not None:
        broker.begin()
    cpu = time.process_time()
    _in_threads(play, len(chosen))
    cpu = time.process_time() - cpu
    meet("played")
    seen = broker.end() if broker is not None else {}
    meet("seen")
    _in_threads(lambda place: endpoints[place].close(), len(chosen))
    return {"sessions": found, "cpu": cpu, "broker": seen}


def _in_threads(task: Callable[[int], Any], count: int) -> None:
    threads = [threading.Thread(target=task, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _exchanges(endpoint: Any, payload: bytes, seconds: float) -> Values | None:
    rank, size = endpoint.rank, endpoint.world_size

    def exchange(number: int) -> float:
        step = 1 + number % (size - 1)
        start = time.perf_counter()
        endpoint.send((rank + step) % size, "bench/exchange", payload)
        endpoint.recv((rank - step) % size, "bench/exchange")
        return time.perf_counter() - start

    warm = [exchange(number) for number in range(_WARM_EXCHANGES)]
    if rank == 0:
        later = statistics.median(warm[len(warm) // 2 :])
        count = max(_WARM_EXCHANGES, int(seconds / later))
        for peer in range(1, size):
            endpoint.send(peer, "bench/count", repr(count).encode())
    else:
        count = int(endpoint.recv(0, "bench/count"))
    start = time.monotonic()
    times = [exchange(number) for number in range(count)]
    took = time.monotonic() - start
    if rank:
        return None
    return {"count": len(warm) + count, "seconds": took, "median": statistics.median(times)}


class BrokerWatch:
    """What the servers of a broker take, from `begin` to `end`: CPU, connections, memory."""

    def __init__(self, pids: Sequence[int], ports: Sequence[int]) -> None:
        """Args: processes, and where they listen on this machine."""
        self._pids = pids
        self._ports = ports

    def begin(self) -> None:
        """From here on."""
        self._begun = time.monotonic()
        self._before = self._cpu()

    def end(self) -> Values:
        """Seconds since `begin`, of CPU of all threads and of the busiest; what is there now."""
        seconds = time.monotonic() - self._begun
        after = self._cpu()
        threads = [after[key] - self._before.get(key, 0.0) for key in after]
        infos = [_info(port) for port in self._ports]
        return {
            "seconds": seconds,
            "cpu": sum(threads),
            "busiest": max(threads),
            # Without the one that asks.
            "connections": sum(int(info["connected_clients"]) for info in infos) - len(infos),
            "memory": sum(int(info["used_memory"]) for info in infos),
        }

    def _cpu(self) -> dict[tuple[int, str], float]:
        found = {}
        for pid in self._pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds = (task / "schedstat").read_text().split()[0]
                found[pid, task.name] = int(nanoseconds) / 1e9
        return found


def _info(port: int) -> dict[str, str]:
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as f,
    ):
        connection.sendall(b"*1\r\n$4\r\nINFO\r\n")
        lines = f.read(int(f.readline()[1:])).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


KINDS: Final[dict[str, Callable[[Joined, Job], Values]]] = {
    "link_round_trips": link_round_trips,
    "link_after_pauses": link_after_pauses,
    "link_one_ways": link_one_ways,
    "endpoint_round_trips": endpoint_round_trips,
    "endpoint_one_ways": endpoint_one_ways,
    "bursts": bursts,
    "line": line,
    "program": program,
    "psi": psi,
}
