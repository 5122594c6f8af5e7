"""Programs: one packed form, hostile ones refused, and nothing shown as it is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redislink.errors import ConfigError, ValueDecodeError
from redislink.jobs import program as module
from redislink.jobs.program import Program, diff, listing
from redislink.values import encode_value
from tests.jobs.examples import a_program


def test_a_directory_is_read_without_what_is_no_code(tmp_path: Path) -> None:
    for name in ("main.py", "pkg/__init__.py", "pkg/data.bin", "notes.txt"):
        place = tmp_path / "p" / name
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(name.encode() + b"\n" if name.endswith(".txt") else b"")
    for left_out in (".git/config", ".env", "pkg/__pycache__/x.cpython-311.pyc", "old.pyc"):
        place = tmp_path / "p" / left_out
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_text("")
    program = Program.read(tmp_path / "p")
    assert [path for path, _ in program.files] == [
        "main.py", "notes.txt", "pkg/__init__.py", "pkg/data.bin",
    ]  # fmt: skip
    assert program.entry == "main.py"
    assert program.digest == f"sha256:{hashlib.sha256(program.packed).hexdigest()}"
    assert Program.unpack_untrusted(program.packed) == program


def test_a_file_is_a_program_too(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    program = Program.read(tmp_path / "train.py")
    assert program.entry == "train.py"
    assert program.digest == a_program({"train.py": b"print(1)\n"}).digest


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,3}(/[a-z_][a-z0-9_]{0,3}){0,2}\.txt", fullmatch=True),
        st.binary(max_size=20),
        max_size=5,
    )
)
def test_packing_and_unpacking_give_the_same(files: dict[str, bytes]) -> None:
    program = a_program({"main.py": b"", **files})
    assert Program.unpack_untrusted(program.packed) == program
    assert program == a_program(dict(reversed(list({"main.py": b"", **files}.items()))))


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(1, 255))
def test_any_change_of_a_byte_is_another_program_or_none(
    content: bytes, place: int, change: int
) -> None:
    program = a_program({"main.py": b"print(1)\n", "data": content})
    changed = bytearray(program.packed)
    changed[place % len(changed)] ^= change
    try:
        other = Program.unpack_untrusted(bytes(changed))
    except ValueDecodeError:
        return
    assert other.digest != program.digest
    assert other.packed == changed


_HOSTILE: dict[str, Any] = {
    "no list": {"main.py": b""},
    "empty": [],
    "a file of three parts": [["main.py", b"", 0o777]],
    "a path of bytes": [[b"main.py", b""]],
    "text for bytes": [["main.py", "print(1)"]],
    "a tuple": [("main.py", b"")],
    "up": [["../main.py", b""], ["main.py", b""]],
    "up in between": [["a/../../b.py", b""], ["main.py", b""]],
    "absolute": [["/etc/cron.d/x", b""], ["main.py", b""]],
    "here": [["./main.py", b""]],
    "an empty part": [["a//b.py", b""], ["main.py", b""]],
    "hidden": [[".env", b"REDISLINK_BROKER_URL=redis://evil"], ["main.py", b""]],
    "a directory's name": [["a/", b""], ["main.py", b""]],
    "backslash": [["a\\b.py", b""], ["main.py", b""]],
    "control": [["a\x1b[2J.py", b""], ["main.py", b""]],
    "newline": [["a.py\n", b""], ["main.py", b""]],
    "bidi": [["a\u202e.py", b""], ["main.py", b""]],
    "an option": [["-rf", b""], ["main.py", b""]],
    "a space": [["a b.py", b""], ["main.py", b""]],
    "long": [["a" * 201, b""], ["main.py", b""]],
    "twice": [["main.py", b""], ["main.py", b"x = 1"]],
    "case": [["Main.py", b""], ["main.py", b""]],
    "a directory's case": [["A/x.py", b""], ["a/y.py", b""], ["main.py", b""]],
    "file and directory": [["a", b""], ["a/b", b""], ["main.py", b""]],
    "out of order": [["main.py", b""], ["a.py", b""]],
    "bytecode": [["main.py", b""], ["x.pyc", b""]],
    "cached bytecode": [["__pycache__/x.txt", b""], ["main.py", b""]],
    "no entry": [["a.txt", b""]],
    "two entries": [["a.py", b""], ["b.py", b""]],
    "an entry below": [["a/main.py", b""]],
    "not UTF-8": [["main.py", b"x = '\xff'"]],
    "another encoding": [["main.py", b"# coding: utf-7\n+AAo-import os"]],
    "another encoding after a carriage return": [["main.py", b"\r# coding: utf-7\n"]],
    "an unknown encoding": [["main.py", b"# coding: nonesuch\n"]],
    "a NUL": [["main.py", b"x = 1\0"]],
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_a_hostile_program_is_refused(name: str) -> None:
    with pytest.raises(ValueDecodeError) as found:
        Program.unpack_untrusted(encode_value(_HOSTILE[name]))
    assert str(found.value).isprintable()


def test_packed_otherwise_is_refused() -> None:
    packed = encode_value([["main.py", b""]])
    longer = packed.replace(b"\xa7main.py", b"\xd9\x07main.py")
    assert longer != packed
    with pytest.raises(ValueDecodeError, match="as redislink packs"):
        Program.unpack_untrusted(longer)
    for cut in range(len(packed)):
        with pytest.raises(ValueDecodeError):
            Program.unpack_untrusted(packed[:cut])
    with pytest.raises(ValueDecodeError):
        Program.unpack_untrusted(packed + b"\0")


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 3)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    files = {"main.py": b"", "b": b"", "c": b"", "d": b""}
    with pytest.raises(ValueDecodeError, match="3 files"):
        Program.unpack_untrusted(encode_value([[path, files[path]] for path in sorted(files)]))
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="more than 3 files"):
        Program.read(tmp_path)
    (tmp_path / "d").unlink()
    (tmp_path / "c").write_bytes(bytes(101))
    with pytest.raises(ConfigError, match="as a data set"):
        Program.read(tmp_path)


@pytest.mark.parametrize("kind", ["link", "directory link", "fifo", "missing"])
def test_what_is_no_plain_file_is_no_program(tmp_path: Path, kind: str) -> None:
    top = tmp_path / "p"
    if kind != "missing":
        top.mkdir()
        (top / "main.py").write_text("")
    if kind == "link":
        (top / "x.py").symlink_to("/etc/passwd")
    elif kind == "directory link":
        (top / "lib").symlink_to(tmp_path)
    elif kind == "fifo":
        os.mkfifo(top / "x")
    with pytest.raises(ConfigError, match=r"program .*p"):
        Program.read(top)


def test_it_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    program = a_program({"main.py": b"import lib.x\n", "lib/x.py": b"", "lib/y/z": b"\xff"})
    entry = program.write_to(tmp_path / "copy")
    assert entry == tmp_path / "copy" / "main.py"
    assert Program.read(tmp_path / "copy") == program
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o400}
    assert (tmp_path / "copy" / "lib").stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        program.write_to(tmp_path / "copy")


def test_a_diff_shows_each_change() -> None:
    old = a_program({"main.py": b"a = 1\nb = 2\n", "gone.py": b"x = 1\n", "w": b"\xff"})
    new = a_program({"main.py": b"a = 1\nb = 3\n", "new.py": b"y = 2\n", "w": b"\xfe\xff"})
    shown = diff(old, new)
    assert "-b = 2\n+b = 3\n" in shown
    assert "--- gone.py\n+++ /dev/null\n-x = 1\n" in shown
    assert "--- /dev/null\n+++ new.py\n+y = 2\n" in shown
    assert "-(not text: 1 bytes" in shown
    assert "+(not text: 2 bytes" in shown
    assert diff(old, old) == ""
    assert "+a = 1\n" in diff(None, new)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (b"x = 1 # \x1b[8m hidden\n", "x = 1 # <U+001B>[8m hidden"),
        ("x = 1 # \u202e hidden\n".encode(), "x = 1 # <U+202E> hidden"),
        (b"# innocent\rimport os\n", "# innocent<U+000D>\n+import os"),
        (b"\tx\n", "\tx"),
    ],
)
def test_nothing_in_a_source_hides_from_its_reader(source: bytes, shown: str) -> None:
    program = a_program({"main.py": source})
    assert f"+{shown}\n" in diff(None, program)
    assert shown.replace("\n+", "\n") in listing(program)
    changed = diff(a_program({"main.py": b"x = 0\n"}), program)
    assert f"+{shown}\n" in changed
    assert all(c.isprintable() or c in "\n\t" for c in changed)


def test_another_end_of_line_is_a_change() -> None:
    old, new = a_program({"main.py": b"# a\nx = 1\n"}), a_program({"main.py": b"# a\rx = 1\n"})
    assert "-# a\n+# a<U+000D>\n" in diff(old, new)


def test_a_long_file_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_COMPARED", 2)
    old, new = a_program({"main.py": b"a\nb\n"}), a_program({"main.py": b"a\nb\nc\n"})
    assert diff(old, new) == "--- main.py\n+++ main.py\n-a\n-b\n+a\n+b\n+c\n"


def test_a_listing_has_all_files() -> None:
    shown = listing(a_program({"main.py": b"print(1)\n", "w": b"\xff"}))
    assert shown.startswith("==> main.py (9 bytes)\nprint(1)\n==> w (1 bytes)\n(not text: 1 bytes")
