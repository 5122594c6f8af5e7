"""How SIGTERM ends a party under ``redislink run``.

A handler alone is not enough. Python runs it in the main thread, which may be waiting for a peer
inside SPU; and an exception from it may interrupt the main thread halfway through a message, before
the ABORT is sent. So a thread listens for the signal, ends the sessions, and only then makes the
main thread raise.

Rules:
- The thread learns of the signal in two ways, and either is enough: from the wake-up file
  descriptor of `signal`, even while the main thread is in C++; and from the handler, wherever
  Python runs.
- asyncio, and libraries on top of it, take the wake-up file descriptor and never return it. So they
  get one of their own here, and ours passes everything on to it.
- The handler takes no lock, because the main thread may hold it.
- After the signal, nothing delays the end by more than `_TELLING` and `_GRACE` seconds: neither a
  broker that answers without end, nor a close, nor a thread of the program.
- A program with its own handler ends as it likes; one whose handler calls ours ends as if it had
  none.
- None of this applies to a child that the program forks; see `redislink.forking`.
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
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from redislink.cli import errors
from redislink.cli.errors import ExitCode
from redislink.errors import RedisLinkError
from redislink.forking import dies_in_child, has_ended, let_go
from redislink.session import supervisor
from redislink.session.supervisor import Asked

if TYPE_CHECKING:
    from redislink.interop.links import OpenLink
    from redislink.interop.mplang.driver import Client
    from redislink.session.session import Session

_TELLING: Final = 3.0
"""Seconds that the sessions have to tell the other parties."""
_GRACE: Final = 4.0
"""Seconds that the program then has to end by itself."""
_LAST_WORDS: Final = 1.0
_AGAIN: Final = 0.05
"""Seconds after which a Ctrl-C that Python dropped comes again."""
_WHAT_IS_OPEN: Final = (
    ("redislink.session.session", "open_sessions"),
    ("redislink.interop.links", "open_links"),
    ("redislink.interop.mplang.programs", "open_drivers"),
)
"""Functions that say what to tell peers about, in modules that a program may not have loaded."""
_ASKED: Final = b"\xff"
"""A byte from the handler in the wake-up pipe. No signal has this number."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within this block, SIGTERM does what Ctrl-C does: for commands that clean up themselves."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def interrupts_come_back() -> Iterator[None]:
    """Within this block, Ctrl-C and SIGTERM count also where Python drops what they raise.

    Python ignores what is raised in a callback of a weak reference. There is one whenever a module
    has been imported, so a program that is just starting might not hear that it is to end.
    """
    before = sys.unraisablehook

    def again(dropped: sys.UnraisableHookArgs) -> None:
        main = threading.main_thread()
        number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(
            dropped.exc_type
        )
        if number is None or threading.current_thread() is not main:
            before(dropped)
            return
        # By then the callback has ended.
        later = threading.Timer(_AGAIN, signal.pthread_kill, (main.ident or 0, number))
        later.name, later.daemon = "redislink-interrupt", True
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        if sys.unraisablehook is again:
            sys.unraisablehook = before


class Terminated(SystemExit):
    """Raised in the program by SIGTERM."""

    told_to_peers = "ended by SIGTERM"
    """What a `Session` tells the other parties if this error ends it."""
    retryable = True
    """Whoever ended this process may start it again."""


def run_until_sigterm(party: str, program: Callable[[], None]) -> None:
    """Run the program; SIGTERM aborts every open session and then raises `Terminated` in it.

    This is no context manager: an error that a signal raises between its ``__enter__`` and the
    block would pass by its ``__exit__``.

    Raises:
        SystemExit: SIGTERM came, and that has been said.
    """
    termination = _Termination(party)
    try:
        try:
            termination.begin()
            program()
        except (Terminated, Exception) as error:
            # An error of the program after its session was ended is a consequence.
            if not termination.heard:
                raise
            if not isinstance(error, Terminated | RedisLinkError):
                traceback.print_exception(error)
        if termination.heard:  # even if only another thread of the program noticed
            errors.say(errors.with_party("ended by SIGTERM", party))
            raise SystemExit(int(ExitCode.TERMINATED))
    finally:
        termination.end()


