"""The frame codec: one table drives encoder and decoder; any bytes give a frame or FrameError."""

import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol import frame as f

NO_ACK = f.AckState(0)
SOME_ACK = f.AckState(5, ((7, 9), (11, 11)), 2)
TOP = (1 << 63) - 1
VERSION = bytes([f.PROTOCOL_VERSION])
DIGEST, INSTANCE = bytes(range(32)), b"instance"

FRAMES = {
    "hello": (f.Hello(DIGEST, INSTANCE), b""),
    "hello with echo": (f.Hello(DIGEST, INSTANCE, b"ecnatsni"), b""),
    "hello of who has met all": (f.Hello(DIGEST, INSTANCE, INSTANCE, roster=b"r" * 16), b""),
    "hello, sealed, step 0": (f.Hello(DIGEST, INSTANCE, sealed=True), b""),
    "hello, sealed, step 1": (f.Hello(DIGEST, INSTANCE, INSTANCE, sealed=True, step=1), b"k" * 64),
    "hello, sealed, step 3": (f.Hello(DIGEST, INSTANCE, INSTANCE, sealed=True, step=3), b"k" * 32),
    "data": (f.Data(1), b"payload"),
    "empty data": (f.Data(1), b""),
    "whole message with an ack": (f.Data(7, encoding=f.Encoding.VALUE, acked=6), b"payload"),
    "highest numbers": (f.Data(TOP, 1, 2, TOP - 2, acked=TOP), b"x"),
    "last chunk of a value": (f.Data(12, 2, 3, 4, f.Encoding.VALUE, 5), b"\0" * 1000),
    "ack": (f.Ack(SOME_ACK), b""),
    "ack that asks": (f.Ack(SOME_ACK, every=64), b""),
    "probe": (f.Probe(("root:P2P-7:0->1",), SOME_ACK), b""),
    "probe of many tags": (f.Probe(tuple(f"tag {n}" for n in range(99)), SOME_ACK), b""),
    "probe that complains": (f.Probe(("t", "\u00fc"), SOME_ACK, f.Says.LOST), b""),
    "probe answered": (f.Probe(("t",), NO_ACK, f.Says.NOT_SENT), b""),
    "heartbeat": (f.Heartbeat(SOME_ACK, silence_ms=60_000), b""),
    "abort": (f.Abort("ValueError: no such column: 'age'"), b""),
    "abort that may pass": (f.Abort("bob was last heard 30.1 s ago", retryable=True), b""),
    "fin": (f.Fin(12, SOME_ACK), b""),
    "sealed": (f.Sealed(1), b"\0ciphertext\xff"),
    "move": (f.Move(0, 0, 2), b""),
    "move, highest": (f.Move(f.MAX_GENERATION, 15, f.MAX_BROKERS, answer=True), b""),
    "sealed, highest": (f.Sealed(TOP), b"x" * 16),
    "fragment": (f.Fragment(7, 1, 3), b"part"),
}
CASES = [pytest.param(*case, id=name) for name, case in FRAMES.items()]


@pytest.mark.parametrize(("frame", "body"), CASES)
def test_round_trip(frame, body):
    element = f.encode(frame, body)
    decoded, decoded_body = f.decode_untrusted(element)
    assert decoded == frame
    assert bytes(decoded_body) == body
    assert f.is_fragment(element) is (type(frame) is f.Fragment)


