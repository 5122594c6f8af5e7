"""Plain arrays on their way to a device: which dtypes SPU has, and how a value becomes one."""

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
    """Such as ``f32[3,2]``."""
    kind = {"f": "f", "i": "i", "u": "u", "b": "bool"}.get(value.dtype.kind, value.dtype.name)
    bits = "" if value.dtype.kind == "b" else str(value.dtype.itemsize * 8)
    return f"{kind}{bits}[{','.join(map(str, value.shape))}]"


def is_prng_key(value: Any) -> bool:
    """True for a typed key, as ``jax.random.key`` makes it, and for arrays of them."""
    dtype = getattr(value, "dtype", None)
    with contextlib.suppress(TypeError):  # pandas has dtypes that neither NumPy nor JAX knows
        return dtype is not None and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))
    return False


def columns_of(value: Any) -> tuple[object, ...]:
    """Names of the columns of a table of pandas or pyarrow; none for anything else."""
    names = getattr(value, "columns", None) if hasattr(value, "iloc") else None
    names = getattr(value, "column_names", None) if names is None else names
    return () if names is None else tuple(names)


def check_result(result: Any) -> None:
    """Refuse what a function returns that shares cannot hold.

    Args:
        result: what has its shape and dtype.

    Raises:
        UsageError: SPU has no such type.
    """
    if is_prng_key(result):
        raise UsageError("is a typed PRNG key: return jax.random.key_data(key)")
    if result.dtype.name in DATA_TYPES:
        return
    remedy = "convert it with .astype"
    if np.dtype(result.dtype).kind == "c":
        remedy = "return its real and its imaginary part"
    raise UsageError(f"is {result.dtype.name}, of which SPU has no shares: {remedy}")


def as_array(value: Any) -> Array:
    """As numpy, with JAX's types for Python's numbers: 32 bits if they fit.

    A Python float past float32 stays a float64, so that it can be seen to be out of range.
    Byte order, order of axes and gaps are those that SPU takes.

    Raises:
        UsageError: SPU has no such type, or too few dimensions for it, or it is a masked array
            with something masked.
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
            "is a typed PRNG key, of which SPU has no type: give jax.random.key_data(key), and "
            "make the key of it again with jax.random.wrap_key_data where it is used"
        )
    if isinstance(value, np.ma.MaskedArray):
        value = _unmasked(value)
    array = np.asarray(value)
    if array.dtype.kind == "O" and hasattr(value, "iloc") and len(columns_of(value)):
        array = _by_columns(value)
    if array.dtype.name not in DATA_TYPES:
        raise UsageError(
            f"cannot be shared: SPU has no type for {type(value).__name__} (dtype "
            f"{array.dtype.name}): give numbers of {', '.join(DATA_TYPES)}"
        )
    if array.ndim > MOST_DIMENSIONS:
        raise UsageError(f"has {array.ndim} dimensions, more than {MOST_DIMENSIONS}: reshape it")
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        array = array.view(np.uint8) != 0  # of true ones SPU looks at the last bit
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, native).reshape(array.shape)


def _by_columns(frame: Any) -> Array:
    """A DataFrame whose columns have no dtype in common that NumPy has, as pandas's own Int64."""
    columns = []
    for place, name in enumerate(columns_of(frame)):
        column = np.asarray(frame.iloc[:, place])
        if column.dtype.name not in DATA_TYPES:
            raise UsageError(
                f"cannot be shared: column {str(name)!r:.80} has dtype {column.dtype.name}, of "
                "which SPU has no type: leave it out, or make numbers of it"
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
        "is an int of more than 64 bits, of which SPU has no type: split it, or give a float"
    )


def _unmasked(value: Any) -> Any:
    masked = np.ma.getmaskarray(value)
    if masked.any():
        (first, *_) = np.argwhere(masked)
        raise UsageError(
            f"has masked values ({int(masked.sum())} of {masked.size}; the first at "
            f"{first.tolist()}), and SPU would take what is under the mask: say what they count "
            "as, with filled(…)"
        )
    return value.data
