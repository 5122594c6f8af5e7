"""A job's process: what it gets, what it may use, what it says, and how it ends."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from redislink.broker import EmbeddedBroker
from redislink.identity.keypair import format_public_key
from redislink.jobs import runner
from redislink.jobs.policy import JobLimits
from redislink.jobs.runner import Outcome, Progress, Runner, Running, Task, Used
from redislink.jobs.usage import marked
from redislink.settings import RedisLinkSettings, environment_of_job
from tests.conftest import IDENTITIES
from tests.support.waiting import wait_until

NAMES = ("alice", "bob")
CLUSTER = {
    "session": "runner.j0123456789ab",
    "parties": [
        {"name": name, "public_key": format_public_key(IDENTITIES[name].public_key)}
        for name in NAMES
    ],
}
_LONG = 60.0


class Jobs:
    """Starts jobs of parties, each in its own directory."""

    def __init__(self, directory: Path, url: str = "redis://127.0.0.1:1") -> None:
        self._directory = directory
        self._url = url
        self.cluster = directory / "cluster.yaml"
        self.cluster.write_text(yaml.safe_dump(CLUSTER))
        self.running: list[Running] = []

    def start(self, party: str, program: str, now: Any = time.monotonic, **task: Any) -> Running:
        directory = self._directory / party
        directory.mkdir(mode=0o700, exist_ok=True)
        identity, path = self._directory / f"{party}.key", self._directory / f"{party}.py"
        path.write_text(textwrap.dedent(program))
        if not identity.exists():
            IDENTITIES[party].save(identity, "of a test")
        usual: dict[str, Any] = {
            "job": "j0123456789ab",
            "directory": directory,
            "cluster": self.cluster,
            "party": party,
            "identity": identity,
            "program": path,
            "environment": environment_of_job(
                RedisLinkSettings(_env_file=None, broker_url=self._url, peer_timeout=5)
            ),
        }
        self.running.append(Runner(now).start(Task(**usual | task)))
        return self.running[-1]

    def log(self, party: str) -> str:
        return runner.tail(self._directory / party)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    yield made
    finish(made)


def finish(jobs: Jobs) -> None:
    for running in jobs.running:
        running.end("the test is over")
        wait_until(running.poll, _LONG)


def outcome(running: Running) -> Outcome:
    found = wait_until(running.poll, _LONG, "the end of the run")
    assert isinstance(found, Outcome)
    return found


def test_a_process_gets_its_own_place_and_nothing_of_the_agents(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the agent")
    monkeypatch.setenv("REDISLINK_TRACE_DIR", str(tmp_path))
    limits = JobLimits(cpu=50, disk=1 << 30)
    program = """
        import json, os, resource, sys
        assert sys.stdin.read() == ""
        open("note", "w").close()
        names = ("CORE", "CPU", "FSIZE")
        print(json.dumps({
            "words": sys.argv[1:], "environment": dict(os.environ), "here": os.getcwd(),
            "limits": [resource.getrlimit(getattr(resource, "RLIMIT_" + n))[0] for n in names],
            "mode": os.stat("note").st_mode & 0o777,
            "is leader": os.getsid(0) == os.getpgid(0) == os.getpid(),
            "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                            if os.path.exists(f"/proc/self/fd/{n}")),
        }))
    """
    running = jobs.start(
        "alice", program, arguments=("--epochs=3", "-x"), limits=limits, used=Used(cpu=10)
    )
    assert outcome(running) == Outcome()
    seen: Any = yaml.safe_load(jobs.log("alice"))
    scratch = str(tmp_path / "alice" / runner.SCRATCH)
    assert seen["words"] == ["--epochs=3", "-x"]
    assert seen["here"] == seen["environment"]["HOME"] == seen["environment"]["TMPDIR"] == scratch
    assert seen["limits"] == [0, 41, 1 << 30]
    assert seen["mode"] == 0o600
    assert seen["is leader"]
    assert "AWS_SECRET_ACCESS_KEY" not in seen["environment"]
    assert "REDISLINK_TRACE_DIR" not in seen["environment"]
    assert seen["environment"]["REDISLINK_PEER_TIMEOUT"] == "5.0"
    assert seen["environment"]["REDISLINK_BROKER_WAIT"] == "true"
    allowed = (str(tmp_path), "/dev/null", "/dev/urandom", "/proc/", "socket:", "pipe:")
    assert [name for name in seen["files"] if not name.startswith(allowed)] == []
    assert (tmp_path / "alice" / runner.LOG).stat().st_mode & 0o777 == 0o600
    runner.clear(tmp_path / "alice")
    assert sorted(path.name for path in (tmp_path / "alice").iterdir()) == ["log", "results"]


HOARDS = """
    import time
    kept = bytearray(300 << 20)
    kept[::4096] = b"x" * len(kept[::4096])
    print("has it", flush=True)
    time.sleep(600)
