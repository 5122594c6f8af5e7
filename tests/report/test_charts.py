"""Strips: where bars lie, and that the picture is nothing but a picture."""

from __future__ import annotations

import re

import pytest

from redislink.report.charts import NARROW, WIDE, joined, strip, ticks_of


def test_bars_lie_where_their_times_are() -> None:
    text = strip([[(0, 2), (5, 10)], [(2, 4)]], 10, WIDE, "steps", has_axis=True)
    bars = [
        (float(x), float(width))
        for x, width in re.findall(r'<rect x="([\d.]+)"[^>]* width="([\d.]+)"', text)
    ]
    (_, whole), plot, first, second, third, _ = bars
    assert (bars[0][0], whole, plot[0]) == (0, WIDE, 0)
    second_long = second[1] / 5
    assert first[1] == pytest.approx(2 * second_long)
    assert second[0] - first[0] == pytest.approx(5 * second_long)
    assert third[0] == pytest.approx(first[0] + first[1])
    assert re.findall(r"<text[^>]*>([^<]*)<", text) == [
        *("0 s", "2 s", "4 s", "6 s", "8 s", "10 s")
    ]
    assert not re.search("script|style|href|<desc|<title|pygal.org|<!--", text)
    assert 'aria-label="steps"' in text


def test_both_kinds_of_strips_have_one_axis() -> None:
    """With times below and without, and with bars and without, a second is as long."""
    texts = [
        strip(bars, 7, NARROW, "x", has_axis=has_axis)
        for bars in ([[(0, 1)]], [[], [(3, 7)]])
        for has_axis in (True, False)
    ]
    (ends,) = {re.findall(r'x="([\d.]+)"[^>]* height="0.0"', text)[-1] for text in texts}
    assert float(ends) > 0


def test_bars_that_cannot_be_told_apart_are_one() -> None:
    many = [(number / 1000, number / 1000 + 0.0005) for number in range(1000)]
    assert joined(many, 0.01) == [(0.0, pytest.approx(0.9995))]
    assert joined([(5, 5), (1, 2)], 0.01) == [(1, 2), (5, 5.01)], "none is too short to see"
    assert joined([(1, 9), (2, 2.01)], 0.01) == [(1, 9)]


def test_long_bars_that_touch_get_a_gap() -> None:
    assert joined([(0, 1), (1, 2), (2, 2.02), (2.5, 3)], 0.01) == [
        *((0, 0.99), (1, 2.02), (2.5, 3))
    ]


@pytest.mark.parametrize("end", [1e-6, 0.0004, 0.02, 1.3, 7, 59, 119, 500, 86400 * 3, 1e9])
@pytest.mark.parametrize("most", [4, 8])
def test_ticks_are_round_and_few(end: float, most: int) -> None:
    ticks = ticks_of(end, most)
    assert ticks[0] == 0
    assert 1 < len(ticks) <= most + 1
    assert ticks[-1] <= end * (1 + 1e-6)
    assert end - ticks[-1] < (ticks[1] - ticks[0]) * (1 + 1e-6)