HELLO_FIELDS = "c420" + DIGEST.hex() + "c408" + INSTANCE.hex()
ACK_FIELDS = "9305" + "92" + "920709" + "920b0b" + "02"
ON_THE_WIRE = {
    "hello": "053400" + "9701" + HELLO_FIELDS + "c400" + "c2" + "00" + "c400",
    "hello, sealed, step 3": "053c00" + "9701" + HELLO_FIELDS
    + "c408" + INSTANCE.hex() + "c3" + "03" + "c400",
    "whole message with an ack": "052200" + "0201" + "00000000" + "01000000"
    + "0700000000000000" + "0000000000000000" + "0600000000000000",
    "last chunk of a value": "052200" + "0201" + "02000000" + "03000000"
    + "0c00000000000000" + "0400000000000000" + "0500000000000000",
    "ack": "050d00" + "9303" + ACK_FIELDS + "00",
    "probe answered": "050a00" + "9404" + "91" + "a174" + "9300" + "90" + "00" + "03",
    "heartbeat": "050f00" + "9305" + ACK_FIELDS + "cdea60",
    "abort": "052600" + "9306" + "d921" + b"ValueError: no such column: 'age'".hex() + "c2",
    "fin": "050e00" + "9407" + "0c" + ACK_FIELDS + "c2",
    "sealed": "050300" + "9208" + "01",
    "fragment": "050500" + "9409" + "07" + "01" + "03",
    "move": "050600" + "950a" + "00" + "00" + "02" + "c2",
}  # fmt: skip
"""The headers of some of `FRAMES`. To change one, change PROTOCOL_VERSION."""


def test_the_bytes_on_the_wire():
    frames = {name: FRAMES[name][0] for name in ON_THE_WIRE}
    assert {name: f.encode_header(frame).hex() for name, frame in frames.items()} == ON_THE_WIRE
    assert {frame.kind for frame in frames.values()} == set(f.FrameKind)


@pytest.mark.parametrize(("frame", "body"), CASES)
def test_every_truncation_is_refused_or_a_shorter_body(frame, body):
    whole = f.encode(frame, body)
    header_end = len(whole) - len(body)
    for end in range(len(whole)):
        if end < header_end:
            with pytest.raises(FrameError):
                f.decode_untrusted(whole[:end])
        else:
            assert f.decode_untrusted(whole[:end]) == (frame, body[: end - header_end])


@pytest.mark.parametrize(("frame", "body"), CASES)
def test_trailing_bytes_are_a_body_or_refused(frame, body):
    whole = f.encode(frame, body) + b"x"
    if frame.has_body:
        assert f.decode_untrusted(whole) == (frame, body + b"x")
    else:
        with pytest.raises(FrameError, match="body"):
            f.decode_untrusted(whole)


@pytest.mark.parametrize(("frame", "body"), CASES)
def test_every_flipped_byte_of_the_head_gives_a_frame_or_the_one_error(frame, body):
    whole = f.encode(frame, body)
    for place in range(len(whole) - len(body)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            _decode_or_frame_error(bytes(broken))


@given(st.binary(max_size=300))
def test_any_bytes(element):
    _decode_or_frame_error(element)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=8,
)


@given(st.integers(0, 9), st.lists(json_like, max_size=7), st.binary(max_size=5))
def test_any_msgpack_header(kind, values, body):
    header = msgpack.packb([kind, *values], use_bin_type=True, unicode_errors="surrogatepass")
    if len(header) <= f.MAX_HEADER_BYTES:
        _decode_or_frame_error(VERSION + len(header).to_bytes(2, "little") + header + body)


def _decode_or_frame_error(element):
    try:
        frame, body = f.decode_untrusted(element)
    except FrameError:
        pass
    else:
        again, body_again = f.decode_untrusted(f.encode(frame, bytes(body)))
        assert (again, bytes(body_again)) == (frame, bytes(body))


