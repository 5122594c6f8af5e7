"""How lines follow each other, who signed them, and where a record ends.

The head pointer of a record is a small file next to it, ``<record>.head``, which says up to where
the record goes. It has two slots that are written in turn, so a crash while one is written leaves
the other. It is written after the lines that it names are on disk; so a crash leaves it behind
them, and never ahead. A record that is shorter has lost its tail.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redislink.audit.records import FileSaid, Record, parse_line_untrusted
from redislink.errors import AuditError
from redislink.files import open_regular, put_on_disk
from redislink.identity.signing import SigningKey, is_signed

SLOT_BYTES: Final = 512
_PURPOSE: Final = b"redislink audit 1 head\n"
_NUMBERS: Final = ("n", "at", "size")


@dataclass(frozen=True, slots=True)
class Head:
    """Up to where a record goes.

    Attributes:
        n: the number of its last line.
        at: where that line begins in the file, in bytes.
        size: where it ends, with the end of the line.
        digest: its SHA-256, in hex.
    """

    n: int
    at: int
    size: int
    digest: str

    def encode(self, key: SigningKey | None) -> bytes:
        """A slot of `SLOT_BYTES`."""
        told = self._told()
        signed = {} if key is None else {"sig": base64.b64encode(key.sign(_signed(told))).decode()}
        slot = json.dumps(told | signed, separators=(",", ":")).encode()
        return slot.ljust(SLOT_BYTES - 1) + b"\n"

    def _told(self) -> dict[str, int | str]:
        return {"n": self.n, "at": self.at, "size": self.size, "digest": self.digest}


def _signed(told: dict[str, int | str]) -> bytes:
    return _PURPOSE + json.dumps(told, separators=(",", ":")).encode()


def head_path(path: Path) -> Path:
    """The path of a record's head pointer."""
    return path.with_name(f"{path.name}.head")


def read_head(path: Path, key: bytes | None) -> Head | None:
    """A record's head pointer; None if there is none.

    Args:
        path: the record.
        key: the public half of the key that signs it, 32 bytes; None if nothing does.

    Raises:
        AuditError: it cannot be read, or neither slot is as it was written.
    """
    place = head_path(path)
    try:
        with open_regular(place) as file:
            content = file.read(2 * SLOT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"head pointer {place}: cannot be read ({error.strerror})") from None
    if len(content) < SLOT_BYTES:  # it was made, and nothing written yet
        return None
    slots = (content[:SLOT_BYTES], content[SLOT_BYTES:])
    found = [head for slot in slots if (head := _parse_slot_untrusted(slot, key)) is not None]
    if not found:
        raise AuditError(f"head pointer {place}: was changed after it was written")
    return max(found, key=lambda head: head.n)


def _parse_slot_untrusted(slot: bytes, key: bytes | None) -> Head | None:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        told = json.loads(slot.decode("ascii"))
        n, at, size = numbers = [told[name] for name in _NUMBERS]
        if all(type(number) is int and number >= 0 for number in numbers):
            head = Head(n, at, size, str(told["digest"]))
            if key is None:
                return head if "sig" not in told else None
            if is_signed(_signed(head._told()), base64.b64decode(told["sig"]), key):
                return head
    return None


class HeadFile:
    """The head pointer of a record that is being written."""

    def __init__(self, path: Path, key: SigningKey | None) -> None:
        """Open it, or make it.

        Args:
            path: the record.
            key: signs it; None if nothing does.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(head_path(path), flags, 0o600)
        self._key = key
        self._slot = 0

    def write(self, head: Head) -> None:
        """Let it name another line. A crash may undo that."""
        os.pwrite(self._descriptor, head.encode(self._key), self._slot * SLOT_BYTES)
        self._slot = 1 - self._slot

    def sync(self) -> None:
        """Return once it is on disk."""
        put_on_disk(self._descriptor, only_data=True)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def first_of(line: bytes) -> tuple[Record, FileSaid]:
    """The first line of a record.

    Raises:
        AuditError: it is none.
    """
    record = parse_line_untrusted(line)
    if not isinstance(record.said, FileSaid) or record.n != 0 or record.prev:
        raise AuditError("the beginning is missing")
    return record, record.said


def is_by(record: Record, key: bytes | None) -> bool:
    """Whether a line was written with this key; with None, whether it has no signature."""
    if key is None or record.sig is None:
        return key is None and record.sig is None
    return is_signed(record.signed, record.sig, key)


def follows(record: Record, before: Record) -> bool:
    """Whether a line was written right after another."""
    return record.n == before.n + 1 and record.prev == before.digest
