"""`Proxy`: forwards TCP connections to a server, slowly if asked, and breaks them on demand.

Rules: it listens only on 127.0.0.1; the number of connections, and of bytes in each, is bounded;
everything ends with the ``with`` block.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from socket import SO_LINGER, SO_RCVBUF, SOL_SOCKET
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from redislink.forking import dies_in_child, let_go

HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_CHUNKS_UNDER_WAY: Final = 512
_RECEIVE_BUFFER: Final = 256 << 10
"""Bytes that the kernel may buffer; by default these are megabytes, unlike on a real line."""
_AHEAD_OF_RATE: Final = 0.02
"""Seconds' worth of data that is read ahead of the rate."""
_TIMEOUT: Final = 10.0
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close sends a reset."""
_T = TypeVar("_T")


class _Line:
    """One direction of a proxy, shared by its connections like the slowest link of a path."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def reserve(self, now: float, size: int, rate: float | None) -> float:
        """The time at which the last of ``size`` bytes has left, at ``rate`` bytes per second."""
        self.free_at = max(now, self.free_at) + (size / rate if rate else 0.0)
        return self.free_at


class ProxiedConnection:
    """One connection through a `Proxy`. Its methods may be called from any thread.

    Attributes:
        number: its number, from 1 for the first connection of the proxy.
        to_server: bytes forwarded to the server so far.
        to_client: bytes forwarded to the client so far.
        delay: seconds that data takes through the proxy, one way; None means the proxy's delay.
    """

    def __init__(self, proxy: Proxy, number: int) -> None:
        """Not for users: see `Proxy.connections`."""
        self.number = number
        self.to_server = 0
        self.to_client = 0
        self.delay: float | None = None
        self._proxy = proxy
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Reset the connection on both sides at once, as some firewalls do."""
        self._proxy._call(self._cut)

    def stall(self) -> None:
        """Stop forwarding in both directions without closing anything, as if half-open.

        Not even the end of one side reaches the other, until `resume` or `cut`.
        """
        self._proxy._call(self._stall)

    def resume(self) -> None:
        """End a `stall` and forward what was held up."""
        self._proxy._call(self._flows.set)

    @property
    def stalled(self) -> bool:
        """Whether the connection is between `stall` and `resume`."""
        return not self._flows.is_set()

    def _stall(self) -> None:
        self._flows.clear()

    def _cut(self) -> None:
        self._flows.set()
        for writer in self._writers:
            if (socket := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):  # closed already
                    socket.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            writer.transport.abort()

    async def _serve(
        self, client: asyncio.StreamReader, answer: asyncio.StreamWriter, upstream_port: int
    ) -> None:
        self._writers.append(answer)
        try:
            server, ask = await asyncio.open_connection(HOST, upstream_port)
            self._writers.append(ask)
            passing = [
                asyncio.ensure_future(self._pass(client, ask, self._proxy._up, up=True)),
                asyncio.ensure_future(self._pass(server, answer, self._proxy._down, up=False)),
            ]
            try:
                # When one side has ended, so has the connection.
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            # The server is away, or the proxy ends: the client sees its connection end.
            self._cut()
        finally:
            for writer in self._writers:
                writer.close()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        line: _Line,
        *,
        up: bool,
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(under_way, target, up=up))
            while True:
                data = await source.read(_CHUNK)
                await self._flows.wait()
                now = asyncio.get_running_loop().time()
                left = line.reserve(now, len(data), self._proxy.rate)
                delay = self._proxy.delay if self.delay is None else self.delay
                await under_way.put((left + delay, data))
                if not data:
                    return
                if left - now > _AHEAD_OF_RATE:
                    await asyncio.sleep(left - now - _AHEAD_OF_RATE)

    async def _write(
        self,
        under_way: asyncio.Queue[tuple[float, bytes]],
        target: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await under_way.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._flows.wait()
            if not data:
                return
            target.write(data)
            await target.drain()
            if up:
                self.to_server += len(data)
            else:
                self.to_client += len(data)


class Proxy:
    """A proxy between parties and a broker on this machine.

    Usage::

        with Proxy(broker.port, delay=0.01) as proxy:
            connect(..., RedisLinkSettings(broker_url=f"redis://127.0.0.1:{proxy.port}/0"))
            proxy.connections[0].cut()

    Attributes:
        port: the port on which it listens inside the ``with`` block.
        delay: seconds that data takes, one way; you may change it at any time.
        rate: bytes per second in each direction, for all connections together; None: no limit.
        taken: the number of connections so far.
    """

    def __init__(
        self,
        upstream_port: int,
        *,
        delay: float = 0.0,
        rate: float | None = None,
        max_connections: int = 256,
    ) -> None:
        """Args:
        upstream_port: the port of the server on 127.0.0.1.
        delay: seconds that data takes, one way.
        rate: bytes per second in each direction; None: no limit.
        max_connections: the most connections at a time.
        """
        self.port = 0
        self.delay = delay
        self.rate = rate
        self.taken = 0
        self._upstream_port = upstream_port
        self._max_connections = max_connections
        self._away: Callable[[ProxiedConnection], None] | None = None
        """What is done to each new connection."""
        self._up, self._down = _Line(), _Line()
        self._connections: dict[int, ProxiedConnection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redislink-proxy", daemon=True)
        self._listening: list[int] = []
        dies_in_child(self)

    @property
    def connections(self) -> tuple[ProxiedConnection, ...]:
        """The open connections, oldest first."""
        return self._call(lambda: tuple(self._connections.values()))

    def go_away(self, *, silently: bool = False) -> None:
        """Cut every connection, and each new one, until `come_back`.

        Args:
            silently: stall them instead, as if the server's machine were gone.
        """

        def go() -> None:
            self._away = ProxiedConnection._stall if silently else ProxiedConnection._cut
            for connection in self._connections.values():
                self._away(connection)

        self._call(go)

    def come_back(self) -> None:
        """End `go_away`; connections that were stalled are cut."""

        def come() -> None:
            self._away = None
            for connection in self._connections.values():
                if connection.stalled:
                    connection._cut()

        self._call(come)

    def url(self, path: str = "/0") -> str:
        """The URL of the broker through this proxy, if the broker has no password.

        Args:
            path: the path of the URL, which names the database.
        """
        return f"redis://{HOST}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listens.wait(_TIMEOUT):
            raise TimeoutError(f"the proxy did not listen within {_TIMEOUT:g} s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(_TIMEOUT)

    def die_in_child(self) -> None:
        """In the child of a fork: close the copies, so that the parent can end its connections."""
        self._loop = self._end = None
        writers = [w for connection in self._connections.values() for w in connection._writers]
        sockets = [w.get_extra_info("socket") for w in writers]
        for descriptor in [*self._listening, *(s.fileno() for s in sockets if s is not None)]:
            if descriptor >= 0:
                let_go(descriptor)

    def _call(self, work: Callable[[], _T]) -> _T:
        """Run something in the loop's thread, and wait until it is done."""
        if self._loop is None:
            raise RuntimeError("the proxy has not been entered")

        async def do() -> _T:
            return work()

        coroutine: Coroutine[Any, Any, _T] = do()
        future: Future[_T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(_TIMEOUT)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._take, HOST, 0)
        server.sockets[0].setsockopt(SOL_SOCKET, SO_RCVBUF, _RECEIVE_BUFFER)
        self.port = server.sockets[0].getsockname()[1]
        self._listening = [socket.fileno() for socket in server.sockets]
        self._listens.set()
        await self._end.wait()
        self._listening = []
        server.close()
        # asyncio.run cancels the connections that are left, and each closes itself then.

    async def _take(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        self.taken += 1
        if len(self._connections) >= self._max_connections:
            answer.transport.abort()
            return
        connection = ProxiedConnection(self, self.taken)
        if self._away is ProxiedConnection._cut:
            answer.transport.abort()
            return
        if self._away is not None:
            self._away(connection)
        self._connections[connection.number] = connection
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await connection._serve(client, answer, self._upstream_port)
        finally:
            del self._connections[connection.number]
