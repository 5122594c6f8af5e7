"""What the kernel is asked of a connection, and told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from redislink.broker import Broker, EmbeddedBroker, tcp


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
    ):
        far, _ = server.accept()
        with far:
            yield near, far


def test_what_has_passed_is_counted(line: tuple[socket.socket, socket.socket]) -> None:
    near, far = line
    before = tcp.traffic(near)
    assert before is not None
    near.sendall(b"12345")
    far.recv(5, socket.MSG_WAITALL)
    far.sendall(b"123")
    near.recv(3, socket.MSG_PEEK | socket.MSG_WAITALL)
    after = tcp.traffic(near)
    assert after is not None
    assert after.received - before.received == 3, "also what nobody has read"
    assert after.acknowledged - before.acknowledged == 5
    assert not after.is_under_way


def test_what_the_other_end_has_no_room_for_is_under_way(
    line: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = line
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(1 << 20))
    traffic = tcp.traffic(near)
    assert traffic is not None
    assert traffic.is_under_way


def test_where_there_is_no_tcp_nothing_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert tcp.traffic(one) is None


def options(line: socket.socket) -> dict[str, int]:
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    return {name: line.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}


@pytest.mark.parametrize(
    ("seconds", "round_trip", "user_timeout", "probes"),
    [(5.0, 0.0, 5000, 3), (5.0, 1.0, 5000, 3), (5.0, 5.0, 20_000, 18), (2e6, 0.0, 2 * 10**9, 127)],
)
def test_the_kernel_gives_up_what_nobody_answers(
    line: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    round_trip: float,
    user_timeout: int,
    probes: int,
) -> None:
    near, _ = line
    monkeypatch.setattr(tcp, "_round_trip", lambda _: round_trip)
    tcp.watch(near, seconds)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert options(near) == {
        "TCP_KEEPIDLE": 2,
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": probes,
        "TCP_USER_TIMEOUT": user_timeout,
    }


def congestion_control(line: socket.socket) -> bytes:
    return line.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def test_what_stays_on_this_machine_is_not_paced(
    line: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = line
    usual = congestion_control(far)
    tcp.send_unpaced(near)
    assert congestion_control(near) == b"reno"
    one, other = socket.socketpair()
    with one, other:
        tcp.send_unpaced(one)
    monkeypatch.delattr(socket, "TCP_CONGESTION")
    tcp.send_unpaced(far)
    monkeypatch.undo()
    assert congestion_control(far) == usual, "a system without the option"


def test_only_a_connection_to_this_machine_is_sent_unpaced() -> None:
    class Far:
        family = socket.AF_INET

        def getsockname(self) -> tuple[str, int]:
            return "192.0.2.1", 5000

        def getpeername(self) -> tuple[str, int]:
            return "192.0.2.2", 6379

        def setsockopt(self, *_: object) -> None:
            raise AssertionError

    tcp.send_unpaced(Far())  # type: ignore[arg-type]


def test_every_connection_to_a_near_broker_is_sent_unpaced(valkey: EmbeddedBroker) -> None:
    with contextlib.closing(Broker(valkey.url).open()) as connection:
        assert congestion_control(connection._wire._below) == b"reno"  # type: ignore[attr-defined]


def test_the_kernel_has_measured_the_round_trip(line: tuple[socket.socket, socket.socket]) -> None:
    assert 0 < tcp._round_trip(line[0]) < 1


def test_every_connection_to_a_broker_is_watched(valkey: EmbeddedBroker) -> None:
    with contextlib.closing(Broker(valkey.url, line_timeout=7.0).open()) as connection:
        assert options(connection._wire._below)["TCP_USER_TIMEOUT"] == 7000  # type: ignore[attr-defined]
