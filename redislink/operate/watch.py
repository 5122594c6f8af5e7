"""`Watch`: sessions seen over time, by an operator: from metadata alone, without a key.

Two sources: the keys on the broker (`operate.survey`), and what each party says of itself
(`protocol.status`). The second may be missing, old or made up by the broker: it is only shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redislink.errors import BrokerPermissionError, FrameError
from redislink.operate.survey import Key, Survey
from redislink.protocol import list_names
from redislink.protocol.status import PartyStatus, PeerStatus, Waiting, decode_status_untrusted

_MOST_STRANGERS: Final = 64


@dataclass(frozen=True, slots=True)
class PartyView:
    """One party. What is not known is None.

    Attributes:
        name: of the party.
        up: whether a process runs as this party.
        state: what it says of itself; ``up`` or ``not seen`` where it says nothing.
        running_seconds: since its run began.
        round_trip_seconds: from it to the broker and back.
        reconnects: times that it lost the broker.
        last_heard_seconds: since any peer heard it.
        waits: its receives that wait, the longest first.
        broker_away_seconds: for how long it has not reached the broker, or a node of it; 0 while
            it does.
        unheard_by: peers that have not heard it for longer than they should.
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


@dataclass(frozen=True, slots=True)
class PairView:
    """What goes from one party to another. What is not known is None.

    Attributes:
        src, dst: from whom to whom.
        lists, messages, memory_bytes: on the broker now: lists of messages, elements of these,
            and memory of all lists of the pair.
        messages_sent, bytes_sent: so far, in this run; bytes are of payloads.
        messages_per_second, bytes_per_second: between the last two readings.
        in_flight_bytes: sent, and not known to have come.
        frames_resent, frames_refused: by ``src``.
        probes: questions of ``dst`` for what it waits for.
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
        session: its name.
        broker: where, without user and password.
        parties: those of the cluster file, then others of which there are keys.
        pairs: each two of these, both ways.
        refused: commands that this user may not run.
    """

    session: str
    broker: str
    parties: tuple[PartyView, ...]
    pairs: tuple[PairView, ...]
    refused: tuple[str, ...]


class Watch:
    """Reads a session again and again: two readings give what passes per second."""

    def __init__(self, survey: Survey, session: str, parties: Sequence[str]) -> None:
        """Args: names of the session and of its parties, as the cluster file has them."""
        self._survey = survey
        self._session = session
        self._parties = tuple(parties)
        self._last: dict[str, PartyStatus] = {}
        self._rates: dict[tuple[str, str], tuple[float, float]] = {}

    def read(self) -> Reading:
        """The session as it is now.

        Raises:
            BrokerPermissionError: this user may not see anything.
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
            tuple(_party_view(name, up[name], status) for name in names),
            tuple(
                self._pair_view(src, dst, found, status)
                for src in names
                for dst in names
                if src != dst
            ),
            tuple(sorted(self._survey.refused)),
        )

    def _look(self) -> list[Key] | None:
        """The session's keys; None if this user may not find them."""
        try:
            return [key for key in self._survey.keys(self._session) if key.is_ours or not key.kind]
        except BrokerPermissionError:
            return None

    def _ask_each(
        self, names: Sequence[str]
    ) -> tuple[dict[str, bool | None], dict[str, PartyStatus | None]]:
        """Without SCAN: who runs, and what they say, by the names that are known."""
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
            return  # the same document still: the rates are as they were
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


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session on a broker. What is not known is None.

    Attributes:
        name: of the session.
        parties: of which there are keys.
        up: those of them that run.
        running_seconds: of the party that has run for longest.
        lists, messages, memory_bytes: lists of messages, elements of these, memory of all keys.
        expires_seconds: until the last key of a session that nobody runs is gone by itself.
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
    """The sessions that these keys belong to, by name."""
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
    """The sum; None if one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _status_untrusted(document: bytes | None, claim: bytes | None) -> PartyStatus | None:
    """A document of the run that has the claim; of any, where the claim cannot be read (None)."""
    if document is None:
        return None
    try:
        status = decode_status_untrusted(document)
    except FrameError:
        return None
    return status if claim is None or claim == status.instance.encode() else None


def _party_view(name: str, up: bool | None, every: dict[str, PartyStatus | None]) -> PartyView:
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
        **_of(status, "broker_away_seconds"),
        unheard_by=tuple(other for other, peer in of_peers.items() if peer.is_silent),
    )


def _of(status: PartyStatus | PeerStatus | None, *names: str) -> dict[str, Any]:
    """These fields, None where there is no status."""
    return {name: getattr(status, name, None) for name in names}
