"""``redislink run --retries``: the process starts again after an error that may pass.

Rules:
- The process replaces itself by the same command. Nothing of an attempt is left in the next one:
  no memory, thread, connection or key, and no environment, directory or signal mask that the
  program has changed. Whoever watches the process sees one that never ended.
- Before that, the program ends as it would otherwise: its threads are joined, and what it
  registered with `atexit` runs; but for `_GRACE` seconds at most.
- The next attempt waits before it loads the program. SIGTERM and Ctrl-C end a wait, and the
  moments around it, at once.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redislink.cli import errors
from redislink.errors import RedisLinkError, may_pass
from redislink.settings import name_attempt, take_attempt

_GRACE: Final = 10.0
"""Seconds that the program has to clean up before the next attempt begins without it."""
_OPEN_FILES: Final = Path("/dev/fd")


class Attempts:
    """What is needed to run the command again, as it was when this process began."""

    def __init__(self, retries: int, delay: float, words: Sequence[str] | None = None) -> None:
        """Make it before anything of the process is changed.

        Args:
            retries: how many attempts may follow the first.
            delay: seconds between two attempts.
            words: the words after ``redislink``; None means those of this process.
        """
        self.number, begins_at = take_attempt()
        self._last = retries + 1
        self._delay = delay
        self._wait = min(delay, max(0.0, begins_at - time.monotonic()))
        words = sys.argv[1:] if words is None else words
        self._command = _command(list(words))
        self._directory = Path.cwd()
        self._environment = dict(os.environ)
        self._process = os.getpid()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._ignored = _ignored_signals()
        self._files = _open_files()
        self._moment = threading.Lock()

    def wait(self) -> None:
        """Wait until this attempt may begin."""
        time.sleep(self._wait)

    def may_follow(self, error: BaseException) -> bool:
        """Whether another attempt follows this one, which has ended with ``error``."""
        is_ours = os.getpid() == self._process  # not a child that the program forked
        return is_ours and self.number < self._last and may_pass(error)

    def begin_next(self, error: RedisLinkError, party: str) -> None:
        """Replace this process by the next attempt. Returns only if that is not possible.

        Args:
            error: why this attempt has ended.
            party: the name of the party.
        """
        text = str(error).removeprefix(f"{party}: ")
        at = time.strftime("%H:%M:%S", time.gmtime(time.time() + self._delay))
        said = (
            f"attempt {self.number} of {self._last} ended: {text}; attempt {self.number + 1} "
            f"begins at {at} UTC"
        )
        errors.say(
            errors.with_party(said, party),
            party=party,
            level=logging.WARNING,
        )
        environment = name_attempt(
            self._environment, self.number + 1, time.monotonic() + self._delay
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        threading.Thread(
            target=self._replace_after, args=(environment,), name="redislink-again", daemon=True
        ).start()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        self._replace(environment)

    def _replace_after(self, environment: dict[str, str]) -> None:
        time.sleep(_GRACE)
        self._replace(environment)

    def _replace(self, environment: dict[str, str]) -> None:
        with self._moment:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            for number in _open_files() - self._files:
                with contextlib.suppress(OSError):  # closed meanwhile
                    os.set_inheritable(number, False)
            for number in _ignored_signals() - self._ignored:
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            with contextlib.suppress(OSError):
                os.chdir(self._directory)
            try:
                os.execve(sys.executable, self._command, environment)  # noqa: S606 - our own command
            except OSError as error:
                errors.say(f"cannot start again: {error.strerror}", level=logging.ERROR)


def _command(words: list[str]) -> list[str]:
    """The command line of this process; ``words`` follow ``redislink`` in it."""
    whole = sys.orig_argv
    if words and whole[-len(words) :] == words:
        return [sys.executable, *whole[1:]]
    return [sys.executable, "-m", "redislink", *words]


def _ignored_signals() -> set[signal.Signals]:
    return {s for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN}


def _open_files() -> set[int]:
    try:
        return {int(file.name) for file in _OPEN_FILES.iterdir()}
    except OSError:
        return set()
