"""Writes ``performance.md`` from the results: what was measured, what was missed, and where.

Rules: every figure comes from the results; what was not measured is said, never left out; the
verdict on a bar is that of the median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import plan, scale
from benchmarks import results as of
from benchmarks.brokers import IO_THREADS
from benchmarks.pages import JOURNAL, QUOTED, read_part, write_part
from benchmarks.results import Extract, Results, Sample, table
from benchmarks.runs import Newest, Run, by_machine, span_text
from benchmarks.transports import ALL, BRPC, FLOOR, MPLANG, NAIVE, REDISLINK, REDISLINK_NONE
from redislink.operate.sizing import MEASURED

Meta = dict[str, Any]
_QUOTED: Final = (
    "64 B round trip, loopback",
    "LR ABY3, loopback",
    "64 KiB round trip, loopback",
    f"64 KiB round trip, {of.network_text(plan.THIN)}",
    f"LR ABY3, {of.network_text(plan.WAN)}",
    f"LR ABY3, {of.network_text(plan.THIN)}",
)
"""The bars that the README quotes."""
_NONE: Final = "-"
_ENOUGH: Final = 7
_DISTRIBUTION: Final = "the distribution's"
_TITLES: Final = {
    "lr-aby3": "logistic regression, 10 steps, ABY3 (3 parties)",
    "lr-semi2k": "logistic regression, 10 steps, SEMI2K (3 parties)",
    "mlp-aby3": "MLP inference 784-64-32-10, batch 128, ABY3 (3 parties)",
    "sort-cheetah": "sort of 1000 numbers, CHEETAH (2 parties)",
    "psi": "PSI, RR22 (2 parties)",
}
_TRANSPORTS: Final = f"""\
- `redislink`: through the broker (a Valkey started for each measurement), sealed, as by default.
- `redislink-unix`: the same, through the broker's unix socket instead of TCP.
- `redislink-none`: the same as `redislink`, with `security: none`.
- `brpc`: SPU's own direct link as it comes: in clear, parties listening.
- `brpc-kept`: the same, in processes whose malloc keeps freed memory, as those of `redislink` do
  (`REDISLINK_KEPT_MEMORY_BYTES`). redislink's brpc mode runs like this.
- `naive`: an `IChannel` on plain redis-py that waits for each RPUSH and does one BLPOP per receive
  (`benchmarks/naive.py`); in clear, and messages that the broker loses are lost.
- `{FLOOR}`: a bare ping-pong of RPUSH and BLPOP by two raw sockets, in Python and without libspu:
  the least that a relay of lists takes if it sleeps until a reply comes (`benchmarks/floor.py`).
  The multiple of it carries over from one machine to another, unlike a time.
