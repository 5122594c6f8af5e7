"""Jobs over a broker that is hostile, with agents and a driver that are killed: 150 seeds.

`make soak` plays more of them.
"""

import pytest

from tests.jobs.simulation import Simulation

SEEDS = 150
_EACH = 50


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, _EACH))
def test_whatever_happens_all_learn_the_same_end_and_nobody_starts_alone(first: int) -> None:
    for seed in range(first, first + _EACH):
        simulation = Simulation(seed)
        simulation.play()
        simulation.check()


def test_the_seeds_reach_what_they_are_there_for() -> None:
    """In 60 of them: every end, jobs that computed, agents that were killed, offers in conflict."""
    ends, computed, conflicts = set(), 0, 0
    for seed in range(1, 61):
        simulation = Simulation(seed)
        simulation.play()
        for agent in simulation.agents.values():
            ends |= {str(job.state) for job in agent.machine.jobs.values()}
        computed += len(simulation.computed)
        conflicts += simulation.conflicts
    assert ends == {"finished", "failed", "refused", "cancelled", "expired"}
    assert computed > 10
    assert conflicts > 0
