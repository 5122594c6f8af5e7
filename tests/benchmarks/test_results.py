"""Medians, ratios of pairs, verdicts and the page, from made-up records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, plan, plots, report
from benchmarks import results as of
from benchmarks.pages import JOURNAL, write_part
from benchmarks.results import BARS, Bar, Results, Sample
from benchmarks.transports import BRPC, MPLANG, REDISLINK

META = {
    "command": "python -m benchmarks",
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


def test_bars_are_read_from_records() -> None:
    records = [
        link(REDISLINK, 0, 0.9, "turns-link"),
        link(BRPC, 0, 1.0, "turns-link"),
        programs(REDISLINK, 0, [1.0], "turns-programs3"),
        programs(BRPC, 0, [2.0], "turns-programs3"),
        programs(REDISLINK, 0, [3.0], "turns-http"),
        programs(MPLANG, 0, [7.5], "turns-http"),
        record("line", REDISLINK, 0, {"line": {str(plan.LINE_BYTES): {"seconds": 3.0}}}),
    ]
    figures = [bar.measure(Results(records)) for bar in BARS]
    medians = [None if figure is None else round(figure.median, 3) for figure in figures]
    ideal = plan.LINE_BYTES * 8 / 100e6
    assert medians == [0.9, 0.5, None, 0.9, None, None, round(3.0 / ideal, 3), 2.5]


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
    report.write(page, Results([]), META | {"skipped": 7}, [])
    text = page.read_text()
    assert text.count("not measured") >= len(BARS)
    assert "**Time ran out**: 7 measurements" in text
    assert "<plot" not in text


def test_a_part_that_was_measured_apart_stays_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("old\n<!-- journal: begin -->\nold\n<!-- journal: end -->\nold\n")
    write_part(page, JOURNAL, "## What a journal costs\n")
    report.write(page, Results([]), META, [])
    report.write(page, Results([]), META, [])
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
    report.write(page, results, META, drawn)
    text = page.read_text()
    for name in drawn:
        assert f"(performance/{name})" in text
        assert (tmp_path / "performance" / name).stat().st_size > 1000
    assert "| 64 B | 1.00 ms (1.00-1.00) | 1.00 ms (1.00-1.00) | 1.00 (1.00-1.00) |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line in rows:
        assert "None" not in line
