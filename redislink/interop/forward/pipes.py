"""`Pipe`: bytes between one socket and one stream; `Door`: a place where programs connect.

Rules:
- Everything here runs in the loop's thread, and nothing blocks.
- A socket is read only when its stream has room. So a program that sends too fast is held back by
  its own TCP connection, and no memory is needed for it.
- A TCP connection counts as broken until it has ended in good order: if this process is killed, the
  kernel resets it (SO_LINGER), and the program does not take what it has for the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from redislink.errors import ConfigError
from redislink.interop.forward.places import Place, TcpPlace, UnixPlace
from redislink.interop.forward.streams import Reason, Streams

_READ: Final = 256 << 10
_MUCH: Final = 32 << 10
"""Bytes read at once that are part of something large: it may wait, for larger packets."""
_BREAKS: Final = struct.pack("ii", 1, 0)
_ENDS: Final = struct.pack("ii", 0, 0)
_CONNECT_SECONDS: Final = 10.0
_CROWDED_SECONDS: Final = 0.02
_PROBE_SECONDS: Final = 1.0
_BACKLOG: Final = 1024
_AT_ONCE: Final = 64
"""Connections that a door accepts before others get their turn."""
_NO_FILES_SECONDS: Final = 0.5
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4),
)  # fmt: skip
"""Seconds of silence before the kernel asks a program's machine (macOS has another name for that),
and between the questions."""


class Pipe:
    """One connection of a program, carried by one stream."""

    def __init__(
        self,
        streams: Streams,
        stream: int,
        wake: Callable[[], None],
        wake_later: Callable[[], None],
        over: Callable[[int], None],
    ) -> None:
        """Args:
        streams, stream: the stream, which is open.
        wake: called when there is something to send to the other side.
        wake_later: the same, if it may wait for more.
        over: called with the stream's number when the pipe has ended; nothing may be called then.
        """
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._stream = stream
        self._wake = wake
        self._wake_later = wake_later
        self._over = over
        self._socket: socket.socket | None = None
        self._unwritten = bytearray()
        self._reads = False
        self._has_read_all = False
        self._peer_ended = False
        self._has_written_all = False
        self._is_over = False

    def attach(self, connection: socket.socket) -> None:
        """Begin to carry bytes of this connection, which is then the pipe's own."""
        if self._is_over:
            _break(connection)
            return
        self._socket = connection
        _tune(connection)
        self.has_room()
        self._write()

    def came(self, data: memoryview) -> None:
        """Give these bytes of the stream to the program, now or later."""
        if self._unwritten or self._socket is None:
            self._unwritten += data
            return
        try:
            count = self._socket.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.cut()
            return
        if count:
            self._take(count)
        if count < len(data):
            self._unwritten += data[count:]
            self._loop.add_writer(self._socket, self._write)

    def ended(self) -> None:
        """The stream brings no more bytes."""
        self._peer_ended = True
        if not self._unwritten and self._socket is not None:
            self._end_writing(self._socket)

    def has_room(self) -> None:
        """Go on to read from the program."""
        if self._socket is not None and not self._reads and not self._has_read_all:
            self._reads = True
            self._loop.add_reader(self._socket, self._read)

    def cut(self, reason: Reason = Reason.CUT) -> None:
        """Break the connection and the stream off."""
        self._streams.reset(self._stream, reason)
        self.broken()
        self._wake()

    def broken(self) -> None:
        """The stream is broken off: break the connection too."""
        if not self._is_over:
            self._finish(_break)

    # -- inner workings -----------------------------------------------------------------------

    def _read(self) -> None:
        connection, room = self._socket, self._streams.room(self._stream)
        assert connection is not None  # noqa: S101 - it is read
        if not room:
            self._stop_reading(connection)
            return
        try:
            data = connection.recv(min(room, _READ))
        except BlockingIOError:
            return
        except OSError:
            self.cut()
            return
        if data:
            self._streams.send(self._stream, data)
            if len(data) >= _MUCH and self._streams.is_busy:
                self._wake_later()
                return
        else:
            self._stop_reading(connection)
            self._has_read_all = True
            self._streams.end(self._stream)
            self._end_if_both()
        self._wake()

    def _write(self) -> None:
        connection = self._socket
        assert connection is not None  # noqa: S101 - it is written
        while self._unwritten:
            with memoryview(self._unwritten) as unwritten:
                try:
                    count = connection.send(unwritten[:_READ])
                except BlockingIOError:
                    count = 0
                except OSError:
                    count = -1
            if count < 0:
                self.cut()
                return
            if not count:
                self._loop.add_writer(connection, self._write)
                return
            del self._unwritten[:count]
            self._take(count)
        self._loop.remove_writer(connection)
        if self._peer_ended:
            self._end_writing(connection)

    def _take(self, count: int) -> None:
        self._streams.taken(self._stream, count)
        self._wake()

    def _stop_reading(self, connection: socket.socket) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(connection)

    def _end_writing(self, connection: socket.socket) -> None:
        if self._has_written_all or self._is_over:
            return
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()
            return
        self._has_written_all = True
        self._wake()  # the stream may be done
        self._end_if_both()

    def _end_if_both(self) -> None:
        if self._has_read_all and self._has_written_all and not self._is_over:
            self._finish(_end)

    def _finish(self, close: Callable[[socket.socket], None]) -> None:
        self._is_over = True
        self._unwritten.clear()
        connection, self._socket = self._socket, None
        if connection is not None:
            self._stop_reading(connection)
            self._loop.remove_writer(connection)
            close(connection)
        self._over(self._stream)


