"""`BrokerConnection`: one connection to one server, logged in, and what went wrong with it.

Rules:
- It is used by one thread at a time; only `interrupt` and `wait_movable` may come from another.
- A connection on which anything but an error reply went wrong is closed, and never used again: it
  is out of step, and a late reply would answer the wrong question.
- What leaves here is a `BrokerError`, whatever broke; what was not a failure of the connection (an
  interrupt, a fault of ours) goes on as it is. An error reply leaves the connection usable.
- The login goes over our own wire, so that every error reply is the server's own.
"""

# ruff: noqa: BLE001 - whatever is caught here is raised again, by way of `_broken`

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from redislink.broker.error_map import classify, translate_error_reply
from redislink.broker.socket_wire import SocketWire
from redislink.broker.wire import (
    NOT_YET,
    SHORT,
    Bound,
    Buffer,
    ErrorReply,
    LibraryWire,
    NotRespError,
    UnaskedError,
    Wire,
    pack,
)
from redislink.errors import BrokerError, BrokerRefused, BrokerUnreachable
from redislink.forking import Dead, dies_in_child, let_go, used_after_fork
from redislink.text import one_line

_FAILURES: Final = (redis.RedisError, OSError, ValueError)
_FAREWELL: Final = 0.05
"""Seconds in which replies are read, to find out why a server hung up; what came is there."""


@dataclass(frozen=True, slots=True)
class Login:
    """What is said on a new connection before anything else.

    Attributes:
        auth: arguments of AUTH; none to log in without.
        database: its number.
        hide: cuts out of a server's words what they must not hold.
    """

    auth: tuple[str, ...] = field(default=(), repr=False)
    database: int = 0
    hide: Callable[[str], str] = str


_NO_LOGIN: Final = Login()


@dataclass(slots=True)
class Seen:
    """What connecting to a broker has shown; shared by all `Broker`s of one URL."""

    answered: bool = False
    """A server of it has answered: what we speak is what it speaks."""
    tls_files_were_right: bool = False


