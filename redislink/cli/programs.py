"""``redislink programs``: which programs may run as jobs here.

Rules: what another organisation wrote is shown with its control characters escaped, on stdout, and
runs nowhere here; a person who adds a program by hand approves it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli import decide
from redislink.cli.errors import EPILOG, Verbose, say, show
from redislink.cli.output import JsonOption, count, group, size
from redislink.errors import ConfigError
from redislink.jobs.program import Program, diff, listing
from redislink.jobs.spec import default_name
from redislink.jobs.store import Entry, ProgramStore
from redislink.settings import RedisLinkSettings
from redislink.text import one_line

_WIDTH: Final = 120
"""Characters of a digest in a table: enough to name it in a command."""
ProgramsOption = Annotated[
    Path | None,
    typer.Option(
        "--programs",
        metavar="DIR",
        help="Directory of the programs; otherwise REDISLINK_PROGRAMS_DIR.",
        show_default=False,
    ),
]
_Wanted = Annotated[
    str,
    typer.Argument(metavar="PROGRAM", help="Name or digest of a program; its beginning will do."),
]
app = group("Add, show, approve and remove the programs that may run as jobs here.")


def store_at(directory: Path | None) -> ProgramStore:
    """The program store of the option ``--programs`` or the settings.

    Raises:
        ConfigError: neither names one.
    """
    directory = directory or RedisLinkSettings.load().programs_dir
    if directory is None:
        raise ConfigError("no directory: give --programs DIR, or set REDISLINK_PROGRAMS_DIR")
    return ProgramStore(directory)


@app.command("add", epilog=EPILOG)
def add_program(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            help="A Python file, or a directory with main.py.",
            show_default=False,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="JOB",
            help="Instead of PATH: the program that came with this job's offer.",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --job: the agent's work directory; otherwise REDISLINK_WORK_DIR.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name that rules of the policy use; otherwise that of the file or directory, or "
            "the one that the driver gave.",
            show_default=False,
        ),
    ] = None,
    not_approved: Annotated[
        bool,
        typer.Option(
            "--not-approved", help="Only add it: somebody else approves it, and may look first."
        ),
    ] = False,
    programs: ProgramsOption = None,
    verbose: Verbose = False,
) -> None:
    """Copy a program to the programs that may run here, and approve it.

    Stdout has its digest, which a job file may name as program. Hidden files and bytecode are left
    out. Another version of a name does not replace the older ones: see redislink programs remove.
    """
    store = store_at(programs)
    program, usual = _program_at(path) if job is None else _program_of(job, work, path)
    chosen = name or usual
    entry = store.add(
        program, chosen, by=decide.who_decides(), now=time.time(), approved=not not_approved
    )
    others = [e for e in store.entries() if e.name == entry.name and e.digest != entry.digest]
    approved = [e.digest[: decide.SHOWN_DIGEST] for e in others if e.approved is not None]
    show(entry.digest)
    say(f"{entry.name}: {_described(program)}, {_state(entry)}")
    if approved:
        say(f"other versions of {entry.name} may run too: {', '.join(approved)}")


@app.command("list", epilog=EPILOG)
def list_programs(
    programs: ProgramsOption = None, as_json: JsonOption = False, verbose: Verbose = False
) -> None:
    """List the programs, with who added and who approved each."""
    entries = store_at(programs).entries()
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in entries]))
        return
    if not entries:
        say("no programs: add one with redislink programs add")
        return
    table = Table()
    for title in ("name", "digest", "added", "by", "approved", "by"):
        table.add_column(title, overflow="fold")
    for e in entries:
        approved = "no" if e.approved is None else _time(e.approved)
        cells = [e.name, e.digest[: decide.SHOWN_DIGEST], _time(e.added), e.added_by, approved]
        table.add_row(*(Text(one_line(cell)) for cell in (*cells, e.approved_by or "")))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


@app.command("show", epilog=EPILOG)
def show_program(
    program: _Wanted,
    source: Annotated[bool, typer.Option("--source", help="Show all its files.")] = False,
    against: Annotated[
        bool,
        typer.Option(
            "--diff", help="Show what differs from the last other version that was approved."
        ),
    ] = False,
    programs: ProgramsOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a program: its files, and on request their text.

    Characters that a terminal would not show as they are, appear as <U+001B>.
    """
    store = store_at(programs)
    entry = store.resolve(program)
    read = store.load(entry.digest)
    if as_json:
        files = {path: len(content) for path, content in read.files}
        typer.echo(json.dumps(entry.model_dump() | {"entry": read.entry, "files": files}))
        return
    for line in _about(entry, read):
        show(line)
    if source:
        typer.echo(listing(read), nl=False)
    if against:
        typer.echo(diff_to_approved(store, entry.name, read), nl=False)


@app.command("approve", epilog=EPILOG)
def approve_program(
    program: _Wanted, programs: ProgramsOption = None, verbose: Verbose = False
) -> None:
    """Approve a program that was added without: rules of the policy may then accept it."""
    store = store_at(programs)
    entry = store.approve(store.resolve(program).digest, by=decide.who_decides(), now=time.time())
    say(f"{entry.name} {entry.digest}: {_state(entry)}")


@app.command("remove", epilog=EPILOG)
def remove_program(
    program: _Wanted,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    programs: ProgramsOption = None,
    verbose: Verbose = False,
) -> None:
    """Remove a program, after asking: no new job can run it. Jobs that run go on."""
    store = store_at(programs)
    entry = store.resolve(program)
    what = f"{entry.name} {entry.digest}"
    if not yes and not typer.confirm(f"Remove {what}?", default=False, err=True):
        say("nothing removed")
        raise typer.Abort
    store.remove(entry.digest)
    say(f"removed {what}")


def _program_at(path: Path | None) -> tuple[Program, str]:
    if path is None:
        raise ConfigError("no program: give PATH, or --job JOB")
    return Program.read(path), default_name(path)


def _program_of(job: str, work: Path | None, path: Path | None) -> tuple[Program, str]:
    """The program that came with a job, and what its driver calls it."""
    if path is not None:
        raise ConfigError("--job JOB takes the program from a job, so give no PATH")
    offer = decide.job_at_agent(decide.work_at(work), job).offer
    if offer.source is None:
        raise ConfigError(f"{offer.job}: its program was not attached: give PATH instead")
    return Program.unpack_untrusted(offer.source), offer.program_name


def diff_to_approved(store: ProgramStore, name: str, program: Program) -> str:
    """What differs from the version of a name that was approved last, as text for a person."""
    last = store.last_approved(name, other_than=program.digest)
    if last is None:
        return f"no other version of {name} was approved: all of it is new\n{diff(None, program)}"
    changes = diff(store.load(last.digest), program) or "nothing differs\n"
    return f"since {last.digest}, {_state(last)}:\n{changes}"


def _about(entry: Entry, program: Program) -> Sequence[str]:
    return [
        f"{entry.name} {entry.digest}",
        f"added {_time(entry.added)} by {entry.added_by}; {_state(entry)}",
        f"{_described(program)}; {program.entry} is run",
        *(f"  {size(len(content)):>8}  {path}" for path, content in program.files),
    ]


def _described(program: Program) -> str:
    files = len(program.files)
    return f"{count(files)} file{'s' * (files != 1)}, {size(program.size)}"


def _state(entry: Entry) -> str:
    if entry.approved is None:
        return "not approved"
    return f"approved {_time(entry.approved)} by {entry.approved_by}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"
