"""Options of the commands for programs that were written for other links.

The programs here have a module that stands for SPU, so that processes are quick. It takes no links
but its own; that ours refuse to be made shows that they are there.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from redislink.broker import EmbeddedBroker
from redislink.cli import ppd
from tests.cli.conftest import Run, Write

MAKE = """
    import json, os, subprocess, sys

    def make():
        from spu.libspu import link
        try:
            link.create_brpc(None, 0)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    if sys.argv[1:] == ["child"]:
        print(make())
    else:
        said = None
        if "--child" in sys.argv:
            child = [sys.executable, __file__, "child"]
            said = subprocess.run(child, capture_output=True, text=True).stdout.strip()
        named = {n: v for n, v in os.environ.items() if n.startswith("REDISLINK_")}
        print(json.dumps({"here": make(), "child": said, "environment": named, "argv": sys.argv}))
"""


@pytest.fixture
def program(write_program: Write, tmp_path: Path) -> Path:
    (tmp_path / "spu").mkdir()
    (tmp_path / "spu" / "__init__.py").write_text("from . import libspu")
    (tmp_path / "spu" / "libspu.py").write_text(
        "import sys, types\n"
        "link = sys.modules['spu.libspu.link'] = types.ModuleType('spu.libspu.link')\n"
        "link.create_brpc = lambda desc, rank: 'listens'\n"
    )
    return write_program(MAKE)


def told_by(result: Any) -> Any:
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["here"].startswith("LinkError: this spu (version unknown) has no IChannel")
    assert told["child"] in (None, told["here"])
    return told


@pytest.mark.slow
def test_a_trial_makes_keys_and_a_broker(redislink: Run, program: Path, tmp_path: Path) -> None:
    result = redislink("run", "--brpc-programs", "--trial", program, "--child", "--trial")
    told = told_by(result)
    assert told["child"] is not None
    assert told["argv"] == [str(program), "--child", "--trial"]
    assert told["environment"]["REDISLINK_BROKER_URL"].startswith("unix://")
    assert not Path(told["environment"]["REDISLINK_TRIAL_DIR"]).exists(), "it is over"
    assert result.stderr == (
        "redislink: for trials only: this machine has the keys of all parties\n"
    )


@pytest.mark.slow
def test_a_party_or_all_of_them(
    redislink: Run, program: Path, write_cluster: Write, tmp_path: Path, broker: EmbeddedBroker
) -> None:
    words = ["run", "--brpc-programs", "--cluster", write_cluster(), "--alias", "r:0=alice"]
    told = told_by(redislink(*words, "--party", "alice", "-m", program.stem))
    assert told["environment"]["REDISLINK_PARTY"] == "alice"
    assert json.loads(told["environment"]["REDISLINK_ALIASES"]) == {"r:0": "alice"}
    missing = redislink(*words, "--identity", tmp_path / "{party}.key", program)
    assert missing.returncode == 2
    assert "bob.key: No such file" in missing.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--brpc-programs", "--trial", "--party", "alice"], "leave --cluster, --party"),
        (["run", "--brpc-programs", "--trial", "--audit", "x"], "are for programs with a Session"),
        (["run", "--trial"], "give --brpc-programs too"),
        (["run", "--brpc-programs"], "no cluster file: there is no redislink-session/ in"),
        (["run", "--brpc-programs", "--alias", "r0", "--trial"], "--alias r0: is not NAME=PARTY"),
        (["ppd", "--trial"], "whatever driver sends: give --i-trust-the-driver if you do"),
        (["ppd", "--trial", "--driver", "-x"], "driver name '-x' is not valid"),
        (["ppd", "--i-trust-the-driver"], "no cluster file: there is no redislink-session/ in"),
    ],
)
def test_what_does_not_go_together_is_an_error(
    redislink: Run, write_program: Write, words: list[str], said: str
) -> None:
    result = redislink(*words, write_program("print('ran')"))
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), ("n", False), ("", False)])
def test_ppd_asks_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, agreed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    with contextlib.nullcontext() if agreed else pytest.raises(typer.Abort):
        ppd._ask("dora")
    assert "For trials only: dora can do here anything that you can" in capsys.readouterr().err


def test_ppd_tells_its_processes_whom_to_trust(redislink: Run, write_program: Write) -> None:
    program = write_program(
        "import os; print(os.environ['REDISLINK_TRUSTED_DRIVER'], os.environ['REDISLINK_INTEROP'])"
    )
    words = ("ppd", "--trial", "--driver", "dora", "--i-trust-the-driver")
    assert redislink(*words, program).stdout == "dora brpc,ppd\n"
