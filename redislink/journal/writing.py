"""Writes one segment: it gets its name once what it begins with is on disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import msgpack

from redislink.identity import Identity
from redislink.journal import format as layout
from redislink.journal.contents import (
    UNFINISHED,
    Binding,
    Contents,
    Record,
    Segment,
    segment_name,
)
from redislink.journal.disk import Buffer, Disk
from redislink.journal.format import Kind


class SegmentWriter:
    """The segment that this run writes."""

    def __init__(
        self,
        contents: Contents,
        binding: Binding,
        identity: Identity,
        disk: Disk,
        *,
        replaces: bool,
    ) -> None:
        """Begin the segment that follows ``contents``, under a temporary name.

        Args:
            contents: what the journal holds.
            binding: what it belongs to.
            identity: the party's key pair.
            disk: the file system.
            replaces: the segment is to hold all that is alive, in place of those before it.

        Raises:
            OSError: it cannot be written.
        """
        number = contents.next_segment
        previous = contents.segments[-1].end if contents.segments and not replaces else 0
        first = {
            **binding.packed(),
            "began": int(time.time()),
            "replaces": replaces,
            "previous": previous,
            "entry": contents.next_entry,
            "blob": contents.next_blob,
        }
        header = layout.Header.make(number, identity)
        self._path = contents.path
        self._disk = disk
        self._unfinished = self._path / (segment_name(number) + UNFINISHED)
        self._tail = 0
        self._synced: int | None = None
        self.segment = Segment(
            number, disk.create(self._unfinished), header.cipher(identity), binding, first
        )
        """What is being written."""
        with self._unlinked_on_error():
            self.segment.file.write(header.encode())
            self._tail = layout.HEADER_BYTES
            self.write(Kind.FIRST, msgpack.packb(first))

    def write(self, kind: Kind, body: Buffer) -> Record:
        """Append a record."""
        segment = self.segment
        sealed = segment.cipher.seal(segment.records, kind, body)
        length = len(sealed) - layout.RECORD_BYTES
        record = Record(segment, segment.records, kind, self._tail, length)
        segment.records += 1
        segment.file.write(sealed)
        self._tail += len(sealed)
        return record

    def write_entry(
        self, number: int, body: bytes, blobs: Sequence[tuple[int, Sequence[Record] | None]]
    ) -> Record:
        """Append an entry, after the pieces of its blobs; a blob without records is gone."""
        said = [(blob, None if pieces is None else len(pieces)) for blob, pieces in blobs]
        return self.write(Kind.ENTRY, msgpack.packb([self._on_disk, number, said, body]))

    def write_gone(self, entries: Sequence[int], blobs: Sequence[int]) -> None:
        """Append a record that says that entries and blobs are no longer wanted."""
        self.write(Kind.GONE, msgpack.packb([self._on_disk, entries, blobs]))

    @property
    def _on_disk(self) -> int:
        """How far the segment is on disk, for whoever reads what is written now.

        Nobody reads a segment before it has its name, and then all before that is on disk.
        """
        return self._tail if self._synced is None else self._synced

    @property
    def is_on_disk(self) -> bool:
        """Whether all that was written is on disk."""
        return self._synced == self._tail

    def sync(self) -> None:
        """Return once all that was written is on disk."""
        self.segment.file.sync()
        self._synced = self._tail

    def commit(self) -> None:
        """Let all that was written count."""
        self.segment.end = self._tail

    def cut_back(self) -> None:
        """Take back what does not count, as far as the disk lets us."""
        with contextlib.suppress(OSError):
            self.segment.file.truncate(self.segment.end)
            self.segment.file.sync()

    def finish(self) -> None:
        """Put on disk what was written so far, and let it count.

        Raises:
            OSError: it cannot be written; nothing has happened.
        """
        with self._unlinked_on_error():
            self.sync()
        self.commit()

    def take_name(self, contents: Contents) -> None:
        """Become the last segment of ``contents``, after `finish`.

        Raises:
            OSError: it may have its name or not. So nobody may write into the segment before it,
                because this one says how long that is.
        """
        number = self.segment.number
        contents.segments.append(self.segment)
        contents.next_segment = number + 1
        self._disk.rename(self._unfinished, self._path / segment_name(number))
        self._disk.sync_directory(self._path)

    @contextlib.contextmanager
    def _unlinked_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the file, which has no name of a segment yet."""
        self.segment.file.close()
        with contextlib.suppress(OSError):
            self._disk.unlink(self._unfinished)
