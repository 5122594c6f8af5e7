"""A party that goes in the middle of an intersection: the other ends with the error and the exit
code that are documented, and neither leaves a process or a file behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from redislink.broker import EmbeddedBroker
from tests.cli.conftest import NAMES, Start, Write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

# No guard of __main__, as most programs have none. Both children wait for messages for ever.
PROGRAM = """
    import os, sys
    os.umask(0o022)
    os.environ.pop("TMPDIR", None)
    from redislink import Session
    from redislink.spu.psi_relay import PsiRelay

    def recv(self, *arguments):
        print("inside", flush=True)
        real_recv(self, *arguments)

    def spawn(self, made, *arguments):
        self._messages.send = lambda *message: None
        child = real_spawn(self, made, *arguments)
        print("child", child.pid, made.path, flush=True)
        return child

    real_recv, real_spawn = PsiRelay._recv, PsiRelay._spawn
    PsiRelay._recv, PsiRelay._spawn = recv, spawn
    print("begun", flush=True)
    with Session.join() as session:
        session.psi({"id": ["patient-1"]}, "id", parties=["alice", "bob"], protocol=sys.argv[1])
"""


class Party:
    """A party's process, whose libpsi waits for a message."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        told: list[str] = []
        for line in lines:
            told.append(line)
            if line.startswith("child "):
                _, number, path = line.split()
                self.child, self.path = psutil.Process(int(number)), Path(path)
            if line == "inside\n":
                break
        assert told.count("begun\n") == 1, told
        assert told[-1] == "inside\n", told

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said last; its child and its directory are gone."""
        out, err = self.process.communicate(timeout=60)
        assert "begun" not in out, "the child ran the program again"
        wait_until(lambda: not _lives(self.child))
        wait_until(lambda: not self.path.exists())
        return self.process.returncode, err


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as server:
        yield server


def _inside(
    start: Start, write_cluster: Write, write_program: Write, url: str, protocol: str
) -> list[Party]:
    cluster, program = write_cluster(), write_program(PROGRAM)
    settings = {"broker_url": url, "peer_timeout": "1.5", "broker_timeout": "1.5"}
    processes = [
        start("run", "--cluster", cluster, "--party", name, program, protocol, **settings)
        for name in NAMES
    ]
    return [Party(process) for process in processes]


@pytest.mark.parametrize(
    ("how", "protocol", "codes", "words"),
    [
        ("SIGKILL", "RR22", (-9, 4), "alice was last heard"),
        ("SIGTERM", "KKRT", (143, 4), "alice aborted the session (ended by SIGTERM)"),
        ("libpsi", "ECDH", (1, 4), "alice aborted the session (its private set intersection"),
        ("broker", "ECDH", (3, 3), "the broker has been away for"),
    ],
)
def test_both_end_as_documented(
    start: Start,
    write_cluster: Write,
    write_program: Write,
    own_broker: EmbeddedBroker,
    how: str,
    protocol: str,
    codes: tuple[int, int],
    words: str,
) -> None:
    alice, bob = _inside(start, write_cluster, write_program, own_broker.url, protocol)
    assert alice.path.stat().st_mode & 0o777 == 0o700
    listening = [c for c in alice.child.net_connections("all") if c.status == psutil.CONN_LISTEN]
    assert listening == []
    if how == "broker":
        own_broker.stop()
    elif how == "libpsi":
        alice.child.kill()
    else:
        alice.process.send_signal(signal.Signals[how])
    ends = alice.ended(), bob.ended()
    assert tuple(code for code, _ in ends) == codes, ends
    assert words in ends[1][1]


def test_another_user_reads_no_key_and_no_digest(
    start: Start, write_cluster: Write, write_program: Write, own_broker: EmbeddedBroker
) -> None:
    """With the umask and the temporary directory that a system has by default."""
    everybodys = Path(tempfile.mkdtemp(prefix="readable-", dir="/tmp"))
    try:
        everybodys.chmod(0o755)
        control = everybodys / "control"
        control.write_text("patient-1")
        control.chmod(0o644)
        start_of_test = everybodys / "start"
        start_of_test.touch()
        os.utime(start_of_test, (0, control.stat().st_mtime - 1))
        parties = _inside(start, write_cluster, write_program, own_broker.url, "RR22")
        for party in parties:
            assert party.path.parent == Path("/tmp")
            files = [path for path in party.path.rglob("*") if path.is_file()]
            assert party.path / "input.csv" in files
            assert not any(b"patient" in path.read_bytes() for path in files)
            assert party.path.stat().st_mode & 0o777 == 0o700
            assert all(path.stat().st_mode & 0o077 == 0 for path in files)
        if os.geteuid() == 0:  # only root can look as somebody else
            key = b"patient-1"
            looked = _as_nobody(
                *("find", "/tmp", "-maxdepth", "4", "-not", "-path", "*/pytest-of-*"),
                *("-newer", str(start_of_test)),
                *("-type", "f", "-size", "-1024k"),
                *("-exec", "grep", "-l", "-i", "-e", key.decode(), "-e", key.hex(), "{}", "+"),
            )
            assert looked == [str(control)]
            for party in parties:
                assert _as_nobody("find", str(party.path), "-type", "f") == []
        parties[0].process.kill()
        for party in parties:
            party.ended()
    finally:
        shutil.rmtree(everybodys)


def _as_nobody(*command: str) -> list[str]:
    """What a command of the user nobody prints; what it may not read it says on stderr."""
    nobody = 65534
    ran = subprocess.run(
        command, user=nobody, group=nobody, extra_groups=[], capture_output=True, text=True
    )
    return ran.stdout.splitlines()
