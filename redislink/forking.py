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
"""

from __future__ import annotations

import contextlib
import os
import weakref
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


_mortal: Final[weakref.WeakSet[DiesInChild]] = weakref.WeakSet()
_process = os.getpid()


def dies_in_child(mortal: DiesInChild) -> None:
    """Have its `die_in_child` called in every child that this process forks, while it exists."""
    _mortal.add(mortal)


def renew_in_child(lock: Any) -> None:
    """Have a lock of a module be free in every child, whoever holds it at the fork."""
    os.register_at_fork(after_in_child=lock._at_fork_reinit)


def used_after_fork(what: str) -> UsedAfterFork:
    """The error for something that a child uses although it is its parent's.

    Args:
        what: such as ``alice: the endpoint``.
    """
    return UsedAfterFork(
        f"{what} belongs to process {_process}, from which this process ({os.getpid()}) was "
        "forked: use it there, and hand work and results between the two; or fork before joining"
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


def _end_in_child() -> None:
    global _process
    for mortal in list(_mortal):
        # One that fails must not keep the others alive.
        with contextlib.suppress(Exception):
            mortal.die_in_child()
    _mortal.clear()
    _process = os.getpid()


os.register_at_fork(after_in_child=_end_in_child)
