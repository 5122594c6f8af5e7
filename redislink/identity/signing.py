"""The Ed25519 key with which a party signs its audit records.

It is derived from the party's identity (HKDF-SHA256, for this purpose only), so there is no second
file to keep, and a party has one as soon as it has an identity. Its public half tells nothing of
the identity.
"""

from __future__ import annotations

import base64
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.errors import ConfigError
from redislink.identity.keypair import KEY_BYTES, Identity

SIGNATURE_BYTES: Final = 64
_PREFIX: Final = "ed25519:"
_PURPOSE: Final = b"redislink audit 1 signing key"


class SigningKey:
    """The private half.

    Attributes:
        public_key: the public half, 32 bytes.
    """

    def __init__(self, identity: Identity) -> None:
        """Args:
        identity: the party's key pair.
        """
        derive = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=_PURPOSE)
        self._private = Ed25519PrivateKey.from_private_bytes(derive.derive(identity.private_key))
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"<SigningKey {format_signing_key(self.public_key)}>"


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether the owner of a public key, 32 bytes, has signed a message."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def format_signing_key(key: bytes) -> str:
    """A public half in the form of the cluster file: ``ed25519:`` and base64."""
    return _PREFIX + base64.b64encode(key).decode()


def parse_signing_key(text: str) -> bytes:
    """The 32 bytes of a public half that `format_signing_key` wrote.

    Raises:
        ConfigError: the text is not one.
    """
    if text.startswith(_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except ValueError:
            key = b""
        if len(key) == KEY_BYTES and key not in _LOW_ORDER:
            return key
    raise ConfigError(
        "signing_key must be ed25519: followed by 32 bytes in base64: copy the line that redislink "
        "keygen prints"
    )


def check_signing_key(party: str, written: str | None, identity: Identity | None) -> None:
    """Check that the cluster file has the public half of this party's own key, or none.

    Args:
        party: the name of the party.
        written: its ``signing_key`` in the cluster file; None if it has none.
        identity: its key pair; None if it has none.

    Raises:
        ConfigError: the cluster file has another one.
    """
    own = None if identity is None else format_signing_key(SigningKey(identity).public_key)
    if written is not None and written != own:
        have = "this identity has another one" if own else "there is no identity here"
        raise ConfigError(
            f"{party}: the cluster file has a signing_key for {party}, and {have}: set "
            f"REDISLINK_IDENTITY_FILE to {party}'s, or mend the line with redislink audit key"
        )


def _low_order() -> frozenset[bytes]:
    """The points with which some signatures fit any message, in all their encodings."""
    prime = 2**255 - 19
    order_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    ys = (0, 1, prime - 1, prime, prime + 1, order_8, prime - order_8)
    return frozenset((y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1))


_LOW_ORDER: Final = _low_order()
