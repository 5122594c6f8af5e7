"""``redislink doctor``: why this party cannot join a session, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli import who
from redislink.cli.errors import ExitCode, Verbose, say
from redislink.cli.operator import PasswordFileOption, settings_as
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity, format_public_key
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
    are several. For a driver: its key and the broker. Takes at most 20 seconds for each, and may
    run beside a session. Exits with 0 unless a check fails; warnings do not count.

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
        name = party or settings.party
        spec = load_cluster(settings.cluster_file_to_use(cluster))
        if name is not None and name in spec.driver_names:
            return _of_driver(settings, spec, name)
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


def _of_driver(settings: RedisLinkSettings, spec: ClusterSpec, name: str) -> Case:
    """Check a driver's key, and then the broker as it reaches it: a driver joins no session."""
    path = settings.identity_file_of(name)
    if path is None:
        raise ConfigError(
            f"{name} has no key: give --identity FILE, or set REDISLINK_IDENTITY_FILE"
        )
    known = next(each.public_key for each in spec.drivers or () if each.name == name)
    if format_public_key(Identity.load(path).public_key) != known:
        raise ConfigError(
            f"{path}: is not the key that the cluster file has for {name}: compare redislink "
            "fingerprint with the others, or take the right file"
        )
    say(f"{name} is a driver: its key is right; what follows is about the broker")
    if settings.broker_url is None and spec.broker is not None:
        settings = settings.model_copy(update={"broker_url": SecretStr(spec.broker)})
    return Case.of_broker(settings)


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
