"""The plots of the page, as PNG. Without matplotlib there are none.

Rules: a plot says in its title what is compared, on its axis which way is better, and in words what
each series is. Times are ratios to brpc, SPU's direct link, which is the line at 1. There are three
series at most, and an axis is logarithmic where one bar would dwarf the others. Bars begin at 1:
what hangs below the line is faster than brpc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import plan, report, scale
from benchmarks import results as of
from benchmarks.brokers import ONE
from benchmarks.netproxy import Profile
from benchmarks.results import Results
from benchmarks.runs import Newest
from benchmarks.transports import BRPC, MPLANG, NAIVE, REDISLINK
from redislink.operate.sizing import MEASURED


class _Style(NamedTuple):
    """One series: what it is in words, and a colour and a marker, which differ in print too."""

    words: str
    colour: str
    marker: str


_SERIES: Final[Mapping[str, _Style]] = {
    REDISLINK: _Style("redislink: through a broker, sealed", "#c0392b", "o"),
    NAIVE: _Style("plain redis-py through the same broker, in clear", "#b7950b", "^"),
    MPLANG: _Style("MPLang: HTTP, parties listen", "#6c3483", "D"),
}
_BRPC: Final = _Style("brpc: SPU's direct link, parties listen", "#1f618d", "s")
_TIMES: Final = "time, as a multiple of brpc's\nlower is better"
_PROGRAMS: Final = {
    "lr-aby3": "logistic\nregression\nABY3",
    "lr-semi2k": "logistic\nregression\nSEMI2K",
    "mlp-aby3": "neural network\nABY3",
    "sort-cheetah": "sort\nCHEETAH",
    "psi": "intersection\nRR22",
}
_DWARFS: Final = 4
"""A logarithmic axis, if one bar is so many times another."""


def draw(directory: Path, results: Newest) -> list[str]:
    """Draw what there are results for.

    Returns:
        The file names; none without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure in (
        ("round_trip", _round_trips(results)),
        ("one_way", _one_ways(results)),
        ("programs", _programs(results)),
        ("networks", _networks(results)),
        ("scaling", _scaling(results)),
    ):
        path = directory / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=110)
            drawn.append(path.name)
    from matplotlib import pyplot

    pyplot.close("all")
    return drawn


