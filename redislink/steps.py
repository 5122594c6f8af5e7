"""`Steps`: the collective calls of one session in their order, and the proof that all agree.

Rules:
- Every party makes the same calls in the same order, also those in which it takes no part. Each
  call is a numbered step, and is folded into a chain of digests; no value ever is.
- Messages of steps go through one stream per pair of parties. Each carries the steps since the
  last one to that peer, so a divergence is seen where the next message flows, at no extra cost.
- Where none flows a hang would follow. So a thread looks after steps that last: it tells the
  peers how far this party is, and compares with what they tell.
- The first that sees a divergence aborts the session, with a reason that names it to everybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from redislink.communicator import Communicator, Request
from redislink.errors import (
    EndpointClosed,
    LoadFailed,
    PeerAborted,
    PeerClosed,
    PeerError,
    ProgramDiverged,
    RecvTimeout,
    RedisLinkError,
    UsageError,
)
from redislink.logs import PartyLogger
from redislink.text import one_line

_STEP_TAG: Final = "step"
_STATUS_TAG: Final = "status"
_DIGEST_BYTES: Final = 16
_MOST_TEXT: Final = 120
_REMEMBERED: Final = 64
"""Steps that a message tells at most, and that are kept for comparing."""
_TICK: Final = 0.25
_PATIENCE: Final = 1.0
"""Seconds from which on a step counts as long: from then on peers are told and looked at."""
_LOOK_INTERVAL: Final = 5.0
"""Seconds between looks while all steps are short."""
_FIRST_REPORT: Final = 3.0
_REPORT_INTERVAL: Final = 10.0


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step that lasts.

    Attributes:
        number: of the step, from 1.
        text: what was called.
        seconds: since when.
        waiting_for: parties that are not known to have come to this step, and what is known of
            them, such as ``bob (at step 3)``.
    """

    number: int
    text: str
    seconds: float
    waiting_for: tuple[str, ...]

    def __str__(self) -> str:
        rest = f", waiting for {', '.join(self.waiting_for)}" if self.waiting_for else ""
        return f"step {self.number}, {self.text}: {self.seconds:.0f} s so far{rest}"


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    text: str


@dataclass(slots=True)
class _Current:
    number: int
    text: str
    parties: tuple[str, ...]
    started: float
    awaited: str | None = None


class Failure:
    """The first thing that ended a session; shared by all its chains of steps."""

    def __init__(self, abort: Callable[[str], None]) -> None:
        """Args: abort: tells the peers, with a reason."""
        self.error: RedisLinkError | None = None
        self._abort = abort
        self._lock = threading.Lock()

    def set(self, error: RedisLinkError, reason: str | None = None) -> None:
        """End the session for all, unless it has ended already.

        Args:
            error: what every call of this party raises from now on.
            reason: what the peers are told; None tells them the error.
        """
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        self._abort(str(error) if reason is None else reason)

    def of(self, error: BaseException) -> BaseException:
        """What to raise instead of an error that only is a consequence."""
        if isinstance(error, EndpointClosed) and self.error is not None:
            return self.error.with_traceback(None)
        if isinstance(error, PeerAborted) and error.reason.startswith(ProgramDiverged.OPENING):
            return ProgramDiverged(error.reason)
        return error


