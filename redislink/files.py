"""How redislink opens files: it reads only regular files, and never writes into an existing one.

Rules:
- Reading never waits: anything but a regular file (FIFO, device, directory) is an `OSError` whose
  ``strerror`` says so. Links are followed, because Kubernetes mounts secrets as links.
- Writing makes a new file, with mode 0600 unless the caller allows more, and never writes through a
  symbolic link, a FIFO or a device. If a link has the name of a file that is to be replaced, the
  link is replaced; its target stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, TextIO

OWNER_ONLY: Final = 0o600
EVERYBODY_READS: Final = 0o644
MOST_READ: Final = 16 << 20
"""In bytes, far more than any file that redislink reads whole."""

_KINDS: Final = (
    (stat.S_ISDIR, "is a directory, not a file"),
    (stat.S_ISFIFO, "is a FIFO, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, without waiting for a writer of a FIFO.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _refuse_special(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | Path, most: int = MOST_READ) -> str:
    """Return the text of a regular file in UTF-8.

    Args:
        path: the file.
        most: the most bytes that it may have.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        return read_opened(file, path, most)


def read_opened(file: BinaryIO, path: str | Path, most: int = MOST_READ) -> str:
    """Read a file that `open_regular` opened; see `read_text`."""
    if os.fstat(file.fileno()).st_size > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
    return file.read().decode()


def open_new(path: str | Path, mode: int = OWNER_ONLY) -> TextIO:
    """Make a new file for UTF-8 text.

    Args:
        path: the file; nothing may have this name yet, not even a link.
        mode: mode of the new file, before the process's umask.

    Raises:
        FileExistsError: something has this name already.
        OSError: the file cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, mode), "w", encoding="utf-8")


def open_in_place_of(path: str | Path, mode: int = OWNER_ONLY) -> TextIO:
    """Make a new file for UTF-8 text, which replaces a file or link of that name at once.

    Use it for files that grow while others read them. A process that still writes to the old file
    goes on writing there.

    Raises:
        OSError: the file cannot be made, or a FIFO, device or directory has its name.
    """
    file, passing = _open_beside(path, mode)
    try:
        _take_place(passing, path)
    except BaseException:
        file.close()
        _remove(passing)
        raise
    return file


@contextlib.contextmanager
def replacing(
    path: str | Path, mode: int = OWNER_ONLY, *, durable: bool = False
) -> Iterator[TextIO]:
    """Make a new file for UTF-8 text, which takes its name when the ``with`` block ends.

    Readers see the old file or the complete new one. If the block raises, the old file stays.

    Args:
        path: the file.
        mode: its mode.
        durable: whether the new one is still there after a power cut, once the block has ended.

    Raises:
        OSError: the file cannot be written, or a FIFO, device or directory has its name.
    """
    file, passing = _open_beside(path, mode)
    try:
        with file:
            yield file
            if durable:
                file.flush()
                put_on_disk(file.fileno())
        _take_place(passing, path)
        if durable:
            sync_directory(Path(path).parent)
    except BaseException:
        _remove(passing)
        raise


def put_on_disk(descriptor: int, *, only_data: bool = False) -> None:
    """Return once what was written to a file survives a power cut.

    On macOS ``fsync`` leaves it in the disk's own cache; ``F_FULLFSYNC`` does not, but not every
    file system has it.

    Args:
        descriptor: the file, or a directory.
        only_data: whether its times may be lost, where that is faster.

    Raises:
        OSError: it cannot be synced.
    """
    fully = getattr(fcntl, "F_FULLFSYNC", None)
    if fully is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fully)
            return
    sync = getattr(os, "fdatasync", os.fsync) if only_data else os.fsync
    sync(descriptor)


def sync_directory(path: str | Path) -> None:
    """Put on disk which files a directory has.

    Raises:
        OSError: it cannot be synced.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        put_on_disk(descriptor)
    finally:
        os.close(descriptor)


def _open_beside(path: str | Path, mode: int) -> tuple[TextIO, Path]:
    """Make a file with a temporary name in the same directory, to be renamed."""
    _refuse_to_replace(path)
    passing = Path(path).parent / f".redislink-{secrets.token_hex(8)}"
    return open_new(passing, mode), passing


def _take_place(passing: Path, path: str | Path) -> None:
    _refuse_to_replace(path)
    passing.replace(path)


def _refuse_to_replace(path: str | Path) -> None:
    """Refuse to replace special files: root could replace /dev/null, or the link /dev/stdout."""
    with contextlib.suppress(FileNotFoundError):
        _refuse_special(Path(path).stat().st_mode, path)


def _refuse_special(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        text = next((text for is_kind, text in _KINDS if is_kind(mode)), "is not a regular file")
        raise OSError(errno.EINVAL, text, str(path))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
