"""``redislink agent``: waits for jobs, and runs those that the policy or a person accepts.

Rules: the agent listens on no port and no socket; whatever it does is one line on stderr.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli import errors, who
from redislink.cli.errors import Verbose
from redislink.cli.programs import ProgramsOption, store_at
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.settings import RedisLinkSettings

LOGGER = "redislink.jobs"
"""What an agent does and why; each record is one line."""


def agent(
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The policy: which jobs run here; otherwise REDISLINK_POLICY_FILE.",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory of the jobs: what is known of each, its log, its results; otherwise "
            "REDISLINK_WORK_DIR.",
            show_default=False,
        ),
    ] = None,
    programs: ProgramsOption = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    verbose: Verbose = False,
) -> None:
    """Wait for jobs, and run those that the policy accepts, or a person at this machine.

        redislink agent --policy policy.yaml \\
            --programs programs --work work

    Where redislink init made a session, it finds these by itself, and a policy that asks about all.

    It dials out to the broker, listens on nothing, and runs until SIGTERM or Ctrl-C; the jobs that
    run then go on when it starts again. SIGHUP has it read the policy again. People decide with
    redislink jobs approve, refuse and cancel --work DIR.
    """
    # One that comes before the agent has its handler would end it; so it waits until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from redislink.jobs.agent import Agent, Place

    settings = RedisLinkSettings.load()
    _, spec, name = who.resolve(settings, cluster, party, identity)
    identity = identity or settings.identity_file_of(name)
    if identity is None:
        raise ConfigError(
            f"{name}: no identity: give --identity FILE, or set REDISLINK_IDENTITY_FILE to the "
            f"file that redislink keygen {name} wrote"
        )
    policy = policy or settings.policy_file_of(name)
    if policy is None:
        raise ConfigError(
            f"{name}: no policy: give --policy FILE, or set REDISLINK_POLICY_FILE; redislink init "
            "makes one that asks about each job"
        )
    work = work or settings.work_dir_of(name)
    if work is None:
        raise ConfigError(f"{name}: no directory: give --work DIR, or set REDISLINK_WORK_DIR")
    store = store_at(programs)
    with errors.say_records(LOGGER, name):
        Agent(Place(spec, name, identity, policy, store.directory, work), settings).serve()
