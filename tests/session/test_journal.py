"""A session with a journal: what a run that starts again is answered, and what it makes anew."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import (
    ConfigError,
    LoadFailed,
    RedisLinkError,
    Session,
    UsageError,
)
from redislink.broker import EmbeddedBroker
from redislink.errors import JournalError
from redislink.session import journal as journal_module
from redislink.session import session as session_module
from redislink.session import steps as steps_module
from redislink.session.records import START_ANEW
from redislink.session.session import open_journal
from redislink.spu import intersection
from redislink.spu.compiling import Compiled
from redislink.spu.device import SpuDevice, Withheld
from tests.conftest import IDENTITIES, connect_as, make_cluster, quick_settings, run_parties
from tests.support.journaled import CLUSTER, NAMES, JournaledParties, Killed, dies_at
from tests.support.waiting import wait_until


@pytest.fixture
def stage(tmp_path: Path) -> JournaledParties:
    return JournaledParties(tmp_path)


def _add(x: Any, y: Any) -> Any:
    return x + y


def _double(x: Any) -> Any:
    return x + x


def _long(session: Session) -> Any:
    """All calls, a value that is another one each time it is loaded, and a load that fails."""

    def refuse() -> Any:
        raise OSError(2, "no such file")

    device = session.spu("SP0")
    session.ensure_spu_env()
    x = device.private(lambda: np.asarray(np.random.default_rng().integers(1 << 30)), owner="carol")
    y = device.run(_double)(x)
    mine = device.reveal(y, to="alice")
    with pytest.raises((LoadFailed, OSError)) as caught:
        device.private(refuse, owner="bob")
    del y
    with device.spawn() as other:
        z = other.run(_double)(x)
        theirs = other.reveal(z, to=["bob", "carol"])
    last = device.reveal(device.run(_double)(x), to=["alice", "bob", "carol"])
    for value in (mine, theirs):
        assert isinstance(value, Withheld) or value == last
    return int(last), f"{caught.value!r}"


def test_a_run_that_has_ended_is_answered_whole_from_the_journals(
    stage: JournaledParties, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = "this run has ended before: the journal answers all its"
    first = stage.outcomes(_long)
    assert ended not in caplog.text
    assert len({value for value, _ in first.values()}) == 1
    assert first["bob"][1] == "FileNotFoundError(2, 'no such file')"
    assert first["alice"][1] == first["carol"][1]
    assert first["alice"][1].startswith("LoadFailed('bob could not load its data for SP0.private(")
    for cls, what in (
        (SpuDevice, "_load"),
        (SpuDevice, "_make_shares"),
        (SpuDevice, "_ensure"),
        (Compiled, "lower"),
    ):
        monkeypatch.setattr(cls, what, lambda *_, **__: pytest.fail("something was made anew"))
    assert stage.outcomes(_long) == first
    assert caplog.text.count(ended) == len(NAMES)
    for party in NAMES:
        assert stage.stats[party].stats().messages_sent == len(NAMES) - 1  # where the journals end


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every value that any party reconstructs, in any attempt."""
    found: list[int] = []
    real = SpuDevice._reconstruct

    def reconstruct(self: SpuDevice, *arguments: Any) -> Any:
        values = real(self, *arguments)
        found.extend(int(value) for value in values)
        return values

    monkeypatch.setattr(SpuDevice, "_reconstruct", reconstruct)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5, 8, 10, 13, 15])
def test_whoever_dies_the_run_goes_on_and_reveals_no_other_value(
    stage: JournaledParties, shown: list[int], number: int
) -> None:
    party, after = NAMES[number % 3], number % 2 == 0
    killed = stage.outcomes(_long, {party: dies_at(number, after=after)})
    assert isinstance(killed[party], Killed)
    results = stage.outcomes(_long)
    assert len(set(shown)) == 1
    assert {value for value, _ in results.values()} == set(shown)


