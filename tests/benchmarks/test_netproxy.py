"""The proxy delays and paces. Bounds are wide: this is no measurement, the page has that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.calibrate import EchoProcess, round_trip, throughput
from benchmarks.netproxy import (
    _FIRST_WINDOW,
    _SEGMENT,
    BROKER,
    Edge,
    NetworkProcess,
    Profile,
    _Congestion,
)
from tests.support.waiting import undisturbed

FAST = 1e9


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoProcess]:
    with EchoProcess() as process:
        yield process


def test_delay_between_parties_and_half_of_it_to_the_broker(echo: EchoProcess) -> None:
    edges = [Edge("a", "b", echo.address), Edge("a", BROKER, echo.address)]
    with NetworkProcess(Profile("test", 0.04, FAST), edges) as network:
        direct, to_broker = network.ports.values()
        assert undisturbed(lambda: round_trip(direct), lambda took: took < 0.08) >= 0.040
        assert undisturbed(lambda: round_trip(to_broker), lambda took: took < 0.040) >= 0.020


def test_rate(echo: EchoProcess) -> None:
    profile = Profile("test", 0.01, 40e6)
    with NetworkProcess(profile, [Edge("a", BROKER, echo.address)]) as network:
        (port,) = network.ports.values()
        assert undisturbed(lambda: throughput(port, profile)[0], lambda rate: rate > 20e6) < 42e6


def test_connections_of_a_party_share_its_line(echo: EchoProcess) -> None:
    profile = Profile("test", 0.01, 40e6)
    edges = [Edge("a", BROKER, echo.address), Edge("c", BROKER, echo.address)]
    with NetworkProcess(profile, edges) as network, ThreadPoolExecutor(3) as pool:
        mine, other = network.ports.values()

        def lead() -> float:
            """Of the party that has a line of its own."""
            *shared, alone = pool.map(
                lambda port: throughput(port, profile)[0], (mine, mine, other)
            )
            assert max(shared) < 30e6
            return alone - max(shared)

        undisturbed(lead, lambda by: by > 0)


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


# ---- what TCP does on a line, with a clock of its own ----

RTT = 0.02


def fill(congestion: _Congestion, now: float) -> int:
    """Send as much as there is room for; how much that was."""
    total = 0
    while room := congestion.room(now):
        count = min(room, _SEGMENT)
        congestion.send(count, now, now + RTT / 2, more=True)
        total += count
    return total


def test_a_window_is_ten_segments_and_doubles_in_each_round_trip() -> None:
    congestion = _Congestion(RTT, 0.0, lambda: 1.0)
    assert [fill(congestion, number * 1.001 * RTT) for number in range(4)] == [
        _FIRST_WINDOW * 2**number for number in range(4)
    ]
    assert congestion.room(3.5 * RTT) == 0
    assert congestion.next_room() == pytest.approx(4 * RTT, rel=0.01)


def test_a_window_shrinks_again_after_idleness() -> None:
    congestion = _Congestion(RTT, 0.0, lambda: 1.0)
    for number in range(5):
        fill(congestion, number * 1.001 * RTT)
    full = congestion.room(5.01 * RTT)
    assert full == _FIRST_WINDOW * 32
    assert congestion.room(4 * RTT + 0.1) == full, "not idle for a timeout yet"
    assert congestion.room(4 * RTT + 1.5 * (RTT + 0.2)) == full // 2
    assert congestion.room(100.0) == _FIRST_WINDOW


def test_what_is_lost_comes_late_and_holds_up_what_follows() -> None:
    lost = iter([True, False])
    congestion = _Congestion(RTT, 0.5, lambda: 0.0 if next(lost) else 1.0)
    late = congestion.send(_SEGMENT, 0.0, RTT / 2, more=True)
    assert late == pytest.approx(1.5 * RTT)
    assert congestion.send(_SEGMENT, 0.0, RTT / 2, more=True) == late
    assert congestion.room(0.0) < 0.7 * _FIRST_WINDOW


def test_a_lost_message_that_is_alone_waits_for_a_timeout() -> None:
    congestion = _Congestion(RTT, 0.5, lambda: 0.0)
    late = congestion.send(64, 0.0, RTT / 2, more=False)
    assert late == pytest.approx(RTT / 2 + RTT + 0.2)


def test_a_line_may_be_slower_one_way_and_the_broker_nearer_to_one(echo: EchoProcess) -> None:
    profile = Profile("test", 0.04, FAST, up=20e6, near=0.1, slow_start=True)
    edges = [Edge("a", BROKER, echo.address), Edge("c", BROKER, echo.address)]
    with NetworkProcess(profile, edges) as network:
        near, far = network.ports.values()
        assert undisturbed(lambda: round_trip(near), lambda took: took < 0.02) >= 0.004
        assert round_trip(far) >= 0.036
        assert throughput(near, Profile("up", profile.rtt, profile.up))[0] < 22e6
