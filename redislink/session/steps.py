"""`Steps`: the collective calls of a session in order, and the proof that all parties agree.

Rules:
- Every party makes the same calls in the same order, including those in which it takes no part.
  Each call is a numbered step and is folded into a chain of digests; values never are.
- The messages of steps go through one stream per pair of parties. Each message carries the steps
  since the last one to that peer, so the next message shows a divergence, at no extra cost.
- For each step, messages carry what an error needs: the call, where and when the program made it,
  and a short digest of each part that must be equal. The digests say what differs when two calls
  look alike.
- Where no message flows, a divergence would hang. So a thread watches long steps: it tells the
  peers how far this party is, and compares that with what they tell.
- The first party that sees a divergence aborts the session, with a reason that tells all parties.
- With a journal, a step that all parties have made before is answered from the record: its call
  sends and receives nothing. A step that is made for real counts once its record is written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from redislink.communicator import Communicator, Request
from redislink.errors import (
    ConfigError,
    EndpointClosed,
    JournalError,
    LoadFailed,
    PeerAborted,
    PeerClosed,
    PeerError,
    ProgramDiverged,
    RecvTimeout,
    RedisLinkError,
    UsageError,
    may_pass,
    reason_for_peers,
)
from redislink.forking import dies_in_child, used_after_fork
from redislink.logs import PartyLogger
from redislink.session import supervisor
from redislink.session.journal import NOTHING, ChainJournal, Recorded
from redislink.session.meeting import WHERE_TAG
from redislink.session.records import LAST_CALL, START_ANEW, Gave, StepRecord
from redislink.text import one_line

if TYPE_CHECKING:
    from redislink.session.recording import SessionAudit
    from redislink.transport.observer import NoteStep

_STEP_TAG: Final = "step"
_STATUS_TAG: Final = "status"
_DIGEST_BYTES: Final = 16
_PART_BYTES: Final = 4
_MOST_PARTS: Final = 32
_MOST_TEXT: Final = 120
_MOST_PLACE: Final = 60
_REMEMBERED: Final = 64
"""Most steps that a message carries, and that are kept to compare."""
_TICK: Final = 0.25
_PATIENCE: Final = 1.0
"""Seconds after which a step is long: peers are then told, and their steps compared."""
_LOOK_INTERVAL: Final = 5.0
"""Seconds between looks while all steps are short."""
_FIRST_REPORT: Final = 3.0
_REPORT_INTERVAL: Final = 10.0
_TELL_INTERVAL: Final = 2.0
"""Seconds after which a supervisor is told once more of the same step."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step that takes long.

    Attributes:
        number: the number of the step, from 1.
        text: the call.
        seconds: how long it has lasted so far.
        waiting_for: the parties that may not have reached this step, and what is known of each,
            such as ``bob (at step 3)``.
    """

    number: int
    text: str
    seconds: float
    waiting_for: tuple[str, ...]

    def __str__(self) -> str:
        rest = f", waiting for {', '.join(self.waiting_for)}" if self.waiting_for else ""
        return f"step {self.number}, {self.text}: {self.seconds:.0f} s so far{rest}"


Part = tuple[str, bytes]
"""Part of a call: its name, such as ``argument 1``, and bytes that must be equal everywhere."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A step in a message: digest of the chain, call, place in the program, digests of parts."""

    digest: bytes
    text: str
    place: str
    parts: bytes

    @classmethod
    def parse_untrusted(cls, told: Any) -> _Entry | None:
        match told:
            case [bytes(digest), str(text), str(place), bytes(parts)]:
                if len(parts) <= _PART_BYTES * _MOST_PARTS:
                    return cls(
                        digest, one_line(text, _MOST_TEXT), one_line(place, _MOST_PLACE), parts
                    )
        return None

    def part_digest(self, number: int) -> bytes:
        return self.parts[number * _PART_BYTES : (number + 1) * _PART_BYTES]


@dataclass(slots=True)
class _Current:
    number: int
    text: str
    parties: tuple[str, ...]
    started: float
    awaited: str | None = None


