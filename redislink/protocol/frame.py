"""The frame codec: one element of a Redis list is one frame.

::

    offset  size  field
    0       1     version (PROTOCOL_VERSION)
    1       2     header length H, little endian, at most MAX_HEADER_BYTES
    3       H     header: for DATA a fixed layout, see `_DATA`; for every other kind a msgpack
                  array, [kind, field, ...], see the classes below
    3+H     rest  body: raw bytes, only in the kinds that have one

The body is outside the header, so a large one is never copied into the header and out again. DATA
has a layout of its own because every message uses it, and msgpack costs three times as much.

Rules:
- Frames are validated on construction, so this party always sends legal ones.
- `decode_untrusted` raises `FrameError` and nothing else, whatever the bytes. What it returns
  encodes to an equal frame, and it accepts no frame with bytes left over.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, TypeVar

import msgpack

from redislink.errors import FrameError

PROTOCOL_VERSION: Final = 5
MAX_HEADER_BYTES: Final = 4096
MAX_ACK_RANGES: Final = 64
MAX_PARTS: Final = 1 << 20
MAX_REASON_CHARS: Final = 500
MAX_TAG_CHARS: Final = 512
MAX_GENERATION: Final = 1 << 53
MAX_BROKERS: Final = 16
MAX_EDITION: Final = (1 << 31) - 1
_MAX_TAGS_BYTES: Final = 2600
"""What the tags of one `Probe` may take of its header, so that the longest ack still fits."""
_TAG_OVERHEAD: Final = 3
_MAX_NUMBER: Final = (1 << 63) - 1
_PREFIX: Final = struct.Struct("<BH").pack
_UNPACK_PREFIX: Final = struct.Struct("<BH").unpack_from
_PREFIX_BYTES: Final = 3
# Version, H, kind, encoding (and `_APART`), part, parts, seq, previous, acked: little endian,
# no padding.
_DATA: Final = struct.Struct("<BHBBIIqqq")
_PACK_DATA: Final = _DATA.pack
_UNPACK_DATA: Final = _DATA.unpack_from
DATA_HEADER_BYTES: Final = _DATA.size
"""Offset of the body in a DATA frame."""
_DATA_H: Final = DATA_HEADER_BYTES - _PREFIX_BYTES
_APART: Final = 2
"""Added to the encoding in the header of each chunk of a message whose rest travels apart."""

BytesLike = bytes | bytearray | memoryview


class FrameKind(enum.IntEnum):
    """What a frame is for; the first field of its header."""

    HELLO = 1
    DATA = 2
    ACK = 3
    PROBE = 4
    HEARTBEAT = 5
    ABORT = 6
    FIN = 7
    SEALED = 8
    FRAGMENT = 9
    MOVE = 10


class Encoding(enum.IntEnum):
    """What the body of a DATA frame contains: a field of the header says it, never the tag."""

    RAW = 0
    """The caller's bytes, unchanged."""
    VALUE = 1
    """A msgpack-encoded value of the communicator."""


class Says(enum.IntEnum):
    """What a `Probe` says about its tags."""

    WAITS = 0
    """I wait for the next message of each."""
    MISSES = 1
    """I wait, and my connection broke: send all again of each that the broker should have."""
    LOST = 2
    """I took an element of each from the broker that is of no use: send it again."""
    NOT_SENT = 3
    """The answer: I have nothing of these to send."""
    SENT = 4
    """The answer: the broker has had the next element of each before this frame."""
    RESENT = 5
    """The answer: likewise, but that counted as lost and was pushed again."""
    OVERDUE = 6
    """I wait, you said SENT, and nothing has come for too long since: as MISSES."""


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
    """What a receiver has, and where it listens.

    Attributes:
        cumulative: every number up to this one has arrived.
        ranges: the closed ranges of other numbers that have arrived. They are ascending, do not
            touch each other, and lie above ``cumulative + 1``.
        edition: the receiver reads the data lists of this edition; see `list_names`.
    """

    cumulative: int
    ranges: tuple[tuple[int, int], ...] = ()
    edition: int = 0

    def __post_init__(self) -> None:
        _number(self.cumulative, "cumulative ack")
        _number(self.edition, "edition", 0, MAX_EDITION)
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
        return [self.cumulative, [list(span) for span in self.ranges], self.edition]

    @classmethod
    def from_wire_untrusted(cls, value: Any) -> AckState:
        if type(value) is not list or len(value) != 3 or type(value[1]) is not list:
            raise FrameError("an ack is not a number, a list and a number")
        if any(type(span) is not list for span in value[1]):
            raise FrameError("an ack range is not a pair of numbers")
        return cls(value[0], tuple(tuple(span) for span in value[1]), value[2])


