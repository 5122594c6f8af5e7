"""Elements in fragments: for a broker that takes none as large as one that is sealed already.

A message is cut before it is sealed, and a frame is fixed by its first push: sealing other bytes
under its number would give the key away. So a frame that turns out to be too large for the broker
travels as it is, cut into several elements of its list. What is put together again is decoded like
any element: until then nothing of it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from redislink.errors import FrameError
from redislink.protocol.frame import (
    BytesLike,
    Fragment,
    decode_untrusted,
    encode_header,
)

_OVERHEAD: Final = 128
"""What a fragment counts besides its bytes."""


def split_element(
    element: tuple[bytes, BytesLike], number: int, most: int
) -> Iterator[tuple[bytes, bytes]]:
    """An element, given in two parts, as several of at most ``most`` bytes and a header each.

    Args:
        number: of the frame in it, unique among those from one party to another.
    """
    whole = b"".join(element)
    parts = -(-len(whole) // most)
    for part in range(parts):
        piece = whole[part * most : (part + 1) * most]
        yield encode_header(Fragment(number, part, parts)), piece


@dataclass(slots=True)
class _Partial:
    parts: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    bytes: int = 0


class Fragments:
    """Fragments that have come from one peer, of elements that are not whole yet. Bounded."""

    def __init__(self, most_bytes: int) -> None:
        """Args: bytes of what is kept; the oldest is forgotten first, and counts as lost."""
        self._most_bytes = most_bytes
        self._partial: dict[tuple[bytes, int], _Partial] = {}
        self.bytes = 0

    def add_untrusted(self, name: bytes, element: BytesLike) -> bytes | None:
        """Take in a fragment that was popped off the list ``name``.

        Returns:
            The element that it was the last of to come; else None.

        Raises:
            FrameError: it is no fragment.
        """
        fragment, body = decode_untrusted(element)
        if not isinstance(fragment, Fragment):
            raise FrameError(f"a {fragment.kind.name} frame where a fragment belongs")
        key = name, fragment.number
        partial = self._partial.get(key)
        if partial is not None and partial.parts != fragment.parts:  # the newest counts
            self._forget(key)
            partial = None
        if partial is None:
            partial = self._partial[key] = _Partial(fragment.parts)
        size = len(body) + _OVERHEAD
        if fragment.part not in partial.pieces:
            partial.bytes += size
            self.bytes += size
        partial.pieces[fragment.part] = bytes(body)
        if len(partial.pieces) < partial.parts:
            while self.bytes > self._most_bytes:
                self._forget(next(iter(self._partial)))
            return None
        self._forget(key)
        return b"".join(partial.pieces[part] for part in range(partial.parts))

    def _forget(self, key: tuple[bytes, int]) -> None:
        self.bytes -= self._partial.pop(key).bytes
