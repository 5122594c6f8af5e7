"""`Watch`: shows an operator a session over time, from metadata only, without any secret key.

It has two sources: the keys on the broker (`operate.survey`), and the status that each party
publishes (`protocol.status`). A status may be missing, old, or forged by the broker, so it is only
displayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redislink.errors import BrokerError, BrokerPermissionError, FrameError
from redislink.operate.survey import Key, Survey
from redislink.protocol import list_names
from redislink.protocol.status import PartyStatus, PeerStatus, Waiting, decode_status_untrusted

_MOST_STRANGERS: Final = 64


@dataclass(frozen=True, slots=True)
class PartyView:
    """One party. Unknown values are None.

    Attributes:
        name: the party's name.
        up: whether a process runs as this party.
        state: the state that it publishes; ``up`` or ``not seen`` if it publishes none.
        running_seconds: seconds since its run began.
        round_trip_seconds: seconds from the party to the broker and back.
        reconnects: how often it lost the broker.
        last_heard_seconds: seconds since any peer last heard from it.
        waits: its waiting receives, the longest first.
        broker_away_seconds: how long it has not reached the broker, or one of its nodes; 0 if it
            reaches it now.
        unheard_by: the peers that have not heard from it for longer than they should.
        broker_number: which of several brokers it uses now, from 1; 0 if it has only one.
        resumed_steps: how many steps its journal answers, because a run before had made them.
        streams: TCP streams that ``redislink forward`` carries for it now.
    """

    name: str
    up: bool | None
    state: str
    running_seconds: float | None
    round_trip_seconds: float | None
    reconnects: int | None
    last_heard_seconds: float | None
    waits: tuple[Waiting, ...]
    broker_away_seconds: float | None = None
    unheard_by: tuple[str, ...] = ()
    broker_number: int | None = None
    resumed_steps: int | None = None
    streams: int | None = None


@dataclass(frozen=True, slots=True)
class PairView:
    """The traffic from one party to another. Unknown values are None.

    Attributes:
        src, dst: the sender and the receiver.
        lists: message lists on the broker now.
        messages: elements on those lists.
        memory_bytes: memory of all lists of the pair.
        messages_sent, bytes_sent: counts for this run so far; the bytes are those of payloads.
        messages_per_second, bytes_per_second: rates between the last two readings.
        in_flight_bytes: bytes sent but not yet acknowledged.
        frames_resent, frames_refused: counts of ``src``.
        probes: how often ``dst`` probed for a message that it waits for.
    """

    src: str
    dst: str
    lists: int | None
    messages: int | None
    memory_bytes: int | None
    messages_sent: int | None
    bytes_sent: int | None
    messages_per_second: float | None
    bytes_per_second: float | None
    in_flight_bytes: int | None
    frames_resent: int | None
    frames_refused: int | None
    probes: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A session at one moment.

    Attributes:
        session: the session's name.
        broker: the broker's URL without user and password.
        parties: the parties of the cluster file, then others that have keys on the broker.
        pairs: every ordered pair of these parties.
        refused: commands that this user may not run.
        broker_number: which of several brokers this is, from 1; 0 if there is only one.
    """

    session: str
    broker: str
    parties: tuple[PartyView, ...]
    pairs: tuple[PairView, ...]
    refused: tuple[str, ...]
    broker_number: int = 0


