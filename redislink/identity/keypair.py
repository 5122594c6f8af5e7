"""The X25519 key pair that identifies a party. The private key stays in one file at that party."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from redislink.errors import ConfigError
from redislink.identity.secret_files import read_private, write_private

KEY_BYTES: Final = 32
_PUBLIC_PREFIX: Final = "x25519:"


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A party's key pair.

    Attributes:
        private_key: 32 secret bytes.
    """

    private_key: bytes

    def __post_init__(self) -> None:
        if len(self.private_key) != KEY_BYTES:
            size = len(self.private_key)
            raise ConfigError(f"a private key has {KEY_BYTES} bytes, not {size}: use Identity.load")

    @classmethod
    def generate(cls) -> Identity:
        """Make a new key pair from the operating system's randomness."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read a key pair from a file that `save` wrote.

        Raises:
            ConfigError: the file is missing, holds no key, or can be read by others.
        """
        return cls(read_secret(path, "identity file"))

    def save(self, path: str | Path, comment: str) -> None:
        """Write the key pair to a new file that only its owner can read.

        Args:
            path: the file to make.
            comment: a line of text to put above the key.

        Raises:
            ConfigError: the file exists already, or cannot be written.
        """
        write_secret(path, self.private_key, comment, "identity file")

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        private = X25519PrivateKey.from_private_bytes(self.private_key)
        return private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<Identity {fingerprint(self.public_key)}>"


def format_public_key(key: bytes) -> str:
    """A public key in the form of the cluster file: ``x25519:`` and base64."""
    return _PUBLIC_PREFIX + base64.b64encode(key).decode()


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of a public key that `format_public_key` wrote.

    Raises:
        ConfigError: the text is not a public key.
    """
    if text.startswith(_PUBLIC_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PUBLIC_PREFIX), validate=True)
        except ValueError:  # also for characters that are not ASCII
            key = b""
        if len(key) == KEY_BYTES and _is_usable(key):
            return key
    raise ConfigError(
        "public_key must be x25519: followed by 32 bytes in base64: copy the line that redislink "
        "keygen prints"
    )


def _is_usable(key: bytes) -> bool:
    """Whether a public key is safe: with points of low order every shared secret would be 0."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def fingerprint(public_key: bytes) -> str:
    """A short name of a public key, to read out and compare: SHA-256, printed as ssh does."""
    digest = hashlib.sha256(public_key).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_secret(path: str | Path, what: str) -> bytes:
    """The 32 bytes that a file holds in base64. Only its owner may be able to read the file.

    Args:
        path: the file to read.
        what: what the file is, for messages.

    Raises:
        ConfigError: anything is wrong with the file; the message does not quote it.
    """
    text = read_private(path, what, "make one with redislink keygen")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    try:
        secret = base64.b64decode(lines[0], validate=True) if len(lines) == 1 else b""
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"{what} {path}: holds no key: make one with redislink keygen")
    return secret


def write_secret(path: str | Path, secret: bytes, comment: str, what: str) -> None:
    """Write a new file for `read_secret`, with mode 0600 from its first byte on.

    Args:
        path: the file to make.
        secret: the bytes to write.
        comment: a line of text to put above them.
        what: what the file is, for messages.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    write_private(path, f"# {comment}\n{base64.b64encode(secret).decode()}\n", what)
