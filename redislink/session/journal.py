"""`Journal`: what each step gave this party, on disk, and where a session goes on from there.

Rules:
- A step counts as done once its record is written, which survives the end of the process. It is on
  disk, and survives a power cut, before anybody is told so, and before this party sends anything in
  a later step: at once, or for runs of less than a second up to a second later.
- A program that runs again from its top gets the answers of the steps up to the resume point from
  the records; nothing is loaded, compiled or sent.
- All parties resume at one point (`redislink.session.agreement`). Each has written that it went
  back there before any of them goes on, so no two records of one step are ever mixed.
- No share is sent in a reveal before every party reaches the step before it. So no crash takes a
  session back behind a reveal, and a value is never revealed a second time with other shares.
- The shares of a handle that is gone may leave the disk once no party can go back to a step that
  used it.

The parties meet in the namespace ``session/journal`` (`redislink.session.meeting`). In that of each
chain they send messages with the tag ``on disk``: the number of a step up to which the sender's
records are on disk; or which party's disk failed, and how, after which nobody writes any more.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final, Self, TypeVar

from redislink.communicator import Communicator
from redislink.errors import (
    EndpointClosed,
    JournalError,
    PeerError,
)
from redislink.forking import dies_in_child
from redislink.identity import Identity
from redislink.journal import Binding, Entry, JournalStore
from redislink.logs import PartyLogger
from redislink.session.agreement import DIGEST_BYTES, MAIN, History, parent_of
from redislink.session.meeting import Journaled, meet
from redislink.session.records import (
    LAST_CALL,
    START_ANEW,
    BeganRecord,
    Buffer,
    EndedRecord,
    Gave,
    JoiningRecord,
    ResumedRecord,
    RevealRecord,
    StepRecord,
    decode_record,
)
from redislink.text import one_line
from redislink.transport.claim import Run
from redislink.values import encode_value

NAMESPACE: Final = "journal"
_ON_DISK_TAG: Final = "on disk"
_QUIET_STEPS: Final = 16
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_QUIET_SECONDS: Final = 1.0
"""After so many steps, or so long, steps that are quiet are put on disk and told to the peers."""
_Written = TypeVar("_Written")
NOTHING: Final = Gave(["nothing"])


class Recorded:
    """What the record of a step says that it gave, to answer the step with.

    Attributes:
        kind: the first element of `Gave.value`.
        value: the other elements.
    """

    def __init__(self, journal: Journal, record: StepRecord, blobs: tuple[int, ...]) -> None:
        """Not for users: `ChainJournal.begin` is."""
        self.record = record
        self.kind, *self.value = record.gave
        self._journal = journal
        self._blobs = blobs

    def read(self, place: int) -> bytes:
        """The bytes of a blob.

        Args:
            place: its place among the blobs of the step, from 0.

        Raises:
            JournalError: it cannot be read.
        """
        return self._journal.read(self._blobs[place])

    def belongs_to(self, owners: Sequence[Any]) -> None:
        """Say whose the blobs are, see `Gave.owners`."""
        self._journal.own(self._blobs, owners)


class Journal:
    """The journal of one party in one session. `open` makes it; `Session` uses and closes it.

    Attributes:
        party: the name of the party.
    """

    def __init__(
        self, store: JournalStore, session: str, party: str, *, required: bool = True
    ) -> None:
        """Not for users: call `open`, or pass a directory to `redislink.Session.join`.

        Args:
            store: where the records are; `close` closes it.
            session: the name of the session.
            party: the name of this party.
            required: whether a disk that fails ends the session. Otherwise all parties go on
                without journals.

        Raises:
            JournalError: the records make no sense, or say that a run went on without journals.
        """
        self.party = party
        self._store = store
        self._required = required
        self._log = PartyLogger(session, party, "redislink.progress")
        self._run = b""
        self._generation = self._made_in = 0
        self._joined: JoiningRecord | None = None
        self._ended: EndedRecord | None = None
        self._closed = False
        self._chains: dict[str, _Kept] = {}
        self._open: dict[str, ChainJournal] = {}
        self._lock = threading.Condition()
        self._owned: dict[int, weakref.ref[Any]] = {}
        self._gone: deque[int] = deque()
        self._leaving: deque[tuple[dict[str, int], list[int]]] = deque()
        self._load()
        dies_in_child(self)

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._store.path

    @staticmethod
    def path_of(directory: Path, session: str, party: str) -> Path:
        """The directory of the journal that `open` opens."""
        return directory.absolute() / Binding(session, party, b"", "", "").name

    @classmethod
    def open(
        cls,
        directory: Path,
        session: str,
        party: str,
        cluster_digest: bytes,
        identity: Identity,
        versions: str,
        *,
        fresh: bool = False,
        required: bool = True,
    ) -> Self:
        """Open the journal of a party in a session, or begin one.

        Args:
            directory: where journals are; this one is a directory ``SESSION.PARTY`` in it.
            session: the name of the session.
            party: the name of the party.
            cluster_digest: `ClusterSpec.digest`.
            identity: the party's key pair, from which the journal's keys are made.
            versions: the versions of what computes, in one line.
            fresh: whether to put an existing journal aside and begin another.
            required: whether a disk that fails ends the session.

        Raises:
            JournalError: another process has it open, or it is of another party, cluster, key or
                version, or cannot be read or written; the message says which, and what to do.
        """
        program = one_line(PurePath(sys.argv[0] if sys.argv else "").name, 80)
        binding = Binding(session, party, cluster_digest, versions, program)
        store = JournalStore.open(directory, binding, identity, fresh=fresh)
        try:
            return cls(store, session, party, required=required)
        except BaseException:
            store.close()
            raise

    def die_in_child(self) -> None:
        """In the child of a fork nothing is written."""
        self._lock = threading.Condition()
        self._ended = EndedRecord(self.party, "this process was forked")

    # -- joining -----------------------------------------------------------------------------

    def joins(self) -> Run:
        """Make a run that is about to claim the party's name on the broker, and note it.

        The run before has ended, because this process has locked its journal. But if it was on
        another machine, this may be a copy of the journal, so nothing is known of it.
        """
        last, boot = self._joined, _boot()
        run = Run(before=last.instance if last and last.boot == boot != "" else None)
        self._write_at_joining(["joining", run.instance, boot, time.time()], durable=False)
        return run

    def meet(self, communicator: Communicator) -> None:
        """Agree with all other parties where the session resumes. All call it at once.

        Args:
            communicator: in a namespace of this call only.

        Raises:
            JournalError: the journals cannot meet; the message says why and what to do.
            PeerError: a party does not say how far its journal goes.
        """
        mine = Journaled(
            {chain: kept.history for chain, kept in self._chains.items()},
            {chain: kept.reached for chain, kept in self._chains.items()},
            self._begin,
            self._go_back,
            self._generation,
            self._made_in,
        )
        points, on_disk = meet(communicator, self._run, self._ended, mine)
        for chain, point in points.items():
            kept = self._kept(chain)
            kept.resume, kept.on_disk = point, on_disk[chain]
        if self._answers_all(points.get(MAIN, 0)):
            self._log.warning(
                "%s: this run has ended before: the journal answers all its %d steps, and nothing "
                "is computed; for a new run, %s",
                self.party,
                points[MAIN],
                START_ANEW,
            )
        elif points.get(MAIN):
            self._log.info(
                "%s: resumes after step %d; the steps up to there are answered from the journal",
                self.party,
                points[MAIN],
            )

    def _answers_all(self, point: int) -> bool:
        """Whether the steps up to this one end with the session's last."""
        records = self._kept(MAIN).records
        return 0 < point <= len(records) and records[point - 1][1].text.startswith(LAST_CALL)

    def chain(self, name: str, communicator: Communicator, spawned_at: int = 0) -> ChainJournal:
        """The journal of one chain. Ask for it once, when the chain begins.

        Args:
            name: the name of the chain.
            communicator: in the namespace of the chain.
            spawned_at: the step of the parent's chain that spawned it.
        """
        with self._lock:
            self._open[name] = made = ChainJournal(
                self, name, communicator, self._kept(name), spawned_at
            )
        return made

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        self._closed = True
        self._store.close()

    # -- for steps ---------------------------------------------------------------------------

    def begins(self, chain: str, number: int) -> None:
        """A step begins. A `Simulator` may end the party here, or in the two that follow."""

    def writes(self, chain: str, number: int) -> None:
        """The record of a step is about to be written."""

    def written(self, chain: str, number: int) -> None:
        """The record of a step is on disk, and nobody has been told."""

    @property
    def ended(self) -> EndedRecord | None:
        """Why no steps are recorded any more; None while they are."""
        return self._ended

    def read(self, blob: int) -> bytes:
        """The bytes of a blob; JournalError if it cannot be read."""
        return self._store.read(blob)

    def own(self, blobs: Sequence[int], owners: Sequence[Any]) -> None:
        """Say whose the blobs are: each may go from the disk once its owner is gone."""
        gone = self._gone
        for blob, owner in zip(blobs, owners, strict=False):

            def leaves(_: object, blob: int = blob) -> None:
                gone.append(blob)  # in any thread, at any moment

            self._owned[blob] = weakref.ref(owner, leaves)

    def append(
        self, body: Sequence[Any], blobs: Sequence[Sequence[Buffer]] = (), *, durable: bool
    ) -> Entry | None:
        """Write an entry; None if the journal has ended, or ends now because the disk fails.

        Raises:
            JournalError: the disk fails, and the session needs the journal.
        """
        packed = encode_value(list(body))
        return self._write(lambda: self._store.append(packed, blobs, durable=durable))

    def put_on_disk(self) -> None:
        """Return once all entries are on disk; raises what `append` raises."""
        self._write(self._store.sync)

    def _write(self, write: Callable[[], _Written]) -> _Written | None:
        if self._ended is not None:
            return None
        if self._closed:  # by another thread, which has left the session
            raise EndpointClosed(f"{self.party}: the session is closed: join a new one")
        try:
            return write()
        except JournalError as error:
            if self._required:
                raise
            self._log.warning("%s: %s: all parties go on without journals", self.party, error)
            self._end(EndedRecord.of(self.party, error.reason))
            return None

    def end(self, record: EndedRecord) -> None:
        """A party, says another, has no journal any more, so this one keeps none either."""
        if self._ended is not None:
            return
        self._log.warning(
            "%s: %s goes on without a journal (%s), and so do all parties",
            self.party,
            record.party,
            record.why,
        )
        with contextlib.suppress(JournalError):
            self.append(["ended", record.party, record.why], durable=True)
        self._end(record)

    def _end(self, record: EndedRecord) -> None:
        with self._lock:
            self._ended = record
            chains = list(self._open.values())
            self._lock.notify_all()
        for chain in chains:
            chain.tell()

    def sweep(self) -> None:
        """Let blobs go from the disk whose owners are gone and that no resume can need."""
        gone = []
        with self._lock:
            while self._gone:
                gone.append(self._gone.popleft())
                self._owned.pop(gone[-1], None)
            for chain in list(self._open.values()):
                if chain.is_closed and chain.is_reached_by_all(chain.begun):
                    del self._open[chain.name]
            if gone:
                self._leaving.append(({c.name: c.begun for c in self._open.values()}, gone))
            ready: list[int] = []
            while self._leaving and self._no_way_back_behind(self._leaving[0][0]):
                ready += self._leaving.popleft()[1]
        if ready:
            self._store.free(ready)

    # -- private -----------------------------------------------------------------------------

    def _no_way_back_behind(self, numbers: Mapping[str, int]) -> bool:
        return all(
            name not in self._open or self._open[name].is_reached_by_all(number)
            for name, number in numbers.items()
        )

    def _kept(self, chain: str) -> _Kept:
        return self._chains.setdefault(chain, _Kept())

    def _load(self) -> None:
        for entry in self._store.entries():
            match decode_record(entry):
                case StepRecord() as record:
                    kept = self._kept(record.chain)
                    if record.number != kept.history.last + 1 or len(record.digest) != DIGEST_BYTES:
                        raise JournalError(
                            f"{self.party}: the journal lacks step {kept.history.last + 1}: "
                            f"{START_ANEW}"
                        )
                    kept.history.add(record.digest, record.touches, record.needs)
                    kept.records.append((entry, record))
                    self._made_in = self._generation
                case JoiningRecord() as joined:
                    self._joined = joined
                case BeganRecord(run):
                    self._run, self._chains = run, {}
                    self._generation = self._made_in = 0
                case ResumedRecord(points, generation, made_in):
                    self._cut(points)
                    self._generation, self._made_in = generation, made_in
                case RevealRecord(_, _, reached):
                    for chain, number in reached.items():
                        kept = self._kept(chain)
                        kept.reached = max(kept.reached, number)
                case EndedRecord() as ended:
                    self._ended = ended

    def _cut(self, points: Mapping[str, int]) -> list[int]:
        """Forget the steps after these, and return the numbers of their entries."""
        dropped = []
        for chain, point in points.items():
            kept = self._kept(chain)
            kept.history.cut(point)
            dropped += [entry.number for entry, _ in kept.records[point:]]
            del kept.records[point:]
        return dropped

    def _begin(self, run: bytes) -> None:
        self._run = run
        self._chains.clear()
        self._write_at_joining(["began", run])

    def _go_back(self, points: Mapping[str, int], generation: int) -> None:
        # Written even if nothing is dropped here: a step may be made anew now that had a record.
        dropped = self._cut(points)
        self._write_at_joining(["resumed", dict(points), generation, self._made_in])
        if dropped:
            self._store.drop(dropped)

    def _write_at_joining(self, body: list[Any], *, durable: bool = True) -> None:
        # Who cannot write even now ends in any case: nobody has computed anything yet.
        self._store.append(encode_value(body), durable=durable)


