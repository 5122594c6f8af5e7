"""Status documents: every one round-trips, and whatever else the broker gives is one error."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, astuple, replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol.status import (
    MAX_STATUS_BYTES,
    MAX_WAITS,
    PARTY_STATES,
    PEER_STATES,
    STATUS_VERSION,
    PartyStatus,
    PeerStatus,
    Waiting,
    decode_status_untrusted,
    encode_status,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
tags = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)
counts = st.integers(0, (1 << 63) - 1)
seconds = st.floats(0, 1e9)
peers = st.builds(
    PeerStatus, st.sampled_from(sorted(PEER_STATES)), *[counts] * 9, seconds, st.booleans()
)
statuses = st.builds(
    PartyStatus,
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.sampled_from(sorted(PARTY_STATES)),
    seconds,
    seconds,
    counts,
    st.dictionaries(names, peers, max_size=4),
    st.lists(st.builds(Waiting, names, tags, seconds), max_size=4).map(tuple),
    seconds,
    counts,
    counts,
)
ONE = PartyStatus(
    "0123456789abcdef",
    "open",
    12.5,
    0.001,
    1,
    {"bob": PeerStatus("open", messages_sent=3, bytes_sent=300, last_heard_seconds=0.5)},
    (Waiting("bob", "t", 2.0),),
    resumed_steps=12,
)
WIRE = msgpack.unpackb(encode_status(ONE))


@given(statuses)
def test_every_status_round_trips(status):
    assert decode_status_untrusted(encode_status(status)) == status


@given(
    st.binary(max_size=300)
    | st.integers(0, len(encode_status(ONE)) - 1).map(lambda n: encode_status(ONE)[:n])
)
def test_any_bytes_give_a_status_or_the_one_error(document):
    try:
        status = decode_status_untrusted(document)
    except FrameError:
        return
    assert decode_status_untrusted(encode_status(status)) == status


@pytest.mark.parametrize(
    "changes",
    [
        {"v": STATUS_VERSION - 1},
        {"v": STATUS_VERSION + 1},
        {"v": True},
        {"v": "1"},
        {"more": 1},
        {"instance": "0123456789ABCDEF"},
        {"instance": b"0123456789abcdef"},
        {"state": "up"},
        {"state": []},
        {"running_seconds": float("nan")},
        {"running_seconds": -1.0},
        {"running_seconds": 1},
        {"round_trip_seconds": float("inf")},
        {"reconnects": -1},
        {"reconnects": 1 << 63},
        {"reconnects": True},
        {"broker_away_seconds": -1.0},
        {"broker_away_seconds": None},
        {"broker_number": -1},
        {"broker_number": 1.0},
        {"resumed_steps": -1},
        {"resumed_steps": "1"},
        {"peers": {"bob": WIRE["peers"]["bob"] | {"is_silent": 1}}},
        {"peers": []},
        {"peers": {"bob": None}},
        {"peers": {"bob": {}}},
        {"peers": {"bob": WIRE["peers"]["bob"] | {"state": "joining"}}},
        {"peers": {"bob": WIRE["peers"]["bob"] | {"bytes_sent": 1.0}}},
        {"peers": {"bob": WIRE["peers"]["bob"] | {"payload": b"x"}}},
        {"peers": {"b*b": WIRE["peers"]["bob"]}},
        {"peers": {"": WIRE["peers"]["bob"]}},
        {"peers": {f"p{n}": WIRE["peers"]["bob"] for n in range(64)}},
        {"waits": {}},
        {"waits": [["bob", "t", 1.0]]},
        {"waits": [{"peer": "bob", "tag": "", "seconds": 1.0}]},
        {"waits": [{"peer": "bob", "tag": "ü" * 257, "seconds": 1.0}]},
        {"waits": [{"peer": "bob", "tag": b"t", "seconds": 1.0}]},
        {"waits": [{"peer": "a b", "tag": "t", "seconds": 1.0}]},
        {"waits": [{"peer": "bob", "tag": "t", "seconds": "1"}]},
        {"waits": WIRE["waits"] * (MAX_WAITS + 1)},
    ],
)
def test_what_is_not_as_it_must_be_is_refused(changes):
    assert decode_status_untrusted(msgpack.packb(WIRE)) == ONE
    with pytest.raises(FrameError):
        decode_status_untrusted(msgpack.packb(WIRE | changes))


def test_nothing_has_happened_with_a_peer_of_which_only_the_state_is_known():
    peer = PeerStatus("missing")
    assert set(astuple(peer)[1:]) == {0}
    with pytest.raises(FrozenInstanceError):
        peer.state = "open"


@pytest.mark.parametrize("document", [b"", b"\xc1", b"\x91" * 5000, b"\x80", msgpack.packb([1])])
def test_what_is_no_map_is_refused(document):
    with pytest.raises(FrameError):
        decode_status_untrusted(document)


def test_the_largest_is_within_its_limit():
    peer = PeerStatus("peer closed", *[(1 << 63) - 1] * 9, last_heard_seconds=0.1)
    status = replace(
        ONE,
        peers={f"{n:064}": peer for n in range(63)},
        waits=tuple(Waiting("x" * 64, "ü" * 256, 0.1) for _ in range(MAX_WAITS)),
    )
    document = encode_status(status)
    assert len(document) <= MAX_STATUS_BYTES
    assert decode_status_untrusted(document) == status
    with pytest.raises(FrameError, match="over"):
        decode_status_untrusted(bytes(MAX_STATUS_BYTES + 1))
