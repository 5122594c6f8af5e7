"""The outbox: pushes frames onto lists without waiting for the broker's answers.

Rules:
- A write goes out in one piece, and returns. Later writes read its replies, and so does `collect`,
  which tells for each push whether the broker had room for it. `replies` decides which pushes the
  broker answers at all.
- If the connection does not take a write soon, the write goes to a `Backlog`, and so do all after
  it. A thread writes the backlog, reads replies meanwhile, and ends when the backlog is empty. No
  other thread waits for the line.
- No thread waits for the network with the lock held, except for `_PATIENCE` at most.
- The outbox sends nothing twice. While the connection is broken, it drops all writes until
  `reconnect`. Delivery then resends whatever was under way.
- A connection counts as open once the broker has accepted a push on it, or refuses only some
  commands. A full broker still removes lists, and that is what makes room.
- One lock: writes from several threads go out in some order, each of them whole.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, cast

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
from redislink.broker.tcp import Traffic
from redislink.broker.wire import (
    CLEARING_REPLIES,
    LARGE,
    PUSH_REPLIES,
    Buffer,
    pack,
    pack_clearing_push,
    pack_push,
)
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    EndpointClosed,
)
from redislink.forking import Dead, dies_in_child, used_after_fork
from redislink.protocol.conversation import LONG_AGO

_PATIENCE: Final = 0.01
"""Seconds that a write may wait for room. On one machine, that is quicker than handing a chunk over
to a thread."""
_LEAST_UNDER_WAY: Final = 1.5
"""Seconds that bytes under way may go unacknowledged before that means anything: at 20 kbit/s a
segment takes 0.6 s, and only every second one is acknowledged."""
_FIRST_RATE: Final = float(2 << 20)
"""Bytes per second that the way beyond a proxy is taken to pass, until it turns out to be slower.
A proxy acknowledges what it has only buffered."""
_BULK: Final = 16 << 10
"""Bytes of a write whose silence says something about the rate."""
_RATE_SECONDS: Final = 60.0
"""After so long without a connection given up, the rate is taken to be twice as high again."""
_LONGEST_WAIT: Final = 0.05
"""Seconds between checks for what another thread may have done."""
_IDLE_SECONDS: Final = 0.05
_ASK_INTERVAL: Final = 1.0
"""Seconds between two marks that ask whether the broker accepts pushes again."""
_JOIN_SECONDS: Final = 5.0
_logger = logging.getLogger("redislink")


def push_afresh(
    broker: Broker, elements: Sequence[tuple[bytes, tuple[bytes, Buffer]]], ttl: int
) -> None:
    """Push small elements on a new connection, as many as the broker accepts. Never raises.

    Args:
        broker: the broker; on a Cluster, the node that has all of these lists.
        elements: (list's name, element in two parts).
        ttl: seconds that the lists live.
    """
    with contextlib.suppress(BrokerError), contextlib.closing(broker.open()) as connection:
        push_each(connection, elements, ttl, broker.timeout)


def push_each(
    connection: BrokerConnection,
    elements: Sequence[tuple[bytes, tuple[bytes, Buffer]]],
    ttl: int,
    timeout: float,
) -> None:
    """Push small elements, as many as the broker accepts.

    Args:
        connection: the connection to use.
        elements, ttl: as for `push_afresh`.
        timeout: seconds for each reply.

    Raises:
        BrokerError: the connection broke.
    """
    for name, element in elements:
        connection.write(pack_push(name, element, ttl * 1000))
        for _ in range(PUSH_REPLIES):
            try:
                connection.read(timeout)
            except BrokerError:  # it may accept the next one, to another peer
                if not connection.usable:
                    raise


class Silence(NamedTuple):
    """A connection of an outbox on which the broker owes something, and nothing moves.

    Attributes:
        broker: the server.
        since: when it began; monotonic seconds.
        give_up: breaks the connection, for a reason.
    """

    broker: Broker
    since: float
    give_up: Callable[[BrokerError], None]


class Outbox:
    """Sends everything that one party sends, on one connection."""

    def __init__(self, broker: Broker, ttl: int, marks: Sequence[bytes] = ()) -> None:
        """Args:
        broker: the broker that has the lists.
        ttl: seconds that a list lives after the last push onto it.
        marks: see `use_marks`; without any, the broker answers every push.
        """
        self._broker = broker
        self._ttl_ms = ttl * 1000
        self._may_be_quiet = bool(marks) and broker.may_be_quiet
        self._replies = Replies()
        self._lock = threading.Lock()
        self.use_marks(marks)
        self._moved = threading.Condition(self._lock)
        """Notified when the backlog gets shorter or ends."""
        self._backlog: Backlog | None = None
        self._writer: threading.Thread | None = None
        self._connection: BrokerConnection | None = None
        self._written_at = 0.0
        self._traffic: Traffic | None = None
        """What had passed when `silent` last looked."""
        self._stirred_at = 0.0
        """When `silent` last found that something had moved."""
        self._rate = _FIRST_RATE
        self._rate_at = 0.0
        """When ``_rate`` last changed."""
        self._asked_at = 0.0
        self._small_waited_at = LONG_AGO
        self._error: BrokerError | None = BrokerUnreachable(
            f"broker {broker.label}: the outbox has not connected yet"
        )
        self._closed = False
        dies_in_child(self)

    def use_marks(self, names: Sequence[bytes]) -> None:
        """Set the lists for pushes that test whether the broker accepts any.

        Args:
            names: a list in the inbox of each peer, used in turns: the broker may forbid us one.
        """
        with self._lock:
            self._marks = deque(pack_mark(name, self._ttl_ms) for name in names)

    @property
    def error(self) -> BrokerError | None:
        """Why there is no connection; None while there is one. `reconnect` opens one."""
        return self._error

    @property
    def has_unread(self) -> bool:
        """True while the broker owes replies, or writes wait."""
        return bool(self._replies.unread or self._replies.quiet) or self._backlog is not None

    @property
    def is_behind(self) -> bool:
        """True while writes wait because the connection does not take them fast enough."""
        return self._backlog is not None

    @property
    def moved_at(self) -> float:
        """When the broker last answered, or last took a waiting write; monotonic seconds."""
        return self._replies.moved_at

    @property
    def refusal(self) -> BrokerBusy | None:
        """The broker's last refusal of a push; None once it has accepted a later one."""
        return self._replies.refusal

    @property
    def small_waited_at(self) -> float:
        """When a small message last had to wait for what was pushed before it; monotonic seconds.

        `LONG_AGO` if none had to.
        """
        return self._small_waited_at

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
        """Append an element to a list, and return at once.

        Args:
            name: the list's name.
            element: the element in two parts; a large second part is not copied.
            token: `collect` returns it once the broker has answered.
            clear: whether to empty the list first.
            size: bytes of the whole message, if the element is only a part of it.
            ttl: seconds that the list lives; None means the outbox's ``ttl``.
            urgent: whether to overtake all waiting writes that are not urgent.

        Raises:
            EndpointClosed: after `close`.
        """
        ttl_ms = self._ttl_ms if ttl is None else ttl * 1000
        if clear:
            pieces, replies = pack_clearing_push(name, element, ttl_ms), CLEARING_REPLIES
        else:
            pieces, replies = pack_push(name, element, ttl_ms), PUSH_REPLIES
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
        """Like `push`, but encode and write in another thread: for large elements.

        Args:
            name, token, clear: as for `push`.
            encode: returns the element; called when its turn has come, or never.
            size: bytes of the whole message.

        Raises:
            EndpointClosed: after `close`.
        """
        if self._broker.in_process:
            self.push(name, encode(), token, clear=clear)
            return
        pack_it = pack_clearing_push if clear else pack_push
        replies = CLEARING_REPLIES if clear else PUSH_REPLIES
        write = QueuedWrite(lambda: pack_it(name, encode(), self._ttl_ms), replies, token, size)
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
        """Remove lists and the waiting pushes onto them, and return at once.

        Raises:
            EndpointClosed: after `close`.
        """
        if self._backlog is not None:
            with self._lock:
                for name in names if self._backlog is not None else ():
                    self._backlog.drop(name)
        self._write([pack((b"DEL", *names))], 1, None, names[0])

    def collect(self) -> list[tuple[object, bool]]:
        """Return (token, taken) for each push that the broker has answered since the last call.

        ``taken`` is False if the broker had no memory for the element.
        """
        with self._lock:
            connection = self._connection
            if connection is not None and not self._closed:
                try:
                    self._replies.read(connection)
                    # Not read with a timeout, which would hold up every sender.
                    self._check_moves()
                    if self._backlog is None:  # otherwise the backlog's next write is a mark
                        self._mark_quiet(connection)
                        self._hush(connection)
                except BrokerError as error:
                    self._break(error)
            answered, self._replies.answered = self._replies.answered, []
        return answered

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the broker has answered everything that was pushed.

        Args:
            timeout: seconds for everything, after which the connection counts as broken; None
                allows ``reply_timeout`` between one reply and the next.

        Returns:
            False if the connection broke.
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
                            f"broker {self._broker.label}: it did not answer everything in "
                            f"{timeout:g} s: check that it runs, and the line to it"
                        )
                except BrokerError as error:
                    self._break(error)
                    return False
                if self._backlog is not None:
                    self._moved.wait(left)
                    continue
            connection.wait_movable(left, writes=False)

    def reconnect(self) -> None:
        """Open the connection, or a new one after the last one broke.

        Raises:
            BrokerBusy: the broker accepts no push.
            BrokerError: that is not possible now.
        """
        connection = self._broker.open_answering()
        refusal = self._try_push(connection)
        if self._may_be_quiet:
            self._may_be_quiet = False  # if the connection does not survive the question, stop it
            self._may_be_quiet = knows_quiet(connection, self._broker.timeout)
        with self._lock:
            if self._closed:
                connection.close()
                return
            connection.be_patient(_PATIENCE)
            self._connection = connection
            self._error = None
            self._replies.refusal = None
            if refusal is not None:
                self._replies.refused(refusal)

    def silent(self, patience: float) -> list[Silence]:
        """Return the connections on which the broker has been silent for too long.

        Silent is a broker that owes replies and sends none, while nothing that was written drains
        away. Call it several times a second: it compares with the last time. What a proxy on the
        way has buffered drains out of sight, so a large write gets the time that it takes.

        Args:
            patience: seconds.
        """
        with self._lock:
            connection, last = self._connection, self._traffic
            if connection is None:
                return []
            now, traffic = time.monotonic(), connection.traffic
            self._traffic = traffic
            if not (self._replies.unread or self._backlog is not None):
                return []
            under_way = False
            if traffic is not None and last is not None:
                under_way = traffic.is_under_way or last.is_under_way
                drained = under_way and traffic.acknowledged != last.acknowledged
                if drained or traffic.received != last.received:
                    self._stirred_at = now
            since = max(self._replies.moved_at, self._stirred_at)
            least = _LEAST_UNDER_WAY if under_way else 0.0
            if now - since <= max(patience, least, self._seconds_of_next(now)):
                return []
            return [Silence(self._broker, since, partial(self._found_dead, since))]

    def give_up(self, error: BrokerError) -> None:
        """Break the connection, for this reason: what was pushed is wanted elsewhere now."""
        with self._lock:
            self._break(error)

    def _found_dead(self, since: float, error: BrokerError) -> None:
        """Give up a silent connection, and be more patient with the next write of that size."""
        with self._lock:
            size, now = self._replies.next_size, time.monotonic()
            if size >= _BULK:
                slower = min(self._rate, size / max(now - since, _LONGEST_WAIT)) / 2
                least = size / self._broker.timeout  # nothing gets more time than that
                self._rate, self._rate_at = min(self._rate, max(slower, least)), now
            self._break(error)

    def _seconds_of_next(self, now: float) -> float:
        """How long the write whose reply comes next may take, at most ``reply_timeout``."""
        if self._rate < _FIRST_RATE and now - self._rate_at > _RATE_SECONDS:
            self._rate, self._rate_at = min(self._rate * 2, _FIRST_RATE), now
        return min(self._replies.next_size / self._rate, self._broker.timeout)

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
        """In a forked child: forget the connection and the backlog; writes raise EndpointClosed."""
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
        """Write commands, or queue them.

        Args:
            pieces: packed commands.
            replies: how many replies the broker owes for them.
            token: see `push`.
            name: the name of the list that they are for, or `URGENT`.
            size: bytes of the whole message, if this is only a part of it.
        """
        self._lock.acquire()  # every message passes here, and `with` costs twice as much
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
                        (quiet is not None or self._replies.is_interlude)
                        and len(pieces) == 1
                        and len(pieces[0]) <= QUIET_BYTES
                        and (quiet is None or len(quiet) < MOST_QUIET)
                    ):
                        if quiet is None:
                            quiet = self._replies.be_quiet()
                            pieces = (BE_QUIET + bytes(pieces[0]),)
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
            if size < LARGE and name != URGENT:
                self._small_waited_at = time.monotonic()
            self._backlog.add(name, QueuedWrite(lambda: kept, replies, token, size))
            return
        owed = self._replies
        size = sum(map(len, pieces))
        whole = owed.speak_up(pieces) if size > QUIET_BYTES else owed.aloud(pieces)
        rest = connection.write_some(whole)
        if not owed.unread:
            owed.moved_at = time.monotonic()
        owed.owe(replies, token, size)
        if rest:
            self._start_writer(connection, lasting(rest))
        elif len(owed.unread) >= (READ_FROM if owed.quiet is None else READ_MARKS_FROM):
            # Read after the write, not before: somebody waits for the write.
            owed.read(connection)

    def _try_push(self, connection: BrokerConnection) -> BrokerBusy | None:
        """Push a mark, and return the broker's refusal if that is only partial.

        What waiting does not mend is left to the pushes that follow, which say what it prevents.

        Raises:
            BrokerError: it refuses the push for another reason; the connection is closed.
        """
        if not self._marks:
            return None
        refusal: BrokerBusy | None = None
        try:
            connection.write((self._next_mark(),))
            for _ in range(MARK_REPLIES):
                try:
                    connection.read(self._broker.timeout)
                except BrokerError as error:
                    if isinstance(error, BrokerBusy) and error.is_partial:
                        refusal = error
                    elif error.retryable or not connection.usable:
                        raise
        except BrokerError:
            connection.close()
            raise
        return refusal

    def _mark_quiet(self, connection: BrokerConnection) -> None:
        """Make the broker answer for the pushes that it took without an answer.

        If it refused the last one, ask whether it accepts any again: perhaps nothing else is
        pushed for long.
        """
        if self._replies.quiet or (self._replies.refusal is not None and self._may_ask()):
            self._write_answered(connection, (self._next_mark(),), MARK_REPLIES, None, URGENT)

    def _next_mark(self) -> bytes:
        self._marks.rotate(-1)
        return self._marks[-1]

    def _may_ask(self) -> bool:
        now = time.monotonic()
        if not self._marks or now - self._asked_at < _ASK_INTERVAL:
            return False
        self._asked_at = now
        return True

    def _hush(self, connection: BrokerConnection) -> None:
        """Tell the broker to answer only marks from now on, if it can and refused nothing lately.

        Not right after connecting: missing permissions show in the answers to the first pushes.
        """
        replies = self._replies
        if self._may_be_quiet and replies.quiet is None and time.monotonic() >= replies.loud_until:
            rest = connection.write_some((BE_QUIET,))
            replies.be_quiet()
            if rest:
                self._start_writer(connection, rest)

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed: open one with redislink.connect()")

    def _start_writer(self, connection: BrokerConnection, rest: Sequence[Buffer]) -> Backlog:
        backlog = Backlog(rest)
        connection.limit_unsent(on=True)
        writer = threading.Thread(
            target=self._run_writer,
            args=(connection, backlog),
            name="redislink-writer",
            daemon=True,
        )
        try:
            writer.start()
        except RuntimeError as error:  # no more threads: a half-written command cannot go on
            raise BrokerUnreachable(
                f"broker {self._broker.label}: no thread left to write to it ({error}): raise "
                "this process's limit on threads"
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
        """Write the backlog; return when it is empty, or the connection broke."""
        rest, taken, size = backlog.rest, None, 0
        while True:
            with self._lock:
                if self._backlog is not backlog:
                    return
                try:
                    if taken is not None:
                        first: list[Buffer] = []
                        for write in backlog.overtaking():
                            pieces = self._replies.aloud(write.pack())
                            self._replies.owe(write.replies, write.token, sum(map(len, pieces)))
                            first += pieces
                        self._replies.owe(taken.replies, taken.token, size)
                        backlog.begun()
                        rest = [*first, *rest]
                    rest = self._write_on(connection, rest)
                except BrokerError as error:
                    self._break(error)
                    return
                taken = None if rest else backlog.take()
                if not rest and taken is None:
                    connection.limit_unsent(on=False)
                    self._backlog = None
                self._moved.notify_all()
            if rest:
                connection.wait_movable(_LONGEST_WAIT, writes=True)
            elif taken is None:
                return
            else:
                rest = self._replies.aloud(taken.pack())  # without the lock: it may seal a chunk
                size = sum(map(len, rest))

    def _write_on(self, connection: BrokerConnection, rest: Sequence[Buffer]) -> Sequence[Buffer]:
        """Write what fits, read the replies that are here, and return the unwritten rest."""
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
        """Raise if an idle connection has ended, before a write to it gets lost."""
        self._replies.read(connection)
        if not self._replies.unread and connection.readable():
            connection.read_now()  # we asked nothing; if it is an error reply, this raises it
            raise BrokerUnreachable(
                f"broker {self._broker.label}: it sent a reply that nobody asked for: check what "
                "stands between it and this party"
            )

    def _check_moves(self) -> None:
        """Raise if the broker has neither taken nor answered anything for too long."""
        timeout = self._broker.timeout
        owes = self._replies.unread or self._backlog is not None
        moved_at = max(self._replies.moved_at, self._stirred_at)
        if owes and time.monotonic() - moved_at > timeout:
            raise BrokerUnreachable(
                f"broker {self._broker.label}: it took and answered nothing for {timeout:g} s: "
                "check that it runs, and the line to it"
            )
