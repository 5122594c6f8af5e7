"""The store on a real disk: what is appended is found again, and only by whom it belongs to."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import re
import signal
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.errors import JournalError, UsageError, reason_for_peers
from redislink.identity import Identity
from redislink.journal import Entry, JournalStore, describe
from redislink.journal import disk as disk_module
from redislink.journal import format as layout
from redislink.journal import store as store_module
from redislink.journal.disk import OS_DISK, OsDisk
from redislink.journal.format import Kind
from tests.journal.memory_disk import MemoryDisk
from tests.journal.program import BINDING, DIRECTORY, IDENTITY
from tests.support.children import error_of, in_child

JOURNAL = DIRECTORY / BINDING.name


def open_store(directory: Path, **changes: Any) -> JournalStore:
    identity = changes.pop("identity", IDENTITY)
    disk = changes.pop("disk", OS_DISK)
    fresh = changes.pop("fresh", False)
    binding = replace(BINDING, **changes)
    return JournalStore.open(directory, binding, identity, fresh=fresh, disk=disk)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def journal(directory: Path) -> Path:
    return directory / "training.alice"


@pytest.fixture
def opened(directory: Path) -> Iterator[JournalStore]:
    with_two = open_store(directory)
    yield with_two
    with_two.close()


def bodies(store: JournalStore) -> list[bytes]:
    return [entry.body for entry in store.entries()]


class TestEntries:
    def test_come_back_in_order_with_their_blobs(self, directory: Path) -> None:
        store = open_store(directory)
        chunks = [b"share ", bytearray(b"of "), memoryview(np.arange(3, dtype=np.int32))]
        first = store.append(b"step 1", [chunks, [], [b""]])
        second = store.append(b"step 2")
        assert (first.number, first.blobs, second.number, second.blobs) == (1, (1, 2, 3), 2, ())
        for _ in range(2):
            assert list(store.entries()) == [first, second]
            assert store.read(1) == b"share of " + np.arange(3, dtype=np.int32).tobytes()
            assert store.read(2) == store.read(3) == b""
            store.close()
            store = open_store(directory)
        store.close()

    def test_a_blob_of_many_pieces(self, opened: JournalStore, monkeypatch: Any) -> None:
        monkeypatch.setattr(layout, "PIECE_BYTES", 10)
        whole = random.Random(1).randbytes(500)
        for cuts in ([], [10], [3, 9, 12, 35], [250], [1, 2, 3, 4, 499]):
            parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, 500], strict=True)]
            (blob,) = opened.append(b"", [parts]).blobs
            assert opened.read(blob) == whole

    def test_arrays_of_any_shape(self, opened: JournalStore) -> None:
        grid = np.arange(12).reshape(3, 4)
        entry = opened.append(b"", [[memoryview(grid)], [memoryview(np.empty((0, 3)))]])
        assert [opened.read(blob) for blob in entry.blobs] == [grid.tobytes(), b""]

    def test_what_is_no_bytes_is_refused_and_the_store_goes_on(self, opened: JournalStore) -> None:
        with pytest.raises(TypeError):
            opened.append(b"", [["text"]])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="put what is large into a blob"):
            opened.append(bytes(layout.MOST_BODY + 1))
        assert opened.append(b"good").number == 1

    @pytest.mark.parametrize("least_wasted", [1, 1 << 20], ids=["compacted", "not compacted"])
    def test_dropped_ones_are_gone_and_their_numbers_are_not_used_again(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, least_wasted: int
    ) -> None:
        monkeypatch.setattr(store_module, "LEAST_WASTED", least_wasted)
        store = open_store(directory)
        entries = [store.append(b"%d" % n, [[b"blob" * 300]]) for n in range(4)]
        store.drop([entries[2].number, entries[3].number])
        for _ in range(2):
            store.close()
            store = open_store(directory)
        assert bodies(store) == [b"0", b"1"]
        assert not store.has(entries[3].blobs[0])
        with pytest.raises(UsageError, match="is not in it"):
            store.read(entries[3].blobs[0])
        later = store.append(b"again", [[b"blob"]])
        assert (later.number, later.blobs) == (5, (5,))
        store.close()

    def test_the_program_may_change_its_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "LEAST_WASTED", 100)
        monkeypatch.chdir(tmp_path)
        store = open_store(Path("journals"))
        monkeypatch.chdir("/")
        for n in range(5):
            store.free(store.append(b"%d" % n, [[b"x" * 200]]).blobs)
        store.close()
        (path,) = (tmp_path / "journals" / BINDING.name).glob("*.journal")
        assert path.name != "00000001.journal"

    def test_threads_append_and_read_at_once(self, directory: Path) -> None:
        store = open_store(directory)
        wrong: list[bytes] = []

        def work(name: int) -> None:
            for n in range(10):
                body = b"%d/%d" % (name, n)
                entry = store.append(body, [[body * 9]], durable=n % 5 == 4)
                if store.read(entry.blobs[0]) != body * 9:
                    wrong.append(body)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
        store = open_store(directory)
        assert wrong == []
        assert sorted(bodies(store)) == sorted(
            b"%d/%d" % (a, b) for a in range(4) for b in range(10)
        )
        store.close()

    def test_a_closed_one_says_so(self, opened: JournalStore) -> None:
        opened.append(b"one", [[b"blob"]])
        opened.close()
        opened.close()
        for call in (lambda: opened.append(b""), lambda: opened.read(1), lambda: opened.has(1),
                     lambda: list(opened.entries()), lambda: opened.drop([1])):  # fmt: skip
            with pytest.raises(JournalError, match="is closed"):
                call()


class TestCompaction:
    def test_the_size_follows_what_lives(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(store_module, "LEAST_WASTED", 10_000)
        disk = MemoryDisk(random.Random(1))
        store = open_store(DIRECTORY, disk=disk)
        kept = store.append(b"kept", [[b"k" * 3000]])
        for n in range(100):
            entry = store.append(b"%d" % n, [[b"x" * 2000], [b"y" * 500]])
            store.free(entry.blobs[:1] if n % 2 else entry.blobs)
            assert store.size < 80_000
        store.close()
        store = open_store(DIRECTORY, disk=disk)
        assert bodies(store) == [b"kept", *(b"%d" % n for n in range(100))]
        assert store.read(kept.blobs[0]) == b"k" * 3000
        alive = [blob for entry in store.entries() for blob in entry.blobs if store.has(blob)]
        assert len(alive) in (51, 52)  # what was freed after the last append is not yet on disk
        assert store.append(b"next", [[b"z"]]).blobs == (202,)
        names = [name for name in disk.names(JOURNAL) if name != "lock"]
        assert sum(len(disk.node(JOURNAL / name).data) for name in names) < 80_000

    def test_many_starts_leave_few_files(self) -> None:
        disk = MemoryDisk(random.Random(1))
        for n in range(40):
            store = open_store(DIRECTORY, disk=disk)
            store.append(b"%d" % n, [[b"blob %d" % n]])
            store.close()
            assert len(disk.names(JOURNAL)) <= store_module.MOST_SEGMENTS + 1  # and the lock
        store = open_store(DIRECTORY, disk=disk)
        assert [store.read(entry.blobs[0]) for entry in store.entries()] == [
            b"blob %d" % n for n in range(40)
        ]

    def test_without_space_for_a_copy_all_goes_on_as_it_was(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(store_module, "LEAST_WASTED", 1000)
        disk = MemoryDisk(random.Random(1))
        store = open_store(DIRECTORY, disk=disk)

        def full(request: str) -> None:
            if request == "create":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.inject = full
        for n in range(20):
            store.free(store.append(b"%d" % n, [[b"x" * 300]]).blobs)
        assert 1 < disk.requests.count("create") < 6
        assert store.size > 20 * 300
        disk.inject = lambda request: None
        for n in range(20, 60):
            store.free(store.append(b"%d" % n, [[b"x" * 300]]).blobs)
        assert store.size < 20 * 300
        assert bodies(store) == [b"%d" % n for n in range(60)]

    def test_a_finalizer_may_free_while_the_store_works(self, opened: JournalStore) -> None:
        class Handle:
            def __init__(self) -> None:
                self.blobs = opened.append(b"handle", [[b"x"]]).blobs
                self.circle = self

            def __del__(self) -> None:
                opened.free(self.blobs)

        (blob,) = Handle().blobs
        with opened._lock:  # as if `append` allocated, and that started the collection
            gc.collect()
        assert not opened.has(blob)


class TestSealed:
    def test_nothing_is_there_to_read(self, directory: Path, journal: Path) -> None:
        store = open_store(directory)
        store.append(b"body of an entry", [[b"share of a secret"]])
        store.close()
        on_disk = b"".join(path.read_bytes() for path in journal.glob("*.journal"))
        for word in (b"body", b"share", b"training", b"alice", b"train.py", b"spu"):
            assert word not in on_disk

    def test_only_the_owner_can_read_it(self, directory: Path, journal: Path) -> None:
        before = os.umask(0)
        try:
            open_store(directory).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(journal.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in journal.iterdir()} == {0o600}

    def test_the_format_of_version_1_stays(self, directory: Path, journal: Path) -> None:
        """A segment written here as docs/journal.md describes it, with no code of the package."""
        salt = bytes(range(100, 132))
        info = b"redislink journal 1 segment 1"
        secret = HKDF(SHA256(), 48, salt=salt, info=info).derive(IDENTITY.private_key)
        key, mark = AESGCM(secret[:32]), secret[32:]
        first = {
            **asdict(BINDING), "began": 1_700_000_000, "replaces": True, "previous": 0,
            "entry": 3, "blob": 8,
        }  # fmt: skip
        data = b"redislink journal\n" + struct.pack(">HQ", 1, 1) + salt + mark
        bodies_by_kind = (
            (1, msgpack.packb(first)),
            (2, b"share "),
            (2, b"of it"),
            (3, msgpack.packb([0, 3, [[8, 2], [9, None], [10, 0]], b"body"])),
            (3, msgpack.packb([0, 4, [], b"dropped"])),
            (4, msgpack.packb([0, [4], []])),
        )
        for index, (kind, body) in enumerate(bodies_by_kind):
            header = struct.pack(">BI", kind, len(body) + 16)
            data += header + key.encrypt(struct.pack(">IQ", 0, index), body, header)
        journal.mkdir(mode=0o700, parents=True)
        (journal / "00000001.journal").write_bytes(data + b"torn")
        store = open_store(directory)
        assert list(store.entries()) == [Entry(3, b"body", (8, 9, 10))]
        assert store.read(8) == b"share of it"
        assert not store.has(9)
        assert store.read(10) == b""
        assert store.append(b"next", [[b"x"]]) == Entry(5, b"next", (11,))
        store.close()

    def test_no_damage_passes_for_data(self) -> None:
        """Bytes of each of two files changed, and each file cut."""
        disk = MemoryDisk(random.Random(1))
        for n in range(2):
            store = open_store(DIRECTORY, disk=disk)
            store.append(b"entry %d" % n, [[b"blob %d" % n]])
            store.close()
        files = [disk.node(JOURNAL / f"0000000{n}.journal") for n in (1, 2)]
        good = [bytes(file.data) for file in files]
        for number, data in enumerate(good):
            for place in range(0, len(data), 3):
                flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
                for bad in (flipped, data[:place]):
                    files[number].data[:] = bad
                    said = _what_it_says(disk)
                    assert said is None or "\n" not in said
                    assert number == 1 or said is not None
                    for extra in disk.names(JOURNAL)[2:-1]:
                        disk.unlink(JOURNAL / extra)
            files[number].data[:] = data
        disk.unlink(JOURNAL / "00000001.journal")
        one_line(r"00000001.journal is missing", open_store, DIRECTORY, disk=disk)

    def test_damage_before_the_end_is_no_torn_end(self, directory: Path, journal: Path) -> None:
        """In the last file too, once a later entry says that all before it was on the disk."""
        store = open_store(directory)
        places = [store.size]
        for n in range(3):
            store.append(b"entry %d" % n, [[b"blob"]])
            places.append(store.size)
        store.close()
        path = journal / "00000001.journal"
        good = path.read_bytes()
        for place, damaged in (
            (places[1] - 1, True),
            (places[2] - 1, True),
            (places[3] - 1, False),
        ):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            if damaged:
                one_line("00000001.journal is damaged", open_store, directory)
        store = open_store(directory)
        assert bodies(store) == [b"entry 0", b"entry 1"]
        store.close()

    def test_a_file_counts_under_its_own_name_only(self, directory: Path, journal: Path) -> None:
        open_store(directory).close()
        first, second = journal / "00000001.journal", journal / "00000002.journal"
        first.rename(second)
        one_line("00000002.journal is damaged", open_store, directory)

    def test_an_entry_cannot_be_made_to_look_like_a_piece(self, directory: Path) -> None:
        store = open_store(directory)
        place = store.size
        store.append(b"entry 0")
        store.append(b"entry 1", [[b"blob"]])
        store.close()
        (path,) = directory.rglob("*.journal")
        data = bytearray(path.read_bytes())
        assert data[place] == Kind.ENTRY
        data[place] = Kind.PIECE
        path.write_bytes(data)
        one_line("00000001.journal is damaged", open_store, directory)


def _what_it_says(disk: MemoryDisk) -> str | None:
    """The error with which a damaged journal is refused; None if it opens, and is right."""
    try:
        store = open_store(DIRECTORY, disk=disk)
    except JournalError as error:
        return str(error)
    try:
        found = [(e.body, [store.read(blob) for blob in e.blobs]) for e in store.entries()]
    except JournalError as error:
        return str(error)
    finally:
        store.close()
    assert found == [(b"entry %d" % n, [b"blob %d" % n]) for n in range(len(found))]
    return None


class TestWrongUse:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"cluster_digest": b"d" * 32}, "from another cluster file .*: use that cluster file"),
            ({"versions": "jax 4"}, r"from other versions \(redislink 1, spu 2, jax 3; .* jax 4\)"),
            ({"program": "test.py"}, r"of another program \(train.py; .*: run that program"),
            ({"identity": Identity(b"i" * 32)}, "another identity .*: use the identity file"),
        ],
    )
    def test_it_belongs_to_something_else(
        self, directory: Path, journal: Path, changes: dict[str, Any], said: str
    ) -> None:
        open_store(directory).close()
        before = sorted(journal.iterdir())
        one_line(
            said + ".* or start all parties anew with --fresh", open_store, directory, **changes
        )
        assert sorted(journal.iterdir()) == before
        open_store(directory, fresh=True, **changes).close()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"party": "bob"}, r"of another party \(alice; here it is bob\): give each party a"),
            ({"session": "test"}, r"of another session \(training; here it is test\)"),
        ],
    )
    def test_a_directory_that_was_renamed(
        self, directory: Path, journal: Path, changes: dict[str, Any], said: str
    ) -> None:
        open_store(directory).close()
        journal.rename(directory / replace(BINDING, **changes).name)
        one_line(said, open_store, directory, **changes)

    def test_another_version_of_the_format(self, directory: Path, journal: Path) -> None:
        open_store(directory).close()
        path = journal / "00000001.journal"
        data = bytearray(path.read_bytes())
        data[19] = 2
        path.write_bytes(data)
        one_line(
            "format version 2, .* reads version 1: run the redislink that", open_store, directory
        )

    def test_a_second_process(self, directory: Path) -> None:
        store = open_store(directory)
        said = rf"process {os.getpid()} on \S+ uses it: end that process first"
        one_line(said, open_store, directory)
        one_line(said, open_store, directory, fresh=True)
        store.append(b"still here")
        store.close()
        open_store(directory).close()

    def test_a_directory_that_is_put_aside_while_it_is_locked(
        self, directory: Path, journal: Path, monkeypatch: Any
    ) -> None:
        """The lock of what has another name now is none of the journal's."""
        open_store(directory).close()

        def flock(descriptor: int, how: int) -> None:
            if journal.exists():
                journal.rename(directory / "aside")
                journal.mkdir(mode=0o700)
                (journal / "lock").touch(0o600)
            fcntl.flock(descriptor, how)
            monkeypatch.undo()

        monkeypatch.setattr(
            disk_module, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": flock})
        )
        store = open_store(directory)
        one_line("uses it", open_store, directory)
        store.close()

    def test_a_killed_process_leaves_no_lock(self, directory: Path) -> None:
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)
                open_store(directory).append(b"before the kill")
                os.write(told, b"!")
                signal.pause()
            finally:
                os._exit(1)
        os.close(told)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        one_line(f"process {child} on", open_store, directory)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store = open_store(directory)
        assert bodies(store) == [b"before the kill"]
        store.close()

    def test_a_forked_child_cannot_use_it(self, directory: Path) -> None:
        store = open_store(directory)
        calls = (lambda: store.append(b"from the child"), lambda: store.has(1), store.close)
        assert in_child(lambda: [error_of(call) for call in calls]) == [
            "UsedAfterFork", "UsedAfterFork", "",
        ]  # fmt: skip
        one_line("uses it", open_store, directory)
        store.append(b"from the parent")
        assert bodies(store) == [b"from the parent"]
        store.close()

    def test_places_that_will_not_do(self, directory: Path, journal: Path, tmp_path: Path) -> None:
        directory.mkdir()
        journal.mkdir(mode=0o750)
        one_line(
            f"others on this machine can use .*: run chmod 700 {journal}", open_store, directory
        )
        journal.rmdir()
        journal.symlink_to(tmp_path)
        one_line("is a symbolic link: name the directory itself", open_store, directory)
        journal.unlink()
        journal.write_text("")
        one_line("is a file, not a directory: name another", open_store, directory)
        one_line(r"Not a directory\): name a directory, not a file", open_store, journal)
        journal.unlink()
        directory.rmdir()
        directory.symlink_to("nowhere")
        one_line(r"No such file or directory\): check the path", open_store, directory)

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (errno.EROFS, "be opened .*: name a directory that can be written"),
            (errno.EACCES, "be opened .*: run this as the owner of the directory"),
            (errno.ENOSPC, "be opened .*: free space there, then start again"),
            (errno.EIO, "be opened .*: check the disk"),
        ],
    )
    def test_a_disk_that_takes_nothing(self, directory: Path, code: int, said: str) -> None:
        class Refusing(OsDisk):
            def create(self, path: Path) -> Any:
                raise OSError(code, os.strerror(code))

        one_line(said, open_store, directory, disk=Refusing())

    @pytest.mark.parametrize("at", ["write", "sync"])
    def test_a_full_disk_in_the_middle(self, at: str) -> None:
        disk = MemoryDisk(random.Random(1))
        store = open_store(DIRECTORY, disk=disk)
        store.append(b"one", [[b"blob"]])

        def full(request: str) -> None:
            if request == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.inject = full
        said = r"cannot be written \(No space left on device\): free space there, then start again"
        one_line(said, store.append, b"two", [[b"blob"]])
        disk.inject = lambda request: None
        one_line(said, store.append, b"three")
        one_line(said, store.drop, [1])
        assert store.read(1) == b"blob"
        assert len(disk.node(JOURNAL / "00000001.journal").data) == store.size
        store.close()
        store = open_store(DIRECTORY, disk=disk)
        assert bodies(store) == [b"one"]

    def test_paths_stay_at_this_party(self, directory: Path) -> None:
        error = one_line("other versions", open_store, open_and_close(directory), versions="4")
        assert reason_for_peers(error) == "its journal cannot be used"


