"""The command line as a user meets it: real processes, their exit codes and what they print."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from redislink.broker import EmbeddedBroker
from redislink.cli import main
from redislink.identity.keypair import format_public_key
from tests.conftest import IDENTITIES
from tests.support.forking import ForkedCommand

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Call = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

NAMES = ("alice", "bob")
CLUSTER = {
    "session": "cli",
    "parties": [
        {"name": name, "public_key": format_public_key(IDENTITIES[name].public_key)}
        for name in NAMES
    ],
}
TIMEOUT = 60.0


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``redislink WORDS`` in an empty directory, with no REDISLINK_* but those given.

    A party that the words name has its own key, unless the test gives another or "".
    """
    with starting(tmp_path, ForkedCommand) as start_one:
        yield start_one


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Start]:
    """As ``start``; the parties are forked from the demo."""
    with starting(tmp_path, functools.partial(ForkedCommand, forks_parties=True)) as start_one:
        yield start_one


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Start]:
    """As ``start``, by ``python -m redislink``: for what begins before the command is parsed."""
    with starting(tmp_path, _spawned) as start_one:
        yield start_one


def _spawned(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "redislink", *words],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def starting(directory: Path, begin: Callable[..., subprocess.Popen[str]]) -> Iterator[Start]:
    """What starts commands in a directory; none of them outlives the block."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*words: str | Path, **settings: str) -> subprocess.Popen[str]:
        party = words[words.index("--party") + 1] if "--party" in words else settings.get("party")
        if party in IDENTITIES:
            settings = {"identity_file": str(key_file(directory, str(party)))} | settings
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        environment = inherited | {f"REDISLINK_{k.upper()}": v for k, v in settings.items()}
        processes.append(begin([*map(str, words)], cwd=directory, env=environment))
        return processes[-1]

    try:
        yield start_one
    finally:
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
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Call ``redislink WORDS`` in this process and an empty directory: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REDISLINK_")]:
        monkeypatch.delenv(name)

    def run(*words: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        told = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, told.out, told.err

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


def key_file(directory: Path, party: str) -> Path:
    """The private key of a party of CLUSTER, in a file as `redislink keygen` writes it."""
    path = directory / f"{party}.key"
    if not path.exists():
        IDENTITIES[party].save(path, "of a test")
    return path


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
