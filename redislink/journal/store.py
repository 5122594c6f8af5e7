"""The store: entries and blobs on disk, sealed, appended, and found again after a crash.

Rules:
- `JournalStore.append` returns when all is on disk. What had not returned may be there after a
  crash, or not; a part of it never is.
- A run writes into segments of its own: see `redislink.journal.format`.
- A segment takes its name only when its first record is on disk, so one that has a name is whole
  up to there. It says how far the segment before it counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import msgpack

from redislink.errors import JournalError, UsageError
from redislink.identity import Identity
from redislink.journal import format as layout
from redislink.journal.contents import (
    UNFINISHED,
    Binding,
    Contents,
    Entry,
    Record,
    Segment,
    damaged,
    read_contents,
    segment_name,
)
from redislink.journal.disk import Buffer, Disk, File, OsDisk
from redislink.journal.format import FRESH, Kind

OS_DISK: Final = OsDisk()
LOCK: Final = "lock"


class JournalStore:
    """The journal of one party in one session. Any thread may call its methods.

    Make one with `JournalStore.open`.
    """

    def __init__(self, path: Path, binding: Binding, identity: Identity, disk: Disk) -> None:
        self.path = path
        """The journal's own directory."""
        self._binding = binding
        self._identity = identity
        self._disk = disk
        self._lock = threading.Lock()
        self._held: File | None = None
        self._contents = Contents(path)
        self._freed: deque[int] = deque()
        """Blobs that `free` was told of, and that no record says yet."""
        self._synced = 0
        """How far this run's segment is on disk."""
        self._tail = 0
        """How far it is written."""
        self._unsaid: list[int] = []
        """Blobs that are gone, and that no record says yet."""
        self._failed: str | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        binding: Binding,
        identity: Identity,
        *,
        fresh: bool = False,
        disk: Disk = OS_DISK,
    ) -> Self:
        """Open the journal of a party in a session, or begin one.

        Args:
            directory: holds a directory ``<session>.<party>`` for each journal; made if missing.
            binding: what the journal belongs to.
            identity: the party's key pair, without which the journal cannot be opened.
            fresh: begin a new one. An old one gets the name ``<session>.<party>.aside-<time>``.
            disk: the file system.

        Raises:
            JournalError: it cannot be opened; the message says why and what to do.
        """
        store = cls(directory / binding.name, binding, identity, disk)
        try:
            store._begin(fresh=fresh)
        except OSError as error:
            store.close()
            raise _cannot(store.path, "be opened", error) from None
        except BaseException:
            store.close()
            raise
        return store

    # -- reading ---------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Yield every entry that was not dropped, in the order in which they were appended.

        Raises:
            JournalError: one cannot be read.
        """
        with self._lock:
            numbers = list(self._contents.entries)
        for number in numbers:
            with self._lock:
                kept = self._contents.entries.get(number)
                if kept is None:
                    continue
                said = msgpack.unpackb(self._opened(kept[0]))
            yield Entry(number, said[3], kept[1])

    def has(self, blob: int) -> bool:
        """Whether a blob can be read: it was appended, and not freed or dropped."""
        with self._lock:
            self._take_freed()
            return blob in self._contents.blobs

    def read(self, blob: int) -> bytes:
        """Return the bytes of a blob.

        Raises:
            JournalError: it is not there any more, or cannot be read.
        """
        with self._lock:
            pieces = self._contents.blobs.get(blob)
            if pieces is None:
                raise JournalError(f"journal {self.path}: blob {blob} is not in it any more")
            return b"".join(map(self._opened, pieces))

    @property
    def size(self) -> int:
        """Bytes of all files that count."""
        with self._lock:
            return self._contents.size

    @property
    def live_bytes(self) -> int:
        """Bytes of what is still wanted; the rest of `size` goes at the next compaction."""
        with self._lock:
            return self._contents.live

    # -- writing ---------------------------------------------------------------------------------

    def append(
        self, body: bytes, blobs: Sequence[Sequence[Buffer]] = (), *, durable: bool = True
    ) -> Entry:
        """Append an entry. Return when it and its blobs are on disk.

        Args:
            body: what `entries` gives back, at most 64 MiB.
            blobs: each in parts, which are stored as one.
            durable: False: return at once; it is on disk after the next append that is durable.

        Raises:
            JournalError: it cannot be written. The journal takes no more entries, but what it holds
                stays good.
        """
        if len(body) > layout.MOST_BODY:
            raise UsageError(
                f"a journal entry has {len(body)} bytes, more than {layout.MOST_BODY}: put what is "
                "large into a blob"
            )
        with self._lock, self._writing():
            contents = self._contents
            number, blob = contents.next_entry, contents.next_blob
            self._write_gone(())
            said, kept = [], []
            for parts in blobs:
                pieces = [self._write(Kind.PIECE, piece) for piece in _pieces(parts)]
                said.append([blob, len(pieces)])
                kept.append((blob, pieces))
                blob += 1
            record = self._write(Kind.ENTRY, msgpack.packb([self._synced, number, said, body]))
            if durable:
                self._sync()
            contents.add(number, record, kept)
            return Entry(number, body, contents.entries[number][1])

    def free(self, blobs: Iterable[int]) -> None:
        """Say that blobs are no longer wanted. Takes no lock and writes nothing by itself.

        So it may be called by a finalizer. The next entry carries it to the disk.
        """
        self._freed.extend(blobs)

    def drop(self, entries: Iterable[int]) -> None:
        """Roll back: take entries and their blobs out of the journal. Return when it is on disk.

        Raises:
            JournalError: it cannot be written.
        """
        with self._lock, self._writing():
            self._write_gone(sorted(entries))
            self._sync()

    def close(self) -> None:
        """Close the files and release the lock; twice is harmless."""
        with self._lock:
            self._contents.close()
            self._failed = "is closed"
            if self._held is not None:
                self._held.close()

    # -- within ----------------------------------------------------------------------------------

    def _begin(self, *, fresh: bool) -> None:
        _make_directories(self.path, self._disk)
        self._held = lock(self.path, self._disk)
        if fresh and any(name != LOCK for name in self._disk.names(self.path)):
            held = self._put_aside()
            self._held.close()
            self._held = held
        contents = self._contents = read_contents(self.path, self._identity, self._disk)
        for segment in contents.segments:
            self._check(segment)
        for name in contents.stale:
            self._disk.unlink(self.path / name)
        previous = contents.segments[-1] if contents.segments else None
        if previous is not None:
            # What was read may be in memory only, if the last run was killed before it synced.
            previous.file.sync()
        self._new_segment(previous)

    def _put_aside(self) -> File:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._disk.rename(self.path, self.path.with_name(f"{self.path.name}.aside-{stamp}"))
        _make_directories(self.path, self._disk)
        return lock(self.path, self._disk)

    def _check(self, segment: Segment) -> None:
        found, mine = segment.binding, self._binding
        for what, theirs, ours, remedy in (
            ("session", found.session, mine.session, "give this session a directory of its own"),
            ("party", found.party, mine.party, "give each party a directory of its own"),
            ("program", found.program, mine.program, "run that program"),
            ("versions", found.versions, mine.versions, "install those versions"),
        ):
            if theirs != ours:
                raise JournalError(
                    f"journal {self.path}: belongs to another {what} ({theirs}; this is {ours}): "
                    f"{remedy}, {FRESH}"
                )
        if found.cluster_digest != mine.cluster_digest:
            raise JournalError(
                f"journal {self.path}: was written with another cluster file "
                f"(digest {found.cluster_digest.hex()[:16]}, and this one's is "
                f"{mine.cluster_digest.hex()[:16]}): use that cluster file, {FRESH}"
            )

    def _new_segment(self, previous: Segment | None) -> None:
        contents = self._contents
        number = contents.next_segment
        contents.next_segment += 1
        name = segment_name(number)
        header = layout.Header.make(number, self._identity)
        first = {
            "session": self._binding.session,
            "party": self._binding.party,
            "cluster": self._binding.cluster_digest,
            "versions": self._binding.versions,
            "program": self._binding.program,
            "began": int(time.time()),
            "replaces": previous is None,
            "previous": previous.end if previous is not None else 0,
            "entry": contents.next_entry,
            "blob": contents.next_blob,
        }
        cipher = header.cipher(self._identity)
        record = cipher.seal(0, Kind.FIRST, msgpack.packb(first))
        unfinished = self.path / (name + UNFINISHED)
        file = self._disk.create(unfinished)
        end = layout.HEADER_BYTES + len(record)
        contents.segments.append(Segment(number, file, cipher, self._binding, first, 1, end))
        file.write(header.encode() + record)
        file.sync()
        self._disk.rename(unfinished, self.path / name)
        self._disk.sync_directory(self.path)
        self._synced = self._tail = end

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if self._failed is not None:
            raise JournalError(f"journal {self.path}: {self._failed}")
        self._take_freed()
        segment = self._contents.segments[-1]
        try:
            yield
        except BaseException as error:
            # Never go on in this segment: its next nonces may have been used.
            self._failed = "has failed before, and takes no more entries: start again"
            with contextlib.suppress(OSError):
                segment.file.truncate(segment.end)
                segment.file.sync()
            if isinstance(error, OSError):
                raise _cannot(self.path, "be written", error) from None
            raise
        segment.end = self._tail

    def _write(self, kind: Kind, body: Buffer) -> Record:
        segment = self._contents.segments[-1]
        sealed = segment.cipher.seal(segment.records, kind, body)
        record = Record(
            segment, segment.records, kind, self._tail, len(sealed) - layout.RECORD_BYTES
        )
        segment.records += 1
        segment.file.write(sealed)
        self._tail += len(sealed)
        return record

    def _write_gone(self, entries: Sequence[int]) -> None:
        if entries or self._unsaid:
            self._write(Kind.GONE, msgpack.packb([self._synced, entries, self._unsaid]))
            self._contents.forget(entries, ())
            self._unsaid = []

    def _take_freed(self) -> None:
        while self._freed:
            blob = self._freed.popleft()
            if blob in self._contents.blobs:
                self._contents.forget((), [blob])
                self._unsaid.append(blob)

    def _sync(self) -> None:
        self._contents.segments[-1].file.sync()
        self._synced = self._tail

    def _opened(self, record: Record) -> bytes:
        try:
            body = record.open()
        except OSError as error:
            raise _cannot(self.path, "be read", error) from None
        if body is None:
            raise damaged(self.path, segment_name(record.segment.number))
        return body


def _pieces(parts: Sequence[Buffer]) -> Iterator[Buffer]:
    """The bytes of a blob in pieces. Large parts are not copied."""
    short = bytearray()
    for part in parts:
        view = memoryview(part)
        if not view.nbytes:
            continue
        view = view.cast("B")
        if short and len(short) + len(view) > layout.PIECE_BYTES:
            yield short
            short = bytearray()
        if len(view) < layout.PIECE_BYTES:
            short += view
            continue
        for start in range(0, len(view), layout.PIECE_BYTES):
            yield view[start : start + layout.PIECE_BYTES]
    if short:
        yield short


def lock(path: Path, disk: Disk) -> File:
    """Lock a journal's directory.

    Raises:
        JournalError: another process has locked it.
        OSError: it cannot be locked.
    """
    try:
        return disk.lock(path / LOCK, f"process {os.getpid()}")
    except BlockingIOError:
        holder = ""
        with contextlib.suppress(OSError):
            file = disk.open(path / LOCK)
            holder = file.read(100, 0).decode(errors="replace")
            file.close()
        raise JournalError(
            f"journal {path}: {holder or 'another process'} uses it: end that process first, or "
            "give this one another directory"
        ) from None


def _make_directories(path: Path, disk: Disk) -> None:
    """Make the journal's directory and those above it; refuse one that is not its owner's only."""
    missing = []
    above = path.parent
    while disk.status(above) is None:
        missing.append(above)
        above = above.parent
    for directory in reversed(missing):
        disk.make_directory(directory)
        disk.sync_directory(directory.parent)
    status = disk.status(path)
    if status is None:
        disk.make_directory(path)
        disk.sync_directory(path.parent)
        return
    check_directory(path, status)


def check_directory(path: Path, status: os.stat_result) -> None:
    """Refuse what is no directory of this user's own.

    Raises:
        JournalError: it says what to do.
    """
    if stat.S_ISLNK(status.st_mode):
        raise JournalError(f"journal {path}: is a symbolic link: name the directory itself")
    if not stat.S_ISDIR(status.st_mode):
        raise JournalError(f"journal {path}: is a file, not a directory: name another directory")
    if status.st_uid != os.geteuid():
        raise JournalError(
            f"journal {path}: belongs to another user: run this as its owner, or name another "
            "directory"
        )
    if status.st_mode & 0o077:
        raise JournalError(
            f"journal {path}: others on this machine can use the directory: run chmod 700 {path}"
        )


_REMEDIES: Final = {
    errno.ENOSPC: "free space there, then start again: the run goes on from what it holds",
    errno.EDQUOT: "raise the quota or free space, then start again: the run goes on from there",
    errno.EROFS: "name a directory that can be written",
    errno.EACCES: "run this as the owner of the directory, or name another one",
    errno.ENOTDIR: "name a directory, not a file",
}


def _cannot(path: Path, what: str, error: OSError) -> JournalError:
    remedy = _REMEDIES.get(error.errno or 0, "check the disk, then start again")
    return JournalError(f"journal {path}: cannot {what} ({error.strerror or error}): {remedy}")