class Silence:
    """``with silence():``, of one session, in several threads at once.

    The communicator takes the end of any announced silence for the end of all.
    """

    def __init__(self, communicator: Communicator) -> None:
        """Args: communicator: any of the session."""
        self._communicator = communicator
        self._lock = threading.Lock()
        self._inside = 0
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
    """One chain of collective calls. A session has one, and each spawned device its own."""

    def __init__(self, communicator: Communicator, failure: Failure, chain: str = "") -> None:
        """Args:
        communicator: with a namespace for this chain alone.
        failure: of the session.
        chain: what to call it in errors; "" is the session's.
        """
        self._communicator = communicator
        self._failure = failure
        self._chain = chain
        self._me = communicator.party
        self._log = PartyLogger(communicator.session, self._me, "redislink.progress")
        self._peers = tuple(name for name in communicator.party_names if name != self._me)
        self._lock = threading.Lock()
        self._in_step = threading.Lock()
        self._entries: deque[_Entry] = deque(maxlen=_REMEMBERED)
        self._number = 0
        self._digest = b""
        self._told = dict.fromkeys(self._peers, 0)
        self._heard = dict.fromkeys(self._peers, 0)
        self._agreed = dict.fromkeys(self._peers, 0)
        self._status_told = 0
        self._broken: BaseException | None = None
        self._current: _Current | None = None
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def usable(self) -> bool:
        """False once a call has failed, or all have ended."""
        return self._broken is None and self._failure.error is None

    @property
    def digest(self) -> bytes:
        """Of all calls so far."""
        return self._digest

    @property
    def number(self) -> int:
        """Of the last step begun; 0 before the first."""
        return self._number

    @contextlib.contextmanager
    def step(self, text: str, parties: Collection[str], detail: bytes = b"") -> Iterator[None]:
        """Make one collective call; what it sends and receives is inside this block.

        Args:
            text: what is called: names, shapes, never a value. All parties give the same.
            parties: who takes part, this party or not.
            detail: further bytes that must be the same everywhere; only their digest travels.

        Raises:
            ProgramDiverged: another party called something else.
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
            self._advance(text, detail)
            self._current = _Current(self._number, text, tuple(parties), time.monotonic())
            self._watch_from_now()
            yield
        except LoadFailed:
            raise  # all parties raise it in this step: they still agree
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
            self._current = None
            self._in_step.release()

    def send(self, peer: str, body: Any) -> Request:
        """Send a value to a party that takes part in this step; waits for nobody."""
        with self._lock:
            message = [*self._history(self._told[peer] + 1), body]
            self._told[peer] = self._number
        return self._communicator.send(peer, _STEP_TAG, message)

    def tell_failure(self, peers: Collection[str], body: Any, error: Exception) -> None:
        """Send the same to some, and wait for a moment until they have it.

        What follows may be the end of this session, which overtakes it where the wait was too
        short. So if this error is what ends the session, the reason given to all says the same.

        Args:
            peers: who waits for this party in this step.
            body: what they are sent.
            error: what this party's load raised.
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
        """The value that ``peer`` sends in this step; waits for it.

        Args:
            peer: name of the party.
            timeout: seconds; None takes the receive timeout.

        Raises:
            ProgramDiverged: it sent it in another step, or after other calls.
            PeerError: it will not come.
        """
        current = self._current
        if current is not None:
            current.awaited = peer
        message = self._communicator.recv(peer, _STEP_TAG, timeout)
        if current is not None:
            current.awaited = None
        if not isinstance(message, list) or len(message) != 3:
            raise self.not_understood(peer)
        first, entries = self._parse_untrusted(peer, message[:2])
        self._compare(peer, first, entries)
        last = first + len(entries) - 1
        if last != self._number:
            raise self._diverged(
                peer, self._number, f"is at step {last}, {entries[-1].text}", "skipped or repeated"
            )
        return message[2]

    def not_understood(self, peer: str) -> PeerError:
        """The error for a message of a peer that is not what this step sends."""
        text = self._current.text if self._current else "a step"
        return PeerError(
            f"{self._me}: {peer} sent something in {text} that is not understood: check that all "
            "parties run the same version of redislink and spu"
        )

    def finish(self, timeout: float, detail: bytes = b"") -> None:
        """The last step: all parties say that they have come to the end.

        A party that ends while others go on is a divergence as any other. One that does not come
        in time is not waited for.

        Args:
            timeout: seconds.
            detail: as for `step`.

        Raises:
            ProgramDiverged: another party has called something else.
            PeerAborted: its run has failed.
        """
        deadline = time.monotonic() + timeout
        with self.step("close()", self._peers, detail):
            for peer in self._peers:
                with contextlib.suppress(PeerClosed):
                    self.send(peer, None)
            for peer in self._peers:
                with contextlib.suppress(PeerClosed, RecvTimeout):
                    self.recv(peer, max(0.0, deadline - time.monotonic()))

    def leave(self) -> None:
        """Stop watching; take what peers have told, so that they need not wait to leave."""
        self._stopped.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        if self._failure.error is None:
            with contextlib.suppress(RedisLinkError):
                self._look()

    # -- the chain ---------------------------------------------------------------------------

    def _check_usable(self, text: str) -> None:
        if self._failure.error is not None:
            raise self._failure.error.with_traceback(None)
        if self._stopped.is_set():
            raise EndpointClosed(
                f"{self._me}: {text} was called after the session was closed: join a new one"
            )
        if self._broken is not None:
            raise UsageError(
                f"{self._me}: {text} was called after an earlier call had failed "
                f"({type(self._broken).__name__}): leave the session, then start all again"
            )

    def _advance(self, text: str, detail: bytes) -> None:
        text = one_line(text, _MOST_TEXT)
        with self._lock:
            folded = b"".join(
                len(part).to_bytes(8, "big") + part
                for part in (self._digest, text.encode(), detail)
            )
            self._digest = hashlib.sha256(folded).digest()[:_DIGEST_BYTES]
            self._entries.append(_Entry(self._digest, text))
            self._number += 1

    def _history(self, first: int) -> list[Any]:
        """Number of the first step told, and the steps from there on; under the lock."""
        oldest = self._number - len(self._entries) + 1
        first = max(oldest, min(first, self._number))
        entries = list(self._entries)[first - oldest :]
        return [first, [[entry.digest, entry.text] for entry in entries]]

    def _parse_untrusted(self, peer: str, told: list[Any]) -> tuple[int, list[_Entry]]:
        match told:
            case [int(first), list(pairs)] if first > 0 and 0 < len(pairs) <= _REMEMBERED:
                entries = []
                for pair in pairs:
                    match pair:
                        case [bytes(digest), str(text)]:
                            entries.append(_Entry(digest, one_line(text, _MOST_TEXT)))
                        case _:
                            raise self.not_understood(peer)
                return first, entries
        raise self.not_understood(peer)

    def _compare(self, peer: str, first: int, theirs: list[_Entry]) -> None:
        """Raise ProgramDiverged if a step that both have made differs."""
        with self._lock:
            mine = list(self._entries)
            oldest = self._number - len(mine) + 1
            self._heard[peer] = max(self._heard[peer], first + len(theirs) - 1)
        common = range(max(first, oldest), min(first + len(theirs), oldest + len(mine)))
        for number in common:
            own, other = mine[number - oldest], theirs[number - first]
            if own.digest == other.digest:
                continue
            hint = ""
            if own.text == other.text:
                known = number > common.start or number <= self._agreed[peer] + 1
                hint = "in functions, public values or versions" if known else "or before"
            raise self._diverged(peer, number, f"called {other.text}", hint, own.text)
        if common:
            self._agreed[peer] = max(self._agreed[peer], common[-1])

    def _diverged(
        self, peer: str, number: int, theirs: str, hint: str = "", own: str | None = None
    ) -> ProgramDiverged:
        if own is None:
            own = self._entries[-1].text
        chain = f" of {self._chain}" if self._chain else ""
        error = ProgramDiverged(
            f"{ProgramDiverged.OPENING}{number}{chain}{f' ({hint})' if hint else ''}: {self._me} "
            f"called {own}, {peer} {theirs}: run the same program, with the same arguments and "
            "the same versions of jax and spu, at all parties"
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
        while not self._stopped.wait(_TICK):
            now, current = time.monotonic(), self._current
            lasts = now - current.started if current is not None else 0.0
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

    def _tell(self) -> None:
        """Tell every peer how far this party is, once per step at most."""
        with self._lock:
            if self._status_told == self._number:
                return
            self._status_told = self._number
            message = self._history(1)
        for peer in self._peers:
            with contextlib.suppress(PeerError):
                self._communicator.send(peer, _STATUS_TAG, message)

    def _look(self) -> None:
        """Compare with what the peers have told."""
        for peer in self._peers:
            with contextlib.suppress(PeerError):
                while self._communicator.has_message(peer, _STATUS_TAG):
                    message = self._communicator.recv(peer, _STATUS_TAG)
                    if not isinstance(message, list):
                        raise self.not_understood(peer)
                    first, entries = self._parse_untrusted(peer, message)
                    try:
                        self._compare(peer, first, entries)
                    except ProgramDiverged:
                        return  # the failure is set, and has ended every call

    def _late(self, current: _Current) -> tuple[str, ...]:
        with self._lock:
            late = [
                peer
                for peer in self._peers
                if peer == current.awaited
                or (peer in current.parties and self._heard[peer] < current.number)
            ]
            return tuple(
                f"{peer} (at step {self._heard[peer]})"
                if self._heard[peer]
                else f"{peer} (not heard of in any step)"
                for peer in late
            )
