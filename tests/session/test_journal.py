"""A session with a journal: what a run that starts again is answered, and what it makes anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import ClusterSpec, Session, ThreadCommunicator
from redislink.communicator import DEFAULT_NAMESPACE
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from redislink.session import simulator
from redislink.session.journal import Journal
from redislink.session.session import NAMESPACE
from redislink.settings import RedisLinkSettings

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
        kill: Mapping[str, int] | None = None,
        journals: Callable[[str], Journal | None] | None = None,
    ) -> dict[str, Any]:
        """What each party's program returned or raised.

        Args:
            program: the program.
            kill: for a party, the number of the entry of this run at whose writing it dies.
            journals: makes the parties' journals.
        """
        mine = ThreadCommunicator.make(NAMES, namespace=NAMESPACE, recv_timeout=20)
        found: dict[str, Any] = {}

        def play(communicator: ThreadCommunicator) -> None:
            party = communicator.party
            user = ThreadCommunicator(communicator._hub, communicator.rank, DEFAULT_NAMESPACE)
            try:
                journal = (journals or self.journal)(party)
                if journal is not None and kill and party in kill:
                    _die_at(journal._store, kill[party])
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


def _die_at(store: JournalStore, number: int) -> None:
    append, count = store.append, 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count >= number:
            raise Killed
        return append(*arguments, **named)

    store.append = dying  # type: ignore[method-assign]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def _add(x: Any, y: Any) -> Any:
    return x + y


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
