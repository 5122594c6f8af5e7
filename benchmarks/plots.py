"""The plots of the page, as PNG. Without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import plan, report
from benchmarks import results as of
from benchmarks.results import Extract, Results
from benchmarks.transports import (
    BRPC,
    BRPC_KEPT,
    FLOOR,
    MEM,
    MPLANG,
    NAIVE,
    REDISLINK,
    REDISLINK_NONE,
    REDISLINK_UNIX,
)

# One colour per transport on every plot; told apart also by marker, for print.
_STYLES: Final = {
    REDISLINK: ("#c0392b", "o"),
    REDISLINK_NONE: ("#e59866", "v"),
    REDISLINK_UNIX: ("#1e8449", "P"),
    BRPC: ("#1f618d", "s"),
    BRPC_KEPT: ("#5dade2", "p"),
    FLOOR: ("#17202a", "+"),
    NAIVE: ("#7d6608", "^"),
    MPLANG: ("#6c3483", "D"),
    MEM: ("#707b7c", "x"),
}


def draw(directory: Path, results: Results) -> list[str]:
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


def _figure(columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(7.5 if columns == 1 else 10.5, 4.2), layout="constrained"
    )
    axes = [axes] if columns == 1 else list(axes)
    for each in axes:
        each.grid(visible=True, which="major", alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _by_size(
    results: Results, work: str, make: Callable[[int], Extract], label: str, scale: float
) -> Any:
    sizes = report._sizes(results, "link", work)
    if not sizes:
        return None
    figure, (axes,) = _figure()
    for transport in results.variants("link"):
        _line(
            axes,
            transport,
            {size: results.sample("link", transport, make(size)) for size in sizes},
            scale,
        )
    axes.set(xscale="log", yscale="log", xlabel="message size", ylabel=label)
    axes.set_xticks(sizes, [of.size_text(size) for size in sizes], fontsize=8)
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def _line(axes: Any, transport: str, samples: dict[int, of.Sample | None], scale: float) -> None:
    points = {x: sample for x, sample in samples.items() if sample is not None}
    if not points:
        return
    colour, marker = _STYLES[transport]
    axes.plot(
        list(points),
        [sample.median * scale for sample in points.values()],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=2 if transport == REDISLINK else 1.2,
        label=transport,
    )
    axes.fill_between(
        list(points),
        [min(sample.values) * scale for sample in points.values()],
        [max(sample.values) * scale for sample in points.values()],
        color=colour,
        alpha=0.12,
        linewidth=0,
    )


def _round_trips(results: Results) -> Any:
    return _by_size(results, "round_trips", of.round_trip, "round trip, ms", 1e3)


def _one_ways(results: Results) -> Any:
    return _by_size(results, "one_ways", of.one_way, "one way, MB/s", 1e-6)


def _programs(results: Results) -> Any:
    transports = [t for t in report.plan_transports(results) if t != BRPC]
    bars: dict[str, list[of.Sample | None]] = {}
    for name in report._TITLES:
        group = "programs2" if name in ("psi", "sort-cheetah") else "programs3"
        ratios = [results.ratio(group, t, BRPC, of.program(name)) for t in transports]
        if any(ratios):
            bars[name] = ratios
    return _grouped(bars, transports, "time / time of brpc")


def _networks(results: Results) -> Any:
    transports = [t for t in (REDISLINK, NAIVE) if t in results.variants("lr")]
    extract = of.program("lr-aby3")
    bars: dict[str, list[of.Sample | None]] = {}
    ratios = [results.ratio("programs3", t, BRPC, extract) for t in transports]
    if any(ratios):
        bars["loopback"] = ratios
    for network in plan.NETWORKS:
        where = {"profile": network.name}
        ratios = [results.ratio("lr", t, BRPC, extract, **where) for t in transports]
        if any(ratios):
            bars[network.name] = ratios
    return _grouped(bars, transports, "LR ABY3: time / time of brpc")


def _grouped(bars: dict[str, list[of.Sample | None]], transports: list[str], label: str) -> Any:
    if not bars or not transports:
        return None
    figure, (axes,) = _figure()
    width = 0.8 / len(transports)
    for number, transport in enumerate(transports):
        at, heights, below, above = [], [], [], []
        for place, samples in enumerate(bars.values()):
            sample = samples[number]
            if sample is not None:
                at.append(place + (number - (len(transports) - 1) / 2) * width)
                heights.append(sample.median)
                below.append(sample.median - min(sample.values))
                above.append(max(sample.values) - sample.median)
        axes.bar(at, heights, width * 0.92, color=_STYLES[transport][0], label=transport)
        axes.errorbar(at, heights, [below, above], fmt="none", ecolor="black", elinewidth=0.8)
    axes.axhline(1, color=_STYLES[BRPC][0], linewidth=1.2, label=BRPC)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.legend(frameon=False)
    return figure


def _scaling(results: Results) -> Any:
    counts = report._worlds(results)
    sessions = results.variants("sessions")
    if not counts and not sessions:
        return None
    figure, (left, right) = _figure(2)
    for transport in plan.MAIN:
        samples = {
            count: results.sample("parties", transport, of.program("lr-semi2k"), world_size=count)
            for count in counts
        }
        _line(left, transport, samples, 1.0)
    left.set(xlabel="parties", ylabel="LR SEMI2K, seconds")
    left.set_xticks(counts)
    if counts:
        left.legend(frameon=False)
    samples = {
        int(count): results.sample("sessions", count, report.sessions_rate) for count in sessions
    }
    _line(right, REDISLINK, samples, 1.0)
    right.set(xscale="log", xlabel="sessions at once", ylabel="round trips/s")
    right.set_xticks([int(count) for count in sessions], sessions)
    right.minorticks_off()
    for each in (left, right):
        each.set_ylim(0, 1.05 * each.get_ylim()[1])
    return figure
