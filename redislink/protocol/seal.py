"""How a frame is stored on the broker: in the clear, or sealed so that only the peer can open it.

Sealing is AES-256-GCM (``cryptography``). The handshake yields a key for each direction, one for
DATA and one for control frames:

==========  =======================  ==========================================
frame       nonce                    authenticated besides the ciphertext
==========  =======================  ==========================================
DATA        frame number             list name and header
control     number of the SEALED     list name and header
==========  =======================  ==========================================

Rules:
- No nonce is used for two different contents: the first push fixes a DATA frame, so a resend is
  the same ciphertext; and every control frame has a new number.
- The list's name is authenticated: a frame moved to another tag, peer or run does not open. Its
  edition is not (`AnyEdition`): a frame is pushed again in the next edition, and a second tag for
  the same nonce would give the key away.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redislink import native
from redislink.errors import FrameError, SealError
from redislink.protocol import list_names
from redislink.protocol.frame import (
    DATA_HEADER_BYTES,
    BytesLike,
    Data,
    Encoding,
    Frame,
    Sealed,
    Whole,
    decode_header_untrusted,
    decode_untrusted,
    decode_whole_header_untrusted,
    encode,
    encode_header,
    encode_whole_header,
)

_LEAST_IN_SCRATCH: Final = 64 << 10
_MOST_IN_SCRATCH: Final = 4 << 20
"""Bodies from the least to the most of these sizes are sealed into memory that is reused."""
_SMALL: Final = 16 << 10
"""Bytes below which a copy costs less than a view."""
SEAL_BYTES: Final = 16
"""How many bytes sealing adds to a body."""


Lend = Callable[[Data, int], memoryview | None]
"""Given a chunk's frame, of which nothing is known to be true, and the size of its body, returns
where to write the body; None if there is no place for it."""


class Codec(Protocol):
    """Turns frames into list elements and back, for one peer."""

    def encode_parts(
        self, name: bytes, frame: Frame, body: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        """Return the element to push onto list ``name``, in two parts: a large body is not copied.

        The second part is valid until this thread calls this method again.
        """
        ...

    def encode_whole(
        self, name: bytes, seq: int, encoding: Encoding, acked: int, body: bytes
    ) -> tuple[bytes, bytes | memoryview]:
        """Return `encode_parts` of ``Data(seq, encoding=encoding, acked=acked)``: the short way."""
        ...

    def forget_keys(self, instead: Any) -> None:
        """Never seal or open again: from now on, ``instead`` stands for every key."""
        ...

    def encode(self, name: bytes, frame: Frame, body: bytes | memoryview) -> bytes:
        """Return the element in one piece."""
        return b"".join(self.encode_parts(name, frame, body))

    def decode_untrusted(
        self, name: bytes, element: BytesLike, lend: Lend | None = None
    ) -> tuple[Frame, bytes | memoryview]:
        """Return the frame and body of an element popped from list ``name``.

        The body of a chunk is the place that ``lend`` returns for it, if it returns one. If this
        raises, anything may be written there.

        Raises:
            FrameError: it is not a frame from the peer.
        """
        ...

    def decode_whole_untrusted(self, name: bytes, element: BytesLike) -> Whole | None:
        """Return the arguments from which `encode_whole` made this element.

        Returns:
            (seq, encoding, acked, body); None if `encode_whole` did not make this element.

        Raises:
            FrameError: see `decode_untrusted`.
        """
        ...


class PlainCodec(Codec):
    """Elements in the clear: the broker can read and change everything."""

    def forget_keys(self, instead: Any) -> None:
        """Do nothing: there are no keys."""

    def encode_parts(
        self, name: bytes, frame: Frame, body: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        return encode_header(frame), body

    def encode_whole(
        self, name: bytes, seq: int, encoding: Encoding, acked: int, body: bytes
    ) -> tuple[bytes, bytes | memoryview]:
        return encode_whole_header(seq, encoding, acked), body

    def decode_untrusted(
        self, name: bytes, element: BytesLike, lend: Lend | None = None
    ) -> tuple[Frame, bytes | memoryview]:
        frame, body = decode_untrusted(element)
        place = _place(frame, len(body), lend)
        if place is None:
            return frame, bytes(body)
        place[:] = body
        return frame, place

    def decode_whole_untrusted(self, name: bytes, element: BytesLike) -> Whole | None:
        whole = decode_whole_header_untrusted(element)
        return whole and (*whole, bytes(memoryview(element)[DATA_HEADER_BYTES:]))


class AnyEdition(Codec):
    """A codec for lists of any edition: it seals as if all were of the first.

    Most sessions never leave the first edition, and do without this.
    """

    def __init__(self, codec: Codec, prefix_bytes: int) -> None:
        """Args:
        codec: does the work.
        prefix_bytes: the length of what stands before the tag in edition 0, for either direction.
        """
        self._codec = codec
        self._prefix_bytes = prefix_bytes

    def forget_keys(self, instead: Any) -> None:
        self._codec.forget_keys(instead)

    def encode_parts(
        self, name: bytes, frame: Frame, body: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        return self._codec.encode_parts(self._first(name), frame, body)

    def encode_whole(
        self, name: bytes, seq: int, encoding: Encoding, acked: int, body: bytes
    ) -> tuple[bytes, bytes | memoryview]:
        return self._codec.encode_whole(self._first(name), seq, encoding, acked, body)

    def decode_untrusted(
        self, name: bytes, element: BytesLike, lend: Lend | None = None
    ) -> tuple[Frame, bytes | memoryview]:
        return self._codec.decode_untrusted(self._first(name), element, lend)

    def decode_whole_untrusted(self, name: bytes, element: BytesLike) -> Whole | None:
        return self._codec.decode_whole_untrusted(self._first(name), element)

    def _first(self, name: bytes) -> bytes:
        return list_names.in_first_edition(name, self._prefix_bytes)


@dataclass(frozen=True, slots=True, repr=False)
class SealKeys:
    """One side's four AES-256 keys; the peer has the same, with out and in exchanged."""

    data_out: bytes
    data_in: bytes
    control_out: bytes
    control_in: bytes


