"""Medians, ratios of pairs, verdicts and the page, from made-up records."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, plan, plots, report, runs
from benchmarks import results as of
from benchmarks.pages import JOURNAL, QUOTED, read_part, write_part
from benchmarks.processes import ROOT
from benchmarks.results import BARS, Bar, Results, Sample
from benchmarks.runs import Newest, Run
from benchmarks.transports import BRPC, FLOOR, REDISLINK


@functools.cache
def meta() -> dict[str, Any]:
    """Of a run on this machine."""
    return {
        "load": [0.1, 1.9],
        "minutes": 30.0,
        "rounds": 3,
        "mplang": None,
        "skipped": 0,
        "networks": [],
        "machine": machine.describe(),
    }


def record(group: str, transport: str, number: int, works: dict[str, Any]) -> dict[str, Any]:
    costs = {"cpu": 1.5, "peak": 200_000_000, "broker_cpu": 0.2, "broker_peak": 9_000_000}
    party = {name: {"values": values} | costs for name, values in works.items()}
    return {
        "group": group,
        "variant": transport,
        "transport": transport,
        "profile": "loopback",
        "world_size": 2,
        "round": number,
        "attempts": 1,
        "error": None,
        "took": 1.0,
        "proxy_cpu": 0.0,
        "parties": [party, party],
    }


def link(transport: str, number: int, seconds: float, group: str = "link") -> dict[str, Any]:
    sizes = {str(size): {"median": seconds, "p95": seconds} for size in (64, 1 << 20)}
    return record(group, transport, number, {"round_trips": sizes})


def programs(
    transport: str, number: int, times: list[float], group: str = "programs3"
) -> dict[str, Any]:
    values = {"first": 9.0, "later": times}
    return record(group, transport, number, {"lr-aby3": values})


def test_ratio_is_of_pairs_of_the_same_round() -> None:
    # The machine became twice as slow in round 1; round 2 has no partner.
    records = [link(REDISLINK, 0, 1.0), link(BRPC, 0, 2.0)]
    records += [link(REDISLINK, 1, 2.0), link(BRPC, 1, 4.0), link(REDISLINK, 2, 100.0)]
    ratio = Results(records).ratio("link", REDISLINK, BRPC, of.round_trip(64))
    assert ratio is not None
    assert ratio.values == (0.5, 0.5)


def test_failed_sessions_are_left_out_and_listed() -> None:
    bad = link(BRPC, 0, 1.0) | {"error": "process 0: it burnt", "parties": []}
    again = link(REDISLINK, 0, 1.0) | {"attempts": 2}
    results = Results([bad, again])
    assert results.sample("link", BRPC, of.round_trip(64)) is None
    assert [line.split(":")[0] for line in results.failures()] == [
        "link brpc loopback, round 1",
        "link redislink loopback, round 1",
    ]
    assert "it burnt" in results.failures()[0]


def test_a_program_is_done_when_its_slowest_party_is() -> None:
    one = programs(REDISLINK, 0, [1.0, 5.0, 3.0])
    one["parties"][1] = {"lr-aby3": {"values": {"first": 2.0, "later": [4.0, 1.0, 2.0]}}}
    assert of.program("lr-aby3")(one) == 4.0
    assert of.first_run("lr-aby3")(one) == 9.0


@pytest.mark.parametrize(
    ("values", "higher", "verdict"),
    [
        ((0.7, 0.7, 5.0), False, "**pass**, aim reached"),
        ((0.8,), False, "**pass**"),
        ((0.96,), False, "**miss**"),
        ((7.0,), True, "**pass**, aim reached"),
        ((5.0,), True, "**pass**"),
        ((3.9,), True, "**miss**"),
        (None, False, "not measured"),
    ],
)
def test_verdict(values: tuple[float, ...] | None, higher: bool, verdict: str) -> None:
    bar, aim = (4.0, 6.0) if higher else (0.95, 0.7)
    one = Bar("title", bar, aim, "brpc", lambda results: None, higher=higher)
    assert one.verdict(None if values is None else Sample(values)) == verdict


def one_way(transport: str, number: int, rate: float) -> dict[str, Any]:
    values = {"bytes_per_second": rate, "seconds": 1.0}
    return record("turns-one-way", transport, number, {"one_ways": {str(4 << 20): values}})


def run_of(*records: dict[str, Any], **machine_changes: Any) -> Run:
    return Run(meta() | {"machine": meta()["machine"] | machine_changes}, Results(list(records)))


def test_bars_are_read_from_records() -> None:
    records = [
        link(REDISLINK, 0, 0.9, "turns-link"),
        link(BRPC, 0, 1.0, "turns-link"),
        link(FLOOR, 0, 0.6, "turns-link"),
        programs(REDISLINK, 0, [1.0], "turns-programs3"),
        programs(BRPC, 0, [2.0], "turns-programs3"),
        one_way(REDISLINK, 0, 3.0),
        one_way(BRPC, 0, 4.0),
        link(REDISLINK, 0, 1.2, "bars-network") | {"profile": plan.WAN.name},
        link(BRPC, 0, 1.0, "bars-network") | {"profile": plan.WAN.name},
    ]
    figures = {(bar.title, bar.unit): bar.measure(Results(records)) for bar in BARS}
    assert len(figures) == len(BARS)
    medians = {key: round(sample.median, 3) for key, sample in figures.items() if sample}
    assert medians == {
        ("64 B round trip, loopback", BRPC): 0.9,
        ("64 B round trip, loopback", FLOOR): 1.5,
        ("LR ABY3, loopback", BRPC): 0.5,
        ("4 MiB one way, loopback, throughput", BRPC): 0.75,
        ("1 MiB round trip, 300 Mbit/s, 20 ms", BRPC): 1.2,
    }


def test_a_bar_on_a_network_is_read_from_older_runs() -> None:
    thin = {"profile": plan.THIN.name}
    records = [link(t, 0, s, "network") | thin for t, s in ((REDISLINK, 1.5), (BRPC, 1.0))]
    for each in records:
        sizes = each["parties"][0]["round_trips"]["values"]
        sizes[str(64 << 10)] = sizes["64"]
    (found,) = (
        bar.measure(Results(records))
        for bar in BARS
        if "20 Mbit/s, 20 ms" in bar.title and bar.title.startswith("64 KiB")
    )
    assert found is not None
    assert found.values == (1.5,)


def test_throughput_is_better_where_it_is_higher() -> None:
    verdicts = {bar.title: bar.verdict(Sample((1.01,))) for bar in BARS if bar.higher}
    assert len(verdicts) == 2
    assert set(verdicts.values()) == {"**pass**, aim reached"}
    assert all("throughput" in title for title in verdicts)


# ---- runs that are kept ----


def turns(ratio: float, count: int = 1) -> list[dict[str, Any]]:
    """Rounds with a 64 B round trip of so many times that of brpc."""
    return [
        link(transport, number, seconds, "turns-link")
        for number in range(count)
        for transport, seconds in ((REDISLINK, ratio + number / 10), (BRPC, 1.0))
    ]


def test_a_run_is_kept_and_read_again(tmp_path: Path) -> None:
    older = run_of(*turns(0.5), date="2026-01-01 10:00:00 UTC")
    newer = run_of(*turns(0.7), date="2026-01-02 10:00:00 UTC", cores=99)
    other = run_of(*turns(0.9), date="2026-01-03 10:00:00 UTC")
    other.meta["of"] = "v1"
    for run in (older, newer, other):
        run.write(tmp_path / run.file_name)
    found = runs.read_all(tmp_path)
    assert [run.day for run in found] == ["2026-01-02", "2026-01-01", "2026-01-03"]
    assert found[0].machine != found[1].machine
    assert found[0].file_name == f"2026-01-02-1000-{newer.machine}-{newer.revision}.json"
    assert found[0].results.records == newer.results.records
    assert Newest(found).sources["turns-link"] is found[0]


def test_a_machine_is_another_with_another_interpreter() -> None:
    here = machine.describe()
    assert machine.identity(here) == machine.identity(here | {"date": "later", "revision": "x"})
    other = here | {"interpreter": here["interpreter"] | {"build": "3.11.2 (gcc)"}}
    assert machine.identity(other) != machine.identity(here)
    without = {name: value for name, value in here.items() if name != "interpreter"}
    assert machine.identity(without) != machine.identity(here)


def test_a_quoted_figure_is_of_all_machines() -> None:
    one = run_of(*turns(0.7, 3), cores=1)
    two = run_of(*turns(0.9), cores=2)
    again = run_of(*turns(0.2), cores=1)  # the same machine, before
    text = report.quoted([one, two, again])
    assert "| medians of 2 machines" in text
    assert "| 64 B round trip, loopback | 0.80 to 0.90 (0.70 to 0.90) |" in text
    assert "| LR ABY3, loopback | not measured |" in text
    assert "| 64 B round trip, loopback | 0.90 |" in report.quoted([two])
    enough = run_of(*turns(0.5, 7), cores=3)
    text = report.quoted([one, two, enough])
    assert "| 64 B round trip, loopback | 0.80 (0.50 to 1.10) |" in text


def test_the_readme_quotes_the_runs_that_are_kept() -> None:
    part = read_part(ROOT / "README.md", QUOTED)
    assert report.quoted(runs.read_all()).strip() in part
    assert "64 B round trip" in part


def test_every_kept_run_has_its_name_and_names_no_host() -> None:
    for path in runs.KEPT.glob("*.json"):
        run = runs.read(path)
        assert path.name == run.file_name
        assert platform.node() not in path.read_text()
        assert not {"command", "host"} & run.meta["machine"].keys()


def test_the_page_has_a_column_for_each_run(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    one, two = (
        run_of(*turns(0.7, 7), cores=1),
        run_of(*turns(0.9), *[link(t, 0, 1.0) for t in (REDISLINK, BRPC)], cores=2),
    )
    report.write(page, [one, two], [])
    text = page.read_text()
    cells = ("1.00 (0.70-1.30): **miss**", "0.90, few rounds: **miss**")
    assert f"| 64 B round trip, loopback | 0.8 | 0.6 | `brpc` | {' | '.join(cells)} |" in text
    assert text.count(f"This section is from another run: {two.title}.") == 1
    assert f"`{one.machine}`" in text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (of.seconds_text, 0.000312, "312 µs"),
        (of.seconds_text, 0.0123456, "12.3 ms"),
        (of.seconds_text, 9.876, "9.88 s"),
        (of.rate_text, 123_456_789, "123 MB/s"),
        (of.number_text, 12345.0, "12345"),
        (of.number_text, 0.0, "0.0"),
    ],
)
def test_numbers_as_text(form: Any, value: float, text: str) -> None:
    assert form((value,)) == [text]


def test_spread_is_shown_in_one_unit() -> None:
    assert Sample((0.0009, 0.0011, 0.0010)).text(of.seconds_text) == "1.00 ms (0.900-1.10)"
    assert Sample((2.0,)).text(of.seconds_text) == "2.00 s"


def test_page_of_nothing_says_that_nothing_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    report.write(page, [Run(meta() | {"skipped": 7}, Results([]))], [])
    text = page.read_text()
    assert text.count("not measured") >= len(BARS)
    assert "**Time ran out**: 7 measurements" in text
    assert "<plot" not in text


def test_a_part_that_was_measured_apart_stays_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("old\n<!-- journal: begin -->\nold\n<!-- journal: end -->\nold\n")
    write_part(page, JOURNAL, "## What a journal costs\n")
    report.write(page, [Run(meta(), Results([]))], [])
    report.write(page, [Run(meta(), Results([]))], [])
    text = page.read_text()
    part = "<!-- journal: begin -->\n## What a journal costs\n<!-- journal: end -->\n"
    assert text.count(part) == text.count("journal") // 3 == 1
    assert text.index("## Bars") < text.index(part) < text.index("## How\n")
    assert "old" not in text
    with pytest.raises(ValueError, match="no part other"):
        write_part(page, "other", "")


def test_page_and_plots_of_a_little(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = Results(
        [
            made
            for number in range(3)
            for transport in (REDISLINK, BRPC)
            for made in (link(transport, number, 0.001), programs(transport, number, [1.0, 2.0]))
        ]
    )
    page = tmp_path / "performance.md"
    drawn = plots.draw(tmp_path / "performance", results)
    assert drawn == ["round_trip.png", "programs.png"]
    report.write(page, [Run(meta(), results)], drawn)
    text = page.read_text()
    for name in drawn:
        assert f"(performance/{name})" in text
        assert (tmp_path / "performance" / name).stat().st_size > 1000
    assert "| 64 B | 1.00 ms (1.00-1.00) | 1.00 ms (1.00-1.00) | 1.00 (1.00-1.00) |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line in rows:
        assert "None" not in line
