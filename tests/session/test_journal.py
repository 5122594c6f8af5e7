"""A session with a journal: what a run that starts again is answered, and what it makes anew."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import ClusterSpec, LoadFailed, Session, ThreadCommunicator
from redislink.communicator import DEFAULT_NAMESPACE
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from redislink.session import journal as journal_module
from redislink.session import simulator
from redislink.session.journal import Journal
from redislink.session.session import NAMESPACE
from redislink.settings import RedisLinkSettings
from redislink.spu.device import SpuDevice, Withheld
from tests.support.waiting import wait_until

NAMES = ("alice", "bob", "carol")
CLUSTER = ClusterSpec.parse(
    {
        "session": "s",
        "parties": list(NAMES),
        "devices": {
            "SP0": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
        },
    }
)
IDENTITY = Identity.generate()
Program = Callable[[Session], Any]
Hook = Callable[[Any], Any]


class Killed(BaseException):
    """Ends a party's thread as a power cut ends a process."""


class Stage:
    """The parties of a session, over and over again, with journals that stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stats: dict[str, Any] = {}
        self.journals: dict[str, Journal] = {}

    def journal(self, party: str) -> Journal:
        binding = Binding("s", party, b"c" * 32, "versions", "program")
        store = JournalStore.open(self.directory, binding, IDENTITY)
        return Journal(store, "s", party)

    def outcomes(
        self,
        program: Program,
        hooks: Mapping[str, Hook] | None = None,
        journals: Callable[[str], Journal | None] | None = None,
    ) -> dict[str, Any]:
        """What each party's program returned or raised.

        Args:
            program: the program.
            hooks: by party, what makes another function of its journal's `JournalStore.append`.
            journals: makes the parties' journals.
        """
        mine = ThreadCommunicator.make(NAMES, namespace=NAMESPACE, recv_timeout=20)
        found: dict[str, Any] = {}

        def play(communicator: ThreadCommunicator) -> None:
            party = communicator.party
            user = ThreadCommunicator(communicator._hub, communicator.rank, DEFAULT_NAMESPACE)
            try:
                journal = (journals or self.journal)(party)
                if journal is not None:
                    self.journals[party] = journal
                    if hooks and party in hooks:
                        store = journal._store
                        store.append = hooks[party](store.append)  # type: ignore[method-assign]
                self.stats[party] = communicator
                with simulator._in_memory(
                    communicator, user, CLUSTER, SETTINGS, journal
                ) as session:
                    found[party] = program(session)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                found[party] = error

        threads = [threading.Thread(target=play, args=(c,), daemon=True) for c in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"a party hangs; others: {found}"
        return found


SETTINGS = RedisLinkSettings.model_construct()


def _dies_at(number: int, *, after: bool = False) -> Hook:
    """A party dies at its entry with this number: before it is on disk, or just after."""

    def hook(append: Any) -> Any:
        count = 0

        def dying(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > number or (count == number and not after):
                raise Killed
            entry = append(*arguments, **named)
            if count == number:
                raise Killed
            return entry

        return dying

    return hook


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def _add(x: Any, y: Any) -> Any:
    return x + y


def _double(x: Any) -> Any:
    return x + x


def test_a_run_that_has_ended_is_answered_whole_from_the_journals(stage: Stage) -> None:
    loads: list[str] = []

    def program(session: Session) -> Any:
        def load() -> Any:
            loads.append(session.party)
            return np.arange(3)

        device = session.spu("SP0")
        x = device.private(load, owner="carol")
        y = device.private(lambda: np.ones(3, np.int32), owner="alice")
        return device.reveal(device.run(_add)(x, y), to=["carol"])

    first = stage.outcomes(program)
    assert first["carol"].tolist() == [1, 2, 3]
    second = stage.outcomes(program)
    assert second["carol"].tolist() == [1, 2, 3]
    assert second["carol"].flags.writeable
    assert loads == ["carol"]
    for party in NAMES:
        assert stage.stats[party].stats().messages_sent == len(NAMES) - 1  # where the journals end


def _long(session: Session) -> Any:
    """All calls, a value that is another one each time it is loaded, and a load that fails."""

    def refuse() -> Any:
        raise OSError(2, "no such file")

    device = session.spu("SP0")
    session.ensure_spu_env()
    x = device.private(lambda: np.asarray(np.random.default_rng().integers(1 << 30)), owner="carol")
    y = device.run(_double)(x)
    mine = device.reveal(y, to="alice")
    with contextlib.suppress(LoadFailed, OSError):
        device.private(refuse, owner="bob")
    del y
    with device.spawn() as other:
        z = other.run(_double)(x)
        theirs = other.reveal(z, to=["bob", "carol"])
    last = device.reveal(device.run(_double)(x), to=["alice", "bob", "carol"])
    for value in (mine, theirs):
        assert isinstance(value, Withheld) or value == last
    return int(last)


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
@pytest.mark.parametrize("number", range(2, 16))
def test_whoever_dies_the_run_goes_on_and_reveals_no_other_value(
    stage: Stage, shown: list[int], number: int
) -> None:
    party, after = NAMES[number % 3], number % 2 == 0
    killed = stage.outcomes(_long, {party: _dies_at(number, after=after)})
    assert isinstance(killed[party], Killed)
    results = stage.outcomes(_long)
    assert len(set(shown)) == 1
    assert set(results.values()) == set(shown)


def test_no_share_is_sent_in_a_reveal_while_a_party_may_go_back_behind_it(
    stage: Stage, shown: list[int]
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


def test_a_run_knows_the_one_before_it_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, before = Stage(tmp_path), None
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
