"""`AuditLog`: writes an audit record.

Rules:
- Lines are only ever appended. One process at a time has the file open (`flock`).
- A line that must not be lost is on disk before `record` returns. Others are within a second, if
  more lines follow, and in any case when the file is closed.
- What a crash has torn off the end is removed when the file is opened again, and a line says so.
  Anything else that is not as it was written is refused, and stays as it is.
- A record that cannot be written any more raises on every call: whoever needs it must not go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from redislink.audit.chain import Head, HeadFile, first_of, follows, is_by, read_head
from redislink.audit.records import (
    MOST_LINE,
    VERSION,
    FileSaid,
    MendedSaid,
    Record,
    Said,
    encode_line,
    make_said,
    parse_line_untrusted,
    with_signature,
)
from redislink.errors import AuditError, RedisLinkError
from redislink.files import OWNER_ONLY, put_on_disk, sync_directory
from redislink.forking import dies_in_child, used_after_fork
from redislink.identity import Identity
from redislink.identity.signing import SigningKey, format_signing_key

_MAY_WAIT: Final = "step"
"""The kind of which a power cut may take the last second. What leaves this party has its own."""
_SYNC_INTERVAL: Final = 1.0
"""Seconds."""
_OPENING: Final = b'{"n":0,"time":"'
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class AuditLog:
    """An audit record that is open for writing. Any thread may use it."""

    def __init__(
        self, path: Path, party: str, key: SigningKey | None, clock: Callable[[], float]
    ) -> None:
        """Not for users: call `open`."""
        self.path = path
        self.party = party
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._broken: RedisLinkError | None = None
        self._next = 0
        self._digest = ""
        self._last = self._size = self._synced = 0
        self._synced_at = time.monotonic()
        self._head: HeadFile | None = None
        self._descriptor = self._open()
        dies_in_child(self)

    @classmethod
    def open(
        cls,
        path: str | Path,
        party: str,
        identity: Identity | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the record of a party to append to it, or begin one.

        Args:
            path: the file.
            party: the name of the party, or of the driver.
            identity: its key pair, which signs each line; without one the lines are only chained.
            clock: gives UTC seconds since 1970.

        Raises:
            AuditError: the file cannot be opened or written; another process has it open; it is
                another party's or signed with another key; or it is not as it was written.
        """
        key = None if identity is None else SigningKey(identity)
        log = cls(Path(path).absolute(), party, key, clock)
        try:
            log._begin()
        except BaseException:
            log.close()
            raise
        return log

    @property
    def lines(self) -> int:
        """How many lines the record has."""
        return self._next

    def record(self, kind: str, **fields: Any) -> None:
        """Append a line.

        Args:
            kind: what it is about, a key of `redislink.audit.records.KINDS`.
            fields: what it says, as the class of that kind lists it.

        Raises:
            UsageError: there is no such kind or field.
            AuditError: it cannot be written.
        """
        may_wait = kind == _MAY_WAIT or fields.get("from_journal", False)
        self.append(make_said(kind, fields), durable=not may_wait)

    def append(self, said: Said, *, durable: bool) -> None:
        """Append a line.

        Args:
            said: what it says.
            durable: whether it must be on disk when the call returns.

        Raises:
            AuditError: it cannot be written.
        """
        with self._lock:
            if self._broken is not None:
                raise self._broken.afresh()
            size = self._size
            try:
                self._append(said)
                if durable or time.monotonic() - self._synced_at >= _SYNC_INTERVAL:
                    self._sync()
            except OSError as error:
                self._broken = failed = self._cannot("be written", error)
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                raise failed.afresh() from None
            except BaseException:  # of a signal
                if self._size == size:  # in the middle of a line, behind which none may come
                    self._broken = AuditError(
                        f"audit record {self.path}: writing was interrupted: open it again"
                    )
                    os.ftruncate(self._descriptor, size)
                raise

    def close(self) -> None:
        """Put everything on disk, and close the file. Safe to call twice."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                if self._broken is None and self._head is not None:
                    self._sync()
                    self._head.sync()
            except OSError as error:
                raise self._cannot("be written", error) from None
            finally:
                self._broken = AuditError(f"audit record {self.path}: is closed: open it again")
                if self._head is not None:
                    self._head.close()
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def die_in_child(self) -> None:
        """In the child of a fork nothing is written, and the parent's lock stays."""
        self._lock = threading.Lock()
        self._broken = used_after_fork("the audit record")
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._head is not None:
                self._head.close()

    # -- opening -----------------------------------------------------------------------------

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, OWNER_ONLY)
        except OSError as error:
            raise self._cannot("be opened", error) from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise AuditError(f"audit record {self.path}: is not a regular file: name another")
            if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
                raise AuditError(
                    f"audit record {self.path}: others on this machine can write it: run chmod 600 "
                    "on it as its owner, or name another file"
                )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise AuditError(
                    f"audit record {self.path}: another session or process writes it: give each "
                    "its own file; {session} and {party} in the name stand for theirs"
                ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _begin(self) -> None:
        """Find where the record ends, and begin it if it is new.

        Raises:
            AuditError: it is not as it was written, or is another's.
        """
        try:
            first = next(self._read_lines(0), None)
            if first is not None:
                self._check_first(first)  # so that another key is not taken for a change
            head = read_head(self.path, self._public_key)
            size = os.fstat(self._descriptor).st_size
            end = self._find_end(first, head, size)
            torn = size - end
            if torn:
                os.ftruncate(self._descriptor, end)
            self._head = HeadFile(self.path, self._key)
            if end == 0:
                self._append(FileSaid(version=VERSION, party=self.party, key=self._own_key))
            elif head is None:
                self._append(MendedSaid(bytes=0, why="no head"))
            if torn:
                self._append(MendedSaid(bytes=torn, why="torn"))
            if self._size > end:
                self._sync()
            if end == 0:
                sync_directory(self.path.parent)
        except OSError as error:
            raise self._cannot("be written", error) from None

    def _find_end(self, first: bytes | None, head: Head | None, size: int) -> int:
        """Take up the last line that counts; return where it ends, 0 if there is none."""
        if first is None:
            if head is not None:
                raise self._was_changed(f"its {head.n + 1} lines are missing")
            begun = os.pread(self._descriptor, len(_OPENING), 0)
            if not _OPENING.startswith(begun):  # somebody else's file
                raise AuditError(f"audit record {self.path}: is none: name another file")
            return 0
        last, at, end = parse_line_untrusted(first), 0, len(first) + 1
        if head is not None:
            if head.size > size:
                raise self._was_changed(f"it is shorter than {head.n + 1} lines: its tail is gone")
            line = os.pread(self._descriptor, head.size - head.at, head.at)
            try:
                last, at, end = parse_line_untrusted(line.removesuffix(b"\n")), head.at, head.size
            except AuditError:
                raise self._was_changed(f"line {head.n + 1} was changed") from None
            if last.digest != head.digest or last.n != head.n:
                raise self._was_changed(f"line {head.n + 1} was changed or replaced")
        for line in self._read_lines(end):
            try:
                found = parse_line_untrusted(line)
            except AuditError:
                break
            if not follows(found, last) or not is_by(found, self._public_key):
                raise self._was_changed(f"line {last.n + 2} was changed or replaced")
            last, at, end = found, end, end + len(line) + 1
        if any(_is_line(line) for line in self._read_lines(end)):
            raise self._was_changed(f"line {last.n + 2} was changed")
        self._take_up(last, at, end)
        return end

    def _take_up(self, last: Record, at: int, end: int) -> None:
        self._next, self._digest = last.n + 1, last.digest
        self._last, self._size = at, end

    @property
    def _public_key(self) -> bytes | None:
        return None if self._key is None else self._key.public_key

    @property
    def _own_key(self) -> str | None:
        return None if self._key is None else format_signing_key(self._key.public_key)

    def _check_first(self, line: bytes) -> None:
        """Refuse a record that is another's, or whose first line was changed."""
        try:
            record, said = first_of(line)
        except AuditError as error:
            raise self._was_changed(str(error)) from None
        if said.version != VERSION:
            raise AuditError(
                f"audit record {self.path}: has format {said.version}, this version of redislink "
                f"writes {VERSION}: name another file"
            )
        if said.party != self.party:
            raise AuditError(
                f"audit record {self.path}: is of {said.party}, not of {self.party}: name another "
                "file"
            )
        if said.key != self._own_key:
            how = "is not signed" if said.key is None else "is signed with another key"
            raise AuditError(f"audit record {self.path}: {how}: keep it, and name another file")
        if not is_by(record, self._public_key):
            raise self._was_changed("line 1 was changed")

    def _read_lines(self, start: int) -> Iterator[bytes]:
        """The lines from a place in the file on, without their ends; not what is left of one."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(start)
            while line := file.readline(MOST_LINE + 1):
                if line.endswith(b"\n") or len(line) > MOST_LINE:
                    yield line.removesuffix(b"\n")

    def _was_changed(self, what: str) -> AuditError:
        return AuditError(
            f"audit record {self.path}: {what}: keep the file for whoever looks into it "
            "(redislink audit verify), and name another one"
        )

    def _cannot(self, what: str, error: OSError) -> AuditError:
        reason = error.strerror or type(error).__name__
        return AuditError(
            f"audit record {self.path}: cannot {what} ({reason}): check the path and the disk"
        )

    # -- writing -----------------------------------------------------------------------------

    def _append(self, said: Said) -> None:
        """Write a line. Needs the lock, or that nobody else has this object yet."""
        line = encode_line(self._next, self._clock(), said, self._digest)
        if self._key is not None:
            line = with_signature(line, self._key)
        if len(line) >= MOST_LINE:
            raise OSError(errno.EFBIG, f"a line of {len(line)} bytes is too long")
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._digest = hashlib.sha256(line).hexdigest()
        self._next += 1
        self._last, self._size = self._size, self._size + len(line) + 1

    def _sync(self) -> None:
        """Put the lines on disk, then the head pointer after them."""
        if self._synced < self._size and self._head is not None:
            put_on_disk(self._descriptor, only_data=True)
            self._head.write(Head(self._next - 1, self._last, self._size, self._digest))
            self._synced = self._size
        self._synced_at = time.monotonic()


def _is_line(line: bytes) -> bool:
    try:
        parse_line_untrusted(line)
    except AuditError:
        return False
    return True
