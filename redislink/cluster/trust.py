"""Whom the devices of a cluster trust, by name: what is said at every start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redislink.cluster.spec import ClusterSpec

REMEDY: Final = (
    "take CHEETAH between two, ABY3 between three, or a third party's beavers, "
    "unless all trust that party"
)
"""What to do about a device on which one party alone can read everything."""


def whom_it_trusts(cluster: ClusterSpec, device: str) -> str:
    """Protocol of a device and whom it trusts, by name: one line."""
    spec = cluster.device(device)
    members = [cluster.party_names[rank] for rank in cluster.mask(device)]
    row = spec.config.spu_protocol
    trusts = row.trusts.format(first=members[0], members=_listed(members))
    return f"{row.label}: {trusts}"


def warnings(cluster: ClusterSpec, *devices: str) -> list[str]:
    """A line for each device on which one party alone can read everything.

    Args:
        devices: names of those that are meant; none means all.
    """
    return [
        f"device {name} runs {whom_it_trusts(cluster, name)}"
        for name in devices or cluster.devices
        if cluster.device(name).config.spu_protocol.is_weak
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
