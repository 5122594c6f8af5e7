"""Two hundred seeded runs over a broker that fails; `make soak` plays more of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from redislink.protocol.frame import Encoding
from redislink.protocol.receiving import Receiving
from tests.protocol.simulation import SimulationError, World, run_seeds

BATCH = 50
ROOT = Path(__file__).parents[2]
FOUND = [4214, 9767, 13631, 25101, 27759]
"""Seeds at which the soak found a fault of the core that is mended."""


@pytest.mark.parametrize("first", range(100, 200, BATCH))
def test_every_run_ends_as_it_should(first):
    run_seeds(range(first, first + BATCH))


@pytest.mark.parametrize("seed", FOUND)
def test_a_fault_that_was_mended_stays_mended(seed):
    run_seeds(range(seed, seed + 1))


def test_they_meet_every_fault():
    """Else the runs above would show little. These end as they should, too."""
    totals = run_seeds(range(100))
    assert {"work", "leave", "abort", "die", "restart", "freeze"} <= totals.keys()
    for what in (
        "frames_resent",
        "frames_refused",
        "duplicates_dropped",
        "probes_sent",
        "in_place",
    ):
        assert totals[what] > 50, what


def test_a_seed_plays_the_same_run_again():
    first, second = World(7), World(7)
    for world in (first, second):
        world.run()
    assert first.ended_at == second.ended_at
    assert first.stats == second.stats


def test_a_run_that_fails_says_how_to_see_it_again(monkeypatch):
    monkeypatch.setattr(Receiving, "take", lambda self, tag: (b"wrong", Encoding.RAW))
    with pytest.raises(SimulationError, match=r"python -m tests\.protocol\.simulation --seed 3 -v"):
        run_seeds(range(3, 4))


def test_the_command_that_replays():
    """In another process, whose strings hash differently, the run is the same."""
    world = World(11)
    world.run()
    command = [sys.executable, "-m", "tests.protocol.simulation", "--seed", "11", "-v"]
    replay = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = replay.stdout.splitlines()
    assert lines[-1] == f"seed 11: {world.kind}, ended at {world.ended_at:.1f} s as it should"
    assert len(lines) > 50