- `{MPLANG}`: MPLang's HTTP communicator and channel, set up as its worker does.
- `mem`: SPU's own in-memory link, all parties threads of one process: the computation alone.
"""


def write(path: Path, runs: Sequence[Run], plots: Sequence[str]) -> None:
    """Write the page. What `benchmarks.journal` has written into it stays.

    Args:
        path: of the page; plots lie in a directory of its name without ``.md``.
        runs: what was measured, the newest run first; all of them are shown.
        plots: file names of the plots that were drawn.
    """
    results = Newest(runs)
    newest = runs[0]
    sections = [
        _head(newest.meta, len(runs)),
        _bars(runs),
        _runs(runs),
        _from("turns-link", _costs_of(results), results, newest),
        _from("link", _round_trips(results), results, newest),
        _from("link", _one_ways(results), results, newest),
        _from("link", _endpoint(results), results, newest),
        _from("programs3", _programs(results), results, newest),
        _from("network", _networks(results), results, newest),
        _from("truths", _truths(results), results, newest),
        _from("programs3", _resources(results), results, newest),
        _from("parties", _scaling(results), results, newest),
        _from(scale.GROUP, _sizing(results), results, newest),
        read_part(path, JOURNAL),
        _method(newest),
    ]
    text = "\n".join(section for section in sections if section)
    for name in ("round_trip", "one_way", "programs", "networks", "scaling"):
        image = f"![{name.replace('_', ' ')}]({path.stem}/{name}.png)\n"
        text = text.replace(f"<plot {name}>\n", image if f"{name}.png" in plots else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def quote(page: Path, runs: Sequence[Run]) -> None:
    """Write the figures that another page quotes into its part for them."""
    write_part(page, QUOTED, quoted(runs))


def quoted(runs: Sequence[Run]) -> str:
    """A few figures beside brpc, over all machines.

    Those of few rounds count only where no machine has more.
    """
    rows = []
    machines = 0
    for bar in of.BARS:
        if bar.title in _QUOTED and bar.unit == BRPC:
            samples = by_machine(runs, bar)
            samples = [each for each in samples if len(each.values) >= _ENOUGH] or samples
            machines = max(machines, len(samples))
            rows.append((bar.title, span_text(samples) if samples else "not measured"))
    many = "1 machine" if machines == 1 else f"{machines} machines, from the least to the most"
    return table((f"medians of {many} (all rounds in brackets)", "time of brpc = 1"), rows)


def _from(group: str, text: str, results: Newest, newest: Run) -> str:
    """Say where a section comes from, if not from the newest run."""
    source = results.sources.get(group, newest)
    if source is newest or not text:
        return text
    heading, _, rest = text.partition("\n")
    return f"{heading}\n\nThis section is from another run: {source.title}.\n{rest}"


def _head(meta: Meta, count: int) -> str:
    machine = meta["machine"]
    versions = ", ".join(
        f"{part} {version}" for part, version in machine["versions"].items() if version
    )
    mplang = meta["mplang"]
    return f"""\
# Performance

How fast is redislink beside SPU's direct link (brpc), and others? `python -m benchmarks` measured
every figure, and wrote this page from the runs that are kept in `benchmarks/results` ({count}).
Do not edit it: run the command again, or with `--page`, which measures nothing.

Details are those of the newest run, unless a section says otherwise:

