"""``redislink submit``: offer a job to the agents of its parties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redislink.cli import driving, errors
from redislink.cli.driving import DriverOption, JobsDirOption
from redislink.cli.errors import Verbose
from redislink.cli.output import JsonOption
from redislink.cli.who import ClusterOption, IdentityOption
from redislink.errors import BrokerError

_LISTEN = 3.0
"""Seconds in which agents that run say that they have the offer."""


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file: what to run.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Say what happens, and end when the job has ended.")
    ] = False,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Offer a job to the agents of its parties, and print its id.

    Each agent's policy decides, and the job starts once all have accepted. An agent that is away
    finds the offer when it is back, until the offer expires.

        redislink submit --driver coordinator job.yaml --wait
    """
    with driving.client_of(cluster, driver, identity, jobs_dir) as client:
        offered = client.submit(job)
        if not as_json:
            errors.show(offered.id)
        if wait:
            offered = client.wait(
                offered.id, on_change=lambda now: errors.say(f"job {now.id}: {driving.line(now)}")
            )
        else:
            offered = client.wait(offered.id, _LISTEN)
        if as_json:
            typer.echo(driving.as_json(offered))
        if wait:
            driving.check_ended_well(offered)
            return
        try:
            client.refresh(0)
        except BrokerError:
            errors.say(
                f"job {offered.id}: is kept here, and perhaps not at the broker yet: redislink "
                "jobs wait pushes it again"
            )
            raise
        if offered.unseen:
            errors.say(
                f"job {offered.id}: not heard yet from {', '.join(offered.unseen)}: the offer "
                "waits at the broker; redislink jobs wait pushes it again if the broker loses it"
            )
        errors.say(f"job {offered.id}: {driving.line(offered)}")
