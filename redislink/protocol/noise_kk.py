"""The Noise KK key exchange (https://noiseprotocol.org/noise.html, 7.5), through ``noiseprotocol``.

In KK, both sides know each other's static X25519 public key beforehand. Two messages authenticate
both and yield forward-secret keys. A pre-shared key (KKpsk0) protects them even from somebody who
learns both static private keys.

Rules:
- A state of the library's lives for one attempt (`noise_state`): the initiator keeps its ephemeral
  key, and builds a new state for each.
- An ephemeral key seals one payload only: another payload needs another `KkInitiator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.protocol.noise_state import NoiseConfig, read_untrusted, start
from redislink.protocol.seal import SealKeys

_PATTERN: Final = "KK"


@dataclass(frozen=True, slots=True, repr=False)
class KkSecrets:
    """What the two messages yield.

    Attributes:
        handshake_hash: 32 bytes that identify this exchange; not secret.
        keys: this side's keys.
        confirm_key: the AES-256 key with which the initiator proves that it has finished.
    """

    handshake_hash: bytes
    keys: SealKeys
    confirm_key: bytes


class KkInitiator:
    """The initiator's side of one exchange."""

    def __init__(self, config: NoiseConfig, ephemeral: bytes, payload: bytes) -> None:
        """Args:
        config: what this side brings.
        ephemeral: 32 fresh random bytes.
        payload: the payload of the first message; sealed, but somebody may replay it.
        """
        self._config = config
        self._ephemeral = ephemeral
        self._payload = payload
        self.first = self._begin()[1]
        """The first message; send it until it is answered."""
        self.name = sha256(self.first).digest()[:16]
        """Identifies this exchange in the answers to it."""

    def finish_untrusted(self, second: bytes) -> tuple[bytes, KkSecrets]:
        """Read the responder's message, and return its payload and the secrets.

        Raises:
            SealError: it is not an answer to `first` by the owner of the peer's key. Call again
                with the next message.
        """
        noise, _ = self._begin()
        payload = read_untrusted(noise, second)
        return payload, _secrets(noise, initiator=True)

    def _begin(self) -> tuple[Any, bytes]:
        noise = start(_PATTERN, self._config, self._ephemeral, initiator=True)
        return noise, bytes(noise.write_message(self._payload))


class KkResponder:
    """The responder's side of one exchange."""

    def __init__(self, config: NoiseConfig, ephemeral: bytes, first: bytes) -> None:
        """Args:
            config: what this side brings.
            ephemeral: 32 fresh random bytes.
            first: the initiator's message.

        Raises:
            SealError: it is not a first message by the owner of the peer's key.
        """
        self._noise = start(_PATTERN, config, ephemeral, initiator=False)
        self.payload = read_untrusted(self._noise, first)
        """The initiator's payload; it may be a replay until the initiator confirms."""
        self.name = sha256(first).digest()[:16]

    def answer(self, payload: bytes) -> tuple[bytes, KkSecrets]:
        """Return the second message and the secrets. Call once."""
        second = bytes(self._noise.write_message(payload))
        return second, _secrets(self._noise, initiator=False)


def _secrets(noise: Any, *, initiator: bool) -> KkSecrets:
    protocol = noise.noise_protocol
    out, into = bytes(protocol.cipher_state_encrypt.k), bytes(protocol.cipher_state_decrypt.k)
    keys = SealKeys(
        data_out=_derive(out, b"data"),
        data_in=_derive(into, b"data"),
        control_out=_derive(out, b"control"),
        control_in=_derive(into, b"control"),
    )
    from_initiator = out if initiator else into
    return KkSecrets(bytes(noise.get_handshake_hash()), keys, _derive(from_initiator, b"confirm"))


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"redislink 1 " + purpose).derive(key)
