"""Rests: send BLPOPs for the rest of mid-sized messages before anybody knows of these messages.

Over a line, a relay delays a message by the time that one chunk takes, so a mid-sized message
travels in many small ones. Asking for them only when the first has come would cost a round trip,
which is more than that gains. So all chunks but the first, the *rests* of all messages of a peer,
have one list, on which BLPOPs wait at all times, on one connection of their own.

Whoever reads that connection hands what it brings to the delivery, whatever the tag. Receives read
it only while they lack part of a message; so what nobody wants yet stays in the kernel, and the
peer sends only so much ahead (`chunking.MOST_APART`). It may be given up at any time: what it had
popped counts as lost, is probed for, and comes on its tag's list.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from redislink.broker import Inbox
from redislink.broker.inbox import Wait
from redislink.broker.wire import Buffer

_AHEAD: Final = 32
"""BLPOPs that are out: as many chunks come without another round trip."""
_FEW: Final = _AHEAD // 2
"""With so few left, more are posted: enough to be worth a system call."""
_TOO_LONG: Final = 60.0
"""Seconds without a reader after which the line may have been dropped on its way."""


class Rests:
    """The connection for the rests of one peer's messages. Read it with ``lock`` held."""

    def __init__(self, inbox: Inbox, blpop_seconds: float, name: bytes) -> None:
        """Not for users.

        Args:
            inbox: gives the connection.
            blpop_seconds: how long one BLPOP waits.
            name: the list's name.
        """
        self.lock = threading.Lock()
        self.waiting: list[Wait] = []
        """Of receives that wait for what the one that reads may bring; the core's lock guards it.
        They are notified of all that comes."""
        self._inbox = inbox
        self._seconds = blpop_seconds
        self._name = name
        self._wait: Wait | None = None
        self._posted = 0
        self._read_at = 0.0
        self._is_stale = False

    def read(self, patience: float) -> tuple[bytes, Buffer] | None:
        """Return (list, element) of the next chunk that has come.

        Args:
            patience: seconds to wait for it.

        Returns:
            None if none came; then another call goes on from here.

        Raises:
            Interrupted, BrokerError: as for `Wait.pop`; the next call opens another connection.
        """
        now = time.monotonic()
        if self._is_stale or now - self._read_at > _TOO_LONG:
            self._is_stale = False  # before the name is read: see `move`
            self.give_up()
        self._read_at = now
        name = self._name
        try:
            wait = self._wait
            if wait is None:
                wait = self._wait = self._inbox.acquire()
                wait.connect()
            if self._posted <= _FEW:
                wait.post((name,) * (_AHEAD - self._posted), self._seconds)
                self._posted = _AHEAD
            if not wait.wait_posted(patience):
                return None
            element = wait.read_posted(name, self._seconds)
        except BaseException:
            self.give_up()
            raise
        self._posted -= 1
        return None if element is None else (name, element)

    def move(self, name: bytes) -> None:
        """Read another list from now on. Any thread may call this, without the lock."""
        self._name = name
        self._is_stale = True
        if (wait := self._wait) is not None:
            wait.interrupt()

    def close(self) -> None:
        """Close the connection. Any thread may call this, without the lock."""
        self.move(self._name)
        if self.lock.acquire(blocking=False):  # else its reader gives it up
            self.give_up()
            self.lock.release()

    def give_up(self) -> None:
        """Close the connection; `read` opens another. Call it with the lock."""
        wait, self._wait = self._wait, None
        self._posted = 0
        if wait is not None:
            wait.disconnect()
            self._inbox.discard(wait)
