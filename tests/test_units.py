"""Durations and sizes as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.units import parse_duration, parse_size, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("1.5h", 5400), ("30 m", 1800), ("7d", 604800), ("2w", 1209600)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("2kB", 2000), ("500MB", 500_000_000), ("8GiB", 8 << 30), ("0.5TiB", 1 << 39)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2", 2, None, "2x", "-2h", "2H", "h", "", "2h2", "1e3s", "٢h"])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["8", 8, "8gib", "8Gb", "8 G", "0.0001GiB,", "GiB"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_size(text)


def test_they_have_bounds() -> None:
    for text in ("0s", "367d"):
        with pytest.raises(ValueError, match="from 1s to 366d"):
            parse_duration(text)
    with pytest.raises(ValueError, match="less than a byte"):
        parse_size("0GiB")


@given(st.integers(1, 366 * 86400), st.integers(1, 1 << 38))
def test_what_is_shown_is_read_again(seconds: int, size: int) -> None:
    assert parse_duration(show_duration(seconds)) == seconds
    assert parse_size(show_size(size)) == size


def test_the_largest_unit_is_shown() -> None:
    assert show_duration(7200) == "2h"
    assert show_duration(604800) == "7d"
    assert show_duration(90) == "90s"
    assert show_size(8 << 30) == "8GiB"
    assert show_size(1000) == "1000B"