class DataKey(native.Cipher):
    """A key for the DATA frames of one direction.

    Attributes:
        aes: the key.
    """

    __slots__ = ("aes",)

    def __init__(self, key: bytes) -> None:
        super().__init__(key, encode_whole_header(1, Encoding.RAW, 0), tuple(Encoding))
        self.aes = AESGCM(key)


@native.leaf
def seal_whole(
    key: DataKey, name: bytes, seq: int, encoding: Encoding, acked: int, body: bytes
) -> tuple[bytes, bytes]:
    """See `Codec.encode_whole`."""
    header = encode_whole_header(seq, encoding, acked)
    return header, key.aes.encrypt(_nonce(0, seq), body, name + header)


@native.leaf
def open_whole(key: DataKey, name: bytes, element: BytesLike) -> Whole | None:
    """See `Codec.decode_whole_untrusted`."""
    whole = decode_whole_header_untrusted(element)
    if whole is None:
        return None
    seq, encoding, acked = whole
    header = element[:DATA_HEADER_BYTES]
    small = len(element) < _SMALL
    body = element[DATA_HEADER_BYTES:] if small else memoryview(element)[DATA_HEADER_BYTES:]
    try:  # what `_open` does, without a call for every message
        opened = key.aes.decrypt(_nonce(0, seq), body, name + header)
    except InvalidTag:
        raise _does_not_open() from None
    return seq, encoding, acked, opened


