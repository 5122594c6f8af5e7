"""Jobs over a broker that is hostile, with agents and a driver that are killed: 150 seeds.

`make soak` plays more of them.
"""

from collections.abc import Iterator

import pytest

from tests.jobs.simulation import Simulation

SEEDS = 150
FIRST = 60
_EACH = 45


def played(seeds: range) -> Iterator[Simulation]:
    """All learn the same end, whatever happens, and nobody starts alone."""
    for seed in seeds:
        simulation = Simulation(seed)
        simulation.play()
        simulation.check()
        yield simulation


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, SEEDS, _EACH))
def test_whatever_happens_all_learn_the_same_end_and_nobody_starts_alone(first: int) -> None:
    for _ in played(range(first, first + _EACH)):
        pass


def test_the_seeds_reach_what_they_are_there_for() -> None:
    """The first of them: every end, jobs that computed, agents that were killed, offers in
    conflict."""
    ends, computed, conflicts = set(), 0, 0
    for simulation in played(range(FIRST)):
        for agent in simulation.agents.values():
            ends |= {str(job.state) for job in agent.machine.jobs.values()}
        computed += len(simulation.computed)
        conflicts += simulation.conflicts
    assert ends == {"finished", "failed", "refused", "cancelled", "expired"}
    assert computed > 10
    assert conflicts > 0
