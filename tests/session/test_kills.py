"""A simulator that kills parties: what survives, what the others see, and what is made anew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import RedisLinkError, Session, Simulator, UsageError

WAYS = ["memory", "fakeredis", pytest.param("embedded", marks=pytest.mark.slow)]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _half(x: Any) -> Any:
    return x * 0.5


class Watched:
    """A program of nine steps that notes what happens to it."""

    def __init__(self) -> None:
        self.loads = 0
        self.needless = 0
        """Loads of what all parties had their shares of: their journals have them too."""
        self._have: set[str] = set()
        self.runs: list[str] = []
        self.seen: dict[str, list[str]] = {"alice": [], "bob": [], "carol": []}

    def __call__(self, session: Session) -> list[float]:
        self.runs.append(session.party)
        try:
            sp = session.spu("SP0")
            x = sp.private(self._load, owner="alice")
            self._have.add(session.party)
            found = []
            for _ in range(3):
                x = sp.run(_half)(x)
                found.append(float(sp.reveal(x, to=session.party_names)[0]))
            return found
        except BaseException as error:
            self.seen[session.party].append(type(error).__name__)
            raise

    def _load(self) -> Any:
        self.loads += 1
        self.needless += self._have == {*self.seen}
        self._have.clear()
        return np.array([8.0], np.float32)


@pytest.mark.parametrize("through", WAYS)
def test_all_go_on_from_where_they_were(simulator: Simulator, through: Any) -> None:
    program = Watched()
    found = simulator(through=through, kill={"bob": [4, 7]}).run(program)
    assert list(found) == ["alice", "bob", "carol"]
    for values in found.values():
        assert np.allclose(values, [4, 2, 1], atol=1e-3)
    assert program.loads == 1, "the journal has the shares"
    assert program.runs.count("bob") == 3
    assert program.seen["bob"] == ["Killed"] * 2
    for party in ("alice", "carol"):
        assert {*program.seen[party]} <= {"PeerRestarted", "PeerAborted"}


def test_two_at_once_and_one_after_the_other(simulator: Simulator) -> None:
    program = Watched()
    killed = simulator(kill={"alice": [3, 5], "bob": [3], "carol": [8]})
    for values in killed.run(program).values():
        assert np.allclose(values, [4, 2, 1], atol=1e-3)
    assert program.needless == 0, "only what was under way is repeated"


@pytest.mark.parametrize("step", [1, 2, 4, 9])
def test_at_any_step_even_the_last(simulator: Simulator, step: int) -> None:
    """Step 9 is close(): the others have all, and start again with who was killed."""
    program = Watched()
    for values in simulator(kill={"carol": [step]}).run(program).values():
        assert np.allclose(values, [4, 2, 1], atol=1e-3)
    assert program.needless == 0, "only what was under way is repeated"
    assert step <= 3 or program.loads == 1


def test_a_program_that_fails_by_itself_is_not_started_again(simulator: Simulator) -> None:
    starts: list[str] = []
    faults: list[int] = []

    def program(session: Session) -> None:
        starts.append(session.party)
        sp = session.spu("SP0")
        sp.reveal(sp.private(lambda: 1, owner="alice"), to=["carol"])
        if session.party == "carol":
            faults.append(starts.count("carol"))
            raise ZeroDivisionError("carol's own fault")

    with pytest.raises(ZeroDivisionError):
        simulator(kill={"bob": [2]}).run(program)
    assert faults == [starts.count("carol")]


def test_what_a_killed_party_still_does_has_no_effect(simulator: Simulator) -> None:
    told: list[Exception] = []

    def program(session: Session) -> int:
        sp = session.spu("SP0")
        try:
            x = sp.private(lambda: 1, owner="alice")
        except BaseException as killed:
            if session.party == "bob" and type(killed).__name__ == "Killed":
                for call in (
                    lambda: session.communicator.send("alice", "t", "from the grave"),
                    lambda: session.spu("SP0"),
                    lambda: session.abort("from the grave"),
                ):
                    try:
                        call()
                    except RedisLinkError as error:
                        told.append(error)
            raise
        shown = sp.reveal(x, to=["alice"])
        return int(shown) if session.party == "alice" else 0

    assert simulator(kill={"bob": [2]}).run(program)["alice"] == 1
    assert len(told) == 2


def test_nothing_is_left(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _open_files()
    simulator(kill={"bob": [3]}).run(Watched())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("redislink")]
    assert _open_files() <= before


def test_a_kill_that_cannot_be(simulator: Simulator) -> None:
    for kill, said in (
        ({"dave": [1]}, "'dave', which is not a party: use alice, bob, carol"),
        ({"bob": 3}, "is a list of numbers of steps, from 1, not 3"),
        ({"bob": [0]}, "is a list of numbers of steps"),
        ({"bob": "3"}, "is a list of numbers of steps"),
    ):
        with pytest.raises(UsageError, match=said):
            simulator(kill=kill)
    with pytest.raises(UsageError, match="bob was to be killed at step 99, but its program"):
        simulator(kill={"bob": [99]}).run(lambda session: session.spu("SP0") and None)


def test_a_call_keeps_what_it_is_not_given(simulator: Simulator) -> None:
    other = simulator(through="fakeredis", kill={"bob": [3]})
    assert other.cluster is simulator.cluster
    assert (other()._through, other()._kill) == ("fakeredis", {"bob": [3]})
    assert other(kill={})._kill == {}
    assert simulator._kill == {}