- Machine: {machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB,
  {machine["kernel"]}; all parties, the broker and the network proxy share it.
- Interpreter: {_interpreter(machine)}.
- When: {machine["date"]}, {meta["minutes"]} minutes; load average {meta["load"][0]} at the start \
and {meta["load"][1]} at the end.
- What: revision {machine["revision"]}; {versions}; \
MPLang: {mplang if mplang else "not installed, so not measured"}.

Figures are medians over rounds, with the lowest and the highest in brackets. Rounds are interleaved
(A B C, A B C, …), each measurement has fresh processes and a fresh broker, and a ratio compares
two measurements of the same round.

{_TRANSPORTS}"""


def _interpreter(machine: dict[str, Any]) -> str:
    found = machine.get("interpreter")
    if found is None:
        return f"Python {machine['python']}; how it was built was not recorded"
    # A distribution's does not say that it was built with PGO and LTO, though it was.
    flags = [name for name in ("pgo", "lto") if found[name]]
    with_ = " with " + " and ".join(flags).upper() if flags else ""
    without = "" if with_ or found["kind"] == _DISTRIBUTION else " without PGO and LTO"
    return (
        f"Python {machine['python']}, {found['kind']}, built{with_ or without} by "
        f"{found['build'].partition('[')[2].rstrip(']')}; "
        f"a fixed piece of Python takes {found['microseconds'] / 1000:.1f} ms"
    )


def _bars(runs: Sequence[Run]) -> str:
    shown = [run for run in runs if any(bar.measure(run.results) for bar in of.BARS)] or runs[:1]
    rows = []
    for bar in of.BARS:
        row = [bar.title, f"{bar.bar:g}", f"{bar.aim:g}", f"`{bar.unit}`"]
        for run in shown:
            sample = bar.measure(run.results)
            verdict = bar.verdict(sample)
            few = "" if sample is None or len(sample.values) >= _ENOUGH else ", few rounds"
            figure = "" if sample is None else f"{sample.text(of.ratio_text)}{few}: "
            row.append(figure + verdict)
        rows.append(row)
    header = ("", "bar", "aim", "in units of", *(run.title for run in shown))
    return (
        "## Bars\n\n"
        "Each figure must reach its *bar* and should reach its *aim*. Lower is better, except for\n"
        "throughput. All runs are sealed and reliable. On loopback, both sides of a ratio ran at\n"
        "once and took turns of about a second, so that slow moments of the machine met both;\n"
        "through a network they ran one after the other. In the sections below each measurement\n"
        "ran alone, so the same ratio may differ there. Fewer rounds than "
        f"{_ENOUGH} are said to be few.\n\n" + table(header, rows)
    )


def _runs(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        machine = run.meta["machine"]
        rows.append(
            (
                run.title,
                f"{machine['cpu']}, {machine['cores']} cores",
                _interpreter(machine),
                f"{run.meta['load'][0]}, {run.meta['load'][1]}",
                f"{run.meta['minutes']} min, rounds: {run.meta['rounds']}",
            )
        )
    header = ("run", "machine", "interpreter", "load before, after", "took")
    return (
        "## Runs\n\nA machine's short name stands for its CPU, its cores and its interpreter.\n\n"
        + table(header, rows)
    )


def _costs_of(results: Results) -> str:
    pairs: list[tuple[str, str, str, str, Extract]] = [
        ("sealing", "turns-link", REDISLINK, REDISLINK_NONE, of.round_trip(64)),
        ("sealing", "turns-link", REDISLINK, REDISLINK_NONE, of.round_trip(1 << 20)),
        ("sealing", "turns-programs3", REDISLINK, REDISLINK_NONE, of.program("lr-aby3")),
        ("sealing", "turns-programs3", REDISLINK, REDISLINK_NONE, of.program("lr-semi2k")),
    ]
    names = ["64 B round trip", "1 MiB round trip", "LR ABY3", "LR SEMI2K"]
    rows = []
    for name, (what, group, upper, lower, extract) in zip(names, pairs, strict=True):
        sample = results.ratio(group, upper, lower, extract)
        if sample is not None:
            rows.append((what, name, f"`{lower}`", sample.text(of.ratio_text)))
    text = table(("cost of", "measured by", "in units of", "ratio"), rows)
    against = against_table(results)
    if against:
        text += f"\nCompared with another revision, in the same rounds:\n\n{against}"
    return "## What sealing costs\n\n" + text if text else ""


def against_table(results: Results) -> str:
    """This revision against others; empty if that was not measured."""
    rows = []
    for name, group, extract in (
        ("64 B round trip", "against-link", of.round_trip(64)),
        ("1 MiB round trip", "against-link", of.round_trip(1 << 20)),
        ("LR ABY3", "against-lr", of.program("lr-aby3")),
    ):
        for base in results.variants(group):
            ratio = results.ratio(group, REDISLINK, base, extract)
            if base != REDISLINK and ratio is not None:
                rows.append(
                    (
                        name,
                        _cell(results.sample(group, REDISLINK, extract), of.seconds_text),
                        _cell(results.sample(group, base, extract), of.seconds_text),
                        base,
                        ratio.text(of.ratio_text),
                    )
                )
    return table(("", "now", "other", "which", "ratio"), rows)


def _round_trips(results: Results) -> str:
    text = _by_size(results, "link", "round_trips", of.round_trip, of.seconds_text)
    if not text:
        return ""
    return (
        "## Round trip between two parties, loopback\n\n"
        "Through libspu's link context (`send_async`, `recv`). Its Python binding takes a good "
        "part of the time of large messages.\n\n" + text + "\n<plot round_trip>\n"
    )


def _one_ways(results: Results) -> str:
    text = _by_size(results, "link", "one_ways", of.one_way, of.rate_text)
    if not text:
        return ""
    return (
        "## Throughput one way between two parties, loopback\n\n"
        "Messages sent one after the other through the link context, up to 64 MiB at once, timed "
        "from the first send to the last receive. The ratio is that of throughputs: higher is "
        "better.\n\n" + text + "\n<plot one_way>\n"
    )


def _endpoint(results: Results) -> str:
    rows = []
    sizes = _sizes(results, "link", "endpoint_round_trips")
    for size in sizes:
        row = [of.size_text(size)]
        for transport in (REDISLINK, REDISLINK_NONE):
            for extract, form in (
                (of.round_trip(size, "endpoint_round_trips"), of.seconds_text),
                (of.one_way(size, "endpoint_one_ways"), of.rate_text),
            ):
                row.append(_cell(results.sample("link", transport, extract), form))
        rows.append(row)
    header = (
        "size",
        "`redislink` round trip",
        "one way",
        "`redislink-none` round trip",
        "one way",
    )
    text = table(header, rows)
    return f"## `Endpoint.send` and `recv`, loopback\n\nWithout SPU.\n\n{text}" if text else ""


def _programs(results: Results) -> str:
    rows, firsts = [], []
    for name, title in _TITLES.items():
        group = "programs2" if name in ("psi", "sort-cheetah") else "programs3"
        transports = _all_transports(results, group)
        if not any(results.sample(group, t, of.program(name)) for t in transports):
            continue
        row = [title]
        row += [
            _cell(results.sample(group, t, of.program(name)), of.seconds_text)
            for t in plan_transports(results)
        ]
        ratio = results.ratio(group, REDISLINK, BRPC, of.program(name))
        rows.append([*row, _cell(ratio, of.ratio_text)])
        if name != "psi":
            firsts.append(
                [title]
                + [
                    _cell(results.sample(group, t, of.first_run(name)), of.seconds_text)
                    for t in (REDISLINK, BRPC)
                ]
                + [_cell(results.ratio(group, REDISLINK, BRPC, of.first_run(name)), of.ratio_text)]
            )
    if not rows:
        return ""
    header = ["", *(f"`{t}`" for t in plan_transports(results)), "`redislink` / `brpc`"]
    text = (
        "## SPU programs, loopback\n\n"
        "From the call of `Runtime.run` (or `psi_execute`) until the slowest party has the result. "
        "Programs had run once before; PSI includes everything. Each result is compared with the "
        "same computation in plaintext; one that differs is a failed measurement.\n\n"
        + table(header, rows)
        + "\n<plot programs>\n"
    )
    header = ["first run, with the protocol's setup", "`redislink`", "`brpc`", "ratio"]
    return text + "\n" + table(header, firsts)


def _networks(results: Newest) -> str:
    text = _proxy(results)
    for profile in (network.name for network in plan.NETWORKS):
        where = {"profile": profile}
        parts = []
        for title, work, make, form in (
            ("round trip", "round_trips", of.round_trip, of.seconds_text),
            ("one way", "one_ways", of.one_way, of.rate_text),
        ):
            part = _by_size(results, "network", work, make, form, **where)
            if part:
                parts.append(f"\n{profile}, {title}, 2 parties:\n\n{part}")
        text += "".join(parts)
    rows = []
    transports = [t for t in (REDISLINK, BRPC, NAIVE) if t in results.variants("lr")]
    for profile in (network.name for network in plan.NETWORKS):
        row = [profile]
        for transport in transports:
            sample = results.sample("lr", transport, of.program("lr-aby3"), profile=profile)
            row.append(_cell(sample, of.seconds_text))
        ratio = results.ratio("lr", REDISLINK, BRPC, of.program("lr-aby3"), profile=profile)
        if any(cell != _NONE for cell in row[1:]):
            rows.append([*row, _cell(ratio, of.ratio_text)])
    if rows:
        text += "\nLogistic regression, 10 steps, ABY3, 3 parties, first run:\n\n" + table(
            ("profile", *(f"`{t}`" for t in transports), "`redislink` / `brpc`"), rows
        )
        text += "\n<plot networks>\n"
    text += _line(results)
    return "## Networks\n\n" + text if text else ""


def _proxy(results: Newest) -> str:
    source = results.sources.get("network") or results.sources.get("lr")
    rows = [
        (
            network["profile"],
            f"{network['rtt'] * 1e3:g} ms, {network['rate'] / 1e6:g} Mbit/s",
            *of.seconds_text((network["measured_rtt"],)),
            *of.seconds_text((network["measured_broker_rtt"],)),
            *of.seconds_text((network["bare_rtt"],)),
            f"{network['measured_rate'] / 1e6:.1f} Mbit/s",
            f"{network['proxy_cpu']:.2f} cores",
        )
        for network in (source.meta["networks"] if source else ())
    ]
    header = (
        "profile",
        "between parties",
        "measured round trip",
        "to the broker and back",
        "without proxy",
        "measured rate",
        "the proxy takes",
    )
    if not rows:
        return ""
    return (
        "All traffic goes through `benchmarks/netproxy.py`, on the same machine. Each party has a "
        "line of the given rate in each direction. The round trip between a party and the broker "
        "is half of that between two parties, so the relay's path is as long as that of brpc, "
        "which goes through the same proxy directly. The relay crosses the proxy twice and brpc "
        "once, and the proxy shares the cores with the parties: at 1 Gbit/s that shows. Slow "
        "start and loss are not modelled in this section. Before the rounds, a bare TCP "
        "connection through the proxy measured:\n\n" + table(header, rows)
    )


def _truths(results: Newest) -> str:
    rows = []
    for profile in plan.TRUTHS:
        where = {"profile": profile.name}
        row = [profile.name]
        for work in ("round_trips", "after_pauses"):
            for size in (64 << 10, 1 << 20):
                extract = of.round_trip(size, work, "mean" if profile.loss else "median")
                row.append(_beside_brpc(results, extract, **where))
        row.append(_beside_brpc(results, of.program("lr-aby3"), **where))
        if any(cell != _NONE for cell in row[1:]):
            rows.append(row)
    header = ("line", "64 KiB", "1 MiB", "64 KiB, paused", "1 MiB, paused", "LR ABY3")
    text = table(header, rows)
    if not text:
        return ""
    return (
        "## What real lines do\n\n"
        "Round trips, and the logistic regression with its setup, over lines of "
        f"{of.network_text(plan.SMOOTH)}: `redislink`, then `brpc`, then the ratio of the two. "
        "From *slow start* on, the proxy models what TCP does on a line: ten segments at first, "
        "twice as many each round trip, and fewer again after idleness "
        "(`tcp_slow_start_after_idle`). *Paused* round trips begin after 0.5 s without any. Lost "
        "segments are sent again; with losses, figures are means, as a median does not see "
        "them. *Near one party*: a tenth of the way between two parties lies between the first "
        "one and the broker. *Asymmetric*: 20 Mbit/s up, 100 Mbit/s down. The kernel here has no "
        "`netem`, so these are models of a proxy.\n\n" + text
    )


def _beside_brpc(results: Results, extract: Extract, **where: Any) -> str:
    samples = [results.sample("truths", t, extract, **where) for t in (REDISLINK, BRPC)]
    ratio = results.ratio("truths", REDISLINK, BRPC, extract, **where)
    if ratio is None:
        return _NONE
    ours, theirs = (of.seconds_text((s.median,))[0] for s in samples if s is not None)
    return f"{ours}, {theirs}: {ratio.text(of.ratio_text)}"


def _line(results: Results) -> str:
    rows = []
    for size in _sizes(results, "line", "line"):
        ideal = size * 8 / plan.LINE.rate
        for transport in results.variants("line"):
            sample = results.sample("line", transport, of.one_way_seconds(size, "line"))
            if sample is not None:
                ratio = Sample(tuple(value / ideal for value in sample.values))
                rows.append(
                    (
                        of.size_text(size),
                        f"`{transport}`",
                        sample.text(of.seconds_text),
                        f"{ideal:.2f} s",
                        ratio.text(of.ratio_text),
                    )
                )
    text = table(("size", "transport", "time", "size/bandwidth", "ratio"), rows)
    return f"\nOne message one way at 100 Mbit/s, 10 ms round trip:\n\n{text}" if text else ""


def _resources(results: Results) -> str:
    rows = []
    for name, title in {"round_trips": "round trips of all sizes", **_TITLES}.items():
        group = {"round_trips": "link", "psi": "programs2", "sort-cheetah": "programs2"}.get(
            name, "programs3"
        )
        for transport in _all_transports(results, group):
            cells = [
                _cell(results.sample(group, transport, of.cost(name, what)), form)
                for what, form in (
                    ("cpu", _cpu_text),
                    ("peak", of.bytes_text),
                    ("broker_cpu", _cpu_text),
                    ("broker_peak", of.bytes_text),
                )
            ]
            if any(cell != _NONE for cell in cells):
                rows.append((title, f"`{transport}`", *cells))
    header = ("", "transport", "party CPU", "party peak", "broker CPU", "broker peak")
    text = table(header, rows)
    if not text:
        return ""
    return (
        "## CPU and memory\n\n"
        "CPU seconds and peak resident memory over the whole measurement (all its runs), of the "
        "party that took most and of the broker. Importing spu and JAX alone takes about 190 MB. "
        "With `mem` all parties are one process.\n\n" + text
    )


def _scaling(results: Results) -> str:
    text = ""
    rows = []
    for count in _worlds(results):
        where = {"world_size": count}
        extract = of.program("lr-semi2k")
        rows.append(
            (
                str(count),
                *(
                    _cell(results.sample("parties", t, extract, **where), of.seconds_text)
                    for t in (REDISLINK, BRPC)
                ),
                _cell(results.ratio("parties", REDISLINK, BRPC, extract, **where), of.ratio_text),
            )
        )
    if rows:
        text += (
            "More parties: logistic regression, SEMI2K, all parties on this machine's cores:"
            "\n\n" + table(("parties", "`redislink`", "`brpc`", "ratio"), rows) + "\n"
        )
    rows = []
    counts = sorted(
        {
            int(count)
            for record in _good(results, "link")
            for count in record["parties"][0].get("bursts", {}).get("values", {})
        }
    )
    transports = [
        t
        for t in _all_transports(results, "link")
        if any(results.sample("link", t, burst(count)) for count in counts)
    ]
    for count in counts:
        rows.append(
            [str(count)]
            + [_cell(results.sample("link", t, burst(count)), of.seconds_text) for t in transports]
            + [_cell(results.ratio("link", REDISLINK, BRPC, burst(count)), of.ratio_text)]
        )
    if rows:
        header = ["messages", *(f"`{t}`" for t in transports), "`redislink` / `brpc`"]
        text += (
            "More messages at once: 64 B each through the link, from the first send to the last "
            "receive:\n\n" + table(header, rows)
        )
    return f"## Scaling\n\n{text}\n<plot scaling>\n" if text else ""


def _sizing(results: Newest) -> str:
    points = scale.points(results.records)
    if not points:
        return ""
    cores = results.sources[scale.GROUP].meta["machine"]["cores"]
    rows = []
    for point in points:
        flow = point.flow(cores, MEASURED)
        rows.append(
            (
                point.kind,
                str(point.parties),
                str(point.sessions),
                of.size_text(point.size) if point.size else "idle",
                *(of.number_text((point.rate,)) if point.size else (_NONE,)),
                _over(flow.rate, point.rate),
                *(of.seconds_text((point.way,)) if point.size else (_NONE,)),
                _over(flow.way, point.way),
                f"{_limiting(point):.2f}",
                _over(point.busy(MEASURED), _limiting(point)),
                str(point.connections),
                _over(scale.expected_connections(point), point.connections),
                *of.bytes_text((point.memory,)),
                _over(point.expected_memory(MEASURED), point.memory),
            )
        )
    header = (
        *("broker", "parties", "sessions", "message"),
        *("messages/s", "model", "one way", "model"),
        *("broker cores", "model", "connections", "model", "memory", "model"),
    )
    return (
        "## Sessions on one broker, and what the model says\n\n"
        "By `Endpoint`: each party has one message on its way, to one of the others after another. "
        "*model* is what [`redislink size`](sizing.md) expects, in units of what was measured: "
        "1 is exact. Parties and broker share this machine's cores, which the model is told; at "
        "the broker's cores it is told the rate too. `io-threads`: of its busiest thread. "
        f"The model's constants: {MEASURED.source}.\n\n" + table(header, rows)
    )


def _limiting(point: scale.Point) -> float:
    return point.busiest if point.kind == IO_THREADS else point.cores


def _over(expected: float, measured: float) -> str:
    return f"{expected / measured:.2f}" if measured else _NONE


def _method(run: Run) -> str:
    meta = run.meta
    lines = [
        f"- Rounds: {meta['rounds']}. Some measurements take part in fewer; brackets show the "
        "spread of those that ran.",
        "- CPU and memory are read from `/proc`, times from the monotonic clock, which all parties "
        "of a machine share.",
        "- Programs are compiled and inputs shared beforehand; only the computation is timed.",
    ]
    if meta["skipped"]:
        lines.append(f"- **Time ran out**: {meta['skipped']} measurements were left out.")
    failures = run.results.failures()
    lines += [f"- {line}" for line in failures] or ["- No measurement failed or was tried twice."]
    return "## How\n\n" + "\n".join(lines) + "\n"


# ---- parts ----


def plan_transports(results: Results) -> list[str]:
    """Those that were measured on SPU programs, in order of the page."""
    found = {t for group in ("programs2", "programs3") for t in _all_transports(results, group)}
    return [t for t in ALL if t in found]


def burst(count: int) -> Extract:
    """Seconds of so many messages."""
    return lambda record: float(of.first_values(record, "bursts")[str(count)]["seconds"])


def _by_size(
    results: Results,
    group: str,
    work: str,
    make: Callable[[int, str], Extract],
    form: Callable[[Sequence[float]], list[str]],
    **where: Any,
) -> str:
    transports = results.variants(group, **where)
    bases = [base for base in (BRPC, FLOOR) if base in transports]
    rows = []
    for size in _sizes(results, group, work, **where):
        extract = make(size, work)
        row = [of.size_text(size)]
        row += [_cell(results.sample(group, t, extract, **where), form) for t in transports]
        row += [
            _cell(results.ratio(group, REDISLINK, base, extract, **where), of.ratio_text)
            for base in bases
        ]
        rows.append(row)
    header = ["size", *(f"`{t}`" for t in transports)]
    return table([*header, *(f"`{REDISLINK}` / `{base}`" for base in bases)], rows)


def _sizes(results: Results, group: str, work: str, **where: Any) -> list[int]:
    return sorted(
        {
            int(size)
            for record in _good(results, group)
            if all(record[name] == value for name, value in where.items())
            for size in record["parties"][0].get(work, {}).get("values", {})
        }
    )


def _worlds(results: Results) -> list[int]:
    return sorted({record["world_size"] for record in _good(results, "parties")})


def _good(results: Results, group: str) -> list[dict[str, Any]]:
    return [r for r in results.records if r["group"] == group and r["error"] is None]


def _all_transports(results: Results, group: str) -> list[str]:
    return results.variants(group)


def _cell(sample: Sample | None, form: Callable[[Sequence[float]], list[str]]) -> str:
    return _NONE if sample is None else sample.text(form)


def _cpu_text(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f} s" for value in values]
