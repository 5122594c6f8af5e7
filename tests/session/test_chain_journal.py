"""One chain's journal: what is waited for, told, written and freed. No device, no session."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from redislink import ThreadCommunicator
from redislink.errors import EndpointClosed, JournalError, RecvTimeout
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from redislink.session import journal as journal_module
from redislink.session.journal import NOTHING, ChainJournal, Journal
from redislink.session.records import Gave, RevealRecord, decode_record
from tests.conftest import in_thread, run_parties
from tests.support.waiting import wait_until

NAMES = ("alice", "bob", "carol")
PAIR = ("alice", "bob")
IDENTITY = Identity.generate()
_opened: list[JournalStore] = []


class Owner:
    """Something whose blob may go when it goes."""


class Party:
    """A party's journal, with the main chain."""

    def __init__(
        self, directory: Path, communicator: ThreadCommunicator, *, required: bool = True
    ) -> None:
        self.communicator = communicator
        binding = Binding("s", communicator.party, b"c" * 32, "versions", "program")
        self.store = JournalStore.open(directory, binding, IDENTITY)
        _opened.append(self.store)
        self.journal = Journal(self.store, "s", communicator.party, required=required)
        self.freed: list[int] = []
        free = self.store.free

        def freeing(blobs: Any) -> None:
            self.freed += blobs
            free(self.freed[-len(blobs) :])

        self.store.free = freeing  # type: ignore[method-assign]
        self.number = 0
        self.chain: ChainJournal

    def join(self) -> None:
        self.journal.meet(self.communicator.sub("journal"))
        self.chain = self.journal.chain("", self.communicator.sub("main"))

    def make(
        self, touches: Sequence[str] = NAMES, gave: Gave = NOTHING, *, quiet: bool = False
    ) -> None:
        self.number = step(self.chain, self.number + 1, touches, gave, quiet=quiet)

    def fails(self, *_: Any, **__: Any) -> Any:
        raise JournalError("/var/journal: no space left")


def step(
    chain: ChainJournal,
    number: int,
    touches: Sequence[str] = NAMES,
    gave: Gave = NOTHING,
    *,
    needs: int = 0,
    quiet: bool = False,
) -> int:
    """Make a step for real."""
    assert chain.begin(number, needs, quiet=quiet) is None
    digest = f"{chain.name} {number}".encode().ljust(16)
    chain.write(digest, ("call", "p.py:1", b"", ()), touches, gave, quiet=quiet)
    return number


@pytest.fixture(autouse=True)
def _all_close() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


@pytest.fixture
def parties(tmp_path: Path) -> list[Party]:
    return _join(tmp_path)


def _join(directory: Path, **options: Any) -> list[Party]:
    made = [
        Party(directory, communicator, **options)
        for communicator in ThreadCommunicator.make(NAMES, recv_timeout=5)
    ]
    run_parties(*(party.join for party in made))
    return made


def _entries(party: Party) -> list[Any]:
    return [decode_record(entry) for entry in party.store.entries()]


def _waits(chain: ChainJournal) -> Callable[[], bool]:
    return lambda: bool(chain._receiving)


# -- before a reveal -------------------------------------------------------------------------


def test_a_reveal_waits_for_whom_the_steps_before_it_touch(parties: list[Party]) -> None:
    alice, bob, carol = parties
    for party in (alice, bob):
        party.make(NAMES)
        party.make(PAIR, quiet=True)
        party.chain.begin(3, 0)
    thread, outcome = in_thread(lambda: alice.chain.before_reveal(sends=True))
    wait_until(_waits(alice.chain))
    bob.chain.tell()  # as it does in the reveal
    wait_until(lambda: alice.chain._on_disk["bob"] == 2 and alice.chain._receiving == {"carol"})
    assert not outcome
    assert not any(isinstance(record, RevealRecord) for record in _entries(alice))
    carol.make(NAMES)  # step 2 does not touch it
    thread.join(5)
    assert outcome == [None]
    assert _entries(alice)[-1] == RevealRecord("", 3, {"": 2})