class Watch:
    """Reads a session repeatedly. Two readings together give the rates."""

    def __init__(self, survey: Survey, session: str, parties: Sequence[str]) -> None:
        """Args:
        survey: reads the keys.
        session: the session's name.
        parties: the names of the parties in the cluster file.
        """
        self._survey = survey
        self._session = session
        self._parties = tuple(parties)
        self._last: dict[str, PartyStatus] = {}
        self._rates: dict[tuple[str, str], tuple[float, float]] = {}

    def read(self) -> Reading:
        """Return the session as it is now.

        Raises:
            BrokerPermissionError: this user may read nothing of the session.
            BrokerError: the broker is out of reach, or answers nonsense.
        """
        found = self._look()
        names = list(self._parties)
        for name in sorted({name for key in found or () for name in (key.dst, key.src)}):
            if name not in names and len(names) < len(self._parties) + _MOST_STRANGERS:
                names.append(name)
        said = {key.name: key for key in found or ()}
        if found is None:
            up, status = self._ask_each(names)
        else:
            claims = {name: said.get(list_names.claim_key(self._session, name)) for name in names}
            up = {name: claims[name] is not None for name in names}
            status = {}
            for name in names:
                document = said.get(list_names.status_key(self._session, name))
                claim = claims[name]
                status[name] = _status_untrusted(
                    document.value if document else None, claim.value if claim else b""
                )
        for name in names:
            self._take_rates(name, status[name])
        return Reading(
            self._session,
            self._survey.label,
            tuple(_party_view(name, status, up=up[name]) for name in names),
            tuple(
                self._pair_view(src, dst, found, status)
                for src in names
                for dst in names
                if src != dst
            ),
            tuple(sorted(self._survey.refused)),
        )

    def _look(self) -> list[Key] | None:
        """Return the session's keys; None if this user may not list keys."""
        try:
            return [key for key in self._survey.keys(self._session) if key.is_ours or not key.kind]
        except BrokerPermissionError:
            return None

    def _ask_each(
        self, names: Sequence[str]
    ) -> tuple[dict[str, bool | None], dict[str, PartyStatus | None]]:
        """Without SCAN: return for each party whether it runs, and its status."""
        claims = self._survey.values([list_names.claim_key(self._session, name) for name in names])
        if "GET" in self._survey.refused and not any(claims):
            raise BrokerPermissionError(
                f"broker {self._survey.label}: this user may run neither SCAN nor GET on the "
                f"claims of session {self._session!r}: come as an admin, or as a user that "
                "redislink acl --operator NAME makes for this session"
            )
        documents = self._survey.values(
            [list_names.status_key(self._session, name) for name in names]
        )
        up: dict[str, bool | None] = {}
        status = {}
        for name, claim, document in zip(names, claims, documents, strict=True):
            up[name] = claim is not None
            status[name] = _status_untrusted(document, claim or b"")
        return up, status

    def _take_rates(self, name: str, status: PartyStatus | None) -> None:
        before = self._last.pop(name, None)
        if status is None:
            self._drop_rates(name)
            return
        self._last[name] = status
        if before is None or before.instance != status.instance:
            self._drop_rates(name)
            return
        seconds = status.running_seconds - before.running_seconds
        if seconds <= 0:
            return  # still the same document: the rates stay as they were
        for peer, now in status.peers.items():
            then = before.peers.get(peer, PeerStatus("missing"))
            self._rates[name, peer] = (
                max(0, now.messages_sent - then.messages_sent) / seconds,
                max(0, now.bytes_sent - then.bytes_sent) / seconds,
            )

    def _drop_rates(self, name: str) -> None:
        self._rates = {pair: rate for pair, rate in self._rates.items() if pair[0] != name}

    def _pair_view(
        self,
        src: str,
        dst: str,
        found: list[Key] | None,
        status: dict[str, PartyStatus | None],
    ) -> PairView:
        lists = messages = size = None
        if found is not None:
            mine = [key for key in found if (key.src, key.dst) == (src, dst)]
            data = [key for key in mine if key.holds_messages]
            lists, messages = len(data), total(key.depth for key in data)
            size = total(key.memory_bytes for key in mine)
        sender, receiver = status[src], status[dst]
        half = sender.peers.get(dst) if sender else None
        other = receiver.peers.get(src) if receiver else None
        rates = self._rates.get((src, dst), (None, None))
        return PairView(
            src=src,
            dst=dst,
            lists=lists,
            messages=messages,
            memory_bytes=size,
            messages_per_second=rates[0],
            bytes_per_second=rates[1],
            **_of(half, "messages_sent", "bytes_sent", "in_flight_bytes"),
            **_of(half, "frames_resent", "frames_refused"),
            probes=other.probes_sent if other else None,
        )


