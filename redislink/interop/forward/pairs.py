"""The session of two parties that forward streams to each other, beside that of the cluster."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.text import one_line

_LONGEST_SESSION: Final = 50


def pair_cluster(cluster: ClusterSpec, one: str, other: str) -> ClusterSpec:
    """The cluster of the session between two parties.

    Its name adds to the cluster's what the id of a job adds, so the broker's rights for jobs cover
    it; no job has such an id. It does not depend on the order of the parties in either file.

    Raises:
        ConfigError: the cluster's session has too long a name, or there is no such party.
    """
    names = sorted((one, other))
    if len(cluster.session) > _LONGEST_SESSION:
        raise ConfigError(
            f"session {cluster.session!r}: to forward streams it has at most {_LONGEST_SESSION} "
            "characters, because each pair of parties adds 14: shorten it"
        )
    digest = hashlib.sha256(" ".join(["forward", *names]).encode()).digest()
    mark = base64.b32encode(digest[:5]).decode().lower()
    return ClusterSpec(
        session=f"{cluster.session}.jfwd-{mark}",
        security=cluster.security,
        broker=cluster.broker,
        parties=tuple(cluster.parties[cluster.rank(name)] for name in names),
    )


def parse_pair(text: str, cluster: ClusterSpec) -> ClusterSpec:
    """The cluster of the session of the pair that ``PARTY,PARTY`` names.

    Raises:
        ConfigError: it does not name two parties of the cluster.
    """
    one, comma, other = text.partition(",")
    if not comma or one == other:
        raise ConfigError(
            f"--forward {one_line(text, 120)}: is not PARTY,PARTY: use two of "
            f"{', '.join(cluster.party_names)}"
        )
    return pair_cluster(cluster, one, other)
