"""The status document that a party publishes under `!status`, for people who watch the session.

The document is a msgpack map: the version under ``"v"``, and the fields of `PartyStatus` under
their names.

Rules:
- It contains names, tags, counts and times, but nothing of what is computed.
- Times are durations on the party's own clock, so no clocks need to agree.
- It is validated on construction; `decode_status_untrusted` raises `FrameError` and nothing else.
- The broker can write anything here, so no party acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import msgpack

from redislink.errors import ConfigError, FrameError
from redislink.protocol.list_names import MAX_TAG_BYTES, check_name
from redislink.protocol.states import State

STATUS_VERSION: Final = 5
MAX_STATUS_BYTES: Final = 64 << 10
MAX_WAITS: Final = 32
"""The most receives that a document names: those that have waited longest."""
JOINING: Final = "joining"
MISSING: Final = "missing"
PARTY_STATES: Final = frozenset({JOINING, "open", "closing", "failed"})
PEER_STATES: Final = frozenset({MISSING, *(state.value for state in State)})

_MAX_PEERS: Final = 63
_MAX_COUNT: Final = (1 << 63) - 1
_LONGEST: Final = 1e9


@dataclass(frozen=True, slots=True)
class Waiting:
    """A receive that is waiting.

    Attributes:
        peer: the party that is to send the message.
        tag: the message's tag.
        seconds: how long the receive has waited.
    """

    peer: str
    tag: str
    seconds: float

    def __post_init__(self) -> None:
        _check_party(self.peer)
        _check_tag(self.tag)
        _check_seconds(self.seconds, "the time that a receive has waited")


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A party's half of the conversation with one peer.

    Attributes:
        state: one of `PEER_STATES`; ``missing`` means that the peer has not joined yet.
        messages_sent, bytes_sent, messages_received, bytes_received: totals; bytes count payloads.
        frames_resent, duplicates_dropped, probes_sent, frames_refused: see `EndpointStats`.
        in_flight_bytes: bytes sent and not acknowledged; they may still be on the broker.
        last_heard_seconds: time since the peer was last heard.
        is_silent: True if that is longer than expected.
    """

    state: str
    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_resent: int = 0
    duplicates_dropped: int = 0
    probes_sent: int = 0
    frames_refused: int = 0
    in_flight_bytes: int = 0
    last_heard_seconds: float = 0.0
    is_silent: bool = False

    def __post_init__(self) -> None:
        _check_state(self.state, PEER_STATES)
        if type(self.is_silent) is not bool:
            raise FrameError("a status in which is_silent is not true or false")
        for name in _PEER_COUNTS:
            _check_count(getattr(self, name), name)
        _check_seconds(self.last_heard_seconds, "the time since a peer was heard")


_PEER_COUNTS: Final = tuple(f.name for f in fields(PeerStatus))[1:-2]


@dataclass(frozen=True, slots=True)
class PartyStatus:
    """A party's whole document.

    Attributes:
        instance: identifies the party's run: 16 hex digits, the same as in its claim.
        state: one of `PARTY_STATES`.
        running_seconds: time since the party claimed its name.
        round_trip_seconds: to the broker and back, as last measured.
        reconnects: how often the connection for sending was reopened.
        peers: the status for each peer, by name.
        waits: the receives that are waiting now, the longest first.
        broker_away_seconds: how long the party has not reached the broker, or one of its nodes; 0
            while it reaches all. If it reaches none, this document expires with the claim.
        broker_number: of several brokers, the place in the list of the one that the party uses
            now, from 1; 0 if it has only one.
        resumed_steps: how many steps the run before had made, which the party's journal answers.
        streams: TCP streams that ``redislink forward`` carries now.
    """

    instance: str
    state: str
    running_seconds: float
    round_trip_seconds: float
    reconnects: int
    peers: Mapping[str, PeerStatus]
    waits: tuple[Waiting, ...] = ()
    broker_away_seconds: float = 0.0
    broker_number: int = 0
    resumed_steps: int = 0
    streams: int = 0

    def __post_init__(self) -> None:
        text = self.instance
        if type(text) is not str or len(text) != 16 or set(text) - set("0123456789abcdef"):
            raise FrameError("a status whose instance is not 16 hex digits")
        _check_state(self.state, PARTY_STATES)
        _check_seconds(self.running_seconds, "the time that a party has run")
        _check_seconds(self.round_trip_seconds, "a round trip")
        _check_count(self.reconnects, "reconnects")
        _check_seconds(self.broker_away_seconds, "the time that the broker is away")
        _check_count(self.broker_number, "the broker's number")
        _check_count(self.resumed_steps, "resumed_steps")
        _check_count(self.streams, "streams")
        if len(self.peers) > _MAX_PEERS or len(self.waits) > MAX_WAITS:
            raise FrameError("a status with too many peers or receives")
        for name in self.peers:
            _check_party(name)


_FIELDS: Final = frozenset({"v", *(f.name for f in fields(PartyStatus))})


def encode_status(status: PartyStatus) -> bytes:
    """Return the document, at most `MAX_STATUS_BYTES` long."""
    return bytes(msgpack.packb({"v": STATUS_VERSION} | asdict(status)))


def decode_status_untrusted(document: bytes) -> PartyStatus:
    """The inverse of `encode_status`.

    Raises:
        FrameError: `encode_status` of this version never returns these bytes.
    """
    if len(document) > MAX_STATUS_BYTES:
        raise FrameError(f"a status over {MAX_STATUS_BYTES} bytes")
    try:
        content = msgpack.unpackb(document)
    except Exception as error:  # noqa: BLE001 - msgpack documents no closed set for hostile input
        raise FrameError(f"a status that is not msgpack ({type(error).__name__})") from None
    if type(content) is not dict or type(content.get("v")) is not int:
        raise FrameError("a status that is not a map with a version")
    if content["v"] != STATUS_VERSION:
        raise FrameError(
            f"a status of version {content['v']}, but this redislink reads version "
            f"{STATUS_VERSION}: run the same redislink version everywhere"
        )
    if set(content) != _FIELDS:
        raise FrameError("a status with missing or unknown fields")
    del content["v"]
    peers, waits = content["peers"], content["waits"]
    if type(peers) is not dict or type(waits) is not list:
        raise FrameError("a status whose peers are not a map, or whose receives are not a list")
    content["peers"] = {name: _make(PeerStatus, peer) for name, peer in peers.items()}
    content["waits"] = tuple(_make(Waiting, wait) for wait in waits)
    return PartyStatus(**content)


def _make(kind: Any, content: Any) -> Any:
    if type(content) is not dict or set(content) != {f.name for f in fields(kind)}:
        raise FrameError("a status with missing or unknown fields")
    return kind(**content)


def _check_party(name: Any) -> None:
    try:
        check_name(name, "party")
    except ConfigError:
        raise FrameError("a status with a party name that is not valid") from None


def _check_tag(tag: Any) -> None:
    if type(tag) is str and 1 <= len(tag) <= MAX_TAG_BYTES:
        try:
            if len(tag.encode()) <= MAX_TAG_BYTES:
                return
        except UnicodeEncodeError:
            pass
    raise FrameError("a status with a tag that is not valid")


def _check_state(state: Any, known: frozenset[str]) -> None:
    if type(state) is not str or state not in known:
        raise FrameError("a status with an unknown state")


def _check_count(value: Any, what: str) -> None:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise FrameError(f"a status in which {what} is not a whole number from 0")


def _check_seconds(value: Any, what: str) -> None:
    if type(value) is not float or not math.isfinite(value) or not 0 <= value <= _LONGEST:
        raise FrameError(f"a status in which {what} is not a number of seconds")
