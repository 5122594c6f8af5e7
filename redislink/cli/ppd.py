"""``redislink ppd``: run a program of SPU's examples, as a driver or as nodes, for trials.

Rule: its nodes run what the driver sends. So somebody says that the driver is trusted, in the
command or on the terminal, before anything starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from redislink.cli.errors import Verbose
from redislink.cli.interop import (
    AliasOption,
    ModuleOption,
    ProgramArguments,
    TrialDirOption,
    TrialOption,
    take_over,
)
from redislink.cli.retries import Attempts
from redislink.cli.run import run_as_main
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.protocol.list_names import check_name


def ppd(
    program: Annotated[
        str,
        typer.Argument(
            metavar="PROGRAM", help="Python file that imports examples.python.utils.distributed."
        ),
    ],
    arguments: ProgramArguments = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    driver: Annotated[
        str,
        typer.Option(metavar="NAME", help="Party of the program that calls ppd.init."),
    ] = "driver",
    trusted: Annotated[
        bool,
        typer.Option(
            "--i-trust-the-driver",
            help="Do not ask: functions of the driver, and of the nodes, may run here.",
        ),
    ] = False,
    aliases: AliasOption = None,
    trial: TrialOption = False,
    trial_dir: TrialDirOption = None,
    module: ModuleOption = False,
    verbose: Verbose = False,
) -> None:
    """Run PROGRAM, a driver or nodes of SPU's examples, without listening. For trials only.

    The nodes run functions that the driver sends, as pickles: whoever has the key of one of them
    can do anything that you can. On one machine, in two terminals:

        redislink ppd --trial-dir T utils/nodectl.py up
        redislink ppd --trial-dir T millionaire.py

    Between machines, the driver is one more party of the cluster file.
    """
    from redislink.interop.running import check_program

    check_program(program, module=module)
    check_name(driver, "driver")
    if not trusted:
        _ask(driver)
    os.environ["REDISLINK_TRUSTED_DRIVER"] = driver
    with contextlib.ExitStack() as stack:
        name = take_over(
            ("brpc", "ppd"), stack, cluster=cluster, party=party, identity=identity,
            aliases=aliases, trial=trial, trial_dir=trial_dir,
        )  # fmt: skip
        run_as_main(program, arguments or [], name, Attempts(0, 0), module=module)


def _ask(driver: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"ppd runs here whatever {driver} sends: give --i-trust-the-driver if you do, or start "
            "this on a terminal, where it asks"
        )
    asked = f"For trials only: {driver} can do here anything that you can. Do you trust it?"
    if not typer.confirm(asked, default=False, err=True):
        raise typer.Abort
