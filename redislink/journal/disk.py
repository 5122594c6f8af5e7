"""All that a journal asks of the file system, so that tests can crash it at each request.

Rules:
- What is written is on disk once `File.sync` has returned, and a new, renamed or removed name once
  `Disk.sync_directory` has. Until then, a crash may leave all of it, a part, or nothing.
- Every method may raise `OSError`, and says nothing more: the caller knows what it was for.
- No symbolic link is followed in the last part of a path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final, Protocol

from redislink.files import OWNER_ONLY, put_on_disk, sync_directory

DIRECTORY_MODE: Final = 0o700

Buffer = bytes | bytearray | memoryview


class File(Protocol):
    """An open file. Writing appends."""

    def write(self, data: Buffer) -> None:
        """Append all of the bytes."""
        ...

    def read(self, size: int, offset: int) -> bytes:
        """Return ``size`` bytes from ``offset``, fewer only at the end of the file."""
        ...

    def size(self) -> int:
        """Return how many bytes the file has."""
        ...

    def sync(self) -> None:
        """Return once all that was written is on disk."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes; writing goes on from there."""
        ...

    def close(self) -> None:
        """Close the file; twice is harmless."""
        ...


class Disk(Protocol):
    """The file system, as far as a journal needs it."""

    def status(self, path: Path) -> os.stat_result | None:
        """Return what has this name, without following a link; None if nothing has."""
        ...

    def names(self, directory: Path) -> list[str]:
        """Return what a directory holds."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory that only its owner can use."""
        ...

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Return once the names in a directory are on disk."""
        ...

    def create(self, path: Path) -> File:
        """Make a new file that only its owner can use. Nothing may have the name yet."""
        ...

    def open(self, path: Path) -> File:
        """Open a regular file for reading and `File.sync`."""
        ...

    def rename(self, path: Path, to: Path) -> None:
        """Give a file or directory another name, in place of any file that has it."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove the name of a file."""
        ...

    def lock(self, path: Path, note: str) -> File:
        """Lock a file until it is closed; make it if it is missing.

        Args:
            path: the file.
            note: what to write into it, if the disk takes it.

        Raises:
            BlockingIOError: another process has locked it.
        """
        ...


class _OsFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def read(self, size: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        put_on_disk(self._descriptor, only_data=True)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsDisk:
    """The operating system's file system."""

    def status(self, path: Path) -> os.stat_result | None:
        """See `Disk`."""
        try:
            return path.lstat()
        except FileNotFoundError:
            return None

    def names(self, directory: Path) -> list[str]:
        """See `Disk`."""
        return sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths

    def make_directory(self, path: Path) -> None:
        """See `Disk`."""
        path.mkdir(DIRECTORY_MODE)

    def remove_directory(self, path: Path) -> None:
        """See `Disk`."""
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        """See `Disk`."""
        sync_directory(path)

    def create(self, path: Path) -> File:
        """See `Disk`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return _OsFile(os.open(path, flags, OWNER_ONLY))

    def open(self, path: Path) -> File:
        """See `Disk`."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        return _OsFile(descriptor)

    def rename(self, path: Path, to: Path) -> None:
        """See `Disk`."""
        path.rename(to)

    def unlink(self, path: Path) -> None:
        """See `Disk`."""
        path.unlink()

    def lock(self, path: Path, note: str) -> File:
        """See `Disk`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            descriptor = os.open(path, flags, OWNER_ONLY)
            file = _OsFile(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = self.status(path)
                if there is not None and os.path.samestat(there, os.fstat(descriptor)):
                    with contextlib.suppress(OSError):  # a full disk must not hinder `drop`
                        file.truncate(0)
                        file.write(note.encode())
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # its directory was put aside or dropped in between


OS_DISK: Final = OsDisk()
