"""How SIGTERM ends a party under ``redislink run``.

A handler alone would not do. Python runs it in the main thread, which may be inside SPU and wait
there for a peer; and what it raises may hit the main thread halfway through a message, with the
ABORT still to be sent. So a thread hears of the signal, has the sessions ended, and only then has
the main thread raise.

Rules:
- The thread hears of it in two ways, of which either will do: by the wake-up file descriptor of
  `signal`, also while the main thread is in C++; and from the handler, wherever Python runs.
- asyncio, and what builds on it, take the wake-up file descriptor for themselves and never give it
  back. So they get their own here, to which ours passes everything on.
- The handler takes no lock: the main thread may hold it.
- From the signal on nothing holds up the end for longer than `_TELLING` and `_GRACE` seconds:
  neither a broker that never stops answering, nor a close, nor a thread of the program's.
- A program that has a handler of its own ends as it likes; one that calls ours ends as without it.
- A child that the program forks has nothing of this; see `redislink.forking`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from redislink.cli import errors
from redislink.cli.errors import ExitCode
from redislink.errors import RedisLinkError
from redislink.forking import dies_in_child, has_ended, let_go

if TYPE_CHECKING:
    from redislink.session.session import Session

_TELLING: Final = 3.0
"""Seconds that the sessions may take to tell the other parties."""
_GRACE: Final = 4.0
"""Seconds that the program then gets to end by itself."""
_LAST_WORDS: Final = 1.0
_ASKED: Final = b"\xff"
"""In the pipe of the wake-up file descriptor: from the handler. No signal has this number."""


class Terminated(SystemExit):
    """Raised in the program by SIGTERM."""

    told_to_peers = "ended by SIGTERM"
    """What a `Session` that it leaves tells the other parties."""


@contextlib.contextmanager
def ended_by_sigterm(party: str) -> Iterator[None]:
    """Within this block SIGTERM aborts every open session, then raises `Terminated`."""
    termination = _Termination(party)
    try:
        try:
            yield
        except (Terminated, Exception) as error:
            # What the program raises once its session has been ended is a consequence.
            if not termination.heard:
                raise
            if not isinstance(error, Terminated | RedisLinkError):
                traceback.print_exception(error)
        if termination.heard:  # also where only a thread of the program's has noticed
            errors.say(f"{party}: ended by SIGTERM")
            raise SystemExit(int(ExitCode.TERMINATED))
    finally:
        termination.end()


class _Termination:
    """What waits for SIGTERM; in force until `end`."""

    def __init__(self, party: str) -> None:
        self._party = party
        self.heard = False
        """SIGTERM came, and was for us."""
        self._sessions_ended = threading.Event()
        self._is_over = False
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._handler = self._handle
        self._set_wakeup_fd = signal.set_wakeup_fd
        self._theirs = self._set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        """The program's own wake-up file descriptor; -1 if it has none."""
        signal.set_wakeup_fd = self._set_theirs
        self._handler_before = signal.signal(signal.SIGTERM, self._handler)
        self._listener = threading.Thread(
            target=self._listen, name="redislink-sigterm", daemon=True
        )
        self._listener.start()
        _block_while_forking()
        dies_in_child(self)

    def end(self) -> None:
        """Put everything back. If SIGTERM came, the time to end runs on."""
        self._is_over = True
        if self.heard:  # the program may have ended before all is told
            self._sessions_ended.wait(_TELLING)
        self._put_back(self._theirs)
        has_ended(self)  # these numbers will be of other files
        os.close(self._write_end)  # ends the listener
        self._listener.join()
        os.close(self._read_end)

    def die_in_child(self) -> None:
        """In the child of a fork SIGTERM does what it did before `redislink run`."""
        self._is_over, self._theirs = True, -1  # asyncio's would be the parent's loop
        self._put_back(self._theirs)
        for end in (self._read_end, self._write_end):
            let_go(end)

    def _put_back(self, wakeup_fd: int) -> None:
        signal.set_wakeup_fd = self._set_wakeup_fd
        self._set_wakeup_fd(wakeup_fd)
        if signal.getsignal(signal.SIGTERM) == self._handler:
            signal.signal(signal.SIGTERM, self._handler_before or signal.SIG_DFL)

    def _set_theirs(self, fd: int, *, warn_on_full_buffer: bool = True) -> int:
        """`signal.set_wakeup_fd`, as the program meets it."""
        self._set_wakeup_fd(fd, warn_on_full_buffer=warn_on_full_buffer)  # raises as it does
        self._set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        before, self._theirs = self._theirs, fd
        return before

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        """The handler: runs in the main thread, perhaps called by one of the program's."""
        if self._is_over:
            return
        if not self._sessions_ended.is_set():
            with contextlib.suppress(OSError):  # full: then the listener has enough to hear
                os.write(self._write_end, _ASKED)
            return
        raise Terminated(int(ExitCode.TERMINATED))

    # -- in threads of ours ------------------------------------------------------------------

    def _listen(self) -> None:
        while heard := os.read(self._read_end, 64):
            numbers = heard.replace(_ASKED, b"")
            if numbers and self._theirs >= 0:
                with contextlib.suppress(OSError):  # it has closed it, or does not read it
                    os.write(self._theirs, numbers)
            is_ours = signal.getsignal(signal.SIGTERM) == self._handler
            if not self.heard and (_ASKED in heard or (signal.SIGTERM in numbers and is_ours)):
                self.heard = True
                threading.Thread(target=self._end, name="redislink-end", daemon=True).start()

    def _end(self) -> None:
        # Should this thread not come to the end of it, as C++ keeps the interpreter to itself.
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback_later(_TELLING + 2 * _GRACE + _LAST_WORDS, exit=True)
        _within(_TELLING, *(_abort_of(session) for session in _open_sessions()))
        self._sessions_ended.set()
        if not self._is_over:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_GRACE)
        _within(_LAST_WORDS, self._say_last_words)
        os._exit(int(ExitCode.TERMINATED))

    def _say_last_words(self) -> None:
        errors.say(f"{self._party}: ended by SIGTERM, in the middle of a computation")
        sys.stdout.flush()


def _abort_of(session: Session) -> Any:
    return lambda: session.abort(Terminated.told_to_peers)


def _within(seconds: float, *works: Any) -> None:
    """Do all of it at the same time, and wait for so long at most."""
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _open_sessions() -> list[Session]:
    module = sys.modules.get("redislink.session.session")
    return [] if module is None else module.open_sessions()


_forking = threading.local()
_blocks_while_forking = False


def _block_while_forking() -> None:
    """Hold SIGTERM up from a fork until the child has let go of what is the parent's.

    A worker that a Pool ends as soon as it is there would else write into the parent's pipe.
    """
    global _blocks_while_forking
    if not _blocks_while_forking:
        _blocks_while_forking = True
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_unblock)


def _block() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
