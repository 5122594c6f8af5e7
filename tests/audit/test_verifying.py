"""Whatever is done to a record is found, and told apart from what a crash leaves."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from redislink.audit import verify_file
from redislink.audit.chain import head_path
from redislink.errors import AuditError
from tests.audit.writing import KEYS, a_job, a_run, begin, forged, step, write
from tests.conftest import IDENTITIES

Change = Callable[[list[bytes]], list[bytes]]


@pytest.fixture(params=["signed", "not signed"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    identity = IDENTITIES["alice"] if request.param == "signed" else None
    return write(tmp_path / "a", a_run("alice"), identity=identity)


def _problems(path: Path, content: bytes) -> list[str]:
    return verify_file(forged(path, content, path.with_name("b"))).problems


def test_a_good_one_has_no_problem(path: Path) -> None:
    assert _problems(path, path.read_bytes()) == []


def test_any_byte_that_is_changed_is_found(path: Path) -> None:
    content = path.read_bytes()
    chosen = random.Random(1)
    ends = [place for place, byte in enumerate(content) if byte == 10]
    for place in {*ends, *chosen.sample(range(len(content)), 80)}:
        other = chosen.choice([b for b in range(256) if b != content[place]])
        changed = content[:place] + bytes([other]) + content[place + 1 :]
        assert _problems(path, changed), (place, content[place], other)


def test_any_byte_that_is_removed_or_added_is_found(path: Path) -> None:
    content = path.read_bytes()
    chosen = random.Random(2)
    for place in chosen.sample(range(len(content)), 30):
        assert _problems(path, content[:place] + content[place + 1 :]), place
        if content[place - 1 : place] != b"\n":
            assert _problems(path, content[:place] + b" " + content[place:]), place


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_any_line_that_is_removed_swapped_or_doubled_is_found(path: Path) -> None:
    lines = _lines(path)
    for place in range(len(lines)):
        assert _problems(path, b"".join(lines[:place] + lines[place + 1 :])), place
        doubled = lines[: place + 1] + lines[place:]
        assert _problems(path, b"".join(doubled)), place
        for other in range(place):
            swapped = [*lines]
            swapped[place], swapped[other] = lines[other], lines[place]
            assert _problems(path, b"".join(swapped)), (place, other)


def test_any_tail_that_is_removed_is_found(path: Path) -> None:
    content = path.read_bytes()
    for size in range(0, len(content), 31):
        assert _problems(path, content[:size]), size
    for count in range(len(_lines(path))):
        assert _problems(path, b"".join(_lines(path)[:count])), count


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b'"step"', b'"stop"'), *lines[4:]], "line 4:"),
        (lambda lines: [*lines[:3], b"nothing\n", *lines[4:]], "line 4: is no line"),
        (lambda lines: lines[:3] + lines[4:], "line 4: was written as line 5: line 4 is missing"),
        (lambda lines: lines[:3] + lines[6:], "line 4: was written as line 7: lines 4 to 6 are"),
        (lambda lines: lines[:4] + lines[3:], "line 5: is the line before once more"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4: .*swapped"),
        (lambda lines: lines[1:], "line 1: the beginning is missing"),
        (lambda _: [], "line 1: the beginning is missing"),
        (lambda lines: lines[:-1], "the last line was removed"),
        (lambda lines: lines[:-2], "the last 2 lines were removed"),
    ],
)  # fmt: skip
def test_it_says_which_line_and_what(tmp_path: Path, change: Change, says: str) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    problems = _problems(path, b"".join(change(_lines(path))))
    assert re.search(says, problems[0]), problems


def test_a_torn_last_line_is_a_remark(path: Path) -> None:
    found = verify_file(forged(path, path.read_bytes() + b'{"n":9,"ti', path.with_name("b")))
    assert found.is_good
    assert "a last line of 10 bytes has no end: a crash tore it" in " ".join(found.remarks)


def test_a_missing_head_pointer_is_a_problem_but_for_copies(path: Path) -> None:
    head_path(path).unlink()
    assert "head pointer a.head is missing" in verify_file(path).problems[0]
    found = verify_file(path, needs_head=False)
    assert found.is_good
    assert "head pointer a.head is missing" in " ".join(found.remarks)


def test_the_head_pointer_of_another_record_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    other = write(tmp_path / "b", [*a_run("alice")[:-1], step(5)])
    assert _problems(path, other.read_bytes()) == ["line 9 is not the one that was written there"]


def test_a_record_that_was_written_anew_with_another_key_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"), identity=IDENTITIES["carol"])
    assert verify_file(path).is_good, "nobody says whose the key is"
    assert "whether that key is alice's, a cluster file says" in verify_file(path).remarks[0]
    (problem,) = verify_file(path, KEYS).problems
    assert "is not alice's signing_key" in problem
    unsigned = write(tmp_path / "b", a_run("alice"), identity=None)
    assert "not signed, but the cluster file has" in verify_file(unsigned, KEYS).problems[0]


def test_it_says_what_the_cluster_file_does_not_say(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_run("alice"))
    assert verify_file(path, KEYS).remarks == []
    assert "has no signing_key of alice" in verify_file(path, {"alice": None}).remarks[0]
    assert "has no party or driver alice" in verify_file(path, {"bob": None}).problems[0]


def test_a_line_of_another_record_of_the_same_party_is_found(tmp_path: Path) -> None:
    path, other = (write(tmp_path / name, a_run("alice"), clock=lambda: 9.0) for name in "ac")
    assert _lines(path)[3] == _lines(other)[3], "at the same time, the same line"
    other = write(tmp_path / "d", a_run("alice"))
    lines = _lines(path)
    lines[3] = _lines(other)[3]
    assert "line 4: does not follow the line before" in _problems(path, b"".join(lines))[0]


def test_the_story_itself_is_looked_at(tmp_path: Path) -> None:
    lines = a_run("alice")
    for changed, says in (
        (lines[:1] + lines[2:], "step 2 stands where 1 is due"),
        ([each for each in lines if each[0] != "reveal"], "step 2 reveals, and no line says to"),
        ([begin("bob"), *lines[1:]], "a run of bob is in its record"),
    ):
        head_path(tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").unlink(missing_ok=True)
        problems = verify_file(write(tmp_path / "a", changed), KEYS).problems
        assert any(says in problem for problem in problems), problems


def test_what_a_killed_process_leaves_is_no_problem(tmp_path: Path) -> None:
    for count in range(1, 8):
        path = write(tmp_path / f"{count}", a_run("alice")[:count])
        write(path, a_run("alice"))
        found = verify_file(path, KEYS)
        assert found.problems == []
        assert "has no end" in " ".join(found.remarks)


def test_jobs_are_looked_at(tmp_path: Path) -> None:
    offer, decision, start = a_job("alice")
    assert verify_file(write(tmp_path / "a", [offer, decision, start]), KEYS).remarks == []
    found = verify_file(write(tmp_path / "b", [offer, start]), KEYS)
    assert "was started, and no decision for it" in found.remarks[0]


def test_what_cannot_be_read_raises(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="No such file"):
        verify_file(tmp_path / "missing")
    found = verify_file(__file__)
    assert not found.is_good


def test_not_every_problem_is_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [step(number) for number in range(1, 60)])
    lines = [line.replace(b"SP0", b"SP1") for line in _lines(path)]
    problems = _problems(path, b"".join(lines))
    assert (len(problems), problems[-1]) == (21, "and 40 more")
