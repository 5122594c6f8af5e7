"""The statistics of a party's run: where its time went, what it exchanged, what was healed.

Rules:
- While nobody asks for them they cost nothing: only an endpoint whose settings name a file gets a
  `Sending` and a `Receiving` that measure.
- Memory is bounded: times are summed up as they pass, and no call is kept.
- Every moment counts once. While any call waits for a message, the moment is *waiting*, shared
  equally by the peers that are waited for; otherwise, while any call sends, it is *sending*;
  otherwise it is *computing*, which so includes all that redislink knows nothing of.
- The file holds names, counts and seconds, never a value. It is written when the party leaves. A
  file that cannot be written ends no run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from redislink.errors import ConfigError
from redislink.files import read_text, replacing
from redislink.forking import dies_in_child
from redislink.logs import PartyLogger
from redislink.observe.merge import PartyTrace
from redislink.observe.record import TracedReceiving, TracedSending, TraceRecorder
from redislink.protocol.frame import BytesLike, Encoding
from redislink.protocol.list_names import check_name
from redislink.transport.core import Core
from redislink.transport.endpoint import Endpoint
from redislink.transport.peer import Party
from redislink.transport.receiving import Message, Receiving
from redislink.transport.sending import Sending

FORMAT: Final[Literal[1]] = 1
SUFFIX: Final = ".stats.json"

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, le=1e10)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class PeerAccount(BaseModel):
    """What a party and one peer exchanged; the counts are those of `redislink.PeerStats`.

    Attributes:
        waiting: seconds in which this party waited for a message of the peer.
    """

    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)
    messages_sent: _Count
    bytes_sent: _Count
    messages_received: _Count
    bytes_received: _Count
    frames_resent: _Count = 0
    duplicates_dropped: _Count = 0
    probes_sent: _Count = 0
    frames_refused: _Count = 0
    waiting: _Seconds = 0.0


class RunAccount(BaseModel):
    """The contents of a statistics file.

    Attributes:
        redislink_stats: the version of this format.
        session: the name of the session.
        party: whose run it was.
        parties: all of them, in rank order.
        epochs: for each peer 16 hex digits that only this run of these two has.
        began: UTC seconds since 1970.
        seconds: how long this party was in the session; the sum of the three shares.
        computing, sending: seconds; waiting is in ``peers``.
        reconnects: how often the connection for sending was reopened; None if not known.
        peers: what was exchanged with each.
    """

    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)
    redislink_stats: Literal[1]
    session: str
    party: str
    parties: list[str]
    epochs: dict[str, str] = {}
    began: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
    seconds: _Seconds
    computing: _Seconds
    sending: _Seconds
    reconnects: _Count | None = None
    peers: dict[str, PeerAccount]

    @property
    def waiting(self) -> float:
        """Seconds in which this party waited for any peer."""
        return sum(peer.waiting for peer in self.peers.values())


class Shares:
    """Adds up where time goes. Any thread may tell it what begins and ends."""

    def __init__(self, now: float) -> None:
        """Args:
        now: when it begins, in seconds of any clock.
        """
        self._lock = threading.Lock()
        self._last = now
        self._sends = 0
        self._waits: dict[str, int] = {}
        self.computing = 0.0
        self.sending = 0.0
        self.waiting: dict[str, float] = {}

    def send(self, now: float, change: int) -> None:
        """A send begins (1) or ends (-1)."""
        with self._lock:
            self._pass(now)
            self._sends += change

    def wait(self, now: float, peer: str, change: int) -> None:
        """A wait for a peer begins (1) or ends (-1)."""
        with self._lock:
            self._pass(now)
            left = self._waits.get(peer, 0) + change
            if left:
                self._waits[peer] = left
            else:
                self._waits.pop(peer, None)

    def until(self, now: float) -> None:
        """Add what has passed so far."""
        with self._lock:
            self._pass(now)

    def renew_lock(self) -> None:
        """In the child of a fork."""
        self._lock = threading.Lock()

    def _pass(self, now: float) -> None:
        passed = now - self._last
        if passed <= 0:  # another thread has told of a later moment
            return
        self._last = now
        if self._waits:
            each = passed / len(self._waits)
            for peer in self._waits:
                self.waiting[peer] = self.waiting.get(peer, 0.0) + each
        elif self._sends:
            self.sending += passed
        else:
            self.computing += passed


class StatsRecorder:
    """Writes the statistics file of one endpoint. Call `attach` once at most, then `close`."""

    def __init__(self, file: Path, session: str, party: str, names: Iterable[str]) -> None:
        """Args:
        file: {session} and {party} in it are replaced by their names.
        session: the name of the session.
        party: the name of this party.
        names: those of all parties, in rank order.

        Raises:
            ConfigError: the file's directory does not exist.
        """
        named = str(file).replace("{session}", session).replace("{party}", party)
        self.path = Path(named)
        if not self.path.parent.is_dir():
            raise ConfigError(
                f"REDISLINK_STATS_FILE: there is no directory {self.path.parent}: make it, or name "
                "another"
            )
        self.names = tuple(names)
        self.shares = Shares(time.monotonic())
        self._log = PartyLogger(session, party)
        self._endpoint: Endpoint | None = None
        self._epochs: dict[str, str] = {}
        self._began = self._began_wall = 0.0
        dies_in_child(self)

    def ways(self, core: Core, trace: TraceRecorder | None) -> tuple[Sending, Receiving]:
        """The objects that send and receive for an endpoint, and are measured.

        Args:
            core: the endpoint's.
            trace: records a timeline too, unless it is None.
        """
        return _TimedSending(core, trace, self), _TimedReceiving(core, trace, self)

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:
        """Count from now on.

        Args:
            endpoint: an endpoint made with `ways`.
            epochs: for each peer, the epoch that tells this run from others, the same at both.
        """
        self._endpoint, self._epochs = endpoint, dict(epochs)
        self._began, self._began_wall = time.monotonic(), time.time()
        self.shares = Shares(self._began)

    def close(self) -> None:
        """Write the file. A second call, or one without `attach`, does nothing."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        now = time.monotonic()
        self.shares.until(now)
        stats = endpoint.stats()
        account = RunAccount(
            redislink_stats=FORMAT,
            session=endpoint.session,
            party=endpoint.party,
            parties=list(self.names),
            epochs=self._epochs,
            began=self._began_wall,
            seconds=round(now - self._began, 6),
            computing=round(self.shares.computing, 6),
            sending=round(self.shares.sending, 6),
            reconnects=stats.reconnects,
            peers={
                name: PeerAccount(
                    **{count: getattr(peer, count) for count in _COUNTS},
                    waiting=round(self.shares.waiting.get(name, 0.0), 6),
                )
                for name, peer in stats.peers.items()
            },
        )
        try:
            with replacing(self.path) as file:
                file.write(account.model_dump_json() + "\n")
        except OSError as error:
            self._log.warning(
                "%s: cannot write the statistics %s (%s): check REDISLINK_STATS_FILE",
                endpoint.party,
                self.path,
                error.strerror,
            )

    def die_in_child(self) -> None:
        """In the child of a fork: the parent writes the file."""
        self._endpoint = None
        self.shares.renew_lock()


