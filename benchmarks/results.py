"""What was measured, and how it is read: medians, spreads, ratios of pairs of the same round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import plan
from benchmarks.netproxy import Profile
from benchmarks.runner import Record
from benchmarks.transports import BRPC, BRPC_KEPT, FLOOR, REDISLINK, REDISLINK_NONE

Extract = Callable[[Record], float]
PROGRAMS: Final = {"lr-aby3": "LR ABY3", "lr-semi2k": "LR SEMI2K", "sort-cheetah": "CHEETAH sort"}
"""How tables call the programs that bars are about, by their names."""


@dataclass(frozen=True)
class Sample:
    """One figure of several rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    def text(self, form: Callable[[Sequence[float]], list[str]]) -> str:
        """Median, with the least and the most where there are several rounds."""
        middle, least, most = form((self.median, min(self.values), max(self.values)))
        if len(self.values) == 1:
            return middle
        return f"{middle} ({least.split()[0]}-{most.split()[0]})"


class Results:
    """The records of all sessions."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def rounds(self, group: str, variant: str, extract: Extract, **where: Any) -> dict[int, float]:
        """A figure by round.

        Args:
            group, variant: of the sessions.
            extract: gives the figure; KeyError where a session has none.
            where: what else a record must have, by name.
        """
        found = {}
        for record in self.records:
            if record["error"] is None and record["group"] == group:
                fits = all(record[name] == value for name, value in where.items())
                if fits and record["variant"] == variant:
                    try:
                        found[record["round"]] = extract(record)
                    except KeyError:
                        continue
        return found

    def sample(self, group: str, variant: str, extract: Extract, **where: Any) -> Sample | None:
        """A figure; None if it was not measured."""
        values = tuple(self.rounds(group, variant, extract, **where).values())
        return Sample(values) if values else None

    def ratio(
        self, group: str, variant: str, base: str, extract: Extract, **where: Any
    ) -> Sample | None:
        """A figure over another variant's of the same round; None without such pairs."""
        upper = self.rounds(group, variant, extract, **where)
        lower = self.rounds(group, base, extract, **where)
        values = tuple(upper[n] / lower[n] for n in sorted(upper.keys() & lower.keys()))
        return Sample(values) if values else None

    def variants(self, group: str, **where: Any) -> list[str]:
        """Those of a group, in the order in which they ran."""
        found = {
            record["variant"]: None
            for record in self.records
            if record["group"] == group
            and all(record[name] == value for name, value in where.items())
        }
        return list(found)

    def failures(self) -> list[str]:
        """One line for each session that failed, or had to be tried twice."""
        lines = []
        for record in self.records:
            label = f"{record['group']} {record['variant']} {record['profile']}"
            where = f"{label}, round {record['round'] + 1}"
            if record["error"] is not None:
                lines.append(f"{where}: failed: {record['error']}")
            elif record["attempts"] > 1:
                lines.append(f"{where}: failed once, and went well when tried again")
        return lines


# ---- figures of a record ----


def first_values(record: Record, work: str) -> dict[str, Any]:
    """What the first party measured."""
    values: dict[str, Any] = record["parties"][0][work]["values"]
    return values


def round_trip(size: int, work: str = "round_trips", which: str = "median") -> Extract:
    """Seconds."""
    return lambda record: float(first_values(record, work)[str(size)][which])


def one_way(size: int, work: str = "one_ways") -> Extract:
    """Bytes per second."""
    return lambda record: float(first_values(record, work)[str(size)]["bytes_per_second"])


def one_way_seconds(size: int, work: str) -> Extract:
    """Seconds from the first byte's send to the last's receive."""
    return lambda record: float(first_values(record, work)[str(size)]["seconds"])


def program(name: str) -> Extract:
    """Seconds of a run, after the first if there are several: until the slowest party is done."""

    def extract(record: Record) -> float:
        if name == "psi":
            return max(party[name]["values"]["seconds"] for party in record["parties"])
        later = [party[name]["values"]["later"] for party in record["parties"]]
        if not later[0]:
            return max(party[name]["values"]["first"] for party in record["parties"])
        return statistics.median(max(times) for times in zip(*later, strict=True))

    return extract


def first_run(name: str) -> Extract:
    """Seconds of a program's first run, with its setup."""
    return lambda record: max(party[name]["values"]["first"] for party in record["parties"])


def cost(work: str, what: str) -> Extract:
    """CPU seconds or peak bytes of a work: of a party, the highest (``cpu``, ``peak``), or of
    the broker (``broker_cpu``, ``broker_peak``)."""

    def extract(record: Record) -> float:
        parties = record["parties"][:1] if what.startswith("broker") else record["parties"]
        values = [party[work][what] for party in parties]
        if None in values:
            raise KeyError(what)
        return float(max(values))

    return extract


# ---- the bars ----