class Step:
    """One step, as its call sees it.

    Attributes:
        recorded: what it gave when it was made before; then the call answers with that, and sends
            and receives nothing. None if it is made for real.
        is_kept: whether what it gives is written to a journal.
        is_past: whether all parties have made it before, or need nothing for it. Then the call
            makes no link, even if this party makes the step for real.
    """

    recorded: Recorded | None = None
    is_kept = False
    is_past = False

    def gives(self, gave: Callable[[], Gave]) -> None:
        """Say what the step gives this party; without this call, nothing.

        Args:
            gave: makes what is written to the journal; only called if there is one.
        """

    def before_reveal(self, *, sends: bool) -> None:
        """Wait until no party can go back behind this step; see `ChainJournal.before_reveal`."""

    def passes_reveal(self) -> None:
        """This step is a reveal in which this party takes no part."""


_UNKEPT: Final = Step()


class _KeptStep(Step):
    """A step of a session with a journal."""

    def __init__(self, journal: ChainJournal, recorded: Recorded | None, *, is_past: bool) -> None:
        self.recorded = recorded
        self.is_kept = journal.keeps
        self.is_past = is_past
        self.gave: Callable[[], Gave] = lambda: NOTHING
        self._journal = journal

    def gives(self, gave: Callable[[], Gave]) -> None:
        self.gave = gave

    def before_reveal(self, *, sends: bool) -> None:
        self._journal.before_reveal(sends=sends)

    def passes_reveal(self) -> None:
        self._journal.passes_reveal()


class Failure:
    """The first error that ended a session; all its chains of steps share it."""

    def __init__(self, abort: Callable[..., None]) -> None:
        """Args:
        abort: ends the session and tells the peers the reason; see `Communicator.abort`.
        """
        self.error: RedisLinkError | None = None
        self._abort = abort
        self._lock = threading.Lock()
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: every call of the session raises `UsedAfterFork`."""
        self._lock = threading.Lock()
        self.error = used_after_fork("the session")

    def set(self, error: RedisLinkError, reason: str | None = None) -> None:
        """End the session for all, unless it has ended already.

        Args:
            error: the error that every call of this party raises from now on.
            reason: what to tell the peers; None tells them what they may know of the error.
        """
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        told = reason_for_peers(error) if reason is None else reason
        self._abort(told, retryable=may_pass(error))

    def of(self, error: BaseException) -> BaseException:
        """What to raise instead of an error that only is a consequence."""
        if isinstance(error, EndpointClosed) and self.error is not None:
            return self.error.with_traceback(None)
        if isinstance(error, PeerAborted) and error.reason.startswith(ProgramDiverged.OPENING):
            return ProgramDiverged(error.reason)
        return error


class Silence:
    """``with silence():`` for one session, in several threads at once.

    A communicator takes the end of any announced silence for the end of all of them.
    """

    def __init__(self, communicator: Communicator) -> None:
        """Args:
        communicator: any communicator of the session.
        """
        self._communicator = communicator
        self._lock = threading.Lock()
        self._inside = 0
        self._announced = contextlib.ExitStack()
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork, no peer is told of the end of a silence."""
        self._lock = threading.Lock()
        self._announced = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block peers do not take this party's silence for death."""
        with self._lock:
            if self._inside == 0:
                self._announced.enter_context(self._communicator.announce_silence())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._announced.close()


