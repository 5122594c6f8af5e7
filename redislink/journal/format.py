"""The format of a segment, version 1: docs/journal.md describes it.

Rules:
- A segment is written by one run of one process, in order. Its key is its own, from the party's
  identity and the segment's salt; the nonce of a record is its index in the segment. So no nonce
  is used twice, as long as nobody appends to a segment that another run began.
- Lengths are claims until the bytes are there.
"""

from __future__ import annotations

import enum
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.errors import JournalError
from redislink.identity import Identity
from redislink.journal.disk import Buffer

VERSION: Final = 1
SEAL_BYTES: Final = 16
"""How many bytes sealing adds to a body."""
PIECE_BYTES: Final = 4 << 20
"""The most bytes of a blob in one record."""
MOST_BODY: Final = 64 << 20
"""The most bytes of an entry's body: it is read whole, and again at each compaction."""
FRESH: Final = "or start all parties anew with --fresh, which keeps the old journals aside"
"""What to do about a journal that cannot be used, after any other remedy."""

_MAGIC: Final = b"redislink journal\n"
_HEADER: Final = struct.Struct(f">{len(_MAGIC)}sHQ32s16s")
"""Magic, version, number of the segment, salt, mark of the identity."""
HEADER_BYTES: Final = _HEADER.size
_RECORD: Final = struct.Struct(">BI")
"""Kind and length of what follows: the sealed body."""
RECORD_BYTES: Final = _RECORD.size
_nonce: Final = struct.Struct(">IQ").pack
_INFO: Final = b"redislink journal %d"


class Kind(enum.IntEnum):
    """Kinds of record."""

    FIRST = 1
    """Whose segment it is, and what it follows."""
    PIECE = 2
    """The next bytes of a blob."""
    ENTRY = 3
    """An entry: the pieces before it are its blobs."""
    GONE = 4
    """Entries and blobs that are no longer wanted."""


_KINDS: Final = {int(kind): kind for kind in Kind}


class NotOurs(Exception):
    """The bytes are not the header of a segment that this identity can open."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy

    def told(self, path: Path) -> JournalError:
        """The error for a file of this name."""
        return JournalError(f"journal {path}: {self.why}: {self.remedy}")


@dataclass(frozen=True)
class Header:
    """What a segment begins with, in clear."""

    number: int
    salt: bytes
    mark: bytes
    """Tells whether an identity is the one that sealed the segment."""

    @classmethod
    def make(cls, number: int, identity: Identity) -> Header:
        """A header with a new salt."""
        salt = secrets.token_bytes(32)
        return cls(number, salt, _derive(identity, salt, number)[1])

    def encode(self) -> bytes:
        """The bytes of the header."""
        return _HEADER.pack(_MAGIC, VERSION, self.number, self.salt, self.mark)

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read what `encode` made.

        Raises:
            NotOurs: these are no such bytes, or those of another version.
        """
        if len(data) < HEADER_BYTES or not data.startswith(_MAGIC):
            raise NotOurs(
                "is not the file of a journal, or is damaged",
                f"check the disk, {FRESH}",
            )
        _, version, number, salt, mark = _HEADER.unpack(data[:HEADER_BYTES])
        if version != VERSION:
            raise NotOurs(
                f"has format version {version}, and this redislink reads version {VERSION}",
                f"run the redislink that wrote it, {FRESH}",
            )
        return cls(number, salt, mark)

    def cipher(self, identity: Identity) -> Cipher:
        """What seals and opens the records of the segment.

        Raises:
            NotOurs: another identity sealed them.
        """
        key, mark = _derive(identity, self.salt, self.number)
        if mark != self.mark:
            raise NotOurs(
                "was sealed with another identity than this party's",
                f"use the identity file that the party had when it began, {FRESH}",
            )
        return Cipher(key)


def _derive(identity: Identity, salt: bytes, number: int) -> tuple[bytes, bytes]:
    """The key of a segment, and the mark by which the identity is known again."""
    info = _INFO % VERSION + b" segment %d" % number
    both = HKDF(SHA256(), 48, salt=salt, info=info).derive(identity.private_key)
    return both[:32], both[32:]


class Cipher:
    """Seals and opens the records of one segment."""

    def __init__(self, key: bytes) -> None:
        self._key = AESGCM(key)

    def seal(self, index: int, kind: Kind, body: Buffer) -> bytearray:
        """Return a whole record: its header and the sealed body."""
        length = len(body) + SEAL_BYTES
        record = bytearray(RECORD_BYTES + length)
        _RECORD.pack_into(record, 0, kind, length)
        header = bytes(record[:RECORD_BYTES])
        self._key.encrypt_into(_nonce(0, index), body, header, memoryview(record)[RECORD_BYTES:])
        return record

    def open(self, index: int, kind: Kind, sealed: Buffer) -> bytes | None:
        """Return the body of a record; None if it does not open."""
        header = _RECORD.pack(kind, len(sealed))
        try:
            return self._key.decrypt(_nonce(0, index), sealed, header)
        except InvalidTag:
            return None


def decode_record(header: bytes) -> tuple[Kind, int] | None:
    """Kind and length that a record claims; None if it claims what cannot be."""
    if len(header) < RECORD_BYTES:
        return None
    number, length = _RECORD.unpack(header)
    kind = _KINDS.get(number)
    return None if kind is None or length < SEAL_BYTES else (kind, length)
