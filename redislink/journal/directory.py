"""The directory of a journal: whose it is, and which process uses it."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import stat
from pathlib import Path
from typing import Final

from redislink.errors import JournalError
from redislink.journal.disk import Disk, File

LOCK: Final = "lock"


def lock(path: Path, disk: Disk) -> File:
    """Lock a journal's directory.

    Raises:
        JournalError: another process has locked it.
        OSError: it cannot be locked.
    """
    try:
        return disk.lock(path / LOCK, f"process {os.getpid()} on {platform.node()}")
    except BlockingIOError:
        holder = ""
        with contextlib.suppress(OSError):
            file = disk.open(path / LOCK)
            holder = file.read(100, 0).decode(errors="replace")
            file.close()
        raise JournalError(
            f"journal {path}: {holder or 'another process'} uses it: end that process first, or "
            "give this one another directory"
        ) from None


def make_directories(path: Path, disk: Disk) -> None:
    """Make the journal's directory and those above it, and have their names on disk.

    Raises:
        JournalError: it is there, and not its owner's only.
        OSError: it cannot be made.
    """
    missing = []
    above = path.parent
    while disk.status(above) is None:
        missing.append(above)
        above = above.parent
    for directory in reversed(missing):
        disk.make_directory(directory)
        disk.sync_directory(directory.parent)
    status = disk.status(path)
    if status is None:
        disk.make_directory(path)
    else:
        check_directory(path, status)
    # Also if they were there: a run that was killed may have made them and synced nothing.
    disk.sync_directory(path.parent)
    with contextlib.suppress(PermissionError):  # not ours to read, so not made by us
        disk.sync_directory(path.parent.parent)


def unused(path: Path, disk: Disk) -> Path:
    """The path, or one with a number after it, that nothing has yet."""
    found, count = path, 1
    while disk.status(found) is not None:
        count += 1
        found = path.with_name(f"{path.name}-{count}")
    return found


def check_directory(path: Path, status: os.stat_result) -> None:
    """Refuse what is no directory of this user's own.

    Raises:
        JournalError: it says what to do.
    """
    if stat.S_ISLNK(status.st_mode):
        raise JournalError(f"journal {path}: is a symbolic link: name the directory itself")
    if not stat.S_ISDIR(status.st_mode):
        raise JournalError(f"journal {path}: is a file, not a directory: name another directory")
    if status.st_uid != os.geteuid():
        raise JournalError(
            f"journal {path}: belongs to another user: run this as its owner, or name another "
            "directory"
        )
    if status.st_mode & 0o077:
        raise JournalError(
            f"journal {path}: others on this machine can use the directory: run chmod 700 {path}"
        )


_REMEDIES: Final = {
    errno.ENOSPC: "free space there, then start again: the run goes on from what it holds",
    errno.EDQUOT: "raise the quota or free space, then start again: the run goes on from there",
    errno.EROFS: "name a directory that can be written",
    errno.EACCES: "run this as the owner of the directory, or name another one",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "name a directory, not a file",
}


def cannot(path: Path, what: str, error: OSError) -> JournalError:
    """The error for what the file system refused; ``what`` is such as "be written"."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk, then start again")
    reason = error.strerror or type(error).__name__
    failed = JournalError(f"journal {path}: cannot {what} ({reason}): {remedy}")
    failed.reason = reason
    return failed
