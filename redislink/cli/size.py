"""``redislink size``: what a broker needs for so many sessions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Final, TypeVar

import typer

from redislink.cli.errors import Verbose, show
from redislink.cli.output import count, counted
from redislink.cli.output import size as size_text
from redislink.errors import ConfigError, UsageError
from redislink.operate.sizing import MOST_PARTIES, MOST_SESSIONS, Broker, Load, Sizing, size
from redislink.units import parse_quantity, parse_size

_T = TypeVar("_T")
_TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_RATES: Final = {"k": 1e3, "M": 1e6, "G": 1e9, "": 1.0}


def show_size(
    parties: Annotated[
        int, typer.Option(metavar="N", min=2, max=MOST_PARTIES, help="Parties in each session.")
    ] = 3,
    sessions: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=MOST_SESSIONS, help="Sessions at once, of the same parties."
        ),
    ] = 1,
    rtt: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="From a party to another and back: twice a ping to the broker. 0ms if all are on "
            "one machine.",
        ),
    ] = "20ms",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Bits per second of each party's line, each way, such as 100M; otherwise lines "
            "do not limit anything.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[
        str, typer.Option(metavar="SIZE", help="A typical message, such as 64B or 16KiB.")
    ] = "1KiB",
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Messages per second of each session, as redislink top shows them; otherwise all "
            "that it can send, as if its parties computed nothing.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        str, typer.Option(metavar="SIZE", help="REDISLINK_WINDOW_BYTES of the parties.")
    ] = "32MiB",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead of lines.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Say how many servers, connections and how much memory a broker needs, by a model.

        redislink size --parties 3 --sessions 200 \\
            --rtt 20ms --bandwidth 100M

    It asks no server. The page "Sizing the broker" says what was measured, and how far the
    model is off.
    """
    try:
        load = Load(
            parties,
            sessions,
            _parsed("--rtt", rtt, _time),
            0.0 if bandwidth is None else _parsed("--bandwidth", bandwidth, _bits),
            _parsed("--message", message, parse_size),
            rate,
            _parsed("--window", window, parse_size),
        )
    except UsageError as error:
        raise ConfigError(str(error)) from None
    found = size(load)
    if as_json:
        fields = asdict(found) | {"round_trip": found.round_trip}
        fields["advice"] = [dict(zip(("set", "to", "why"), a, strict=True)) for a in found.advice]
        typer.echo(json.dumps(fields))
        return
    show(f"{'for':<16}{_said(load)}")
    for name, text in _lines(found):
        show(f"{name:<16}{text}")
    for setting, value, why in found.advice:
        show(f"set {setting} {value}: {why}")
    show(f"model: {found.source}")


def _said(load: Load) -> str:
    """The load in words, so that nobody overlooks what was assumed."""
    line = f"lines of {load.bandwidth / 1e6:g} Mbit/s" if load.bandwidth else "lines without limit"
    rate = (
        f"{load.rate:g} messages per second each"
        if load.rate
        else "each sending as fast as it can (--rate)"
    )
    return (
        f"{counted(load.sessions, 'session')} of {load.parties} parties, {rate}, "
        f"{load.rtt * 1e3:g} ms from one to another and back, {line}"
    )


def _lines(found: Sizing) -> list[tuple[str, str]]:
    line = f"{found.line_use:.0%} of each party's line, " if found.load.bandwidth else ""
    bits = f"{found.broker_bandwidth / 1e6:.3g} Mbit/s each way at the broker"
    return [
        ("messages", f"{found.flow.rate:,.0f} per second".replace(",", " ")),
        ("round trip", f"{found.round_trip * 1e3:.3g} ms for a message there and one back"),
        ("broker", f"{_broker(found.broker)}; {found.cores:.2g} cores busy"),
        ("connections", count(found.connections)),
        ("memory", f"{size_text(found.likely_bytes)}, at most {size_text(found.most_bytes)}"),
        ("lines", line + bits),
    ]


def _broker(broker: Broker) -> str:
    if broker.cluster:
        return f"a Cluster of {broker.servers} nodes"
    return "one server with io-threads 2" if broker.io_threads else "one server"


def _time(text: str) -> float:
    return parse_quantity(text, _TIMES, "a time", "20ms")


def _bits(text: str) -> float:
    short = re.sub(r"(bit/s|bit|bps)$", "", text)
    return parse_quantity(short, _RATES, "a rate", "100M or 2.5 Gbit/s")


def _parsed(option: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text}: {error}") from None
