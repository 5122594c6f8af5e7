"""Reads a party's table, of any kind, as plain columns by position.

Rules:
- Labels (the index of a pandas Series) never choose a row: a column first becomes an array or a
  list, and then only positions count.
- No table library is imported: the kind of a table is known by its methods.
- A wrong table is a TableError that says where and what to do; it quotes no value.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from redislink.errors import TableError
from redislink.files import open_regular
from redislink.text import one_line

Column = list[Any] | NDArray[Any]
Table = dict[Any, Column]
_ACCEPTED: Final = (
    "a dict of columns, a DataFrame, a pyarrow Table, a structured array, the path of a CSV file, "
    "or a function that returns one of these"
)
_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_OTHER_DELIMITERS: Final = {";": "semicolons", "\t": "tabs"}


def read_table(source: Any) -> Table:
    """A party's table as plain columns.

    Args:
        source: a mapping of column name to values (lists, tuples, arrays, Series); a pandas or
            polars DataFrame; a pyarrow Table; a structured NumPy array; the path of a CSV file
            with a header (all its values are then text); or a function without arguments that
            returns any of these.

    Returns:
        Columns of equal length. A list stays a list, and anything else becomes an array, but a
        column of pyarrow or polars with nulls becomes a list with None.

    Raises:
        TableError: the source is none of these, its columns are not columns or differ in length,
            a name occurs twice, or the file is not a CSV file in UTF-8.
        OSError: the file cannot be read.
    """
    if callable(source):
        source = source()
    if isinstance(source, str | os.PathLike):
        return read_csv(Path(source))
    named = _named_columns(source)
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise TableError(f"two columns of the table are named {twice[0]!r:.80}: rename one")
    table = {name: _plain(name, column) for name, column in named}
    sizes = {name: len(column) for name, column in table.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name!r:.40} has {size}" for name, size in list(sizes.items())[:5])
        raise TableError(f"the columns of the table differ in length: {told}")
    return table


def select_columns(table: Table, names: Sequence[Any] | None) -> Table:
    """Some columns of a table; all if ``names`` is None.

    Raises:
        TableError: a column is missing.
    """
    if names is None:
        return dict(table)
    for name in names:
        if name not in table:
            has = one_line(", ".join(map(str, table))) or "none at all"
            raise TableError(f"the table has no column {name!r:.80}: it has {has}")
    return {name: table[name] for name in names}


def take_rows(table: Table, rows: Sequence[int]) -> Table:
    """Some rows by position. Arrays stay arrays, and lists stay lists."""
    return {
        name: column[np.asarray(rows, np.int64)]
        if isinstance(column, np.ndarray)
        else [column[row] for row in rows]
        for name, column in table.items()
    }


def _named_columns(source: Any) -> list[tuple[Any, Any]]:
    if isinstance(source, Mapping):
        return list(source.items())
    if isinstance(source, np.ndarray) and source.dtype.names:
        return [(name, source[name]) for name in source.dtype.names]
    if hasattr(source, "column_names") and hasattr(source, "column"):  # pyarrow
        return [(n, source.column(place)) for place, n in enumerate(source.column_names)]
    if hasattr(source, "columns") and hasattr(source, "iloc"):  # pandas, by place: names may repeat
        return [(name, source.iloc[:, place]) for place, name in enumerate(source.columns)]
    if hasattr(source, "columns") and hasattr(source, "get_column"):  # polars
        return [(name, source.get_column(name)) for name in source.columns]
    raise TableError(f"a table is {_ACCEPTED}, not {type(source).__name__}")


def _plain(name: Any, column: Any) -> Column:
    """One column by position."""
    plain: Any = None
    if isinstance(column, np.ndarray):
        plain = column
    elif _has_nulls(column):
        plain = column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()
    elif hasattr(column, "to_pylist"):  # pyarrow: otherwise text becomes objects of its own
        plain = column.to_numpy(zero_copy_only=False)
    elif hasattr(column, "to_numpy"):
        plain = column.to_numpy()
        if plain.dtype.kind == "f" and getattr(column.dtype, "kind", "f") in "iu":
            plain = column.to_numpy(dtype=object)  # pandas: integers with missing values
    elif isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        plain = list(column)
    elif not isinstance(column, Mapping) and hasattr(column, "__array__"):
        plain = np.asarray(column)
    if plain is None or (isinstance(plain, np.ndarray) and plain.ndim == 0):
        raise TableError(
            f"column {name!r:.80} is a {type(column).__name__}: give a list, an array or a Series "
            "(of a pandas DataFrame, the DataFrame itself)"
        )
    return plain  # type: ignore[no-any-return]


def _has_nulls(column: Any) -> bool:
    """Whether a pyarrow or polars column has nulls, which would make floats and NaN of it."""
    count = getattr(column, "null_count", 0)
    return bool(count() if callable(count) else count)


# -- CSV -------------------------------------------------------------------------------------


def read_csv(path: Path) -> Table:
    """Read a CSV file in UTF-8 with a header, such as spreadsheets write. Every value is text.

    A byte order mark does not belong to the first name. Blank lines, and lines of commas only, do
    not count as rows.

    Raises:
        TableError: the file is not such a file; the message names the line and what to do.
        OSError: the file cannot be read.
    """
    with open_regular(path) as raw:
        if raw.read(2) in _MARKS:
            raise TableError(f"{path}: is in UTF-16: {_convert(path, 'UTF-16')}")
        raw.seek(0)
        try:
            return _parse(path, TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        except UnicodeDecodeError:
            line = _first_line_not_utf8(path)
            raise TableError(
                f"{path}, line {line}: is not UTF-8, so probably Windows-1252 or Latin-1: "
                f"{_convert(path, 'WINDOWS-1252')}"
            ) from None


def _parse(path: Path, file: TextIO) -> Table:
    rows = csv.reader(file, strict=True)
    lines = _content(path, rows)
    header = next(lines, [])
    if not header:
        raise TableError(f"{path}: is empty: its first line must name the columns")
    for sign, word in _OTHER_DELIMITERS.items():
        if len(header) == 1 and sign in header[0]:
            raise TableError(f"{path}: has {word} between its fields: save it with commas")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise TableError(
            f"{path}: the header names {twice[0]!r:.80} twice: rename one"
            if twice[0]
            else f"{path}: several columns have no name: name them, or remove them"
        )
    columns: list[list[str]] = [[] for _ in header]
    for row in lines:
        if len(row) != len(header):
            raise TableError(
                f"{path}, line {rows.line_num}: not as many fields as the header ({len(row)}, not "
                f"{len(header)})"
            )
        for column, field in zip(columns, row, strict=True):
            column.append(field)
    return dict(zip(header, columns, strict=True))


def _content(path: Path, rows: Any) -> Iterator[list[str]]:
    """The rows that are not empty."""
    try:
        for row in rows:
            if any("\0" in field for field in row):
                raise TableError(
                    f"{path}, line {rows.line_num}: holds zero bytes, so it is not text, or is in "
                    f"UTF-16: {_convert(path, 'UTF-16LE')}"
                )
            if len(row) == 1 or any(row):
                yield row
    except csv.Error as error:
        raise TableError(
            f"{path}, line {rows.line_num}: {error}: look for a quotation mark that is not closed, "
            f"or for a field of more than {csv.field_size_limit()} characters"
        ) from None


def _first_line_not_utf8(path: Path) -> int:
    good = 0
    with open_regular(path) as raw:
        for line in raw:
            try:
                line.decode()
            except UnicodeDecodeError:
                break
            good += 1
    return good + 1


def _convert(path: Path, encoding: str) -> str:
    return (
        'save it as "CSV UTF-8", or convert it: '
        f"iconv -f {encoding} -t UTF-8 '{path.name}' > 'utf8-{path.name}'"
    )
