"""Letters: what drivers and agents push onto lists of the broker, sealed one way.

An element is a header, a message of Noise K (`redislink.protocol.noise_k`) whose payload is a fresh
key, and a body, which that key seals::

    bytes   content
    ------  --------------------------------------------------------------
    1       the format's version, 1
    2       size of the Noise message, big endian
    …       the Noise message: 32 bytes of key
    …       AES-256-GCM of the body, a value of `redislink.values`, and of all bytes before it

Rules:
- The prologue names the cluster file's digest, the session, source, destination and kind of list:
  a letter opens at one receiver, on one list, in one cluster.
- A letter may have been replayed, doubled, delayed. Nothing in this module says whether it is new.
- Time and randomness come from outside. `Sealer.open_untrusted` raises `FrameError` alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redislink.errors import FrameError, SealError, UsageError, ValueDecodeError
from redislink.protocol import noise_k
from redislink.protocol.list_names import LETTER_TAGS
from redislink.protocol.noise_state import NoiseConfig
from redislink.values import decode_value_untrusted, encode_value

MOST_BODY: Final = 4 << 20
"""Bytes of a letter's body."""
MOST_LETTER: Final = MOST_BODY + 1024
"""Bytes of a whole element."""
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">BH")
_KEY_BYTES: Final = 32
_NONCE: Final = bytes(12)
"""Each key seals one body."""


class Sealer:
    """Seals letters of one party or driver, and opens those to it."""

    def __init__(
        self,
        me: str,
        *,
        session: str,
        digest: bytes,
        private_key: bytes,
        public_keys: Mapping[str, bytes],
        random_bytes: Callable[[int], bytes],
        psks: Mapping[str, bytes] | None = None,
    ) -> None:
        """Args:
        me: the name of this party or driver.
        session: the cluster's session.
        digest: of the cluster file (`ClusterSpec.digest`).
        private_key: 32 bytes.
        public_keys: of all parties and drivers (`ClusterSpec.keys_for_jobs`).
        random_bytes: returns that many random bytes; `secrets.token_bytes`.
        psks: pre-shared keys of 32 bytes, by the other's name.
        """
        self._me = me
        self._session = session
        self._digest = digest
        self._private_key = private_key
        self._public_keys = public_keys
        self._random_bytes = random_bytes
        self._psks = psks or {}

    def seal(self, dst: str, tag: str, body: Any) -> bytes:
        """Return the element with a letter to ``dst``.

        Args:
            dst: the name of a party or driver.
            tag: the kind of list that it is pushed onto, one of `LETTER_TAGS`.
            body: a value of `redislink.values`.

        Raises:
            UsageError: the body has more than `MOST_BODY` bytes.
        """
        encoded = encode_value(body)
        if len(encoded) > MOST_BODY:
            raise UsageError(f"a letter of {len(encoded)} bytes: {MOST_BODY} is the most")
        key = self._random_bytes(_KEY_BYTES)
        config = self._config(dst, self._prologue(self._me, dst, tag))
        first = noise_k.seal(config, self._random_bytes(_KEY_BYTES), key)
        head = _HEADER.pack(_VERSION, len(first)) + first
        return head + AESGCM(key).encrypt(_NONCE, encoded, head)

    def open_untrusted(self, src: str, tag: str, element: bytes) -> Any:
        """Return the body of a letter that was popped from the list of ``src`` and ``tag``.

        Raises:
            FrameError: ``src`` did not make it for this receiver and list, or its format is of
                another version.
        """
        if not _HEADER.size < len(element) <= MOST_LETTER:
            raise SealError("a letter of an impossible size")
        version, size = _HEADER.unpack_from(element)
        if version != _VERSION:
            raise FrameError(
                f"a letter in format {version}, here it is {_VERSION}: run the same version of "
                "redislink everywhere"
            )
        body_at = _HEADER.size + size
        config = self._config(src, self._prologue(src, self._me, tag))
        key = noise_k.open_untrusted(config, element[_HEADER.size : body_at])
        if len(key) != _KEY_BYTES:
            raise FrameError("a letter whose key has an impossible size")
        try:
            encoded = AESGCM(key).decrypt(_NONCE, element[body_at:], element[:body_at])
        except (InvalidTag, ValueError):
            raise SealError("a letter whose body does not open: it was changed") from None
        try:
            return decode_value_untrusted(encoded)
        except ValueDecodeError as error:
            raise FrameError(f"a letter that cannot be decoded: {error}") from None

    def _config(self, peer: str, prologue: bytes) -> NoiseConfig:
        try:
            public_key = self._public_keys[peer]
        except KeyError:
            raise SealError(f"a letter of {peer!r:.80}, who is not in the cluster file") from None
        return NoiseConfig(self._private_key, public_key, prologue, self._psks.get(peer))

    def _prologue(self, src: str, dst: str, tag: str) -> bytes:
        if tag not in LETTER_TAGS:
            raise UsageError(f"a letter on a list {tag!r:.80}: use one of {LETTER_TAGS}")
        packed: bytes = msgpack.packb(
            ["redislink letter", _VERSION, self._session, self._digest, src, dst, tag],
            use_bin_type=True,
        )
        return packed
