"""``redislink top``: a session as it runs, anew each second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redislink.cli.errors import Verbose
from redislink.cli.onlooker import (
    BrokerOption,
    JsonOption,
    PasswordFileOption,
    cluster_of,
    count,
    duration,
    look_at,
    refused_text,
    size,
)
from redislink.cli.who import ClusterOption
from redislink.errors import BrokerError
from redislink.protocol.status import Waiting
from redislink.text import one_line
from redislink.watch import PairView, PartyView, Reading, Watch

_SHOWN_PAIRS: Final = 12
_SHOWN_TAG: Final = 40
_SLOW: Final = 1.0
"""Seconds from which on a receive that waits is marked."""
_WIDTH: Final = 120
"""Where the output is no terminal."""


def top(
    cluster: ClusterOption = None,
    broker: BrokerOption = None,
    password_file: PasswordFileOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one reading and end; rates need two.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, help="Time between two readings.")
    ] = 1.0,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a session as it runs: who is up, who waits for whom, what lies on the broker.

    It takes no part and needs no key: it reads names, sizes and times on the broker, and what each
    party says of itself there (REDISLINK_STATUS). Ctrl-C ends it.
    """
    spec = cluster_of(cluster)
    survey = look_at(cluster, broker, password_file)
    watch = Watch(survey, spec.session, spec.party_names)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    try:
        reading = watch.read()  # an error ends it here; later ones may pass
        if as_json:
            _print_json(watch, reading, once, every)
        elif once or not console.is_terminal:
            console.print(screen(reading))
        else:
            _show(watch, reading, console, every)
    except KeyboardInterrupt:
        return
    finally:
        survey.close()


def _print_json(watch: Watch, reading: Reading, once: bool, every: float) -> None:
    while True:
        typer.echo(json.dumps(asdict(reading)))
        if once:
            return
        time.sleep(every)
        reading = watch.read()


def _show(watch: Watch, reading: Reading, console: Console, every: float) -> None:
    with Live(screen(reading), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            trouble = ""
            try:
                reading = watch.read()
            except BrokerError as error:
                if not error.passes:
                    raise
                trouble = str(error)
            live.update(screen(reading, trouble), refresh=True)


def screen(reading: Reading, trouble: str = "") -> RenderableType:
    """A reading as rich shows it.

    Args:
        trouble: why this is not the newest; empty if it is.
    """
    up = sum(party.up is True for party in reading.parties)
    lines: list[RenderableType] = [
        Text.assemble(
            ("session ", "bold"),
            (reading.session, "bold cyan"),
            f" at {reading.broker}: {up} of {len(reading.parties)} parties up",
        ),
        _parties(reading.parties),
        _pairs(reading.pairs),
    ]
    if all(party.running_seconds is None for party in reading.parties if party.up) and up:
        lines.append(Text("no party publishes a status: only what the lists show is known"))
    if text := refused_text(reading.refused):
        lines.append(Text(text, "yellow"))
    if trouble:
        lines.append(Text(f"not up to date: {trouble}", "red"))
    return Group(*lines)


def _parties(parties: Iterable[PartyView]) -> Table:
    table = Table(expand=True)
    for heading in ("party", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("for", "heard", "round trip", "reconnects"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("waits for", ratio=1)
    for party in parties:
        known = party.running_seconds is not None
        trip = party.round_trip_seconds
        table.add_row(
            Text(party.name),
            Text(party.state, _STYLES.get(party.state, "green")),
            duration(party.running_seconds) if known else "",
            "" if party.heard_seconds is None else f"{duration(party.heard_seconds)} ago",
            "" if trip is None else f"{trip * 1e3:.1f} ms",
            count(party.reconnects) if known else "",
            _waits(party.waits),
        )
    return table


_STYLES: Final = {"joining": "yellow", "closing": "yellow", "failed": "bold red", "not seen": "red"}


def _waits(waits: tuple[Waiting, ...]) -> Text:
    """For whom, for which tag, since when; the one that has waited longest for each peer."""
    text = Text()
    shown: set[str] = set()
    for wait in waits:  # the longest first
        if wait.peer in shown:
            continue
        shown.add(wait.peer)
        if text:
            text.append("\n")
        more = sum(other.peer == wait.peer for other in waits) - 1
        text.append(wait.peer, "bold")
        text.append(f" {_tag(wait.tag)} ")
        text.append(duration(wait.seconds), "bold yellow" if wait.seconds >= _SLOW else "")
        if more:
            text.append(f" (+{more})")
    return text


def _tag(tag: str) -> str:
    text = one_line(tag)
    return text if len(text) <= _SHOWN_TAG else f"{text[: _SHOWN_TAG - 1]}…"


def _pairs(pairs: tuple[PairView, ...]) -> Table:
    shown: list[PairView] = list(pairs)
    if len(shown) > _SHOWN_PAIRS:
        shown = sorted(shown, key=_busy, reverse=True)[:_SHOWN_PAIRS]
    left_out = len(pairs) - len(shown)
    table = Table(
        expand=True,
        caption=f"and {left_out} pairs with less" if left_out else None,
    )
    table.add_column("from → to", no_wrap=True, ratio=1)
    for heading in ("on broker", "memory", "sent", "per s", "bytes per s", "under way"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("resent", "refused", "probes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in shown:
        rate, flow = pair.messages_per_second, pair.bytes_per_second
        table.add_row(
            Text(f"{pair.src} → {pair.dst}"),
            Text(count(pair.messages), "bold yellow" if pair.messages else ""),
            size(pair.memory_bytes),
            count(pair.messages_sent),
            "" if rate is None else f"{rate:.1f}",
            "" if flow is None else size(flow),
            size(pair.in_flight_bytes),
            _alarming(pair.frames_resent),
            _alarming(pair.frames_refused),
            count(pair.probes),
        )
    return table


def _alarming(value: int | None) -> Text:
    return Text(count(value), "bold red" if value else "")


def _busy(pair: PairView) -> tuple[int, float]:
    return (pair.memory_bytes or 0, pair.bytes_per_second or 0.0)
