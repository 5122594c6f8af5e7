"""What a fork leaves of redislink in the child: nothing that works.

A child has copies of the parent's connections, keys and frame numbers. Would it use them, two
messages would be sealed with the same nonce, and the broker's replies would go to either of the
two. A ``multiprocessing.Pool`` forks unseen.

Rules:
- Whatever sends, receives, seals or cleans up puts itself on the list (`dies_in_child`); in the
  child its `die_in_child` is called, before any other code runs there.
- That takes no lock, as the thread that held one is not there any more: it makes new ones. It
  sends nothing, and shuts no connection down, as that is the parent's too: it lets go.
- What has died raises `UsedAfterFork` wherever it is used, but may be left: ``close``, ``abort``
  and the end of a ``with`` block do nothing, so that a child's exit is quiet.
- Nothing happens in the parent.

A child may join again, with new connections, keys and numbers. Two things are seen to for that:
- A lock of a module is free in every child (`renew_in_child`).
- A thread that ends runs code of libraries after its last line of Python. OpenSSL holds a lock
  there that every thread needs which uses it for the first time; a child that is forked meanwhile
  waits for it for ever (seen: one in seven of those forked as soon as the threads of a pool had
  joined a session). So a fork waits for such threads (`_let_threads_leave`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from redislink.errors import UsedAfterFork


class DiesInChild(Protocol):
    """What `dies_in_child` takes."""

    def die_in_child(self) -> None:
        """Let go of everything, without a lock and without sending; called in the child."""


class Dead:
    """Stands where something was that the parent alone may use: any use raises `UsedAfterFork`."""

    def __init__(self, error: UsedAfterFork) -> None:
        self.__error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self.__error.with_traceback(None)

    def close(self) -> None:
        """Nothing: whoever leaves need not know."""


_TASKS: Final = Path("/proc/self/task")
_PATIENCE: Final = 0.2
"""Seconds that a fork waits for threads that end. Threads of C++ look like them, but stay."""
_LOOK: Final = 0.0005
_mortal: Final[weakref.WeakSet[DiesInChild]] = weakref.WeakSet()
_staying: Final[set[str]] = set()
"""Threads that no fork waits for again, as one has in vain."""
_process = os.getpid()


def dies_in_child(mortal: DiesInChild) -> None:
    """Have its `die_in_child` called in every child that this process forks, while it exists."""
    _mortal.add(mortal)


def has_ended(mortal: DiesInChild) -> None:
    """Take back `dies_in_child`: it has ended, and what it held may be somebody else's by now."""
    _mortal.discard(mortal)


def renew_in_child(lock: Any) -> None:
    """Have a lock of a module be free in every child, whoever holds it at the fork."""
    os.register_at_fork(after_in_child=lock._at_fork_reinit)


def never_destroy(thing: Any) -> None:
    """Have an object of C++ outlive the interpreter, as its end would need threads of its own."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def used_after_fork(what: str) -> UsedAfterFork:
    """The error for something that a child uses although it is its parent's.

    Args:
        what: such as ``alice: the endpoint``.
    """
    return UsedAfterFork(
        f"{what} belongs to process {_process}, from which this process ({os.getpid()}) was "
        "forked: use it there, and hand work and results between the two; or join again here, as "
        "another party or in another session"
    )


def let_go(descriptor: int) -> None:
    """Close this process's copy of a file or socket; the parent's stays as it is.

    The number stays taken, so that whoever still has it meets nothing else under it.
    """
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)


def _let_threads_leave() -> None:
    """Return once every thread that has run its Python to the end is gone.

    None can begin to end before the fork, as that needs the interpreter.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            tasks = {task.name for task in _TASKS.iterdir()}
        except OSError:
            return  # not Linux
        _staying.intersection_update(tasks)
        running = {thread.native_id for thread in threading.enumerate()}
        running.add(threading.get_native_id())  # perhaps not Python's own
        leaving = tasks - {str(number) for number in running} - _staying
        if not leaving:
            return
        if time.monotonic() >= give_up:
            _staying.update(leaving)
            return
        time.sleep(_LOOK)


def _end_in_child() -> None:
    global _process
    _staying.clear()
    for mortal in list(_mortal):
        # One that fails must not keep the others alive.
        with contextlib.suppress(Exception):
            mortal.die_in_child()
    _mortal.clear()
    _process = os.getpid()


os.register_at_fork(before=_let_threads_leave, after_in_child=_end_in_child)
