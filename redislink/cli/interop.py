"""What the commands for programs that were written for other links have in common."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli.errors import advise_doctor, say
from redislink.errors import ConfigError
from redislink.settings import RedisLinkSettings

AliasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--alias",
        metavar="NAME=PARTY",
        help="What the program calls a party, such as node:0=alice; you may repeat this option. "
        "Otherwise REDISLINK_ALIASES.",
        show_default=False,
    ),
]
TrialOption = Annotated[
    bool,
    typer.Option(
        "--trial",
        help="For trials only: all parties that the program names are on this machine; make keys "
        "and a broker for them.",
    ),
]
TrialDirOption = Annotated[
    Path | None,
    typer.Option(
        "--trial-dir",
        metavar="DIR",
        help="The same, for several commands that name the same DIR. The first one runs the "
        "broker, and ends last.",
        show_default=False,
    ),
]
ProgramArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ARGS",
        help="Arguments of the program, passed on unchanged.",
        show_default=False,
    ),
]
ModuleOption = Annotated[
    bool,
    typer.Option("--module", "-m", help="PROGRAM is the name of a module, as after python -m."),
]


def take_over(
    stand_ins: Sequence[str],
    stack: contextlib.ExitStack,
    *,
    cluster: Path | None,
    party: str | None,
    identity: Path | None,
    aliases: list[str] | None,
    trial: bool,
    trial_dir: Path | None,
    drives: bool = False,
) -> str:
    """Let this process, and those that it starts, make their links over the relay.

    Args:
        stand_ins: their names in `redislink.interop.startup.sitecustomize`.
        stack: ends what is to end with the command.
        cluster, party, identity, aliases, trial, trial_dir: the options.
        drives: whether the party may be one of the cluster file's drivers.

    Returns:
        The party that this process is; "" if it may be any.

    Raises:
        ConfigError: the options or the files that they name are wrong.
    """
    from redislink.interop.parties import Parties
    from redislink.interop.startup import sitecustomize
    from redislink.interop.trial import take_part

    variables: dict[str, str] = {}
    if aliases:
        known = dict(RedisLinkSettings.load().aliases)
        variables["REDISLINK_ALIASES"] = json.dumps(known | dict(map(_alias, aliases)))
    if trial or trial_dir is not None:
        if cluster or party or identity:
            raise ConfigError(
                "a trial makes its own keys, for all parties: leave --cluster, --party and "
                "--identity out, or --trial and --trial-dir"
            )
        variables |= stack.enter_context(take_part(trial_dir))
        say("for trials only: this machine has the keys of all parties")
    else:
        advise_doctor("--cluster", cluster, "--party", party, "--identity", identity)
        if cluster is not None:
            variables["REDISLINK_CLUSTER_FILE"] = str(cluster.resolve())
        if party is not None:
            variables["REDISLINK_PARTY"] = party
        if identity is not None:
            variables["REDISLINK_IDENTITY_FILE"] = str(identity.resolve())
    os.environ.update(variables)
    parties = Parties(drives=drives)
    for name in parties.ours:  # so that an error in it comes now
        parties.identity(name)
    sitecustomize.act(*stand_ins)
    return parties.party or ""


def _alias(words: str) -> tuple[str, str]:
    name, equals, party = words.rpartition("=")
    if not equals or not name or not party:
        raise ConfigError(f"--alias {words}: is not NAME=PARTY: write both")
    return name, party