@dataclass(frozen=True)
class Bar:
    """What has to be shown.

    Attributes:
        title: what is measured.
        bar, aim: what it has to reach, and what would be good.
        unit: what the figure is a multiple of.
        measure: gives the figure of each round.
        higher: True if more is better.
    """

    title: str
    bar: float
    aim: float
    unit: str
    measure: Callable[[Results], Sample | None]
    higher: bool = False

    def verdict(self, sample: Sample | None) -> str:
        """In words; it is the median that counts."""
        if sample is None:
            return "not measured"
        sign = -1 if self.higher else 1
        figure = sign * sample.median
        if figure <= sign * self.aim:
            return "**pass**, aim reached"
        return "**pass**" if figure <= sign * self.bar else "**miss**"


def _title(text: str, base: str) -> str:
    return f"sealing: {text}" if base == REDISLINK_NONE else text


def _ratio(
    group: str, extract: Extract, base: str = BRPC, **where: Any
) -> Callable[[Results], Sample | None]:
    return lambda results: results.ratio(group, REDISLINK, base, extract, **where)


def _round_trip_bar(size: int, bar: float, aim: float, base: str, group: str = "link") -> Bar:
    measure = _ratio(plan.TURNS + group, round_trip(size), base)
    title = _title(f"{size_text(size)} round trip, loopback", base)
    return Bar(title, bar, aim, base, measure)


def _one_way_bar(size: int) -> Bar:
    measure = _ratio(plan.TURNS + "one-way", one_way(size))
    title = f"{size_text(size)} one way, loopback, throughput"
    return Bar(title, 0.85, 1.0, BRPC, measure, higher=True)


def _network_bar(network: Profile) -> Bar:
    size = plan.BAR_SIZES[network]
    title = f"{size_text(size)} round trip, {network_text(network)}"

    def measure(results: Results) -> Sample | None:
        for group in ("bars-network", "network"):  # older runs have only the latter
            found = _ratio(group, round_trip(size), profile=network.name)(results)
            if found is not None:
                return found
        return None

    return Bar(title, 1.15, 1.05, BRPC, measure)


def _program_bar(name: str, bar: float, aim: float, base: str = BRPC) -> Bar:
    parties = 2 if name == "sort-cheetah" else 3
    measure = _ratio(f"{plan.TURNS}programs{parties}", program(name), base)
    return Bar(_title(f"{PROGRAMS[name]}, loopback", base), bar, aim, base, measure)


def _program_on_network_bar(network: Profile, bar: float, aim: float) -> Bar:
    measure = _ratio("lr", program("lr-aby3"), profile=network.name)
    return Bar(f"{PROGRAMS['lr-aby3']}, {network_text(network)}", bar, aim, BRPC, measure)


def network_text(network: Profile) -> str:
    """A network's rate and its round trip between parties."""
    return f"{network.rate / 1e6:g} Mbit/s, {network.rtt * 1e3:g} ms"


# ---- numbers as text ----


def seconds_text(values: Sequence[float]) -> list[str]:
    """In one unit for all, that of the first."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if values[0] * factor >= 1 or unit == "µs":
            return [f"{_digits(value * factor)} {unit}" for value in values]
    raise AssertionError


def rate_text(values: Sequence[float]) -> list[str]:
    """Bytes per second, in MB/s."""
    return [f"{_digits(value / 1e6)} MB/s" for value in values]


def bytes_text(values: Sequence[float]) -> list[str]:
    """Bytes, in MB."""
    return [f"{_digits(value / 1e6)} MB" for value in values]


def number_text(values: Sequence[float]) -> list[str]:
    """Ratios and counts."""
    return [_digits(value) for value in values]


def ratio_text(values: Sequence[float]) -> list[str]:
    """Ratios, to two places."""
    return [f"{value:.2f}" for value in values]


def size_text(size: int) -> str:
    """A message's size."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _digits(value: float) -> str:
    """Three significant digits."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 4)}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; empty where there are no rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    rule = "|" + "---|" * len(header)
    return "\n".join(["| " + " | ".join(header) + " |", rule, *lines]) + "\n"


# ---- what has to be shown ----

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
BARS: Final = (
    _round_trip_bar(64, 0.8, 0.6, BRPC),
    _round_trip_bar(64, 1.6, 1.25, FLOOR),
    _program_bar("lr-aby3", 0.85, 0.7),
    _program_bar("lr-semi2k", 0.85, 0.7),
    _program_bar("sort-cheetah", 0.9, 0.75),
    _round_trip_bar(64 * _KIB, 1.05, 0.8, BRPC),
    _round_trip_bar(256 * _KIB, 1.05, 0.8, BRPC),
    _round_trip_bar(_MIB, 1.2, 1.0, BRPC_KEPT),
    _round_trip_bar(16 * _MIB, 1.2, 1.0, BRPC_KEPT, "large"),
    _round_trip_bar(64 * _MIB, 1.2, 1.0, BRPC_KEPT, "large"),
    _one_way_bar(4 * _MIB),
    _one_way_bar(64 * _MIB),
    _network_bar(plan.THIN),
    _network_bar(plan.WAN),
    _program_on_network_bar(plan.WAN, 1.03, 1.01),
    _program_on_network_bar(plan.THIN, 1.1, 1.03),
    _round_trip_bar(64, 1.15, 1.08, REDISLINK_NONE),
    _round_trip_bar(_MIB, 1.2, 1.1, REDISLINK_NONE),
    _program_bar("lr-aby3", 1.08, 1.04, REDISLINK_NONE),
)
