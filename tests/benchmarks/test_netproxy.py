"""The proxy delays and paces. Bounds are wide: this is no measurement, the page has that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.calibrate import EchoProcess, round_trip, throughput
from benchmarks.netproxy import BROKER, Edge, NetworkProcess, Profile

FAST = 1e9


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoProcess]:
    with EchoProcess() as process:
        yield process


def test_delay_between_parties_and_half_of_it_to_the_broker(echo: EchoProcess) -> None:
    edges = [Edge("a", "b", echo.address), Edge("a", BROKER, echo.address)]
    with NetworkProcess(Profile("test", 0.04, FAST), edges) as network:
        direct, to_broker = (round_trip(port) for port in network.ports.values())
    assert 0.040 <= direct < 0.08
    assert 0.020 <= to_broker < direct


def test_rate(echo: EchoProcess) -> None:
    profile = Profile("test", 0.01, 40e6)
    with NetworkProcess(profile, [Edge("a", BROKER, echo.address)]) as network:
        rate, _ = throughput(*network.ports.values(), profile)
    assert 20e6 < rate < 42e6


def test_connections_of_a_party_share_its_line(echo: EchoProcess) -> None:
    profile = Profile("test", 0.01, 40e6)
    edges = [Edge("a", BROKER, echo.address), Edge("c", BROKER, echo.address)]
    rates: dict[int, float] = {}

    def run(number: int, port: int) -> None:
        rates[number] = throughput(port, profile)[0]

    with NetworkProcess(profile, edges) as network:
        mine, other = network.ports.values()
        threads = [
            threading.Thread(target=run, args=(number, port))
            for number, port in enumerate((mine, mine, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rates[0] < 30e6
    assert rates[1] < 30e6
    assert rates[0] < rates[2] > rates[1], "the other party has a line of its own"


def test_everything_arrives_in_order_and_so_does_the_end() -> None:
    sent = bytes(range(256)) * 4000
    with socket.create_server(("127.0.0.1", 0)) as server:
        edge = Edge("a", "b", server.getsockname()[:2])
        with NetworkProcess(Profile("test", 0.002, FAST), [edge]) as network:
            (port,) = network.ports.values()
            with socket.create_connection(("127.0.0.1", port)) as near:
                far, _ = server.accept()
                with far:
                    writer = threading.Thread(target=_send_and_end, args=(near, sent))
                    writer.start()
                    assert _read_all(far) == sent
                    writer.join()
                    _send_and_end(far, b"the other way stays open")
                    assert _read_all(near) == b"the other way stays open"


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        edge = Edge("a", "b", unused.getsockname())
        with (
            NetworkProcess(Profile("test", 0.002, FAST), [edge]) as network,
            socket.create_connection(("127.0.0.1", *network.ports.values())) as near,
        ):
            near.settimeout(10)
            assert near.recv(1) == b""


def test_it_ends_with_its_parent() -> None:
    with NetworkProcess(Profile("test", 0.002, FAST), [Edge("a", "b", ("127.0.0.1", 1))]) as net:
        process = net._process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def _send_and_end(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def _read_all(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)
