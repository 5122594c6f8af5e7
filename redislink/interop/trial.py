"""A trial: all parties on one machine, with keys and a broker made for it.

Rules:
- The parties' names are the program's; nobody knows them before it says them. So the key of each
  is derived from one secret in the trial's directory: any process of the trial has all keys, and
  none of them has to wait for another.
- Between organisations no machine ever holds two parties' keys: nothing here is for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.cluster import ClusterSpec
from redislink.identity.keypair import (
    KEY_BYTES,
    Identity,
    format_public_key,
    read_secret,
    write_secret,
)

SESSION: Final = "trial"
_WHAT: Final = "file of a trial's keys"
_FILE: Final = "trial.key"
_LONGEST_NAME: Final = 40


class Trial:
    """The keys and names of a trial's parties."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: one that `begin_trial` made.

        Raises:
            ConfigError: it is not.
        """
        self._secret = read_secret(directory / _FILE, _WHAT)

    def identity(self, party: str) -> Identity:
        """The key pair of a party."""
        derive = HKDF(SHA256(), KEY_BYTES, None, b"redislink trial " + party.encode())
        return Identity(derive.derive(self._secret))

    def cluster(self, parties: Sequence[str]) -> ClusterSpec:
        """A cluster of these parties."""
        named = [
            {"name": party, "public_key": format_public_key(self.identity(party).public_key)}
            for party in parties
        ]
        return ClusterSpec.parse({"session": SESSION, "parties": named}, "trial")


def party_called(name: str) -> str:
    """The name of the party that a program calls so: the same, if it may be one of ours."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name, re.ASCII):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:_LONGEST_NAME]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else f"party-{digest}"


@contextlib.contextmanager
def begin_trial() -> Iterator[dict[str, str]]:
    """Make keys and a broker, and end the broker afterwards.

    Yields:
        The variables that make a process take part.
    """
    from redislink.broker import EmbeddedBroker  # loads the server binary's package

    with (
        EmbeddedBroker(password=secrets.token_urlsafe(32)) as broker,
        tempfile.TemporaryDirectory(prefix="redislink-trial-") as directory,
    ):
        secret = secrets.token_bytes(KEY_BYTES)
        write_secret(Path(directory, _FILE), secret, "all keys of a trial: for trials only", _WHAT)
        yield {
            "REDISLINK_TRIAL_DIR": directory,
            "REDISLINK_BROKER_URL": broker.unix_url,
            "REDISLINK_BROKER_PROXY": "none",
            "REDISLINK_PSK_DIR": directory,  # holds none
        }