def test_a_reveal_to_oneself_writes_nothing_before_it(parties: list[Party]) -> None:
    alice, bob, _ = parties
    for party in parties:
        party.make(NAMES)
    alice.chain.begin(2, 0)
    bob.chain.begin(2, 0)
    alice.chain.before_reveal(sends=False)
    bob.chain.before_reveal(sends=True)
    assert not any(isinstance(record, RevealRecord) for record in _entries(alice))
    assert isinstance(_entries(bob)[-1], RevealRecord)


def test_what_a_peer_has_begun_tells_what_it_has_done(parties: list[Party]) -> None:
    alice, _, _ = parties
    alice.make(NAMES)
    for peer in ("bob", "carol"):
        alice.chain.has_done(peer, 1)
        alice.chain.has_done(peer, 0)
    alice.chain.begin(2, 0)
    alice.chain.before_reveal(sends=True)
    assert _entries(alice)[-1] == RevealRecord("", 2, {"": 1})


def test_a_reveal_on_a_spawned_device_waits_for_the_chain_that_it_needs(
    parties: list[Party],
) -> None:
    alice, bob, carol = parties
    for party in (alice, carol):
        party.make(NAMES)
        party.make(NAMES)
    bob.make(NAMES)
    alice.chain.begin(3, 0)
    child = alice.chain.spawned("SP~1", alice.communicator.sub("spawned"))
    alice.make(())
    child.begin(1, 2)  # its own first step, with a handle that step 2 made
    thread, outcome = in_thread(lambda: child.before_reveal(sends=True))
    wait_until(lambda: alice.chain._receiving == {"bob"} and alice.chain._on_disk["bob"] == 1)
    assert not outcome
    bob.make(NAMES)
    thread.join(5)
    assert outcome == [None]
    assert alice.chain._on_disk["bob"] == 2
    assert _entries(alice)[-1] == RevealRecord("SP~1", 1, {"SP~1": 0, "": 3})


def test_two_threads_that_wait_for_one_peer_both_hear_it(parties: list[Party]) -> None:
    alice, bob, carol = parties
    for party in parties:
        party.make(NAMES)
    for peer in ("bob", "carol"):
        wait_until(lambda peer=peer: alice.chain._on_disk[peer] == 1 or not alice.chain.look())
    alice.make(NAMES)
    alice.make(NAMES)
    waiting = [in_thread(lambda n=n: alice.chain._wait_for_all(n)) for n in (2, 3)]
    wait_until(_waits(alice.chain))
    for party in (bob, carol):
        party.make(NAMES)
    waiting[0][0].join(5)
    assert waiting[0][1] == [None]
    for party in (bob, carol):
        party.make(NAMES)
    waiting[1][0].join(5)
    assert waiting[1][1] == [None]


def test_whoever_does_not_write_any_more_ends_the_wait_with_an_error(tmp_path: Path) -> None:
    communicators = ThreadCommunicator.make(NAMES, recv_timeout=0.05)
    parties = [Party(tmp_path, communicator) for communicator in communicators]
    for party in parties:
        party.chain = party.journal.chain("", party.communicator.sub("main"))
    parties[0].make(NAMES)
    parties[0].chain.begin(2, 0)
    with pytest.raises(RecvTimeout):
        parties[0].chain.before_reveal(sends=True)


# -- what is told ----------------------------------------------------------------------------


