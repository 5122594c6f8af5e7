"""Files that hold a secret. Only their owner can read them, from the first byte on.

No message quotes the contents of a file.
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
    """The text of a file that nobody else can read; "" if the file does not hold text.

    Args:
        path: the file to read.
        what: what the file is, for messages.
        remedy: what to do if the file is missing, for messages.
        group_may_read: accept a file that its group can read, such as a secret that Kubernetes
            mounts.

    Raises:
        ConfigError: the file cannot be read, is not a regular file, or can be read by others.
    """
    try:
        with open_regular(path) as file:
            others = _MORE_THAN_GROUP_READS if group_may_read else _OTHERS
            if os.fstat(file.fileno()).st_mode & others:
                raise ConfigError(
                    f"{what} {path}: others on this machine can read it: run chmod 600 {path}, "
                    "and make a new one if they may have done so"
                )
            return read_opened(file, path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}: {remedy}") from None
    except UnicodeDecodeError:
        return ""


def write_private(path: str | Path, text: str, what: str) -> None:
    """Write a new file with mode 0600.

    Args:
        path: the file to make.
        text: its contents.
        what: what the file is, for messages.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    try:
        with open_new(path) as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{what} {path}: exists already and would be lost: move it away first"
        ) from None
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be written ({error.strerror})") from None


def update_file(path: str | Path, change: Callable[[str], str], what: str) -> None:
    """Replace the text of an existing file; its owner, group and mode stay.

    Whoever reads the file meanwhile, or after a crash, finds all of the old text or all of the new.

    Args:
        path: the file to change.
        change: takes the old text and returns the new one.
        what: what the file is, for messages.

    Raises:
        ConfigError: the file is missing, does not hold text, or this user cannot write it.
    """
    target = os.path.realpath(path)  # a symbolic link keeps its target
    try:
        with open_regular(target) as file:
            before = os.fstat(file.fileno())
            text = read_opened(file, target)
        with replacing(target, durable=True) as new:
            os.fchown(new.fileno(), before.st_uid, before.st_gid)
            os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
            new.write(change(text))
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: there is no such file: check the path") from None
    except OSError as error:
        raise ConfigError(
            f"{what} {path}: cannot be changed ({error.strerror or error}): check the path, and "
            "run this as its owner"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path}: is not text: check the path") from None
