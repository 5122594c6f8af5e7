"""What the steps of a device give a party, as its journal has it, and back.

Rule: a record comes from this party's own disk, sealed with its key. What makes no sense is damage,
and raises JournalError; nothing in a record is looked up anywhere but in modules that this process
has imported.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from spu import libspu

from redislink.errors import JournalError, LoadFailed, PayloadTypeError, ValueDecodeError
from redislink.session.journal import Recorded
from redislink.session.records import START_ANEW, Gave
from redislink.spu.arrays import Array
from redislink.spu.shares import Shape, shape_untrusted
from redislink.spu.tables import Table
from redislink.spu.variables import ReadShare
from redislink.values import decode_value_untrusted, encode_value

_MOST_TEXT: Final = 1000
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


def handles_given(tree: Any, handles: Sequence[Any], shares: Iterable[libspu.Share]) -> Gave:
    """What `private` or `run` gave.

    Args:
        tree: the containers of a private value; None after `run`.
        handles: the handles.
        shares: this party's shares of them; none if it is not a member.
    """
    told = [[list(handle.shape), handle.dtype.name] for handle in handles]
    split = [(share.meta, list(share.share_chunks)) for share in shares]
    metas = [[meta, [len(chunk) for chunk in chunks]] for meta, chunks in split]
    owners = handles if split else ()
    return Gave(["handles", tree, told, metas], [chunks for _, chunks in split], owners)


def handles_again(recorded: Recorded) -> tuple[Any, list[Shape], list[ReadShare]]:
    """The tree, the shapes of the handles, and what reads this party's shares of them.

    Raises:
        LoadFailed: the step failed in this way at all parties.
    """
    check_loaded(recorded)
    match recorded.kind, recorded.value:
        case "handles", [tree, list(told), list(metas)]:
            shapes = [shape for entry in told if (shape := shape_untrusted(entry)) is not None]
            if len(shapes) == len(told) and len(metas) in (0, len(told)):
                readers: list[ReadShare] = [
                    partial(_read_share, recorded, place, meta) for place, meta in enumerate(metas)
                ]
                return tree, shapes, readers
    raise damaged(recorded)


def _read_share(recorded: Recorded, place: int, meta: Any) -> libspu.Share:
    match meta:
        case [bytes(packed), list(lengths)] if all(type(length) is int for length in lengths):
            data = memoryview(recorded.read(place))
            chunks, start = [], 0
            for length in lengths:
                chunks.append(bytes(data[start : start + length]))
                start += length
            if start == len(data):
                share = libspu.Share()
                share.meta, share.share_chunks = packed, chunks
                return share
    raise damaged(recorded)


def values_given(values: Sequence[Array]) -> Gave:
    """What `reveal` gave a receiver."""
    return Gave(["values"], [[encode_value(list(values))]])


def values_again(recorded: Recorded, shapes: Sequence[Shape]) -> list[Array]:
    """The values of a `reveal`, which the program may change.

    Args:
        recorded: the record.
        shapes: those of the handles that were revealed.
    """
    found = decoded(recorded, 0) if recorded.kind == "values" else None
    if isinstance(found, list) and [(a.shape, a.dtype) for a in found] == list(shapes):
        return [np.array(array) for array in found]
    raise damaged(recorded)


def check_kept(table: Table) -> None:
    """Refuse a table that the journal could not give back, before anything is computed.

    Raises:
        ValueError: a column holds objects of other kinds than text, numbers, None and lists.
    """
    for name, column in table.items():
        items: Any = column
        if isinstance(column, np.ndarray):
            if isinstance(column, np.ma.MaskedArray) or column.dtype.kind in "VT":
                raise _not_kept(name, "masked or structured values, or text of NumPy's StringDType")
            items = column.ravel().tolist() if column.dtype.hasobject else []
        try:
            encode_value([name, items])
        except PayloadTypeError:
            raise _not_kept(name, _first_not_kept([name, *items])) from None


def _first_not_kept(items: Sequence[Any]) -> str:
    """What the first item is that cannot be kept."""
    for item in items:
        try:
            encode_value(item)
        except PayloadTypeError:
            kind = type(item)
            return f"such a {kind.__name__}" if kind in _PLAIN else kind.__name__
    return "too many lists"


def _not_kept(name: Any, what: str) -> ValueError:
    return ValueError(
        f"column {name!r:.80} holds {what}, which a journal cannot keep: convert it to text "
        "(without surrogates) or numbers, or leave it out with columns="
    )


def table_given(table: Table) -> Gave:
    """What `psi` gave one of its two parties."""
    described: list[Any] = []
    blobs: list[list[Any]] = []
    for name, column in table.items():
        if not isinstance(column, np.ndarray):
            described.append([name, "list", column])
        elif column.dtype.hasobject:
            described.append([name, "objects", list(column.shape), column.ravel().tolist()])
        else:
            described.append([name, "array", list(column.shape), column.dtype.str, len(blobs) + 1])
            blobs.append([np.ascontiguousarray(column).reshape(-1).view(np.uint8).data])
    return Gave(["table"], [[encode_value(described)], *blobs])


def table_again(recorded: Recorded) -> Table:
    """The columns of a `psi`, which the program may change.

    Raises:
        LoadFailed: the other party could not load its table.
    """
    check_loaded(recorded)
    table: Table = {}
    for column in decoded(recorded, 0) if recorded.kind == "table" else [None]:
        match column:
            case [name, "list", list(items)]:
                table[name] = items
            case [name, "objects", list(shape), list(items)]:
                objects = np.empty(len(items), object)
                for place, item in enumerate(items):  # one by one: an item may be a list
                    objects[place] = item
                table[name] = objects.reshape(shape)
            case [name, "array", list(shape), str(dtype), int(place)]:
                data = bytearray(recorded.read(place))
                table[name] = np.ndarray(tuple(shape), np.dtype(dtype), data)
            case _:
                raise damaged(recorded)
    return table


def error_given(error: Exception) -> Gave:
    """What a `load` that raised gave the party whose load it was."""
    kind, arguments = type(error), list(error.args)
    try:
        is_short = len(encode_value(arguments)) <= _MOST_TEXT
    except PayloadTypeError:
        is_short = False
    if not is_short or not _PLAIN.issuperset(map(type, arguments)):
        arguments = [_text_of(error)]
    return Gave(["raised", kind.__module__, kind.__qualname__, arguments])


def _text_of(error: Exception) -> str:
    """The text of anybody's error, such that it can be kept."""
    try:
        text = str(error)[:_MOST_TEXT]
    except Exception:  # noqa: BLE001 - a __str__ of the program
        return ""
    return text.encode(errors="replace").decode()


