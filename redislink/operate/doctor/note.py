"""The note that a party's doctor leaves for each peer's doctor, on a list of its own.

A note is a hint, not a proof: anybody who controls the broker could write it. It names the party's
cluster file, security mode and identity. So two doctors can find a difference without a session.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from redislink.errors import FrameError

COPIES: Final = 8
"""Each look takes one copy away, and a peer may look several times."""
TTL_MS: Final = 600_000
_MOST_BYTES: Final = 1024
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Note:
    """What a party's doctor tells about its party.

    Attributes:
        digest: the digest of its cluster file, 64 hex digits.
        security: ``sealed`` or ``none``.
        fingerprint: the fingerprint of its identity; empty if it has none.
        at: when the note was written, in seconds since 1970 by the party's clock.
    """

    digest: str
    security: str
    fingerprint: str
    at: float

    def encode(self) -> bytes:
        """Return the bytes to push."""
        return json.dumps(asdict(self)).encode()


def decode_note_untrusted(element: bytes) -> Note:
    """Decode the bytes of `Note.encode`.

    Raises:
        FrameError: these bytes are not a note.
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
