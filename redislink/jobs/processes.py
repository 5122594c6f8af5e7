"""The processes of an agent's jobs: each is started again if that may help.

Rules:
- A run that ended because of something that may pass is started again; its journal lets it go on.
- Which jobs run at once is decided elsewhere (`redislink.jobs.machine`).
- Nothing here waits; call `Processes.poll` about twice a second.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from redislink.jobs.runner import Outcome, Progress, Task, Used

_RESTARTS: Final = 3
"""Ends of a process that nobody wanted, in a row, after which the job has failed."""
_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 60.0


class AnyRunning(Protocol):
    """What this module needs of `redislink.jobs.runner.Running`."""

    progress: Progress

    @property
    def used(self) -> Used:
        """What it has used."""

    def poll(self) -> Outcome | None:
        """How it has ended."""

    def end(self, reason: str, *, may_pass: bool = False) -> None:
        """Make it end."""


@dataclass(slots=True)
class _Job:
    task: Task
    running: AnyRunning | None = None
    failures: int = 0
    may_start_at: float = 0.0
    last: Outcome | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)


class Processes:
    """The jobs that an agent runs."""

    def __init__(
        self, start: Callable[[Task], AnyRunning], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        start: starts a job's process (`Runner.start`).
        clock: seconds.
        """
        self._start = start
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._stopping = False

    def __contains__(self, job: str) -> bool:
        return job in self._jobs

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._jobs))

    def add(self, task: Task) -> None:
        """Run a job."""
        self._jobs.setdefault(task.job, _Job(task))

    def end(self, job: str, reason: str) -> None:
        """End a job's process for good; `poll` tells when it has ended.

        Args:
            job: the job's id; nothing happens if it is not here.
            reason: one line, which the peers are told.
        """
        found = self._jobs.get(job)
        if found is None:
            return
        if found.running is not None:
            found.running.end(reason)
        else:
            found.last, found.failures = Outcome(reason, reason), _RESTARTS + 1

    def stop(self, reason: str) -> None:
        """End all processes; the jobs go on when the agent starts again."""
        self._stopping = True
        for job in self._jobs.values():
            if job.running is not None:
                job.running.end(reason, may_pass=True)

    def state(self, job: str) -> tuple[Progress, Used]:
        """How far a job is, and what it has used."""
        found = self._jobs[job]
        if found.running is None:
            return found.progress, found.task.used
        return found.running.progress, found.running.used

    def poll(self) -> list[tuple[str, Outcome]]:
        """Do what is due. Returns the jobs that have ended since the last call, and how."""
        ended = []
        for name, job in list(self._jobs.items()):
            outcome = self._poll(job)
            if outcome is not None:
                del self._jobs[name]
                ended.append((name, outcome))
        if self._stopping:
            self._jobs = {n: job for n, job in self._jobs.items() if job.running is not None}
        else:
            self._start_those_due()
        return ended

    def _poll(self, job: _Job) -> Outcome | None:
        if job.running is None:
            return job.last if job.failures > _RESTARTS else None
        outcome = job.running.poll()
        if outcome is None:
            return None
        has_met = job.running.progress.has_met
        job.task = dataclasses.replace(job.task, used=job.running.used)
        job.running = None
        if not outcome.may_pass:
            return outcome
        if self._stopping:
            return None
        job.failures = 1 if has_met else job.failures + 1
        job.last = outcome
        if job.failures > _RESTARTS:
            return dataclasses.replace(outcome, may_pass=False)
        pause = min(_FIRST_PAUSE * 2 ** (job.failures - 1), _LONGEST_PAUSE)
        job.may_start_at = self._clock() + pause
        job.progress = Progress(text=f"starts again: {outcome.told}")
        return None

    def _start_those_due(self) -> None:
        now = self._clock()
        for job in self._jobs.values():
            if job.running is None and now >= job.may_start_at and job.failures <= _RESTARTS:
                self._begin(job)

    def _begin(self, job: _Job) -> None:
        try:
            job.running = self._start(job.task)
        except OSError as error:
            why = f"its process cannot be started ({error.strerror or type(error).__name__})"
            job.last, job.failures = Outcome(why, why), _RESTARTS + 1