def _boot() -> str:
    """What tells this start of this machine from others; "" if that is not known."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


@dataclass
class _Kept:
    """What is known of one chain from the disk, and from joining."""

    history: History = field(default_factory=History)
    records: list[tuple[Entry, StepRecord]] = field(default_factory=list)
    reached: int = 0
    resume: int = 0
    on_disk: dict[str, int] = field(default_factory=dict)


class ChainJournal:
    """The journal of one chain of steps. `Journal.chain` makes it; `Steps` uses it.

    Attributes:
        name: the name of the chain.
        resume: the step up to which all parties have made the chain before; later ones are made
            for real.
        begun: the number of the last step begun.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        communicator: Communicator,
        kept: _Kept,
        spawned_at: int,
    ) -> None:
        """Not for users: `Journal.chain` is."""
        self.name = name
        self.resume = kept.resume
        self.begun = 0
        self.is_closed = False
        self._journal = journal
        self._communicator = communicator
        self._me = communicator.party
        self._peers = tuple(p for p in communicator.party_names if p != self._me)
        self._history = kept.history
        self._records = dict(enumerate(kept.records, 1))
        kept.records = []  # from here on a record goes when its step has been answered
        self._on_disk = {p: kept.on_disk.get(p, 0) for p in self._peers}
        self._needs = spawned_at
        self._receiving: set[str] = set()
        self._told = kept.history.last
        self._told_ended = False
        self._told_at = time.monotonic()

    def spawned(self, name: str, communicator: Communicator) -> ChainJournal:
        """The journal of the chain of a device that is spawned in the present step."""
        return self._journal.chain(name, communicator, self.begun)

    @property
    def keeps(self) -> bool:
        """Whether steps are still recorded."""
        return self._journal.ended is None

    def begin(self, number: int, needs: int, *, quiet: bool = False) -> Recorded | None:
        """A step begins: its record, if this party has made it before.

        Args:
            number: the number of the step.
            needs: the step of the parent's chain that it needs itself; 0 if none.
            quiet: see `write`.

        Raises:
            JournalError: see `write`.
        """
        self.begun = number
        self._journal.begins(self.name, number)
        self._needs = max(self._needs, needs)
        kept = self._records.pop(number, None)
        if kept is None:
            if not quiet:  # what it sends tells the peers that all steps before are on disk
                self._journal.put_on_disk()
            return None
        entry, record = kept
        return Recorded(self._journal, record, entry.blobs)

    def write(
        self,
        digest: bytes,
        described: tuple[str, str, bytes, tuple[str, ...]],
        touches: Collection[str],
        gave: Gave,
        *,
        quiet: bool,
    ) -> None:
        """Write the record of the step that this party has made: the last one begun.

        Args:
            digest: that of the chain after it.
            described: the step's text, place, parts and labels, see `StepRecord`.
            touches: the parties that it touches.
            gave: what it gave.
            quiet: whether the step sends nothing by itself, so that it need not be on disk, and
                the peers need not know, at once.

        Raises:
            JournalError: the disk fails, and the session needs the journal.
        """
        journal, number = self._journal, self.begun
        journal.writes(self.name, number)
        text, place, parts, labels = described
        body = [
            *("step", self.name, number, digest, text, place, parts, list(labels)),
            *(sorted(touches), self._needs, time.time(), list(gave.value)),
        ]
        at_once = self._me in touches and (
            not quiet
            or number - self._told >= _QUIET_STEPS
            or time.monotonic() - self._told_at >= _QUIET_SECONDS
        )
        entry = journal.append(body, gave.blobs, durable=at_once)
        if entry is None:
            return  # `Journal` has told the others
        journal.written(self.name, number)
        with journal._lock:
            self._history.add(digest, touches, self._needs)
        journal.own(entry.blobs, gave.owners)
        if at_once:
            self.tell()
            if quiet:  # in a loop of runs nothing else shows how far the others are
                self.look()
        journal.sweep()

    def before_reveal(self, *, sends: bool) -> None:
        """Wait until no party can go back behind the step that has begun, a reveal.

        Args:
            sends: whether this party is about to send its shares.

        Raises:
            PeerError: a party does not write its journal any more.
            JournalError: see `write`.
        """
        needed = self._all_before(self.begun)
        for chain, _ in needed:
            chain.tell()
        for chain, number in needed:
            chain._wait_for_all(number)
        if sends:
            reached = {chain.name: number for chain, number in needed}
            self._journal.append(["reveal", self.name, self.begun, reached], durable=True)

    def passes_reveal(self) -> None:
        """Tell the others what they wait for in the reveal that has begun, of others alone.

        Nothing else would tell them soon: this party may next wait for one of them.

        Raises:
            JournalError: see `write`.
        """
        for chain, number in self._all_before(self.begun):
            with self._journal._lock:
                is_known = chain._history.reach(self._me, chain._told) >= number
            if not is_known:
                chain.tell()

    def tell(self) -> None:
        """Tell all others how far this party's records are on disk, or that there are no more.

        Raises:
            JournalError: see `write`.
        """
        self._journal.put_on_disk()
        ended: EndedRecord | None = self._journal.ended
        body: int | list[str] | None = None
        if ended is None:
            with self._journal._lock:
                body = self._told = self._history.last
            self._told_at = time.monotonic()
        elif not self._told_ended:
            self._told_ended = True
            body = [ended.party, ended.why]
        for peer in self._peers if body is not None else ():
            with contextlib.suppress(PeerError):
                self._communicator.send(peer, _ON_DISK_TAG, body)

    def has_done(self, peer: str, number: int) -> None:
        """A peer said in another message that it has done a step."""
        with self._journal._lock:
            if number > self._on_disk[peer]:
                self._on_disk[peer] = number
                self._journal._lock.notify_all()

    def look(self) -> None:
        """Take what the others have told."""
        for peer in self._peers:
            with contextlib.suppress(PeerError), self._as_receiver(peer) as may:
                while may and self._communicator.has_message(peer, _ON_DISK_TAG):
                    self._take(peer, 0.0)

    def is_reached_by_all(self, number: int) -> bool:
        """Whether every party reaches a step. Needs the journal's lock."""
        return self._history.last >= number and all(
            self._history.reach(peer, on_disk) >= number for peer, on_disk in self._on_disk.items()
        )

    # -- private -----------------------------------------------------------------------------

    def _all_before(self, number: int) -> list[tuple[ChainJournal, int]]:
        """This chain up to the step before ``number``, and what that needs of the chains above."""
        found, chain, number = [(self, number - 1)], self, number - 1
        while chain.name != MAIN:
            with self._journal._lock:
                number = chain._needs
                chain = self._journal._open[parent_of(chain.name)]
            found.append((chain, number))
        return found

    def _wait_for_all(self, number: int) -> None:
        for peer in self._peers:
            while self.keeps and not self._is_reached(peer, number):
                with self._as_receiver(peer) as may:
                    if may:
                        self._take(peer, None)
                    else:
                        self._wait_for_change()

    def _is_reached(self, peer: str, number: int) -> bool:
        with self._journal._lock:
            return self._history.reach(peer, self._on_disk[peer]) >= number

    def _wait_for_change(self) -> None:
        with self._journal._lock:
            self._journal._lock.wait(0.1)

    @contextlib.contextmanager
    def _as_receiver(self, peer: str) -> Iterator[bool]:
        """One thread at a time receives from a peer: gives whether it is this one."""
        with self._journal._lock:
            may = peer not in self._receiving
            if may:
                self._receiving.add(peer)
        try:
            yield may
        finally:
            if may:
                with self._journal._lock:
                    self._receiving.discard(peer)
                    self._journal._lock.notify_all()

    def _take(self, peer: str, timeout: float | None) -> None:
        match self._communicator.recv(peer, _ON_DISK_TAG, timeout):
            case int(number):
                self.has_done(peer, number)
            case [str(party), str(why)]:
                self._journal.end(EndedRecord.of(party, why))