_COUNTS: Final = tuple(name for name in PeerAccount.model_fields if name != "waiting")


class _TimedSending(TracedSending):
    """Measures each call of `post`."""

    def __init__(self, core: Core, trace: TraceRecorder | None, stats: StatsRecorder) -> None:
        super().__init__(core, trace)
        self._stats = stats

    def post(self, dst: Party, tag: str, data: BytesLike, encoding: Encoding = Encoding.RAW) -> int:
        shares = self._stats.shares
        shares.send(time.monotonic(), 1)
        try:
            return super().post(dst, tag, data, encoding)
        finally:
            shares.send(time.monotonic(), -1)


class _TimedReceiving(TracedReceiving):
    """Measures each call of `recv`."""

    def __init__(self, core: Core, trace: TraceRecorder | None, stats: StatsRecorder) -> None:
        super().__init__(core, trace)
        self._stats = stats

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Message:
        shares, names = self._stats.shares, self._stats.names
        # What is no party is refused below.
        peer = names[src % len(names)] if isinstance(src, int) else str(src)
        shares.wait(time.monotonic(), peer, 1)
        try:
            return super().recv(src, tag, timeout)
        finally:
            shares.wait(time.monotonic(), peer, -1)


def read_account(path: Path) -> RunAccount:
    """Read a statistics file, which may come from another party.

    Raises:
        ConfigError: the file cannot be read, or is not one of redislink's.
    """
    try:
        account = RunAccount.model_validate_json(read_text(path))
        for name in (account.session, account.party, *account.parties, *account.peers):
            check_name(name, "name")
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): check the path") from None
    except (ValidationError, UnicodeDecodeError, ConfigError):
        raise ConfigError(
            f"{path} is not a statistics file of redislink: pass one that REDISLINK_STATS_FILE "
            "named"
        ) from None
    return account


def account_of_trace(trace: PartyTrace) -> RunAccount:
    """The statistics of what a timeline covers; it knows of no faults."""
    moments: list[tuple[float, int, str, str]] = []
    exchanged = {name: dict.fromkeys(_EXCHANGED, 0) for name in trace.parties}
    for call in trace.calls:
        moments += [(call.began, 1, call.kind, call.peer), (call.ended, -1, call.kind, call.peer)]
        if not call.error and call.peer in exchanged:
            way = "sent" if call.kind == "send" else "received"
            exchanged[call.peer][f"messages_{way}"] += 1
            exchanged[call.peer][f"bytes_{way}"] += max(0, call.size)
    shares = Shares(0.0)
    for at, change, kind, peer in sorted(moments):
        if kind == "send":
            shares.send(at, change)
        elif peer in exchanged:
            shares.wait(at, peer, change)
    end = max((at for at, *_ in moments), default=0.0)
    return RunAccount(
        redislink_stats=FORMAT,
        session=trace.session,
        party=trace.party,
        parties=trace.parties,
        epochs=trace.epochs,
        began=max(0, trace.wall_ns) / 1e9,
        seconds=max(0.0, end) / 1e6,
        computing=shares.computing / 1e6,
        sending=shares.sending / 1e6,
        peers={
            name: PeerAccount(**counts, waiting=shares.waiting.get(name, 0.0) / 1e6)
            for name, counts in exchanged.items()
            if name != trace.party
        },
    )


_EXCHANGED: Final = ("messages_sent", "bytes_sent", "messages_received", "bytes_received")
