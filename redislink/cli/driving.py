"""What the driver's commands share: who the driver is, where its jobs are, how a job is shown.

Rule: what agents and policies of others said goes through `show`, which escapes it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redislink.cli import errors
from redislink.cli.output import duration
from redislink.errors import ConfigError
from redislink.text import one_line

if TYPE_CHECKING:
    from redislink.jobs.client import Client, Job
    from redislink.jobs.status import Status

DriverOption = Annotated[
    str | None,
    typer.Option(
        "--driver",
        metavar="NAME",
        help="Who submits jobs: a driver or party of the cluster file; otherwise REDISLINK_PARTY.",
        show_default=False,
    ),
]
JobsDirOption = Annotated[
    Path | None,
    typer.Option(
        "--jobs-dir",
        metavar="DIR",
        help="Where the driver's jobs are kept; otherwise REDISLINK_JOBS_DIR.",
        show_default=False,
    ),
]


@contextlib.contextmanager
def client_of(
    cluster: Path | None, driver: str | None, identity: Path | None, jobs_dir: Path | None
) -> Iterator[Client]:
    """The driver's client, connected until the block ends."""
    from redislink.jobs.client import Client

    errors.advise_doctor("--cluster", cluster, "--party", driver, "--identity", identity)
    with Client(cluster, driver, identity=identity, jobs_dir=jobs_dir) as client:
        yield client


def facts(job: Job) -> dict[str, Any]:
    """What is known of a job, as JSON can hold it."""
    offer, whole = job.offer, job.whole
    return {
        "job": job.id,
        "state": str(whole.state),
        "by": whole.by,
        "reason": whole.reason,
        "waits_for": list(whole.waits_for),
        "unknown": list(whole.unknown),
        "unseen": list(job.unseen),
        "program": offer.program,
        "program_name": offer.program_name,
        "arguments": offer.arguments,
        "parties": {
            party: job.statuses[party].to_value() if party in job.statuses else None
            for party in offer.parties
        },
        "results": {party: list(names) for party, names in job.results.items()},
        "issued": offer.issued,
        "expires": offer.expires,
    }


def as_json(job: Job) -> str:
    """`facts` in one line."""
    return json.dumps(facts(job))


def line(job: Job) -> str:
    """A job in one line: where it is as a whole, and what has to happen next."""
    whole = job.whole
    said = str(whole.state)
    if whole.state.has_ended:
        said += f" by {whole.by}" if whole.by else ""
        said += f": {whole.reason}" if whole.reason else ""
        if whole.unknown:
            said += f" (not heard from {', '.join(whole.unknown)})"
    elif whole.state == "waiting":
        said += f" for approval at {', '.join(whole.waits_for)}"
    elif whole.state == "offered":
        said += f", no answer yet from {', '.join(whole.waits_for)}"
    else:
        parts = [
            f"{party}: {progress(job.statuses[party])}"
            for party in whole.waits_for
            if party in job.statuses
        ]
        said += f" ({'; '.join(parts)})" if parts else ""
    return one_line(said)


def progress(status: Status) -> str:
    """What an agent is at, in a few words."""
    if status.state.has_ended:
        by = f" by {status.by}" if status.by else ""
        return f"{status.state}{by}{status.reason and f': {status.reason}'}"
    said = str(status.state)
    if status.step:
        said += f", step {status.step}"
    if status.text:
        said += f", {status.text}"
    elif status.reason:
        said += f": {status.reason}"
    if status.waits_for:
        said += f", waiting for {', '.join(status.waits_for)}"
    return said


def show_job(job: Job) -> None:
    """Print all that is known of a job."""
    offer, now = job.offer, time.time()
    errors.show(f"job {job.id}: {line(job)}")
    name = f"{offer.program_name}, " if offer.program_name else ""
    errors.show(f"program: {name}{offer.program}{', attached' if offer.source else ''}")
    if offer.arguments:
        errors.show(f"arguments: {json.dumps(offer.arguments, ensure_ascii=False)}")
    left = offer.expires - now
    until = f"expires in {duration(left)}" if left > 0 else "has expired"
    errors.show(f"offered {duration(max(0.0, now - offer.issued))} ago, {until}")
    width = max(map(len, offer.parties))
    for party in offer.parties:
        status = job.statuses.get(party)
        if status is None:
            said = "nothing heard"
        else:
            said = f"{progress(status)} (for {duration(max(0.0, now - status.since))})"
        if party in job.unseen:
            said += "; has not yet answered the last letter"
        errors.show(f"{party.ljust(width)}  {said}")
    for party, names in job.results.items():
        errors.show(f"results of {party}: {', '.join(names)}")


def check_ended_well(job: Job) -> None:
    """End the command with the code of its failure if a job did not finish."""
    from redislink.errors import JobError

    if not job.has_ended:
        raise JobError(f"job {job.id} has not ended yet: it is {line(job)}")
    if job.state != "finished":
        raise JobError(f"job {job.id} has ended: {line(job)}")


def one_of_work_and_driver(work: Path | None, **others: object) -> None:
    """Refuse options of the driver's next to ``--work``."""
    for name, value in others.items():
        if work is not None and value is not None:
            raise ConfigError(
                f"--work is for an agent's machine, --{name.replace('_', '-')} for a driver: give "
                "one of them"
            )