def _figure(*titles: str) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    size = (7.5 if len(titles) == 1 else 10.5, 4.6)
    figure, axes = pyplot.subplots(
        1, len(titles), figsize=size, layout="constrained", squeeze=False
    )
    for each, title in zip(axes[0], titles, strict=True):
        each.set_title(title, fontsize=11, loc="left")
        each.grid(visible=True, which="major", alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _finish(axes: Any, *, of_brpc: bool = True) -> None:
    """The line at 1, plain numbers on the axis, and what the series are."""
    if of_brpc:
        axes.axhline(1, color=_BRPC.colour, linewidth=1.6, label=f"1 = {_BRPC.words}")
    if axes.get_yscale() == "log":
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _line(axes: Any, style: _Style, samples: Mapping[int, of.Sample | None]) -> None:
    points = {x: sample for x, sample in samples.items() if sample is not None}
    if not points:
        return
    axes.plot(
        list(points),
        [sample.median for sample in points.values()],
        color=style.colour,
        marker=style.marker,
        markersize=5,
        linewidth=2,
        label=style.words,
    )
    axes.fill_between(
        list(points),
        [min(sample.values) for sample in points.values()],
        [max(sample.values) for sample in points.values()],
        color=style.colour,
        alpha=0.12,
        linewidth=0,
    )


def _series(results: Results, *groups: str) -> list[str]:
    """Those of `_SERIES` that were measured in one of these groups."""
    found = {variant for group in groups for variant in results.variants(group)}
    return [transport for transport in _SERIES if transport in found]


def _by_size(results: Results, work: str, title: str) -> Any:
    sizes = report._sizes(results, "link", work)

    def seconds(size: int) -> of.Extract:
        if work == "round_trips":
            return of.round_trip(size)
        return lambda record: size / of.one_way(size)(record)

    lines = {
        transport: {size: results.ratio("link", transport, BRPC, seconds(size)) for size in sizes}
        for transport in _series(results, "link")
    }
    if not any(sample for samples in lines.values() for sample in samples.values()):
        return None
    figure, (axes,) = _figure(title)
    for transport, samples in lines.items():
        _line(axes, _SERIES[transport], samples)
    axes.set(xscale="log", yscale="log", xlabel="size of the message", ylabel=_TIMES)
    axes.set_xticks(sizes, [of.size_text(size) for size in sizes], fontsize=8)
    axes.minorticks_off()
    _finish(axes)
    return figure


def _round_trips(results: Results) -> Any:
    return _by_size(results, "round_trips", "A message there and one back, on one machine")


def _one_ways(results: Results) -> Any:
    return _by_size(results, "one_ways", "Many messages one way, on one machine: time of each")


def _programs(results: Results) -> Any:
    transports = _series(results, "programs2", "programs3")
    bars: dict[str, list[of.Sample | None]] = {}
    for name, words in _PROGRAMS.items():
        group = "programs2" if name in ("psi", "sort-cheetah") else "programs3"
        ratios = [results.ratio(group, t, BRPC, of.program(name)) for t in transports]
        if any(ratios):
            bars[words] = ratios
    return _bars(bars, transports, "Whole programs, all parties on one machine")


def _networks(results: Results) -> Any:
    transports = [t for t in (REDISLINK, NAIVE) if t in results.variants("lr")]
    extract = of.program("lr-aby3")
    bars: dict[str, list[of.Sample | None]] = {}
    ratios = [results.ratio("programs3", t, BRPC, extract) for t in transports]
    if any(ratios):
        bars["one machine\nno network"] = ratios
    for network in plan.NETWORKS:
        where = {"profile": network.name}
        ratios = [results.ratio("lr", t, BRPC, extract, **where) for t in transports]
        if any(ratios):
            bars[_words(network)] = ratios
    return _bars(bars, transports, "Logistic regression in ABY3, three parties, on networks")


def _words(network: Profile) -> str:
    """A network, explained in a few words."""
    rate = network.rate / 1e6
    speed = f"{rate / 1000:g} Gbit/s" if rate >= 1000 else f"{rate:g} Mbit/s"
    return f"{network.name}\n{network.rtt * 1000:g} ms there and back\n{speed} each way"


def _bars(
    bars: Mapping[str, Sequence[of.Sample | None]], transports: Sequence[str], title: str
) -> Any:
    if not bars or not transports:
        return None
    figure, (axes,) = _figure(title)
    width = 0.8 / len(transports)
    heights = []
    for number, transport in enumerate(transports):
        for place, samples in enumerate(bars.values()):
            sample = samples[number]
            if sample is None:
                continue
            at = place + (number - (len(transports) - 1) / 2) * width
            least, most = min(sample.values), max(sample.values)
            heights += [least, most]
            axes.bar(
                at, sample.median - 1, width * 0.92, bottom=1, color=_SERIES[transport].colour,
                label=None if place else _SERIES[transport].words,
            )  # fmt: skip
            axes.errorbar(
                at, sample.median, [[sample.median - least], [most - sample.median]],
                fmt="none", ecolor="black", elinewidth=0.8,
            )  # fmt: skip
            is_above = sample.median >= 1
            axes.annotate(
                f"{sample.median:.2f}", (at, most if is_above else least),
                xytext=(0, 2 if is_above else -2), textcoords="offset points",
                ha="center", va="bottom" if is_above else "top", fontsize=8,
            )  # fmt: skip
    if max(heights) > _DWARFS * min(heights):
        axes.set_yscale("log")
        axes.set_ylim(min(0.5, *heights) * 0.9, 1.5 * max(heights))
    else:
        axes.set_ylim(max(0, min(0.5, *heights) - 0.1), max(1.2, *heights) + 0.2)
    axes.set(ylabel=_TIMES)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
    _finish(axes)
    return figure


def _scaling(results: Newest) -> Any:
    counts = report._worlds(results)
    points = [
        point
        for point in scale.points(results.records)
        if (point.kind, point.parties, point.size) == (ONE, 2, 64)
    ]
    if not counts and not points:
        return None
    figure, panels = _figure(
        *(["Logistic regression in SEMI2K, more parties"] if counts else []),
        *(["More sessions at one broker"] if points else []),
    )
    if counts:
        _more_parties(panels[0], results, counts)
    if points:
        _more_sessions(panels[-1], points, results.sources[scale.GROUP].meta["machine"]["cores"])
    for each in panels:
        each.set_ylim(0, 1.05 * each.get_ylim()[1])
    return figure


def _more_parties(axes: Any, results: Results, counts: Sequence[int]) -> None:
    for transport, style in ((REDISLINK, _SERIES[REDISLINK]), (BRPC, _BRPC)):
        samples = {
            count: results.sample("parties", transport, of.program("lr-semi2k"), world_size=count)
            for count in counts
        }
        _line(axes, style, samples)
    axes.set(xlabel="parties, all on one machine", ylabel="seconds\nlower is better")
    axes.set_xticks(counts)
    _finish(axes, of_brpc=False)


def _more_sessions(axes: Any, points: Sequence[scale.Point], cores: int) -> None:
    at = [point.sessions for point in points]
    measured = [point.rate for point in points]
    expected = [point.flow(cores, MEASURED).rate for point in points]
    style = _SERIES[REDISLINK]
    axes.plot(at, measured, color=style.colour, marker=style.marker, label="measured")
    axes.plot(at, expected, color="black", linestyle="--", label="the model of redislink size")
    axes.set(
        xscale="log",
        xlabel="sessions of two parties at once",
        ylabel="messages per second, of all together\nhigher is better",
    )
    axes.set_xticks(at, [str(count) for count in at])
    axes.minorticks_off()
    _finish(axes, of_brpc=False)