@dataclass(frozen=True, slots=True)
class Hello:
    """Announces a party to a peer; in a sealed session the body carries the key exchange.

    The header is not authenticated: it only helps to explain what is wrong.

    Attributes:
        digest: digest of the cluster file, 32 bytes; it must be the same at every party.
        instance: 8 random bytes, new in every run.
        echo: the peer's ``instance`` as last heard; empty until one is heard.
        sealed: True if the sender wants a sealed session.
        step: 0 has no body; 1, 2 and 3 are the messages of the key exchange.
        roster: 16 bytes that name the present run of every party, once the sender has met them
            all; empty before.
    """

    kind: ClassVar[FrameKind] = FrameKind.HELLO
    has_body: ClassVar[bool] = True
    digest: bytes
    instance: bytes
    echo: bytes = b""
    sealed: bool = False
    step: int = 0
    roster: bytes = b""

    def __post_init__(self) -> None:
        _fixed_bytes(self.digest, "cluster digest", 32)
        _fixed_bytes(self.instance, "instance", 8)
        _fixed_bytes(self.echo, "echo", 0, 8)
        _flag(self.sealed, "sealed")
        _number(self.step, "step", 0, 3)
        _fixed_bytes(self.roster, "roster", 0, 16)


@dataclass(frozen=True, slots=True)
class Data:
    """One chunk of one message; the body is the chunk.

    Attributes:
        seq: number of this frame among all DATA frames from this sender to this receiver,
            from 1. The chunks of one message have consecutive numbers.
        part, parts: index of this chunk, from 0, and the number of chunks in the message.
        previous: ``seq`` of the first chunk of the message before this one on the same tag,
            while that is not acked; 0 otherwise. It keeps a tag's messages in order.
        encoding: what the message contains.
        acked: the sender has received every number up to this one from the peer; 0 acks nothing.
        apart: whether all chunks but the first travel on the list of rests; see `Sending`.
    """

    kind: ClassVar[FrameKind] = FrameKind.DATA
    has_body: ClassVar[bool] = True
    seq: int
    part: int = 0
    parts: int = 1
    previous: int = 0
    encoding: Encoding = Encoding.RAW
    acked: int = 0
    apart: bool = False

    def __post_init__(self) -> None:
        _number(self.parts, "number of chunks", 1, MAX_PARTS)
        _number(self.part, "chunk index", 0, self.parts - 1)
        _number(self.seq, "frame number", self.part + 1)
        _number(self.previous, "number of the previous message", 0, self.seq - self.part - 1)
        if type(self.encoding) is not Encoding:
            raise FrameError("encoding is neither raw nor value")
        _number(self.acked, "acked number")
        _flag(self.apart, "apart")
        if self.apart and self.parts == 1:
            raise FrameError("a single chunk whose rest travels apart")

    @property
    def is_rest(self) -> bool:
        """Whether this is a chunk that travels on the list of rests."""
        return self.apart and self.part > 0


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement on its own, for when no DATA carries it.

    Attributes:
        ack: what the sender has received.
        every: the sender waits for acks: it asks for one now, and for one after every so many
            messages. 0 asks for nothing.
    """

    kind: ClassVar[FrameKind] = FrameKind.ACK
    has_body: ClassVar[bool] = False
    ack: AckState
    every: int = 0

    def __post_init__(self) -> None:
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _number(self.every, "messages between two acks")


@dataclass(frozen=True, slots=True)
class Probe:
    """Question or answer about messages that a receiver waits for.

    Attributes:
        tags: the tags of these messages, at least one; `tags_by_probe` cuts up any number.
        ack: what the sender of this frame has received.
        says: which question, or which answer.
    """

    kind: ClassVar[FrameKind] = FrameKind.PROBE
    has_body: ClassVar[bool] = False
    tags: tuple[str, ...]
    ack: AckState
    says: Says = Says.WAITS

    def __post_init__(self) -> None:
        if type(self.tags) is not tuple or not self.tags:
            raise FrameError("a probe without tags")
        for tag in self.tags:
            _text(tag, "tag", MAX_TAG_CHARS)
        if sum(map(_tag_bytes, self.tags)) > _MAX_TAGS_BYTES:
            raise FrameError("a probe with too many tags")
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        if type(self.says) is not Says:
            raise FrameError("what a probe says is not known")


def _tag_bytes(tag: str) -> int:
    return len(tag.encode()) + _TAG_OVERHEAD


def tags_by_probe(tags: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Cut tags into as many as fit into one `Probe` each."""
    batch: list[str] = []
    size = 0
    for tag in tags:
        size += _tag_bytes(tag)
        if size > _MAX_TAGS_BYTES:
            yield tuple(batch)
            batch, size = [], _tag_bytes(tag)
        batch.append(tag)
    if batch:
        yield tuple(batch)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life.

    Attributes:
        ack: what the sender has received.
        silence_ms: how long the sender expects to be silent from now on, because it compiles or
            makes shares with the GIL held; 0 if it expects no silence.
    """

    kind: ClassVar[FrameKind] = FrameKind.HEARTBEAT
    has_body: ClassVar[bool] = False
    ack: AckState
    silence_ms: int = 0

    def __post_init__(self) -> None:
        if type(self.ack) is not AckState:
            raise FrameError("ack is not an AckState")
        _number(self.silence_ms, "announced silence", 0, 86_400_000)


@dataclass(frozen=True, slots=True)
class Abort:
    """Says that the sender's run has failed.

    Attributes:
        reason: why, in one line for people.
        retryable: True if that may pass, so that the sender may start again.
    """

    kind: ClassVar[FrameKind] = FrameKind.ABORT
    has_body: ClassVar[bool] = False
    reason: str
    retryable: bool = False

    def __post_init__(self) -> None:
        _text(self.reason, "reason", MAX_REASON_CHARS)
        _flag(self.retryable, "retryable")


@dataclass(frozen=True, slots=True)
class Fin:
    """Says that the sender sends nothing after frame number ``last``.

    Attributes:
        last: number of the sender's last DATA frame.
        ack: what the sender has received.
        answer: True if this only acknowledges the peer's FIN, and the sender goes on.
    """

    kind: ClassVar[FrameKind] = FrameKind.FIN
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
        number: number of this frame among all sealed control frames from this sender to this
            receiver, from 1; also the nonce.
    """

    kind: ClassVar[FrameKind] = FrameKind.SEALED
    has_body: ClassVar[bool] = True
    number: int

    def __post_init__(self) -> None:
        _number(self.number, "number of a sealed frame", 1)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of an element that is too large for the broker; the body is that part.

    Attributes:
        number: number of the DATA frame in the element, the same in all of its fragments.
        part, parts: index of this fragment, from 0, and the number of fragments.
    """

    kind: ClassVar[FrameKind] = FrameKind.FRAGMENT
    has_body: ClassVar[bool] = True
    number: int
    part: int
    parts: int

    def __post_init__(self) -> None:
        _number(self.number, "number of a frame", 1)
        _number(self.parts, "number of fragments", 1, MAX_PARTS)
        _number(self.part, "fragment index", 0, self.parts - 1)


@dataclass(frozen=True, slots=True)
class Move:
    """Which of several brokers the session is on.

    Attributes:
        generation: of the session, which is on broker ``generation`` modulo ``brokers``.
        at: the index of the broker onto which this frame is pushed.
        brokers: how many brokers the sender has.
        answer: False asks for the receiver's generation; True answers that.
    """

    kind: ClassVar[FrameKind] = FrameKind.MOVE
    has_body: ClassVar[bool] = False
    generation: int
    at: int
    brokers: int
    answer: bool = False

    def __post_init__(self) -> None:
        _number(self.generation, "generation", 0, MAX_GENERATION)
        _number(self.brokers, "number of brokers", 2, MAX_BROKERS)
        _number(self.at, "index of a broker", 0, self.brokers - 1)
        _flag(self.answer, "answer")


class OtherVersionError(FrameError):
    """An element of another version of the protocol; ``version`` says which."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(
            f"a frame of protocol version {version}, but this redislink speaks version "
            f"{PROTOCOL_VERSION}: run the same redislink version at every party"
        )