def error_again(recorded: Recorded, party: str) -> Exception:
    """The error of a load once more: of the same type, if this process has the type.

    Args:
        recorded: the record.
        party: the party whose load it was.
    """
    match recorded.value:
        case [str(module), str(name), list(arguments)]:
            kind: Any = sys.modules.get(module, builtins)
            for part in name.split("."):
                kind = vars(kind).get(part) if hasattr(kind, "__dict__") else None
            if isinstance(kind, type) and issubclass(kind, Exception):
                with contextlib.suppress(Exception):  # it takes other arguments
                    return kind(*arguments)
            return LoadFailed(party, recorded.record.text, name)
    raise damaged(recorded)


def check_loaded(recorded: Recorded) -> None:
    """Raise LoadFailed if that is what the step gave: another party could not load its data."""
    match recorded.kind, recorded.value:
        case "failed", [str(peer), str(call), str(kind)]:
            raise LoadFailed(peer, call, kind)


def decoded(recorded: Recorded, place: int) -> Any:
    """The value in a blob of a step.

    Raises:
        JournalError: it is none.
    """
    try:
        return decode_value_untrusted(recorded.read(place))
    except ValueDecodeError as error:
        raise damaged(recorded) from error


def damaged(recorded: Recorded) -> JournalError:
    """The error for a record of a step that does not fit its call."""
    record = recorded.record
    return JournalError(
        f"the journal's record of step {record.number}, {record.text}, makes no sense here: run "
        f"the version of redislink that wrote it, or {START_ANEW}"
    )
