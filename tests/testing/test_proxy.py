"""`Proxy`: passes on, slows down, cuts and stalls connections, in front of an echo server."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from redislink.testing import Proxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
        except OSError:
            return
        finally:
            self.server.ended.release()


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.ended = threading.Semaphore(0)
        """Released for each connection that the server saw ending."""


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with Proxy(echo.server_address[1]) as proxy:
        yield proxy


def dial(proxy: Proxy, timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout)


def is_closed(client: socket.socket) -> bool:
    """True if the connection ends, in good order or not; False after a timeout."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def ends_at_once(proxy: Proxy) -> bool:
    """True if a new connection ends without a word, be it while it is still being dialled."""
    try:
        with dial(proxy) as client:
            return is_closed(client)
    except ConnectionError:
        return True


def ask(client: socket.socket, data: bytes) -> bytes:
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(client.recv(1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    client.sendall(data)
    reader.join(20)
    return bytes(got)


def test_everything_is_passed_on(proxy: Proxy) -> None:
    payload = bytes(range(256)) * 20_000
    with dial(proxy) as client:
        assert ask(client, payload) == payload
        (connection,) = proxy.connections
        assert (connection.to_server, connection.to_client) == (len(payload), len(payload))


def test_the_end_of_one_side_is_the_end_of_the_other(proxy: Proxy, echo: EchoServer) -> None:
    with dial(proxy) as client:
        assert ask(client, b"x") == b"x"
    assert echo.ended.acquire(timeout=10)


def test_one_connection_is_cut_and_others_are_not(proxy: Proxy, echo: EchoServer) -> None:
    with dial(proxy) as first, dial(proxy) as second:
        assert ask(first, b"1") == b"1"
        assert ask(second, b"2") == b"2"
        proxy.connections[0].cut()
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        assert echo.ended.acquire(timeout=10)
        assert ask(second, b"still") == b"still"
        assert [connection.number for connection in proxy.connections] == [2]
        assert proxy.taken == 2


def test_a_stalled_connection_is_silent_until_it_is_resumed(proxy: Proxy, echo: EchoServer) -> None:
    with dial(proxy, timeout=0.2) as client:
        assert ask(client, b"x") == b"x"
        (connection,) = proxy.connections
        connection.stall()
        assert connection.stalled
        client.sendall(b"held up")
        with pytest.raises(TimeoutError):
            client.recv(1)
        connection.resume()
        client.settimeout(10)
        assert client.recv(7) == b"held up"


def test_a_stalled_connection_hides_the_end_of_a_side(proxy: Proxy, echo: EchoServer) -> None:
    with dial(proxy) as client:
        assert ask(client, b"x") == b"x"
        proxy.connections[0].stall()
    assert not echo.ended.acquire(timeout=0.2)
    proxy.connections[0].cut()
    assert echo.ended.acquire(timeout=10)


def test_delay_is_per_way_and_does_not_narrow_the_line(proxy: Proxy) -> None:
    payload = bytes(10 << 20)
    with dial(proxy) as client:
        ask(client, b"x")
        proxy.delay = 0.05
        started = time.monotonic()
        assert ask(client, b"x") == b"x"
        assert time.monotonic() - started >= 0.1
        started = time.monotonic()
        assert ask(client, payload) == payload
        chunks = len(payload) >> 16
        assert time.monotonic() - started < chunks * 0.05, "chunks travel at the same time"


def test_one_connection_may_have_its_own_delay(proxy: Proxy) -> None:
    with dial(proxy) as slow, dial(proxy) as quick:
        ask(slow, b"x")
        ask(quick, b"x")
        proxy.delay = 5
        proxy.connections[0].delay = 0.05
        proxy.connections[1].delay = 0
        started = time.monotonic()
        assert ask(slow, b"x") == b"x"
        assert 0.1 <= time.monotonic() - started < 5
        assert ask(quick, b"x") == b"x"


def test_rate_bounds_all_connections_together(proxy: Proxy) -> None:
    proxy.rate = 4e6
    with dial(proxy) as one, dial(proxy) as two:
        started = time.monotonic()
        threads = [
            threading.Thread(target=ask, args=(client, bytes(500_000))) for client in (one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - started >= 1_000_000 / 4e6


def test_a_server_that_is_away(echo: EchoServer) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()[1]) as proxy:
            assert ends_at_once(proxy)


def test_connections_are_bounded(echo: EchoServer) -> None:
    with Proxy(echo.server_address[1], max_connections=1) as proxy, dial(proxy) as first:
        assert ask(first, b"x") == b"x"
        assert ends_at_once(proxy)


def test_only_this_machine_reaches_it_and_all_ends_with_it(echo: EchoServer) -> None:
    before = set(threading.enumerate())
    with Proxy(echo.server_address[1]) as proxy:
        client = dial(proxy)
        assert ask(client, b"x") == b"x"
        port = proxy.port
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
    assert is_closed(client)
    client.close()
    assert echo.ended.acquire(timeout=10)
    assert len(set(threading.enumerate()) - before) <= 1, "the echo server's own"
