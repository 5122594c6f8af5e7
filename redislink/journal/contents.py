"""What a journal holds, read from its segments: where each entry and blob is, and what counts.

Rules:
- Reading changes nothing on the disk.
- Only the segment that was written last may have a torn end, because a segment is on disk before
  the next one takes its name. Anywhere else, what does not open is damage.
- A piece of a blob counts only if the entry after it opens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgpack

from redislink.errors import JournalError
from redislink.identity import Identity
from redislink.journal import format as layout
from redislink.journal.disk import Disk, File
from redislink.journal.format import FRESH, Kind

_SEGMENT: Final = re.compile(r"(\d{8,})\.journal")
UNFINISHED: Final = ".tmp"


@dataclass(frozen=True)
class Binding:
    """What a journal belongs to. It opens for nothing else.

    Attributes:
        session: name of the session.
        party: name of the party.
        cluster_digest: digest of the cluster file.
        versions: versions of redislink, SPU and JAX, as one line.
        program: what names the program; a journal opens only for an equal text.
    """

    session: str
    party: str
    cluster_digest: bytes
    versions: str
    program: str

    @property
    def name(self) -> str:
        """Name of the journal's directory."""
        return f"{self.session}.{self.party}"

    def packed(self) -> dict[str, Any]:
        """What the first record of a segment says of it."""
        return dict(vars(self))

    @classmethod
    def unpacked(cls, first: dict[str, Any]) -> Self:
        """Return what `packed` was of."""
        return cls(*(first[field.name] for field in dataclasses.fields(cls)))


@dataclass(frozen=True)
class Entry:
    """One record of the journal.

    Attributes:
        number: counts up for as long as the journal lives; no number is used twice.
        body: the bytes that were appended.
        blobs: numbers of the blobs that were appended with it.
    """

    number: int
    body: bytes = field(repr=False)
    blobs: tuple[int, ...]


@dataclass
class Segment:
    """One file of the journal."""

    number: int
    file: File
    cipher: layout.Cipher
    binding: Binding
    first: dict[str, Any]
    records: int = 0
    end: int = 0
    """How many bytes of it count."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record is."""

    segment: Segment
    index: int
    kind: Kind
    offset: int
    length: int

    @property
    def size(self) -> int:
        """Bytes of the record in its file."""
        return layout.RECORD_BYTES + self.length

    def open(self) -> bytes | None:
        """Read the body; None if it does not open."""
        sealed = self.segment.file.read(self.length, self.offset + layout.RECORD_BYTES)
        return self.segment.cipher.open(self.index, self.kind, sealed)


def segment_name(number: int) -> str:
    """Name of a segment's file."""
    return f"{number:08d}.journal"


def is_ours(name: str) -> bool:
    """Whether a file of this name is a segment, finished or not."""
    return _SEGMENT.fullmatch(name.removesuffix(UNFINISHED)) is not None


def check_binding(path: Path, found: Binding, wanted: Binding) -> None:
    """Refuse a journal of something else.

    Raises:
        JournalError: it says what differs, and what to do.
    """
    for what, theirs, ours, remedy in (
        ("of another session", found.session, wanted.session, "give each session a directory"),
        ("of another party", found.party, wanted.party, "give each party a directory"),
        ("of another program", found.program, wanted.program, "run that program"),
        ("from other versions", found.versions, wanted.versions, "install those versions"),
        (
            "from another cluster file",
            f"digest {found.cluster_digest.hex()[:16]}",
            f"digest {wanted.cluster_digest.hex()[:16]}",
            "use that cluster file",
        ),
    ):
        if theirs != ours:
            raise JournalError(
                f"journal {path}: is {what} ({theirs}; here it is {ours}): {remedy}, {FRESH}"
            )


def damaged(path: Path, what: str) -> JournalError:
    """An error for a journal whose bytes are not those that were written."""
    return JournalError(
        f"journal {path}: {what} is damaged, so nothing in the journal is used: check the disk, "
        f"{FRESH}"
    )