class _Termination:
    """Waits for SIGTERM until `end`."""

    def __init__(self, party: str) -> None:
        self._party = party
        self.heard = False
        """Whether SIGTERM came and was ours to handle."""
        self._begun = threading.Event()
        """Set once somebody catches what the handler raises."""
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

    def begin(self) -> None:
        """From now on, the handler may raise."""
        self._begun.set()

    def end(self) -> None:
        """Restore everything. If SIGTERM came, the time limit still runs."""
        self._is_over = True
        if self.heard:  # the program may end before all parties are told
            self._sessions_ended.wait(_TELLING)
            self._abort_sessions()  # those that were just being made
            # The error may have come in the middle of what removes them.
            getattr(sys.modules.get("redislink.spu.scratch"), "remove_left", list)()
        self._put_back(self._theirs)
        has_ended(self)  # other files will get these numbers
        os.close(self._write_end)  # ends the listener
        self._listener.join()
        os.close(self._read_end)

    def die_in_child(self) -> None:
        """In the child of a fork, SIGTERM does what it did before `redislink run`."""
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
        """Stands in for `signal.set_wakeup_fd` in the program."""
        self._set_wakeup_fd(fd, warn_on_full_buffer=warn_on_full_buffer)  # raises as it does
        self._set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        before, self._theirs = self._theirs, fd
        return before

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        """The handler. It runs in the main thread; the program's handler may call it."""
        if self._is_over:
            return
        if not (self._sessions_ended.is_set() and self._begun.is_set()):
            with contextlib.suppress(OSError):  # full: the listener has been woken already
                os.write(self._write_end, _ASKED)
            return
        raise Terminated(int(ExitCode.TERMINATED))

    # -- in threads of ours ------------------------------------------------------------------

    def _listen(self) -> None:
        while heard := os.read(self._read_end, 64):
            numbers = heard.replace(_ASKED, b"")
            if numbers and self._theirs >= 0:
                with contextlib.suppress(OSError):  # the program closed it, or does not read it
                    os.write(self._theirs, numbers)
            is_ours = signal.getsignal(signal.SIGTERM) == self._handler
            if not self.heard and (_ASKED in heard or (signal.SIGTERM in numbers and is_ours)):
                self.heard = True
                threading.Thread(target=self._end, name="redislink-end", daemon=True).start()

    def _end(self) -> None:
        # In case this thread cannot finish because C++ keeps the interpreter to itself.
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback_later(_TELLING + 2 * _GRACE + _LAST_WORDS, exit=True)
        self._abort_sessions()
        self._sessions_ended.set()
        self._begun.wait()
        if not self._is_over:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_GRACE)
        _within(_LAST_WORDS, self._say_last_words)
        os._exit(int(ExitCode.TERMINATED))

    @staticmethod
    def _abort_sessions() -> None:
        asked = None if supervisor.here is None else supervisor.here.asked_to_end()
        asked = asked or Asked(Terminated.told_to_peers, retryable=True)
        _within(_TELLING, *(_abort_of(session, asked) for session in _open_sessions()))

    def _say_last_words(self) -> None:
        said = "ended by SIGTERM, in the middle of a computation"
        errors.say(errors.with_party(said, self._party))
        sys.stdout.flush()


def _abort_of(session: Session | OpenLink | Client, asked: Asked) -> Any:
    return lambda: session.abort(asked.reason, retryable=asked.retryable)


def _within(seconds: float, *works: Any) -> None:
    """Run all of the works at the same time, and wait for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _open_sessions() -> list[Session | OpenLink | Client]:
    # While the program still imports one, it has no such function, and there is no session.
    return [
        session
        for module, function in _WHAT_IS_OPEN
        for session in getattr(sys.modules.get(module), function, list)()
    ]


_forking = threading.local()
_blocks_while_forking = False


def _block_while_forking() -> None:
    """Block SIGTERM from a fork until the child has let go of what belongs to the parent.

    Otherwise a worker that a Pool ends at once would write into the parent's pipe.
    """
    global _blocks_while_forking
    if not _blocks_while_forking:
        _blocks_while_forking = True
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_unblock)


def _block() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
