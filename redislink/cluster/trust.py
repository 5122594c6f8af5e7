"""Whom the devices of a cluster trust, by name: the warnings at every start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redislink.cluster.spec import ClusterSpec

REMEDY: Final = (
    "use CHEETAH between two, ABY3 between three, or a third party's beavers, "
    "unless all trust that party"
)
"""What to do about a device on which one party alone can read everything."""


def whom_it_trusts(cluster: ClusterSpec, device: str) -> str:
    """The protocol of a device and whom it trusts, by name, in one line."""
    spec = cluster.device(device)
    members = [cluster.party_names[rank] for rank in cluster.mask(device)]
    row = spec.config.spu_protocol
    trusts = row.trusts.format(first=members[0], members=_listed(members))
    return f"{row.label}: {trusts}"


def warnings(cluster: ClusterSpec, *devices: str) -> list[str]:
    """A line for each device on which one party alone can read everything.

    Args:
        cluster: the cluster.
        devices: the names of the devices to look at; without any, all of them.
    """
    return [
        f"device {name} runs {whom_it_trusts(cluster, name)}"
        for name in devices or cluster.devices
        if cluster.device(name).config.spu_protocol.is_weak
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
