"""`BrokerConnection`: one logged-in connection to one server; it explains its own failures.

Rules:
- One thread uses it at a time. Only `interrupt` and `wait_movable` may come from another thread.
- After any failure except an error reply, the connection is closed and never used again: it is
  out of step, and a late reply would answer the wrong question. An error reply leaves it usable.
- Every failure of the connection is raised as a `BrokerError`. Anything else (an interrupt, a bug
  of ours) is raised unchanged.
- The login goes over our own wire, so every error reply is in the server's own words.
"""

# ruff: noqa: BLE001 - everything caught here is raised again, through `_broken`

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from redislink.broker.error_map import classify, translate_error_reply
from redislink.broker.nested_tls import NestedTls
from redislink.broker.socket_wire import SocketWire
from redislink.broker.tcp import Traffic
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
_POPPING: Final = "waiting for a message"
_FAREWELL: Final = 0.05
"""Seconds to read replies for after a server hung up, to learn why: any have already arrived."""


@dataclass(frozen=True, slots=True)
class Login:
    """The login for a new connection.

    Attributes:
        auth: the arguments of AUTH; empty sends no AUTH.
        database: the database's number.
        hide: removes secrets from a server's words.
    """

    auth: tuple[str, ...] = field(default=(), repr=False)
    database: int = 0
    hide: Callable[[str], str] = str


_NO_LOGIN: Final = Login()


