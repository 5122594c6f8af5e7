"""Writing audit records: what a crash, another process or a full disk does to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from redislink.audit import AuditLog, read_records, verify_file
from redislink.audit import log as writing_log
from redislink.audit.chain import SLOT_BYTES, head_path, read_head
from redislink.audit.records import MendedSaid
from redislink.errors import AuditError, UsedAfterFork
from redislink.identity import Identity
from redislink.identity.signing import SigningKey
from tests.audit.writing import KEYS, a_run, begin, end, forged, reveal, step, write
from tests.conftest import IDENTITIES

ALICE = IDENTITIES["alice"]


def _open(path: Path, party: str = "alice", identity: Identity | None = ALICE) -> AuditLog:
    return AuditLog.open(path, party, identity)


def test_several_runs_are_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for _ in range(3):
        write(path, a_run("alice"))
    found = verify_file(path, KEYS)
    assert (found.problems, found.remarks, found.has_head) == ([], [], True)
    assert [record.n for record in found.records] == list(range(1 + 3 * 8))
    assert len(found.runs()) == 3
    assert path.stat().st_mode & 0o777 == 0o600
    assert head_path(path).stat().st_mode & 0o777 == 0o600


def test_a_record_is_rotated_with_its_head_and_never_alone(tmp_path: Path) -> None:
    """As docs/audit.md says."""
    path, old = tmp_path / "a.jsonl", tmp_path / "old.jsonl"
    write(path, a_run("alice"))
    path.rename(old)
    head_path(path).rename(head_path(old))
    write(path, a_run("alice"))
    for file in (path, old):
        found = verify_file(file, KEYS)
        assert (found.problems, len(found.runs())) == ([], 1)
    path.rename(tmp_path / "alone.jsonl")
    with pytest.raises(AuditError, match="lines are missing"):
        write(path, a_run("alice"))


def test_what_leaves_a_party_is_on_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a step that sends nothing by itself costs no sync."""
    path = tmp_path / "a"
    synced: list[int] = []
    with _open(path) as log:
        sync = os.fdatasync
        monkeypatch.setattr(
            os, "fdatasync", lambda fd: (synced.append(path.stat().st_size), sync(fd))
        )
        monkeypatch.setattr(writing_log.time, "monotonic", lambda: log._synced_at)
        for kind, fields in [begin("alice"), step(1), step(2), reveal(2), step(3)]:
            before = len(synced)
            log.record(kind, **fields)
            on_disk = synced[before:]
            assert on_disk == ([] if kind == "step" else [path.stat().st_size]), kind
        log.record("reveal", **reveal(3, from_journal=True)[1])
        assert len(synced) == 2


def test_steps_are_on_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    now = [100.0]
    monkeypatch.setattr(writing_log.time, "monotonic", lambda: now[0])
    with _open(path) as log:
        log.record("begin", **begin("alice")[1])
        for number, at in ((1, 100.2), (2, 100.9), (3, 101.1), (4, 101.2)):
            now[0] = at
            log.record("step", **step(number)[1])
        head = read_head(path, SigningKey(ALICE).public_key)
        assert head is not None
        assert head.n == 4


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with _open(path), pytest.raises(AuditError, match=r"another session or process.*\{party\}"):
        _open(path)
    _open(path).close()


def _unsynced(path: Path) -> tuple[bytes, bytes]:
    """A record while it is written, and its head pointer, which is three lines behind."""
    log = _open(path)
    for kind, fields in [begin("alice"), step(1), step(2), step(3)]:
        log.record(kind, **fields)
    content, head = path.read_bytes(), head_path(path).read_bytes()
    log.close()
    return content, head


def test_a_crash_at_any_byte_is_mended(tmp_path: Path) -> None:
    content, head = _unsynced(tmp_path / "whole")
    lines = content.splitlines(keepends=True)
    on_disk = len(b"".join(lines[:2]))
    path = tmp_path / "a"
    ends = {len(b"".join(lines[:n])) for n in range(len(lines) + 1)}
    for size in range(on_disk, len(content) + 1, 37):
        for cut in {size} | {e for e in ends if size <= e < size + 37}:
            path.write_bytes(content[:cut])
            head_path(path).write_bytes(head)
            assert verify_file(path, KEYS).is_good, cut
            write(path, [end("alice")])
            found = verify_file(path, KEYS)
            assert found.problems == [], cut
            torn = cut - max(e for e in ends if e <= cut)
            mended = [r.said for r in found.records if isinstance(r.said, MendedSaid)]
            assert mended == ([MendedSaid(bytes=torn, why="torn")] if torn else []), cut
            whole = [line for line in lines if content.find(line) + len(line) <= cut]
            assert path.read_bytes().startswith(b"".join(whole))


def test_a_power_cut_may_leave_zeros(tmp_path: Path) -> None:
    content, head = _unsynced(tmp_path / "whole")
    path = tmp_path / "a"
    path.write_bytes(content + b"\0" * 50 + b"\n" + b"\0" * 50)
    head_path(path).write_bytes(head)
    write(path, [end("alice")])
    assert verify_file(path, KEYS).is_good


