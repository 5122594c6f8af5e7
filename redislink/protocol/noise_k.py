"""The one-way Noise K (https://noiseprotocol.org/noise.html, 7.4), through ``noiseprotocol``.

In K, sender and receiver know each other's static X25519 public key beforehand. One message is
enough, so the receiver may be away. A pre-shared key (Kpsk0) protects messages even from somebody
who learns both static private keys.

Rules:
- Anybody may replay a message: what is inside must say whether it is new.
- Whoever learns the receiver's private key reads all messages to it, earlier ones too, and can make
  messages from anybody to it. Nobody else can.
- An ephemeral key seals one payload only.
"""

from __future__ import annotations

from typing import Final

from noise.constants import MAX_MESSAGE_LEN

from redislink.errors import UsageError
from redislink.protocol.noise_state import SHORTEST, NoiseConfig, read_untrusted, start

MOST_PAYLOAD: Final = MAX_MESSAGE_LEN - SHORTEST
_PATTERN: Final = "K"


def seal(config: NoiseConfig, ephemeral: bytes, payload: bytes) -> bytes:
    """Return the message that only the peer can open.

    Args:
        config: what the sender brings.
        ephemeral: 32 fresh random bytes.
        payload: at most `MOST_PAYLOAD` bytes.

    Raises:
        UsageError: the payload is longer.
    """
    if len(payload) > MOST_PAYLOAD:
        raise UsageError(f"a Noise message holds at most {MOST_PAYLOAD} bytes: seal a key in it")
    return bytes(start(_PATTERN, config, ephemeral, initiator=True).write_message(payload))


def open_untrusted(config: NoiseConfig, message: bytes) -> bytes:
    """Return the payload of a message that `seal` made.

    Args:
        config: what the receiver brings.
        message: any bytes.

    Raises:
        SealError: the owner of the peer's key did not make it for this receiver and prologue.
    """
    return read_untrusted(start(_PATTERN, config, None, initiator=False), message)
