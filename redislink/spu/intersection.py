"""Private set intersection by ``spu.psi``: the parties learn which keys they share.

Rules:
- Both parties check their tables, and know that the other's is valid, before libpsi runs.
- libpsi gets no keys, only a digest of each, under a secret that the two parties make for this call
  and that never leaves memory. libpsi writes what it gets to disk and to its log.
- libpsi runs in its own process, see `redislink.spu.psi_relay`.
- Once libpsi runs, any failure at one party ends the session for all, at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self
from unicodedata import is_normalized

import numpy as np

from redislink.communicator import Communicator
from redislink.errors import (
    LoadFailed,
    PeerError,
    TableError,
    UsageError,
    may_pass,
    reason_for_peers,
)
from redislink.logs import NAME, PartyLogger
from redislink.session.steps import Steps
from redislink.spu.psi_child import DIGEST_BYTES
from redislink.spu.psi_relay import PsiRelay
from redislink.spu.recall import check_kept, error_again, error_given, table_again, table_given
from redislink.spu.tables import Table, read_table, select_columns, take_rows

PROTOCOLS: Final = ("KKRT", "RR22", "ECDH")
_NAMESPACE: Final = "psi"
_NONCE_BYTES: Final = 32
_PURPOSE: Final = b"redislink psi digests"

_NONE_COMMON: Final = (
    "psi: no row in common with %s, so the columns are empty, and nothing that is computed over "
    "them has a meaning: if that is a surprise, compare how both write their keys (spaces, leading "
    "zeros, upper case)"
)

_ODD_KEYS: Final = (
    "psi: of the keys, %s: rows match only if the other party writes them the same way, character "
    "by character; otherwise they are left out without an error"
)
_NO_KEY: Final = frozenset(
    {"", "nan", "NaN", "NAN", "<NA>", "NaT", "None", "null", "NULL", "N/A", "#N/A"}
)
"""What stands for a missing key, in files and where others turn one into text."""

Row = tuple[str, ...]
"""The key of one row, as text, with a part for each key column."""


@dataclass(frozen=True, slots=True)
class Query:
    """One party's arguments for an intersection.

    Attributes:
        table: its table, see `redislink.spu.tables.read_table`.
        keys: the columns by which rows are matched.
        columns: the columns that it wants; None means all.
        protocol: one of `PROTOCOLS`.
    """

    table: Any = field(repr=False)
    keys: tuple[Any, ...]
    columns: tuple[Any, ...] | None
    protocol: str

    @classmethod
    def check(cls, party: str, table: Any, keys: Any, columns: Any, protocol: str) -> Self:
        """Check the arguments of `redislink.Session.psi`.

        Raises:
            UsageError: keys, columns or protocol are not valid.
        """
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"{party}: psi has no protocol {protocol!r:.40}: use one of {', '.join(PROTOCOLS)}"
            )
        own_keys = _names(party, "keys", keys)
        if not own_keys:
            raise UsageError(f"{party}: psi needs a column to match rows by: name one in keys=")
        wanted = None if columns is None else _names(party, "columns", columns)
        return cls(table, own_keys, wanted, protocol)

    def load(self) -> tuple[list[Row], Table]:
        """Read the table: the keys of all rows, and the wanted columns.

        Raises:
            TableError, OSError: the table is not valid.
            Exception: whatever the function that returns the table raises.
        """
        table = read_table(self.table)
        try:
            return keys_of(table, self.keys), select_columns(table, self.columns)
        except TableError as error:
            if not isinstance(self.table, str | os.PathLike):
                raise
            raise TableError(f"{os.fspath(self.table)}: {error}") from None


def intersect_tables(
    steps: Steps,
    communicator: Communicator,
    pair: Sequence[str],
    query: Query,
    abort: Callable[..., None],
) -> Table | None:
    """Make the step ``psi`` of a session.

    Args:
        steps: the session's steps.
        communicator: the session's communicator.
        pair: the two parties that take part, in rank order.
        query: this party's arguments; ignored if it takes no part.
        abort: ends the session, and gives the peers a reason; see `Communicator.abort`.

    Returns:
        The columns with the common rows, in the order of their keys; None if this party takes no
        part.

    Raises:
        as `redislink.Session.psi`.
    """
    me = communicator.party
    call = f"psi({query.protocol}, {len(query.keys)} keys; {', '.join(pair)})"
    with steps.step(call, pair, touches=pair) as step:
        steps.intersects(step, query.protocol, pair)
        if me not in pair:
            return None
        if step.recorded is not None and step.recorded.kind != "raised":
            return table_again(step.recorded)
        if step.recorded is not None:
            failed = error_again(step.recorded, me)
        else:
            (peer,) = (party for party in pair if party != me)
            log = PartyLogger(communicator.session, me, NAME)
            try:
                rows, columns = query.load()
                if step.is_kept:
                    check_kept(columns)
            except Exception as error:  # noqa: BLE001 - raised below, where the step has ended
                failed = error
                if isinstance(error, TableError):
                    failed = TableError(f"{me}: psi: {error}")
                step.gives(partial(error_given, failed))
                steps.tell_failure([peer], type(failed).__name__, failed)
                with suppress(PeerError):  # it would hide this party's own error
                    steps.recv(peer)
            else:
                salt = _agree(steps, peer, call, len(rows))
                found: list[int] = []
                if salt is not None:
                    line = communicator.sub(_NAMESPACE).sub(str(steps.number))
                    own = digests(rows, salt)
                    if odd := ways_of_writing(rows):
                        log.warning(_ODD_KEYS, "; ".join(odd))
                    try:
                        found = intersect(line, peer, pair.index(me), query.protocol, own)
                    except BaseException as error:
                        abort(reason_for_peers(error), retryable=may_pass(error))
                        raise
                if not found:
                    log.warning(_NONE_COMMON, peer)
                table = take_rows(columns, sorted(found, key=lambda number: rows[number]))
                step.gives(partial(table_given, table))
                return table
    raise failed


def intersect(
    communicator: Communicator, peer: str, rank: int, protocol: str, own: bytes
) -> list[int]:
    """Find which of this party's digests the peer also has.

    Args:
        communicator: a communicator in a namespace of this intersection only.
        peer: the other party, which makes the same call.
        rank: this party's rank among the two, 0 or 1.
        protocol: one of `PROTOCOLS`.
        own: this party's digests, made by `digests`.

    Returns:
        The positions of the common ones, from 0.

    Raises: see `PsiRelay.run`.
    """
    return PsiRelay(communicator, peer).run(rank, protocol, own)


def ways_of_writing(rows: Sequence[Row]) -> list[str]:
    """In which ways keys are written that another party may write differently; for people."""
    texts = [part for row in rows for part in row]
    spaced = sum(text != text.strip() for text in texts)
    upper, lower = any(map(str.isupper, texts)), any(map(str.islower, texts))
    composed = sum(not (text.isascii() or is_normalized("NFC", text)) for text in texts)
    return [
        said
        for said, holds in (
            (f"{spaced} begin or end with a space", spaced),
            ("some are in upper case and some in lower", upper and lower),
            (f"{composed} are not in Unicode's form NFC", composed),
        )
        if holds
    ]


def keys_of(table: Table, keys: Sequence[Any]) -> list[Row]:
    """The key of every row, as text.

    Raises:
        TableError: a column is missing, a key is empty or neither text nor an integer, or two rows
            have the same key.
    """
    columns = [_as_text(name, column) for name, column in select_columns(table, keys).items()]
    rows = list(zip(*columns, strict=True))
    if len(set(rows)) < len(rows):
        first: dict[Row, int] = {}
        for number, row in enumerate(rows, 1):
            if row in first:
                named = " and ".join(map(str, keys))
                raise TableError(f"rows {first[row]} and {number} have the same {named}: keep one")
            first[row] = number
    return rows


def digests(rows: Sequence[Row], salt: bytes) -> bytes:
    """The digests of all keys, concatenated.

    Args:
        rows: the keys.
        salt: the 32-byte secret of this intersection.
    """
    found = bytearray()
    for row in rows:
        text = "".join(f"{len(part)}:{part}" for part in row)
        found += hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES, key=salt).digest()
    return bytes(found)


def _names(party: str, what: str, names: Any) -> tuple[Any, ...]:
    given = (names,) if isinstance(names, str) else names
    with suppress(TypeError):
        chosen = tuple(given)
        if len(set(chosen)) == len(chosen):
            return chosen
    raise UsageError(
        f"{party}: psi takes {what}= as the name of a column, or as names without duplicates"
    )


def _as_text(name: Any, column: Any) -> list[str]:
    for number, value in enumerate(column, 1):
        if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
            raise TableError(
                f"column {name!r:.80}, row {number} holds {type(value).__name__}: keys are text "
                "or integers: convert the column, and leave out rows that have no key"
            )
    texts = [str(value) for value in column]
    empty = [number for number, text in enumerate(texts, 1) if text.strip() in _NO_KEY]
    if empty:
        more = f" ({len(empty)} rows do)" if len(empty) > 1 else ""
        raise TableError(
            f"column {name!r:.80}, row {empty[0]} (after the header) holds an empty key, or a word "
            f"for a missing one, such as nan{more}: rows of two parties would match because "
            "nothing is known of either: leave such rows out"
        )
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        number = next(n for n, text in enumerate(texts, 1) if not _is_unicode(text))
        raise TableError(
            f"column {name!r:.80}, row {number} holds half a surrogate pair, which is not text: "
            "read the file again with the right encoding"
        ) from None
    return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _agree(steps: Steps, peer: str, call: str, count: int) -> bytes | None:
    """Tell the peer that this party's table is valid, and make a secret with the peer.

    Returns:
        The secret; None if either party has no rows, so that none can be common.

    Raises:
        LoadFailed: the peer's table is not valid.
        ProgramDiverged, PeerError: as for a receive of a step.
    """
    mine = os.urandom(_NONCE_BYTES)
    steps.send(peer, [mine, count])
    match steps.recv(peer):
        case str(kind):
            raise LoadFailed(peer, call, kind)
        case [bytes(theirs), int(others)] if len(theirs) == _NONCE_BYTES:
            if not count or not others:
                return None
            return hashlib.sha256(_PURPOSE + b"".join(sorted((mine, theirs)))).digest()
        case _:
            raise steps.not_understood(peer)
