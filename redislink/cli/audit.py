"""``redislink audit show``, ``verify``, ``compare`` and ``key``: audit records.

Rules: a record may come from anybody, so all of it is made safe to print; what is wrong with it is
said on stderr and in the exit code, whatever else is shown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.audit import (
    AuditJob,
    AuditRun,
    Verification,
    compare_records,
    jobs_of,
    verify_file,
)
from redislink.audit.comparing import UNKNOWN
from redislink.audit.runs import AuditStep
from redislink.audit.verifying import when
from redislink.cli.errors import EPILOG, ExitCode, Verbose, say, show
from redislink.cli.output import JsonOption, count, group, size
from redislink.cli.who import IdentityOption
from redislink.cluster import load_cluster
from redislink.errors import ConfigError
from redislink.identity import Identity
from redislink.identity.signing import SigningKey, format_signing_key
from redislink.settings import RedisLinkSettings
from redislink.text import one_line

_WIDTH: Final = 120
_DIGITS: Final = 16
_MOST_SHOWN: Final = 4
RecordFile = Annotated[Path, typer.Argument(metavar="FILE", help="Audit record.")]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Cluster file that says whose keys sign; otherwise REDISLINK_CLUSTER_FILE.",
        show_default=False,
    ),
]
app = group("Show, verify or compare the audit records that redislink run --audit keeps.")


@app.command("show", epilog=EPILOG)
def show_record(
    file: RecordFile,
    cluster: Cluster = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show what was computed with whom, and what was revealed to whom.

    The record is verified too; problems go to stderr, and the exit code is then 2.
    """
    found = verify_file(file, signing_keys(cluster))
    if as_json:
        typer.echo(json.dumps(_as_dict(found)))
    else:
        for job in jobs_of(found.records):
            _show_job(job)
        for run in found.runs():
            _show_run(found.party, run)
    _end(found)


@app.command("verify", epilog=EPILOG)
def verify_record(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="One or more audit records.")
    ],
    cluster: Cluster = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Find out whether records are as they were written, and by whom.

    The exit code is 2 if one is not. Note the number of lines and the digest that are printed: who
    has them can tell later that nothing before them was changed.
    """
    keys = signing_keys(cluster)
    found = [verify_file(file, keys) for file in files]
    if as_json:
        typer.echo(json.dumps([_verified(each) for each in found]))
    for each in found:
        if each.is_good and not as_json:
            signed = "signed" if each.key else "not signed"
            if each.key and keys is not None and keys.get(each.party) == each.key:
                signed = f"signed with {each.party}'s key"
            show(
                f"{each.path}: good: of {each.party}, {count(len(each.records))} lines, {signed}, "
                f"digest {each.digest}"
            )
        _say(each)
    if not all(each.is_good for each in found):
        raise SystemExit(int(ExitCode.CONFIG))


@app.command("compare", epilog=EPILOG)
def compare_files(
    mine: Annotated[Path, typer.Argument(metavar="A", help="Audit record of one party.")],
    theirs: Annotated[Path, typer.Argument(metavar="B", help="Audit record of another party.")],
    cluster: Cluster = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Hold the records of two parties against each other: do they tell the same story?

    The exit code is 0 if they do, and 4 if they differ.
    """
    keys = signing_keys(cluster)
    found = compare_records(
        verify_file(mine, keys, needs_head=False), verify_file(theirs, keys, needs_head=False)
    )
    me, them = (party or "?" for party in found.parties)
    if as_json:
        told = {
            "parties": found.parties,
            "same_story": found.is_same_story,
            "agreed": found.agreed,
            "differences": found.differences,
            "remarks": found.remarks,
            "unknown": UNKNOWN,
        }
        typer.echo(json.dumps(told))
    else:
        for line in found.agreed:
            show(f"agree: {line}")
        for line in found.differences:
            show(f"DIFFER: {line}")
        for line in found.remarks:
            show(f"note: {line}")
        verdict = "tell the same story" if found.is_same_story else "do not tell the same story"
        show(f"{me} and {them} {verdict}. {UNKNOWN}")
    if not found.is_same_story:
        raise SystemExit(int(ExitCode.PEER))


@app.command("key", epilog=EPILOG)
def show_key(identity: IdentityOption = None, verbose: Verbose = False) -> None:
    """Print the signing_key of your identity, for the cluster file.

    redislink keygen prints it too. It follows from the identity, so older ones have one as well.
    """
    path = identity or RedisLinkSettings.load().identity_file_of()
    if path is None:
        raise ConfigError("no key: give --identity FILE, or set REDISLINK_IDENTITY_FILE")
    key = SigningKey(Identity.load(path)).public_key
    show(f'signing_key: "{format_signing_key(key)}"')


