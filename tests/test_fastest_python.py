"""`.ci/fastest-python`: which interpreter `make` takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "fastest-python"


def _choose(path: str, *arguments: str) -> tuple[str, str]:
    """Returns what it prints and what it says."""
    done = subprocess.run(
        [SCRIPT, *arguments], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == (0 if done.stdout else 1)
    return done.stdout.strip(), done.stderr


def _put(directory: Path, text: str) -> str:
    """Put a stand-in for an interpreter into a directory, which is returned."""
    directory.mkdir()
    file = directory / "python3.11"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(directory)


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [(1000, 700, "/second"), (1000, 950, "/first"), (700, 1000, "/first")],
    ids=["faster", "hardly faster", "slower"],
)
def test_the_first_is_taken_unless_another_is_clearly_faster(
    tmp_path: Path, first: int, second: int, taken: str
) -> None:
    places = [
        _put(tmp_path / "broken", "exit 3"),
        _put(tmp_path / "a", f"echo {first} /first"),
        _put(tmp_path / "same", f"echo {second // 2} /first"),  # a shim of the one before
        _put(tmp_path / "b", f"echo {second} /second"),
    ]
    found, said = _choose(":".join([*places, "/usr/bin", "/bin"]))
    assert found == taken
    assert f"is {taken}" in said
    assert "/first" in said


def test_one_that_is_asked_for_is_measured_by_itself() -> None:
    found, said = _choose(os.environ["PATH"], sys.executable)
    assert (found, said) == (os.path.realpath(sys.executable), "")


def test_without_any_it_says_what_to_do(tmp_path: Path) -> None:
    found, said = _choose("/usr/bin:/bin", str(tmp_path / "python3.11"))
    assert found == ""
    assert "make PYTHON=" in said
    assert str(tmp_path) in said
