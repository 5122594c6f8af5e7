"""What ``redislink jobs`` does at an agent's machine: shows its jobs, and decides about them.

Rules:
- They act on files in the agent's work directory, and the agent takes them; so it needs no socket.
- What a driver wrote is shown with control characters escaped.
"""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from redislink.cli.errors import show
from redislink.errors import ConfigError
from redislink.settings import RedisLinkSettings
from redislink.text import one_line

if TYPE_CHECKING:
    from redislink.jobs.machine import AgentJob
    from redislink.jobs.work import WorkDirectory

Action = Literal["approve", "refuse", "cancel"]
_PATIENCE: Final = 5.0
"""Seconds that a command waits for the agent to take a decision."""
_LOOK: Final = 0.1
SHOWN_DIGEST: Final = 19
"""Characters of a program's digest that a table shows: ``sha256:`` and twelve digits."""


def work_at(directory: Path | None) -> Path:
    """The work directory of the option ``--work`` or the settings.

    Raises:
        ConfigError: neither names one.
    """
    found = directory or RedisLinkSettings.load().work_dir_of()
    if found is None:
        raise ConfigError(
            "no work directory, so no agent's machine: people at an agent decide, a driver does "
            "not; there, give --work DIR, or set REDISLINK_WORK_DIR (and REDISLINK_PARTY, if "
            "{party} is in it)"
        )
    return found


def work_here(job: str | None, **of_driver: object) -> Path | None:
    """The work directory that the settings name, where a command without ``--work`` means it.

    Args:
        job: the job that it must have; None for any or none.
        of_driver: the driver's options; any of them says that the driver is meant.

    Returns:
        None if the driver is meant, because of its options or because no agent has run here.
    """
    found = RedisLinkSettings.load().work_dir_of()
    if found is None or not found.is_dir() or any(of_driver.values()):
        return None
    if job is not None and _open(found).load(job) is None:
        return None
    return found


def jobs_at_agent(work: Path) -> list[dict[str, Any]]:
    """What the agent knows of its jobs, the newest last; JSON can hold it.

    Raises:
        ConfigError: the work directory cannot be used.
    """
    directory = _open(work)
    found = []
    for job in directory.jobs():
        entry = _load(directory, job)
        noted = directory.noted(job)
        found.append(
            {
                "job": job,
                "state": str(entry.state),
                "driver": entry.offer.driver,
                "program": entry.offer.program,
                "program_name": entry.offer.program_name,
                "parties": list(entry.offer.parties),
                "by": entry.status.by,
                "reason": entry.status.reason,
                "progress": noted.progress,
                "issued": entry.offer.issued,
                "expires": entry.offer.expires,
                "since": entry.status.since,
                "wall_seconds": round(noted.wall, 1),
                "cpu_seconds": round(noted.cpu, 1),
                "decision_not_taken_yet": directory.is_decided(job),
                "directory": str(directory.of(job)),
            }
        )
    return sorted(found, key=lambda each: (each["issued"], each["job"]))


def job_at_agent(work: Path, job: str) -> AgentJob:
    """What the agent knows of one job.

    Raises:
        ConfigError: there is no such job.
    """
    return _load(_open(work), job)


def _open(work: Path) -> WorkDirectory:
    from redislink.jobs.work import WorkDirectory

    directory = WorkDirectory(work)
    directory.check()
    return directory


def _load(directory: WorkDirectory, job: str) -> AgentJob:
    from redislink.jobs.machine import AgentJob

    value = directory.load(job)
    if value is None:
        raise ConfigError(
            f"there is no job {one_line(job, 80)} in {directory.path}: redislink jobs list --work "
            f"{directory.path} shows which there are"
        )
    return AgentJob.from_value(value)


def decide(work: Path, job: str, action: Action, reason: str = "") -> None:
    """Leave a decision for the agent, wait a moment until it has taken it, and say what came of it.

    Args:
        work: the agent's work directory.
        job: the job's id.
        action: what is to become of it.
        reason: one line for the driver and the other parties.

    Raises:
        ConfigError: there is no such job, it has ended, or it does not wait for a person.
    """
    from redislink.jobs.status import State
    from redislink.jobs.work import Verdict

    directory = _open(work)
    entry = _load(directory, job)
    if entry.state.has_ended:
        raise ConfigError(f"{job} has ended: {_state(entry)}")
    if action != "cancel" and entry.state is not State.WAITING:
        raise ConfigError(
            f"{job} does not wait for a person: {_state(entry)}; redislink jobs cancel ends it"
        )
    verdict = Verdict(
        action=action,
        program=entry.offer.program,
        by=who_decides(),
        at=time.time(),
        reason=one_line(reason),
    )
    directory.decide(job, verdict)
    if not directory.is_used():
        show(f"{job}: {action}: noted; no agent runs here now, and the next one takes it")
        return
    give_up = time.monotonic() + _PATIENCE
    while directory.is_decided(job):
        if time.monotonic() > give_up:
            show(f"{job}: {action}: noted; the agent has not taken it yet")
            return
        time.sleep(_LOOK)
    show(f"{job}: {_state(_load(directory, job))}")


def _state(entry: AgentJob) -> str:
    by = f" by {entry.status.by}" if entry.status.by else ""
    return one_line(f"{entry.state}{by}{entry.status.reason and f': {entry.status.reason}'}")


def who_decides() -> str:
    """The person who runs this command, as records name them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for its user
        return f"user {os.getuid()}"
