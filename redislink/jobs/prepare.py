"""What is put into a job's directory before its process starts.

Rule: what is run is a private copy, written from the bytes whose digest was checked. Nobody who can
write to the program store later changes what a job runs, or what it goes on with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.files import open_in_place_of
from redislink.jobs.offer import Offer, job_session
from redislink.jobs.program import Program


def cluster_of(cluster: ClusterSpec, offer: Offer) -> ClusterSpec:
    """The cluster of a job's own session: its parties, in the order of their ranks, and devices.

    All agents make the same one from the same offer and cluster file.

    Raises:
        ConfigError: the offer names a party or device that the cluster does not have, or a device
            whose members do not all take part.
    """
    return ClusterSpec.parse(_content(cluster, offer), f"job {offer.job}")


def _content(cluster: ClusterSpec, offer: Offer) -> dict[str, Any]:
    for party in offer.parties:
        cluster.rank(party)
    for name in offer.devices:
        absent = [m for m in cluster.device(name).members if m not in offer.parties]
        if absent:
            raise ConfigError(
                f"job {offer.job}: device {name} has the member {absent[0]}, who does not take "
                "part: name all members among the job's parties"
            )
    parties = [party for party in cluster.party_names if party in offer.parties]
    return cluster.part(job_session(cluster.session, offer.job), parties, offer.devices)


def write_cluster(cluster: ClusterSpec, offer: Offer, path: Path) -> None:
    """Write the cluster file of a job's session.

    Raises:
        ConfigError: see `cluster_of`.
        OSError: it cannot be written.
    """
    content = _content(cluster, offer)
    ClusterSpec.parse(content, f"job {offer.job}")
    with open_in_place_of(path) as file:
        yaml.safe_dump(content, file, sort_keys=False)


def write_program(program: Program, directory: Path) -> Path:
    """Write the private copy of a program in place of what is there; return the file that is run.

    Args:
        program: the program, whose digest is the offer's.
        directory: where to.

    Raises:
        OSError: it cannot be written.
    """
    shutil.rmtree(directory, ignore_errors=True)
    return program.write_to(directory)
