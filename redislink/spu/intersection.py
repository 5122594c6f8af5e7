"""Private set intersection by ``spu.psi``: the parties learn which keys they share.

libpsi reads and writes files and logs much. Rules:
- It gets a file of the keys alone, each as hex, in a directory that only this user can read; the
  other columns never leave memory, and keep their types.
- It also writes keys to files under ``TMPDIR``: programs whose keys are secret on their own
  machine run inside `private_scratch`.
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from spu import psi

PROTOCOLS: Final = ("KKRT", "RR22", "ECDH")
Table = Mapping[str, Sequence[Any] | NDArray[Any]]
_ROW: Final = "row"


def read_table(source: Any) -> dict[str, Any]:
    """A party's table.

    Args:
        source: a mapping of column name to values; the path of a CSV file with a header (all
            its values are then text); or a function without arguments that gives either.

    Raises:
        ValueError: it is none of these, or the columns differ in length.
    """
    if callable(source):
        source = source()
    if isinstance(source, str | Path):
        source = _read_csv(Path(source))
    if not isinstance(source, Mapping):
        raise ValueError(f"a table is a dict of columns or a path, not {type(source).__name__}")
    table = dict(source)
    if len({len(column) for column in table.values()}) > 1:
        raise ValueError("the columns of the table differ in length")
    return table


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if len(set(header)) != len(header):
            raise ValueError(f"{path}: a column name stands twice in the header")
        columns: list[list[str]] = [[] for _ in header]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{path}, line {rows.line_num}: not as many fields as the header")
            for column, field in zip(columns, row, strict=True):
                column.append(field)
    return dict(zip(header, columns, strict=True))


def keys_of(table: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The key of every row, as text.

    Raises:
        ValueError: a column is missing, a key is neither text nor an integer, or two rows have
            the same.
    """
    missing = [key for key in keys if key not in table]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}: it has {', '.join(map(str, table))}"
        )
    columns = []
    for key in keys:
        column = table[key]
        for value in column:
            if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
                raise ValueError(
                    f"column {key!r} holds {type(value).__name__}: keys are text or integers"
                )
        columns.append([str(value) for value in column])
    rows = list(zip(*columns, strict=True))
    first: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows, 1):
        if row in first:
            raise ValueError(
                f"rows {first[row]} and {number} have the same {' and '.join(keys)}: keep one"
            )
        first[row] = number
    return rows


def pick_columns(table: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    """Some columns of a table; None takes all.

    Raises:
        ValueError: one is missing.
    """
    names = list(table) if columns is None else list(columns)
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}: it has {', '.join(map(str, table))}"
        )
    return {name: table[name] for name in names}


def pick_rows(table: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some rows: an array for an array, else a list."""
    return {
        name: column[np.asarray(rows, np.int64)]
        if isinstance(column, np.ndarray)
        else [column[row] for row in rows]
        for name, column in table.items()
    }


def intersect(context: Any, rows: Sequence[tuple[str, ...]], protocol: str) -> list[int]:
    """Which of this party's rows the other has too, in the order of their keys.

    Args:
        context: a link context of two.
        rows: keys, each there once; the same number of columns at both.
        protocol: one of `PROTOCOLS`.

    Returns:
        Numbers of rows, from 0. The members get theirs in the same order of keys.
    """
    width = len(rows[0]) if rows else 1
    names = [f"k{number}" for number in range(width)]
    settings = {}
    if protocol == "ECDH":
        settings["ecdh_params"] = psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519)
    # Only this user can read it: libpsi writes INPUT.temp.csv beside its input.
    with tempfile.TemporaryDirectory(prefix="redislink-psi-") as directory:
        source, target = Path(directory, "input.csv"), Path(directory, "output.csv")
        with source.open("w", newline="", encoding="ascii") as file:
            writer = csv.writer(file)
            writer.writerow([*names, _ROW])
            for number, row in enumerate(rows):
                writer.writerow([*(f"x{key.encode().hex()}" for key in row), number])
        config = psi.PsiExecuteConfig(
            protocol_conf=psi.PsiProtocolConfig(
                protocol=psi.parse_protocol(f"PROTOCOL_{protocol}"),
                receiver_rank=0,
                broadcast_result=True,
                **settings,
            ),
            input_params=psi.InputParams(path=str(source), selected_keys=names, keys_unique=True),
            output_params=psi.OutputParams(path=str(target)),
        )
        psi.psi_execute(config, context)
        with target.open(newline="", encoding="ascii") as file:
            found = [int(row[_ROW]) for row in csv.DictReader(file)]
    return sorted(found, key=lambda number: rows[number])


@contextlib.contextmanager
def private_scratch() -> Iterator[None]:
    """Give libpsi a directory that only this user can read.

    It writes keys in the clear to files under ``TMPDIR``, readable for everybody on the machine,
    and removes them at exit. Changes the environment of the whole process, so it belongs around
    a program and not around a call.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="redislink-psi-") as directory:
        os.environ["TMPDIR"] = directory
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before
