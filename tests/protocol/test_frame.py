"""The frame codec: one table drives encoder and decoder; any bytes give a frame or FrameError."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol import frame as f

NO_ACK = f.AckState(0)
SOME_ACK = f.AckState(5, ((7, 9), (11, 11)))
DIGEST, INSTANCE = bytes(range(32)), b"instance"

FRAMES = {
    "hello": (f.Hello(DIGEST, INSTANCE), b""),
    "hello with echo": (f.Hello(DIGEST, INSTANCE, b"ecnatsni"), b""),
    "hello, sealed, step 0": (f.Hello(DIGEST, INSTANCE, sealed=True), b""),
    "hello, sealed, step 1": (f.Hello(DIGEST, INSTANCE, INSTANCE, sealed=True, step=1), b"k" * 64),
    "hello, sealed, step 3": (f.Hello(DIGEST, INSTANCE, INSTANCE, sealed=True, step=3), b"k" * 32),
    "data": (f.Data(1), b"payload"),
    "empty data": (f.Data(1), b""),
    "last chunk of a value": (f.Data(12, 2, 3, 4, f.Encoding.VALUE, SOME_ACK), b"\0" * 1000),
    "ack": (f.Ack(SOME_ACK), b""),
    "probe": (f.Probe("root:P2P-7:0->1", SOME_ACK), b""),
    "probe answered": (f.Probe("t", NO_ACK, answer=True), b""),
    "heartbeat": (f.Heartbeat(SOME_ACK, silence_ms=60_000), b""),
    "abort": (f.Abort("ValueError: no such column: 'age'"), b""),
    "fin": (f.Fin(12, SOME_ACK), b""),
    "sealed": (f.Sealed(1), b"\0ciphertext\xff"),
    "sealed, highest": (f.Sealed((1 << 63) - 1), b"x" * 16),
}
CASES = [pytest.param(*case, id=name) for name, case in FRAMES.items()]


@pytest.mark.parametrize(("frame", "body"), CASES)
def test_round_trip(frame, body):
    decoded, decoded_body = f.decode_untrusted(f.encode(frame, body))
    assert decoded == frame
    assert bytes(decoded_body) == body


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
        _decode_or_frame_error(b"\1" + len(header).to_bytes(2, "little") + header + body)


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
        [2, 1, 0, 1, 0, 0],
        [2, 1, 0, 1, 0, 0, None, None],
        [2, 0, 0, 1, 0, 0, None],
        [2, True, 0, 1, 0, 0, None],
        [2, 1, 1, 1, 0, 0, None],
        [2, 1, 0, 0, 0, 0, None],
        [2, 1, 0, 1, 1, 0, None],
        [2, 1, 0, 1, 0, 2, None],
        [2, 1, 0, 1, 0, True, None],
        [2, 1, 0, 1, 0, 0, [1]],
        [2, 1, 0, 1, 0, 0, [1, [[2, 3]]]],
        [2, 1, 0, 1, 0, 0, [1, [[4, 3]]]],
        [2, 1, 0, 1, 0, 0, [1, [[3, 4], [5, 6]]]],
        [2, 1, 0, 1, 0, 0, [1, [[3, 4, 5]]]],
        [3, None],
        [6, "x" * 501],
        [6, b"bytes"],
        [1, b"short", INSTANCE, b"", False, 0],
        [1, DIGEST, INSTANCE, b""],
        [1, DIGEST, b"short", b"", False, 0],
        [1, DIGEST, INSTANCE, b"short", False, 0],
        [1, DIGEST, INSTANCE, None, False, 0],
        [1, DIGEST, INSTANCE, b"", 1, 0],
        [1, DIGEST, INSTANCE, b"", True, 4],
        [1, DIGEST, INSTANCE, b"", True, -1],
        [1, DIGEST, INSTANCE, b"", True, False],
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
        f.decode_untrusted(b"\1" + len(packed).to_bytes(2, "little") + packed)


def test_another_protocol_version_says_what_to_do():
    with pytest.raises(FrameError, match=r"version 9.*same redislink"):
        f.decode_untrusted(b"\x09" + f.encode(f.Data(1), b"x")[1:])


def test_a_header_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(FrameError, match="over 4096"):
        f.decode_untrusted(b"\1\xff\xff" + b"\xc0" * 70_000)


def test_illegal_frames_cannot_be_made():
    for make in (
        lambda: f.Data(0),
        lambda: f.Data(1, part=1, parts=1),
        lambda: f.Abort("x" * 501),
        lambda: f.AckState(5, ((6, 7),)),
        lambda: f.AckState(0, tuple((2 * i + 2, 2 * i + 2) for i in range(65))),
        lambda: f.Hello(DIGEST, INSTANCE, step=4),
        lambda: f.Hello(DIGEST, INSTANCE, sealed=1),
        lambda: f.Sealed(0),
        lambda: f.encode(f.Ack(NO_ACK), b"body"),
    ):
        with pytest.raises(FrameError):
            make()


def test_the_widest_ack_fits_a_header():
    top = (1 << 63) - 1
    ranges = tuple((top - 4 * i - 2, top - 4 * i - 1) for i in reversed(range(64)))
    frame = f.Data(top, 2, 3, 1, f.Encoding.VALUE, f.AckState(1, ranges))
    assert f.decode_untrusted(f.encode(frame)) == (frame, b"")
