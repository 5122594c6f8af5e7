"""Chooses a session's handshake: sealed with this party's identity, or unencrypted."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity, fingerprint, read_secret
from redislink.logs import PartyLogger
from redislink.protocol.handshake import Handshake, PlainHandshake
from redislink.protocol.sealed_handshake import SealedHandshake
from redislink.settings import RedisLinkSettings


def make_handshake(
    spec: ClusterSpec,
    party: str,
    settings: RedisLinkSettings,
    identity: Identity | None,
    instance: bytes,
) -> Handshake:
    """Return the handshake that the cluster file asks for.

    Args:
        spec: the cluster file's content.
        party: this party's name.
        settings: say where the key files are.
        identity: this party's; None reads it from the file that the settings name.
        instance: this run's instance, 8 bytes.

    Raises:
        ConfigError: a key is missing, is not this party's, or cannot be read.
    """
    peers = [name for name in spec.party_names if name != party]
    if spec.security == "none":
        PartyLogger(spec.session, party).warning(
            "%s: session %s has security none: the broker can read and change everything",
            party,
            spec.session,
        )
        return PlainHandshake(spec.session, party, peers, spec.digest(), instance)
    public_keys = spec.public_keys()
    identity = identity or _load_identity(party, settings)
    if identity.public_key != public_keys[party]:
        owner = next((n for n, key in public_keys.items() if key == identity.public_key), None)
        whose = f"that of {owner!r}" if owner else "in nobody's line there"
        raise ConfigError(
            f"{party}: this identity ({fingerprint(identity.public_key)}) is not the one that "
            f"the cluster file has for {party!r} ({fingerprint(public_keys[party])}), but "
            f"{whose}: set REDISLINK_IDENTITY_FILE to {party}'s, or mend its public_key"
        )
    return SealedHandshake(
        spec.session,
        party,
        peers,
        spec.digest(),
        instance,
        ranks={name: spec.rank(name) for name in spec.party_names},
        private_key=identity.private_key,
        public_keys=public_keys,
        random_bytes=secrets.token_bytes,
        psks=load_psks(peers, settings),
    )


def _load_identity(party: str, settings: RedisLinkSettings) -> Identity:
    path = settings.identity_file_of(party)
    if path is None:
        raise ConfigError(
            f"{party}: the session is sealed and REDISLINK_IDENTITY_FILE is not set: set it to "
            f"the file that redislink keygen {party} wrote"
        )
    return Identity.load(path)


def load_psks(peers: Iterable[str], settings: RedisLinkSettings) -> dict[str, bytes]:
    """Return the pre-shared keys that this party has with these others.

    Raises:
        ConfigError: the directory or a file in it cannot be used.
    """
    directory = settings.psk_dir
    if directory is None:
        return {}
    try:
        there = {path.name for path in directory.iterdir()}
    except OSError as error:  # must not pass for a directory without keys
        raise ConfigError(
            f"REDISLINK_PSK_DIR {directory}: {error.strerror}: check the path and its mode"
        ) from None
    return {
        peer: read_secret(directory / f"{peer}.psk", "pre-shared key file")
        for peer in peers
        if f"{peer}.psk" in there
    }
