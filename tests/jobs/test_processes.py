"""Which jobs run when: places, their order, and runs that are started again."""

from __future__ import annotations

import random
from pathlib import Path

from redislink.jobs.processes import Processes
from redislink.jobs.runner import Outcome, Progress, Task, Used

KILLED = Outcome("killed", "killed", may_pass=True)


class Run:
    """A process that does what the test says."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.progress = Progress()
        self.used = Used(task.used.wall + 1, 0)
        self.outcome: Outcome | None = None
        self.reason = ""

    def poll(self) -> Outcome | None:
        return self.outcome

    def end(self, reason: str, *, may_pass: bool = False) -> None:
        self.reason = reason
        self.outcome = self.outcome or Outcome(reason, reason, may_pass=may_pass)

    def meet(self) -> None:
        self.progress = Progress(has_met=True, step=3)


class Agent:
    def __init__(self, most: int | None = None) -> None:
        self.now = 0.0
        self.runs: dict[str, Run] = {}
        self.starts: list[str] = []
        self.processes = Processes(self._start, most, lambda: self.now)

    def _start(self, task: Task) -> Run:
        self.starts.append(task.job)
        self.runs[task.job] = Run(task)
        return self.runs[task.job]

    def add(self, *jobs: str) -> None:
        """The order of jobs is that of their names."""
        for job in jobs:
            self.processes.add((ord(job), job), task(job))

    def running(self) -> list[str]:
        return sorted(job for job, run in self.runs.items() if run.outcome is None)


def task(job: str) -> Task:
    return Task(
        job=job, directory=Path(), cluster=Path(), party="alice", identity=Path(), program=Path()
    )


def test_only_so_many_run_at_once_and_the_oldest_first() -> None:
    agent = Agent(2)
    agent.add("c", "a", "b", "d")
    assert agent.processes.poll() == []
    assert agent.running() == ["a", "b"]
    for run in agent.runs.values():
        run.meet()
    agent.processes.poll()
    assert agent.running() == ["a", "b"]
    assert agent.processes.state("c")[0].text == "waits for a place"
    agent.runs["a"].outcome = Outcome()
    assert agent.processes.poll() == [("a", Outcome())]
    assert agent.running() == ["b", "c"]
    agent.processes.most = 3
    agent.processes.poll()
    assert agent.running() == ["b", "c", "d"]


def test_what_has_not_met_gives_way_to_an_older_job() -> None:
    agent = Agent(2)
    agent.add("b", "c")
    agent.processes.poll()
    agent.add("a", "d")
    assert agent.processes.poll() == []
    assert agent.runs["c"].reason == "it waits for an older job to end"
    assert agent.runs["b"].outcome is None, "one place is enough"
    assert agent.processes.poll() == []
    assert agent.running() == ["a", "b"]
    agent.runs["a"].meet()
    agent.runs["b"].outcome = Outcome()
    agent.processes.poll()
    assert agent.running() == ["a", "c"]
    assert agent.runs["c"].task.used == Used(1, 0), "its time counts on"


def test_what_has_met_keeps_its_place() -> None:
    agent = Agent(1)
    agent.add("b")
    agent.processes.poll()
    agent.runs["b"].meet()
    agent.add("a")
    agent.processes.poll()
    assert agent.running() == ["b"]


def test_agents_with_few_places_do_not_wait_for_each_other_for_ever() -> None:
    """200 seeds of three agents; a run has met when it runs at all parties of its job."""
    for seed in range(200):
        rng = random.Random(seed)
        agents = [Agent(rng.choice((1, 1, 2))) for _ in range(3)]
        members = {job: rng.sample(range(3), rng.choice((2, 3))) for job in "abcdef"}
        arrivals = [(job, agent) for job, at in members.items() for agent in at]
        rng.shuffle(arrivals)
        done: set[str] = set()
        for _ in range(200):
            for job, agent in [arrivals.pop() for _ in arrivals[: rng.randrange(3)]]:
                agents[agent].add(job)
            for agent in rng.sample(agents, 3):
                agent.processes.poll()
            for job, at in members.items():
                runs = [agents[a].runs.get(job) for a in at]
                if all(run is not None and run.outcome is None for run in runs):
                    for run in runs:
                        assert run is not None
                        if run.progress.has_met:
                            run.outcome = Outcome()
                            done.add(job)
                        run.meet()
        assert done == set(members), seed
        assert not any(agent.processes for agent in agents), seed


def test_a_run_that_was_killed_is_started_again_a_few_times() -> None:
    agent = Agent()
    agent.add("a")
    ended: list[tuple[str, Outcome]] = []
    while not ended:
        ended = agent.processes.poll()
        if len(agent.starts) == 2:
            agent.runs["a"].meet()  # it had come further, so it is counted anew
        agent.runs["a"].outcome = KILLED
        agent.now += 1
    assert agent.starts == ["a"] * 5
    assert ended == [("a", Outcome("killed", "killed"))]
    assert not agent.processes


def test_a_job_is_ended_wherever_it_is() -> None:
    agent = Agent(1)
    agent.add("a", "b")
    agent.processes.poll()
    for job in ("a", "b", "never heard of"):
        agent.processes.end(job, "cancelled by carol")
    why = Outcome("cancelled by carol", "cancelled by carol")
    assert agent.processes.poll() == [("a", why), ("b", why)]


def test_an_agent_that_stops_ends_its_processes_and_no_job() -> None:
    agent = Agent(1)
    agent.add("a", "b")
    agent.processes.poll()
    agent.processes.stop("its agent stops")
    assert agent.runs["a"].outcome is not None
    assert agent.runs["a"].outcome.may_pass
    assert agent.processes.poll() == []
    assert not agent.processes
    assert agent.starts == ["a"]


def test_a_process_that_cannot_be_started_is_a_failure_of_its_job() -> None:
    def start(_task: Task) -> Run:
        raise OSError(28, "No space left on device")

    processes = Processes(start)
    processes.add((1, "a"), task("a"))
    processes.poll()
    ((job, outcome),) = processes.poll()
    assert (job, outcome.told) == (
        "a", "its process cannot be started (No space left on device)",
    )  # fmt: skip
