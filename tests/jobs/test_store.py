"""`ProgramStore`: what is loaded is what was approved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from redislink.errors import ConfigError
from redislink.jobs.program import Program
from redislink.jobs.store import ProgramStore
from tests.jobs.examples import NOW, a_program

FIRST = a_program({"main.py": b"print(1)\n"})
SECOND = a_program({"main.py": b"print(2)\n"})


@pytest.fixture
def store(tmp_path: Path) -> ProgramStore:
    return ProgramStore(tmp_path / "programs")


def _add(store: ProgramStore, program: Program, at: int = NOW, **more: bool) -> str:
    entry = store.add(program, "lr-train", by="root", now=at, approved=more.get("approved", True))
    return entry.digest


def test_what_is_added_is_found_and_loaded(store: ProgramStore) -> None:
    assert store.find(FIRST.digest) is None
    digest = _add(store, FIRST, approved=False)
    found = store.find(digest)
    assert found is not None
    assert (found.name, found.added, found.added_by) == ("lr-train", NOW, "root")
    assert found.approved is None
    assert store.load(digest) == FIRST
    assert store.entries() == [found]
    assert store.directory.stat().st_mode & 0o777 == 0o700


def test_approving_is_noted_once(store: ProgramStore) -> None:
    digest = _add(store, FIRST, approved=False)
    assert store.approve(digest, by="eve", now=NOW + 5).approved == NOW + 5
    again = store.approve(digest, by="root", now=NOW + 9)
    assert (again.approved, again.approved_by) == (NOW + 5, "eve")
    assert store.add(FIRST, "lr-train", by="root", now=NOW, approved=True) == again


def test_adding_again_approves_if_asked(store: ProgramStore) -> None:
    digest = _add(store, FIRST, approved=False)
    _add(store, FIRST, approved=False)
    assert store.find(digest).approved is None  # type: ignore[union-attr]
    _add(store, FIRST)
    assert store.find(digest).approved == NOW  # type: ignore[union-attr]


def test_the_last_approved_version_of_a_name(store: ProgramStore) -> None:
    assert not store.directory.exists()
    first = _add(store, FIRST)
    second = _add(store, SECOND, NOW + 10)
    third = _add(store, a_program({"main.py": b"print(3)\n"}), NOW + 20, approved=False)
    assert store.last_approved("lr-train").digest == second  # type: ignore[union-attr]
    assert store.last_approved("lr-train", other_than=second).digest == first  # type: ignore[union-attr]
    assert store.last_approved("other") is None
    assert [e.digest for e in store.entries()] == [first, second, third]


def test_a_name_a_digest_or_its_beginning_finds_it(store: ProgramStore) -> None:
    digest = _add(store, FIRST)
    for text in ("lr-train", digest, digest[7:], digest[:20], digest[7:15]):
        assert store.resolve(text).digest == digest
    for text in ("other", digest[7:12], "sha256:" + "0" * 64, "\x1b[2J"):
        with pytest.raises(ConfigError, match=r"is not in .*: it has lr-train") as found:
            store.resolve(text)
        assert str(found.value).isprintable()
    _add(store, SECOND)
    with pytest.raises(ConfigError, match="2 versions") as found:
        store.resolve("lr-train")
    assert digest[:19] in str(found.value)


def test_a_program_has_one_name(store: ProgramStore) -> None:
    _add(store, FIRST)
    with pytest.raises(ConfigError, match="is there as lr-train"):
        store.add(FIRST, "other", by="root", now=NOW, approved=True)
    with pytest.raises(ConfigError, match="program name"):
        store.add(SECOND, "../other", by="root", now=NOW, approved=True)


def test_what_is_removed_is_gone(store: ProgramStore) -> None:
    digest = _add(store, FIRST)
    store.remove(digest)
    assert store.find(digest) is None
    assert list(store.directory.iterdir()) == []
    for call in (store.remove, store.load):
        with pytest.raises(ConfigError, match="is not in"):
            call(digest)


@pytest.mark.parametrize("change", ["byte", "added", "removed", "replaced"])
def test_a_change_on_disk_is_found(store: ProgramStore, tmp_path: Path, change: str) -> None:
    digest = _add(store, FIRST)
    files = store.directory / digest[7:]
    if change == "byte":
        (files / "main.py").chmod(0o600)
        (files / "main.py").write_text("print(7)\n")
    elif change == "added":
        (files / "numpy.py").write_text("")
    elif change == "removed":
        shutil.rmtree(files)
    else:
        shutil.rmtree(files)
        SECOND.write_to(tmp_path / "other")
        files.symlink_to(tmp_path / "other")
    for call in (
        lambda: store.load(digest),
        lambda: store.approve(digest, by="root", now=NOW),
        lambda: _add(store, FIRST),
    ):
        with pytest.raises(ConfigError, match=f"program .*{digest[7:]}"):
            call()


def test_what_no_program_is_is_left_out_of_the_copy(store: ProgramStore, tmp_path: Path) -> None:
    """Hidden files and bytecode, added on disk, are no part of the digest: none may be run."""
    digest = _add(store, FIRST)
    (store.directory / digest[7:] / "x.pyc").write_text("")
    store.load(digest).write_to(tmp_path / "copy")
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["main.py"]


def test_who_else_may_write_could_approve(store: ProgramStore) -> None:
    digest = _add(store, FIRST)
    store.directory.chmod(0o770)
    for call in (store.entries, lambda: store.find(digest), lambda: store.load(digest)):
        with pytest.raises(ConfigError, match="chmod go-w"):
            call()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"digest": 1}', "\x00", "x" * 5000],
)
def test_a_damaged_entry_is_an_error(store: ProgramStore, text: str) -> None:
    digest = _add(store, FIRST)
    (store.directory / f"{digest[7:]}.json").write_text(text)
    for call in (store.entries, lambda: store.find(digest)):
        with pytest.raises(ConfigError):
            call()


def test_an_entry_for_another_program_approves_nothing(store: ProgramStore) -> None:
    first = _add(store, FIRST)
    second = _add(store, SECOND, approved=False)
    meta = store.directory / f"{second[7:]}.json"
    meta.unlink()
    shutil.copy(store.directory / f"{first[7:]}.json", meta)
    with pytest.raises(ConfigError, match="is not what redislink wrote"):
        store.find(second)


def test_an_attempt_that_was_cut_off_is_repeated(store: ProgramStore) -> None:
    digest = _add(store, FIRST)
    (store.directory / f"{digest[7:]}.json").unlink()
    assert store.find(digest) is None
    assert _add(store, FIRST) == digest
    assert store.load(digest) == FIRST


def test_what_root_adds_belongs_to_the_agents_user(
    store: ProgramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, tuple[int, int]] = {}
    _add(store, SECOND)
    owner = store.directory.stat()
    theirs = SimpleNamespace(st_uid=1234, st_gid=1235, st_mode=owner.st_mode)
    stat = Path.stat

    def stat_of_theirs(path: Path, **options: bool) -> object:
        return theirs if path == store.directory else stat(path, **options)

    def chown(path: Path, uid: int, gid: int, **_: bool) -> None:
        handed[path.name if path.name.endswith((".py", ".json")) else "directory"] = (uid, gid)

    monkeypatch.setattr(Path, "stat", stat_of_theirs)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    digest = _add(store, FIRST)
    assert handed == dict.fromkeys(("directory", "main.py", f"{digest[7:]}.json"), (1234, 1235))
    handed.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    _add(store, a_program({"main.py": b"print(3)\n"}))
    assert handed == {}
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    with pytest.raises(ConfigError, match="as its owner"):
        store.find(digest)
