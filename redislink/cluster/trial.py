"""A whole cluster on one machine, for demos and trials only.

Between organisations no machine ever holds two private keys: each party runs ``redislink
keygen`` itself, and gives away only its public key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.files import EVERYBODY_READS, open_new
from redislink.identity.keypair import Identity, format_public_key
from redislink.identity.signing import SigningKey, format_signing_key

DEVICE: Final = "SP0"
PSI_DEVICE: Final = "PSI0"


def write_trial(
    content: Mapping[str, Any], cluster_file: Path, key_files: Mapping[str, Path], comment: str
) -> ClusterSpec:
    """Make a new key pair for every party, and a cluster file with the public keys.

    Args:
        content: the cluster file's content; public keys in it are replaced.
        cluster_file: the file to make.
        key_files: the private key file to make for each party.
        comment: lines for the top of the cluster file.

    Raises:
        ConfigError: the content is not valid, or a file exists already or cannot be written.
    """
    names = ClusterSpec.parse(dict(content), str(cluster_file)).party_names
    for path in (cluster_file, *(key_files[name] for name in names)):
        if os.path.lexists(path):  # also a dangling symbolic link
            raise ConfigError(f"{path}: exists already and would be lost: move it away first")
    identities = {name: Identity.generate() for name in names}
    parties = [{"name": party} if isinstance(party, str) else party for party in content["parties"]]
    filled = dict(content) | {
        "parties": [
            party
            | {
                "public_key": format_public_key(identities[party["name"]].public_key),
                "signing_key": format_signing_key(SigningKey(identities[party["name"]]).public_key),
            }
            for party in parties
        ]
    }
    spec = ClusterSpec.parse(filled, str(cluster_file))
    text = yaml.safe_dump(filled, sort_keys=False, default_flow_style=None, width=100)
    try:
        for name in names:
            key_files[name].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            identities[name].save(key_files[name], f"private key of {name}: trial only")
        cluster_file.parent.mkdir(parents=True, exist_ok=True)
        with open_new(cluster_file, EVERYBODY_READS) as file:
            file.write("".join(f"# {line}\n" for line in comment.splitlines()) + text)
    except OSError as error:
        raise ConfigError(f"{cluster_file.parent}: {error.strerror}: choose another") from None
    return spec


def trial_devices(parties: list[str], protocol: str | None = None) -> dict[str, Any]:
    """Devices for trying things out.

    Args:
        parties: the names of at least two parties, in rank order.
        protocol: the protocol of the first device, which then has all parties as members. None
            chooses one in which no party can read another's data: CHEETAH between two, ABY3
            between the first three.
    """
    if protocol is None:
        protocol = "CHEETAH" if len(parties) == 2 else "ABY3"
        parties = parties[:3]
    config = {"protocol": protocol, "field": "FM64", "use_redis_channel": True}
    if protocol == "SEMI2K":
        config["runtime"] = {"beaver_type": "TrustedFirstParty"}  # stated, because it is weak
    return {
        DEVICE: {"kind": "SPU", "members": parties, "config": config},
        PSI_DEVICE: {
            "kind": "SPU",
            "members": parties[:2],
            "config": {"protocol": "CHEETAH", "field": "FM64", "use_redis_channel": True},
        },
    }
