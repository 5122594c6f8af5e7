"""Scratch directories: private, and gone in every case."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from redislink.forking import let_go
from redislink.spu import private_scratch
from redislink.spu.scratch import PREFIX, remove_abandoned, scratch

HOLDER = """
import sys
from redislink.spu.scratch import scratch
with scratch() as made:
    (made.path / "keys.csv").write_text("x")
    print(made.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary directory, for this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_this_user_can_read_it_and_it_goes_away(temporary: Path) -> None:
    before = os.umask(0)
    try:
        with scratch() as made:
            assert made.path.parent == temporary
            assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
            (made.path / "sub").mkdir()
            (made.path / "sub" / "file").touch()
    finally:
        os.umask(before)
    assert list(temporary.iterdir()) == []


def test_it_goes_away_after_an_error(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch():
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_left_goes_at_the_next_start(temporary: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        path = Path(holder.stdout.readline().strip())
        with scratch():
            assert path.exists(), "it is in use"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (path / "keys.csv").exists()
    with scratch() as made:
        assert list(temporary.iterdir()) == [made.path]


def test_a_forked_process_does_not_remove_it(temporary: Path) -> None:
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(scratch())
        child = os.fork()
        if not child:
            try:
                stack.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert made.path.is_dir()
    assert list(temporary.iterdir()) == []


def test_a_forked_process_does_not_hold_it(temporary: Path) -> None:
    ours, theirs = socket.socketpair()
    with scratch() as made:
        child = os.fork()
        if not child:
            ours.close()
            theirs.sendall(b"!")  # the first of its own code to run
            theirs.recv(1)
            os._exit(0)
        try:
            assert ours.recv(1) == b"!"
            let_go(made.descriptor)  # as if this process had been killed
            remove_abandoned()
            assert list(temporary.iterdir()) == []
        finally:
            ours.close()
            theirs.close()
            os.waitpid(child, 0)


def test_only_directories_of_ours_are_removed(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").touch()
    (temporary / "other").mkdir()
    (temporary / f"{PREFIX}dead").mkdir()
    remove_abandoned()
    assert {path.name for path in temporary.iterdir()} == {
        *("elsewhere", "other", f"{PREFIX}link", f"{PREFIX}file")
    }
    assert (elsewhere / "file").exists()


def test_programs_that_call_libpsi_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "before")
    with private_scratch():
        directory = Path(os.environ["TMPDIR"])
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()
    assert os.environ["TMPDIR"] == "before"
    monkeypatch.delenv("TMPDIR")
    with private_scratch():
        assert os.environ["TMPDIR"]
    assert "TMPDIR" not in os.environ


def test_what_a_signal_interrupts_is_removed_at_the_end(tmp_path: Path) -> None:
    """Its error may come anywhere, also in the middle of removing."""
    code = (
        "import shutil\n"
        "from redislink.spu import scratch\n"
        "remove = shutil.rmtree\n"
        "def interrupted(*_, **__):\n"
        "    shutil.rmtree = remove\n"
        "    raise SystemExit(143)\n"
        "with scratch.scratch() as made:\n"
        "    (made.path / 'input.csv').write_text('digest')\n"
        "    print(made.path, flush=True)\n"
        "    shutil.rmtree = interrupted\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
