"""Encodes the values that a communicator sends, other than raw bytes.

::

    value       msgpack
    ----------  ----------------------------------------------------------------
    None, bool, float, str, bytes, list, dict   as msgpack has them
    int         int; outside of 64 bits ext INT: two's complement, little endian
    tuple       array whose first element is an empty ext TUPLE
    dataclass   array of ext DATACLASS (its registered name) and a map of its fields
    array       ext ARRAY: array [dtype, *shape], zero bytes up to a multiple of 16 bytes
                from the start of the message, then the elements: C order, little endian
    numpy scalar  ext SCALAR: as an array of shape ()

Rules:
- What is received is data. No class is looked up by a name that was not registered here, and
  nothing is unpickled.
- `decode_value_untrusted` raises `ValueDecodeError` and nothing else, whatever the bytes.
- Lengths are claims until the bytes are there: no memory is allocated for a claimed length. The
  limits below apply to encoding too, so the receiver accepts whatever a sender may send.
- No error text contains a value.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import struct
import sys
import threading
from typing import Any, Final, NoReturn, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from redislink.errors import PayloadTypeError, UsageError, ValueDecodeError
from redislink.forking import renew_in_child
from redislink.text import one_line

MAX_DEPTH: Final = 64
"""Levels of nested containers; the outermost is level 1."""
MAX_CONTAINERS: Final = 1 << 20
"""Lists, tuples, dicts, dataclasses and arrays in one value. An empty one takes a byte or two on
the wire and about a hundred in memory, so this limits what a hostile message can cost."""
MAX_INT_BYTES: Final = 1 << 16
"""An int is from -2**(8 * MAX_INT_BYTES - 1) to 2**(8 * MAX_INT_BYTES - 1) - 1."""
MAX_NDIM: Final = 32
MAX_NAME_BYTES: Final = 255
"""Longest registered name of a dataclass, in UTF-8."""

_INT: Final = 1
_TUPLE: Final = 2
_DATACLASS: Final = 3
_ARRAY: Final = 4
_SCALAR: Final = 5

_ALIGNMENT: Final = 16
"""The alignment of a bytes object in CPython; elements of numpy's types are then aligned."""
_LEAST_JOINED_IN: Final = 4096
"""A bytes object of this size or more is joined in as it is, not first copied into msgpack."""
_EMPTY_TUPLE_EXT: Final = bytes([0xC7, 0, _TUPLE])
_PLAIN: Final = frozenset({type(None), bool, int, float, str})

_NAMES: Final = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)
_DTYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in _NAMES}

_Class = TypeVar("_Class", bound=type)
_DataArray = NDArray[Any]


# -- dataclasses -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    cls: type
    fields: tuple[str, ...]


_registry_lock = threading.Lock()
renew_in_child(_registry_lock)
_by_name: dict[str, _Registered] = {}
_by_class: dict[type, _Registered] = {}


