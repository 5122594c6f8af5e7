"""What can be done with a journal while no run uses it: look at it, check it, destroy it.

Rule: nothing here shows what an entry or a blob holds, only how large it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from redislink.errors import JournalError
from redislink.identity import Identity
from redislink.journal.contents import (
    Binding,
    Contents,
    Entry,
    is_ours,
    read_contents,
    segment_name,
)
from redislink.journal.directory import LOCK, cannot, check_directory, lock, unused
from redislink.journal.disk import OS_DISK, Disk


@dataclass(frozen=True)
class Description:
    """What a journal holds.

    Attributes:
        path: the journal's own directory.
        binding: what it belongs to.
        began: when its oldest segment was begun, in seconds of Unix time; compaction moves it on.
        entries: all that were not dropped, in order. Their bodies belong to the session.
        blob_bytes: bytes on disk of each blob that is there, by number.
        segments: names of the files that count, oldest first.
        size: bytes of those files, as far as they count.
        live_bytes: bytes of what is still wanted.
        torn_bytes: bytes that a crash left, and that count for nothing.
    """

    path: Path
    binding: Binding
    began: int
    entries: tuple[Entry, ...]
    blob_bytes: dict[int, int]
    segments: tuple[str, ...]
    size: int
    live_bytes: int
    torn_bytes: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        entries: how many entries were opened.
        blobs: how many blobs were opened.
        size: bytes of the files, as far as they count.
        torn_bytes: bytes that a crash left, and that count for nothing.
        problems: one line for each entry or blob that does not open; empty if all is well.
    """

    entries: int
    blobs: int
    size: int
    torn_bytes: int
    problems: tuple[str, ...] = field(default=())


def find_journals(directory: Path, *, disk: Disk = OS_DISK) -> list[Path]:
    """Return the journals in a directory, in order of their names; or itself, if it is one.

    Raises:
        JournalError: the directory cannot be read.
    """
    try:
        if _is_journal(directory, disk):
            return [directory]
        paths = [directory / name for name in disk.names(directory)]
        return sorted(path for path in paths if _is_journal(path, disk))
    except OSError as error:
        raise cannot(directory, "be read", error) from None


def describe(directory: Path, identity: Identity, *, disk: Disk = OS_DISK) -> Description:
    """Say what a journal holds, without its values.

    Args:
        directory: the journal's own directory, as `find_journals` gives it.
        identity: the party's key pair.
        disk: the file system.

    Raises:
        JournalError: there is none, a run uses it, or it cannot be opened.
    """
    with _opened(directory, identity, disk) as contents:
        return Description(
            path=directory,
            binding=contents.segments[-1].binding,
            began=contents.segments[0].first["began"],
            entries=tuple(map(contents.entry, contents.entries)),
            blob_bytes={
                blob: sum(piece.size for piece in pieces) for blob, pieces in contents.blobs.items()
            },
            segments=tuple(segment_name(segment.number) for segment in contents.segments),
            size=contents.size,
            live_bytes=contents.live,
            torn_bytes=contents.torn,
        )


def verify(directory: Path, identity: Identity, *, disk: Disk = OS_DISK) -> Verification:
    """Open every entry and every blob of a journal.

    Args:
        directory: the journal's own directory, as `find_journals` gives it.
        identity: the party's key pair.
        disk: the file system.

    Raises:
        JournalError: there is none, a run uses it, or so much is damaged that nothing can be said.
    """
    with _opened(directory, identity, disk) as contents:
        problems = []
        for number, (record, blobs) in contents.entries.items():
            if record.open() is None:
                problems.append(f"entry {number} in {segment_name(record.segment.number)}")
            for blob in blobs:
                bad = next((p for p in contents.blobs.get(blob, ()) if p.open() is None), None)
                if bad is not None:
                    where = segment_name(bad.segment.number)
                    problems.append(f"blob {blob} of entry {number} in {where}")
        return Verification(
            len(contents.entries), len(contents.blobs), contents.size, contents.torn,
            tuple(f"{problem} does not open" for problem in problems),
        )  # fmt: skip


def drop(directory: Path, *, disk: Disk = OS_DISK) -> None:
    """Destroy a journal: remove its files and its directory. It takes no identity.

    What the device keeps of removed files can be opened with the party's identity only.

    Args:
        directory: the journal's own directory, as `find_journals` gives it.
        disk: the file system.

    Raises:
        JournalError: there is none, a run uses it, something else lies in the directory, or it
            cannot be removed.
    """
    with _locked(directory, disk) as names:
        for name in names:
            if not is_ours(name) and name != LOCK:
                raise JournalError(
                    f"journal {directory}: {name} is no file of a journal: move it away first"
                )
        # Under another name first, so that a crash leaves no journal that looks older than it is.
        gone = unused(directory.with_name(directory.name + ".dropped"), disk)
        disk.rename(directory, gone)
        disk.sync_directory(gone.parent)
        for name in names:
            disk.unlink(gone / name)
        disk.remove_directory(gone)
        disk.sync_directory(gone.parent)


def _is_journal(path: Path, disk: Disk) -> bool:
    with contextlib.suppress(NotADirectoryError, FileNotFoundError, PermissionError):
        return any(is_ours(name) or name == LOCK for name in disk.names(path))
    return False


@contextlib.contextmanager
def _locked(directory: Path, disk: Disk) -> Iterator[list[str]]:
    """Keep every run away from a journal, and yield the names of its files."""
    try:
        status = disk.status(directory)
        if status is None:
            raise JournalError(f"journal {directory}: there is none: check the path")
        check_directory(directory, status)
        if not _is_journal(directory, disk):
            raise JournalError(f"journal {directory}: there is none in it: check the path")
        held = lock(directory, disk)
        try:
            yield disk.names(directory)
        finally:
            held.close()
    except OSError as error:
        raise cannot(directory, "be used", error) from None


@contextlib.contextmanager
def _opened(directory: Path, identity: Identity, disk: Disk) -> Iterator[Contents]:
    with _locked(directory, disk):
        contents = read_contents(directory, identity, disk)
        try:
            if not contents.segments:
                raise JournalError(f"journal {directory}: there is none in it: check the path")
            yield contents
        finally:
            contents.close()
