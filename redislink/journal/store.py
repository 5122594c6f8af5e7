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
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from redislink.errors import JournalError, RedisLinkError, UsageError
from redislink.forking import dies_in_child, has_ended, used_after_fork
from redislink.identity import Identity
from redislink.journal import format as layout
from redislink.journal.contents import (
    Binding,
    Contents,
    Entry,
    Record,
    check_binding,
    read_contents,
    segment_name,
)
from redislink.journal.directory import LOCK, cannot, lock, make_directories, unused
from redislink.journal.disk import OS_DISK, Buffer, Disk, File
from redislink.journal.format import Kind
from redislink.journal.writing import SegmentWriter

LEAST_WASTED: Final = 16 << 20
"""In bytes: less is not worth a compaction."""
MOST_SEGMENTS: Final = 16
"""How many a start leaves: one comes with each."""


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
        self._writer: SegmentWriter
        self._freed: deque[int] = deque()
        """Blobs that `free` was told of, and that nobody has looked at yet."""
        self._unsaid: list[int] = []
        """Blobs that are gone, and that no record says yet."""
        self._spared = 0
        """Bytes that a compaction would have freed when the disk had no space for it."""
        self._ended: RedisLinkError | None = None
        """Why nothing can be done with the journal any more."""
        self._failed: JournalError | None = None
        """Why nothing can be written any more."""
        dies_in_child(self)

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
        # Absolute, because a program may change its directory while it runs.
        store = cls(directory.absolute() / binding.name, binding, identity, disk)
        try:
            store._begin(fresh=fresh)
        except OSError as error:
            store.close()
            raise cannot(store.path, "be opened", error) from None
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
        with self._reading() as contents:
            numbers = list(contents.entries)
        for number in numbers:
            with self._reading() as contents:
                if number not in contents.entries:
                    continue
                entry = contents.entry(number)
            yield entry

    def has(self, blob: int) -> bool:
        """Whether a blob can be read: it was appended, and not freed or dropped."""
        with self._reading() as contents:
            self._take_freed()
            return blob in contents.blobs

    def read(self, blob: int) -> bytes:
        """Return the bytes of a blob.

        Raises:
            UsageError: it is not there: `has` says so.
            JournalError: it cannot be read.
        """
        with self._reading() as contents:
            pieces = contents.blobs.get(blob)
            if pieces is None:
                raise UsageError(f"journal {self.path}: blob {blob} is not in it: ask has() first")
            return b"".join([contents.opened(piece) for piece in pieces])

    @property
    def size(self) -> int:
        """Bytes of all files that count."""
        with self._reading() as contents:
            return contents.size

    @property
    def live_bytes(self) -> int:
        """Bytes of what is still wanted; the rest of `size` goes at the next compaction."""
        with self._reading() as contents:
            self._take_freed()
            return contents.live

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
        views = [[memoryview(part) for part in parts] for parts in blobs]
        with self._lock, self._writing() as writer:
            contents = self._contents
            number, blob = contents.next_entry, contents.next_blob
            kept = [
                (blob + k, [writer.write(Kind.PIECE, piece) for piece in _pieces(parts)])
                for k, parts in enumerate(views)
            ]
            record = writer.write_entry(number, body, kept)
            if durable:
                writer.sync()
            contents.add(number, record, kept)
            return Entry(number, body, contents.entries[number][1])

    def sync(self) -> None:
        """Return when all entries are on disk, also those that another thread writes now.

        Raises:
            JournalError: see `append`.
        """
        with self._lock:
            if self._failed is None and self._ended is None and self._writer.is_on_disk:
                return
            with self._writing() as writer:
                writer.sync()

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
        gone = sorted(entries)
        with self._lock, self._writing() as writer:
            writer.write_gone(gone, ())
            writer.sync()
            self._contents.forget(gone, ())

    def close(self) -> None:
        """Close the files and release the lock; twice is harmless."""
        with self._lock:
            self._close(JournalError(f"journal {self.path}: is closed: open it again"))

    def die_in_child(self) -> None:
        """Close this process's copies of the files; the parent keeps them, and the lock."""
        self._lock = threading.Lock()
        self._close(used_after_fork(f"the journal {self.path}"))

    # -- within ----------------------------------------------------------------------------------

    def _close(self, why: RedisLinkError) -> None:
        if self._ended is None:
            self._ended = why
            self._contents.close()
            if self._held is not None:
                self._held.close()
            has_ended(self)

    def _begin(self, *, fresh: bool) -> None:
        disk = self._disk
        make_directories(self.path, disk)
        self._held = lock(self.path, disk)
        if fresh and any(name != LOCK for name in disk.names(self.path)):
            self._put_aside()
        # What is read may be in memory only, if the last run was killed before it synced.
        disk.sync_directory(self.path)
        contents = self._contents = read_contents(self.path, self._identity, disk)
        for segment in contents.segments:
            check_binding(self.path, segment.binding, self._binding)
        if contents.segments:
            contents.segments[-1].file.sync()
        for name in contents.stale:
            disk.unlink(self.path / name)
        if (self._wastes or len(contents.segments) >= MOST_SEGMENTS) and self._compact():
            return
        self._writer = SegmentWriter(
            contents, self._binding, self._identity, disk, replaces=not contents.segments
        )
        self._writer.finish()
        self._writer.take_name(contents)

    def _put_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = unused(self.path.with_name(f"{self.path.name}.aside-{stamp}"), self._disk)
        self._disk.rename(self.path, aside)
        make_directories(self.path, self._disk)
        held, self._held = self._held, lock(self.path, self._disk)
        if held is not None:
            held.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[SegmentWriter]:
        """Write records that count all together, or not at all."""
        self._check_open()
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        try:
            self._take_freed()
            if self._wastes:
                self._compact()
            writer = self._writer
            if self._unsaid:
                writer.write_gone((), self._unsaid)
            yield writer
        except BaseException as error:
            # Nothing more goes into this segment: its next nonces may have been used.
            self._writer.cut_back()
            if isinstance(error, OSError):
                self._failed = cannot(self.path, "be written", error)
                raise self._failed from None
            self._failed = (
                error
                if isinstance(error, JournalError)
                else JournalError(
                    f"journal {self.path}: takes no more entries, since writing was interrupted "
                    f"({type(error).__name__}): start again: the run goes on from what it holds"
                )
            )
            raise
        writer.commit()
        self._unsaid.clear()

    def _take_freed(self) -> None:
        while self._freed:
            blob = self._freed.popleft()
            if blob in self._contents.blobs:
                self._contents.forget((), [blob])
                self._unsaid.append(blob)

    @property
    def _wastes(self) -> bool:
        """Whether compaction is worth its copy of all that is alive."""
        contents = self._contents
        wasted = contents.size - contents.live
        return wasted > max(contents.live, LEAST_WASTED, 2 * self._spared)

    def _compact(self) -> bool:
        """Write all that is alive into one new segment, in place of the others.

        Returns:
            False if there is no space for it; then all stays as it is.

        Raises:
            OSError: nothing more can be written.
        """
        old = self._contents
        try:
            writer = SegmentWriter(old, self._binding, self._identity, self._disk, replaces=True)
            new = self._copied(writer)
        except OSError:
            self._spared = old.size - old.live
            return False
        writer.take_name(new)
        self._contents, self._writer = new, writer
        self._unsaid.clear()
        self._spared = 0
        old.close()
        for segment in old.segments:
            with contextlib.suppress(OSError):  # the next one to open the journal does it
                self._disk.unlink(self.path / segment_name(segment.number))
        return True

    def _copied(self, writer: SegmentWriter) -> Contents:
        """Write all that is alive, and tell where it is then."""
        old = self._contents
        new = old.emptied()

        def copy(piece: Record) -> Record:
            return writer.write(Kind.PIECE, old.opened(piece))

        try:
            for entry in map(old.entry, old.entries):
                kept = []
                for blob in entry.blobs:
                    pieces = old.blobs.get(blob)
                    kept.append((blob, None if pieces is None else list(map(copy, pieces))))
                record = writer.write_entry(entry.number, entry.body, kept)
                new.add(entry.number, record, kept)
        except BaseException:
            writer.discard()
            raise
        writer.finish()
        return new

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Contents]:
        with self._lock:
            self._check_open()
            try:
                yield self._contents
            except OSError as error:
                raise cannot(self.path, "be read", error) from None

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended.with_traceback(None)


def _pieces(parts: Sequence[memoryview]) -> Iterator[Buffer]:
    """The bytes of a blob in pieces. Large parts are not copied."""
    short = bytearray()
    for part in parts:
        if not part.nbytes:
            continue
        view = part.cast("B")
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
