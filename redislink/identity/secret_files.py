"""Files that hold a secret: only their owner can read them, from their first byte on.

No message quotes what a file holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from redislink.errors import ConfigError
from redislink.files import open_new, open_regular, read_opened, replacing

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MOST_BYTES: Final = 64 << 10


_MORE_THAN_GROUP_READS: Final = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


def read_private(path: str | Path, what: str, remedy: str, *, group_may_read: bool = False) -> str:
    """The text of a file that nobody else can read; empty if it is not text at all.

    Args:
        path: of the file.
        what: what it is, for messages.
        remedy: what to do if it is not there, for messages.
        group_may_read: so that a secret that Kubernetes mounts for a group will do.

    Raises:
        ConfigError: it cannot be read, is no regular file, or others may read it too.
    """
    try:
        with open_regular(path) as file:
            others = _MORE_THAN_GROUP_READS if group_may_read else _OTHERS
            if os.fstat(file.fileno()).st_mode & others:
                raise ConfigError(
                    f"{what} {path}: others on this machine may read it: chmod 600 {path}, "
                    "and make a new one if they might have"
                )
            return read_opened(file, path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}: {remedy}") from None
    except UnicodeDecodeError:
        return ""


def write_private(path: str | Path, text: str, what: str) -> None:
    """Write a new file with mode 0600, never over another.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    try:
        with open_new(path) as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{what} {path}: is there already, and would be lost: move it away first"
        ) from None
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be written ({error.strerror})") from None


def update_file(path: str | Path, change: Callable[[str], str], what: str) -> None:
    """Put another text into a file that is there; owner, group and mode stay.

    Whoever reads it meanwhile, or after a crash, finds the old text or the new one, whole.

    Args:
        path: of the file.
        change: gives the new text for the old one.
        what: what it is, for messages.

    Raises:
        ConfigError: it is not there, is no text, or cannot be written by this user.
    """
    target = os.path.realpath(path)  # a link goes on leading there
    try:
        with open_regular(target) as file:
            before = os.fstat(file.fileno())
            text = read_opened(file, target)
        with replacing(target) as new:
            os.fchown(new.fileno(), before.st_uid, before.st_gid)
            os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
            new.write(change(text))
            new.flush()
            os.fsync(new.fileno())
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: is not there: check the path") from None
    except OSError as error:
        raise ConfigError(
            f"{what} {path}: cannot be changed ({error.strerror or error}): check the path, and "
            "run this as its owner"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path}: is not text: check the path") from None
