"""Whatever a program does and whenever its parties die, it gives what it would have given."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from redislink import Session, Simulator
from tests.session.random_programs import CLUSTER, SETTINGS, Call, Played, expected, play


def test_a_few_programs() -> None:
    assert sum(play(seed) for seed in range(5)) >= 5


@pytest.mark.parametrize("through", ["memory", "fakeredis"])
def test_sessions_that_failed_leave_no_shares_in_memory(
    through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that tries again and again must not grow."""
    made: list[weakref.ref[Session]] = []
    begin = Session.__init__

    def note(self: Session, *arguments: Any, **named: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *arguments, **named)

    monkeypatch.setattr(Session, "__init__", note)
    assert play(2000, through=through) > 0
    gc.collect()
    assert made
    assert not [session for session in made if session() is not None]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 112, 4))
def test_more_programs(first: int) -> None:
    assert sum(play(seed) for seed in range(first, first + 4)) >= 4


@pytest.mark.slow
def test_over_a_real_protocol() -> None:
    assert play(7, through="fakeredis") > 0


def test_those_who_take_no_part_in_a_reveal_hold_it_up_for_nobody() -> None:
    """Alice computes with bob and then waits for him, while he waits for what she has on disk."""
    calls = [
        Call("private", "SP0", "x", ("alice", [1, 2])),
        Call("private", "SP1", "y", ("bob", [3, 4])),
    ]
    for _ in range(3):
        calls += [
            Call("run", "SP0", "x", (abs, ["x"])),
            Call("reveal", "SP1", "", ("y", ("carol",))),
            Call("run", "SP0", "x", (abs, ["x"])),
        ]
    program = Played(calls)
    simulator = Simulator(CLUSTER, settings=SETTINGS, kill={"bob": [1]})
    assert simulator.run(program) == expected(calls)
    assert "Killed" in program.ends
