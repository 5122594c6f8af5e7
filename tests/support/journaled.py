"""The parties of a session as threads, over and over again, with journals that stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from redislink import ClusterSpec, Session, ThreadCommunicator
from redislink.communicator import DEFAULT_NAMESPACE
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from redislink.journal.disk import Disk, OsDisk
from redislink.session import simulator
from redislink.session.journal import Journal
from redislink.session.session import NAMESPACE
from redislink.settings import RedisLinkSettings

NAMES: Final = ("alice", "bob", "carol")
CLUSTER: Final = ClusterSpec.parse(
    {
        "session": "s",
        "parties": list(NAMES),
        "devices": {
            "SP0": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
        },
    }
)
_IDENTITY: Final = Identity.generate()
_SETTINGS: Final = RedisLinkSettings.model_construct()
Program = Callable[[Session], Any]
Hook = Callable[[Any], Any]


class Killed(BaseException):
    """Ends a party's thread as a power cut ends a process."""


class JournaledParties:
    """The parties of a session, over and over again, with journals that stay."""

    def __init__(self, directory: Path, disks: Mapping[str, Disk] | None = None) -> None:
        """Args:
        directory: of the journals.
        disks: by party; None means this machine's.
        """
        self.directory = directory
        self._disks = disks or dict.fromkeys(NAMES, OsDisk())
        self.stats: dict[str, Any] = {}
        self.journals: dict[str, Journal] = {}

    def journal(self, party: str) -> Journal:
        binding = Binding("s", party, b"c" * 32, "versions", "program")
        store = JournalStore.open(self.directory, binding, _IDENTITY, disk=self._disks[party])
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
                    communicator, user, CLUSTER, _SETTINGS, journal
                ) as session:
                    found[party] = program(session)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                found[party] = error
                communicator.abort("its process has ended")  # if it had no session yet

        threads = [threading.Thread(target=play, args=(c,), daemon=True) for c in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"a party hangs; others: {found}"
        return found


def dies_at(number: int, *, after: bool = False) -> Hook:
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
