"""``redislink run``: run one program as one party.

Rules: errors in the cluster file or the party are reported before the program starts. The program
runs as under ``python PROGRAM ARGS``, with ``REDISLINK_CLUSTER_FILE``, ``REDISLINK_PARTY`` and the
variables for the other options set; its exit code is passed on. SIGTERM ends the
session for all parties at once, with code 143, unless the program has its own handler
(`redislink.cli.termination`). With ``--retries``, an error that may pass is followed by another
attempt (`redislink.cli.retries`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli import errors, who
from redislink.cli.errors import ExitCode, Verbose, check_finite
from redislink.cli.exchange import DataOption, ResultsOption, exchanged
from redislink.cli.interop import (
    AliasOption,
    ModuleOption,
    ProgramArguments,
    TrialDirOption,
    TrialOption,
    take_over,
)
from redislink.cli.retries import Attempts
from redislink.cli.termination import interrupts_come_back, run_until_sigterm
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError, RedisLinkError
from redislink.identity.keypair import Identity
from redislink.session import supervisor
from redislink.session.supervisor import Supervisor
from redislink.settings import RedisLinkSettings


def run(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", help="Python file that every party runs.")
    ],
    arguments: ProgramArguments = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="DIR",
            help="Record a timeline in DIR, for redislink trace merge; otherwise in "
            "REDISLINK_TRACE_DIR.",
            show_default=False,
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="DIR",
            help="Keep a journal of the session's steps in DIR: when all parties start again, they "
            "go on from the last step that all have. Otherwise in REDISLINK_JOURNAL_DIR.",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            metavar="FILE",
            help="Append to FILE what is computed with whom, and what is revealed to whom, for "
            "redislink audit; {session} and {party} in it stand for their names. Otherwise to "
            "REDISLINK_AUDIT_FILE.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write a page about the run to FILE when it has ended, from an audit record and "
            "statistics, which are put next to it unless --audit or settings say where. Needs "
            "redislink[report].",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Begin the journal anew, and keep the one that is there aside. All parties do so. "
            "With --retries it counts for the first attempt only.",
        ),
    ] = False,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Run PROGRAM again, up to N times, after an error that may pass: another party is "
            "lost, late or has started again, or the broker stayed away. With --journal the steps "
            "so far are not computed again; without, all is.",
        ),
    ] = 0,
    retry_delay: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            callback=check_finite,
            help="Seconds between two attempts of --retries.",
        ),
    ] = 1.0,
    brpc_programs: Annotated[
        bool,
        typer.Option(
            "--brpc-programs",
            help="PROGRAM makes SPU links with libspu.link.create_brpc: let them go over the "
            "broker, also in the processes that it starts. Without --party it may be any party of "
            "the cluster file; --identity then has {party} in it.",
        ),
    ] = False,
    aliases: AliasOption = None,
    trial: TrialOption = False,
    trial_dir: TrialDirOption = None,
    module: ModuleOption = False,
    supervised: Annotated[int | None, typer.Option(hidden=True)] = None,
    ended: Annotated[Path | None, typer.Option(hidden=True)] = None,
    agent_record: Annotated[Path | None, typer.Option(hidden=True)] = None,
    data: DataOption = None,
    results: ResultsOption = None,
    verbose: Verbose = False,
) -> None:
    """Run PROGRAM as one party; redislink.Session.join() in it joins the session.

    Every party starts the same program on its own machine, with its own data:

        redislink run --party alice program.py

    A program that was written for SPU's own links runs as it is; on one machine, for a trial:

        redislink run --brpc-programs --trial program.py
    """
    from redislink.interop.running import check_program

    attempts = Attempts(retries, retry_delay)
    settings = RedisLinkSettings.load()
    stack = contextlib.ExitStack()
    path: Path | None = None
    if brpc_programs:
        if journal or fresh or audit or report or data or results:
            raise ConfigError(
                "--journal, --fresh, --audit, --report, --data and --results are for programs with "
                "a Session: leave them out, or leave out --brpc-programs"
            )
        check_program(program, module=module)
        name = take_over(
            ("brpc",), stack, cluster=cluster, party=party, identity=identity, aliases=aliases,
            trial=trial, trial_dir=trial_dir,
        )  # fmt: skip
    elif aliases or trial or trial_dir:
        raise ConfigError(
            "--alias, --trial and --trial-dir are for programs that were written for other links: "
            "give --brpc-programs too, or try a program with a Session by redislink simulate"
        )
    else:
        path, name = _as_party(settings, cluster, party, identity)
        check_program(program, module=module)
    if trace is not None:
        os.environ["REDISLINK_TRACE_DIR"] = str(trace.resolve())
    if audit is not None:
        os.environ["REDISLINK_AUDIT_FILE"] = str(audit.absolute())
    if journal is not None:
        os.environ["REDISLINK_JOURNAL_DIR"] = str(journal.resolve())
    elif fresh and settings.journal_dir is None:
        raise ConfigError("--fresh without a journal: give --journal DIR too")
    os.environ.update(exchanged(settings, data, results) | errors.spu_log(settings))
    if report is not None and path is not None:
        from redislink.cli.report import report_at_end

        report_at_end(report, path, name, agent_record)
    if attempts.number > 1:
        os.environ["REDISLINK_BROKER_WAIT"] = "true"  # it was reached before
    if fresh or settings.journal_fresh:
        os.environ["REDISLINK_JOURNAL_FRESH"] = str(attempts.number == 1).lower()
    if supervised is not None:
        supervisor.here = Supervisor(supervised, ended)
    with stack, _end_is_told():
        run_as_main(program, arguments or [], name, attempts, module=module)


def _as_party(
    settings: RedisLinkSettings, cluster: Path | None, party: str | None, identity: Path | None
) -> tuple[Path, str]:
    """Set the variables of these options; return the cluster file and the party."""
    path, _, name = who.resolve(settings, cluster, party, identity)
    os.environ["REDISLINK_CLUSTER_FILE"] = str(path.resolve())
    os.environ["REDISLINK_PARTY"] = name
    identity = identity or settings.identity_file_of(name)
    if identity is not None:
        Identity.load(identity)  # so that an error in it comes now
        os.environ["REDISLINK_IDENTITY_FILE"] = str(identity.resolve())
    return path, name


@contextlib.contextmanager
def _end_is_told() -> Iterator[None]:
    """Tell the supervisor, if there is one, how this run ends."""
    code, why = 0, None
    try:
        yield
    except SystemExit as end:  # of the program, or of ours, which report an error
        code, why = _code(end), end.__context__ or end
        raise
    except BaseException as error:
        code, why = int(errors.exit_code(error)), error
        raise
    finally:
        if supervisor.here is not None:
            supervisor.here.tell_end(code, why if code else None)


def _code(end: SystemExit) -> int:
    """The exit code that Python makes of a SystemExit."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    return int(ExitCode.PROGRAM)


