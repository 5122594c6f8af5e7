"""``redislink jobs``: what becomes of jobs, and what people decide about them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli import decide
from redislink.cli.errors import EPILOG, Verbose, show
from redislink.cli.operator import JsonOption
from redislink.errors import ConfigError
from redislink.text import one_line

if TYPE_CHECKING:
    from redislink.jobs.offer import Offer

_DIGITS = 19
app = typer.Typer(
    help="Show, approve, refuse, cancel jobs: at an agent's machine with --work.",
    no_args_is_help=True,
)
WorkOption = Annotated[
    Path,
    typer.Option(
        "--work",
        metavar="DIR",
        help="At an agent's machine: its work directory.",
        show_default=False,
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
ReasonOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Why, in one line that the driver and the other parties read.",
        show_default=False,
    ),
]


@app.command(epilog=EPILOG)
def approve(job: JobArgument, work: WorkOption, verbose: Verbose = False) -> None:
    """Approve a job that waits for a person at this agent: this one job, with this program.

    redislink jobs show JOB --work DIR --source shows what would run.
    """
    decide.decide(work, job, "approve")


@app.command(epilog=EPILOG)
def refuse(
    job: JobArgument, work: WorkOption, reason: ReasonOption = "", verbose: Verbose = False
) -> None:
    """Refuse a job that waits for a person at this agent. It starts nowhere."""
    decide.decide(work, job, "refuse", reason)


@app.command(epilog=EPILOG)
def cancel(
    job: JobArgument, work: WorkOption, reason: ReasonOption = "", verbose: Verbose = False
) -> None:
    """End a job at this agent, and so everywhere, whatever it is at."""
    decide.decide(work, job, "cancel", reason)


@app.command("list", epilog=EPILOG)
def list_jobs(work: WorkOption, as_json: JsonOption = False, verbose: Verbose = False) -> None:
    """List the jobs of this agent, the newest last."""
    found = decide.jobs_at_agent(work)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table()
    for heading in ("job", "state", "driver", "program", "since (UTC)"):
        table.add_column(heading, overflow="fold")
    for each in found:
        table.add_row(
            *(Text(one_line(str(cell))) for cell in (each["job"], _state(each), each["driver"])),
            Text(one_line(each["program_name"] or each["program"][:_DIGITS])),
            Text(_time(each["since"])),
        )
    Console().print(table)


@app.command("show", epilog=EPILOG)
def show_job(
    job: JobArgument,
    work: WorkOption,
    source: Annotated[
        bool, typer.Option("--source", help="Print the program that came with the offer.")
    ] = False,
    diff: Annotated[
        bool,
        typer.Option(
            "--diff", help="Print how it differs from the version approved last; with --programs."
        ),
    ] = False,
    programs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The agent's programs.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a job of this agent: what is asked for, what was decided, how far it is."""
    entry = decide.job_at_agent(work, job)
    if source or diff:
        _show_source(entry.offer, programs, diff=diff)
        return
    listed = next(each for each in decide.jobs_at_agent(work) if each["job"] == job)
    offer = entry.offer
    facts: dict[str, Any] = listed | {
        "arguments": offer.arguments,
        "data": {party: list(names) for party, names in offer.data.items()},
        "devices": list(offer.devices),
        "results": list(offer.results),
        "attached": offer.source is not None,
        "rule": entry.decision.rule if entry.decision is not None else "",
        "approved_by": entry.approved_by,
        "others": {party: str(status.state) for party, status in entry.peers.items()},
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name in ("issued", "expires", "since"):
        facts[name] = f"{_time(facts[name])} UTC"
    for name, value in facts.items():
        if value not in ("", [], {}):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            show(f"{name.replace('_', ' ')}: {shown}")


def _show_source(offer: Offer, programs: Path | None, *, diff: bool) -> None:
    from redislink.jobs.program import Program, listing
    from redislink.jobs.program import diff as difference
    from redislink.jobs.store import ProgramStore

    store = None if programs is None else ProgramStore(programs)
    if offer.source is not None:
        program = Program.unpack_untrusted(offer.source)
    elif store is not None:
        program = store.load(offer.program)
    else:
        raise ConfigError(f"{offer.job}: its program was not attached: give --programs DIR")
    if not diff:
        typer.echo(listing(program), nl=False)
        return
    if store is None:
        raise ConfigError("--diff compares with the agent's programs: give --programs DIR")
    last = store.last_approved(offer.program_name, other_than=offer.program)
    show(f"from {'nothing' if last is None else last.digest} to {offer.program}")
    before = None if last is None else store.load(last.digest)
    typer.echo(difference(before, program), nl=False)


def _state(each: dict[str, Any]) -> str:
    by = f" by {each['by']}" if each["by"] else ""
    reason = each["reason"] or (
        each["progress"] if each["state"] in ("starting", "running") else ""
    )
    return f"{each['state']}{by}{reason and f': {reason}'}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