class SealedCodec(Codec):
    """Sealed elements: only the peer can open them, and only the peer can have made them."""

    def __init__(self, keys: SealKeys) -> None:
        self._data_out = DataKey(keys.data_out)
        self._data_in = DataKey(keys.data_in)
        self._control_out = AESGCM(keys.control_out)
        self._control_in = AESGCM(keys.control_in)
        self._control_numbers = itertools.count(1)
        self._control_window = ReplayWindow()
        # Control frames are opened by the control thread, and by those that watch several brokers.
        self._admitting = threading.Lock()
        self._thread = threading.local()

    def forget_keys(self, instead: Any) -> None:
        self._data_out = self._data_in = self._control_out = self._control_in = instead

    def encode_parts(
        self, name: bytes, frame: Frame, body: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        if type(frame) is Data:
            return self._seal_data(name, encode_header(frame), frame.seq, body)
        number = next(self._control_numbers)
        header = encode_header(Sealed(number))
        sealed = self._control_out.encrypt(_nonce(0, number), encode(frame, body), name + header)
        return header, sealed

    def encode_whole(
        self, name: bytes, seq: int, encoding: Encoding, acked: int, body: bytes
    ) -> tuple[bytes, bytes | memoryview]:
        if len(body) < _LEAST_IN_SCRATCH:
            return seal_whole(self._data_out, name, seq, encoding, acked, body)
        return self._seal_data(name, encode_whole_header(seq, encoding, acked), seq, body)

    def _seal_data(
        self, name: bytes, header: bytes, seq: int, body: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        nonce = _nonce(0, seq)
        if _LEAST_IN_SCRATCH <= len(body) <= _MOST_IN_SCRATCH:
            scratch = self._scratch_of(len(body) + SEAL_BYTES)
            self._data_out.aes.encrypt_into(nonce, body, name + header, scratch)
            return header, scratch
        return header, self._data_out.aes.encrypt(nonce, body, name + header)

    def _scratch_of(self, size: int) -> memoryview:
        """Return memory that this thread reuses: new pages for each body cost more than sealing."""
        scratch = getattr(self._thread, "scratch", b"")
        if len(scratch) < size:
            scratch = self._thread.scratch = bytearray(size)
        return memoryview(scratch)[:size]

    def decode_untrusted(
        self, name: bytes, element: BytesLike, lend: Lend | None = None
    ) -> tuple[Frame, bytes | memoryview]:
        """Implement `Codec.decode_untrusted`.

        Raises:
            SealError: nobody with the key sent this on this list in this run.
            StaleError: a control frame that arrived before, or is far older than the newest.
            IllegalFrameError: the peer itself sealed something that is not a frame.
            FrameError: this is not a frame at all.
        """
        frame, body_at = decode_header_untrusted(element)
        header = element[:body_at]
        body = element[body_at:] if len(element) < _SMALL else memoryview(element)[body_at:]
        if type(frame) is Data:
            place = _place(frame, len(body) - SEAL_BYTES, lend)
            if place is None:
                return frame, _open(self._data_in.aes, frame.seq, body, name + header)
            try:
                self._data_in.aes.decrypt_into(_nonce(0, frame.seq), body, name + header, place)
            except InvalidTag:
                raise _does_not_open() from None
            return frame, place
        if not isinstance(frame, Sealed):
            raise SealError(f"a {frame.kind.name} frame that is not sealed")
        inner = _open(self._control_in, frame.number, body, name + header)
        with self._admitting:
            is_new = self._control_window.admit(frame.number)
        if not is_new:
            raise StaleError("a control frame that arrived before")
        try:
            frame, body = decode_untrusted(inner)
        except FrameError as error:
            raise IllegalFrameError(str(error)) from None
        return frame, bytes(body)

    def decode_whole_untrusted(self, name: bytes, element: BytesLike) -> Whole | None:
        """Implement `Codec.decode_whole_untrusted`.

        Raises:
            SealError: see `decode_untrusted`.
        """
        return open_whole(self._data_in, name, element)


class IllegalFrameError(FrameError):
    """What opened is not a frame: the peer itself sent it, and nobody else."""


class StaleError(FrameError):
    """A genuine control frame that was duplicated or held back: ignore it."""


class ReplayWindow:
    """Admits each number once, and no number far below the highest.

    This is the scheme of RFC 4303 (3.4.3). It allows for frames of several threads that overtake
    each other.
    """

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._highest = 0
        self._seen = 0

    def admit(self, number: int) -> bool:
        """Return True if this number is to be accepted: the first time that it arrives."""
        behind = self._highest - number
        if behind < 0:
            # The peer chooses the step, so limit it: a huge shift could take all memory.
            step = min(-behind, self._size)
            self._seen = ((self._seen << step) | 1) & ((1 << self._size) - 1)
            self._highest = number
            return True
        if behind >= self._size or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


_nonce: Final = struct.Struct(">IQ").pack
"""12 bytes: (0, number)."""


def _open(key: AESGCM, number: int, sealed: BytesLike, authenticated: bytes) -> bytes:
    try:
        return key.decrypt(_nonce(0, number), sealed, authenticated)
    except InvalidTag:
        raise _does_not_open() from None


def _place(frame: Frame, size: int, lend: Lend | None) -> memoryview | None:
    return lend(frame, size) if lend is not None and type(frame) is Data else None


def _does_not_open() -> SealError:
    return SealError("a frame that does not open: it was changed, moved or made up")