Whole = tuple[int, Encoding, int, bytes]
"""(seq, encoding, acked, body) of a `Data` with ``parts`` 1 and ``previous`` 0."""
Frame = Hello | Data | Ack | Probe | Heartbeat | Abort | Fin | Sealed | Fragment | Move
_FrameT = TypeVar("_FrameT", bound=Frame)

_CLASSES: Final[dict[int, type[Frame]]] = {
    int(cls.kind): cls
    for cls in (Hello, Data, Ack, Probe, Heartbeat, Abort, Fin, Sealed, Fragment, Move)
}
_DATA_KIND: Final = int(FrameKind.DATA)
_ENCODINGS: Final = tuple(Encoding)
_SAYS: Final = tuple(Says)
_FIELDS: Final = {cls: tuple(f.name for f in fields(cls)) for cls in _CLASSES.values()}


def encode_header(frame: Frame) -> bytes:
    """Return the frame's bytes without its body; append the body unchanged."""
    if type(frame) is Data:
        return _PACK_DATA(
            PROTOCOL_VERSION,
            _DATA_H,
            _DATA_KIND,
            frame.encoding | _APART if frame.apart else frame.encoding,
            frame.part,
            frame.parts,
            frame.seq,
            frame.previous,
            frame.acked,
        )
    values: list[Any] = [int(frame.kind)]
    for name in _FIELDS[type(frame)]:
        value = getattr(frame, name)
        values.append(value.to_wire() if type(value) is AckState else value)
    header: bytes = msgpack.packb(values)
    size = len(header)
    if size > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {size} bytes is over {MAX_HEADER_BYTES}")
    return _PREFIX(PROTOCOL_VERSION, size) + header


