"""Programs with sockets, over ``redislink forward`` and beside it over plain loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from redislink.broker import EmbeddedBroker
from redislink.broker.url import parse_url
from redislink.cluster.trial import write_trial
from redislink.testing import Proxy
from tests.acceptance.jobs import Job, Outcome, make_venv
from tests.support.waiting import wait_until

_PROGRAM = Path(__file__).parent / "programs" / "over_grpc.py"
_GRPC = ("grpcio==1.85.1",)
_PATIENCE = 120.0
_PEER_TIMEOUT = 3.0
_BULK = 1_000_000_000
_PIECE = os.urandom(1 << 20)


@dataclass
class Forwarders:
    """Alice's and bob's: what connects to ``port`` reaches bob's target.

    Attributes:
        alice, bob: the processes.
        port: at alice.
        logs: what they said.
        line: what stands between both and the broker.
    """

    alice: subprocess.Popen[bytes]
    bob: subprocess.Popen[bytes]
    port: int
    logs: dict[str, Path]
    line: Proxy | None

    @property
    def listening(self) -> list[str]:
        """The addresses at which either listens, apart from alice's loopback port."""
        return [
            f"{each.laddr.ip}:{each.laddr.port}"
            for process in (self.alice, self.bob)
            for each in psutil.Process(process.pid).net_connections("inet")
            if each.status == psutil.CONN_LISTEN and each.laddr != ("127.0.0.1", self.port)
        ]

    def resident(self) -> list[int]:
        """Bytes of memory of each."""
        return [psutil.Process(p.pid).memory_info().rss for p in (self.alice, self.bob)]