def test_quiet_steps_are_told_now_and_then(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, _ = parties
    monkeypatch.setattr(journal_module, "_QUIET_SECONDS", 1000.0)
    for _ in range(15):
        alice.make(PAIR, quiet=True)
    alice.make(("bob", "carol"))  # touches others only
    bob.chain.look()
    assert bob.chain._on_disk["alice"] == 0
    alice.make(PAIR, quiet=True)
    bob.chain.look()
    assert bob.chain._on_disk["alice"] == 17
    monkeypatch.setattr(journal_module, "_QUIET_SECONDS", 0.0)
    alice.make(PAIR, quiet=True)
    bob.chain.look()
    assert bob.chain._on_disk["alice"] == 18


def test_nothing_is_told_or_sent_before_it_is_on_disk(parties: list[Party]) -> None:
    alice, bob, _ = parties
    done: list[str] = []
    append, sync = alice.store.append, alice.store.sync
    send = alice.chain._communicator.send

    def appends(*arguments: Any, durable: bool) -> Any:
        entry = append(*arguments, durable=durable)
        done.append("synced" if durable else "written")
        return entry

    alice.store.append = appends  # type: ignore[method-assign]

    def syncs() -> None:
        done.extend(["synced"] * (not alice.store._writer.is_on_disk))
        sync()

    alice.store.sync = syncs  # type: ignore[method-assign]
    alice.chain._communicator.send = lambda *message: (  # type: ignore[method-assign]
        done.append("told"),
        send(*message),
    )
    alice.make(PAIR, quiet=True)
    alice.chain.begin(2, 0, quiet=True)
    assert done == ["written"]
    alice.chain.begin(2, 0)  # a step that sends
    assert done == ["written", "synced"]
    alice.chain.begin(2, 0)
    assert done == ["written", "synced"]
    done.clear()
    alice.make(PAIR)
    assert done == ["synced", "told", "told"]
    alice.make(PAIR, quiet=True)
    done.clear()
    alice.chain.tell()
    assert done == ["synced", "told", "told"]
    bob.chain.look()
    assert bob.chain._on_disk["alice"] == 3


# -- what is freed ---------------------------------------------------------------------------


def test_what_another_thread_puts_on_disk_is_there_before_anything_is_sent(
    parties: list[Party],
) -> None:
    alice, _, _ = parties
    file = alice.store._writer.segment.file
    syncing, is_over, waiting = threading.Event(), threading.Event(), threading.Event()
    real = file.sync

    def sync() -> None:
        syncing.set()
        is_over.wait(5)
        real()

    class Lock:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            waiting.set()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    alice.journal.append(["began", b"one"], durable=False)
    file.sync = sync  # type: ignore[method-assign]
    other, _ = in_thread(lambda: alice.journal.append(["began", b"two"], durable=True))
    assert syncing.wait(5)
    alice.store._lock = Lock(alice.store._lock)  # type: ignore[assignment]

    def put_on_disk() -> bool:
        alice.journal.put_on_disk()
        waiting.set()
        return is_over.is_set()

    thread, was_over = in_thread(put_on_disk)
    assert waiting.wait(5)
    is_over.set()
    thread.join(5)
    other.join(5)
    assert was_over == [True]


def test_a_share_goes_once_nobody_can_go_back_to_a_step_that_used_it(
    parties: list[Party],
) -> None:
    alice, _, _ = parties
    handle = Owner()
    alice.make(NAMES, Gave(["x"], [[b"share", b" of x"], [b"kept"]], [handle, alice]))
    (first, second) = list(alice.store.entries())[-1].blobs
    assert alice.journal.read(first) == b"share of x"
    alice.make(PAIR)
    del handle
    gc.collect()
    alice.make(PAIR)
    assert alice.freed == []
    for peer, number in (("carol", 1), ("bob", 2), ("bob", 3)):
        assert alice.freed == []
        alice.chain.has_done(peer, number)
        alice.journal.sweep()
    assert alice.freed == [first]
    assert alice.journal.read(second) == b"kept"


def test_a_share_stays_while_a_spawned_device_may_go_back_to_its_use(
    parties: list[Party],
) -> None:
    alice, _, _ = parties
    handle = Owner()
    alice.make(NAMES, Gave(["x"], [[b"share"]], [handle]))
    alice.chain.begin(2, 0)
    child = alice.chain.spawned("SP~1", alice.communicator.sub("spawned"))
    alice.make(())
    step(child, 1, PAIR, needs=1)
    del handle
    gc.collect()
    alice.make(NAMES)
    for peer in ("bob", "carol"):
        alice.chain.has_done(peer, 3)
    alice.journal.sweep()
    assert alice.freed == []
    child.has_done("bob", 1)
    alice.journal.sweep()
    assert len(alice.freed) == 1


def test_a_chain_that_has_ended_holds_nothing_back_once_all_have_ended_it(
    parties: list[Party],
) -> None:
    alice, _, _ = parties
    alice.chain.begin(1, 0)
    child = alice.chain.spawned("SP~1", alice.communicator.sub("spawned"))
    alice.make(())
    step(child, 1, NAMES)
    child.is_closed = True
    alice.make(())
    assert set(alice.journal._open) == {"", "SP~1"}
    for peer in ("bob", "carol"):
        child.has_done(peer, 1)
    alice.make(())
    assert set(alice.journal._open) == {""}


def test_what_was_dropped_while_steps_are_answered_is_freed_after_them(tmp_path: Path) -> None:
    for party in _join(tmp_path):
        party.make(NAMES, Gave(["x"], [[b"share"]], [party]))
        party.journal.close()
    alice, bob, carol = _join(tmp_path)
    for party in (alice, bob, carol):
        party.chain.begin(1, 0).belongs_to([Owner()])  # type: ignore[union-attr]
        party.number = 1
    gc.collect()
    alice.make(NAMES)
    assert alice.freed == []
    for party in (bob, carol):
        party.make(NAMES)
    alice.chain.look()
    alice.journal.sweep()
    assert len(alice.freed) == 1


# -- a disk that fails -----------------------------------------------------------------------


def test_a_disk_that_fails_ends_the_run_unless_told_otherwise(parties: list[Party]) -> None:
    alice, _, _ = parties
    alice.make(NAMES)
    alice.store.append = alice.fails  # type: ignore[method-assign]
    with pytest.raises(JournalError, match="no space left"):
        alice.make(NAMES)


def test_or_all_go_on_without_journals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alice, bob, carol = parties = _join(tmp_path, required=False)
    for party in parties:
        party.make(NAMES)
    bob.store.append = bob.fails  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "redislink.progress"):
        for party in (bob, alice):
            party.make(NAMES)
    (own,) = [line for line in caplog.messages if "/var/journal" in line]
    assert own == "bob: /var/journal: no space left: all parties go on without journals"
    for party in (bob, alice, carol):  # carol has not made step 2, and nobody waits for it
        party.chain.begin(3, 0)
    run_parties(*(lambda p=p: p.chain.before_reveal(sends=True) for p in parties))
    assert not any(party.chain.keeps for party in parties)
    place = [party.communicator.sub("spawned") for party in parties]
    spawned = [p.chain.spawned("SP~1", c) for p, c in zip(parties, place, strict=True)]
    for chain in spawned:
        step(chain, 1)
        chain.begin(2, 0)
    run_parties(*(lambda c=c: c.before_reveal(sends=True) for c in spawned))
    for party in parties:
        party.journal.close()
    for error in _joining_errors(tmp_path):
        assert "the run went on without journals, because bob's failed (it cannot" in str(error)
        assert "/var/journal" not in str(error)  # bob's path
        assert "start all parties anew with --fresh" in str(error)


def _joining_errors(directory: Path) -> list[Exception]:
    def error_of(party: Party) -> Exception:
        with pytest.raises(JournalError) as caught:
            party.join()
        return caught.value

    made = [Party(directory, c) for c in ThreadCommunicator.make(NAMES, recv_timeout=5)]
    return run_parties(*(lambda p=p: error_of(p) for p in made))


def test_a_thread_in_a_step_while_another_leaves_hears_that_the_session_is_closed(
    parties: list[Party],
) -> None:
    alice, _, _ = parties
    alice.journal.close()
    with pytest.raises(EndpointClosed):
        alice.make(NAMES)


def test_what_is_in_no_journal_of_this_version_is_refused(tmp_path: Path) -> None:
    alice, _, _ = _join(tmp_path)
    alice.store.append(b"\x92\xa5other\x01")
    alice.journal.close()
    with pytest.raises(JournalError, match="none that this version of redislink writes"):
        Party(tmp_path, alice.communicator)


def test_a_journal_that_lacks_a_step_is_refused(tmp_path: Path) -> None:
    alice, _, _ = _join(tmp_path)
    step(alice.chain, 2)
    alice.journal.close()
    with pytest.raises(JournalError, match="lacks step 1"):
        Party(tmp_path, alice.communicator)