@dataclass
class Contents:
    """Everything that counts in a journal, without the bytes themselves."""

    path: Path
    segments: list[Segment] = field(default_factory=list)
    entries: dict[int, tuple[Record, tuple[int, ...]]] = field(default_factory=dict)
    blobs: dict[int, tuple[Record, ...]] = field(default_factory=dict)
    next_entry: int = 1
    next_blob: int = 1
    next_segment: int = 1
    live: int = 0
    """Bytes of the records of all entries and blobs that are still wanted."""
    stale: list[str] = field(default_factory=list)
    """Files that count for nothing: replaced ones, and unfinished ones."""
    torn: int = 0
    """Bytes after the last whole record."""

    @property
    def size(self) -> int:
        """Bytes of all segments, as far as they count."""
        return sum(segment.end for segment in self.segments)

    def add(self, number: int, record: Record, blobs: Iterable[tuple[int, Any]]) -> None:
        """Take in an entry; each blob comes with its records, or None if it is gone."""
        numbers = []
        for blob, records in blobs:
            numbers.append(blob)
            if records is not None:
                self.blobs[blob] = tuple(records)
                self.live += sum(piece.size for piece in records)
            self.next_blob = max(self.next_blob, blob + 1)
        self.entries[number] = record, tuple(numbers)
        self.live += record.size
        self.next_entry = max(self.next_entry, number + 1)

    def forget(self, entries: Iterable[int], blobs: Iterable[int]) -> None:
        """Take out what is no longer wanted; what is not there is ignored."""
        gone = list(blobs)
        for number in entries:
            if (kept := self.entries.pop(number, None)) is not None:
                self.live -= kept[0].size
                gone += kept[1]
        for blob in gone:
            self.live -= sum(piece.size for piece in self.blobs.pop(blob, ()))

    def opened(self, record: Record) -> bytes:
        """Read the body of a record.

        Raises:
            JournalError: it does not open.
            OSError: it cannot be read.
        """
        body = record.open()
        if body is None:
            raise damaged(self.path, segment_name(record.segment.number))
        return body

    def entry(self, number: int) -> Entry:
        """Read an entry; raises what `opened` does."""
        record, blobs = self.entries[number]
        return Entry(number, msgpack.unpackb(self.opened(record))[3], blobs)

    def emptied(self) -> Contents:
        """Contents without entries, which go on counting where these are."""
        return Contents(
            self.path,
            next_entry=self.next_entry,
            next_blob=self.next_blob,
            next_segment=self.next_segment,
        )

    def close(self) -> None:
        """Close all files."""
        for segment in self.segments:
            segment.file.close()


def read_contents(path: Path, identity: Identity, disk: Disk) -> Contents:
    """Read the segments of a journal. The caller has locked it.

    Raises:
        JournalError: it is damaged, or belongs to another identity or version.
        OSError: it cannot be read.
    """
    contents = Contents(path)
    try:
        _read(contents, identity, disk)
    except BaseException:
        contents.close()
        raise
    return contents


def _read(contents: Contents, identity: Identity, disk: Disk) -> None:
    path = contents.path
    numbers = {}
    for name in disk.names(path):
        if match := _SEGMENT.fullmatch(name):
            numbers[int(match[1])] = name
        elif is_ours(name):
            contents.stale.append(name)
    contents.next_segment = max(numbers, default=0) + 1
    for number in sorted(numbers, reverse=True):
        segment = _open_segment(path, number, identity, disk)
        contents.segments.insert(0, segment)
        if segment.first["replaces"]:
            break
    wanted = {segment.number for segment in contents.segments}
    contents.stale += [name for number, name in numbers.items() if number not in wanted]
    if contents.segments and not contents.segments[0].first["replaces"]:
        raise damaged(path, f"{segment_name(contents.segments[0].number - 1)} is missing: it")
    followers = [*contents.segments[1:], None]
    for segment, after in zip(contents.segments, followers, strict=False):
        if after is not None and after.number != segment.number + 1:
            raise damaged(path, f"{segment_name(segment.number + 1)} is missing: it")
        _read_records(contents, segment, after)


