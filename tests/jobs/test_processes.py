"""The processes of jobs: started, started again, and ended."""

from __future__ import annotations

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
    def __init__(self) -> None:
        self.now = 0.0
        self.runs: dict[str, Run] = {}
        self.starts: list[str] = []
        self.processes = Processes(self._start, lambda: self.now)

    def _start(self, task: Task) -> Run:
        self.starts.append(task.job)
        self.runs[task.job] = Run(task)
        return self.runs[task.job]

    def add(self, *jobs: str) -> None:
        for job in jobs:
            self.processes.add(task(job))


def task(job: str) -> Task:
    return Task(
        job=job, directory=Path(), cluster=Path(), party="alice", identity=Path(), program=Path()
    )


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
    agent = Agent()
    agent.add("a")
    agent.processes.poll()
    agent.add("b")
    for job in ("a", "b", "never heard of"):
        agent.processes.end(job, "cancelled by carol")
    why = Outcome("cancelled by carol", "cancelled by carol")
    assert agent.processes.poll() == [("a", why), ("b", why)]


def test_an_agent_that_stops_ends_its_processes_and_no_job() -> None:
    agent = Agent()
    agent.add("a")
    agent.processes.poll()
    agent.add("b")
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
    processes.add(task("a"))
    processes.poll()
    ((job, outcome),) = processes.poll()
    assert (job, outcome.told) == (
        "a", "its process cannot be started (No space left on device)",
    )  # fmt: skip
