"""Looking at a journal, checking it, destroying it: without a cluster, and never beside a run."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from redislink.errors import JournalError
from redislink.identity import Identity
from redislink.journal import JournalStore, describe, drop, find_journals, verify
from tests.journal.memory_disk import MemoryDisk
from tests.journal.program import BINDING, DIRECTORY, IDENTITY


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with three entries, of which one is dropped, and a torn end."""
    store = JournalStore.open(tmp_path, BINDING, IDENTITY)
    first = store.append(b"body 1", [[b"x" * 1000], [b"secret " * 100]])
    store.free(first.blobs[:1])
    store.append(b"body 2", [[b"y"]])
    store.drop([store.append(b"body 3", [[b"z"]]).number])
    store.close()
    path = tmp_path / BINDING.name
    with (path / "00000001.journal").open("ab") as file:
        file.write(b"torn")
    return path


def test_a_description_says_all_but_the_values(journal: Path) -> None:
    found = describe(journal, IDENTITY)
    assert found.binding == BINDING
    assert [(entry.number, entry.body) for entry in found.entries] == [
        (1, b"body 1"),
        (2, b"body 2"),
    ]
    assert found.blob_bytes == {2: 700 + 5 + 16, 3: 1 + 5 + 16}
    assert found.segments == ("00000001.journal",)
    assert (journal / "00000001.journal").stat().st_size == found.size + found.torn_bytes
    assert found.torn_bytes == 4
    assert 700 < found.live_bytes < found.size - 1000
    assert found.began > 1_700_000_000
    assert "body" not in repr(found)
    assert "secret" not in repr(found)


def test_what_is_good_is_verified_and_stays_as_it_is(journal: Path) -> None:
    before = (journal / "00000001.journal").read_bytes()
    found = verify(journal, IDENTITY)
    assert (found.entries, found.blobs, found.torn_bytes, found.problems) == (2, 2, 4, ())
    assert (journal / "00000001.journal").read_bytes() == before


def test_damage_is_named(journal: Path) -> None:
    path = journal / "00000001.journal"
    data = bytearray(path.read_bytes())
    data[1500] ^= 1  # in the second blob of the first entry
    path.write_bytes(data)
    problems = ("blob 2 of entry 1 in 00000001.journal does not open",)
    assert verify(journal, IDENTITY).problems == problems


def test_none_of_them_works_beside_a_run(tmp_path: Path, journal: Path) -> None:
    store = JournalStore.open(tmp_path, BINDING, IDENTITY)
    for call in (lambda: describe(journal, IDENTITY), lambda: verify(journal, IDENTITY),
                 lambda: drop(journal)):  # fmt: skip
        with pytest.raises(JournalError, match="uses it: end that process first"):
            call()
    assert len(list(store.entries())) == 2
    store.close()


def test_the_wrong_identity_and_no_journal(journal: Path, tmp_path: Path) -> None:
    for path, identity, said in (
        (journal, Identity(b"i" * 32), "another identity"),
        (tmp_path / "missing", IDENTITY, "there is none: check the path"),
        (tmp_path, IDENTITY, "there is none in it: check the path"),
        (journal / "lock", IDENTITY, "is a file, not a directory"),
    ):
        with pytest.raises(JournalError, match=said):
            describe(path, identity)
        with pytest.raises(JournalError, match=said):
            verify(path, identity)
    with pytest.raises(JournalError, match="there is none in it"):
        drop(tmp_path)


def test_journals_are_found_in_a_directory_or_are_it(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    (tmp_path / "file").write_text("")
    JournalStore.open(tmp_path, BINDING, IDENTITY, fresh=True).close()
    found = find_journals(tmp_path)
    assert [path.name.split("-")[0] for path in found] == ["training.alice", "training.alice.aside"]
    assert find_journals(journal) == [journal]
    with pytest.raises(JournalError, match=r"cannot be read \(No such file or directory\)"):
        find_journals(tmp_path / "missing")


def test_a_dropped_one_is_gone_and_another_can_be_begun(journal: Path, tmp_path: Path) -> None:
    (journal / "notes.txt").write_text("precious")
    with pytest.raises(JournalError, match=r"notes.txt is no file of a journal: move it away"):
        drop(journal)
    assert verify(journal, IDENTITY).entries == 2
    (journal / "notes.txt").unlink()
    drop(journal)
    assert list(tmp_path.iterdir()) == []
    store = JournalStore.open(tmp_path, BINDING, IDENTITY)
    assert list(store.entries()) == []
    store.close()


def test_a_full_disk_can_be_freed_by_it() -> None:
    disk = MemoryDisk(random.Random(1))
    JournalStore.open(DIRECTORY, BINDING, IDENTITY, disk=disk).close()

    def full(request: str) -> None:
        if request in ("write", "create"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.inject = full
    drop(DIRECTORY / BINDING.name, disk=disk)
    assert disk.names(DIRECTORY) == []


def test_one_that_was_dropped_by_half_is_no_journal_of_a_run(journal: Path, tmp_path: Path) -> None:
    half = journal.with_name(journal.name + ".dropped")
    journal.rename(half)
    assert find_journals(tmp_path) == [half]
    store = JournalStore.open(tmp_path, BINDING, IDENTITY)
    assert list(store.entries()) == []
    store.close()
    drop(journal)
    drop(half)
    assert list(tmp_path.iterdir()) == []
