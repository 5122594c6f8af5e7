"""``redislink bench``: the speed between the real parties of a deployment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.broker import make_broker
from redislink.cli import who
from redislink.cli.errors import Verbose, say
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.identity.keypair import Identity
from redislink.joining import connect
from redislink.operate.bench import DEFAULT_SECONDS, PeerResult, run_bench
from redislink.settings import RedisLinkSettings


def bench(
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="N", min=0.1, help="Seconds for which this party measures with each peer."
        ),
    ] = DEFAULT_SECONDS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Measure round trips and throughput between this party and each of the others.

    Every party runs this command on its own machine; pairs take turns. It cannot run beside a
    computation of the same session, because a party can join only once.

        redislink bench --party alice
    """
    settings = RedisLinkSettings.load()
    _, spec, name = who.resolve(settings, cluster, party, identity)
    broker = make_broker(settings, spec.broker)
    own = None if identity is None else Identity.load(identity)
    with connect(
        spec, name, settings, on_progress=_say_missing, broker=broker, identity=own
    ) as endpoint:
        results = run_bench(endpoint, seconds, lambda peer: say(f"{name}: measuring with {peer}"))
    if as_json:
        found = {
            "session": spec.session,
            "party": name,
            "broker": broker.label,
            "security": spec.security,
            "seconds": seconds,
            "peers": [asdict(result) for result in results],
        }
        typer.echo(json.dumps(found))
    else:
        _show(results, f"{name} in session {spec.session} ({spec.security}), via {broker.label}")


def _say_missing(missing: list[str], waited_seconds: float) -> None:
    if round(waited_seconds) % 10 == 1:
        say(f"waiting for {', '.join(missing)}: every party must run redislink bench")


def _show(results: Sequence[PeerResult], title: str) -> None:
    table = Table(title=Text(title))
    for heading in ("peer", "message"):
        table.add_column(heading)
    for heading in ("median ms", "p95 ms", "MB/s to", "MB/s from"):
        table.add_column(heading, justify="right")
    for result in results:
        for row, trip in enumerate(result.round_trips):
            last = row == len(result.round_trips) - 1
            table.add_row(
                "" if row else result.peer,
                _size(trip.size),
                f"{trip.median * 1e3:.3f}",
                f"{trip.p95 * 1e3:.3f}",
                f"{result.sent_per_second / 1e6:.1f}" if last else "",
                f"{result.received_per_second / 1e6:.1f}" if last else "",
                end_section=last,
            )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _size(size: int) -> str:
    return next(
        f"{size // unit} {name}"
        for unit, name in ((1 << 20, "MB"), (1 << 10, "KB"), (1, "B"))
        if size >= unit
    )
