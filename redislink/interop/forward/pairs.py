"""The session of two parties that forward streams to each other, beside that of the cluster."""

from __future__ import annotations

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.interop.parties import link_cluster
from redislink.text import one_line


def pair_cluster(cluster: ClusterSpec, one: str, other: str) -> ClusterSpec:
    """The cluster of the session between two parties.

    It does not depend on the order of the parties in either file.

    Raises:
        ConfigError: the cluster's session has too long a name, or there is no such party.
    """
    names = sorted((one, other))
    return link_cluster(cluster, names, ["forward", *names])


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
