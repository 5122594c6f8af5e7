"""Code in a child that the test forks, as a program would; what it found out comes back."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Any

SECONDS = 30


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or raises, in a child; one that hangs is ended after `SECONDS`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(SECONDS)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.close(reading)
            try:
                told = pickle.dumps((True, work()))
            except BaseException as error:  # noqa: BLE001 - told to the parent
                shown = "".join(traceback.format_exception(error))
                told = pickle.dumps((False, f"{type(error).__name__}: {error}\n{shown}"))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(told)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert told, f"the child ended with status {status:#x} and told nothing"
    worked, what = pickle.loads(told)
    assert worked, what
    return what


def error_of(call: Callable[[], Any]) -> str:
    """The name of what a call raises; "" if it returns."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__
    return ""