@contextlib.contextmanager
def _forwarders(
    directory: Path, target: int, line: Callable[[int], Proxy] | None = None
) -> Iterator[Forwarders]:
    """Forwarders that are joined, sealed, at a broker of their own.

    Args:
        directory: for their files.
        target: the port of what bob allows.
        line: makes what stands between both and the broker, given its port; None: nothing.
    """
    keys = {name: directory / f"{name}.key" for name in ("alice", "bob")}
    cluster = directory / "cluster.yaml"
    write_trial({"session": "acceptance", "parties": list(keys)}, cluster, keys, "of a trial")
    logs = {name: directory / f"{name}.log" for name in keys}
    words = {"alice": ["-L", "0:bob:it"], "bob": ["--allow", f"alice:it=127.0.0.1:{target}"]}
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        proxy = None
        if line is not None:
            proxy = stack.enter_context(line(parse_url(broker.url).addresses[0][1]))
        environment = os.environ | {
            "REDISLINK_BROKER_URL": broker.url if proxy is None else proxy.url(),
            "REDISLINK_PEER_TIMEOUT": str(_PEER_TIMEOUT),
        }
        started = {}
        for name, key in keys.items():
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "redislink", "forward", "--cluster", str(cluster)),
                    *("--party", name, "--identity", str(key), *words[name]),
                ],
                env=environment,
                stderr=stack.enter_context(logs[name].open("wb")),
            )
            started[name] = process
            stack.callback(_end, process)
        found = wait_until(
            lambda: re.search(r":(\d+) leads to", logs["alice"].read_text()), _PATIENCE
        )
        yield Forwarders(started["alice"], started["bob"], int(found[1]), logs, proxy)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _process(words: Sequence[str | Path], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class _Target:
    """A server whose every connection is handled by ``talk`` in a thread of its own."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.port = int(self._socket.getsockname()[1])
        self.ends: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._talk(connection)
            except (OSError, EOFError) as error:
                self.ends.append(type(error).__name__)

    def close(self) -> None:
        """Accept no more."""
        self._socket.close()


@contextlib.contextmanager
def _target(talk: Callable[[socket.socket], None]) -> Iterator[_Target]:
    target = _Target(talk)
    try:
        yield target
    finally:
        target.close()


def _dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), _PATIENCE)


def _beside(through: Outcome, plain: tuple[int, int, float]) -> Outcome:
    passed, total, seconds = plain
    beside = f"{passed} of {total}, {seconds:.1f} s"
    return Outcome(
        through.name, through.passed, through.total, through.seconds, beside, through.note,
        through.listening,
    )  # fmt: skip


# -- HTTP -------------------------------------------------------------------------------------


def _get_all(port: int, files: dict[str, bytes]) -> tuple[int, int, float]:
    """Get each file 50 times, eight at a time; how many were right, of how many, in how long."""

    def is_right(name: str) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=_PATIENCE) as answer:
            return hashlib.sha256(answer.read()).digest() == hashlib.sha256(files[name]).digest()

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(is_right, [name for name in files for _ in range(50)]))
    return sum(right), len(right), time.monotonic() - began


def _http(directory: Path) -> Outcome:
    files = {f"{size}": os.urandom(size) for size in (0, 1, 10_000, 3_000_000)}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    with _process(words, directory):

        def answers() -> bool:
            with contextlib.suppress(OSError), _dial(port):
                return True
            return False

        wait_until(answers, _PATIENCE)
        with tempfile.TemporaryDirectory() as work, _forwarders(Path(work), port) as both:
            passed, total, seconds = _get_all(both.port, files)
            listening = len(both.listening)
        plain = _get_all(port, files)
    name = "python -m http.server, files to 3 MB, 8 at a time"
    return _beside(Outcome(name, passed, total, seconds, listening=listening), plain)


# -- gRPC -------------------------------------------------------------------------------------


def _grpc(build: Path, directory: Path) -> list[Outcome]:
    python = make_venv(build / "grpc", _GRPC)
    port_file = directory / "port"
    with _process((python, _PROGRAM, "serve", port_file), directory):
        port = int(wait_until(lambda: port_file.exists() and port_file.read_text(), _PATIENCE))
        with tempfile.TemporaryDirectory() as work, _forwarders(Path(work), port) as both:
            through = _call(python, both.port)
        plain = _call(python, port)
    return [
        _beside(Outcome(f"grpcio, {kind}", *through[kind]), plain[kind])  # type: ignore[arg-type]
        for kind in plain
    ]


def _call(python: Path, port: int) -> dict[str, tuple[int, int, float]]:
    words = [str(python), str(_PROGRAM), "call", str(port), "500"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    said: dict[str, tuple[int, int, float]] = json.loads(ran.stdout)
    return said


# -- a gigabyte -------------------------------------------------------------------------------


def _send_bulk(connection: socket.socket) -> None:
    left = int(connection.recv(20))
    digest = hashlib.sha256()
    while left:
        piece = _PIECE[:left]
        connection.sendall(piece)
        digest.update(piece)
        left -= len(piece)
    connection.sendall(digest.digest())


def _receive_bulk(port: int, look: Callable[[], None], size: int = _BULK) -> tuple[bool, float]:
    """Whether the digest at the end is that of what came before; and the seconds it took.

    Args:
        port: where to ask for them.
        look: called again and again meanwhile.
        size: bytes to ask for.
    """
    began = time.monotonic()
    digest, tail, count = hashlib.sha256(), b"", 0
    with _dial(port) as connection:
        connection.sendall(str(size).encode())
        while data := connection.recv(1 << 20):
            if (count := count + 1) % 100 == 0:
                look()
            digest.update((tail + data)[:-32])
            tail = (tail + data)[-32:]
    return tail == digest.digest(), time.monotonic() - began


def _gigabyte() -> Outcome:
    with _target(_send_bulk) as target, tempfile.TemporaryDirectory() as work:
        with _forwarders(Path(work), target.port) as both:
            before, most = both.resident(), [0, 0]

            def look() -> None:
                most[:] = map(max, most, both.resident())

            is_right, seconds = _receive_bulk(both.port, look)
            cpu = [sum(psutil.Process(p.pid).cpu_times()[:2]) for p in (both.alice, both.bob)]
        was_right, plain = _receive_bulk(target.port, lambda: None)
    grown = [(now - then) / 1e6 for now, then in zip(most, before, strict=True)]
    note = (
        f"{_BULK / 1e6 / seconds:.0f} MB/s, plain {_BULK / 1e6 / plain:.0f} MB/s; memory at most "
        f"+{grown[0]:.0f} and +{grown[1]:.0f} MB, CPU {cpu[0]:.1f} and {cpu[1]:.1f} s"
    )
    through = Outcome("1 GB in one stream, digest at the end", int(is_right), 1, seconds, note=note)
    return _beside(through, (int(was_right), 1, plain))


def _far_away() -> Outcome:
    """100 MB with the broker 10 ms and 12.5 MB/s away, while lines to it break three times."""
    size, cuts = 100_000_000, 3

    with (
        _target(_send_bulk) as target,
        tempfile.TemporaryDirectory() as work,
        _forwarders(
            Path(work), target.port, lambda port: Proxy(port, delay=0.01, rate=12.5e6)
        ) as both,
    ):
        line = both.line
        assert line is not None
        times = [time.monotonic() + 2 * (count + 1) for count in range(cuts)]

        def look() -> None:
            if times and time.monotonic() > times[0]:
                times.pop(0)
                for connection in line.connections:
                    connection.cut()

        is_right, seconds = _receive_bulk(both.port, look, size)
    note = f"{size / 1e6 / seconds:.1f} MB/s; lines were cut {cuts - len(times)} times"
    name = "100 MB, broker 10 ms and 12.5 MB/s away, all lines cut in between"
    return Outcome(name, int(is_right and not times), 1, seconds, note=note)


# -- many and slow ones -----------------------------------------------------------------------


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def _short(port: int) -> tuple[int, int, float]:
    """3000 connections of one question each, 50 at a time."""

    def ask(number: int) -> bool:
        with _dial(port) as connection:
            connection.sendall(b"%d" % number)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(100) == b"%d" % number and connection.recv(1) == b""

    began = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        right = list(pool.map(ask, range(3000)))
    return sum(right), len(right), time.monotonic() - began


def _many() -> list[Outcome]:
    with _target(_echo) as target, tempfile.TemporaryDirectory() as work:
        with _forwarders(Path(work), target.port) as both:
            short = Outcome("3000 short connections, 50 at a time", *_short(both.port))
            open_files = [psutil.Process(p.pid).num_fds() for p in (both.alice, both.bob)]
            quiet = _round_trips(both.port, 200)
            with _dial(both.port) as stuck, _dial(both.port) as busy:
                stop = threading.Event()
                threading.Thread(target=_flood, args=(stuck, stop), daemon=True).start()
                threading.Thread(target=_flood, args=(busy, stop), daemon=True).start()
                reader = threading.Thread(target=_drain, args=(busy, stop), daemon=True)
                reader.start()
                beside = _round_trips(both.port, 200)
                stop.set()
                reader.join()
        plain = _short(target.port)
    note = f"median of a round trip {_median(quiet)} ms alone, {_median(beside)} ms beside both"
    right = Outcome(
        "round trips beside a stream that nobody reads and a busy one",
        len(beside), 200, sum(beside), note=note,
    )  # fmt: skip
    left = Outcome(
        "… and no connection is left over", sum(count < 60 for count in open_files), 2, 0.0
    )
    return [_beside(short, plain), left, right]


def _median(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f}"


def _round_trips(port: int, count: int) -> list[float]:
    times = []
    with _dial(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            began = time.monotonic()
            connection.sendall(b"%6d" % number)
            if connection.recv(100) == b"%6d" % number:
                times.append(time.monotonic() - began)
    return times


def _flood(connection: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            connection.sendall(_PIECE)


def _drain(connection: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set() and connection.recv(1 << 20):
            pass


# -- cut in the middle ------------------------------------------------------------------------


def _cut(whom: str) -> Outcome:
    """Kill one forwarder while bytes flow each way: whoever reads sees a reset, soon.

    Each connection has a side that only reads: of two threads on one socket, either may be told.
    """

    def talk(connection: socket.socket) -> None:
        if connection.recv(1) == b"d":
            _flood(connection, threading.Event())
        else:
            while connection.recv(1 << 16):
                pass
            raise EOFError  # in good order: not what is to happen

    with (
        tempfile.TemporaryDirectory() as work,
        _target(talk) as target,
        _forwarders(Path(work), target.port) as both,
        _dial(both.port) as down,
        _dial(both.port) as up,
    ):
        up.sendall(b"u")
        threading.Thread(target=_flood, args=(up, threading.Event()), daemon=True).start()
        down.sendall(b"d")
        got = 0
        while got < 50_000_000:
            got += len(down.recv(1 << 20))
        began = time.monotonic()
        (both.alice if whom == "alice" else both.bob).send_signal(signal.SIGKILL)
        is_reset = False
        try:
            while down.recv(1 << 20):
                pass
        except ConnectionResetError:
            is_reset = True
        here = time.monotonic() - began
        wait_until(lambda: "ConnectionResetError" in target.ends, 60)
        there = time.monotonic() - began
        survivor = both.logs["bob" if whom == "alice" else "alice"]
        said = wait_until(
            lambda: re.search(r"2 streams were reset: (.*)", survivor.read_text()), 60
        )
    right = [is_reset, True, "last heard" in said[1]]
    note = f"reset after {here:.1f} s at alice's program, {there:.1f} s at bob's; 3: it is said"
    return Outcome(f"{whom}'s forwarder killed in the middle", sum(right), 3, there, note=note)


def forward(_sources: Path | None, build: Path) -> list[Outcome]:
    """Everything of this module."""
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as ports:
        return [
            _http(Path(files)),
            *_grpc(build, Path(ports)),
            _gigabyte(),
            _far_away(),
            *_many(),
            _cut("alice"),
            _cut("bob"),
        ]


JOBS = [Job("forward", "programs with sockets through redislink forward", forward)]