def _run_program(program: str, arguments: list[str], *, module: bool) -> None:
    from redislink.interop.running import run_program

    failed: BaseException | None = None
    try:
        run_program(program, arguments, module=module)
    except BaseException as error:
        ends_well = isinstance(error, SystemExit) and error.code in (None, 0)
        failed = None if ends_well else error
        raise
    finally:
        closing = sys.modules.get("redislink.transport.closing")
        if closing is not None:
            closing.leave_open_endpoints(failed)


def run_as_main(
    program: str, arguments: list[str], party: str, attempts: Attempts, *, module: bool
) -> None:
    """Run a program as ``__main__``, and end this process as the program ends.

    Args:
        program: path of a file, or name of a module.
        arguments: its arguments.
        party: the party that this process is; "" if it may be any.
        attempts: which attempt this is.
        module: whether ``program`` is a module's name.
    """

    def attempt() -> None:
        attempts.wait()
        _run_program(program, arguments, module=module)

    try:
        with errors.say_progress(party), interrupts_come_back():
            run_until_sigterm(party, attempt)
    except RedisLinkError as error:
        if attempts.may_follow(error):
            if supervisor.here is not None:
                supervisor.here.tell_attempt(attempts.number + 1, error)
            attempts.begin_next(error, party)
        errors.fail(error, party)
    except KeyboardInterrupt:
        errors.say(errors.with_party("interrupted", party))
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except Exception as error:  # noqa: BLE001 - whatever the program raises is shown and ends it
        errors.fail_program(error, program, party)