def register_dataclass(cls: _Class, name: str | None = None) -> _Class:
    """Allow instances of a dataclass to be sent and received. Usable as a decorator.

    Sender and receiver must both register a class with this name and these fields. The receiver
    rebuilds an instance by calling the class with its fields, so ``__post_init__`` runs there: let
    it check what the peer sent.

    Args:
        cls: a dataclass whose fields are all parameters of ``__init__``.
        name: its name, the same at every party, at most ``MAX_NAME_BYTES`` long; None uses the
            class's qualified name, without its module.

    Returns:
        ``cls``.

    Raises:
        UsageError: ``cls`` is not such a class, or another class has this name. A class that is
            defined again in the same place, as in a notebook, replaces the old one.
    """
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise UsageError(f"register_dataclass takes a dataclass, not {cls!r:.80}")
    fields = tuple(field.name for field in dataclasses.fields(cls))
    hidden = sorted({*fields} ^ {*inspect.signature(cls).parameters})
    if hidden:
        raise UsageError(
            f"dataclass {cls.__qualname__}: __init__ does not take just the fields, see "
            f"{', '.join(hidden)}: use no init=False and no InitVar in a class that travels"
        )
    chosen = cls.__qualname__ if name is None else name
    if not isinstance(chosen, str) or not 1 <= len(_utf8_or_empty(chosen)) <= MAX_NAME_BYTES:
        raise UsageError(
            f"dataclass {cls.__qualname__}: a name is a str of 1 to {MAX_NAME_BYTES} bytes: "
            "pass another name="
        )
    entry = _Registered(chosen, cls, fields)
    with _registry_lock:
        other = _by_name.get(chosen)
        if other is not None and _place(other.cls) != _place(cls):
            raise UsageError(
                f"dataclass {cls.__qualname__}: {_place(other.cls)} is registered as "
                f"{chosen!r} already: pass another name="
            )
        _by_name[chosen] = entry
        _by_class[cls] = entry
    return cls


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _utf8_or_empty(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b""


# -- encoding --------------------------------------------------------------------------------


def encode_value(value: object) -> bytes:
    """Encode a value for `decode_value_untrusted`.

    Accepts None, bool, int, float, str, bytes; list, tuple, dict (keys: str, or int of 64 bits);
    numpy arrays and scalars of bool, int8 to int64, uint8 to uint64, float16 to float64; anything
    else that has ``__array__`` (a JAX array), which arrives as a numpy array; and registered
    dataclasses. Subclasses (a namedtuple, an IntEnum) are refused, because they would arrive as
    something else. Elements are copied once.

    Raises:
        PayloadTypeError: something in ``value`` is none of these, or exceeds a limit of this
            module; the message says what and where.
    """
    encoder = _Encoder()
    try:
        encoder.add(value, 1)
    except _NotEncodable as error:
        path = "".join(reversed(error.path))
        raise PayloadTypeError(f"value{path} {error.problem}") from error.__cause__
    return b"".join(encoder.parts)


class _NotEncodable(Exception):
    def __init__(self, problem: str) -> None:
        self.problem = problem
        self.path: list[str] = []


class _Encoder:
    """Collects the parts of one encoded value, in order."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self._size = 0
        self._containers = 0
        self._packer = msgpack.Packer(strict_types=True, buf_size=1024)

    def add(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self._plain(value)
        elif kind is bytes:
            self._bytes(value)
        elif kind is list:
            self._list(value, depth)
        elif kind is tuple:
            self._tuple(value, depth)
        elif kind is dict:
            self._dict(value, depth)
        elif kind in _by_class:
            self._dataclass(value, _by_class[kind], depth)
        elif isinstance(value, np.generic):
            self._scalar(value)
        elif hasattr(kind, "__array__"):
            self._array(_as_array(value), depth)
        else:
            raise _NotEncodable(f"is {_type_name(kind)}: {_remedy(kind)}")

    def _append(self, part: bytes | memoryview) -> None:
        self.parts.append(part)
        self._size += len(part)

    def _plain(self, value: Any) -> None:
        try:
            self._append(self._packer.pack(value))
        except OverflowError:
            length = (value if value >= 0 else ~value).bit_length() // 8 + 1
            if length > MAX_INT_BYTES:
                raise _NotEncodable(
                    f"is an int of {length} bytes, more than {MAX_INT_BYTES}: send it as bytes"
                ) from None
            self._append(_ext_header(_INT, length))
            self._append(value.to_bytes(length, "little", signed=True))
        except UnicodeEncodeError:
            raise _NotEncodable("is a str with a lone surrogate: send it as bytes") from None
        except ValueError:
            raise _NotEncodable("is a str of 4 GiB or more: split it") from None

    def _bytes(self, value: bytes) -> None:
        if len(value) < _LEAST_JOINED_IN:
            self._append(self._packer.pack(value))
            return
        if len(value) >= 1 << 32:
            raise _NotEncodable("is bytes of 4 GiB or more: split them")
        self._append(struct.pack(">BI", 0xC6, len(value)))
        self._append(value)

    def _enter(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _NotEncodable(
                f"is nested deeper than {MAX_DEPTH}, or holds itself: flatten it, or take the "
                "circle out"
            )
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise _NotEncodable(
                f"is past the {MAX_CONTAINERS} containers that one value may have: send arrays "
                "instead of lists of lists, or several messages"
            )

    def _list(self, value: list[Any], depth: int) -> None:
        self._enter(depth)
        if _PLAIN.issuperset(map(type, value)):
            try:
                self._append(self._packer.pack(value))
                return
            except (OverflowError, ValueError):  # large ints, surrogates: say which below
                self._packer = msgpack.Packer(strict_types=True, buf_size=1024)
        self._append(self._packer.pack_array_header(len(value)))
        self._items(value, depth)

    def _tuple(self, value: tuple[Any, ...], depth: int) -> None:
        self._enter(depth)
        self._append(self._packer.pack_array_header(len(value) + 1))
        self._append(_EMPTY_TUPLE_EXT)
        self._items(value, depth)

    def _items(self, items: list[Any] | tuple[Any, ...], depth: int) -> None:
        index = 0
        try:
            for index, item in enumerate(items):  # noqa: B007 - the handler says which
                self.add(item, depth + 1)
        except _NotEncodable as error:
            error.path.append(f"[{index}]")
            raise

    def _dict(self, value: dict[Any, Any], depth: int) -> None:
        self._enter(depth)
        self._append(self._packer.pack_map_header(len(value)))
        place = 0
        try:
            for place, (key, item) in enumerate(value.items()):  # noqa: B007
                if type(key) is not str and type(key) is not int:
                    raise _NotEncodable(
                        f"has a key that is {_type_name(type(key))}: use str or int keys"
                    )
                if type(key) is int and not -(1 << 63) <= key < 1 << 64:
                    raise _NotEncodable("has an int key of more than 64 bits: make it a str")
                self._plain(key)
                self.add(item, depth + 1)
        except _NotEncodable as error:
            error.path.append(f"{{entry {place}}}")  # a key may be data
            raise

    def _dataclass(self, value: Any, entry: _Registered, depth: int) -> None:
        self._enter(depth)
        name = entry.name.encode()
        self._append(b"\x92" + _ext_header(_DATACLASS, len(name)) + name)
        self._append(self._packer.pack_map_header(len(entry.fields)))
        for field in entry.fields:
            self._plain(field)
            try:
                self.add(getattr(value, field), depth + 1)
            except _NotEncodable as error:
                error.path.append(f".{field}")
                raise
            except AttributeError as error:
                problem = _NotEncodable(f"has no field {field}: set it")
                raise problem from error

    def _array(self, array: _DataArray, depth: int) -> None:
        self._enter(depth)
        self._elements(_ARRAY, array)

    def _scalar(self, value: np.generic) -> None:
        if isinstance(value, np.str_ | np.bytes_):
            raise _NotEncodable(f"is {_type_name(type(value))}: convert it with str() or bytes()")
        self._elements(_SCALAR, np.asarray(value))

    def _elements(self, code: int, array: _DataArray) -> None:
        name = array.dtype.name
        if name not in _DTYPES:
            raise _NotEncodable(
                f"has dtype {array.dtype.name:.60}: use {', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
            )
        if array.ndim > MAX_NDIM:
            raise _NotEncodable(f"has {array.ndim} dimensions, more than {MAX_NDIM}: reshape it")
        array = np.asarray(array, dtype=_DTYPES[name], order="C")
        if name == "bool" and _has_other_bytes(array):
            array = array.view(np.uint8) != 0
        pack = self._packer.pack
        meta = self._packer.pack_array_header(1 + array.ndim) + pack(name)
        meta += b"".join(pack(length) for length in array.shape)
        # The ext32 form always: the padding must not depend on which form the length takes.
        padding = -(self._size + 6 + len(meta)) % _ALIGNMENT
        length = len(meta) + padding + array.nbytes
        if length >= 1 << 32:
            raise _NotEncodable("is an array of 4 GiB or more: split it")
        self._append(struct.pack(">BIB", 0xC9, length, code) + meta + bytes(padding))
        if array.nbytes:
            # Flat and of bytes: memoryview knows neither float16 nor 0-d casts.
            self._append(array.reshape(-1).view(np.uint8).data)


def _ext_header(code: int, length: int) -> bytes:
    if length < 1 << 8:
        return bytes([0xC7, length, code])
    return struct.pack(">BIB", 0xC9, length, code)


def _has_other_bytes(array: _DataArray) -> bool:
    """Return True if a bool array contains bytes other than 0 and 1, as a view may."""
    return bool(array.size) and int(array.view(np.uint8).max()) > 1


def _as_array(value: Any) -> _DataArray:
    kind = type(value)
    if kind is np.ndarray or kind is np.memmap:
        array: _DataArray = value
        return array
    if isinstance(value, np.ndarray):
        raise _NotEncodable(f"is {_type_name(kind)}: only plain arrays travel, use np.asarray")
    try:
        return np.asarray(value)
    except Exception as error:  # __array__ is anybody's code
        raise _NotEncodable(
            f"is {_type_name(kind)}, and gives no array ({type(error).__name__}): convert it"
        ) from error


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else _place(kind)


def _remedy(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return "call redislink.register_dataclass on the class, at every party"
    base = next((b.__name__ for b in kind.__mro__ if b in _PLAIN | {bytes, list, tuple, dict}), "")
    if base:
        return f"convert it to {base}"
    return "use None, bool, int, float, str, bytes, list, tuple, dict, arrays or a dataclass"


# -- decoding --------------------------------------------------------------------------------


def decode_value_untrusted(data: bytes) -> Any:
    """Return the value that `encode_value` encoded, with the same types, dtypes and shapes.

    Arrays are read-only views into ``data``, which they keep alive. Copy an array to change it, or
    to keep a small part of a large message.

    Memory: arrays take about 200 bytes each in addition to ``data``; other values take up to some
    20 times their bytes; and containers, at most ``MAX_CONTAINERS``, take some 100 bytes each.

    Raises:
        ValueDecodeError: `encode_value` never returns these bytes, or a dataclass in them is not
            registered here, or has other fields.
    """
    decoder = _Decoder(data)
    try:
        value = decoder.value(1)
    except (IndexError, struct.error):
        decoder.fail("it ends too early")
    if decoder.at != len(data):
        decoder.fail("there are bytes after its end")
    return value


_NUMBERS: Final = {
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_LENGTHS: Final = {
    **dict.fromkeys((0xC4, 0xC7, 0xD9), struct.Struct(">B")),
    **dict.fromkeys((0xC5, 0xC8, 0xDA, 0xDC, 0xDE), struct.Struct(">H")),
    **dict.fromkeys((0xC6, 0xC9, 0xDB, 0xDD, 0xDF), struct.Struct(">I")),
}
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}


class _Decoder:
    """Reads one value from ``data``; ``at`` is the offset of the next byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._containers = 0
        self.at = 0

    def fail(self, problem: str, cause: Exception | None = None) -> NoReturn:
        raise ValueDecodeError(
            f"not a value, at byte {self.at} of {len(self._data)}: {problem}: check that all "
            "parties run the same versions and program"
        ) from cause

    def value(self, depth: int) -> Any:
        data = self._data
        first = data[self.at]
        self.at += 1
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        form = _NUMBERS.get(first)
        if form is not None:
            (number,) = form.unpack_from(data, self.at)
            self.at += form.size
            return number
        if 0xA0 <= first < 0xC0:
            return self._text(first & 0x1F)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in (0xD9, 0xDA, 0xDB):
            return self._text(self._length(first))
        if first in (0xC4, 0xC5, 0xC6):
            return self._take(self._length(first))
        if first < 0x90:
            return self._dict(first & 0x0F, depth)
        if first < 0xA0:
            return self._sequence(first & 0x0F, depth)
        if first in (0xDC, 0xDD):
            return self._sequence(self._length(first), depth)
        if first in (0xDE, 0xDF):
            return self._dict(self._length(first), depth)
        if first in _FIXED_EXT or first in (0xC7, 0xC8, 0xC9):
            return self._ext(_FIXED_EXT.get(first) or self._length(first), depth)
        return self.fail(f"no value begins with 0x{first:02x}")

    def _length(self, first: int) -> int:
        form = _LENGTHS[first]
        (length,) = form.unpack_from(self._data, self.at)
        self.at += form.size
        return int(length)

    def _take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self._data):
            self.fail("it ends too early")
        piece = self._data[self.at : end]
        self.at = end
        return piece

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            self.fail("a str is not UTF-8")

    def _enter(self, items: int, depth: int) -> None:
        if items > len(self._data) - self.at:
            self.fail("it ends too early")
        if depth > MAX_DEPTH:
            self.fail(f"it is nested deeper than {MAX_DEPTH}")
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            self.fail(f"it has more than {MAX_CONTAINERS} containers")

    def _sequence(self, length: int, depth: int) -> Any:
        self._enter(length, depth)
        code = self._marker() if length else 0
        if code == _TUPLE:
            return tuple([self.value(depth + 1) for _ in range(length - 1)])
        if code == _DATACLASS:
            return self._dataclass(length, depth)
        return [self.value(depth + 1) for _ in range(length)]

    def _marker(self) -> int:
        """Return the code of an ext that says what its array is, or 0; skip a tuple's ext."""
        start = self.at
        first = self._data[start]
        if first == 0xC7:
            length, code = self._data[start + 1], self._data[start + 2]
            if code == _TUPLE and not length:
                self.at += 3
                return code
            if code == _DATACLASS:
                return code
        return 0

    def _dataclass(self, length: int, depth: int) -> Any:
        self.at += 1
        name_length = self._data[self.at]
        self.at += 2
        name = self._text(name_length)
        entry = _by_name.get(name)
        shown = one_line(name, 80)
        if entry is None:
            self.fail(
                f"it holds a dataclass {shown!r} that is not registered here: call "
                "redislink.register_dataclass on it"
            )
        first = self._data[self.at]
        self.at += 1
        if length != 2 or not (0x80 <= first < 0x90 or first in (0xDE, 0xDF)):
            self.fail(f"dataclass {shown!r} does not have its fields as a map")
        count = first & 0x0F if first < 0x90 else self._length(first)
        if count != len(entry.fields):
            self.fail(f"dataclass {shown!r} has other fields here than where it was sent")
        self._containers -= 1  # the map is a part of it
        fields = self._dict(count, depth)
        if fields.keys() != set(entry.fields):
            self.fail(f"dataclass {shown!r} has other fields here than where it was sent")
        try:
            return entry.cls(**fields)
        except Exception as error:  # noqa: BLE001 - __post_init__ says no in its own way
            self.fail(
                f"dataclass {shown!r} does not take its fields ({type(error).__name__})", error
            )

    def _dict(self, length: int, depth: int) -> dict[Any, Any]:
        self._enter(2 * length, depth)
        result: dict[Any, Any] = {}
        for _ in range(length):
            key = self.value(MAX_DEPTH + 1)  # no container fits as a key
            if type(key) is not str and type(key) is not int:
                self.fail("a dict has a key that is neither str nor int")
            if type(key) is int and not -(1 << 63) <= key < 1 << 64:
                self.fail("a dict has an int key of more than 64 bits")
            if key in result:
                self.fail("a dict has a key twice")
            result[key] = self.value(depth + 1)
        return result

    def _ext(self, length: int, depth: int) -> Any:
        code = self._data[self.at]
        self.at += 1
        end = self.at + length
        if end > len(self._data):
            self.fail("it ends too early")
        if code == _INT:
            if not 1 <= length <= MAX_INT_BYTES:
                self.fail(f"an int does not have 1 to {MAX_INT_BYTES} bytes")
            return int.from_bytes(self._take(length), "little", signed=True)
        if code == _ARRAY:
            self._enter(0, depth)
            return self._elements(end)
        if code == _SCALAR:
            array = self._elements(end)
            if array.ndim:
                self.fail("a numpy scalar has dimensions")
            return array[()]
        return self.fail(f"there is no ext type {code} here")

    def _elements(self, end: int) -> _DataArray:
        first = self._data[self.at]
        if first == 0xDC:
            (count,) = struct.unpack_from(">H", self._data, self.at + 1)
            self.at += 3
        elif 0x90 <= first < 0xA0:
            count = first & 0x0F
            self.at += 1
        else:
            self.fail("an array does not begin with its dtype and shape")
        if not 1 <= count <= MAX_NDIM + 1:
            self.fail(f"an array does not have 0 to {MAX_NDIM} dimensions")
        name = self.value(MAX_DEPTH + 1)
        dtype = _DTYPES.get(name) if type(name) is str else None
        if dtype is None:
            self.fail("an array has no dtype of ours")
        shape = [self.value(MAX_DEPTH + 1) for _ in range(count - 1)]
        if not all(type(n) is int and 0 <= n <= sys.maxsize for n in shape):
            self.fail("an array's shape is not of whole numbers from 0")
        start = self.at + -self.at % _ALIGNMENT
        if start + math.prod(shape) * dtype.itemsize != end or any(self._data[self.at : start]):
            self.fail("an array has more or fewer elements than its shape says")
        try:
            array: _DataArray = np.ndarray(tuple(shape), dtype, self._data, start)
        except (ValueError, OverflowError, MemoryError, TypeError) as error:
            self.fail("numpy has no arrays of such a shape", error)
        if name == "bool" and _has_other_bytes(array):
            self.fail("a bool array has other bytes than 0 and 1")
        self.at = end
        return array