def test_no_share_is_sent_in_a_reveal_while_a_party_may_go_back_behind_it(
    stage: JournaledParties, shown: list[int]
) -> None:
    def program(session: Session) -> Any:
        device = session.spu("SP0")
        x = device.private(lambda: np.asarray(np.random.default_rng().integers(1 << 30)), "alice")
        return device.reveal(x, to="bob")

    def dies_when_the_others_wait(append: Any) -> Any:
        def dying(*arguments: Any, **named: Any) -> Any:
            if b"private" in arguments[0]:
                others = [stage.journals[party] for party in ("alice", "bob")]
                wait_until(lambda: shown or all(j._open[""]._receiving for j in others))
                raise Killed
            return append(*arguments, **named)

        return dying

    stage.outcomes(program, {"carol": dies_when_the_others_wait})
    results = stage.outcomes(program)
    assert len(set(shown)) == 1
    assert results["bob"] == shown[0]


def test_no_journal_from_before_a_step_was_made_anew_gives_a_wrong_value(
    stage: JournaledParties, shown: list[int]
) -> None:
    def program(session: Session) -> Any:
        device = session.spu("SP0")
        x = device.private(lambda: np.asarray(np.random.default_rng().integers(1 << 30)), "alice")
        device.run(_double)(x)
        return device.reveal(x, to="bob")

    def dies_when_the_others_have_written(append: Any) -> Any:
        def dying(*arguments: Any, **named: Any) -> Any:
            if b"private" in arguments[0]:
                others = [stage.journals[party]._open[""] for party in ("alice", "bob")]
                wait_until(lambda: all(chain._history.last >= 2 for chain in others))
                raise Killed
            return append(*arguments, **named)

        return dying

    bobs, copy = stage.directory / "s.bob", stage.directory / "copy"
    stage.outcomes(program, {"carol": dies_when_the_others_have_written})
    shutil.copytree(bobs, copy)
    stage.outcomes(program, {"alice": dies_at(3)})  # after it has made step 2 anew
    shutil.rmtree(bobs)
    copy.rename(bobs)
    for error in stage.outcomes(program).values():
        assert "bob's journal does not know of steps that were made anew" in str(error)
    assert not shown


def test_a_run_knows_the_one_before_it_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, before = JournaledParties(tmp_path), None
    for _ in range(3):
        journal = stage.journal("alice")
        run = journal.joins()
        assert run.before == before
        before = run.instance
        journal.close()
    for boot in ("another", ""):
        monkeypatch.setattr(journal_module, "_boot", lambda boot=boot: boot)
        journal = stage.journal("alice")
        assert journal.joins().before is None
        journal.close()


