"""Values on the wire: what goes in comes out, and nothing else does harm."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import struct
import tracemalloc
from collections import OrderedDict, namedtuple
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redislink import PayloadTypeError, UsageError, ValueDecodeError, values
from redislink.values import decode_value_untrusted, encode_value, register_dataclass

DTYPES = (
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()  # noqa: SIM905
)


@register_dataclass
@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0
    unit: ClassVar[str] = "m"


@register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    count: int

    def __post_init__(self) -> None:
        if type(self.count) is not int:
            raise TypeError("count is an int")


@register_dataclass
@dataclasses.dataclass
class Empty:
    pass


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all the way down; nan is nan, -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(k) is type(j) for k, j in zip(a, b, strict=True))
            and all(same(a[k], b[k]) for k in a)
        )
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


def round_trip(value: Any) -> Any:
    return decode_value_untrusted(encode_value(value))


arrays = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text()
    | st.binary()
    | arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0])
)
keys = st.text() | st.integers(-(1 << 63), (1 << 64) - 1)
anything = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
        | st.builds(Point, inner, inner)
        | st.builds(Checked, count=st.integers())
        | st.builds(Empty)
    ),
    max_leaves=20,
)


class TestRoundTrip:
    @settings(max_examples=120)
    @given(anything)
    def test_every_value(self, value: Any) -> None:
        assert same(round_trip(value), value)

    @pytest.mark.parametrize(
        "value",
        [
            0, -1, 127, 128, -32, -33, 255, 256, 1 << 32, (1 << 64) - 1, 1 << 64, -(1 << 63),
            -(1 << 63) - 1, 1 << 9000, -1 << 9000, math.inf, -0.0, math.nan, "", "ü" * 40,
            "x" * 70_000, b"", b"x" * 300, b"x" * 70_000, [], (), {}, [()], ([],), [None] * 20,
            list(range(70_000)), [1 << 70, 2], tuple(range(20)), {1: 1, "1": 2, -1: 3},
            {str(i): i for i in range(20)}, dict.fromkeys(range(70_000)), Point((1,), [2]), Empty(),
            [Point(1, Point(2, Empty()))], Checked(count=3),
        ],
        ids=lambda value: repr(value)[:25] if type(value) is not int else None,
    )  # fmt: skip
    def test_each_form_of_msgpack(self, value: Any) -> None:
        assert same(round_trip(value), value)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3), (1,) * 20])
    def test_arrays_of_each_dtype(self, dtype: str, shape: tuple[int, ...]) -> None:
        array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        got = round_trip(array)
        assert same(got, array)
        assert got.dtype.isnative
        assert same(round_trip(array.dtype.type(1)), array.dtype.type(1))

    @pytest.mark.parametrize(
        "array",
        [
            np.arange(12).reshape(3, 4)[::2, ::-1],
            np.asfortranarray(np.arange(12.0).reshape(3, 4)),
            np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
            np.broadcast_to(np.float32(3), (2, 3)),
            np.arange(5, dtype=">i8"),
            np.array(5, dtype=">f4"),
            np.arange(6, dtype=">u2").reshape(2, 3).T,
            np.frombuffer(b"\0" * 17, np.uint8)[1:].view(np.int64),
        ],
        ids=["strided", "fortran", "transposed", "broadcast", "big", "big0d", "bigT", "unaligned"],
    )
    def test_memory_layout_is_normalised(self, array: Any) -> None:
        got = round_trip(array)
        assert np.array_equal(got, array)
        assert got.shape == array.shape
        assert got.dtype == array.dtype.newbyteorder("=")
        assert got.flags.c_contiguous

    def test_a_bool_array_of_other_bytes_is_normalised(self) -> None:
        assert round_trip(np.array([0, 1, 7], np.uint8).view(bool)).tobytes() == b"\0\1\1"

    def test_a_memmap_arrives_as_an_array(self, tmp_path: Any) -> None:
        np.save(tmp_path / "a.npy", np.arange(4))
        mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
        assert same(round_trip(mapped), np.arange(4))

    def test_what_has_array_arrives_as_an_array(self) -> None:
        class Foreign:
            def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
                return np.arange(3, dtype=np.int16)

        assert same(round_trip([Foreign()]), [np.arange(3, dtype=np.int16)])

    @pytest.mark.slow  # imports jax
    def test_jax_arrays(self) -> None:
        jnp = pytest.importorskip("jax.numpy")
        got = round_trip({"w": jnp.ones((2, 3), jnp.float16), "b": jnp.float32(2)})
        assert same(got, {"w": np.ones((2, 3), np.float16), "b": np.array(2, np.float32)})
        with pytest.raises(PayloadTypeError, match="bfloat16"):
            encode_value(jnp.ones(2, jnp.bfloat16))

    def test_any_msgpack_reads_it(self) -> None:
        data = encode_value({"list": [1, None], "tuple": (1 << 80,), "array": np.arange(2)})
        got = msgpack.unpackb(data)
        assert got["list"] == [1, None]
        assert got["tuple"][0].code == 1 or got["tuple"][0].code == values._TUPLE
        assert got["array"].data.endswith(np.arange(2).tobytes())


class TestCopies:
    def test_arrays_are_read_only_views_into_the_message(self) -> None:
        data = encode_value(["odd length", np.arange(1000), np.ones(3, np.float32), np.int8(1)])
        for array in decode_value_untrusted(data)[1:3]:
            assert np.shares_memory(array, np.frombuffer(data, np.uint8))
            assert not array.flags.writeable
            assert array.flags.aligned
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1

    def test_a_changed_array_does_not_change_what_was_encoded(self) -> None:
        array = np.zeros(1000)
        data = encode_value(array)
        array[:] = 1
        assert not decode_value_untrusted(data).any()

    def test_encoding_copies_once_and_decoding_not_at_all(self) -> None:
        array = np.zeros(4_000_000)
        with Traced() as encoding:
            data = encode_value({"a": [array]})
        with Traced() as decoding:
            decode_value_untrusted(data)
        assert encoding.peak < 1.1 * array.nbytes
        assert decoding.peak < 100_000


class Traced:
    """Peak of Python's and numpy's memory within the block, in bytes."""

    def __enter__(self) -> Traced:
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


Pair = namedtuple("Pair", "a b")


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class NotRegistered:
    x: int = 0


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


class TestWhatDoesNotTravel:
    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (object(), "use None, bool, int"),
            ({1, 2}, "set"),
            (1j, "complex"),
            (bytearray(b"x"), "bytearray"),
            ([memoryview(b"x")], r"value\[0\] is memoryview"),
            (Pair(1, 2), "convert it to tuple"),
            (OrderedDict(), "convert it to dict"),
            (Colour.RED, "convert it to int"),
            (NotRegistered(), "register_dataclass"),
            (NotRegistered, "type"),
            (lambda: None, "function"),
            (np.array([object()]), "has dtype object"),
            (np.array(["text"]), "has dtype str"),
            (np.array([1j]), "has dtype complex128"),
            (np.longdouble(1), "has dtype longdouble|has dtype float128"),
            (np.zeros(2, [("a", "i4")]), "has dtype void"),
            (np.datetime64("2026-01-01"), "has dtype datetime64"),
            (np.array(["2026-01-01"], "M8[D]"), "has dtype datetime64"),
            (np.str_("text"), "convert it with str"),
            (np.ma.masked_array([1], [True]), "only plain arrays"),
            (np.eye(2).view(np.matrix), "only plain arrays"),
            (np.zeros((1,) * 33), "33 dimensions"),
            ("\ud800", "lone surrogate"),
            (["\ud800"], r"value\[0\] is a str with a lone surrogate"),
            ({"\ud800": 1}, r"value\{entry 0\} is a str with a lone surrogate"),
            ({1.0: 1}, "a key that is float"),
            ({True: 1}, "a key that is bool"),
            ({(1,): 1}, "a key that is tuple"),
            ({None: 1}, "a key that is NoneType"),
            ({1 << 64: 1}, "more than 64 bits"),
            ([1, (Point(0, [{"k": 1, "l": {3}}]),)], r"value\[1\]\[0\]\.y\[0\]\{entry 1\} is set"),
            (nested(values.MAX_DEPTH + 1), "nested deeper than 64"),
        ],
    )  # fmt: skip
    def test_is_refused_and_says_where(self, value: Any, said: str) -> None:
        with pytest.raises(PayloadTypeError, match=said) as caught:
            encode_value(value)
        assert "\n" not in str(caught.value)

    def test_a_value_that_holds_itself(self) -> None:
        value: list[Any] = [1]
        value.append({"again": value})
        with pytest.raises(PayloadTypeError, match="holds itself"):
            encode_value(value)

    def test_an_int_past_the_bound(self) -> None:
        for value in (
            1 << (8 * values.MAX_INT_BYTES - 1),
            (-1 << (8 * values.MAX_INT_BYTES - 1)) - 1,
        ):
            with pytest.raises(PayloadTypeError, match="65537 bytes, more than 65536"):
                encode_value(value)

    def test_what_gives_no_array(self) -> None:
        class Broken:
            def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
                raise RuntimeError("secret 42")

        with pytest.raises(PayloadTypeError, match="gives no array") as caught:
            encode_value(Broken())
        assert "secret" not in str(caught.value)

    def test_a_field_that_was_deleted(self) -> None:
        point = Point(1, 2)
        del point.x
        with pytest.raises(PayloadTypeError, match="has no field x"):
            encode_value(point)

    def test_too_many_containers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(values, "MAX_CONTAINERS", 100)
        assert len(round_trip([[]] * 99)) == 99
        data = encode_value([[]] * 99)
        with pytest.raises(PayloadTypeError, match="100 containers"):
            encode_value([[]] * 100)
        monkeypatch.setattr(values, "MAX_CONTAINERS", 99)
        with pytest.raises(ValueDecodeError, match="99 containers"):
            decode_value_untrusted(data)

    def test_no_error_holds_a_value(self) -> None:
        for value in ([{"secret": {"secret"}}], {"secret": 1, 2.5: "secret"}):
            with pytest.raises(PayloadTypeError) as caught:
                encode_value(value)
            assert "secret" not in str(caught.value)

    def test_the_bounds_themselves_travel(self) -> None:
        for value in (
            nested(values.MAX_DEPTH),
            (1 << (8 * values.MAX_INT_BYTES - 1)) - 1,
            -1 << (8 * values.MAX_INT_BYTES - 1),
            np.zeros((1,) * values.MAX_NDIM),
        ):
            assert same(round_trip(value), value)


class TestRegistration:
    def test_it_gives_the_class_back(self) -> None:
        assert Point.__name__ == "Point"

    def test_a_name_of_its_own(self) -> None:
        @dataclasses.dataclass
        class Local:
            x: int

        register_dataclass(Local, "tests.Local")
        assert b"tests.Local" in encode_value(Local(1))
        assert round_trip(Local(1)) == Local(1)

    def test_two_classes_cannot_share_a_name(self) -> None:
        register_dataclass(Point)  # the same again is no matter
        with pytest.raises(UsageError, match="is registered as 'Point' already"):
            register_dataclass(NotRegistered, "Point")

    def test_a_class_that_is_defined_anew_takes_the_place_of_the_old(self) -> None:
        def define() -> type:
            @register_dataclass
            @dataclasses.dataclass
            class Cell:
                x: int

            return Cell

        old, new = define(), define()
        assert type(round_trip(old(1))) is new
        assert type(round_trip(new(1))) is new

    @pytest.mark.parametrize(
        ("cls", "name", "said"),
        [
            (int, None, "takes a dataclass"),
            (Point(1), None, "takes a dataclass"),
            (NotRegistered, "", "1 to 255 bytes"),
            (NotRegistered, "x" * 256, "1 to 255 bytes"),
            (NotRegistered, "\ud800", "1 to 255 bytes"),
            (NotRegistered, 5, "1 to 255 bytes"),
            (
                dataclasses.make_dataclass("D", [("a", int, dataclasses.field(init=False))]),
                None,
                "not take just the fields, see a:",
            ),
            (
                dataclasses.make_dataclass("I", [("b", dataclasses.InitVar[int])]),
                None,
                "not take just the fields, see b:",
            ),
        ],
    )
    def test_what_cannot_be_registered(self, cls: Any, name: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            register_dataclass(cls, name)


def ext(code: int, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(code, data)


def dataclass_message(name: str, fields: Any) -> bytes:
    # msgpack would take a fixext for some lengths of the name.
    mark = bytes([0xC7, len(name.encode()), values._DATACLASS]) + name.encode()
    return b"\x92" + mark + msgpack.packb(fields)


def array_message(meta: Any, data: bytes, code: int = values._ARRAY, at: int = 0) -> bytes:
    packed = msgpack.packb(meta)
    padding = -(at + 6 + len(packed)) % 16
    body = packed + bytes(padding) + data
    return struct.pack(">BIB", 0xC9, len(body), code) + body


HOSTILE = {
    "nothing": (b"", "too early"),
    "no such byte": (b"\xc1", "no value begins"),
    "float32": (b"\xca\0\0\0\0", "no value begins"),
    "trailing bytes": (b"\x01\x01", "bytes after its end"),
    "list without its items": (b"\x92\x01", "too early"),
    "list of 4 G": (b"\xdd\xff\xff\xff\xff", "too early"),
    "map of 4 G": (b"\xdf\xff\xff\xff\xff", "too early"),
    "str of 4 G": (b"\xdb\xff\xff\xff\xffx", "too early"),
    "bytes of 4 G": (b"\xc6\xff\xff\xff\xffx", "too early"),
    "ext of 4 G": (b"\xc9\xff\xff\xff\xff\x04x", "too early"),
    "not UTF-8": (b"\xa1\xff", "not UTF-8"),
    "surrogate": (b"\xa3\xed\xa0\x80", "not UTF-8"),
    "too deep": (b"\x91" * values.MAX_DEPTH + b"\x90", "deeper than"),
    "much too deep": (b"\x91" * 1_000_000, "deeper than"),
    "deep maps": (b"\x81\x01" * 1_000_000, "deeper than"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "a key twice"),
    "key twice in two forms": (b"\x82\x01\x01\xcc\x01\x02", "a key twice"),
    "float key": (msgpack.packb({1.0: 1}), "neither str nor int"),
    "bool key": (msgpack.packb({True: 1}), "neither str nor int"),
    "nil key": (msgpack.packb({None: 1}), "neither str nor int"),
    "bytes key": (msgpack.packb({b"a": 1}), "neither str nor int"),
    "list key": (b"\x81\x90\x01", "not a value"),
    "array key": (b"\x81" + array_message(["int8", 1], b"x"), "not a value"),
    "scalar key": (b"\x81" + array_message(["int8"], b"x", values._SCALAR, 1), "neither str"),
    "large int key": (b"\x81" + msgpack.packb(ext(values._INT, b"\1" * 9)) + b"\1", "64 bits"),
    "ext 0": (msgpack.packb(ext(0, b"x")), "no ext type 0"),
    "ext 6": (msgpack.packb(ext(6, b"x")), "no ext type 6"),
    "ext 127": (msgpack.packb(ext(127, b"x" * 16)), "no ext type 127"),
    "timestamp": (b"\xd6\xff\0\0\0\0", "no ext type 255"),
    "tuple mark alone": (msgpack.packb(ext(values._TUPLE, b"")), "no ext type"),
    "tuple mark second": (msgpack.packb([1, ext(values._TUPLE, b"")]), "no ext type"),
    "tuple mark with more": (msgpack.packb([ext(values._TUPLE, b"abc")]), "no ext type"),
    "int of no bytes": (msgpack.packb(ext(values._INT, b"")), "an int does not have"),
    "int too long": (msgpack.packb(ext(values._INT, b"\1" * 65_537)), "an int does not have"),
    "unknown class": (dataclass_message("os.system", {}), "'os.system' that is not registered"),
    "class, no fields": (dataclass_message("Point", None), "fields as a map"),
    "class, list of fields": (dataclass_message("Point", [1, 2]), "fields as a map"),
    "class, fewer fields": (dataclass_message("Point", {"x": 1}), "other fields"),
    "class, other fields": (dataclass_message("Point", {"x": 1, "unit": 1}), "other fields"),
    "class, more fields": (dataclass_message("Point", {"x": 1, "y": 1, "z": 1}), "other fields"),
    "class, dunder": (dataclass_message("Point", {"x": 1, "__class__": 1}), "other fields"),
    "class, int keys": (dataclass_message("Point", {1: 1, 2: 2}), "other fields"),
    "class, 4 G fields": (
        dataclass_message("Point", None)[:-1] + b"\xdf\xff\xff\xff\xff",
        "other fields",
    ),
    "class says no": (dataclass_message("Checked", {"count": "1"}), "does not take its fields"),
    "class name not UTF-8": (b"\x92\xc7\x01\x03\xff\x80", "not UTF-8"),
    "class alone": (msgpack.packb(ext(values._DATACLASS, b"Point")), "no ext type"),
    "class and more": (b"\x93" + dataclass_message("Empty", {})[1:] + b"\1", "fields as a map"),
    "array of no bytes": (msgpack.packb(ext(values._ARRAY, b"")), "too early"),
    "array without meta": (msgpack.packb(ext(values._ARRAY, b"\x01" * 5)), "dtype and shape"),
    "array, empty meta": (array_message([], b""), "0 to 32 dimensions"),
    "array, object": (array_message(["object", 1], b"x" * 8), "no dtype of ours"),
    "array, O": (array_message(["O", 1], b"x" * 8), "no dtype of ours"),
    "array, >i4": (array_message([">i4", 1], b"x" * 4), "no dtype of ours"),
    "array, complex": (array_message(["complex128", 1], b"x" * 16), "no dtype of ours"),
    "array, record": (array_message(["i4,i4", 1], b"x" * 8), "no dtype of ours"),
    "array, dtype int": (array_message([4, 1], b"x" * 4), "no dtype of ours"),
    "array, dtype bytes": (array_message([b"int8", 1], b"x"), "no dtype of ours"),
    "array, dtype list": (array_message([["int8"], 1], b"x"), "not a value"),
    "array too short": (array_message(["int32", 2], b"x" * 7), "more or fewer elements"),
    "array too long": (array_message(["int32", 2], b"x" * 24), "more or fewer elements"),
    "array, padding": (array_message(["int8", 2], b"\0xy"), "more or fewer elements"),
    "array, negative": (array_message(["int8", -1], b""), "whole numbers"),
    "array, two negatives": (array_message(["int8", -1, -1], b"x"), "whole numbers"),
    "array, float shape": (array_message(["int8", 1.0], b"x"), "whole numbers"),
    "array, bool shape": (array_message(["int8", True], b"x"), "whole numbers"),
    "array, huge shape": (array_message(["int8", (1 << 64) - 1], b"x"), "whole numbers"),
    "array, overflow": (array_message(["int64", 1 << 61, 8], b""), "more or fewer elements"),
    "array, empty and huge": (array_message(["int64", 0, 1 << 62], b""), "no arrays of such"),
    "array, 33 dimensions": (array_message(["int8", *[1] * 33], b"x"), "0 to 32 dimensions"),
    "array, 65535 dimensions": (b"\xc7\x03\x04\xdc\xff\xff", "0 to 32 dimensions"),
    "array, meta beyond": (b"\xc7\x02\x04\x92\xa4int8\x01x", "more or fewer elements"),
    "bool array of 2": (array_message(["bool", 2], b"\0\2"), "other bytes than 0 and 1"),
    "bool scalar of 2": (array_message(["bool"], b"\2", values._SCALAR), "other bytes than 0"),
    "scalar with a shape": (array_message(["int8", 1], b"x", values._SCALAR), "has dimensions"),
    "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.", "bytes after its end"),
}  # fmt: skip


class TestHostileBytes:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_are_refused(self, case: str) -> None:
        data, said = HOSTILE[case]
        with pytest.raises(ValueDecodeError, match=said) as caught:
            decode_value_untrusted(data)
        assert "\n" not in str(caught.value)

    def test_the_helpers_make_what_is_right(self) -> None:
        assert same(decode_value_untrusted(array_message(["int8", 1], b"x")), np.array([120], "i1"))
        assert decode_value_untrusted(dataclass_message("Empty", {})) == Empty()

    @settings(max_examples=400)
    @given(st.binary(max_size=200))
    @example(b"\x92\xc7\x05\x03Point\x82\xa1x\x01\xa1y\x02")
    def test_any_bytes(self, data: bytes) -> None:
        try:
            value = decode_value_untrusted(data)
        except ValueDecodeError:
            return
        assert same(round_trip(value), value)

    @settings(max_examples=120)
    @given(anything, st.data())
    def test_a_value_that_was_changed_on_its_way(self, value: Any, data: st.DataObject) -> None:
        packed = bytearray(encode_value(value))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(packed)))
            end = data.draw(st.integers(at, min(len(packed), at + 4)))
            packed[at:end] = data.draw(st.binary(max_size=4))
        try:
            got = decode_value_untrusted(bytes(packed))
        except ValueDecodeError:
            return
        assert same(round_trip(got), got)

    @settings(max_examples=120)
    @given(
        st.recursive(
            st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=6)
            | st.sampled_from([*DTYPES, "Point", "x", "y", "object"])
            | st.builds(ext, st.integers(0, 7), st.binary(max_size=24))
            | st.builds(ext, st.just(values._DATACLASS), st.sampled_from([b"Point", b"No"])),
            lambda inner: st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=2) | st.sampled_from(["x", "y"]), inner, max_size=3)
            | st.builds(
                lambda code, item, more: ext(code, msgpack.packb(item) + more),
                st.integers(1, 5), inner, st.binary(max_size=16),
            ),
            max_leaves=12,
        )
    )  # fmt: skip
    def test_any_msgpack(self, content: Any) -> None:
        try:
            value = decode_value_untrusted(msgpack.packb(content))
        except ValueDecodeError:
            return
        assert same(round_trip(value), value)

    def test_every_truncation_and_every_added_byte(self) -> None:
        value = {"a": [np.arange(3), (1, 2.5)], "p": Point("text", np.float16(1)), 3: 1 << 90}
        data = encode_value(value)
        for end in range(len(data)):
            with pytest.raises(ValueDecodeError):
                decode_value_untrusted(data[:end])
        for byte in range(256):
            with pytest.raises(ValueDecodeError):
                decode_value_untrusted(data + bytes([byte]))

    @pytest.mark.parametrize(
        ("data", "most"),
        [
            (b"\xdc\xf0\x00" * 60 + b"\x01" * 65_536, 12),
            (b"\xde\x70\x00\x01" * 60 + b"\x01" * 65_536, 12),
            (b"\xdc\xff\xff" + b"\x90" * 0xFFFF, 110),
            (b"\xdc\xff\xff" + b"\x80" * 0xFFFF, 110),
            (b"\xdc\xff\xff" + b"\xa2ab" * 0xFFFF, 25),
            (b"\xdc\xff\xff" + b"\xcd\xff\xff" * 0xFFFF, 25),
            (b"\xdc\xff\xff" + b"\x81\x01\x01" * 0xFFFF, 100),
            (array_message(["float64", 1 << 40], b"x" * 1000), 300),
        ],
        ids=[
            "nested lists",
            "nested maps",
            "empty lists",
            "empty maps",
            "strs",
            "ints",
            "maps",
            "array",
        ],
    )
    def test_memory_is_a_multiple_of_the_message(self, data: bytes, most: int) -> None:
        with Traced() as decoding, contextlib.suppress(ValueDecodeError):
            decode_value_untrusted(data)
        assert decoding.peak < most * len(data)

    def test_nothing_of_the_message_is_in_the_error(self) -> None:
        for data in (encode_value(["secret"]) + b"secret", b"\x81\xa6secret\xc1"):
            with pytest.raises(ValueDecodeError) as caught:
                decode_value_untrusted(data)
            assert "secret" not in str(caught.value)

    def test_a_name_that_is_shown_is_one_line_of_text(self) -> None:
        with pytest.raises(ValueDecodeError) as caught:
            decode_value_untrusted(dataclass_message("\x1b[2J\nspoofed" + "x" * 150, {}))
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) < 400