@dataclass(slots=True)
class Seen:
    """What past connections have shown; shared by all `Broker`s for one URL."""

    answered: bool = False
    """One of its servers has answered, so we speak the right protocol."""
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
        connection: a redis-py connection, not connected yet, that sends nothing by itself.
        in_process: True if the connection has no socket.
        timeout: seconds for each write, and for each reply to the login.
        login: the user, password and database.
        on_elsewhere: called with the error reply if the server says that the lists are elsewhere.
        explain: called with the reason why the connection broke; returns a more telling error,
            or None.
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
                    f"broker {self._label}: did not answer the login with OK: check that it is a "
                    "Redis or Valkey server"
                )
            if self._seen is not None:
                self._seen.answered = True

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write packed commands (see `wire.pack`). Call `read` once for each.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            self._wire.write(pieces)
        except BaseException as error:
            raise self._broken(error, "sending") from None

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        """Like `write`, but write only what the connection takes soon.

        Args:
            pieces: packed commands.
            wait: whether to wait for room, as long as `be_patient` allows.

        Returns:
            The unwritten rest. It must be the next thing written.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.write_some(pieces, wait=wait)
        except BaseException as error:
            raise self._broken(error, "sending") from None

    def be_patient(self, seconds: float) -> None:
        """Set how many seconds `write_some` may wait. Do not call `write` after this."""
        self._wire.be_patient(seconds)

    def limit_unsent(self, *, on: bool) -> None:
        """While it is on, accept little more than the network can take at once."""
        self._wire.limit_unsent(on=on)

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Wait until there is something to read, or the connection broke.

        Another thread may be using the connection meanwhile.

        Args:
            seconds: the longest wait.
            writes: also return once there is room to write.
        """
        with contextlib.suppress(*_FAILURES):  # whoever uses it next is told
            self._wire.wait_movable(seconds, writes=writes)

    # Every message goes through `pop` or `read_popped`, and calling `_reply` would cost a tenth
    # more. So its four lines are in all three; tests/broker/test_connection.py keeps them equal.

    def pop(self, name: bytes, timeout: float, margin: float) -> Any:
        """Run BLPOP on one list, and return the element; None if none came in time.

        A reply that does not answer the BLPOP is returned as it is.

        Args:
            name: the list's name.
            timeout: the BLPOP's timeout, in seconds.
            margin: seconds by which the reply may be late.

        Raises: see `write` and `read`.
        """
        try:
            reply = self._wire.pop(name, timeout, timeout + margin)
        except BaseException as error:
            raise self._broken(error, _POPPING) from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_popped(self, name: bytes, timeout: float) -> Any:
        """Like `pop`, for a BLPOP that is already written; ``timeout``: seconds for the reply."""
        try:
            reply = self._wire.read_popped(name, timeout)
        except BaseException as error:
            raise self._broken(error, _POPPING) from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read(self, timeout: float, most: Bound = SHORT) -> Any:
        """Return the next reply; raise it if it is an error reply.

        Args:
            timeout: seconds.
            most: the reply's largest allowed size; a larger one breaks the connection.

        Returns:
            bytes (a memoryview if they are many), int, None, or a list of these.

        Raises:
            BrokerUnreachable: there was no reply in time, the connection broke, or the server
                says that another one has our lists. The connection is closed now.
            BrokerError: the broker sent an error reply; the connection stays usable.
        """
        return self._reply(self._wire.read, timeout, most)

    def read_now(self) -> bool:
        """Take the next reply, which is a line, if all of it has arrived. Raise error replies.

        Returns:
            False if it has not arrived whole.

        Raises: see `read`.
        """
        return self._reply(self._wire.read_now) is not NOT_YET

    def _reply(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """Return the reply that ``read`` returns; raise it if it is an error reply."""
        try:
            reply = read(*arguments)
        except BaseException as error:
            raise self._broken(error, "waiting for a reply") from None
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_successes(self) -> int:
        """Take the replies that have arrived whole and are integers or OK, up to another.

        Returns:
            How many there were.
        """
        return self._wire.read_successes()

    @property
    def buffered(self) -> bool:
        """Whether bytes that were received wait to be read. Asks no kernel."""
        return self._wire.buffered

    def readable(self) -> bool:
        """Return whether a reply has begun to arrive.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.readable()
        except BaseException as error:
            raise self._broken(error, "reading") from None

    @property
    def traffic(self) -> Traffic | None:
        """What has passed so far; None if nobody counts it. Any thread may ask."""
        return self._wire.traffic

    def wait_readable(self, seconds: float) -> bool:
        """Like `readable`, but wait for at most ``seconds``."""
        return self._wire.wait_readable(seconds)

    def poll_busily(self, seconds: float) -> bool:
        """Like `wait_readable`, but without sleeping. Never raises."""
        try:
            return self._wire.poll_busily(seconds)
        except _FAILURES:  # whoever reads next is told
            return True

    def send(self, commands: Sequence[Sequence[bytes | int | str]]) -> None:
        """Write commands in one go. Call `read` once for each."""
        self.write((b"".join(map(pack, commands)),))

    @contextlib.contextmanager
    def pipeline(self, commands: Sequence[Sequence[bytes | int | str]]) -> Iterator[None]:
        """Write commands in one go, and let the block call `read` once for each.

        If an exception leaves the block, replies are still to come, so the connection closes.
        """
        self.send(commands)
        try:
            yield
        except BaseException:
            self.close()
            raise

    def execute(self, *command: bytes | int | str, timeout: float, most: Bound = SHORT) -> Any:
        """Send one command and read its reply."""
        self.write((pack(command),))
        reply = self.read(timeout, most)
        if self._seen is not None:
            self._seen.answered = True
        return reply

    def interrupt(self) -> None:
        """End a `read` in another thread with an error, at once.

        An in-process broker cannot be interrupted; waits on it are cut into short slices.
        """
        self._wire.interrupt()

    def close(self) -> None:
        """Close; never raises."""
        self.usable = False
        self._wire.close()

    def die_in_child(self) -> None:
        """In a forked child: let go of the socket without sending QUIT or a TLS goodbye."""
        self.usable = False
        self._wire = cast("Wire", Dead(used_after_fork(f"the connection to broker {self._label}")))
        held = getattr(self._connection, "_sock", None)
        if isinstance(held, socket.socket | NestedTls):
            let_go(held.fileno())

    def _broken(self, error: BaseException, doing: str) -> BaseException:
        """Close the connection, and return the error to raise.

        That is ``error`` itself if it is not a failure of the connection.
        """
        hung_up = isinstance(error, BrokenPipeError | ConnectionResetError)
        farewell = self._farewell() if hung_up else None
        self.close()
        if not isinstance(error, _FAILURES):
            return error
        if farewell is not None:
            refusal = self._refused(farewell, to_auth=doing == "connecting")
            # Whatever it says, this connection is gone, and another one may work.
            return _unreachable(refusal, str(refusal))
        known = None if self._explain is None else self._explain(error)
        if known is not None:
            return known
        text = one_line(self._hide(str(error)), 200) or type(error).__name__
        if isinstance(error, NotRespError | UnaskedError):
            kind = BrokerRefused if isinstance(error, UnaskedError) else BrokerUnreachable
            return kind(
                f"broker {self._label}: its reply does not fit what was asked, while {doing} "
                f"({text}): check that it is a Redis or Valkey server, and what stands between it "
                "and this party"
            )
        unreachable = BrokerUnreachable(
            f"broker {self._label}: no connection while {doing} ({text}): check that it runs, and "
            "that host, port, TLS and firewall let this party dial out to it"
        )
        unreachable.is_silent = doing == _POPPING and isinstance(error, TimeoutError)
        return unreachable

    def _farewell(self) -> str | None:
        """Return the error reply with which the server explained why it hung up, if it did."""
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
                return _unreachable(error, f"{str(error).rpartition(': ')[0]}: {remedy}")
        return error


def _unreachable(refusal: BrokerError, message: str) -> BrokerUnreachable:
    """Return the error for a connection that is of no use any more after this refusal."""
    error = BrokerUnreachable(message)
    error.refusal = refusal.refusal
    return error
