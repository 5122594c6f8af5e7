"""The script that the Makefile calls, which is `redislink simulate` (tests/cli/test_simulate.py).

For the examples as processes see tests/test_tutorial.py.
"""

from __future__ import annotations

import runpy
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import run_three

from tests.examples.conftest import EXAMPLES


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


@pytest.mark.slow
def test_arguments_of_all_and_of_one(
    program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--for", "bob", "--x 'two words'", str(program), "--in", "{party}.csv"]
    monkeypatch.setattr(sys, "argv", ["run_three.py", *words])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / "run_three.py"), run_name="__main__")
    signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert end.value.code == 0, told.err
    assert sorted(told.out.splitlines()) == [
        "alice | runs --in alice.csv",
        "bob   | runs --in bob.csv --x two words",
        "carol | runs --in carol.csv",
    ]


def test_words_for_one_party_are_joined() -> None:
    words = ["--timeout", "5", "--for", "bob", "--x 1", "p.py", "--for", "alice", "y"]
    joined = ["--timeout", "5", "--for", "bob --x 1", "p.py", "--for", "alice", "y"]
    assert run_three.join_for(words) == joined
