"""The frame codec: one element of a Redis list is one frame.

::

    offset  size  field
    0       1     version (PROTOCOL_VERSION)
    1       2     header length H, little endian, at most MAX_HEADER_BYTES
    3       H     header: a msgpack array, [kind, field, ...], see the classes below
    3+H     rest  body: raw bytes, only in the kinds that have one

The body stands outside msgpack, so that a large one is never copied into a header and back.

Rules:
- Frames are validated on construction, so that what this party sends is always legal.
- `decode_untrusted` raises `FrameError` and nothing else, whatever the bytes; what it returns
  encodes to a frame that is equal, and no frame that it accepts has bytes left over.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, TypeVar

import msgpack

from redislink.errors import FrameError

PROTOCOL_VERSION: Final = 1
MAX_HEADER_BYTES: Final = 4096
MAX_ACK_RANGES: Final = 64
MAX_PARTS: Final = 1 << 20
MAX_REASON_CHARS: Final = 500
MAX_TAG_CHARS: Final = 512
_MAX_NUMBER: Final = (1 << 63) - 1
# One call of it is one step for the interpreter, so threads may share it.
_pack: Final = msgpack.Packer(autoreset=True).pack
_unpack: Final = msgpack.unpackb
_PREFIX: Final = struct.Struct("<BH").pack
_UNPACK_PREFIX: Final = struct.Struct("<BH").unpack_from
_PREFIX_BYTES: Final = 3

BytesLike = bytes | bytearray | memoryview


class Kind(enum.IntEnum):
    """What a frame is for; the first field of its header."""

    HELLO = 1
    DATA = 2
    ACK = 3
    PROBE = 4
    HEARTBEAT = 5
    ABORT = 6
    FIN = 7
    SEALED = 8


class Encoding(enum.IntEnum):
    """What the body of a DATA frame is, told by a flag and never by its tag."""

    RAW = 0
    """The caller's bytes, unchanged."""
    VALUE = 1
    """A msgpack-encoded value of the communicator."""


def _number(value: Any, what: str, low: int = 0, high: int = _MAX_NUMBER) -> None:
    if type(value) is not int or not low <= value <= high:
        raise FrameError(f"{what} is not a whole number from {low} to {high}")