def test_a_party_that_lags_where_it_takes_no_part_holds_nobody_back(
    stage: JournaledParties, shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    real = SpuDevice._run_as_member
    monkeypatch.setattr(
        SpuDevice,
        "_run_as_member",
        lambda self, *arguments: (runs.append(self._me), real(self, *arguments)),
    )

    def program(session: Session) -> Any:
        device = session.spu("SP0")
        x = device.private(lambda: np.int32(1), owner="carol")
        for _ in range(4):
            x = device.run(_double)(x)
        return device.reveal(x, to=["alice"])

    def dies_when_the_others_have_run(append: Any) -> Any:
        def dying(*arguments: Any, **named: Any) -> Any:
            if b"run(" in arguments[0]:
                wait_until(
                    lambda: all(stage.journals[p]._open[""]._history.last == 6 for p in NAMES[:2])
                )
                raise Killed
            return append(*arguments, **named)

        return dying

    stage.outcomes(program, {"carol": dies_when_the_others_have_run})
    assert sorted(runs) == ["alice"] * 4 + ["bob"] * 4
    results = stage.outcomes(program)
    assert len(runs) == 8
    assert results["alice"] == shown[0] == 16
    assert isinstance(results["carol"], Withheld)


@pytest.mark.slow
@pytest.mark.parametrize("number", [9, 12])
def test_devices_that_were_spawned_for_threads_go_on(
    stage: JournaledParties, shown: list[int], number: int
) -> None:
    def program(session: Session) -> Any:
        device = session.spu("SP0")
        x = device.private(lambda: np.asarray(np.random.default_rng().integers(1 << 30)), "carol")
        found: dict[int, int] = {}

        def compute(place: int, other: SpuDevice) -> None:
            with contextlib.suppress(RedisLinkError, Killed):
                y = other.run(_double)(x)
                found[place] = int(other.reveal(other.run(_double)(y), to=NAMES))

        others = [device.spawn(), device.spawn()]
        threads = [threading.Thread(target=compute, args=o) for o in enumerate(others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = device.reveal(device.run(_double)(device.run(_double)(x)), to=NAMES)
        return {*found.values(), int(last)}

    stage.outcomes(program, {NAMES[number % 2]: dies_at(number)})
    results = stage.outcomes(program)
    assert len(set(shown)) == 1
    assert all(result == set(shown) for result in results.values())


@pytest.mark.slow
def test_an_intersection_is_not_made_again(
    stage: JournaledParties, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = intersection.intersect
    monkeypatch.setattr(
        intersection,
        "intersect",
        lambda line, *arguments: (made.append(line.party), real(line, *arguments))[1],
    )

    def program(session: Session) -> Any:
        tables = {
            "alice": {"id": ["a", "b", "c"], "x": np.arange(3.0)},
            "bob": lambda: {"id": ["c", "a"], "y": [[1], None]},
        }
        found = session.psi(tables.get(session.party), "id", parties=["alice", "bob"])
        with contextlib.suppress(LoadFailed, ValueError):
            session.psi({"id": [object()]}, "id", parties=["alice", "bob"])
        device = session.spu("SP0")
        total = device.private(lambda: found["x"], owner="alice")
        return found, device.reveal(total, to=NAMES).tolist()

    first = stage.outcomes(program, {"bob": dies_at(7)})
    assert isinstance(first["bob"], Killed)
    assert sorted(made) == ["alice", "bob"]
    results = stage.outcomes(program)
    assert sorted(made) == ["alice", "bob"]
    assert results["alice"][0]["x"].tolist() == [0.0, 2.0]
    assert results["bob"][0] == {"id": ["a", "c"], "y": [None, [1]]}
    assert results["carol"] == (None, [0.0, 2.0])


@pytest.mark.slow
def test_the_disk_holds_the_shares_that_live(stage: JournaledParties) -> None:
    size, held = 200_000, dict[str, list[int]]()

    def program(session: Session) -> int:
        device = session.spu("SP0")
        x = device.private(lambda: np.zeros(size // 8, np.int64), owner="alice")
        for number in range(60):
            x = device.run(_double)(x)
            if number % 4 == 0:  # nobody is far ahead: what not all have yet stays
                small = device.private(lambda: np.zeros(1, np.int64), owner="carol")
                device.reveal(device.run(_double)(small), to=NAMES)
            store = stage.journals[session.party]._store
            held.setdefault(session.party, []).append(store.live_bytes)
        return int(device.reveal(x, to=NAMES).sum())

    assert stage.outcomes(program) == dict.fromkeys(NAMES, 0)
    for party in ("alice", "bob"):
        assert size < max(held[party]) < 8 * size
    assert max(held["carol"]) < size


# -- a program that is another one -----------------------------------------------------------


def _program(
    session: Session,
    *,
    number: int = 1,
    constant: int = 2,
    function: Any = None,
    swap: bool = False,
) -> Any:
    weights = np.full(3, constant)
    device = session.spu("SP0")
    x = device.private(lambda: np.arange(3), owner="alice")
    calls = [
        lambda: device.run(function or (lambda x, n: x * weights + n))(x, number),
        lambda: device.run(_double)(x),
    ]
    for call in reversed(calls) if swap else calls:
        call()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journals of `_program`."""
    directory = tmp_path_factory.mktemp("written")
    assert set(JournaledParties(directory).outcomes(_program).values()) == {None}
    return directory


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"number": 5}, "what differs: argument 2"),
        ({"constant": 3}, "what differs: what the function closes over"),
        ({"function": lambda x, n: x - n}, "what differs: the function"),
        ({"function": _add}, "called SP0.run(_add)(i64[3], i32[]) ("),
        ({"swap": True}, "called SP0.run(_double)(i64[3]) ("),
    ],
    ids=["argument", "constant", "function", "its name", "order"],
)
def test_what_the_program_does_otherwise_is_named_at_its_step(
    stage: JournaledParties, written: Path, changes: dict[str, Any], what: str
) -> None:
    shutil.copytree(written, stage.directory, dirs_exist_ok=True)
    results = stage.outcomes(lambda session: _program(session, **changes))
    errors = [error for error in results.values() if isinstance(error, JournalError)]
    assert errors
    for error in errors:
        assert "step 3 is not the one in the journal: the program" in str(error)
        assert what in str(error)
        assert "(test_journal.py:" in str(error)
        assert "when the journal was written" in str(error)
        assert str(error).endswith(START_ANEW)
    for error in results.values():
        assert "step 3 is not the one in the journal" in str(error)


def test_a_program_that_makes_fewer_calls_is_named_too(
    stage: JournaledParties, written: Path
) -> None:
    shutil.copytree(written, stage.directory, dirs_exist_ok=True)
    results = stage.outcomes(lambda session: session.spu("SP0"))
    assert all("step 2 is not the one" in str(error) for error in results.values())
    assert any("called close() (" in str(error) for error in results.values())


# -- journals at some parties only, disks that fail ------------------------------------------


def test_a_journal_at_some_parties_only_is_named_at_all(
    stage: JournaledParties, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("_TICK", "_PATIENCE", "_LOOK_INTERVAL"):
        monkeypatch.setattr(steps_module, what, 0.02)
    results = stage.outcomes(
        lambda session: session.spu("SP0").private(lambda: 1, "carol"),
        journals=lambda party: None if party == "bob" else stage.journal(party),
    )
    assert isinstance(results["bob"], ConfigError)
    for error in results.values():
        assert " keeps a journal and bob does not: start all parties with a journal, or none" in (
            str(error)
        )


def test_a_disk_that_fails_ends_the_run_and_what_was_written_stays_good(
    stage: JournaledParties,
) -> None:
    def full(append: Any) -> Any:
        def failing(*arguments: Any, **named: Any) -> Any:
            if b"reveal(" in arguments[0]:
                raise JournalError("/var/journal: no space left")
            return append(*arguments, **named)

        return failing

    results = stage.outcomes(_long, {"alice": full})
    assert isinstance(results["alice"], JournalError)
    for party in ("bob", "carol"):
        assert "alice aborted the session (its journal cannot be used)" in str(results[party])
    assert len({value for value, _ in stage.outcomes(_long).values()}) == 1


# -- over a broker, from the settings --------------------------------------------------------


@pytest.mark.slow
def test_a_session_over_a_broker_keeps_a_journal_and_resumes(
    valkey: EmbeddedBroker, tmp_path: Path
) -> None:
    cluster = make_cluster(valkey.url, size=2, devices={})
    settings = quick_settings(journal_dir=tmp_path)
    loads: list[str] = []
    resumed: list[int] = []

    def program(party: str) -> Any:
        endpoint = connect_as(cluster, party, settings)
        with Session.from_endpoint(endpoint, identity=IDENTITIES[party]) as joined:
            resumed.append(joined.resumed_steps)
            table = {"id": ["a", party]}
            return joined.psi(lambda: loads.append(party) or table, "id", parties=NAMES[:2])

    for _ in range(2):
        results = run_parties(*(lambda p=p: program(p) for p in NAMES[:2]))
        assert results == [{"id": ["a"]}] * 2
        with pytest.raises(UsageError, match=r"answer with the values of the first time: give"):
            open_journal(cluster, "alice", settings, identity=IDENTITIES["alice"])
        session_module._ended_well.clear()  # as in another process
    assert sorted(loads) == ["alice", "bob"]
    assert sorted(resumed) == [0, 0, 2, 2]  # psi() and close()


def test_a_journal_needs_the_partys_key(tmp_path: Path) -> None:
    settings = quick_settings(journal_dir=tmp_path)
    with pytest.raises(ConfigError, match="encrypted with this party's key: set REDISLINK_IDENTIT"):
        open_journal(CLUSTER, "alice", settings)
    assert open_journal(CLUSTER, "alice", quick_settings()) is None
    assert list(tmp_path.iterdir()) == []
