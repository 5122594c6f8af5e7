"""What a fork leaves of redislink in the child: nothing that works.

A child has copies of the parent's connections, keys and frame numbers. If it used them, two
messages would be sealed with the same nonce, and the broker's replies would go to either process.
A ``multiprocessing.Pool`` forks without saying so.

Rules:
- Every object that sends, receives, seals or cleans up registers itself (`dies_in_child`). In the
  child, its `die_in_child` is called before any other code runs.
- `die_in_child` takes no lock, because the thread that held it does not exist in the child; it
  makes new locks. It sends nothing and shuts no connection down, because the parent still uses it;
  it only closes its own copy.
- An object that has died raises `UsedAfterFork` when used. But it may be left: ``close``, ``abort``
  and the end of a ``with`` block do nothing, so a child exits silently.
- Nothing happens in the parent.

A child may join again, with new connections, keys and numbers. Two measures make that safe:
- A module's lock is free in every child (`renew_in_child`).
- A thread that ends runs code of libraries after its last line of Python. There, OpenSSL holds a
  lock that every thread needs when it first uses OpenSSL, so a child that is forked at that moment
  waits forever. (It happened to one in seven children that were forked right after the threads of
  a pool had joined a session.) So a fork waits for such threads (`_let_threads_leave`).
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
    """What `dies_in_child` accepts."""

    def die_in_child(self) -> None:
        """Release everything without taking a lock or sending anything. Called in the child."""


class Dead:
    """Replaces an object that only the parent may use: any use raises `UsedAfterFork`."""

    def __init__(self, error: UsedAfterFork) -> None:
        self.__error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self.__error.with_traceback(None)

    def close(self) -> None:
        """Do nothing, so that the child can leave silently."""


_TASKS: Final = Path("/proc/self/task")
_PATIENCE: Final = 0.2
"""Seconds that a fork waits for ending threads. Threads of C++ look the same, but stay."""
_LOOK: Final = 0.0005
_mortal: Final[weakref.WeakSet[DiesInChild]] = weakref.WeakSet()
_staying: Final[set[str]] = set()
"""Threads for which a fork has waited in vain; no fork waits for them again."""
_process = os.getpid()


def dies_in_child(mortal: DiesInChild) -> None:
    """Register an object, so that its `die_in_child` is called in every child while it exists."""
    _mortal.add(mortal)


def has_ended(mortal: DiesInChild) -> None:
    """Undo `dies_in_child` for an object that has ended: others may own now what it held."""
    _mortal.discard(mortal)


def renew_in_child(lock: Any) -> None:
    """Make a module's lock free in every child, no matter who holds it at the fork."""
    os.register_at_fork(after_in_child=lock._at_fork_reinit)


def never_destroy(thing: Any) -> None:
    """Keep a C++ object beyond the interpreter's end, because its destructor needs threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def used_after_fork(what: str) -> UsedAfterFork:
    """Return the error for a child that uses what belongs to its parent.

    Args:
        what: the thing that was used, such as ``alice: the endpoint``.
    """
    return UsedAfterFork(
        f"{what} belongs to process {_process}, from which this process ({os.getpid()}) was "
        "forked: use it there, and hand work and results between the two; or join again here, as "
        "another party or in another session"
    )


def let_go(descriptor: int) -> None:
    """Close this process's copy of a file or socket; the parent's stays open.

    The descriptor stays in use, so code that still has it never reaches another file through it.
    """
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)


def _let_threads_leave() -> None:
    """Wait until every thread that has finished its Python code is gone.

    No other thread can finish before the fork, because that needs the interpreter.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            tasks = {task.name for task in _TASKS.iterdir()}
        except OSError:
            return  # not Linux
        _staying.intersection_update(tasks)
        running = {thread.native_id for thread in threading.enumerate()}
        running.add(threading.get_native_id())  # this thread may not be Python's own
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
        # A failure must not keep the other objects alive.
        with contextlib.suppress(Exception):
            mortal.die_in_child()
    _mortal.clear()
    _process = os.getpid()


os.register_at_fork(before=_let_threads_leave, after_in_child=_end_in_child)