"""
SPINS = "while True: pass\n"
FILLS = """
    import time
    for number in range(40):
        with open(str(number), "wb") as file:
            file.write(b"x" * (1 << 20))
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("program", "limits", "why"),
    [
        (HOARDS, JobLimits(memory=256 << 20), "used more than 256 MiB of memory"),
        (SPINS, JobLimits(cpu=1), "used more than 1 s of CPU"),
        (FILLS, JobLimits(disk=20 << 20), "used more than 20 MiB of disk"),
    ],
    ids=["memory", "cpu", "disk"],
)
@pytest.mark.slow
def test_over_a_limit_a_job_ends_and_says_which(
    jobs: Jobs, program: str, limits: JobLimits, why: str
) -> None:
    running = jobs.start("alice", program, limits=limits)
    why = f"the job {why}, its limit here"
    assert outcome(running) == Outcome(why, why)


def test_time_counts_over_all_runs_of_a_job(jobs: Jobs) -> None:
    now = [100.0]
    limits = JobLimits(wall=60)
    running = jobs.start(
        "alice", "input()\nimport time; time.sleep(600)", lambda: now[0], limits=limits,
        used=Used(wall=40),
    )  # fmt: skip
    now[0] += 15
    assert running.poll() is None
    assert running.used.wall == 55
    now[0] += 6
    running.poll()
    why = "the job ran for more than 60 s, its limit here"
    assert outcome(running) == Outcome(why, why)


def test_what_does_not_end_is_killed_and_leaves_no_process(jobs: Jobs, tmp_path: Path) -> None:
    now = [100.0]
    program = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for group in (False, True):
            subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"],
                             start_new_session=group)
        print("ready", flush=True)
        time.sleep(600)
    """
    running = jobs.start("alice", program, lambda: now[0])
    mark = f"REDISLINK_JOB_DIR={tmp_path / 'alice'}"
    wait_until(lambda: "ready" in jobs.log("alice"), _LONG)
    assert len(marked(mark)) == 3
    running.end("cancelled by coordinator", may_pass=False)
    running.end("a second reason")
    assert running.poll() is None
    now[0] += 11
    assert outcome(running) == Outcome("cancelled by coordinator", "cancelled by coordinator")
    wait_until(lambda: not marked(mark))


def test_a_job_ends_with_the_thread_that_started_it(jobs: Jobs) -> None:
    """So an agent that is killed leaves nothing that computes."""

    def begin() -> None:
        jobs.start("alice", "print('ready', flush=True)\nimport time\ntime.sleep(600)")
        wait_until(lambda: "ready" in jobs.log("alice"), _LONG)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert outcome(jobs.running[0]).told == "its process was ended by SIGKILL"


@pytest.fixture
def another_unix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ``prctl`` nor ``waitid``, as on macOS with Python 3.11."""
    monkeypatch.setattr(runner, "_HAS_PRCTL", False)
    monkeypatch.delattr(os, "waitid")


@pytest.mark.usefixtures("another_unix")
def test_where_the_kernel_does_not_end_a_job_with_its_agent_a_guard_does(
    jobs: Jobs, tmp_path: Path
) -> None:
    running = jobs.start("alice", "print('ready', flush=True)\nimport time\ntime.sleep(600)")
    wait_until(lambda: "ready" in jobs.log("alice"), _LONG)
    mark = f"REDISLINK_JOB_DIR={tmp_path / 'alice'}"
    assert len(marked(mark)) == 2, "the job and its guard"
    guard, running._guard = running._guard, None
    assert guard is not None
    guard.close()  # as at the end of the agent's process
    wait_until(lambda: not marked(mark), _LONG, "the end of both")
    assert outcome(running).told == "its process was ended by SIGKILL"


@pytest.mark.usefixtures("another_unix")
def test_a_guard_ends_with_its_job_and_the_program_does_not_see_it(
    jobs: Jobs, tmp_path: Path
) -> None:
    program = """
        import os
        try:
            os.wait()
        except ChildProcessError:
            print("no child", flush=True)
    """
    assert outcome(jobs.start("alice", program)) == Outcome()
    assert "no child" in jobs.log("alice")
    wait_until(lambda: not marked(f"REDISLINK_JOB_DIR={tmp_path / 'alice'}"), _LONG)