def encode_whole_header(seq: int, encoding: Encoding, acked: int) -> bytes:
    """Return ``encode_header(Data(seq, encoding=encoding, acked=acked))`` without validation."""
    return _PACK_DATA(PROTOCOL_VERSION, _DATA_H, _DATA_KIND, encoding, 0, 1, seq, 0, acked)


def decode_whole_header_untrusted(element: BytesLike) -> tuple[int, Encoding, int] | None:
    """Return the arguments from which `encode_whole_header` made this header.

    Nearly every message is one chunk and follows no other of its tag: this is the short way for
    those. The body begins at `DATA_HEADER_BYTES`.

    Returns:
        (seq, encoding, acked); None if `encode_whole_header` did not make this header.
    """
    if len(element) < DATA_HEADER_BYTES:
        return None
    version, size, kind, encoding, part, parts, seq, previous, acked = _UNPACK_DATA(element)
    if (
        parts == 1
        and part == previous == 0
        and seq > 0 <= acked
        and encoding < 2
        and kind == _DATA_KIND
        and size == _DATA_H
        and version == PROTOCOL_VERSION
    ):
        return seq, _ENCODINGS[encoding], acked
    return None


_FRAGMENT: Final = bytes([0x90 | 1 + len(_FIELDS[Fragment]), int(FrameKind.FRAGMENT)])
"""Beginning of a fragment's header: msgpack's array of so many values, and the first value."""