class WatchSeveral:
    """Reads a session on the one of several brokers that its parties use now."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        """Args:
        watches: one for each broker, in the order of the parties' list.
        """
        self._watches = list(watches)
        self._index = 0

    def read(self) -> Reading:
        """Return the session as it is now.

        Raises:
            BrokerError: as `Watch.read`; none of the brokers can be read.
        """
        reading = self._read_first()
        if len(self._watches) == 1:
            return reading
        numbers = [party.broker_number for party in reading.parties if party.up]
        said = [number for number in numbers if number and number <= len(self._watches)]
        where = max(said, key=said.count) - 1 if said else self._index
        if where != self._index:
            with contextlib.suppress(BrokerError):
                reading = self._watches[where].read()
                self._index = where
        return replace(reading, broker_number=self._index + 1)

    def _read_first(self) -> Reading:
        """Return the reading of the last broker, or of the next that can be read."""
        failure: BrokerError | None = None
        for _ in self._watches:
            try:
                return self._watches[self._index].read()
            except BrokerError as error:
                failure = failure or error
                self._index = (self._index + 1) % len(self._watches)
        assert failure is not None  # noqa: S101 - there is at least one watch
        raise failure


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session on a broker. Unknown values are None.

    Attributes:
        name: the session's name.
        parties: the parties that have keys on the broker.
        up: the parties that are running.
        running_seconds: how long the longest-running party has run.
        lists: message lists.
        messages: elements on those lists.
        memory_bytes: memory of all the session's keys.
        expires_seconds: seconds until the last key expires, if nobody runs the session any more.
    """

    name: str
    parties: tuple[str, ...]
    up: tuple[str, ...]
    running_seconds: float | None
    lists: int
    messages: int | None
    memory_bytes: int | None
    expires_seconds: float | None


def sessions_of(found: Iterable[Key]) -> list[SessionView]:
    """Return the sessions that these keys belong to, sorted by name."""
    by_name: dict[str, list[Key]] = {}
    for key in found:
        if key.is_ours or not key.kind:
            by_name.setdefault(key.session, []).append(key)
    return [_session_view(name, by_name[name]) for name in sorted(by_name)]


def _session_view(name: str, found: list[Key]) -> SessionView:
    data = [key for key in found if key.holds_messages]
    claims = {key.dst: key.value for key in found if key.is_claim}
    running = [
        status.running_seconds
        for key in found
        if key.tag == list_names.STATUS_TAG and key.dst == key.src
        if (status := _status_untrusted(key.value, claims.get(key.dst, b""))) is not None
    ]
    left = [key.expires_seconds for key in found if key.expires_seconds is not None]
    return SessionView(
        name,
        tuple(sorted({party for key in found for party in (key.dst, key.src)})),
        tuple(sorted(claims)),
        max(running, default=None),
        len(data),
        total(key.depth for key in data),
        total(key.memory_bytes for key in found),
        max(left, default=None),
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of the counts is unknown."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _status_untrusted(document: bytes | None, claim: bytes | None) -> PartyStatus | None:
    """Return the status if it is from the run that holds the claim; otherwise None.

    If the claim cannot be read (None), a status from any run will do.
    """
    if document is None:
        return None
    try:
        status = decode_status_untrusted(document)
    except FrameError:
        return None
    return status if claim is None or claim == status.instance.encode() else None


def _party_view(name: str, every: dict[str, PartyStatus | None], *, up: bool | None) -> PartyView:
    status = every[name]
    of_peers = {
        other: peer
        for other, said in every.items()
        if said is not None and said.state != "joining"
        if (peer := said.peers.get(name)) is not None
    }
    said = status.state if status else "up"
    return PartyView(
        name,
        up,
        said if up else "not seen",
        **_of(status, "running_seconds", "round_trip_seconds", "reconnects"),
        last_heard_seconds=min((p.last_heard_seconds for p in of_peers.values()), default=None),
        waits=status.waits if status else (),
        **_of(status, "broker_away_seconds", "broker_number", "resumed_steps", "streams"),
        unheard_by=tuple(other for other, peer in of_peers.items() if peer.is_silent),
    )


def _of(status: PartyStatus | PeerStatus | None, *names: str) -> dict[str, Any]:
    """Return these fields of the status; None for each if there is no status."""
    return {name: getattr(status, name, None) for name in names}