@pytest.mark.parametrize(
    "header",
    [
        [],
        [99],
        ["DATA"],
        {"kind": 2},
        [2, 1, 0, 1, 0, 0, 0],
        2,
        [3, None, 0],
        [3, [1], 0],
        [3, [-1, [], 0], 0],
        [3, [True, [], 0], 0],
        [3, [1, [[2, 3]], 0], 0],
        [3, [1, [[4, 3]], 0], 0],
        [3, [1, [[3, 4], [5, 6]], 0], 0],
        [3, [1, [[3, 4, 5]], 0], 0],
        [3, [1, []], 0],
        [3, [1, [], 0], False],
        [3, [1, [], 0], -1],
        [3, [1, [], -1], 0],
        [3, [1, [], 1 << 31], 0],
        [3, [1, [], True], 0],
        [4, [], [0, [], 0], 0],
        [4, "t", [0, [], 0], 0],
        [4, [b"t"], [0, [], 0], 0],
        [4, ["t" * 513], [0, [], 0], 0],
        [4, ["t" * 500] * 6, [0, [], 0], 0],
        [4, ["t"], None, 0],
        [4, ["t"], [0, [], 0], 7],
        [4, ["t"], [0, [], 0], False],
        [4, ["t"], [0, [], 0], 0.0],
        [6, "x" * 501],
        [6, b"bytes"],
        [1, b"short", INSTANCE, b"", False, 0, b""],
        [1, DIGEST, INSTANCE, b""],
        [1, DIGEST, b"short", b"", False, 0, b""],
        [1, DIGEST, INSTANCE, b"short", False, 0, b""],
        [1, DIGEST, INSTANCE, None, False, 0, b""],
        [1, DIGEST, INSTANCE, b"", 1, 0, b""],
        [1, DIGEST, INSTANCE, b"", True, 4, b""],
        [1, DIGEST, INSTANCE, b"", True, -1, b""],
        [1, DIGEST, INSTANCE, b"", True, False, b""],
        [1, DIGEST, INSTANCE, b"", True, 0, b"short"],
        [8],
        [8, 0],
        [8, -1],
        [8, 1 << 63],
        [8, True],
        [8, 1.0],
        [8, 1, 1],
        [5, [0, []], -1],
    ],
)
def test_illegal_headers_are_refused(header):
    packed = msgpack.packb(header, use_bin_type=True)
    with pytest.raises(FrameError):
        f.decode_untrusted(VERSION + len(packed).to_bytes(2, "little") + packed)


def test_another_protocol_version_says_what_to_do():
    with pytest.raises(FrameError, match=r"version 9.*same redislink"):
        f.decode_untrusted(b"\x09" + f.encode(f.Data(1), b"x")[1:])


def test_a_header_with_too_few_fields_says_how_many():
    packed = msgpack.packb([1, DIGEST, INSTANCE])
    with pytest.raises(FrameError, match="a HELLO header with 2 fields"):
        f.decode_untrusted(VERSION + len(packed).to_bytes(2, "little") + packed)


def test_a_header_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(FrameError, match="over 4096"):
        f.decode_untrusted(VERSION + b"\xff\xff" + b"\xc0" * 70_000)


def test_illegal_frames_cannot_be_made():
    for make in (
        lambda: f.Data(0),
        lambda: f.Data(1, part=1, parts=1),
        lambda: f.Abort("x" * 501),
        lambda: f.Abort("x", 1),
        lambda: f.AckState(5, ((6, 7),)),
        lambda: f.AckState(5, (), -1),
        lambda: f.AckState(5, (), 1 << 31),
        lambda: f.Probe("t", NO_ACK),
        lambda: f.Probe((), NO_ACK),
        lambda: f.Probe(("t",), NO_ACK, True),
        lambda: f.AckState(0, tuple((2 * i + 2, 2 * i + 2) for i in range(65))),
        lambda: f.Hello(DIGEST, INSTANCE, step=4),
        lambda: f.Hello(DIGEST, INSTANCE, sealed=1),
        lambda: f.Sealed(0),
        lambda: f.encode(f.Ack(NO_ACK), b"body"),
    ):
        with pytest.raises(FrameError):
            make()


