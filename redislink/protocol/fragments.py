"""Fragments: elements around an element that is already sealed.

They split one that is too large for the broker, or tell that one was pushed before.

A message is cut before it is sealed, and its first push fixes a frame: sealing other bytes under
the same number would give the key away. So a frame that turns out to be too large for the broker
travels unchanged, cut into several elements on its list. The receiver joins the pieces and decodes
the result like any element; until then it trusts nothing in them.

A frame that is pushed again is the same, byte for byte. So that the receiver knows it from the
first, which may only be late, it travels as a single fragment.
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
"""Bytes added to each fragment's size, so that many small ones use up the limit too."""


def split_element(
    element: tuple[bytes, BytesLike], number: int, most: int
) -> Iterator[tuple[bytes, bytes]]:
    """Split an element into pieces, and yield (header, piece) for each.

    Args:
        element: the element, in two parts.
        number: the number of its frame, unique among the frames from one party to another.
        most: the largest size of a piece, in bytes.
    """
    whole = b"".join(element)
    parts = -(-len(whole) // most)
    for part in range(parts):
        piece = whole[part * most : (part + 1) * most]
        yield encode_header(Fragment(number, part, parts)), piece


def pushed_again(element: tuple[bytes, BytesLike], number: int) -> tuple[bytes, bytes]:
    """Return an element that tells that this one was pushed before.

    Args:
        element: the element, in two parts.
        number: the number of its frame.
    """
    return encode_header(Fragment(number, 0, 1)), b"".join(element)


@dataclass(slots=True)
class _Partial:
    parts: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    bytes: int = 0


class Fragments:
    """The fragments from one peer that wait for the rest of their element, up to a limit."""

    def __init__(self, most_bytes: int) -> None:
        """Args:
        most_bytes: how much to keep; beyond it, the oldest element is forgotten and counts as lost.
        """
        self._most_bytes = most_bytes
        self._partial: dict[tuple[bytes, int], _Partial] = {}
        self.bytes = 0

    def add_untrusted(self, name: bytes, element: BytesLike) -> bytes | None:
        """Add a fragment that was popped from the list ``name``.

        Returns:
            The whole element if this was its last missing fragment; otherwise None.

        Raises:
            FrameError: the bytes are not a fragment.
        """
        fragment, body = decode_untrusted(element)
        if not isinstance(fragment, Fragment):
            raise FrameError(f"a {fragment.kind.name} frame where a fragment belongs")
        key = name, fragment.number
        partial = self._partial.get(key)
        if partial is not None and partial.parts != fragment.parts:  # the newer one counts
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
