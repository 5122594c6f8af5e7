"""``redislink top``: shows a running session, refreshed every second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redislink.cli.errors import Verbose, check_finite
from redislink.cli.operator import (
    BrokerOption,
    PasswordFileOption,
    cluster_of,
    refused_text,
    surveys_of,
)
from redislink.cli.output import JsonOption, count, counted, duration, size
from redislink.cli.who import ClusterOption
from redislink.errors import BrokerError
from redislink.operate.watch import PairView, PartyView, Reading, Watch, WatchSeveral
from redislink.protocol.status import Waiting
from redislink.text import one_line

_SHOWN_PAIRS: Final = 12
_SHOWN_TAG: Final = 40
_SLOW: Final = 1.0
"""Seconds after which a waiting receive is highlighted."""
_REST: Final = 40
"""Characters that the widest column of a table gets before other columns get room."""
_WIDTH: Final = 120
"""Width if the output is not a terminal."""


def top(
    cluster: ClusterOption = None,
    broker: BrokerOption = None,
    password_file: PasswordFileOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one reading and end; rates need two.")
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.2, callback=check_finite, help="Time between two readings."
        ),
    ] = 1.0,
    forward: Annotated[
        str | None,
        typer.Option(
            metavar="PARTY,PARTY",
            help="Instead of the cluster file's session, show that of redislink forward between "
            "these two.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a running session: who is up, who waits for whom, and the messages on the broker.

    Needs no key and takes no part in the session: it reads names, sizes and times on the broker,
    and the status that each party writes there (REDISLINK_STATUS). Ctrl-C ends it.
    """
    spec = cluster_of(cluster)
    if forward is not None:
        from redislink.interop.forward.pairs import parse_pair

        spec = parse_pair(forward, spec)
    surveys = surveys_of(cluster, broker, password_file)
    watch = WatchSeveral([Watch(each, spec.session, spec.party_names) for each in surveys])
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    try:
        reading = watch.read()  # the first error ends the command; later ones may pass
        if as_json:
            _print_json(watch, reading, every, once=once)
        elif once or not console.is_terminal:
            console.print(screen(reading))
        else:
            _show(watch, reading, console, every)
    except KeyboardInterrupt:
        return
    finally:
        for survey in surveys:
            survey.close()


def _print_json(watch: WatchSeveral, reading: Reading, every: float, *, once: bool) -> None:
    while True:
        typer.echo(json.dumps(asdict(reading)))
        if once:
            return
        time.sleep(every)
        reading = watch.read()


