"""A broker that is hostile, as far as its clients can tell: a RESP proxy before a real server.

Rules: listens on 127.0.0.1 only; everything that passes is kept in `seen_bytes`; all ends with
the ``with`` block.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from tests.security.hostile_broker import Attacker, Pushed
from tests.support.loop_thread import LoopThread

HOST: Final = "127.0.0.1"
_LIMIT: Final = 1 << 22
_TICK: Final = 0.02

Twist = Callable[[Sequence[bytes], bytes], bytes | None]
"""(command, true reply) to the reply that the client gets; None gives it none at all."""


class HostileProxy(LoopThread):
    """Takes connections, and passes commands and replies on, or something else instead.

    Usage::

        with HostileProxy(valkey.port, Attacker(...)) as broker:
            connect(make_cluster(broker.url), ...)

    Attributes:
        port: where it listens, once entered.
        attacker: decides what becomes of each RPUSH; None is content to read.
        twist: changes replies; None leaves them.
        drip: seconds before each reply to an RPUSH.
    """

    def __init__(
        self, upstream_port: int, attacker: Attacker | None = None, twist: Twist | None = None
    ) -> None:
        self.port = 0
        self.attacker = attacker
        self.twist = twist
        self.drip = 0.0
        self._upstream_port = upstream_port
        self._seen: list[bytes] = []
        super().__init__("hostile-proxy")

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def seen_bytes(self) -> bytes:
        """Everything that passed, in both directions."""
        return b"".join(self._seen)

    async def _serve(self, end: asyncio.Event) -> None:
        self._own = await asyncio.open_connection(HOST, self._upstream_port, limit=_LIMIT)
        self._own_lock = asyncio.Lock()
        server = await asyncio.start_server(self._take, HOST, 0, limit=_LIMIT)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        ticking = asyncio.ensure_future(self._tick())
        await end.wait()
        ticking.cancel()
        server.close()
        self._own[1].close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            if self.attacker is not None:
                await self._push(self.attacker.on_tick())
                if self.attacker.wants_flush:
                    self.attacker.wants_flush = False
                    await self._ask(b"DEL", *{name for name, _ in self.attacker.seen})

    async def _push(self, pushed: Sequence[Pushed]) -> None:
        for name, element in pushed:
            await self._ask(b"RPUSH", name, element)
            await self._ask(b"PEXPIRE", name, b"60000")

    async def _ask(self, *command: bytes) -> None:
        reader, writer = self._own
        async with self._own_lock:
            writer.write(_pack(command))
            await _read_reply(reader)

    async def _take(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        writers = [answer]
        with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            server, ask = await asyncio.open_connection(HOST, self._upstream_port, limit=_LIMIT)
            writers.append(ask)
            asked: asyncio.Queue[Sequence[bytes]] = asyncio.Queue()
            passing = [
                asyncio.ensure_future(self._pass_commands(client, ask, asked)),
                asyncio.ensure_future(self._pass_replies(server, answer, asked)),
            ]
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        for writer in writers:
            writer.close()

    async def _pass_commands(
        self,
        client: asyncio.StreamReader,
        ask: asyncio.StreamWriter,
        asked: asyncio.Queue[Sequence[bytes]],
    ) -> None:
        while True:
            raw, command = await _read_command(client)
            self._seen.append(raw)
            await asked.put(command)
            if self.attacker is not None and command[0].upper() == b"RPUSH":
                pushed = self.attacker.on_push(command[1], command[2])
                await self._push(pushed[:-1])
                command = (b"RPUSH", *pushed[-1]) if pushed else (b"EXISTS", command[1])
                raw = _pack(command)
            ask.write(raw)
            await ask.drain()

    async def _pass_replies(
        self,
        server: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        asked: asyncio.Queue[Sequence[bytes]],
    ) -> None:
        while True:
            command = await asked.get()
            reply: bytes | None = await _read_reply(server)
            self._seen.append(reply or b"")
            if self.twist is not None and reply is not None:
                reply = self.twist(command, reply)
            if self.drip and command[0].upper() == b"RPUSH":
                await asyncio.sleep(self.drip)
            if reply is not None:
                answer.write(reply)
                await answer.drain()


def _pack(command: Sequence[bytes]) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    parts += [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"".join(parts)


async def _read_command(reader: asyncio.StreamReader) -> tuple[bytes, Sequence[bytes]]:
    """A command as a client sends it, raw and taken apart."""
    line = await reader.readuntil(b"\r\n")
    raw, command = [line], []
    for _ in range(int(line[1:])):
        size = await reader.readuntil(b"\r\n")
        part = await reader.readexactly(int(size[1:]) + 2)
        raw += [size, part]
        command.append(part[:-2])
    return b"".join(raw), command


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    """One reply of a server, raw."""
    line = await reader.readuntil(b"\r\n")
    if line[:1] == b"$" and line != b"$-1\r\n":
        return line + await reader.readexactly(int(line[1:]) + 2)
    if line[:1] == b"*" and line != b"*-1\r\n":
        return b"".join([line, *[await _read_reply(reader) for _ in range(int(line[1:]))]])
    return line