def is_fragment(element: BytesLike) -> bool:
    """Return True if the element can only be a `Fragment`."""
    return element[_PREFIX_BYTES : _PREFIX_BYTES + 2] == _FRAGMENT


def is_rest(element: BytesLike) -> bool:
    """Return True if the element can only be a `Data` with `is_rest`."""
    if len(element) < DATA_HEADER_BYTES:
        return False
    _, size, kind, encoding, part, _, _, _, _ = _UNPACK_DATA(element)
    return bool(size == _DATA_H and kind == _DATA_KIND and encoding & _APART and part)


def encode(frame: Frame, body: BytesLike = b"") -> bytes:
    """Return the whole frame. For a large body, send `encode_header` and the body separately.

    Raises:
        FrameError: a frame of this kind has no body, and one was given.
    """
    if body and not frame.has_body:
        raise FrameError(f"a {frame.kind.name} frame has no body")
    return encode_header(frame) + body


def decode_untrusted(element: BytesLike) -> tuple[Frame, memoryview]:
    """Parse a list element.

    Returns:
        The frame, and its body as a view into ``element``; empty if the kind has none.

    Raises:
        FrameError: these bytes are not a frame; the message says why, without quoting them.
    """
    frame, header_end = decode_header_untrusted(element)
    return frame, memoryview(element)[header_end:]


def decode_header_untrusted(element: BytesLike) -> tuple[Frame, int]:
    """Parse an element like `decode_untrusted`; return the frame and the offset of its body."""
    if len(element) < _PREFIX_BYTES:
        raise FrameError(f"a frame of only {len(element)} bytes")
    version, header_bytes = _UNPACK_PREFIX(element)
    if version != PROTOCOL_VERSION:
        raise OtherVersionError(version)
    if header_bytes > MAX_HEADER_BYTES:
        raise FrameError(f"a header over {MAX_HEADER_BYTES} bytes")
    header_end = _PREFIX_BYTES + header_bytes
    if header_end > len(element):
        raise FrameError("a frame that ends inside its header")
    if header_bytes and element[_PREFIX_BYTES] == _DATA_KIND:
        if header_bytes != _DATA_H:
            raise FrameError(f"a DATA header of {header_bytes} bytes")
        _, _, _, encoding, part, parts, seq, previous, acked = _UNPACK_DATA(element)
        apart = bool(encoding & _APART)
        encoding &= ~_APART
        if encoding >= len(_ENCODINGS):
            raise FrameError("encoding is neither raw nor value")
        return Data(seq, part, parts, previous, _ENCODINGS[encoding], acked, apart), header_end
    try:
        values = msgpack.unpackb(element[_PREFIX_BYTES:header_end])
    except Exception as error:  # noqa: BLE001 - msgpack documents no closed set for hostile input
        raise FrameError(f"a header that is not msgpack ({type(error).__name__})") from None
    frame = _from_values_untrusted(values)
    if not frame.has_body and header_end != len(element):
        raise FrameError(f"a {frame.kind.name} frame with a body")
    return frame, header_end


def _from_values_untrusted(values: Any) -> Frame:
    if type(values) is not list or not values or type(values[0]) is not int:
        raise FrameError("a header that does not begin with a frame kind")
    cls = _CLASSES.get(values[0])
    if cls is None or cls is Data:
        raise FrameError(f"unknown frame kind {values[0]}")
    names = _FIELDS[cls]
    if len(values) != len(names) + 1:
        raise FrameError(f"a {cls.kind.name} header with {len(values) - 1} fields")
    arguments = dict(zip(names, values[1:], strict=True))
    if arguments.get("ack") is not None:
        arguments["ack"] = AckState.from_wire_untrusted(arguments["ack"])
    if cls is Probe:
        says = arguments["says"]
        if type(arguments["tags"]) is not list or type(says) is not int or says not in _SAYS:
            raise FrameError("a probe without a list of tags, or that says what is not known")
        arguments["tags"] = tuple(arguments["tags"])
        arguments["says"] = Says(says)
    return cls(**arguments)