class BrokerConnection:
    """One connection: commands out, replies in."""

    _seen: Seen | None = None

    def __init__(
        self,
        label: str,
        connection: Any,
        *,
        in_process: bool,
        timeout: float,
        login: Login = _NO_LOGIN,
        on_elsewhere: Callable[[str], None] | None = None,
        explain: Callable[[BaseException], BrokerError | None] | None = None,
        seen: Seen | None = None,
    ) -> None:
        """Args:
        label: the broker's name for messages.
        connection: redis-py's, not connected yet, that says nothing by itself.
        in_process: it has no socket.
        timeout: seconds to write, and for each reply to the login.
        login: as whom, and to which database.
        on_elsewhere: called with the error reply that says that the lists are elsewhere.
        explain: given why the connection broke, says more of it, if it knows more.
        seen: where to note that the server has answered.
        """
        self._label = label
        self._hide = login.hide
        self._on_elsewhere = on_elsewhere
        self._explain = explain
        self._seen = seen
        self.usable = True
        self._wire: Wire = LibraryWire(connection)
        self._connection = connection
        dies_in_child(self)
        try:
            connection.connect()
            if not in_process:
                self._wire = SocketWire(connection, timeout)
            self._log_in(login, timeout)
        except BaseException as error:
            raise self._broken(error, "connecting") from None

    def _log_in(self, login: Login, timeout: float) -> None:
        commands: list[tuple[bytes | int | str, ...]] = []
        if login.auth:
            commands.append((b"AUTH", *login.auth))
        if login.database:
            commands.append((b"SELECT", login.database))
        for command in commands:
            self._wire.write((pack(command),))
            reply = self._wire.read(timeout)
            if type(reply) is ErrorReply:
                raise self._refused(reply.text, to_auth=command[0] == b"AUTH")
            if reply not in (b"OK", "OK"):
                raise BrokerRefused(
                    f"broker {self._label}: answered the login with something else than OK: check "
                    "that it is a Redis or Valkey server"
                )
            if self._seen is not None:
                self._seen.answered = True

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write packed commands (see `wire.pack`); each owes one `read`.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            self._wire.write(pieces)
        except BaseException as error:
            raise self._broken(error, "sending") from None

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        """As `write`, but leaves what the connection does not take soon.

        Args:
            wait: for room, as long as `be_patient` said; False does not wait at all.

        Returns:
            What is left: it must be the next that is written.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.write_some(pieces, wait=wait)
        except BaseException as error:
            raise self._broken(error, "sending") from None

    def be_patient(self, seconds: float) -> None:
        """How long `write_some` may wait; `write` is not to be used from now on."""
        self._wire.be_patient(seconds)

    def keep_unsent_low(self, low: bool) -> None:
        """While True, little is written ahead of what the network takes."""
        self._wire.keep_unsent_low(low)

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Return when there is something to read or, if ``writes``, room to write, or it broke.

        May be called while another thread uses the connection.
        """
        with contextlib.suppress(*_FAILURES):  # whoever uses it next is told
            self._wire.wait_movable(seconds, writes=writes)

    # `pop` and `read_popped` are every message's way, and `_reply` would cost a tenth more there.
    # So its four lines stand in all three; tests/broker/test_connection.py holds them equal.

    def pop(self, name: bytes, timeout: float, margin: float) -> Any:
        """BLPOP of one list: the element, or None if none came in ``timeout`` seconds.

        Args:
            margin: seconds by which the reply may be late.

        Raises: as `write` and `read`. A reply that is no answer to this is returned.
        """
        try:
            reply = self._wire.pop(name, timeout, timeout + margin)
        except BaseException as error:
            raise self._broken(error, "waiting for a message") from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_popped(self, name: bytes, timeout: float) -> Any:
        """As `pop`, for a BLPOP that was written before; ``timeout`` in seconds for the reply."""
        try:
            reply = self._wire.read_popped(name, timeout)
        except BaseException as error:
            raise self._broken(error, "waiting for a message") from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read(self, timeout: float, most: Bound = SHORT) -> Any:
        """The next reply, waiting at most ``timeout`` seconds; error replies are raised.

        Args:
            most: what the reply may have; one that has more breaks the connection.

        Returns:
            bytes, or a memoryview where they are many; int; None; or a list of these.

        Raises:
            BrokerUnreachable: no reply in time, the connection broke, or the server says that
                another one has our lists; it is closed now.
            BrokerError: the broker's own error reply; the connection stays usable.
        """
        return self._reply(self._wire.read, timeout, most)

    def read_now(self) -> bool:
        """Take the next reply, a line, if all of it has arrived; error replies are raised.

        Returns:
            False if it has not.

        Raises: as `read`.
        """
        return self._reply(self._wire.read_now) is not NOT_YET

    def _reply(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """What a way of reading gives."""
        try:
            reply = read(*arguments)
        except BaseException as error:
            raise self._broken(error, "waiting for a reply") from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_integers(self) -> int:
        """Take the integer replies that have arrived whole; returns how many they were."""
        return self._wire.read_integers()

    def readable(self) -> bool:
        """True if a reply can be read without waiting for it to begin.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.readable()
        except BaseException as error:
            raise self._broken(error, "reading") from None

    def wait_readable(self, seconds: float) -> bool:
        """As `readable`, but waits for so long."""
        return self._wire.wait_readable(seconds)

    def send(self, commands: Sequence[Sequence[bytes | int | str]]) -> None:
        """Write commands in one go; each owes one `read`."""
        self.write((b"".join(map(pack, commands)),))

    def execute(self, *command: bytes | int | str, timeout: float, most: Bound = SHORT) -> Any:
        """Send one command and read its reply."""
        self.write((pack(command),))
        reply = self.read(timeout, most)
        if self._seen is not None:
            self._seen.answered = True
        return reply

    def interrupt(self) -> None:
        """Make a `read` in another thread end with an error, now.

        An in-process broker cannot be interrupted; there, waits are cut in short slices.
        """
        self._wire.interrupt()

    def close(self) -> None:
        """Close; never raises."""
        self.usable = False
        self._wire.close()

    def die_in_child(self) -> None:
        """Let go of the socket; neither QUIT nor TLS's good-bye is said."""
        self.usable = False
        self._wire = cast("Wire", Dead(used_after_fork(f"the connection to broker {self._label}")))
        held = getattr(self._connection, "_sock", None)
        if isinstance(held, socket.socket):
            let_go(held.fileno())

    def _broken(self, error: BaseException, doing: str) -> BaseException:
        """Close the connection, and say what to raise: the error itself where it is none of it."""
        hung_up = isinstance(error, BrokenPipeError | ConnectionResetError)
        farewell = self._farewell() if hung_up else None
        self.close()
        if not isinstance(error, _FAILURES):
            return error
        if farewell is not None:
            refusal = self._refused(farewell, to_auth=doing == "connecting")
            # Whatever it says, this connection is gone, and another one may do.
            return BrokerUnreachable(str(refusal))
        known = None if self._explain is None else self._explain(error)
        if known is not None:
            return known
        text = one_line(self._hide(str(error)), 200) or type(error).__name__
        if isinstance(error, NotRespError | UnaskedError):
            kind = BrokerRefused if isinstance(error, UnaskedError) else BrokerUnreachable
            return kind(
                f"broker {self._label}: no answer to what was asked, while {doing} ({text}): check "
                "that it is a Redis or Valkey server, and what stands between it and this party"
            )
        return BrokerUnreachable(
            f"broker {self._label}: no connection while {doing} ({text}): check that it runs, and "
            "that host, port, TLS and firewall let this party dial out to it"
        )

    def _farewell(self) -> str | None:
        """The error reply that the server sent before it hung up on us, if it said why."""
        with contextlib.suppress(*_FAILURES):
            until = time.monotonic() + _FAREWELL
            while time.monotonic() < until:
                reply = self._wire.read(_FAREWELL)
                if type(reply) is ErrorReply:
                    return reply.text
        return None

    def _refused(self, text: str, *, to_auth: bool = False) -> BrokerError:
        error = translate_error_reply(self._label, text, self._hide, to_auth=to_auth)
        if classify(text).is_elsewhere:
            self.close()
            if self._on_elsewhere is not None:
                self._on_elsewhere(text)
                # The remedy for MOVED is to name the Cluster, which the URL does.
                remedy = "it is found anew; if this lasts, see the broker's log"
                return BrokerUnreachable(f"{str(error).rpartition(': ')[0]}: {remedy}")
        return error
