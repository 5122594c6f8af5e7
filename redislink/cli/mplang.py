"""``redislink mplang``: workers and drivers of MPLang (v2) over redislink.

Rules: nothing here listens. A worker runs what its policy allows, and nothing without one. A
driver's program runs as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from redislink.cli import errors, who
from redislink.cli.errors import EPILOG, Verbose, check_finite
from redislink.cli.interop import (
    AliasOption,
    ModuleOption,
    ProgramArguments,
    TrialDirOption,
    TrialOption,
    take_over,
)
from redislink.cli.output import group
from redislink.cli.retries import Attempts
from redislink.cli.run import run_as_main
from redislink.cli.termination import sigterm_interrupts
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.files import open_in_place_of
from redislink.settings import RedisLinkSettings
from redislink.text import printable

app = group("Run programs of MPLang (v2): workers and drivers that listen on no port.")
_PROGRAM_FOLLOWS: Final = {"allow_interspersed_args": False}
"""From PROGRAM on nothing is ours."""
_MOST_REFUSED: Final = 1000
"""Files that a driver can make a worker write, and characters of each."""
_MOST_TEXT: Final = 1 << 20


def _check_timeout(seconds: float | None) -> float | None:
    return None if seconds is None else check_finite(seconds)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


@app.command("worker", epilog=EPILOG)
def worker(
    driver: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Who sends graphs: another party of the cluster file, or one of its drivers.",
            show_default=False,
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The policy: which graphs run here.", show_default=False),
    ] = None,
    allow_everything: Annotated[
        bool,
        typer.Option(
            "--allow-everything",
            help="Instead of a policy: run whatever the driver sends. It can then read and write "
            "every file of this user's. For trials only.",
        ),
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The workers, in the order of their ranks, as alice,bob. The same at all of them; "
            "without it, all parties but the driver.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for what graphs save, if the policy lets them. Without it, that is "
            "lost when the driver leaves.",
            show_default=False,
        ),
    ] = None,
    refused: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write each refused graph to DIR, as text that people can read.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when the driver has left, instead of waiting.")
    ] = False,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    verbose: Verbose = False,
) -> None:
    """Wait for a driver, and run what the policy allows of what it sends.

        redislink mplang worker --party alice \\
            --driver dana --policy mplang.yaml

    It dials out to the broker, listens on nothing, and runs until SIGTERM or Ctrl-C. When the
    driver leaves or is lost, its values are forgotten, and the worker waits for the next one.
    """
    from redislink.interop.mplang.meeting import joins, workers_of
    from redislink.interop.mplang.policy import Policy
    from redislink.interop.mplang.worker import LOGGER, StillComputing, serve_for_ever
    from redislink.interop.parties import Parties
    from redislink.logs import PartyLogger

    settings = RedisLinkSettings.load()
    path, spec, me = who.resolve(settings, cluster, party, identity)
    if (policy is None) is not allow_everything:
        raise ConfigError(
            "a worker runs only what a policy allows: give --policy FILE"
            + (", or --allow-everything for a trial" if policy is None else " or "
               "--allow-everything, not both")
        )  # fmt: skip
    rules = Policy.everything() if policy is None else Policy.load(policy)
    if policy is None:
        errors.say(f"{me}: --allow-everything: {driver} may run anything here: for trials only")
    ranked = workers_of(spec, driver, _names(workers))
    if me not in ranked:
        raise ConfigError(f"party {me!r} is none of the workers, {', '.join(ranked)}")
    changed = {"cluster_file": path, "party": me, "identity_file": identity}
    given = {name: value for name, value in changed.items() if value is not None}
    parties = Parties(settings.model_copy(update=given))
    from redislink.interop.mplang import binding

    with errors.say_records(LOGGER, me), sigterm_interrupts():
        try:
            serve_for_ever(
                joins(parties, ranked, driver, me),
                lambda endpoint: binding.engine(endpoint, store),
                driver,
                rules,
                on_refused=None if refused is None else _writer(refused),
                log=PartyLogger(spec.session, me, LOGGER),
                once=once,
            )
        except KeyboardInterrupt:
            return
        except StillComputing as error:
            errors.say(str(error), party=me)
            os._exit(int(errors.exit_code(error)))  # nothing else ends the thread


def _writer(directory: Path) -> Callable[[str, str], None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(digest: str, text: str) -> None:
        if sum(1 for _ in directory.iterdir()) < _MOST_REFUSED:
            with open_in_place_of(directory / f"{digest.replace(':', '-')}.txt") as file:
                file.write(printable(text[:_MOST_TEXT], keep="\n\t") + "\n")

    return write


@app.command("run", epilog=EPILOG, context_settings=_PROGRAM_FOLLOWS)
def run(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", help="Python file of the driver; with -m, a module.")
    ],
    arguments: ProgramArguments = None,
    module: ModuleOption = False,
    trial: TrialOption = False,
    trial_dir: TrialDirOption = None,
    aliases: AliasOption = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            callback=_check_timeout,
            help="Seconds that a worker may take for one request; otherwise "
            "REDISLINK_REQUEST_TIMEOUT, or any time.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    verbose: Verbose = False,
) -> None:
    """Run a driver's PROGRAM as it is; its graphs run at workers over the broker.

        redislink mplang run --party dana program.py

    make_driver and make_simulator in it use the workers of the cluster file: the nodes of their
    cluster_spec are parties. --party may be one of the file's drivers. To try a program alone:

        redislink mplang run --trial program.py
    """
    from redislink.interop.mplang.programs import STAND_INS, end_workers
    from redislink.interop.running import check_program

    check_program(program, module=module)
    with contextlib.ExitStack() as stack:
        if request_timeout is not None:
            os.environ["REDISLINK_REQUEST_TIMEOUT"] = str(request_timeout)
        name = take_over(
            STAND_INS, stack, cluster=cluster, party=party, identity=identity,
            aliases=aliases, trial=trial, trial_dir=trial_dir, drives=True,
        )  # fmt: skip
        stack.callback(end_workers)  # before a trial's broker ends
        run_as_main(program, arguments or [], name, Attempts(0, 0), module=module)
