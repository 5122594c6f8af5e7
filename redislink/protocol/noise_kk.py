"""The Noise KK key exchange (https://noiseprotocol.org/noise.html, 7.5), through ``noiseprotocol``.

In KK, both sides know each other's static X25519 public key beforehand. Two messages authenticate
both and yield forward-secret keys. A pre-shared key (KKpsk0) protects them even from somebody who
learns both static private keys.

Rules:
- Reading a message changes the library's state even if it fails. So a state lives for one attempt:
  the initiator keeps its ephemeral key, and builds a new state for each.
- An ephemeral key seals one payload only: another payload needs another `KkInitiator`.
- The library checks no lengths and raises errors of many types. This module checks the lengths, and
  raises `SealError` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from noise.connection import Keypair, NoiseConnection
from noise.constants import MAX_MESSAGE_LEN
from noise.exceptions import NoiseInvalidMessage, NoiseValueError

from redislink.errors import SealError
from redislink.protocol.seal import SealKeys

_NAME: Final = b"Noise_KK_25519_AESGCM_SHA256"
_NAME_PSK: Final = b"Noise_KKpsk0_25519_AESGCM_SHA256"
_SHORTEST: Final = 32 + 16
"""The least size of a message in bytes: an ephemeral public key, and the payload's tag."""


@dataclass(frozen=True, slots=True, repr=False)
class KkConfig:
    """What one side brings.

    Attributes:
        private_key: its static private key, 32 bytes.
        peer_public_key: the peer's static public key, 32 bytes.
        prologue: bytes that must be the same on both sides.
        psk: a pre-shared key of 32 bytes; None for no such key.
    """

    private_key: bytes
    peer_public_key: bytes
    prologue: bytes
    psk: bytes | None = None


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

    def __init__(self, config: KkConfig, ephemeral: bytes, payload: bytes) -> None:
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
        payload = _read_untrusted(noise, second)
        return payload, _secrets(noise, initiator=True)

    def _begin(self) -> tuple[Any, bytes]:
        noise = _start(self._config, self._ephemeral, initiator=True)
        return noise, bytes(noise.write_message(self._payload))


class KkResponder:
    """The responder's side of one exchange."""

    def __init__(self, config: KkConfig, ephemeral: bytes, first: bytes) -> None:
        """Args:
            config: what this side brings.
            ephemeral: 32 fresh random bytes.
            first: the initiator's message.

        Raises:
            SealError: it is not a first message by the owner of the peer's key.
        """
        self._noise = _start(config, ephemeral, initiator=False)
        self.payload = _read_untrusted(self._noise, first)
        """The initiator's payload; it may be a replay until the initiator confirms."""
        self.name = sha256(first).digest()[:16]

    def answer(self, payload: bytes) -> tuple[bytes, KkSecrets]:
        """Return the second message and the secrets. Call once."""
        second = bytes(self._noise.write_message(payload))
        return second, _secrets(self._noise, initiator=False)


def _start(config: KkConfig, ephemeral: bytes, *, initiator: bool) -> Any:
    noise = NoiseConnection.from_name(_NAME if config.psk is None else _NAME_PSK)
    if config.psk is not None:
        noise.set_psks(psks=[config.psk])
    if initiator:
        noise.set_as_initiator()
    else:
        noise.set_as_responder()
    noise.set_keypair_from_private_bytes(Keypair.STATIC, config.private_key)
    noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, config.peer_public_key)
    noise.set_prologue(config.prologue)
    noise.start_handshake()
    protocol = noise.noise_protocol
    # Set it after the start: before that, the library warns that only tests should do so.
    protocol.handshake_state.e = protocol.keypair_class.from_private_bytes(ephemeral)
    return noise


def _read_untrusted(noise: Any, message: bytes) -> bytes:
    if not _SHORTEST <= len(message) <= MAX_MESSAGE_LEN:
        raise SealError("a key exchange message of an impossible size")
    try:
        return bytes(noise.read_message(message))
    except (NoiseInvalidMessage, NoiseValueError, InvalidTag, ValueError):
        # ValueError: a public key of low order, with which the shared secret would be 0.
        raise SealError("a key exchange message that does not open with the peer's key") from None


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
