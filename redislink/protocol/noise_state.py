"""What the exchanges of `noise_kk` and `noise_k` share: the library ``noiseprotocol``, made safe.

Rules:
- Reading a message changes the library's state even if it fails. So a state lives for one attempt.
- The library checks no lengths and raises errors of many types. This module checks the lengths, and
  raises `SealError` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from noise.connection import Keypair, NoiseConnection
from noise.constants import MAX_MESSAGE_LEN
from noise.exceptions import NoiseInvalidMessage, NoiseValueError

from redislink.errors import SealError

SHORTEST: Final = 32 + 16
"""The least size of a message in bytes: an ephemeral public key, and the payload's tag."""


@dataclass(frozen=True, slots=True, repr=False)
class NoiseConfig:
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


def start(pattern: str, config: NoiseConfig, ephemeral: bytes | None, *, initiator: bool) -> Any:
    """Return the library's state for one attempt.

    Args:
        pattern: such as ``KK``.
        config: what this side brings.
        ephemeral: 32 fresh random bytes; None if this side sends nothing.
        initiator: whether this side sends the first message.
    """
    name = f"Noise_{pattern}{'' if config.psk is None else 'psk0'}_25519_AESGCM_SHA256"
    noise = NoiseConnection.from_name(name.encode())
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
    if ephemeral is not None:
        protocol = noise.noise_protocol
        # Set it after the start: before that, the library warns that only tests should do so.
        protocol.handshake_state.e = protocol.keypair_class.from_private_bytes(ephemeral)
    return noise


def read_untrusted(noise: Any, message: bytes) -> bytes:
    """Return the payload of a message.

    Raises:
        SealError: the owner of the peer's key did not make it for this state.
    """
    if not SHORTEST <= len(message) <= MAX_MESSAGE_LEN:
        raise SealError("a key exchange message of an impossible size")
    try:
        return bytes(noise.read_message(message))
    except (NoiseInvalidMessage, NoiseValueError, InvalidTag, ValueError):
        # ValueError: a public key of low order, with which the shared secret would be 0.
        raise SealError("a key exchange message that does not open with the peer's key") from None
