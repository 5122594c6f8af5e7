"""Pipes and doors in one loop, with sockets that are slow, broken or refused when it matters."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from redislink import ConfigError
from redislink.interop.forward import pipes as module
from redislink.interop.forward.pipes import Door, Pipe, connect_to
from redislink.interop.forward.places import TcpPlace, UnixPlace
from redislink.interop.forward.streams import Broken, Came, Ended, Reason, Streams
from tests.interop.forward.test_streams import Pair, frame


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of its own."""

    def run(self: object, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(self, **fixtures), 20))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    run.__name__ = test.__name__
    return run


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go on until this is true."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("what the test waits for did not come")


class Ends:
    """A pipe of the first of two sides in memory; a program's socket; what the other side says."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.streams, self.far = self.pair.sides
        self.stream = self.streams.open("web")
        self.over: list[int] = []
        self.woken = 0
        self.pipe = Pipe(self.streams, self.stream, self._wake, self._wake, self.over.append)
        self.mine, self.program = socket.socketpair()
        self.program.settimeout(0)
        self.pair.settle()
        self.pair.take_events(1)

    def _wake(self) -> None:
        self.woken += 1

    def say(self, data: bytes) -> None:
        """The other side sends; the pipe gets it."""
        self.far.send(self.stream, data)
        self.exchange()

    def exchange(self) -> None:
        self.pair.settle()
        for event in self.pair.take_events(0):
            if isinstance(event, Came):
                self.pipe.came(event.data)
            elif isinstance(event, Ended):
                self.pipe.ended()
            elif isinstance(event, Broken):
                self.pipe.broken()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0)
            self.exchange()

    def close(self) -> None:
        self.program.close()
        self.mine.close()


class TestPipe:
    @in_loop
    async def test_what_comes_before_the_connection_is_kept_for_it(self) -> None:
        ends = Ends()
        ends.say(b"early ")
        ends.say(b"and late")
        ends.far.end(ends.stream)
        ends.exchange()
        ends.pipe.attach(ends.mine)
        assert ends.program.recv(100) == b"early and late"
        assert ends.program.recv(100) == b""
        ends.program.close()
        await ends.until(lambda: ends.over)
        await ends.until(lambda: not ends.far.count)
        assert ends.streams.count == 0

    @in_loop
    async def test_a_program_that_reads_slowly_gets_it_all_and_holds_the_other_side_back(
        self,
    ) -> None:
        ends = Ends()
        ends.mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ends.pipe.attach(ends.mine)
        sent, got = os.urandom(1 << 20), bytearray()
        at = 0
        held = 0
        while len(got) < len(sent):
            room = min(ends.far.room(ends.stream), len(sent) - at)
            if room:
                ends.say(sent[at : at + room])
                at += room
            held = max(held, at - len(got))
            try:
                got += ends.program.recv(1000)
            except BlockingIOError:
                await asyncio.sleep(0)
                ends.exchange()
        assert bytes(got) == sent
        assert held < len(sent) // 2
        ends.close()

    @in_loop
    async def test_a_program_that_is_gone_breaks_the_stream_off(self) -> None:
        for is_waiting in (False, True):
            ends = Ends()
            if is_waiting:  # for the socket to take more
                ends.mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                ends.pipe.attach(ends.mine)
                ends.say(bytes(50_000))
            else:
                ends.pipe.attach(ends.mine)
            ends.program.close()
            if not is_waiting:
                ends.say(b"nobody hears this")
            await ends.until(lambda: ends.over)  # noqa: B023 - it ends within the turn
            ends.pair.settle()
            assert Broken(ends.stream, Reason.CUT) in ends.pair.take_events(1)

    @in_loop
    async def test_a_stream_that_is_broken_off_before_the_connection_is_there(self) -> None:
        ends = Ends()
        ends.far.reset(ends.stream)
        ends.exchange()
        assert ends.over == [ends.stream]
        ends.pipe.attach(ends.mine)
        assert ends.program.recv(1) == b""
        assert ends.mine.fileno() == -1

    @in_loop
    async def test_a_program_is_not_read_while_its_stream_has_no_room(self) -> None:
        ends = Ends()
        ends.pipe.attach(ends.mine)
        sent = 0
        while True:
            try:
                sent += ends.program.send(bytes(1 << 16))
            except BlockingIOError:
                before = sent
                for _ in range(20):
                    await asyncio.sleep(0)
                    ends.pair.settle()
                if not ends.pipe._reads and before == sent:
                    break
        assert ends.streams.room(ends.stream) == 0
        came = len(ends.pair.bytes_of(1, ends.stream))
        ends.far.taken(ends.stream, came)
        ends.pair.settle()
        ends.pipe.has_room()
        await ends.until(lambda: len(ends.pair.bytes_of(1, ends.stream)) > came)
        ends.close()

    @in_loop
    async def test_much_waits_for_more_while_much_is_on_its_way(self) -> None:
        streams = Streams(is_first=True)
        list(streams.receive_untrusted(frame(1, 0, 1)))
        stream, other = streams.open("web"), streams.open("web")
        streams.next_packet()
        list(streams.receive_untrusted(frame(4, other, 2 << 20)))
        for _ in range(5):
            streams.send(other, bytes(256 << 10))
            streams.next_packet()
        assert streams.is_busy
        calls: list[str] = []
        pipe = Pipe(
            streams, stream, lambda: calls.append("now"), lambda: calls.append("later"), print
        )
        mine, program = socket.socketpair()
        pipe.attach(mine)
        for size, how in ((40_000, "later"), (10, "now")):
            calls.clear()
            program.sendall(bytes(size))
            await until(lambda: calls)
            assert calls[0] == how
        mine.close()
        program.close()


class TestDoor:
    @in_loop
    async def test_without_files_left_it_waits_and_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_NO_FILES_SECONDS", 0.01)
        entered: list[socket.socket] = []
        door = Door(TcpPlace("127.0.0.1", 0), entered.append)
        failures = [errno.EMFILE, errno.ENFILE]

        class Crowded:
            def __getattr__(self, name: str) -> Any:
                return getattr(door_socket, name)

            def accept(self) -> tuple[socket.socket, object]:
                if failures:
                    raise OSError(failures.pop(), "no files")
                return door_socket.accept()

        door_socket, door._socket = door._socket, Crowded()  # type: ignore[assignment]
        door.open()
        with socket.create_connection(("127.0.0.1", door_socket.getsockname()[1])):
            await until(lambda: entered)
        assert not failures
        door.close()
        entered[0].close()

    @in_loop
    async def test_it_keeps_its_port_while_it_is_shut(self) -> None:
        door = Door(TcpPlace("127.0.0.1", 0), print)
        place = door.place
        assert isinstance(place, TcpPlace)
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((place.host, place.port))
            door.open()
            door.open()
            socket.create_connection((place.host, place.port)).close()
            door.shut()
            door.shut()
        assert door.place == place
        door.close()

    @in_loop
    async def test_a_port_that_somebody_took_meanwhile_is_an_error(self) -> None:
        door = Door(TcpPlace("127.0.0.1", 0), print)
        assert isinstance(door.place, TcpPlace)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((door.place.host, door.place.port))
            other.listen()
            with pytest.raises(ConfigError, match="take another place"):
                door.open()
        door.close()


class TestConnecting:
    @in_loop
    async def test_a_unix_socket_with_a_full_queue_is_waited_for(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen(0)
            waiting = []
            while True:
                it = socket.socket(socket.AF_UNIX)
                it.settimeout(0)
                waiting.append(it)
                try:
                    it.connect(str(tmp_path / "s"))
                except BlockingIOError:
                    break
            task = asyncio.create_task(connect_to(UnixPlace(tmp_path / "s")))
            await asyncio.sleep(0)
            assert not task.done()
            waiting.append(listener.accept()[0])
            waiting.append(await task)
            for it in waiting:
                it.close()

    @in_loop
    async def test_each_address_of_a_name_is_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))
            loop = asyncio.get_running_loop()
            found = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", each.getsockname())
                for each in (dead, server)
            ]

            async def resolve(*_: object, **__: object) -> list[Any]:
                return found

            monkeypatch.setattr(loop, "getaddrinfo", resolve)
            (await connect_to(TcpPlace("name.example", 1))).close()
            found.pop()
            with pytest.raises(ConnectionRefusedError):
                await connect_to(TcpPlace("name.example", 1))

    @in_loop
    async def test_one_that_takes_too_long_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.01)
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", hang)
        with pytest.raises(TimeoutError):
            await connect_to(TcpPlace("127.0.0.1", 1))
