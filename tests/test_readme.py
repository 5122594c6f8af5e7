"""The README, typed as it stands, after ``make demo``: each terminal with its own commands."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from redislink.cli import app
from redislink.cli.demo import next_commands
from tests.deploy.test_broker_files import free_port
from tests.support.terminal import Terminal, terminals

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
PARTIES: Final = ("alice", "bob", "carol")
_BLOCK = re.compile(r"^<!-- ([^>]*) -->\n```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS: Final = _BLOCK.findall(README)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[dict[str, Terminal]]:
    """Terminals in a checkout after ``make demo``."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    env = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
    env |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with terminals(tmp_path, ("first", "broker", *PARTIES), env) as opened:
        yield opened


def block(where: str) -> str:
    (text,) = (text for place, text in BLOCKS if place == where)
    return text


@pytest.mark.slow
def test_the_commands_of_the_readme(opened: dict[str, Terminal]) -> None:
    """The broker has a port of its own, which the parties find in the environment."""
    for terminal in opened.values():
        terminal.type(block("each terminal"))
    make_trial, simulate = (text for place, text in BLOCKS if place == "first terminal")
    opened["first"].type(make_trial)
    port = free_port()
    opened["broker"].start(block("broker").replace("broker", f"broker --port {port}"))
    opened["broker"].read_until("Ctrl-C stops it")
    for party in PARTIES:
        opened[party].type(f"export REDISLINK_BROKER_URL=redis://127.0.0.1:{port}/0")
        opened[party].start(block(party))
    for party in PARTIES:
        assert "bob is the richest" in opened[party].wait()
    said = opened["first"].type(simulate)
    assert re.findall(r"^(\w+) .*bob is the richest", said, re.MULTILINE)


def test_its_cluster_file_is_what_init_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(party: str, block_of: str) -> None:
        (tmp_path / party).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / party)
        (line,) = block(block_of).splitlines()
        words = line.replace("--as alice", f"--as {party}").split()
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output

    for party in PARTIES:
        init(party, "alice, in her own directory")
    for party in PARTIES[1:]:
        path = Path("redislink-session", "introductions", f"{party}.yaml")
        (tmp_path / "alice" / path).write_bytes((tmp_path / party / path).read_bytes())
    init("alice", "each organisation")
    shown = re.findall(
        r"<!-- redislink-session/cluster.yaml -->\n```yaml\n(.*?)```", README, re.DOTALL
    )
    made = Path("redislink-session", "cluster.yaml").read_text()
    made = re.sub(r"(?m)^#.*\n|(?<=:)[\w+/]{43}=", lambda m: "…" if m[0][0] != "#" else "", made)
    assert shown == [made]


def test_the_demo_ends_with_the_commands_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    shown = [line for _, text in BLOCKS for line in text.splitlines()]
    commands = [command.partition("  #")[0] for command in next_commands()]
    assert commands[0] == "source .venv/bin/activate"
    assert len(commands) == 6
    assert set(commands) <= set(shown)


def test_the_demo_shows_paths_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", "/opt/my env")
    first, *_, last = next_commands()
    assert first.startswith("source '/opt/my env/bin/activate'")
    assert f" {ROOT / 'examples' / 'millionaire.py'} " in last
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert not any("activate" in line for line in next_commands()), "no virtual environment"


def test_the_first_lines_say_what_it_is_and_what_to_type() -> None:
    _, about, commands, *_ = README.split("\n\n")
    sentences = re.findall(r"\.(?:\s|$)", about)
    assert len(sentences) == 2
    assert re.findall(r"^make (\w+)", commands, re.MULTILINE) == ["demo", "test"]
