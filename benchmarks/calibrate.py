"""What the proxy really does: round trip and throughput of a bare TCP connection through it."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import psutil

from benchmarks import processes
from benchmarks.netproxy import BROKER, Edge, NetworkProcess, Profile

_PING: Final = b"p" * 64
_WRITE: Final = b"w" * (64 << 10)
_SECONDS: Final = 0.6
_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Verified:
    """What was measured of a network.

    Attributes:
        profile: its name.
        rtt, rate: as it should be, seconds between parties and bits per second.
        bare_rtt: seconds, median, without the proxy: what the two ends take themselves.
        measured_rtt: seconds, median, between two parties directly.
        measured_broker_rtt: seconds, median, between a party and the broker.
        measured_rate: bits per second, one way between two parties.
        proxy_cpu: cores that the proxy took at that rate.
    """

    profile: str
    rtt: float
    rate: float
    bare_rtt: float
    measured_rtt: float
    measured_broker_rtt: float
    measured_rate: float
    proxy_cpu: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class EchoProcess:
    """A server in a process of its own; see `serve`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            processes.command("calibrate"),
            env=processes.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def verify(profile: Profile) -> Verified:
    """Measure a network; takes about four seconds."""
    with EchoProcess() as echo:
        edges = [Edge("a", "b", echo.address), Edge("a", BROKER, echo.address)]
        with NetworkProcess(profile, edges) as network:
            ports = list(network.ports.values())
            before = cpu_seconds(network.pid)
            rate, seconds = throughput(ports[0], profile)
            return Verified(
                profile.name,
                profile.rtt,
                profile.rate,
                round_trip(echo.address[1]),
                round_trip(ports[0]),
                round_trip(ports[1]),
                rate,
                (cpu_seconds(network.pid) - before) / seconds,
            )


def round_trip(port: int) -> float:
    """Median seconds of a 64 B ping-pong with an `EchoProcess` behind a port."""
    with _connect(port, b"e") as connection:
        times = []
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end or len(times) < 5:
            start = time.perf_counter()
            connection.sendall(_PING)
            _read(connection, len(_PING))
            times.append(time.perf_counter() - start)
    return statistics.median(times[len(times) // 10 :])


def throughput(port: int, profile: Profile) -> tuple[float, float]:
    """Bits per second one way to an `EchoProcess`, and how many seconds it took."""
    count = max(4, int(profile.rate / 8 * 2 * _SECONDS / len(_WRITE)))
    with _connect(port, b"s") as connection:
        start = time.perf_counter()
        for _ in range(count):
            connection.sendall(_WRITE)
        connection.shutdown(socket.SHUT_WR)
        _read(connection, 1)
        seconds = time.perf_counter() - start
    return count * len(_WRITE) * 8 / (seconds - profile.rtt), seconds


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken so far, in seconds; 0 if it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _connect(port: int, mode: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(mode)
    return connection


def _read(connection: socket.socket, count: int) -> None:
    while count:
        data = connection.recv(count)
        if not data:
            raise ConnectionError("the echo server hung up")
        count -= len(data)


def serve(listener: socket.socket) -> None:
    """Serve connections, each by a thread: ``e`` echoes, ``s`` swallows and then sends a byte."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(1) == b"s":
            while connection.recv(256 << 10):
                pass
            connection.sendall(b".")
        else:
            while data := connection.recv(64 << 10):
                connection.sendall(data)


def main() -> None:
    """Print the port, and serve until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
