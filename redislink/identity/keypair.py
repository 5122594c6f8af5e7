"""Who a party is: its X25519 key pair. The private half stays in one file of that party's."""

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
    """A party's key pair; ``private_key`` are 32 secret bytes."""

    private_key: bytes

    def __post_init__(self) -> None:
        if len(self.private_key) != KEY_BYTES:
            raise ConfigError(f"a private key has {KEY_BYTES} bytes: take one of Identity.load")

    @classmethod
    def generate(cls) -> Identity:
        """A new one, from the operating system's randomness."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """Read a file that `save` wrote.

        Raises:
            ConfigError: it is not there, others may read it, or it holds no key.
        """
        return cls(read_secret(path, "identity file"))

    def save(self, path: str | Path, comment: str) -> None:
        """Write a file that only its owner can read.

        Raises:
            ConfigError: there is such a file already, or it cannot be written.
        """
        write_secret(path, self.private_key, comment, "identity file")

    @property
    def public_key(self) -> bytes:
        """The public half, 32 bytes."""
        private = X25519PrivateKey.from_private_bytes(self.private_key)
        return private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<Identity {fingerprint(self.public_key)}>"


def format_public_key(key: bytes) -> str:
    """As it stands in the cluster file: ``x25519:`` and base64."""
    return _PUBLIC_PREFIX + base64.b64encode(key).decode()


def parse_public_key(text: str) -> bytes:
    """The inverse of `format_public_key`.

    Raises:
        ConfigError: not a public key.
    """
    if text.startswith(_PUBLIC_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(_PUBLIC_PREFIX), validate=True)
        except ValueError:  # also for characters that are not ASCII
            key = b""
        if len(key) == KEY_BYTES and _is_usable(key):
            return key
    raise ConfigError(
        "public_key is not x25519: and 32 bytes in base64: copy the line that redislink keygen "
        "prints"
    )


def _is_usable(key: bytes) -> bool:
    """False for points of low order, with which every shared secret would be 0."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def fingerprint(public_key: bytes) -> str:
    """Short name of a public key, to be read out and compared: SHA-256, as ssh prints it."""
    digest = hashlib.sha256(public_key).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_secret(path: str | Path, what: str) -> bytes:
    """The 32 bytes that stand in base64 in a file that only its owner can read.

    Raises:
        ConfigError: anything is wrong with it; the message does not quote it.
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
    """Write a file for `read_secret`; mode 0600 from its first byte on, never over another.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    write_private(path, f"# {comment}\n{base64.b64encode(secret).decode()}\n", what)
