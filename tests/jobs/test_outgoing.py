"""What of a job leaves its agent, in parts: logs, also those that lost their beginning; results."""

from __future__ import annotations

from pathlib import Path

import pytest

from redislink.jobs import outgoing, runner
from redislink.jobs.outgoing import answer, result_names
from redislink.jobs.requests import About, Ask

NONCE = "ab" * 16


def whole(directory: Path, about: About, name: str = "", offset: int = 0) -> tuple[int, bytes]:
    """All that an asking driver gets, and the offset of its first byte."""
    got, first, at = b"", None, offset
    while True:
        given = answer(directory, Ask(NONCE, about, "j0123456789ab", name, at))
        assert given.problem == ""
        assert len(given.data) <= outgoing.MOST_PART
        first = given.offset if first is None else first
        got += given.data
        at = given.offset + len(given.data)
        if at >= given.total:
            return first, got


def test_a_log_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST_PART", 7)
    lines = [f"line {number}\n".encode() for number in range(30)]
    (tmp_path / runner.LOG).write_bytes(b"".join(lines))
    assert whole(tmp_path, About.LOG) == (0, b"".join(lines))
    assert whole(tmp_path, About.LOG, offset=9999) == (len(b"".join(lines)), b"")


def test_a_log_whose_beginning_is_lost_says_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "MOST_PART", 7)
    monkeypatch.setattr(runner, "MOST_LOG", 20)
    written, log = b"", tmp_path / runner.LOG
    for number in range(30):
        line = f"line {number:02}, and more\n".encode()
        with log.open("ab") as file:
            file.write(line)
        written += line
        runner._bound_log(tmp_path)
        start = runner.log_start(tmp_path)
        assert whole(tmp_path, About.LOG) == (start, written[start:])
        assert whole(tmp_path, About.LOG, offset=start + 3) == (start + 3, written[start + 3 :])
    assert start > 0


def test_results_and_their_names(tmp_path: Path) -> None:
    results = tmp_path / runner.RESULTS
    assert result_names(tmp_path) == ()
    results.mkdir()
    for name in ("weights.msgpack", "accuracy.msgpack", "notes.txt", ".hidden.msgpack"):
        (results / name).write_bytes(name.encode())
    assert result_names(tmp_path) == ("accuracy", "weights")
    assert whole(tmp_path, About.RESULT, "weights") == (0, b"weights.msgpack")
    gone = answer(tmp_path, Ask(NONCE, About.RESULT, "j0123456789ab", "bias"))
    assert (gone.problem, gone.data) == ("it cannot be read there any more", b"")
    (results / "link.msgpack").symlink_to("/dev/zero")
    assert answer(tmp_path, Ask(NONCE, About.RESULT, "j0123456789ab", "link")).problem
