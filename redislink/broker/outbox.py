"""The outbox: pushes frames onto lists, and does not wait for the broker to say so.

Rules:
- A write goes out in one piece and returns; its replies are read off after some more writes
  and by `collect`, which says of each push whether the broker had room for it. Which of them the
  broker answers at all, `replies` says.
- What the connection does not take soon goes to a `Backlog`, and all that comes after it too; a
  thread writes that, reads replies meanwhile, and ends with it. Nobody else waits for a line.
- Nobody waits for the network while holding the lock, but for `_PATIENCE` at most.
- Nothing here is sent twice. When the connection breaks, the outbox drops what is written
  until `reconnect`; what was under way then is for delivery to send again.
- One lock; writes from several threads go out in some order, each whole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

from redislink.broker.backlog import URGENT, Backlog, QueuedWrite, lasting
from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.replies import (
    BE_QUIET,
    MARK_REPLIES,
    MOST_QUIET,
    QUIET_BYTES,
    READ_FROM,
    READ_MARKS_FROM,
    Replies,
    knows_quiet,
    pack_mark,
)
from redislink.broker.wire import Buffer, pack, pack_push
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    EndpointClosed,
)
from redislink.forking import Dead, dies_in_child, used_after_fork

_PATIENCE: Final = 0.01
"""Seconds that a write may wait for room. On one machine a chunk is gone sooner than a thread
could have taken over."""
_LONGEST_WAIT: Final = 0.05
"""Seconds between looks at what another thread may have done."""
_IDLE_SECONDS: Final = 0.05
_JOIN_SECONDS: Final = 5.0
_logger = logging.getLogger("redislink")


class Outbox:
    """All that one party sends, on one connection."""

    def __init__(self, broker: Broker, ttl: int, mark: bytes | None = None) -> None:
        """Args:
        broker: where the lists are.
        ttl: seconds that a list lives after the last push onto it.
        mark: a list of our own, to try whether the broker takes a push; None has it answer all.
        """
        self._broker = broker
        self._ttl_ms = ttl * 1000
        self._mark = b"" if mark is None else pack_mark(mark, self._ttl_ms)
        self._may_be_quiet = mark is not None and broker.may_be_quiet
        self._replies = Replies()
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        """Signalled when the backlog got shorter, or is no more."""
        self._backlog: Backlog | None = None
        self._writer: threading.Thread | None = None
        self._connection: BrokerConnection | None = None
        self._written_at = 0.0
        self._error: BrokerError | None = BrokerUnreachable(
            f"broker {broker.label}: the outbox has not connected yet"
        )
        self._closed = False
        dies_in_child(self)

    @property
    def error(self) -> BrokerError | None:
        """Why there is no connection; None while there is. `reconnect` makes one."""
        return self._error

    @property
    def has_unread(self) -> bool:
        """True while the broker owes replies, or writes wait."""
        return bool(self._replies.unread or self._replies.quiet) or self._backlog is not None

    @property
    def is_behind(self) -> bool:
        """True while writes wait, as the connection does not take them so fast."""
        return self._backlog is not None

    @property
    def moved_at(self) -> float:
        """When the broker last answered or took something that had to wait; monotonic seconds."""
        return self._replies.moved_at

    @property
    def last_refusal(self) -> BrokerBusy | None:
        """What the broker last said when it did not take a push."""
        return self._replies.last_refusal

    def push(
        self,
        name: bytes,
        element: tuple[bytes, Buffer],
        token: object = None,
        *,
        clear: bool = False,
        size: int = 0,
        ttl: int | None = None,
        urgent: bool = False,
    ) -> None:
        """Append an element to a list; returns at once.

        Args:
            element: in two parts, of which the second is not copied where it is large.
            token: comes out of `collect` when the broker has answered.
            clear: empty the list first.
            size: bytes of the whole message, where the element is a part of one.
            ttl: seconds that the list lives, if not as usual.
            urgent: before all that waits already, but for what is urgent too.

        Raises:
            EndpointClosed: after `close`.
        """
        ttl_ms = self._ttl_ms if ttl is None else ttl * 1000
        replies = 3 if clear else 2
        pieces = pack_push(name, element, ttl_ms, clear)
        self._write(pieces, replies, token, URGENT if urgent else name, size)

    def push_later(
        self,
        name: bytes,
        encode: Callable[[], tuple[bytes, Buffer]],
        size: int,
        token: object = None,
        *,
        clear: bool = False,
    ) -> None:
        """As `push`, in another thread: for what takes long to encode, and long on the way.

        Args:
            encode: gives the element, when its turn has come; it may not be called at all.
            size: bytes of the whole message.

        Raises:
            EndpointClosed: after `close`.
        """
        if self._broker.in_process:
            self.push(name, encode(), token, clear=clear)
            return
        replies = 3 if clear else 2
        write = QueuedWrite(
            lambda: pack_push(name, encode(), self._ttl_ms, clear), replies, token, size
        )
        with self._lock:
            connection = self._connection
            if connection is None:
                self._check_open()
                return
            try:
                backlog = self._backlog or self._start_writer(connection, ())
                backlog.add(name, write)
            except BrokerError as error:
                self._break(error)

    def delete(self, *names: bytes) -> None:
        """Remove lists, and what waits to be pushed onto them; returns at once.

        Raises:
            EndpointClosed: after `close`.
        """
        if self._backlog is not None:
            with self._lock:
                for name in names if self._backlog is not None else ():
                    self._backlog.drop(name)
        self._write([pack((b"DEL", *names))], 1, None, names[0])

    def collect(self) -> list[tuple[object, bool]]:
        """(token, taken) of each push that the broker has answered since the last call.

        ``taken`` is False where it had no memory for the element.
        """
        with self._lock:
            connection = self._connection
            if connection is not None and not self._closed:
                try:
                    self._replies.read(connection)
                    # Not read with a timeout: it would hold up every sender as long again.
                    self._check_moves()
                    if self._backlog is None:  # else the next of it is a mark
                        self._mark_quiet(connection)
                        self._hush(connection)
                except BrokerError as error:
                    self._break(error)
            answered, self._replies.answered = self._replies.answered, []
        return answered

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the broker has answered all that was pushed; False if the connection broke.

        Args:
            timeout: seconds for all of it, after which the connection counts as broken; None
                allows ``reply_timeout`` from each reply to the next.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            try:
                self._mark_quiet(connection)
            except BrokerError as error:
                self._break(error)
                return False
            backlog = self._backlog
            last = backlog.next_number if backlog is not None else 0
        answers: int | None = None
        while True:
            with self._lock:
                if self._connection is not connection:
                    return False
                try:
                    self._replies.read(connection)
                    self._check_moves()
                    if answers is None and (
                        backlog is None
                        or self._backlog is not backlog
                        or not backlog.holds_before(last)
                    ):
                        answers = self._replies.answers + len(self._replies.unread)
                    if answers is not None and self._replies.answers >= answers:
                        return True
                    left = _LONGEST_WAIT
                    if deadline is not None:
                        left = min(left, deadline - time.monotonic())
                    if left <= 0:
                        raise BrokerUnreachable(
                            f"broker {self._broker.label}: not all was answered in {timeout:g} s"
                        )
                except BrokerError as error:
                    self._break(error)
                    return False
                if self._backlog is not None:
                    self._moved.wait(left)
                    continue
            connection.wait_movable(left, writes=False)

    def reconnect(self) -> None:
        """Open the connection, or a new one after it broke.

        Raises:
            BrokerError: not now.
        """
        connection = self._broker.open_answering()
        if self._may_be_quiet:
            self._may_be_quiet = False  # not asked again, should the connection not survive that
            self._may_be_quiet = knows_quiet(connection, self._broker.timeout)
        with self._lock:
            if self._closed:
                connection.close()
                return
            connection.be_patient(_PATIENCE)
            self._connection = connection
            self._error = None

    def close(self) -> None:
        """Close the connection; later writes raise EndpointClosed."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._backlog = None
            self._moved.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(_JOIN_SECONDS)  # its wait ends with the connection

    def die_in_child(self) -> None:
        """Forget connection and backlog: later writes raise EndpointClosed."""
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._closed, self._connection, self._backlog = True, None, None
        self._broker = cast("Broker", Dead(used_after_fork("the outbox")))

    def _write(
        self,
        pieces: Sequence[Buffer],
        replies: int,
        token: object,
        name: bytes,
        size: int = 0,
    ) -> None:
        """Args: of which list it is, or `URGENT`; bytes of the message, if it is a part."""
        self._lock.acquire()  # `with` costs twice as much, here where every message passes
        try:
            connection = self._connection
            if connection is None:
                self._check_open()
                return
            try:
                if self._backlog is None:
                    idle_since, self._written_at = self._written_at, time.monotonic()
                    if self._written_at - idle_since >= _IDLE_SECONDS:
                        self._check_alive(connection)
                    quiet = self._replies.quiet
                    if (
                        quiet is not None
                        and len(quiet) < MOST_QUIET
                        and len(pieces) == 1
                        and len(pieces[0]) <= QUIET_BYTES
                    ):
                        quiet.append(token)
                        rest = connection.write_some(pieces)
                        if rest:
                            self._start_writer(connection, lasting(rest))
                        return
                self._write_answered(connection, pieces, replies, token, name, size)
            except BrokerError as error:
                self._break(error)
        finally:
            self._lock.release()

    def _write_answered(
        self,
        connection: BrokerConnection,
        pieces: Sequence[Buffer],
        replies: int,
        token: object,
        name: bytes,
        size: int = 0,
    ) -> None:
        if self._backlog is not None:
            kept = lasting(pieces)
            size = max(size, sum(map(len, kept)))
            self._backlog.add(name, QueuedWrite(lambda: kept, replies, token, size))
            return
        owed = self._replies
        rest = connection.write_some(owed.aloud(pieces))
        if not owed.unread:
            owed.moved_at = time.monotonic()
        owed.owe(replies, token)
        if rest:
            self._start_writer(connection, lasting(rest))
        elif len(owed.unread) >= (READ_FROM if owed.quiet is None else READ_MARKS_FROM):
            # After the write, which somebody waits for, and not before it.
            owed.read(connection)

    def _mark_quiet(self, connection: BrokerConnection) -> None:
        """Have the broker answer for what it took quietly."""
        if self._replies.quiet:
            self._write_answered(connection, (self._mark,), MARK_REPLIES, None, URGENT)

    def _hush(self, connection: BrokerConnection) -> None:
        """Let the broker answer marks alone from now on, if it can and refused nothing lately.

        Not as soon as it is connected: what a party may not do shows in its first pushes.
        """
        replies = self._replies
        if self._may_be_quiet and replies.quiet is None and time.monotonic() >= replies.loud_until:
            rest = connection.write_some((BE_QUIET,))
            replies.quiet = []
            if rest:
                self._start_writer(connection, rest)

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed: open one with redislink.connect()")

    def _start_writer(self, connection: BrokerConnection, rest: Sequence[Buffer]) -> Backlog:
        backlog = Backlog(rest)
        connection.keep_unsent_low(True)
        writer = threading.Thread(
            target=self._run_writer,
            args=(connection, backlog),
            name="redislink-writer",
            daemon=True,
        )
        try:
            writer.start()
        except RuntimeError as error:  # no more threads: what is half written cannot go on
            raise BrokerUnreachable(
                f"broker {self._broker.label}: no thread to write on ({error})"
            ) from None
        self._replies.moved_at = time.monotonic()
        self._backlog, self._writer = backlog, writer
        return backlog

    def _run_writer(self, connection: BrokerConnection, backlog: Backlog) -> None:
        try:
            self._work_off(connection, backlog)
        except Exception as error:
            _logger.exception("the thread that writes to the broker broke")
            with self._lock:
                if self._backlog is backlog:
                    self._break(
                        BrokerRefused(
                            f"broker {self._broker.label}: internal error, "
                            f"{type(error).__name__} while writing: please report it, with the log"
                        )
                    )

    def _work_off(self, connection: BrokerConnection, backlog: Backlog) -> None:
        """Write all that waits; returns when nothing does, or the connection broke."""
        rest, taken = backlog.rest, None
        while True:
            with self._lock:
                if self._backlog is not backlog:
                    return
                try:
                    if taken is not None:
                        self._replies.owe(taken.replies, taken.token)
                        backlog.begun()
                    rest = self._write_on(connection, rest)
                except BrokerError as error:
                    self._break(error)
                    return
                taken = None if rest else backlog.take()
                if not rest and taken is None:
                    connection.keep_unsent_low(False)
                    self._backlog = None
                self._moved.notify_all()
            if rest:
                connection.wait_movable(_LONGEST_WAIT, writes=True)
            elif taken is None:
                return
            else:
                rest = self._replies.aloud(taken.pack())  # without the lock, as it seals

    def _write_on(self, connection: BrokerConnection, rest: Sequence[Buffer]) -> Sequence[Buffer]:
        """Write what there is room for, and read what there is; returns what is left."""
        before = sum(map(len, rest))
        if rest:
            rest = connection.write_some(rest, wait=False)
        if sum(map(len, rest)) < before:
            self._replies.moved_at = self._written_at = time.monotonic()
        self._check_alive(connection)
        self._check_moves()
        return rest

    def _break(self, error: BrokerError) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._backlog = None
        self._moved.notify_all()
        self._replies.forget_owed()
        self._error = error

    def _check_alive(self, connection: BrokerConnection) -> None:
        """Notice that an idle connection has ended before writing to it, and losing that."""
        self._replies.read(connection)
        if not self._replies.unread and connection.readable():
            connection.read_now()  # nothing was asked; if it is an error, this raises it
            raise BrokerUnreachable(f"broker {self._broker.label}: it said something unasked")

    def _check_moves(self) -> None:
        """Notice a broker that neither takes nor answers anything for too long."""
        timeout = self._broker.timeout
        owes = self._replies.unread or self._backlog is not None
        if owes and time.monotonic() - self._replies.moved_at > timeout:
            raise BrokerUnreachable(
                f"broker {self._broker.label}: it took and answered nothing for {timeout:g} s"
            )
