"""The script that the Makefile calls, which is `redislink simulate` (tests/cli/test_simulate.py).

For the examples as processes see tests/test_tutorial.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import run_three

from tests.examples.conftest import EXAMPLES

TIMEOUT = 60.0
pytestmark = pytest.mark.slow


def _run_three(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "run_three.py"), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Each party prints its arguments."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            """
            import sys
            print("runs", *sys.argv[1:])
            """
        )
    )
    return path


def test_arguments_of_all_and_of_one(program: Path) -> None:
    result = _run_three("--for", "bob", "--x 'two words'", program, "--in", "{party}.csv")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        "alice | runs --in alice.csv",
        "bob   | runs --in bob.csv --x two words",
        "carol | runs --in carol.csv",
    ]


def test_words_for_one_party_are_joined() -> None:
    words = ["--timeout", "5", "--for", "bob", "--x 1", "p.py", "--for", "alice", "y"]
    joined = ["--timeout", "5", "--for", "bob --x 1", "p.py", "--for", "alice", "y"]
    assert run_three.join_for(words) == joined
