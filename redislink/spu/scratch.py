"""Directories for libpsi's files, which only this user can read and which always go away.

Rules:
- A directory is made with mode 0700, below the system's temporary directory, and locked for as
  long as a process uses it. The lock (`flock`) ends with the last process that holds it, however
  that ends.
- A directory that no process holds belongs to a dead run. Each start removes those of this user.
- A forked process neither holds its parent's directory nor removes it.
- What a signal interrupts, as SIGTERM may while a directory is being removed, is done when
  the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redislink.forking import dies_in_child, let_go

PREFIX: Final = "redislink-scratch-"
"""Prefix of locked directories only: version 0.1 had others, which it did not lock."""
_ATTEMPTS: Final = 100
_PAUSE: Final = 0.02
"""Seconds between attempts to remove a directory that something still writes to."""


@dataclass(frozen=True, eq=False)
class Scratch:
    """A directory of this process.

    Attributes:
        path: the directory.
        descriptor: the open directory, which holds the lock; a child that inherits it shares the
            lock.
    """

    path: Path
    descriptor: int

    def __post_init__(self) -> None:
        dies_in_child(self)

    def die_in_child(self) -> None:
        """Let go of the lock, which would otherwise outlive the parent, with the files."""
        _held.discard(self)
        let_go(self.descriptor)


_held: Final[set[Scratch]] = set()
"""Those of this process that are not removed yet."""


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Make a directory for the duration of the block, after removing those of dead runs.

    Raises:
        OSError: the directory cannot be made.
    """
    remove_abandoned()
    made = _make()
    _held.add(made)
    try:
        yield made
    finally:
        if made in _held:
            remove(made.path)
            _held.discard(made)
        os.close(made.descriptor)


@atexit.register
def remove_left() -> None:
    """Remove what this process made and could not remove."""
    for made in list(_held):
        remove(made.path)


def remove_abandoned() -> None:
    """Remove this user's directories that no process holds."""
    with contextlib.suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(path)


def remove(path: Path) -> None:
    """Remove a directory and its contents, even while something still writes there."""
    for _ in range(_ATTEMPTS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(_PAUSE)


def _make() -> Scratch:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Until it is locked, another start may think that it is abandoned.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        taken = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = True
        except OSError:
            pass  # the file system has no locks, so nobody else can take it either
        if not taken and path.exists():
            return Scratch(path, descriptor)
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: it is in use
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def private_scratch() -> Iterator[None]:
    """Give libpsi a directory that only this user can read, in programs that call it themselves.

    `redislink.Session.psi` does not need it. ``spu.psi`` writes the keys in the clear to files
    under ``TMPDIR``, which everybody on the machine can read, and removes them at exit. This
    changes the environment of the whole process, so put it around a program, not around a call.
    """
    before = os.environ.get("TMPDIR")
    with scratch() as made:
        os.environ["TMPDIR"] = str(made.path)
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before