class Steps:
    """One chain of collective calls. A session has one, and so does each spawned device."""

    def __init__(
        self,
        communicator: Communicator,
        failure: Failure,
        chain: str = "",
        *,
        journal: ChainJournal | None = None,
        journals: Communicator | None = None,
        audit: SessionAudit | None = None,
        note_step: NoteStep | None = None,
    ) -> None:
        """Args:
        communicator: a communicator in a namespace of this chain only.
        failure: the session's failure.
        chain: its name in errors; "" for the session's own chain.
        journal: this chain's; None if this party keeps none.
        journals: in the namespace in which parties with journals meet. Without a journal, this
            party looks there for one that waits for it in vain.
        audit: this party's audit record; None if it keeps none.
        note_step: is told of each step; None if nobody wants to know.
        """
        self.journal = journal
        self.audit = audit
        self.note_step = note_step
        self._journals = journals
        self._communicator = communicator
        self._failure = failure
        self._chain = chain
        self._me = communicator.party
        self._log = PartyLogger(communicator.session, self._me, "redislink.progress")
        self._peers = tuple(name for name in communicator.party_names if name != self._me)
        self._lock = threading.Lock()
        self._in_step = threading.Lock()
        self._entries: deque[_Entry] = deque(maxlen=_REMEMBERED)
        self._labels: deque[tuple[str, ...]] = deque(maxlen=_REMEMBERED)
        self._number = 0
        self._digest = b""
        self._told = dict.fromkeys(self._peers, 0)
        self._heard = dict.fromkeys(self._peers, 0 if journal is None else journal.resume)
        self._agreed = dict.fromkeys(self._peers, 0)
        self._status_told = 0
        self._broken: BaseException | None = None
        self._current: _Current | None = None
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: see `Failure.die_in_child`."""
        self._lock, self._in_step = threading.Lock(), threading.Lock()
        self._stopped, self._watcher = threading.Event(), None

    @property
    def usable(self) -> bool:
        """Whether calls are possible: none has failed, and the chain has not ended."""
        return self._broken is None and self._failure.error is None

    @property
    def broken(self) -> BaseException | None:
        """The error that ended a call; None if none did."""
        return self._broken

    @property
    def is_next_answered(self) -> bool:
        """Whether the next step is one that all parties have made before."""
        return self.journal is not None and self._number < self.journal.resume

    @property
    def digest(self) -> bytes:
        """The digest of all calls so far."""
        return self._digest

    @property
    def number(self) -> int:
        """The number of the last step begun; 0 before the first."""
        return self._number

    @contextlib.contextmanager
    def step(
        self,
        text: str,
        parties: Collection[str],
        parts: Sequence[Part] = (),
        *,
        touches: Collection[str] = (),
        needs: int = 0,
        quiet: bool = False,
    ) -> Iterator[Step]:
        """Make one collective call; it sends and receives inside this block.

        Args:
            text: the call: names and shapes, never a value. It is the same at all parties.
            parties: the names of those that take part, with or without this party.
            parts: what else must be the same everywhere; only digests are sent.
            touches: the names of those that send or receive in it, if they have not made it before.
            needs: the number of the step of the parent's chain that it uses; 0 if none.
            quiet: whether the session sends nothing in it, so that its record need not be on disk,
                and the peers need not know of that, at once.

        Raises:
            ProgramDiverged: another party made a different call.
            JournalError: the program that wrote the journal made a different call here; or the
                record cannot be written.
            AuditError: the audit record cannot be written.
            UsageError: another thread is in a step of this chain.
            EndpointClosed: the session is closed.
        """
        if not self._in_step.acquire(blocking=False):
            running = self._current
            raise UsageError(
                f"{self._me}: {text} was called while another thread is in "
                f"{running.text if running else 'another call'}: calls of one session come in one "
                "order; give each thread a device of its own with spawn()"
            )
        try:
            self._check_usable(text)
            self._advance(text, parts)
            self._current = _Current(self._number, text, tuple(parties), time.monotonic())
            if supervisor.here is not None:
                supervisor.here.tell_step(self._chain, self._number, self._entries[-1].text)
            if self.journal is None:
                if self.audit is not None:
                    self._record(self.audit, from_journal=False)
                self._watch_from_now()
                yield _UNKEPT
            else:
                yield from self._kept(self.journal, touches, needs, quiet=quiet)
        except LoadFailed:
            raise  # all parties raise it in this step, so they still agree
        except Exception as error:
            told = self._failure.of(error)
            self._broken = told
            if told is error:
                raise
            raise told from error
        except BaseException as error:
            self._broken = error
            raise
        finally:
            if self._current is not None:
                self._ended(self._current)
            self._current = None
            with contextlib.suppress(RuntimeError):  # a child that was forked in a step has another
                self._in_step.release()

    def _kept(
        self, journal: ChainJournal, touches: Collection[str], needs: int, *, quiet: bool
    ) -> Iterator[Step]:
        """The inside of a step of a session with a journal."""
        recorded = journal.begin(self._number, needs, quiet=quiet)
        step = _KeptStep(journal, recorded, is_past=self._number <= journal.resume)
        if recorded is not None:
            self._check_recorded(recorded.record)
        if self.audit is not None:
            self._record(self.audit, from_journal=recorded is not None)
        if recorded is not None:
            yield step
            return
        if not step.is_past:
            self._watch_from_now()
        try:
            yield step
        except LoadFailed as error:
            failed = ["failed", error.peer, error.call, error.kind]
            self._write(journal, touches, Gave(failed), quiet=quiet)
            raise
        if step.is_kept:
            self._write(journal, touches, step.gave(), quiet=quiet)

    def _ended(self, current: _Current) -> None:
        """Tell those who want to know that a step has ended, in good order or not."""
        now = time.monotonic()
        if self.audit is not None:
            self.audit.stepped(self._chain, now - current.started)
        if self.note_step is not None:
            what = f"{self._chain}: {current.text}" if self._chain else current.text
            self.note_step(what, int(current.started * 1e9), int(now * 1e9))

    def _record(self, audit: SessionAudit, *, from_journal: bool) -> None:
        """Write into the audit record that a step begins."""
        made, labels = self._entries[-1], self._labels[-1]
        parts = [(label, made.part_digest(n)) for n, label in enumerate(labels[:_MOST_PARTS])]
        audit.step(
            self._chain, self._number, made.text, made.digest, parts, from_journal=from_journal
        )

    def reveals(
        self, step: Step, device: str, receivers: Sequence[str], shapes: Sequence[Any]
    ) -> None:
        """Say in the audit record that this step is a reveal, before any share is sent.

        Args:
            step: this step.
            device: the name of the device.
            receivers: the names of those that learn the values.
            shapes: shape and dtype of each value.

        Raises:
            AuditError: it cannot be written.
        """
        if self.audit is not None:
            again = step.recorded is not None
            self.audit.reveal(
                self._chain, self._number, device, receivers, shapes, from_journal=again
            )

    def intersects(self, step: Step, protocol: str, parties: Sequence[str]) -> None:
        """Say in the audit record that this step is an intersection; as `reveals`.

        Args:
            step: this step.
            protocol: that of libpsi.
            parties: the names of the two.
        """
        if self.audit is not None:
            again = step.recorded is not None
            self.audit.psi(self._chain, self._number, protocol, parties, from_journal=again)

    def _write(
        self, journal: ChainJournal, touches: Collection[str], gave: Gave, *, quiet: bool
    ) -> None:
        made, labels = self._entries[-1], self._labels[-1]
        described = (made.text, made.place, made.parts, labels)
        journal.write(made.digest, described, touches, gave, quiet=quiet)

    def _check_recorded(self, record: StepRecord) -> None:
        """Raise JournalError if the program makes another call than the one that was recorded."""
        now, labels = self._entries[-1], self._labels[-1]
        if now.digest == record.digest:
            return
        then = _Entry(record.digest, record.text, record.place, record.parts)
        chain = f" of {self._chain}" if self._chain else ""
        if now.text != then.text:
            what = f"called {now.text} ({now.place}), and {then.text}"
        else:
            hint = _what_differs(now, then, labels, known=True)
            what = f"({now.place}) called {now.text} ({hint}), not as"
        text = (
            f"{self._me}: step {self._number}{chain} is not the one in the journal: the program "
            f"{what} when the journal was written ({then.place}): run the program with the "
            f"arguments that wrote it, or {START_ANEW}"
        )
        error = JournalError(text)
        error.told_to_peers = text
        raise error

    def send(self, peer: str, body: Any) -> Request:
        """Send a value to a party that takes part in this step. Never waits.

        Args:
            peer: the name of the party.
            body: the value.
        """
        with self._lock:
            message = [*self._history(self._told[peer] + 1), body]
            self._told[peer] = self._number
        return self._communicator.send(peer, _STEP_TAG, message)

    def tell_failure(self, peers: Collection[str], body: Any, error: Exception) -> None:
        """Send a failure to some parties, and wait a moment until they have it.

        The session may end next, and the end overtakes the message if the wait was too short.
        Should this error end the session, the reason told to all parties therefore says the same.

        Args:
            peers: the parties that wait for this party in this step.
            body: the message to them.
            error: the error that this party's load raised.
        """
        call = self._current.text if self._current else "a step"
        with contextlib.suppress(AttributeError):  # a class of its own, with __slots__
            error.told_to_peers = LoadFailed.what(call, type(error).__name__)  # type: ignore[attr-defined]
        requests = [self.send(peer, body) for peer in peers]
        deadline = time.monotonic() + _PATIENCE
        for request in requests:
            with contextlib.suppress(RedisLinkError):
                request.wait(max(0.0, deadline - time.monotonic()))

    def recv(self, peer: str, timeout: float | None = None) -> Any:
        """Wait for the value that ``peer`` sends in this step, and return it.

        Args:
            peer: the name of the party.
            timeout: seconds; None means the receive timeout.

        Raises:
            ProgramDiverged: the peer sent it in another step, or after other calls.
            PeerError: the value will not come.
        """
        current = self._current
        if current is not None:
            current.awaited = peer
        message = self._communicator.recv(peer, _STEP_TAG, timeout)
        if current is not None:
            current.awaited = None
        if not isinstance(message, list) or len(message) != 4:
            raise self.not_understood(peer)
        first, entries, versions = self._parse_untrusted(peer, message[:3])
        self._compare(peer, first, entries, versions)
        last = first + len(entries) - 1
        if self.journal is not None:
            self.journal.has_done(peer, last - 1)
        if last != self._number:
            own, other = self._entries[-1], entries[-1]
            raise self._diverged(
                self._number,
                "skipped or repeated",
                f"{self._me} called {own.text} ({own.place}), {peer} is at step {last}, "
                f"{other.text} ({other.place})",
            )
        return message[3]

    def not_understood(self, peer: str) -> PeerError:
        """The error for a message from a peer that does not belong in this step."""
        text = self._current.text if self._current else "a step"
        return PeerError(
            f"{self._me}: {peer} sent a message in {text} that makes no sense: check that all "
            "parties run the same version of redislink and spu"
        )

    def finish(self, timeout: float, parts: Sequence[Part] = ()) -> None:
        """Make the last step, in which all parties say that they have come to the end.

        If a party ends while others go on, that is a divergence like any other. The step does not
        wait longer than ``timeout`` for a party that does not come.

        Args:
            timeout: seconds.
            parts: as for `step`.

        Raises:
            ProgramDiverged: another party made a different call.
            PeerAborted: another party's run failed.
        """
        deadline = time.monotonic() + timeout
        parties = self._communicator.party_names
        with self.step(f"{LAST_CALL})", self._peers, parts, touches=parties) as step:
            if step.recorded is None:
                self._greet(deadline)
        if self.journal is not None:
            self.journal.is_closed = True

    def _greet(self, deadline: float) -> None:
        """Send a message to every peer, and wait for one from each that still comes."""
        for peer in self._peers:
            with contextlib.suppress(PeerClosed):
                self.send(peer, None)
        for peer in self._peers:
            with contextlib.suppress(PeerClosed, RecvTimeout):
                self.recv(peer, max(0.0, deadline - time.monotonic()))

    def conclude(self, timeout: float, parts: Sequence[Part] = ()) -> None:
        """`finish` and `leave` a chain whose session goes on; none of its messages stays behind.

        A peer's farewell arrives after everything that the peer told before.

        Args:
            timeout: seconds.
            parts: as for `step`.

        Raises:
            ProgramDiverged, PeerAborted: see `finish`.
        """
        deadline = time.monotonic() + timeout
        answered = self.is_next_answered
        self.finish(timeout, parts)
        self._stop_watching()
        if not answered:
            self._greet(deadline)
        self.leave()

    def _stop_watching(self) -> None:
        self._stopped.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()

    def leave(self) -> None:
        """Stop watching, and take the peers' messages, so that they need not wait to leave."""
        self._stop_watching()
        if self._failure.error is None:
            with contextlib.suppress(RedisLinkError):
                self._look()

    # -- the chain ---------------------------------------------------------------------------

    def _check_usable(self, text: str) -> None:
        if self._failure.error is not None:
            raise self._failure.error.with_traceback(None)
        if self._stopped.is_set():
            what, advice = (
                (self._chain, "spawn another") if self._chain else ("the session", "join a new one")
            )
            raise EndpointClosed(f"{self._me}: {text} was called after {what} was closed: {advice}")
        if self._broken is not None:
            raise UsageError(
                f"{self._me}: {text} was called after an earlier call failed "
                f"({type(self._broken).__name__}): leave the session, then start all again"
            )

    def _advance(self, text: str, parts: Sequence[Part]) -> None:
        whole = one_line(text, max(len(text), 1))
        text = one_line(text, _MOST_TEXT)
        if whole != text:
            parts = [("shapes that this text leaves out", whole.encode()), *parts]
        digests = [hashlib.sha256(content).digest() for _, content in parts]
        place = f"{_place_in_program()}, {time.strftime('%H:%M:%S', time.gmtime())} UTC"
        place = one_line(place, _MOST_PLACE)
        told = b"".join(digest[:_PART_BYTES] for digest in digests[:_MOST_PARTS])
        with self._lock:
            folded = hashlib.sha256(self._digest)
            for content in (text.encode(), *digests):
                folded.update(len(content).to_bytes(8, "big") + content)
            self._digest = folded.digest()[:_DIGEST_BYTES]
            self._entries.append(_Entry(self._digest, text, place, told))
            self._labels.append(tuple(label for label, _ in parts))
            self._number += 1

    def _history(self, first: int) -> list[Any]:
        """What to tell: number of the first step, the steps, versions. Needs the lock."""
        oldest = self._number - len(self._entries) + 1
        first = max(oldest, min(first, self._number))
        told = [[e.digest, e.text, e.place, e.parts] for e in list(self._entries)[first - oldest :]]
        return [first, told, versions_here()]

    def _parse_untrusted(self, peer: str, told: list[Any]) -> tuple[int, list[_Entry], str]:
        match told:
            case [int(first), list(steps), str(versions)] if (
                first > 0 and 0 < len(steps) <= _REMEMBERED
            ):
                entries = [e for step in steps if (e := _Entry.parse_untrusted(step)) is not None]
                if len(entries) == len(steps):
                    return first, entries, one_line(versions, _MOST_TEXT)
        raise self.not_understood(peer)

    def _compare(self, peer: str, first: int, theirs: list[_Entry], versions: str) -> None:
        """Raise ProgramDiverged if a step that both parties made differs."""
        with self._lock:
            mine, labels = list(self._entries), list(self._labels)
            oldest = self._number - len(mine) + 1
            self._heard[peer] = max(self._heard[peer], first + len(theirs) - 1)
        common = range(max(first, oldest), min(first + len(theirs), oldest + len(mine)))
        for number in common:
            own, other = mine[number - oldest], theirs[number - first]
            if own.digest == other.digest:
                continue
            if own.text != other.text:
                hint = ""
                what = f"called {own.text} ({own.place}), {peer} called {other.text}"
            else:
                known = number > common.start or number <= self._agreed[peer] + 1
                hint = _what_differs(own, other, labels[number - oldest], known=known)
                what = f"({own.place}) and {peer} called {own.text}"
            if versions != versions_here():
                what = f"has {versions_here()}, {peer} has {versions}; {self._me} {what}"
            raise self._diverged(number, hint, f"{self._me} {what} ({other.place})")
        if common:
            self._agreed[peer] = max(self._agreed[peer], common[-1])

    def _diverged(self, number: int, hint: str, what: str) -> ProgramDiverged:
        chain = f" of {self._chain}" if self._chain else ""
        error = ProgramDiverged(
            f"{ProgramDiverged.OPENING}{number}{chain}{f' ({hint})' if hint else ''}: {what}: run "
            "the same program, with the same arguments and the same versions of jax and spu, at "
            "all parties"
        )
        self._failure.set(error)
        return error

    # -- the watcher -------------------------------------------------------------------------

    def _watch_from_now(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(
                target=self._watch, name=f"redislink-steps-{self._me}", daemon=True
            )
            self._watcher.start()

    def _watch(self) -> None:
        next_look = time.monotonic() + _LOOK_INTERVAL
        next_report = (0, 0.0)
        next_telling = (0, 0.0)
        while not self._stopped.wait(_TICK):
            now, current = time.monotonic(), self._current
            lasts = now - current.started if current is not None else 0.0
            if supervisor.here is not None and current is not None:
                next_telling = self._tell_supervisor(supervisor.here, current, lasts, next_telling)
            if lasts < _PATIENCE and now < next_look:
                continue
            next_look = now + _LOOK_INTERVAL
            try:
                self._tell()
                self._look()
            except RedisLinkError as error:
                if self._failure.error is None:
                    self._log.debug("%s: no more watching of steps: %s", self._me, error)
                return  # whoever is in a step gets the same
            if current is None or lasts < _FIRST_REPORT or next_report > (current.number, now):
                continue
            next_report = (current.number, now + _REPORT_INTERVAL)
            progress = StepProgress(current.number, current.text, lasts, self._late(current))
            self._log.info("%s: %s", self._me, progress)

    def _tell_supervisor(
        self, here: supervisor.Supervisor, current: _Current, lasts: float, due: tuple[int, float]
    ) -> tuple[int, float]:
        """Tell it what step this is; return the step and time at which to tell the same again."""
        now = time.monotonic()
        if due > (current.number, now):
            return due
        waits_for = self._late(current) if lasts >= _PATIENCE else ()
        text = one_line(current.text, _MOST_TEXT)
        if not here.tell_step(self._chain, current.number, text, lasts, waits_for):
            return due
        return current.number, now + (_TELL_INTERVAL if lasts >= _PATIENCE else _PATIENCE - lasts)

    def _tell(self) -> None:
        """Tell every peer how far this party is, at most once per step."""
        with self._lock:
            if self._status_told == self._number:
                return
            self._status_told = self._number
            message = self._history(1)
        for peer in self._peers:
            with contextlib.suppress(PeerError):
                self._communicator.send(peer, _STATUS_TAG, message)

    def _look(self) -> None:
        """Compare the steps with those that the peers told, and what they told of journals."""
        if self.journal is not None:
            self.journal.look()
        elif self._journals is not None:
            self._look_for_journals(self._journals)
        for peer in self._peers:
            with contextlib.suppress(PeerError):
                while self._communicator.has_message(peer, _STATUS_TAG):
                    message = self._communicator.recv(peer, _STATUS_TAG)
                    if not isinstance(message, list):
                        raise self.not_understood(peer)
                    told = self._parse_untrusted(peer, message)
                    try:
                        self._compare(peer, *told)
                    except ProgramDiverged:
                        return  # the failure has been set and has ended every call

    def _look_for_journals(self, journals: Communicator) -> None:
        for peer in self._peers:
            with contextlib.suppress(PeerError):
                if journals.has_message(peer, WHERE_TAG):
                    what = f"{peer} keeps a journal and {self._me} does not: start all parties "
                    error = ConfigError(f"{what}with a journal, or none")
                    self._failure.set(error, str(error))
                    return

    def _late(self, current: _Current) -> tuple[str, ...]:
        with self._lock:
            late = [
                peer
                for peer in self._peers
                if peer == current.awaited
                or (peer in current.parties and self._heard[peer] < current.number)
            ]
            known = {
                peer: f"at step {self._heard[peer]}"
                if self._heard[peer]
                else "not heard of in any step"
                for peer in late
            }
        troubles = {peer: self._communicator.trouble(peer) for peer in late}
        return tuple(
            f"{peer} ({where}{troubles[peer] and f'; {troubles[peer]}'})"
            for peer, where in known.items()
        )


def _what_differs(own: _Entry, other: _Entry, labels: Sequence[str], *, known: bool) -> str:
    """What differs between two calls that look alike.

    Args:
        own: this party's step.
        other: the peer's step.
        labels: the names of the parts.
        known: whether all calls before them were the same.
    """
    found = [
        label
        for number, label in enumerate(labels[:_MOST_PARTS])
        if own.part_digest(number) != other.part_digest(number)
    ]
    if found:
        return f"what differs: {', '.join(found)}"
    return "in what it was called with" if known else "or before"


def _place_in_program() -> str:
    """File and line, outside this package, that made the current call."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "redislink",
        "contextlib",
    ):
        frame = frame.f_back
    return f"{PurePath(frame.f_code.co_filename).name[-30:]}:{frame.f_lineno}"


@functools.cache
def versions_here() -> str:
    """The versions of the packages that must be the same everywhere."""
    found = []
    for package in ("redislink", "jax", "spu"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)