def signing_keys(cluster: Path | None) -> dict[str, str | None] | None:
    """The signing key of each party and driver in the cluster file; None if none is named."""
    path = cluster or RedisLinkSettings.load().cluster_file
    if path is None:
        return None
    spec = load_cluster(path)
    keys = {party.name: party.signing_key for party in spec.parties}
    return keys | {driver.name: driver.signing_key for driver in spec.drivers or ()}


def _say(found: Verification) -> None:
    for problem in found.problems:
        say(f"audit record {found.path}: {problem}")
    for remark in found.remarks:
        say(f"audit record {found.path}: note: {remark}")


def _end(found: Verification) -> None:
    _say(found)
    if not found.is_good:
        raise SystemExit(int(ExitCode.CONFIG))


def _verified(found: Verification) -> dict[str, Any]:
    return {
        "file": str(found.path),
        "good": found.is_good,
        "party": found.party,
        "key": found.key,
        "lines": len(found.records),
        "digest": found.digest,
        "problems": found.problems,
        "remarks": found.remarks,
    }


def _as_dict(found: Verification) -> dict[str, Any]:
    records = [
        {"n": record.n, "time": record.time, "kind": record.kind}
        | record.said.model_dump(mode="json")
        for record in found.records
    ]
    return _verified(found) | {"records": records}


def _show_job(job: AuditJob) -> None:
    lines = [f"job {job.job}"]
    for offer in job.offers:
        ignored = ", ignored: this id was offered before" if offer.conflicts else ""
        lines.append(
            f"  offered by {offer.driver}: {offer.program_name} {offer.program}, parties "
            f"{', '.join(offer.parties)}, arguments {offer.arguments}{ignored}"
        )
    for time, decision in job.decisions:
        who = f" {decision.who}" if decision.who else ""
        rule = f", rule {decision.rule}" if decision.rule else ""
        reason = f": {decision.reason}" if decision.reason else ""
        lines.append(f"  {when(time)} {decision.action} by {decision.by}{who}{rule}{reason}")
    for time, start in job.starts:
        data = "".join(f", data {name} {digest or ''}" for name, digest in start.data.items())
        lines.append(
            f"  {when(time)} attempt {start.attempt} started as session {start.session}: "
            f"{start.program}, arguments {start.arguments}{data}"
        )
    for time, result in job.results:
        lines.append(
            f"  {when(time)} result {result.name} ({size(result.bytes)}) to {result.receiver}"
        )
    for line in lines:
        show(f"{line[: len(line) - len(line.lstrip())]}{one_line(line)}")


def _show_run(party: str, run: AuditRun) -> None:
    begin = run.begin
    parties = ", ".join(f"{each.name} ({each.fingerprint or 'no key'})" for each in begin.parties)
    notes = [
        f"with {parties}",
        f"{begin.versions}; security {begin.security}; cluster file {begin.cluster[:_DIGITS]}",
    ]
    if begin.script is not None:
        notes.append(f"ran {begin.script.name}, SHA-256 {begin.script.sha256}")
    if begin.resumed_after:
        notes.append(f"resumed: the journal answered steps up to {begin.resumed_after}")
    notes += _end_notes(run)
    table = Table(
        title=Text(one_line(f"{party} in session {begin.session}, {when(run.began)} UTC")),
        caption=Text("\n".join(map(one_line, notes))),
    )
    steps = run.steps()
    has_chains = any(step.said.chain for step in steps)
    if has_chains:
        table.add_column("chain", overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("began", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("call", overflow="fold")
    table.add_column("revealed", overflow="fold")
    table.add_column("digest", no_wrap=True)
    for step in steps:
        said = step.said
        cells = [
            str(said.number),
            when(step.began)[-8:],
            "journal" if said.from_journal else _seconds(step.seconds),
            said.text,
            _revealed(step),
            said.digest[:_DIGITS],
        ]
        if has_chains:
            cells.insert(0, said.chain)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"


def _end_notes(run: AuditRun) -> list[str]:
    end = run.end
    if end is None:
        return ["it has no end"]
    error = f" ({end.error}{f' by {end.by}' if end.by else ''})" if end.error else ""
    notes = [f"{end.how}{error} after {end.seconds:.1f} s"]
    for peer, traffic in end.peers.items():
        notes.append(
            f"{peer}: sent {count(traffic.messages_sent)} messages, {size(traffic.bytes_sent)}; "
            f"received {count(traffic.messages_received)}, {size(traffic.bytes_received)}"
        )
    return notes


def _revealed(step: AuditStep) -> str:
    if step.reveal is not None:
        reveal = step.reveal
        values = [
            f"{dtype}{shape}" for dtype, shape in zip(reveal.dtypes, reveal.shapes, strict=False)
        ]
        more = f" and {len(values) - _MOST_SHOWN} more" if len(values) > _MOST_SHOWN else ""
        return f"{', '.join(values[:_MOST_SHOWN])}{more} to {', '.join(reveal.receivers)}"
    if step.psi is not None:
        return f"common keys to {', '.join(step.psi.parties)}"
    return ""