LIMITS = {
    "reason": (lambda n: f.Abort("x" * n), 500),
    "tag": (lambda n: f.Probe(("t" * n,), NO_ACK), 512),
    "silence": (lambda n: f.Heartbeat(NO_ACK, n), 86_400_000),
    "step": (lambda n: f.Hello(DIGEST, INSTANCE, step=n), 3),
    "chunks": (lambda n: f.Data(1, 0, n), 1 << 20),
    "chunk": (lambda n: f.Data(9, n, 5), 4),
    "chunk of a number": (lambda n: f.Data(3, n, 5), 2),
    "previous": (lambda n: f.Data(9, 2, 3, n), 6),
    "acked": (lambda n: f.Data(1, acked=n), TOP),
    "number": (f.Sealed, TOP),
    "fragments": (lambda n: f.Fragment(1, 0, n), 1 << 20),
    "fragment": (lambda n: f.Fragment(1, n, 3), 2),
    "ranges": (lambda n: f.AckState(0, tuple((2 * i + 2, 2 * i + 2) for i in range(n))), 64),
}


@pytest.mark.parametrize("what", LIMITS)
def test_the_most_that_a_field_may_be(what):
    make, most = LIMITS[what]
    make(most)
    with pytest.raises(FrameError):
        make(most + 1)


def test_the_least_that_a_field_may_be():
    for make, least in (
        (lambda n: f.Data(1, n), 0),
        (lambda n: f.Data(1, 0, n), 1),
        (lambda n: f.Data(1, previous=n), 0),
        (lambda n: f.Data(1, acked=n), 0),
        (lambda n: f.Fin(n, NO_ACK), 0),
        (lambda n: f.Fragment(n, 0, 1), 1),
        (lambda n: f.AckState(5, ((n, 9),)), 7),
        (lambda n: f.AckState(5, ((7, n),)), 7),
        (lambda n: f.AckState(5, ((7, 8), (n, 12))), 10),
    ):
        make(least)
        with pytest.raises(FrameError):
            make(least - 1)


def test_the_widest_ack_fits_a_header():
    ranges = tuple((TOP - 4 * i - 2, TOP - 4 * i - 1) for i in reversed(range(64)))
    widest = "\U0001f511" * f.MAX_TAG_CHARS
    for tags in f.tags_by_probe([widest, *map(str, range(3000))]):
        frame = f.Probe(tags, f.AckState(1, ranges))
        assert f.decode_untrusted(f.encode(frame)) == (frame, b"")


@pytest.mark.parametrize("size", [1, 20, 512])
def test_many_tags_go_into_few_probes(size):
    tags = [f"{n:0{size}}" for n in range(400)]
    batches = list(f.tags_by_probe(tags))
    assert [tag for batch in batches for tag in batch] == tags
    assert len(batches) <= 400 * (size + 4) / 2600 * 1.3 + 1
    assert list(f.tags_by_probe([])) == []


NUMBERS = st.one_of(st.integers(0, 3), st.integers(-(1 << 63), TOP))
DATA_HEADERS = st.builds(
    struct.Struct("<BHBBIIqqq").pack,
    st.one_of(st.just(f.PROTOCOL_VERSION), st.integers(0, 255)),
    st.one_of(st.just(f.DATA_HEADER_BYTES - 3), st.integers(0, 65_535)),
    st.one_of(st.just(2), st.integers(0, 255)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    NUMBERS,
    NUMBERS,
    NUMBERS,
)


@settings(max_examples=400)
@given(header=DATA_HEADERS, end=st.integers(0, 45))
def test_the_short_way_for_whole_messages_is_the_long_way(header, end):
    """Hostile headers too: it takes those, and only those, that the long way gives as whole."""
    element = (header + b"12345678")[:end]
    whole = f.decode_whole_header_untrusted(element)
    try:
        frame, _ = f.decode_untrusted(element)
    except FrameError:
        assert whole is None
        return
    if type(frame) is f.Data and (frame.part, frame.parts, frame.previous) == (0, 1, 0):
        assert whole == (frame.seq, frame.encoding, frame.acked)
        assert type(whole[1]) is f.Encoding
        assert f.encode_whole_header(*whole) == f.encode_header(frame) == element[:37]
    else:
        assert whole is None
