"""``redislink jobs``: what becomes of jobs, and what people decide about them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli import decide, driving
from redislink.cli.driving import DriverOption, JobsDirOption
from redislink.cli.errors import EPILOG, Verbose, say, show
from redislink.cli.output import JsonOption, group, moment
from redislink.cli.who import ClusterOption, IdentityOption
from redislink.errors import ConfigError
from redislink.files import open_new
from redislink.settings import RedisLinkSettings
from redislink.text import one_line, printable

if TYPE_CHECKING:
    from redislink.jobs.client import Client
    from redislink.jobs.offer import Offer

_LISTEN = 5.0
"""Seconds in which agents that run say that they have ended a job."""
app = group("What becomes of jobs: for their driver, or with --work at an agent's machine.")
WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="At an agent's machine: its work directory; otherwise REDISLINK_WORK_DIR.",
        show_default=False,
    ),
]
WorkOrDriver = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="At an agent's machine: its work directory, instead of the driver's options; where no "
        "option names either, REDISLINK_WORK_DIR if an agent has run there.",
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
def approve(job: JobArgument, work: WorkOption = None, verbose: Verbose = False) -> None:
    """Approve a job that waits for a person at this agent: this one job, with this program.

    redislink jobs show JOB --work DIR --source shows what would run.
    """
    decide.decide(decide.work_at(work), job, "approve")


@app.command(epilog=EPILOG)
def refuse(
    job: JobArgument, work: WorkOption = None, reason: ReasonOption = "", verbose: Verbose = False
) -> None:
    """Refuse a job that waits for a person at this agent. It starts nowhere."""
    decide.decide(decide.work_at(work), job, "refuse", reason)


@app.command(epilog=EPILOG)
def cancel(
    job: JobArgument,
    work: WorkOrDriver = None,
    reason: ReasonOption = "",
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    verbose: Verbose = False,
) -> None:
    """End a job everywhere, whatever it is at: as its driver, or at an agent's machine."""
    driving.one_of_work_and_driver(work, driver=driver, identity=identity, jobs_dir=jobs_dir)
    if work is None:
        work = decide.work_here(job, driver=driver, identity=identity, jobs_dir=jobs_dir)
    if work is not None:
        decide.decide(work, job, "cancel", reason)
        return
    if reason:
        raise ConfigError("--reason is for an agent's machine: a driver gives none")
    with driving.client_of(cluster, driver, identity, jobs_dir) as client:
        client.refresh()
        if client.cancel(job):
            client.wait(job, _LISTEN)
        show(f"job {job}: {driving.line(client.show(job))}")
        unseen = client.show(job).unseen
        if unseen:
            say(f"job {job}: {', '.join(unseen)} must still hear of it: redislink jobs wait {job}")


