"""When what has not been seen is said again."""

from __future__ import annotations

import itertools

from redislink.jobs.replication import LONGEST_PAUSE, Note, Repeats


def said(repeats: Repeats, until: float) -> list[float]:
    """When the one thing is said, if somebody looks whenever it is due."""
    times = []
    while (due := repeats.next_due()) is not None and due <= until:
        assert repeats.due(due) == ["it"]
        times.append(due)
    return times


def test_the_pauses_double_up_to_a_minute() -> None:
    repeats = Repeats()
    repeats.want("it", 100.0)
    times = said(repeats, 400.0)
    assert [b - a for a, b in itertools.pairwise(times)] == [
        1, 2, 4, 8, 16, 32, 60, 60, 60,
    ]  # fmt: skip
    repeats.want("it", 500.0)
    assert said(repeats, 502.0) == [500.0, 501.0]
    repeats.stop("it")
    assert repeats.next_due() is None
    assert repeats.due(1000.0) == []


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    repeats = Repeats()
    repeats.want("it", 1e9)
    assert repeats.due(1e9) == ["it"]
    assert repeats.due(5.0) == ["it"]
    assert repeats.due(5.5) == []
    assert repeats.due(5.0 + LONGEST_PAUSE) == ["it"]


def test_a_note_survives_the_way() -> None:
    for status in (None, {"any": "thing"}):
        note = Note("j0123456789ab", 3, status, 1, wants=True)
        assert Note.from_value_untrusted(note.to_value()) == note
