"""Sessions take turns, strictly, and go on when one of them has ended."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from benchmarks import plan, processes
from benchmarks.processes import ROOT
from benchmarks.runner import Runner, Session
from benchmarks.transports import FLOOR, MEM
from benchmarks.turns import Ring, Turns


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path, [2, 2, 2])
    yield ring
    ring.close()


def test_turns_go_round_and_pass_over_who_has_ended(ring: Ring) -> None:
    order: list[list[int]] = [[], []]
    ended = [threading.Event() for _ in range(3)]

    def party(number: int, rank: int, count: int) -> None:
        with Turns(*ring.arguments(number)[rank]) as turns:
            for _ in range(count - 1):
                order[rank].append(number)
                turns.next()
            order[rank].append(number)

    def session(number: int, count: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(party, [number] * 2, range(2), [count] * 2))
        ended[number].set()
        ring.pass_on(number, lambda: all(event.is_set() for event in ended))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(session, range(3), (4, 1, 3)))
    assert order == [[0, 1, 2, 0, 2, 0, 2, 0]] * 2


_TWO_SESSIONS: Final = """
import sys, threading
from benchmarks.turns import Turns

def take_turns(mine, following):
    with Turns(mine, following) as turns:
        print("started", flush=True)
        while True:
            turns.next()

one, other = sys.argv[1:]
threading.Thread(target=take_turns, args=(other, one)).start()
take_turns(one, other)
"""


def test_a_turn_is_not_lost_with_one_that_is_killed_while_it_gives_it_away(tmp_path: Path) -> None:
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        with contextlib.closing(Ring(directory, [1, 1])) as ring:
            (paths,) = ring.arguments(0)
            with subprocess.Popen(
                [sys.executable, "-c", _TWO_SESSIONS, *paths],
                env=processes.environment(),
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                assert [process.stdout.readline() for _ in paths] == [b"started\n"] * 2
                process.kill()
            with contextlib.ExitStack() as stack:
                pipes = [stack.enter_context(Path(path).open("r+b", buffering=0)) for path in paths]
                (held,) = select.select(pipes, [], [], 0)[0]
                assert held.read(2) == b"t"


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    good, bad = (plan.in_turns("round_trips", (64,), 2) for _ in range(2))
    good["seconds"], bad["kind"] = 0.01, "no such work"
    records = Runner(tmp_path, ROOT).run_in_turns(
        [
            Session("g", FLOOR, FLOOR, (good,), in_turns=True),
            Session("g", MEM, MEM, (bad,), timeout=20, in_turns=True),
        ]
    )
    assert [record["variant"] for record in records] == [FLOOR, MEM]
    assert [record["error"] is None for record in records] == [True, False]
    assert {record["attempts"] for record in records} == {2}
    assert records[0]["parties"][0]["round_trips"]["values"]["64"]["count"] >= 4
