"""``redislink doctor``: why this party cannot join a session, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli import who
from redislink.cli.errors import ExitCode, Verbose
from redislink.cli.operator import PasswordFileOption, settings_as
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.operate.doctor import Blame, Case, Level, Report, examine
from redislink.operate.doctor.finding import fingerprints
from redislink.settings import RedisLinkSettings

_CODES: Final = {
    None: ExitCode.OK,
    Blame.OURS: ExitCode.CONFIG,
    Blame.BROKER: ExitCode.BROKER,
    Blame.PEER: ExitCode.PEER,
}
_STYLES: Final = {
    Level.PASS: "green",
    Level.SKIP: "cyan",
    Level.WARN: "yellow",
    Level.FAIL: "bold red",
}


def doctor(
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Check only this broker and the way to it; for people who are not a party.",
            show_default=False,
        ),
    ] = None,
    password_file: PasswordFileOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON object for each broker, not a table."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Check everything that a session of this party needs, and say what to do about problems.

    Checks the cluster file, keys, the way to the broker, this user's permissions, the broker's
    settings, the line, and what the other parties' doctors found; all this for each broker if there
    are several. Takes at most 20 seconds for each, and may run beside a session. Exits with 0
    unless a check fails; warnings do not count.

        redislink doctor --party alice

        redislink doctor --broker rediss://admin@HOST
    """

    def begin() -> Case:
        if broker is not None:
            if cluster is not None or party is not None or identity is not None:
                raise ConfigError("give --broker alone, or --cluster, --party and --identity")
            return Case.of_broker(settings_as(broker, password_file))
        if password_file is not None:
            raise ConfigError("--password-file is for --broker URL: give both, or neither")
        overrides = {} if identity is None else {"identity_file": identity}
        settings = RedisLinkSettings.load(**overrides)
        _, spec, name = who.resolve(settings, cluster, party)
        return Case(settings, spec, name)

    first = examine(begin)
    others = range(1, first.brokers)
    reports = [first, *(examine(partial(_at_broker, begin, index)) for index in others)]
    for report in reports:
        if as_json:
            typer.echo(json.dumps(_as_json(report)))
        else:
            _show(report)
    blame = next((report.blame for report in reports if report.blame is not None), None)
    raise SystemExit(int(_CODES[blame]))


def _at_broker(begin: Callable[[], Case], index: int) -> Case:
    return replace(begin(), broker_index=index)


def _as_json(report: Report) -> dict[str, Any]:
    spec = report.spec
    return {
        "session": spec and spec.session,
        "party": report.party or None,
        "broker": report.broker or None,
        "digest": spec and spec.digest().hex(),
        "fingerprints": fingerprints(spec) if spec else {},
        "worst": report.worst.value,
        "counts": {level.value: count for level, count in report.counts.items()},
        "seconds": round(report.seconds, 3),
        "findings": [
            {"name": f.name, "level": f.level.value, "text": f.text, "remedy": f.remedy}
            for f in report.findings
        ],
        "not_tried": [{"name": name, "because": why} for name, why in report.not_tried],
    }


def _show(report: Report) -> None:
    title = "redislink doctor"
    if report.spec is None and report.broker:
        title += f": {report.broker}"
    elif report.spec is not None:
        title += f": {report.party} in session {report.spec.session}, via {report.broker or '?'}"
    table = Table(title=Text(title))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    for finding in report.findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="bold")
        level = Text(finding.level.value, style=_STYLES[finding.level])
        table.add_row(Text(finding.name), level, text)
    for name, why in report.not_tried:
        table.add_row(Text(name, style="dim"), Text("-", style="dim"), Text(f"not checked: {why}"))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(Text(_summary(report)))


def _summary(report: Report) -> str:
    told = ", ".join(f"{count} {level}" for level, count in report.counts.items() if count)
    if report.skipped:
        told += f". Not checked, so perhaps wrong: {', '.join(report.skipped)}"
    return f"{told}."
