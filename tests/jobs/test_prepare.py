"""A job's own cluster file and program: the same at all agents, and from checked bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import ConfigError
from redislink.identity.keypair import format_public_key
from redislink.jobs.prepare import cluster_of, write_cluster, write_program
from redislink.jobs.program import Program
from tests.conftest import IDENTITIES
from tests.jobs.examples import an_offer

KEYS = {name: format_public_key(IDENTITIES[name].public_key) for name in ("alice", "bob", "carol")}


def cluster(**changes: Any) -> ClusterSpec:
    content: dict[str, Any] = {
        "session": "hospitals",
        "parties": [{"name": name, "public_key": key} for name, key in KEYS.items()],
        "devices": {
            "spu": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "CHEETAH"}},
            "all": {"kind": "SPU", "members": ["alice", "bob", "carol"]},
        },
        "drivers": [],
    }
    return ClusterSpec.parse(content | changes)


def test_it_has_the_job_s_parties_and_devices_in_the_cluster_s_order(tmp_path: Path) -> None:
    offer = an_offer(parties=("bob", "alice"))
    made = cluster_of(cluster(), offer)
    assert made.session == "hospitals.j0123456789ab"
    assert made.party_names == ("alice", "bob")
    assert list(made.devices) == ["spu"]
    assert made.drivers is None
    # Each agent may have its own broker URL: the sessions agree all the same.
    elsewhere = cluster(broker="redis://elsewhere:6379/0")
    write_cluster(elsewhere, offer, tmp_path / "cluster.yaml")
    read = load_cluster(tmp_path / "cluster.yaml")
    assert read.broker == "redis://elsewhere:6379/0"
    assert read.digest() == made.digest()
    assert (tmp_path / "cluster.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"parties": ("alice", "dave"), "data": {}}, "'dave' is not in session"),
        ({"devices": ("gpu",)}, "device 'gpu' is not in session"),
        ({"devices": ("all",)}, "device all has the member carol, who does not take part"),
    ],
)
def test_what_the_cluster_does_not_have(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        cluster_of(cluster(), an_offer(**fields))


def test_the_program_is_a_fresh_copy(tmp_path: Path) -> None:
    program = Program((("main.py", b"print(1)\n"), ("package/more.py", b"")))
    copy = tmp_path / "program"
    assert write_program(program, copy) == copy / "main.py"
    (copy / "package" / "planted.py").write_text("import os")
    assert write_program(program, copy) == copy / "main.py"
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*.py")}
    assert found == {"main.py", "package/more.py"}
