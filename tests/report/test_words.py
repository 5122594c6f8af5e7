"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from redislink.report import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (4e-7, "0 µs"), (0.00025, "250 µs"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"),
        (9.996, "10.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (125, "2 min 5 s"),
        (3725, "1 h 2 min"), (90_000, "1 d 1 h"), (1e300, "11,574,074 d 1 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize("seconds", [None, -1.0, math.nan, math.inf])
def test_durations_that_are_none(seconds: float | None) -> None:
    assert words.duration(seconds) == words.NONE


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_234_567, "1.23 MB"), (10**22, "10000 EB")],
)
def test_sizes(number: int, text: str) -> None:
    assert words.size(number) == text


def test_names_and_arrays() -> None:
    assert words.listed([]) == ""
    assert words.listed(["alice"]) == "alice"
    assert words.listed(["alice", "bob", "carol"]) == "alice, bob and carol"
    assert words.arrays([], []) == "nothing"
    assert words.arrays([[]] * 14, ["int32"] * 14).endswith("one int32 and 2 more")
    assert words.array([1000, 3], "float32") == "1,000 \N{MULTIPLICATION SIGN} 3 float32"
    assert words.moment(1e30) == words.moment(math.nan) == words.NONE
    assert words.moment(0) == "1970-01-01 00:00:00 UTC"
    assert words.counted(1, "message") == "1 message"