def test_a_tail_that_was_on_disk_is_not_taken_for_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    content = path.read_bytes()
    for cut in (content[:-1], b"".join(content.splitlines(keepends=True)[:-1]), content[:300], b""):
        other = forged(path, cut, tmp_path / "b")
        with pytest.raises(AuditError, match=r"tail is gone|lines are missing"):
            _open(other)
        assert other.read_bytes() == cut, "kept for whoever looks into it"


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_a_line_that_was_changed_is_refused_and_kept(
    tmp_path: Path, place: int, *, is_last: bool
) -> None:
    """Whether the head pointer had come to it (0 and 1) or not, and also as the last line."""
    content, head = _unsynced(tmp_path / "whole")
    lines = content.splitlines(keepends=True)
    lines[place] = lines[place].replace(b'"prev":"', b'"prev":"f', 1)
    changed = b"".join(lines[: place + 1] if is_last else lines)
    path = tmp_path / "a"
    path.write_bytes(changed)
    head_path(path).write_bytes(head)
    with pytest.raises(AuditError, match=r"was changed|tail is gone|beginning is missing"):
        _open(path)
    assert path.read_bytes() == changed


def test_a_missing_head_pointer_is_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    head_path(path).unlink()
    write(path, [])
    found = verify_file(path, KEYS)
    assert found.is_good
    assert [r.said for r in found.records[-1:]] == [MendedSaid(bytes=0, why="no head")]
    assert "lines may be missing" in " ".join(found.remarks)


def test_a_slot_of_the_head_pointer_may_be_torn(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    slots = head_path(path).read_bytes()
    assert len(slots) == 2 * SLOT_BYTES
    for torn in (slots[:SLOT_BYTES] + b"x" * SLOT_BYTES, b"x" * SLOT_BYTES + slots[SLOT_BYTES:]):
        head_path(path).write_bytes(torn)
        assert verify_file(path, KEYS).is_good
        write(path, [])
    head_path(path).write_bytes(b"x" * 2 * SLOT_BYTES)
    with pytest.raises(AuditError, match=r"head pointer .*was changed"):
        _open(path)


@pytest.mark.parametrize(
    ("party", "identity", "says"),
    [
        ("bob", ALICE, "is of alice, not of bob"),
        ("alice", IDENTITIES["bob"], "is signed with another key: keep it"),
        ("alice", None, "is signed with another key: keep it"),
    ],
)
def test_it_is_of_one_party_and_one_key(
    tmp_path: Path, party: str, identity: Identity | None, says: str
) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    before = path.read_bytes()
    with pytest.raises(AuditError, match=says):
        _open(path, party, identity)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"n":0}\n', b'{"n":1'])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(AuditError, match=r"notes\.txt"):
        _open(path)
    assert path.read_bytes() == content


def test_a_crash_in_the_first_line_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    whole = write(tmp_path / "whole", []).read_bytes()
    for size in (1, 14, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        head_path(path).unlink(missing_ok=True)
        write(path, a_run("alice"))
        assert verify_file(path, KEYS).is_good


@pytest.mark.parametrize("lines", [0, 1])
def test_a_crash_before_the_head_pointer_is_written(tmp_path: Path, lines: int) -> None:
    path = write(tmp_path / "a", [])
    path.write_bytes(path.read_bytes() * lines)
    head_path(path).write_bytes(b"")
    assert not verify_file(path, KEYS).is_good, "it could have been emptied"
    write(path, a_run("alice"))
    found = verify_file(path, KEYS)
    assert found.problems == []
    assert [each for each in found.remarks if "head pointer was missing" in each] == (
        found.remarks[:1] if lines else []
    )


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "others write", "nowhere"])
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "others write":
        path.touch()
        path.chmod(0o622)
    else:
        path = tmp_path / "nowhere" / "a"
    with pytest.raises(AuditError, match="audit record"):
        _open(path)
    assert not (tmp_path / "target").exists()


def test_a_full_disk_ends_it_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    log = _open(path)
    log.record("step", **step(1)[1])
    write_all = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_all(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(AuditError, match=r"cannot be written \(No space left"):
            log.record("step", **step(2)[1])
    with pytest.raises(AuditError, match="No space left"):
        log.record("step", **step(2)[1])
    log.close()
    assert [record.kind for record in read_records(path)] == ["file", "step"]
    write(path, [step(2)])
    assert verify_file(path, KEYS).is_good


@pytest.mark.parametrize("written", [0, 10, None])
def test_a_signal_in_the_middle_of_a_line_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    path = tmp_path / "a"
    log = _open(path)
    before = path.read_bytes()
    write_all = os.write

    def interrupted(descriptor: int, data: Any) -> int:
        write_all(descriptor, data[:written])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.record("step", **step(1)[1])
    assert path.read_bytes() == before
    with pytest.raises(AuditError, match="interrupted: open it again"):
        log.record("step", **step(2)[1])
    log.close()
    write(path, [step(1)])
    assert verify_file(path, KEYS).is_good


def test_a_disk_that_does_not_sync_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _open(tmp_path / "a")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        log.record("step", **step(1)[1])
        with pytest.raises(AuditError, match="Input/output error"):
            log.record("reveal", **reveal(1)[1])
    log.close()


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with _open(path) as log:
        child = os.fork()
        if child == 0:
            try:
                log.record("step", **step(1)[1])
            except UsedAfterFork:
                log.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with pytest.raises(AuditError, match="another session or process"):
            _open(path)
        log.record("step", **step(1)[1])
    assert [record.kind for record in read_records(path)] == ["file", "step"]


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    log = _open(tmp_path / "a")
    log.close()
    log.close()
    with pytest.raises(AuditError, match="is closed"):
        log.record("step", **step(1)[1])


def test_without_an_identity_lines_are_chained(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"), identity=None)
    write(path, a_run("alice"), identity=None)
    found = verify_file(path)
    assert (found.is_good, found.key) == (True, None)
    assert "not signed" in " ".join(found.remarks)
    head_path(path).unlink()
    with pytest.raises(AuditError, match="is not signed"):
        _open(path)