def _show(watch: WatchSeveral, reading: Reading, console: Console, every: float) -> None:
    with Live(screen(reading), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            trouble = ""
            try:
                reading = watch.read()
            except BrokerError as error:
                if not error.retryable:
                    raise
                trouble = str(error)
            live.update(screen(reading, trouble), refresh=True)


def screen(reading: Reading, trouble: str = "") -> RenderableType:
    """A reading as rich renders it.

    Args:
        reading: the reading.
        trouble: why there is no newer reading; "" if this is the newest.
    """
    up = sum(party.up is True for party in reading.parties)
    number = f", broker {reading.broker_number}" if reading.broker_number else ""
    lines: list[RenderableType] = [
        Text.assemble(
            ("session ", "bold"),
            (reading.session, "bold cyan"),
            f" at {reading.broker}{number}: {up} of {len(reading.parties)} parties up",
        ),
        _parties(reading.parties, reading.broker_number),
        _pairs(reading.pairs),
    ]
    if all(party.running_seconds is None for party in reading.parties if party.up) and up:
        lines.append(Text("no party publishes a status: only what the lists show is known"))
    if text := refused_text(reading.refused):
        lines.append(Text(text, "yellow"))
    if trouble:
        lines.append(Text(f"not up to date: {trouble}", "red"))
    return Group(*lines)


def _parties(parties: Iterable[PartyView], broker_number: int) -> RenderableType:
    table = _Fitting()
    name, state = table.column("party"), table.column("state")
    since, heard = table.number("for", 2), table.number("heard", 3)
    trip, reconnects = table.number("round trip", 1), table.number("reconnects", 1)
    waits = table.column("waits for", takes_rest=True)
    for party in parties:
        known = party.running_seconds is not None
        took = party.round_trip_seconds
        name.append(Text(party.name))
        state.append(_state(party, broker_number))
        since.append(Text(duration(party.running_seconds) if known else ""))
        heard.append(
            Text(
                ""
                if party.last_heard_seconds is None
                else f"{duration(party.last_heard_seconds)} ago"
            )
        )
        trip.append(Text("" if took is None else f"{took * 1e3:.1f} ms"))
        reconnects.append(Text(count(party.reconnects) if known else ""))
        waits.append(_waits(party.waits))
    return table


_STYLES: Final = {"joining": "yellow", "closing": "yellow", "failed": "bold red", "not seen": "red"}


def _state(party: PartyView, broker_number: int) -> Text:
    """A party's own state, and below it what delays it, if anything."""
    text = Text(party.state, _STYLES.get(party.state, "green"))
    if party.resumed_steps:
        text.append(f"\nresumed after {counted(party.resumed_steps, 'step')}", "cyan")
    if party.streams:
        text.append(f"\n{counted(party.streams, 'stream')}", "cyan")
    if party.broker_number and party.broker_number != broker_number:
        text.append(f"\non broker {party.broker_number}", "bold yellow")
    if party.broker_away_seconds:
        away = duration(party.broker_away_seconds)
        text.append(f"\nbroker unreachable for {away}", "bold red")
    if party.unheard_by:
        text.append(f"\nnot heard by {', '.join(party.unheard_by)}", "bold red")
    return text


def _waits(waits: tuple[Waiting, ...]) -> Text:
    """Peer, tag and time of the longest wait for each peer."""
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


def _pairs(pairs: tuple[PairView, ...]) -> RenderableType:
    shown: list[PairView] = list(pairs)
    if len(shown) > _SHOWN_PAIRS:
        shown = sorted(shown, key=_busy, reverse=True)[:_SHOWN_PAIRS]
    left_out = len(pairs) - len(shown)
    table = _Fitting(f"and {left_out} pairs with less" if left_out else "")
    names = table.column("from → to", takes_rest=True)
    on_broker, memory = table.number("on broker"), table.number("memory", 4)
    sent, rate = table.number("sent", 3), table.number("per s", 6)
    flow, under_way = table.number("bytes per s", 7), table.number("under way", 5)
    # Problems are shown as long as there is room for anything.
    resent = table.number("resent", 8 if any(pair.frames_resent for pair in shown) else 2)
    refused = table.number("refused", 8 if any(pair.frames_refused for pair in shown) else 2)
    probes = table.number("probes", 1)
    for pair in shown:
        per_second, bytes_per_second = pair.messages_per_second, pair.bytes_per_second
        names.append(Text(f"{pair.src} → {pair.dst}"))
        on_broker.append(Text(count(pair.messages), "bold yellow" if pair.messages else ""))
        memory.append(Text(size(pair.memory_bytes)))
        sent.append(Text(count(pair.messages_sent)))
        rate.append(Text("" if per_second is None else f"{per_second:.1f}"))
        flow.append(Text("" if bytes_per_second is None else size(bytes_per_second)))
        under_way.append(Text(size(pair.in_flight_bytes)))
        resent.append(_alarming(pair.frames_resent))
        refused.append(_alarming(pair.frames_refused))
        probes.append(Text(count(pair.probes)))
    return table


def _alarming(value: int | None) -> Text:
    return Text(count(value), "bold red" if value else "")


def _busy(pair: PairView) -> tuple[int, float]:
    return (pair.memory_bytes or 0, pair.bytes_per_second or 0.0)


@dataclass
class _Column:
    """A column of a `_Fitting`.

    Attributes:
        rank: columns with a lower rank go first if there is no room; None stays.
        is_number: the column is right-aligned and never wrapped.
        takes_rest: the column gets the room that is left, and is wrapped if that is little.
    """

    heading: str
    rank: int | None
    is_number: bool
    takes_rest: bool
    cells: list[Text] = field(default_factory=list)

    @property
    def width(self) -> int:
        """The width that it needs, without padding."""
        longest = max(
            (cell_len(line) for c in self.cells for line in c.plain.split("\n")), default=0
        )
        return max(cell_len(self.heading), min(longest, _REST) if self.takes_rest else longest)


class _Fitting:
    """A table that leaves out its least important columns if there is no room, and says so.

    rich alone would shrink the column whose text can be wrapped, which is the one that says what
    the row is about.
    """

    def __init__(self, caption: str = "") -> None:
        """Args:
        caption: the text below the table.
        """
        self._caption = caption
        self._columns: list[_Column] = []

    def column(self, heading: str, *, takes_rest: bool = False) -> list[Text]:
        """Add a column that always stays; returns its cells, to fill."""
        return self._add(_Column(heading, None, is_number=False, takes_rest=takes_rest))

    def number(self, heading: str, rank: int | None = None) -> list[Text]:
        """Add a right-aligned column that is left out if there is no room; returns its cells.

        Args:
            heading: the heading.
            rank: the lowest is left out first; a column without a rank stays.
        """
        return self._add(_Column(heading, rank, is_number=True, takes_rest=False))

    def _add(self, column: _Column) -> list[Text]:
        self._columns.append(column)
        return column.cells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self._columns)
        while sum(column.width + 3 for column in shown) + 1 > options.max_width:
            spare = [column for column in shown if column.rank is not None]
            if not spare:
                break
            shown.remove(min(spare, key=lambda column: column.rank or 0))
        left_out = ", ".join(column.heading for column in self._columns if column not in shown)
        notes = [self._caption, f"no room for {left_out}" if left_out else ""]
        table = Table(expand=True, caption="; ".join(filter(None, notes)) or None)
        for column in shown:
            table.add_column(
                column.heading,
                justify="right" if column.is_number else "left",
                no_wrap=column.is_number,
                overflow="fold",
                ratio=1 if column.takes_rest else None,
            )
        for row in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*row)
        yield table