def _open_segment(path: Path, number: int, identity: Identity, disk: Disk) -> Segment:
    name = segment_name(number)
    file = disk.open(path / name)
    try:
        header = layout.Header.decode(file.read(layout.HEADER_BYTES, 0))
        if header.number != number:
            raise damaged(path, name)
        cipher = header.cipher(identity)
        claim = layout.decode_record(file.read(layout.RECORD_BYTES, layout.HEADER_BYTES))
        if claim is None or claim[0] != Kind.FIRST:
            raise damaged(path, name)
        sealed = file.read(claim[1], layout.HEADER_BYTES + layout.RECORD_BYTES)
        body = cipher.open(0, Kind.FIRST, sealed)
        if body is None:
            raise damaged(path, name)
    except layout.NotOurs as error:
        file.close()
        raise error.told(path / name) from None
    except BaseException:
        file.close()
        raise
    first = msgpack.unpackb(body)
    end = layout.HEADER_BYTES + layout.RECORD_BYTES + claim[1]
    return Segment(number, file, cipher, Binding.unpacked(first), first, 1, end)


def _read_records(contents: Contents, segment: Segment, after: Segment | None) -> None:
    """Take in the records of a segment, as far as they count."""
    there = segment.file.size()
    most = there if after is None else after.first["previous"]
    contents.next_entry = max(contents.next_entry, segment.first["entry"])
    contents.next_blob = max(contents.next_blob, segment.first["blob"])
    if there < most:
        raise damaged(contents.path, segment_name(segment.number))
    commits = _commits(contents.path, segment, most)
    if after is None:
        commits = _whole(commits)
    elif (commits[-1].end if commits else segment.end) != most:
        raise damaged(contents.path, segment_name(segment.number))
    for commit in commits:
        commit.apply(contents)
        segment.end = commit.end
    contents.torn += there - segment.end


@dataclass(frozen=True, slots=True)
class _Commit:
    """A record that opens, with the pieces before it."""

    record: Record
    pieces: list[Record]
    said: list[Any]

    @property
    def synced(self) -> int:
        """How far the segment was on disk before the first byte of this was written."""
        return int(self.said[0])

    @property
    def end(self) -> int:
        return self.record.offset + self.record.size

    @property
    def wanted(self) -> int:
        """How many pieces its blobs have."""
        if self.record.kind is Kind.GONE:
            return 0
        return sum(count or 0 for _, count in self.said[2])

    def apply(self, contents: Contents) -> None:
        if self.record.kind is Kind.GONE:
            contents.forget(self.said[1], self.said[2])
            return
        pieces = iter(self.pieces)
        contents.add(
            self.said[1],
            self.record,
            [
                (blob, None if count is None else [next(pieces) for _ in range(count)])
                for blob, count in self.said[2]
            ],
        )


def _commits(path: Path, segment: Segment, most: int) -> list[_Commit]:
    """Everything that opens, up to the first record that does not."""
    commits: list[_Commit] = []
    pieces: list[Record] = []
    broken: int | None = None
    for record in _walk(segment, most):
        if record.kind is Kind.PIECE:
            pieces.append(record)
            continue
        body = record.open()
        if body is None:
            broken = record.offset if broken is None else broken
            continue
        commit = _Commit(record, pieces, msgpack.unpackb(body))
        if broken is None and len(pieces) != commit.wanted:
            raise damaged(path, segment_name(segment.number))
        pieces = []
        if broken is None:
            commits.append(commit)
        elif commit.synced > broken:
            raise damaged(path, segment_name(segment.number))
    return commits


def _walk(segment: Segment, most: int) -> Iterator[Record]:
    """Records as their lengths claim, as far as the bytes are there."""
    offset, index = segment.end, 1
    while claim := layout.decode_record(segment.file.read(layout.RECORD_BYTES, offset)):
        record = Record(segment, index, claim[0], offset, claim[1])
        if offset + record.size > most:
            return
        yield record
        offset, index = offset + record.size, index + 1


def _whole(commits: list[_Commit]) -> list[_Commit]:
    """Those whose pieces open. Only pieces that were not yet on disk for sure are read."""
    synced = commits[-1].synced if commits else 0
    for number, commit in enumerate(commits):
        if any(piece.offset >= synced and piece.open() is None for piece in commit.pieces):
            return commits[:number]
    return commits
