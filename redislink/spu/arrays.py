"""Plain arrays for a device: the dtypes that SPU has, and conversion to them."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import jax
import numpy as np
from numpy.typing import NDArray
from spu import libspu

from redislink.errors import UsageError

Array = NDArray[Any]

DATA_TYPES: Final = {
    "bool": libspu.DataType.DT_I1,
    "int8": libspu.DataType.DT_I8,
    "uint8": libspu.DataType.DT_U8,
    "int16": libspu.DataType.DT_I16,
    "uint16": libspu.DataType.DT_U16,
    "int32": libspu.DataType.DT_I32,
    "uint32": libspu.DataType.DT_U32,
    "int64": libspu.DataType.DT_I64,
    "uint64": libspu.DataType.DT_U64,
    "float16": libspu.DataType.DT_F16,
    "float32": libspu.DataType.DT_F32,
    "float64": libspu.DataType.DT_F64,
}
MOST_DIMENSIONS: Final = 32


def short(value: Any) -> str:
    """The dtype and shape of an array in short, such as ``f32[3,2]``."""
    kind = {"f": "f", "i": "i", "u": "u", "b": "bool"}.get(value.dtype.kind, value.dtype.name)
    bits = "" if value.dtype.kind == "b" else str(value.dtype.itemsize * 8)
    return f"{kind}{bits}[{','.join(map(str, value.shape))}]"


def is_prng_key(value: Any) -> bool:
    """Whether a value is a typed key, made by ``jax.random.key``, or an array of them."""
    dtype = getattr(value, "dtype", None)
    with contextlib.suppress(TypeError):  # pandas has dtypes that NumPy and JAX do not know
        return dtype is not None and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))
    return False


def columns_of(value: Any) -> tuple[object, ...]:
    """The column names of a pandas or pyarrow table; none for anything else."""
    names = getattr(value, "columns", None) if hasattr(value, "iloc") else None
    names = getattr(value, "column_names", None) if names is None else names
    return () if names is None else tuple(names)


def check_result(result: Any) -> None:
    """Refuse a result that shares cannot hold.

    Args:
        result: an object with the shape and dtype of the result.

    Raises:
        UsageError: SPU does not have its dtype.
    """
    if is_prng_key(result):
        raise UsageError("is a typed PRNG key: return jax.random.key_data(key)")
    if result.dtype.name in DATA_TYPES:
        return
    remedy = "convert it with .astype"
    if np.dtype(result.dtype).kind == "c":
        remedy = "return its real and imaginary parts"
    raise UsageError(f"is {result.dtype.name}, a type that SPU does not have: {remedy}")


def as_array(value: Any) -> Array:
    """A value as a NumPy array that SPU accepts.

    Python numbers get JAX's types, with 32 bits if they fit. A Python float beyond float32 becomes
    a float64, so that the check of its range sees it. The array has the byte order and memory
    layout that SPU needs.

    Raises:
        UsageError: SPU does not have the type, or not so many dimensions, or the value is a masked
            array with masked elements.
    """
    if type(value) is bool:
        return np.asarray(value)
    if type(value) is int:
        return np.asarray(value, _type_of_int(value))
    if type(value) is float:
        fits = not abs(value) > float(np.finfo(np.float32).max)
        return np.asarray(value, np.float32 if fits or value in (np.inf, -np.inf) else np.float64)
    if is_prng_key(value):
        raise UsageError(
            "is a typed PRNG key, which SPU does not have: pass jax.random.key_data(key), and "
            "call jax.random.wrap_key_data on it where you use it"
        )
    if isinstance(value, np.ma.MaskedArray):
        value = _unmasked(value)
    array = np.asarray(value)
    if array.dtype.kind == "O" and hasattr(value, "iloc") and len(columns_of(value)):
        array = _by_columns(value)
    if array.dtype.kind in "US":
        raise UsageError(
            "cannot be shared: it is text (columns of a CSV file are lists of text): make numbers "
            "of the column first, for example numpy.asarray(column, numpy.float32)"
        )
    if array.dtype.name not in DATA_TYPES:
        raise UsageError(
            f"cannot be shared: SPU has no type for {type(value).__name__} (dtype "
            f"{array.dtype.name}): pass numbers of {', '.join(DATA_TYPES)}"
        )
    if array.ndim > MOST_DIMENSIONS:
        raise UsageError(f"has {array.ndim} dimensions, more than {MOST_DIMENSIONS}: reshape it")
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        array = array.view(np.uint8) != 0  # SPU reads only the last bit of a bool
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, native).reshape(array.shape)


def _by_columns(frame: Any) -> Array:
    """A DataFrame whose columns have no common NumPy dtype, for example pandas's own Int64."""
    columns = []
    for place, name in enumerate(columns_of(frame)):
        column = np.asarray(frame.iloc[:, place])
        if column.dtype.name not in DATA_TYPES:
            raise UsageError(
                f"cannot be shared: column {str(name)!r:.80} has dtype {column.dtype.name}, "
                "which SPU does not have: leave it out, or convert it to numbers"
            )
        columns.append(column)
    return np.column_stack(columns)


def _type_of_int(value: int) -> type[np.generic]:
    if -(2**31) <= value < 2**31:
        return np.int32
    if -(2**63) <= value < 2**63:
        return np.int64
    if 0 <= value < 2**64:
        return np.uint64
    raise UsageError(
        "is an int of more than 64 bits, which SPU does not have: split it, or pass a float"
    )


def _unmasked(value: Any) -> Any:
    masked = np.ma.getmaskarray(value)
    if masked.any():
        (first, *_) = np.argwhere(masked)
        raise UsageError(
            f"has masked values ({int(masked.sum())} of {masked.size}; the first at "
            f"{first.tolist()}), and SPU would use the values under the mask: replace them "
            "with filled(…)"
        )
    return value.data
