"""Plain arrays on their way to a device: which dtypes SPU has, and how a value becomes one."""

from __future__ import annotations

from typing import Any, Final

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


def short(value: Any) -> str:
    """Such as ``f32[3,2]``."""
    kind = {"f": "f", "i": "i", "u": "u", "b": "bool"}.get(value.dtype.kind, value.dtype.name)
    bits = "" if value.dtype.kind == "b" else str(value.dtype.itemsize * 8)
    return f"{kind}{bits}[{','.join(map(str, value.shape))}]"


def as_array(value: Any) -> Array:
    """As numpy, with JAX's types for Python's numbers: 32 bits if they fit."""
    if type(value) is bool:
        return np.asarray(value)
    if type(value) is int:
        return np.asarray(value, np.int32 if -(2**31) <= value < 2**31 else np.int64)
    if type(value) is float:
        return np.asarray(value, np.float32)
    array = np.asarray(value)
    if array.dtype.name not in DATA_TYPES:
        raise UsageError(
            f"SPU has no type for {type(value).__name__} (dtype {array.dtype.name}): give numbers "
            f"of {', '.join(DATA_TYPES)}"
        )
    return np.ascontiguousarray(array).reshape(array.shape)