def open_and_close(directory: Path) -> Path:
    open_store(directory).close()
    return directory


def one_line(said: str, call: Callable[..., Any], *args: Any, **named: Any) -> JournalError:
    with pytest.raises(JournalError, match=said) as caught:
        call(*args, **named)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("journal /")
    return caught.value


class TestFresh:
    def test_the_old_one_is_put_aside(self, directory: Path, journal: Path) -> None:
        for n in range(3):
            store = open_store(directory, fresh=True)
            assert bodies(store) == []
            store.append(b"%d" % n)
            store.close()
        aside = [path for path in directory.iterdir() if path != journal]
        assert len(aside) == 2
        assert all(re.fullmatch(r"training.alice.aside-\d{8}T\d{6}Z(-2)?", p.name) for p in aside)
        kept = [entry.body for path in aside for entry in describe(path, IDENTITY).entries]
        assert sorted(kept) == [b"0", b"1"]
        store = open_store(directory)
        assert bodies(store) == [b"2"]
        store.close()

    def test_damage_does_not_hinder_it(self, directory: Path, journal: Path) -> None:
        open_store(directory).close()
        (journal / "00000001.journal").write_bytes(b"")
        one_line("is not the file of a journal, or is damaged", open_store, directory)
        open_store(directory, fresh=True).close()
