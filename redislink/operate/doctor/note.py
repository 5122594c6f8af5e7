"""The note that a party's doctor leaves for each peer's, on a list of its own.

A note is a hint and no proof: whoever has the broker could write it. It says which cluster file,
security and identity the party has, so that two doctors find a difference without a session.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from redislink.errors import FrameError

COPIES: Final = 8
"""A reader takes one away, and may look several times."""
TTL_MS: Final = 600_000
_MOST_BYTES: Final = 1024
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Note:
    """What a party's doctor says of that party.

    Attributes:
        digest: of its cluster file, 64 hex digits.
        security: ``sealed`` or ``none``.
        fingerprint: of its identity; empty without one.
        at: seconds since 1970, by its clock.
    """

    digest: str
    security: str
    fingerprint: str
    at: float

    def encode(self) -> bytes:
        """As it lies on the broker."""
        return json.dumps(asdict(self)).encode()


def decode_note_untrusted(element: bytes) -> Note:
    """The inverse of `Note.encode`.

    Raises:
        FrameError: it is none.
    """
    try:
        if len(element) > _MOST_BYTES:
            raise ValueError("too long")
        content: Any = json.loads(element)
        note = Note(**content)
        right = (
            bool(_DIGEST.fullmatch(note.digest))
            and note.security in ("sealed", "none")
            and (note.fingerprint == "" or bool(_FINGERPRINT.fullmatch(note.fingerprint)))
            and isinstance(note.at, int | float)
            and abs(note.at) < 1e12
        )
    except (ValueError, TypeError, RecursionError):
        right = False
    if not right:
        raise FrameError("an element of a doctor's list is no note of a doctor's")
    return note