def test_how_a_run_ended_is_known_to_an_agent_that_did_not_see_it(
    jobs: Jobs, tmp_path: Path
) -> None:
    directory = tmp_path / "alice"
    assert runner.outcome_before(tmp_path) is None
    failing = jobs.start("alice", "raise KeyError('a patient')")
    assert outcome(failing) == runner.outcome_before(directory)
    assert outcome(failing) == Outcome("KeyError", "KeyError in its program")
    assert "a patient" in jobs.log("alice"), "at home all is told"
    refused = jobs.start("alice", "import redislink; redislink.Session.join(party='dave')")
    assert outcome(refused).told == "ConfigError in its program"
    assert "'dave' is not in session" in outcome(refused).why
    killed = jobs.start("alice", "import os; os.kill(os.getpid(), 9)")
    assert outcome(killed) == Outcome(*["its process was ended by SIGKILL"] * 2, may_pass=True)
    assert runner.outcome_before(directory) is None


def test_what_a_process_says_is_not_trusted(jobs: Jobs) -> None:
    program = r"""
        import json, socket
        from redislink.session import supervisor
        line = supervisor.here._socket
        for message in [
            b"", b"\xff", b"[", b"[1]", b"7", b"{}", b'{"kind": "step"}', b"[" * 5000,
            b'{"kind": "attempt", "number": "x", "why": 1}',
            b'{"kind": "joining", "waits_for": 3}',
            json.dumps({"kind": "step", "chain": "", "number": 3, "text": "\x1b[2J" + "x" * 999,
                        "waits_for": ["bob\n"] * 99}).encode(),
        ]:
            line.send(message)
        import time
        time.sleep(600)
    """
    running = jobs.start("alice", program)

    def step() -> Progress | None:
        assert running.poll() is None
        return running.progress if running.progress.step == 3 else None

    progress = wait_until(step, _LONG)
    assert progress is not None
    assert progress.text.startswith("\N{REPLACEMENT CHARACTER}[2Jxx")
    assert len(progress.text) == 200
    assert progress.waits_for == ("bob",) * 64


def test_a_log_stays_small(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(runner, "MOST_LOG", 1000)
    running = jobs.start(
        "alice",
        "print('a' * 2000, flush=True)\nimport os, time\n"
        "while not os.path.exists('go'): time.sleep(0.01)\nprint('the last')",
        lambda: now[0],
    )
    log = tmp_path / "alice" / runner.LOG
    wait_until(lambda: log.stat().st_size > 1000, _LONG)
    now[0] += 1
    running.poll()
    assert (tmp_path / "alice" / runner.OLD_LOG).stat().st_size == 2001
    (tmp_path / "alice" / runner.SCRATCH / "go").touch()
    outcome(running)
    assert log.read_text() == "the last\n"
    assert runner.last_line(log.parent) == "the last"


TALKS = """
    import redislink
    with redislink.Session.join() as session:
        device = session.communicator
        if session.party == "alice":
            device.send("bob", "note", b"x")
        else:
            device.recv("alice", "note")
        print("met", flush=True)
        {then}
"""


@pytest.mark.slow
def test_progress_is_told_and_the_end_reaches_the_peers(tmp_path: Path) -> None:
    """bob is over a limit: alice's run ends at once, and her people read why."""
    with EmbeddedBroker() as broker:
        jobs = Jobs(tmp_path, broker.url)
        try:
            alice = jobs.start("alice", TALKS.format(then="device.recv('bob', 'never')"))
            wait_until(lambda: not alice.poll() and alice.progress.waits_for == ("bob",), _LONG)
            assert str(alice.progress) == "joining, waiting for bob"
            bob = jobs.start("bob", TALKS.format(then="import time; time.sleep(600)"))
            wait_until(lambda: "met" in jobs.log("alice") and "met" in jobs.log("bob"), _LONG)
            bob.end("the job used more than 8 GiB of memory, its limit here")
            assert outcome(bob).told == "the job used more than 8 GiB of memory, its limit here"
            ended = outcome(alice)
            assert ended.peer == "bob"
            assert "bob aborted the session (the job used more than 8 GiB of" in ended.told
            assert not ended.may_pass
        finally:
            finish(jobs)