def _text(value: Any, what: str, longest: int) -> None:
    if type(value) is not str or len(value) > longest:
        raise FrameError(f"{what} is not a text of at most {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FrameError(f"{what} is not valid Unicode") from None


def _fixed_bytes(value: Any, what: str, *lengths: int) -> None:
    if type(value) is not bytes or len(value) not in lengths:
        raise FrameError(f"{what} does not have {' or '.join(map(str, lengths))} bytes")


def _flag(value: Any, what: str) -> None:
    if type(value) is not bool:
        raise FrameError(f"{what} is not a boolean")


@dataclass(frozen=True, slots=True)
class AckState:
    """What a receiver has: every number up to ``cumulative``, and the closed ``ranges``.

    Ranges are ascending, do not touch each other, and lie above ``cumulative + 1``.
    """

    cumulative: int
    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if (
            self.ranges == ()
            and type(self.ranges) is tuple
            and type(self.cumulative) is int
            and 0 <= self.cumulative <= _MAX_NUMBER
        ):
            return  # nearly always
        _number(self.cumulative, "cumulative ack")
        if type(self.ranges) is not tuple or len(self.ranges) > MAX_ACK_RANGES:
            raise FrameError(f"an ack has more than {MAX_ACK_RANGES} ranges")
        floor = self.cumulative
        for span in self.ranges:
            if type(span) is not tuple or len(span) != 2:
                raise FrameError("an ack range is not a pair of numbers")
            first, last = span
            _number(first, "start of an ack range", floor + 2)
            _number(last, "end of an ack range", first)
            floor = last

    def to_wire(self) -> list[Any]:
        return [self.cumulative, [list(span) for span in self.ranges]]

    @classmethod
    def from_wire_untrusted(cls, value: Any) -> AckState:
        if type(value) is not list or len(value) != 2 or type(value[1]) is not list:
            raise FrameError("an ack is not a pair of a number and a list")
        number, ranges = value
        if not ranges and type(number) is int and 0 <= number <= _MAX_NUMBER:  # nearly always
            return up_to(number)
        if any(type(span) is not list for span in value[1]):
            raise FrameError("an ack range is not a pair of numbers")
        return cls(value[0], tuple(tuple(span) for span in value[1]))


@dataclass(frozen=True, slots=True)
class Hello:
    """Says who is there; in a sealed session the body carries the key exchange.

    What stands in the header is not authenticated: it only helps to say what is wrong.

    Attributes:
        digest: 32 bytes, of the cluster file's content; the peers' must be equal.
        instance: 8 random bytes, new in every run.
        echo: the peer's ``instance`` as last heard, empty while nothing was heard.
        sealed: whether the sender wants a sealed session.
        step: 0 has no body; 1, 2 and 3 are the messages of the key exchange.
    """

    kind: ClassVar[Kind] = Kind.HELLO
    has_body: ClassVar[bool] = True
    digest: bytes
    instance: bytes
    echo: bytes = b""
    sealed: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        _fixed_bytes(self.digest, "cluster digest", 32)
        _fixed_bytes(self.instance, "instance", 8)
        _fixed_bytes(self.echo, "echo", 0, 8)
        _flag(self.sealed, "sealed")
        _number(self.step, "step", 0, 3)


@dataclass(frozen=True, slots=True)
class Data:
    """One chunk of one message; the body is the chunk.

    Attributes:
        seq: number of this frame among all DATA frames from this sender to this receiver,
            from 1. The chunks of one message have consecutive numbers.
        part, parts: which chunk of how many this is, from 0.
        previous: ``seq`` of the first chunk of the message before this one on the same tag,
            while that is not acked; 0 otherwise. Keeps a tag's messages in order.
        encoding: what the message is.
        ack: what this sender has received from the peer, piggybacked; None says nothing.
    """

    kind: ClassVar[Kind] = Kind.DATA
    has_body: ClassVar[bool] = True
    seq: int
    part: int = 0
    parts: int = 1
    previous: int = 0
    encoding: Encoding = Encoding.RAW
    ack: AckState | None = None

    def __post_init__(self) -> None:
        if (  # nearly always, and once for each message: the rules below, all at once
            type(self.seq) is type(self.part) is type(self.parts) is type(self.previous) is int
            and 0 <= self.part < self.parts <= MAX_PARTS
            and 0 <= self.previous < self.seq - self.part
            and self.seq <= _MAX_NUMBER
            and type(self.encoding) is Encoding
            and (self.ack is None or type(self.ack) is AckState)
        ):
            return
        _number(self.parts, "number of chunks", 1, MAX_PARTS)
        _number(self.part, "chunk index", 0, self.parts - 1)
        _number(self.seq, "frame number", self.part + 1)
        _number(self.previous, "number of the previous message", 0, self.seq - self.part - 1)
        if type(self.encoding) is not Encoding:
            raise FrameError("encoding is neither raw nor value")
        if self.ack is not None and type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement on its own, when there is no DATA to carry it.

    Attributes:
        wanted: the sender waits for the peer's acks, and asks it not to delay the next ones.
    """

    kind: ClassVar[Kind] = Kind.ACK
    has_body: ClassVar[bool] = False
    ack: AckState
    wanted: bool = False

    def __post_init__(self) -> None:
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _flag(self.wanted, "wanted")


@dataclass(frozen=True, slots=True)
class Probe:
    """From a blocked receiver: "I wait for ``tag``, and have this"; or the answer to one.

    Attributes:
        answer: False asks; True says "not sent yet" (what was sent is resent instead).
    """

    kind: ClassVar[Kind] = Kind.PROBE
    has_body: ClassVar[bool] = False
    tag: str
    ack: AckState
    answer: bool = False

    def __post_init__(self) -> None:
        _text(self.tag, "tag", MAX_TAG_CHARS)
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _flag(self.answer, "answer")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sign of life.

    Attributes:
        silence_ms: how long this party expects to be silent from now (it compiles, or makes
            shares, with the GIL held); 0 when no silence is planned.
    """

    kind: ClassVar[Kind] = Kind.HEARTBEAT
    has_body: ClassVar[bool] = False
    ack: AckState
    silence_ms: int = 0

    def __post_init__(self) -> None:
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _number(self.silence_ms, "announced silence", 0, 86_400_000)


@dataclass(frozen=True, slots=True)
class Abort:
    """The sender's run has failed; ``reason`` is one line for a person."""

    kind: ClassVar[Kind] = Kind.ABORT
    has_body: ClassVar[bool] = False
    reason: str

    def __post_init__(self) -> None:
        _text(self.reason, "reason", MAX_REASON_CHARS)


@dataclass(frozen=True, slots=True)
class Fin:
    """The sender sends nothing after frame number ``last``, and has received ``ack``.

    Attributes:
        answer: True only acknowledges the peer's FIN; its sender goes on.
    """

    kind: ClassVar[Kind] = Kind.FIN
    has_body: ClassVar[bool] = False
    last: int
    ack: AckState
    answer: bool = False

    def __post_init__(self) -> None:
        _number(self.last, "last frame number")
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _flag(self.answer, "answer")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A control frame in a sealed session; the body is the whole frame, encrypted.

    Attributes:
        number: counts such frames from this sender to this receiver, from 1; the nonce.
    """

    kind: ClassVar[Kind] = Kind.SEALED
    has_body: ClassVar[bool] = True
    number: int

    def __post_init__(self) -> None:
        _number(self.number, "number of a sealed frame", 1)


# Construction without validation, where each message passes and the values are legal as they are.
_RAW: Final = Encoding.RAW
_new: Final = object.__new__


def _setter(cls: type, name: str) -> Callable[[Any, Any], None]:
    """Sets a field of a frozen dataclass with slots."""
    setter: Callable[[Any, Any], None] = getattr(cls, name).__set__
    return setter


_set_seq, _set_part, _set_parts = (_setter(Data, n) for n in ("seq", "part", "parts"))
_set_previous, _set_encoding = _setter(Data, "previous"), _setter(Data, "encoding")
_set_ack = _setter(Data, "ack")
_set_cumulative, _set_ranges = _setter(AckState, "cumulative"), _setter(AckState, "ranges")


def whole_message(seq: int, encoding: Encoding, ack: AckState | None) -> Data:
    """``Data(seq, 0, 1, 0, encoding, ack)``, from legal values."""
    frame = _new(Data)
    _set_seq(frame, seq)
    _set_part(frame, 0)
    _set_parts(frame, 1)
    _set_previous(frame, 0)
    _set_encoding(frame, encoding)
    _set_ack(frame, ack)
    return frame


def up_to(cumulative: int) -> AckState:
    """``AckState(cumulative)``, from a legal number."""
    state = _new(AckState)
    _set_cumulative(state, cumulative)
    _set_ranges(state, ())
    return state


Frame = Hello | Data | Ack | Probe | Heartbeat | Abort | Fin | Sealed
_FrameT = TypeVar("_FrameT", bound=Frame)

_CLASSES: Final[dict[int, type[Frame]]] = {
    int(cls.kind): cls for cls in (Hello, Data, Ack, Probe, Heartbeat, Abort, Fin, Sealed)
}
_FIELDS: Final = {cls: tuple(f.name for f in fields(cls)) for cls in _CLASSES.values()}


def encode_header(frame: Frame) -> bytes:
    """All of the frame's bytes but its body, which is to follow them unchanged."""
    if type(frame) is Data:  # nearly always
        f, ack = frame, frame.ack
        header: bytes = _pack(
            (
                2,
                f.seq,
                f.part,
                f.parts,
                f.previous,
                f.encoding,
                ack and (ack.cumulative, ack.ranges),
            )
        )
    else:
        values: list[Any] = [int(frame.kind)]
        for name in _FIELDS[type(frame)]:
            value = getattr(frame, name)
            values.append(value.to_wire() if type(value) is AckState else value)
        header = msgpack.packb(values)
    size = len(header)
    if size > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {size} bytes is over {MAX_HEADER_BYTES}")
    return _PREFIX(PROTOCOL_VERSION, size) + header


def encode(frame: Frame, body: BytesLike = b"") -> bytes:
    """The whole frame. For large bodies send `encode_header` and the body one after the other.

    Raises:
        FrameError: a body for a kind that has none.
    """
    if body and not frame.has_body:
        raise FrameError(f"a {frame.kind.name} frame has no body")
    return encode_header(frame) + body


def decode_untrusted(element: BytesLike) -> tuple[Frame, memoryview]:
    """Take a list element apart.

    Returns:
        The frame and its body, a view into ``element`` (empty where the kind has none).

    Raises:
        FrameError: these bytes are not a frame; the message says why, without quoting them.
    """
    frame, header_end = decode_header_untrusted(element)
    return frame, memoryview(element)[header_end:]


def decode_header_untrusted(element: BytesLike) -> tuple[Frame, int]:
    """As `decode_untrusted`, but instead of the body it gives the offset at which that begins."""
    if len(element) < _PREFIX_BYTES:
        raise FrameError(f"{len(element)} bytes are too few for a frame")
    version, header_bytes = _UNPACK_PREFIX(element)
    if version != PROTOCOL_VERSION:
        raise FrameError(
            f"frame of protocol version {version}, this redislink speaks {PROTOCOL_VERSION}: "
            "run the same redislink at every party"
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise FrameError(f"a header over {MAX_HEADER_BYTES} bytes")
    header_end = _PREFIX_BYTES + header_bytes
    if header_end > len(element):
        raise FrameError("a frame that ends inside its header")
    try:
        values = _unpack(element[_PREFIX_BYTES:header_end])
    except Exception as error:  # noqa: BLE001 - msgpack documents no closed set for hostile input
        raise FrameError(f"a header that is not msgpack ({type(error).__name__})") from None
    if type(values) is list and len(values) == 7 and values[0] == 2:
        kind, seq, part, parts, previous, encoding, ack = values
        if (  # DATA of one chunk, which nearly every frame is: as in `_from_values_untrusted`
            part == 0
            and parts == 1
            and previous == 0
            and encoding == 0
            and type(kind) is type(part) is type(parts) is type(previous) is type(encoding) is int
            and type(seq) is int
            and 0 < seq <= _MAX_NUMBER
        ):
            if ack is not None:
                ack = AckState.from_wire_untrusted(ack)
            return whole_message(seq, _RAW, ack), header_end
    frame = _from_values_untrusted(values)
    if not frame.has_body and header_end != len(element):
        raise FrameError(f"a {frame.kind.name} frame with a body")
    return frame, header_end


def _from_values_untrusted(values: Any) -> Frame:
    if type(values) is not list or not values or type(values[0]) is not int:
        raise FrameError("a header that is not an array that begins with a kind")
    cls = _CLASSES.get(values[0])
    if cls is None:
        raise FrameError(f"unknown frame kind {values[0]}")
    names = _FIELDS[cls]
    if len(values) != len(names) + 1:
        raise FrameError(f"a {cls.kind.name} header with {len(values) - 1} fields")
    arguments = dict(zip(names, values[1:], strict=True))
    if arguments.get("ack") is not None:
        arguments["ack"] = AckState.from_wire_untrusted(arguments["ack"])
    if cls is Data:
        try:
            if type(arguments["encoding"]) is not int:
                raise ValueError
            arguments["encoding"] = Encoding(arguments["encoding"])
        except ValueError:
            raise FrameError("encoding is neither raw nor value") from None
    return cls(**arguments)