class Door:
    """A place where programs connect. While it is shut, their connections are refused."""

    def __init__(self, place: Place, enter: Callable[[socket.socket], None]) -> None:
        """Reserve the place.

        Args:
            place: where.
            enter: gets each connection.

        Raises:
            ConfigError: the place is taken, or cannot be used.
        """
        self.place = place
        self._enter = enter
        self._is_open = False
        self._accepts = False
        self._socket = self._reserve()

    def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: somebody else has taken the place since.
        """
        if not self._is_open:
            try:
                self._socket.listen(_BACKLOG)
            except OSError as error:
                raise self._failed(error) from None
            self._is_open = True
            self.accept()

    def accept(self) -> None:
        """Go on to take connections."""
        if self._is_open and not self._accepts:
            self._accepts = True
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def pause(self) -> None:
        """Take no connections for now; the kernel holds those that come."""
        if self._accepts:
            self._accepts = False
            asyncio.get_running_loop().remove_reader(self._socket)

    def shut(self) -> None:
        """Refuse connections, and keep the place as far as the system lets us.

        Raises:
            ConfigError: somebody else has taken the place meanwhile.
        """
        if self._is_open:
            self.close()
            self._socket = self._reserve()

    def close(self) -> None:
        """Give the place up."""
        self.pause()
        self._is_open = False
        self._socket.close()
        if isinstance(self.place, UnixPlace):
            with contextlib.suppress(OSError):
                self.place.path.unlink()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._accepts:
                return
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno in _NO_FILES:
                    self.pause()
                    asyncio.get_running_loop().call_later(_NO_FILES_SECONDS, self.accept)
                return
            try:
                self._enter(connection)
            except BaseException:
                _break(connection)
                raise

    def _reserve(self) -> socket.socket:
        try:
            if isinstance(self.place, UnixPlace):
                return _bind_unix(self.place)
            bound = _bind_tcp(self.place)
        except OSError as error:
            raise self._failed(error) from None
        self.place = TcpPlace(self.place.host, bound.getsockname()[1])
        return bound

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(f"-L {self.place}: {error.strerror or error}: take another place")


async def connect_to(target: Place) -> socket.socket:
    """Connect to a target.

    Raises:
        OSError: that is not possible, or takes too long.
    """
    async with asyncio.timeout(_CONNECT_SECONDS):
        if isinstance(target, UnixPlace):
            return await _connect_unix(target)
        return await _connect_tcp(target)


async def _connect_tcp(target: TcpPlace) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    for family, kind, number, _, address in found:
        connection = socket.socket(family, kind, number)
        connection.settimeout(0)
        try:
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


async def _connect_unix(target: UnixPlace) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(0)
        while True:
            try:
                connection.connect(str(target.path))
            except BlockingIOError:  # its backlog is full; the loop would take that for progress
                await asyncio.sleep(_CROWDED_SECONDS)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _bind_tcp(place: TcpPlace) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET)
    try:
        bound.settimeout(0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((place.host, place.port))
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_unix(place: UnixPlace) -> socket.socket:
    """Bind a socket that only this user can connect to, in place of one that nobody serves."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(place.path))
        except ConnectionRefusedError:
            if not place.path.is_socket():  # any other file refuses too
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            place.path.unlink()
        except FileNotFoundError:
            pass
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    bound = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        bound.settimeout(0)
        bound.bind(str(place.path))
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(mask)
    return bound


def _tune(connection: socket.socket) -> None:
    connection.settimeout(0)
    if connection.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):  # it may have ended; then reading says so
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAKS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _break(connection: socket.socket) -> None:
    """Close so that the program sees a reset. A unix socket has none: it sees the end."""
    if connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAKS)
    connection.close()


def _end(connection: socket.socket) -> None:
    """Close in good order: what was written still arrives."""
    if connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ENDS)
    connection.close()