@app.command(epilog=EPILOG)
def wait(
    job: JobArgument,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="Wait no longer than this.", show_default=False
        ),
    ] = None,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Say what becomes of a job, and end when it has ended: with code 0 if it finished."""
    with driving.client_of(cluster, driver, identity, jobs_dir) as client:
        ended = client.wait(
            job, timeout, on_change=lambda now: say(f"job {now.id}: {driving.line(now)}")
        )
        if as_json:
            typer.echo(driving.as_json(ended))
        driving.check_ended_well(ended)


@app.command(epilog=EPILOG)
def logs(
    job: JobArgument,
    party: Annotated[str, typer.Argument(metavar="PARTY", help="Whose log.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended there.")
    ] = False,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    verbose: Verbose = False,
) -> None:
    """Print the log of a job at a party, if its policy lets it out."""
    with driving.client_of(cluster, driver, identity, jobs_dir) as client:
        client.refresh()
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for part in client.logs(job, party, follow=follow):
            typer.echo(printable(decode(part), keep="\n\t"), nl=False)


@app.command(epilog=EPILOG)
def result(
    job: JobArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name of the result; otherwise all are listed."),
    ] = None,
    party: Annotated[
        str | None,
        typer.Option(
            "--party", metavar="NAME", help="Who gives it; otherwise the first that does."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write it there, as a program of the job's wrote it (redislink.values).",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    verbose: Verbose = False,
) -> None:
    """Print or write a result of a job that has finished, if a policy lets it out."""
    from redislink.values import encode_value

    with driving.client_of(cluster, driver, identity, jobs_dir) as client:
        client.refresh()
        if name is None:
            for who, names in client.show(job).results.items():
                for each in names:
                    show(f"{who}  {each}")
            return
        value = client.result(job, name, party)
        if out is None:
            show(repr(value))
            return
        _write(out, encode_value(value))
        say(f"wrote {out}")


@app.command("list", epilog=EPILOG)
def list_jobs(
    work: WorkOrDriver = None,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    lost: Annotated[
        bool,
        typer.Option(
            "--ask-agents", help="Ask the agents instead, for a driver that has lost its files."
        ),
    ] = False,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """List the jobs of a driver, or of an agent, the newest last."""
    driving.one_of_work_and_driver(work, driver=driver, identity=identity, jobs_dir=jobs_dir)
    if work is None:
        work = decide.work_here(
            None, driver=driver, identity=identity, jobs_dir=jobs_dir, ask_agents=lost
        )
        if work is not None and not as_json:
            say(f"at this agent ({work}); of a driver: redislink jobs list --driver NAME")
    if work is None:
        with driving.client_of(cluster, driver, identity, jobs_dir) as client:
            _list_of_driver(client, as_json=as_json, lost=lost)
        return
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
            Text(one_line(each["program_name"] or each["program"][: decide.SHOWN_DIGEST])),
            Text(moment(each["since"])),
        )
    Console().print(table)


@app.command("show", epilog=EPILOG)
def show_job(
    job: JobArgument,
    work: WorkOrDriver = None,
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
        typer.Option(
            metavar="DIR",
            help="The agent's programs; otherwise REDISLINK_PROGRAMS_DIR.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    driver: DriverOption = None,
    identity: IdentityOption = None,
    jobs_dir: JobsDirOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a job: what is asked for, what was decided, how far it is at each party."""
    driving.one_of_work_and_driver(work, driver=driver, identity=identity, jobs_dir=jobs_dir)
    settings = RedisLinkSettings.load()
    if work is None and (source or diff):
        work = settings.work_dir_of()
        if work is None:
            raise ConfigError("--source and --diff are for an agent's machine: give --work DIR")
    if work is None:
        work = decide.work_here(job, driver=driver, identity=identity, jobs_dir=jobs_dir)
    if work is None:
        with driving.client_of(cluster, driver, identity, jobs_dir) as client:
            client.refresh()
            if as_json:
                typer.echo(driving.as_json(client.show(job)))
            else:
                driving.show_job(client.show(job))
        return
    entry = decide.job_at_agent(work, job)
    if source or diff:
        _show_source(entry.offer, programs or settings.programs_dir, diff=diff)
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
        "why_not_others": list(entry.decision.details) if entry.decision is not None else [],
        "approved_by": entry.approved_by,
        "others": {party: str(status.state) for party, status in entry.peers.items()},
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name in ("issued", "expires", "since"):
        facts[name] = f"{moment(facts[name])} UTC"
    for name, value in facts.items():
        if value is not False and value not in ("", [], {}):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            show(f"{name.replace('_', ' ')}: {shown}")


def _write(out: Path, data: bytes) -> None:
    try:
        with open_new(out) as file:
            file.buffer.write(data)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}: give --out another name") from None


def _list_of_driver(client: Client, *, as_json: bool, lost: bool) -> None:
    if lost:
        for party, jobs in client.ask_agents().items():
            for offer, status in jobs:
                show(f"{offer.job}  {party}  {driving.progress(status)}")
        return
    client.refresh()
    if as_json:
        typer.echo(json.dumps([driving.facts(job) for job in client.list()]))
        return
    table = Table()
    for heading in ("job", "state", "program", "offered (UTC)"):
        table.add_column(heading, overflow="fold")
    for job in client.list():
        program = job.offer.program_name or job.offer.program[: decide.SHOWN_DIGEST]
        table.add_row(
            *(Text(cell) for cell in (job.id, driving.line(job), program)),
            Text(moment(job.offer.issued)),
        )
    Console().print(table)


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
