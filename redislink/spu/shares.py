"""Checks of the shares that peers send, before SPU sees them.

Rule: functions named ``*_untrusted`` return None for anything that this step does not send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from spu import libspu

from redislink.spu.arrays import DATA_TYPES, MOST_DIMENSIONS

_MOST_SIZE: Final = 1 << 40

Shape = tuple[tuple[int, ...], np.dtype[Any]]
"""The shape and dtype of an array."""
ShareKind = tuple[str, Any, Any]
"""The storage type, visibility and data type that tell SPU how to read a share's bytes."""

_FRACTIONS: Final = frozenset(t for name, t in DATA_TYPES.items() if name.startswith("float"))


def kind_of(meta: bytes) -> ShareKind:
    """The kind that SPU will read from this metadata of a share."""
    parsed = libspu.ValueMeta()
    parsed.ParseFromString(meta)
    return str(parsed.storage_type), parsed.visibility, parsed.data_type


def are_whole(chunks: Sequence[bytes]) -> bool:
    """Whether the chunks are consecutive and each has the size that it states.

    SPU copies the content of a chunk without checking its length: one that is too long would
    overwrite memory.
    """
    end, total = 0, None
    for packed in chunks:
        chunk = libspu.ValueChunk()
        if not chunk.ParseFromString(packed) or chunk.chunk_offset != end:
            return False
        end += len(chunk.content)
        total = chunk.total_bytes if total is None else total
        if chunk.total_bytes != total:
            return False
    return end == (total or 0)


def shape_untrusted(entry: Any) -> Shape | None:
    """The shape and dtype of an array that a peer puts on a device."""
    match entry:
        case [list(dims), str(name)] if name in DATA_TYPES and len(dims) <= MOST_DIMENSIONS:
            size = 1
            for dim in dims:
                if type(dim) is not int or not 0 <= dim <= _MOST_SIZE:
                    return None
                size *= dim
            if size <= _MOST_SIZE:
                return tuple(dims), np.dtype(name)
    return None


def share_untrusted(packed: Any, expected: Shape, kind: ShareKind | None) -> libspu.Share | None:
    """A peer's share of an array.

    SPU's data type may differ from JAX's: the indices of ``lax.top_k`` are 64 bits wide. But a
    fraction stays a fraction, and a whole number a whole number.

    Args:
        packed: the message.
        expected: the shape and dtype that the share must have.
        kind: the kind that it must have; None if that is not known.
    """
    shape, dtype = expected
    match packed:
        case [bytes(meta), list(chunks)] if all(type(chunk) is bytes for chunk in chunks):
            parsed, share = libspu.ValueMeta(), libspu.Share()
            if (
                parsed.ParseFromString(meta)
                and tuple(parsed.shape.dims) == shape
                and not parsed.is_complex
                and parsed.data_type in DATA_TYPES.values()
                and (parsed.data_type in _FRACTIONS) == (dtype.kind == "f")
                and kind in (None, kind_of(meta))
                and are_whole(chunks)
            ):
                share.meta, share.share_chunks = meta, chunks
                return share
    return None
