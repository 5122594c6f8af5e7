"""The command line as a user meets it: real processes, their exit codes and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from redislink.broker import EmbeddedBroker

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., Path]

CLUSTER = {"session": "cli", "parties": ["alice", "bob"]}
TIMEOUT = 60.0


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``redislink WORDS`` in an empty directory, with no REDISLINK_* but those given."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*words: str | Path, **settings: str) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "redislink", *map(str, words)],
            cwd=tmp_path,
            env=inherited | {f"REDISLINK_{k.upper()}": v for k, v in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def redislink(start: Start) -> Run:
    """Run ``redislink WORDS`` to its end."""

    def run(*words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        return ended(start(*words, **settings))

    return run


@pytest.fixture
def write_program(tmp_path: Path) -> Write:
    """Write a program; returns its path."""

    def write(text: str, name: str = "program.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def write_cluster(tmp_path: Path) -> Write:
    """Write a cluster file (text as it is, a mapping as YAML); returns its path."""

    def write(content: object = CLUSTER) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a started process."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def check_one_line(
    result: subprocess.CompletedProcess[str], code: int, *words: str, unsaid: Sequence[str] = ()
) -> None:
    """The process failed with ``code`` and one line on stderr that holds ``words``."""
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("redislink: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr
    for secret in unsaid:
        assert secret not in result.stderr + result.stdout
