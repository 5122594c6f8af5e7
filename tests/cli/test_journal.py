"""``redislink journal``: what it shows of a journal, what it finds, and what it leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from redislink.journal import Binding, JournalStore
from redislink.values import encode_value
from tests.cli.conftest import Call, key_file
from tests.conftest import IDENTITIES

TEXT = "SP0.run(f)(f32[2])"
SECRET = "a value"


def _step(number: int, gave: list[Any], chain: str = "") -> list[Any]:
    digest = bytes([number]) * 16
    return [
        *("step", chain, number, digest, TEXT, "program.py:7", b"", [], ["alice", "bob"], 0),
        *(1_764_470_000.0, gave),
    ]


def _write(directory: Path, party: str = "alice") -> Path:
    binding = Binding("s", party, b"c" * 32, "redislink 1", "program.py")
    store = JournalStore.open(directory, binding, IDENTITIES[party])
    freed = 0
    for body, blobs in (
        (["joining", b"instance", "boot", 1_764_470_000.0], []),
        (["began", b"run"], []),
        (_step(1, ["handles", SECRET]), [[b"x" * 1000]]),
        (_step(2, ["values"]), [[SECRET.encode()]]),
        (_step(3, ["rolled back"]), []),
        (["resumed", {"": 2}, 1, 0], []),
        (_step(3, ["nothing"]), []),
        (_step(1, ["nothing"], "SP0.1"), []),
    ):
        entry = store.append(encode_value(body), blobs)
        freed = freed or next(iter(entry.blobs), 0)
    store.free([freed])
    store.append(encode_value(["ended", "bob", "no space"]))
    store.close()
    return directory / binding.name


def test_show_tells_steps_and_no_value(call: Call, tmp_path: Path) -> None:
    path, key = _write(tmp_path / "j"), key_file(tmp_path, "alice")
    code, out, err = call("journal", "show", tmp_path / "j", "--identity", key)
    assert (code, err) == (0, "")
    for shown in ("alice in session s", TEXT, "values", "freed", "02" * 8, "2025-11-30 02:33:20"):
        assert shown in out
    for hidden in (SECRET, "rolled back"):
        assert hidden not in out
    code, out, _ = call("journal", "show", path, "--identity", key, "--json")
    told = json.loads(out)
    rows = [(s["chain"], s["number"], s["gave"], s["stored_bytes"] is None) for s in told["steps"]]
    assert rows == [
        ("", 1, "handles", True),
        ("", 2, "values", False),
        ("", 3, "nothing", False),
        ("SP0.1", 1, "nothing", False),
    ]
    assert told["ended"] == "bob went on without a journal: no space"
    assert told["starts"] == ["2025-11-30 02:33:20"]
    assert SECRET not in out


def test_one_that_does_not_open_hides_no_other(call: Call, tmp_path: Path) -> None:
    for party in ("alice", "bob"):
        _write(tmp_path / "j", party)
    code, out, err = call(
        "journal", "show", tmp_path / "j", "--identity", key_file(tmp_path, "alice")
    )
    assert code == 2
    assert "alice in session s" in out
    assert "bob in session s" not in out
    assert err.count("\n") == 1
    assert "s.bob" in err


def test_verify_finds_a_changed_byte(call: Call, tmp_path: Path) -> None:
    path, key = _write(tmp_path / "j"), key_file(tmp_path, "alice")
    words = ("journal", "verify", tmp_path / "j", "--identity", key)
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}: good: 9 entries, 1 blobs, ")
    (segment,) = path.glob("*.journal")
    content = bytearray(segment.read_bytes())
    content[len(content) * 7 // 10] ^= 1  # behind the blob that is gone
    segment.write_bytes(content)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "damaged" in err


@pytest.mark.parametrize("answer", ["n\n", "y\n"])
def test_drop_asks_first(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    path = _write(tmp_path / "j")
    read, write = os.pipe()
    os.write(write, answer.encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        code, out, err = call("journal", "drop", tmp_path / "j")
    assert f"{path}: " in out
    assert f"Destroy {path}?" in err
    assert (code, path.exists()) == ((0, False) if answer == "y\n" else (130, True))


def test_a_hostile_name_and_what_does_not_belong_there_are_told(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "j")
    hostile = path.rename(path.with_name("\x1b[2J.alice"))
    (hostile / "link").symlink_to("nothing")
    read, write = os.pipe()
    os.write(write, b"y\n")
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        code, out, err = call("journal", "drop", tmp_path / "j")
    assert code == 2
    assert "\x1b" not in out + err
    assert "[2J.alice?" in err
    assert "link is no file of a journal: move it away first" in err


def test_a_journal_in_use_is_left_alone(call: Call, tmp_path: Path) -> None:
    path = _write(tmp_path / "j")
    binding = Binding("s", "alice", b"c" * 32, "redislink 1", "program.py")
    store = JournalStore.open(tmp_path / "j", binding, IDENTITIES["alice"])
    key = key_file(tmp_path, "alice")
    for words in (("show", path, "--identity", key), ("drop", path, "--yes")):
        code, _, err = call("journal", *words)
        assert code == 2
        assert "process " in err
    store.close()
    assert call("journal", "drop", path, "--yes")[0] == 0
    assert not path.exists()


def test_what_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    key = key_file(tmp_path, "alice")
    for words, said in (
        (("show", tmp_path, "--identity", key), "there is no journal in it"),
        (("show", tmp_path), "no key: give --identity FILE"),
        (("show", "--identity", key), "no directory: give DIR"),
        (("drop", tmp_path / "none", "--yes"), "none"),
    ):
        code, out, err = call("journal", *words)
        assert (code, out) == (2, ""), err
        assert said in err
        assert err.count("\n") == 1
