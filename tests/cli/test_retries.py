"""``redislink run --retries``: what is tried again, what is left of an attempt, what ends it."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode
from redislink.cli.retries import Attempts
from redislink.errors import PeerLost, ProgramDiverged
from redislink.settings import name_attempt, take_attempt
from tests.cli.conftest import Run, Start, Write, ended
from tests.support.children import in_child
from tests.support.waiting import wait_until

TELL = """
    import atexit, json, os, signal, sys, threading
    from redislink import PeerLost
    here = {
        "process": os.getpid(),
        "directory": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("REDISLINK")},
        "arguments": sys.argv,
        "files": len(os.listdir("/proc/self/fd")),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [s for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN],
        "threads": threading.active_count(),
    }
    with open(sys.argv[1], "a") as told:
        print(json.dumps(here), file=told)
        told.flush()
    path = os.path.abspath(sys.argv[1])
    atexit.register(lambda: open(path + ".cleaned", "a").write("x"))
    threading.Thread(target=lambda: open(path + ".joined", "a").write("x")).start()
"""
SPOIL = """
    os.chdir("/")
    os.environ.clear()
    sys.argv[:] = ["gone"]
    os.dup2(0, 77, inheritable=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if len(open(path).readlines()) < 3:
        raise PeerLost("bob", 31.0)
"""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_attempt_begins_as_the_first_did(
    spawn: Start, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    words = ("run", "--cluster", write_cluster().name, "--party", "alice", "--retries", "5")
    program = write_program(TELL + SPOIL).name
    result = ended(spawn(*words, "--retry-delay", "0", program, "told", "-x"))
    assert result.returncode == 0, result.stderr
    first, *later = _lines(tmp_path / "told")
    assert first["arguments"] == [program, "told", "-x"]
    assert "REDISLINK_ATTEMPT" not in first["environment"]
    for one in later:
        assert one["environment"].pop("REDISLINK_BROKER_WAIT") == "true"
        assert one == first
    for end in ("cleaned", "joined"):
        assert (tmp_path / f"told.{end}").read_text() == "xxx"
    told = result.stderr.splitlines()
    for number, line in enumerate(told, 1):
        assert re.fullmatch(
            rf"redislink: alice: attempt {number} of 6 ended: bob was last heard 31\.0 s ago .*; "
            rf"attempt {number + 1} begins at \d\d:\d\d:\d\d UTC",
            line,
        )
    assert len(told) == 2


@pytest.mark.slow
def test_after_the_last_attempt_the_error_is_the_end(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program(
        """
        from redislink import BrokerUnreachable
        open("told", "a").write("x")
        raise BrokerUnreachable("broker redis://broker: it is away")
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retry-delay", "0")
    result = redislink(*words, "--retries", "1", program)
    assert result.returncode == ExitCode.BROKER
    assert (tmp_path / "told").read_text() == "xx"
    first, last = result.stderr.splitlines()
    assert "attempt 1 of 2 ended: broker redis://broker: it is away; attempt 2" in first
    assert last.startswith("redislink: alice: broker redis://broker: it is away; to find out more")


@pytest.mark.parametrize(
    ("raises", "code"),
    [
        ("KeyError('age')", ExitCode.PROGRAM),
        ("SystemExit(7)", 7),
        ("redislink.ProgramDiverged('at step 3')", ExitCode.PEER),
        ("redislink.PeerAborted('bob', 'KeyError in its program')", ExitCode.PEER),
        ("redislink.SecurityMismatch('the keys differ')", ExitCode.PEER),
        ("redislink.ConfigError('no such device')", ExitCode.CONFIG),
        ("redislink.BrokerAuthError('wrong password')", ExitCode.BROKER),
        ("KeyboardInterrupt()", ExitCode.INTERRUPTED),
    ],
)
def test_what_does_not_pass_ends_at_once(
    redislink: Run, write_cluster: Write, write_program: Write, raises: str, code: int
) -> None:
    program = write_program(f"import redislink\nraise {raises}")
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retries", "5")
    result = redislink(*words, program)
    assert result.returncode == code, result.stderr
    assert "attempt" not in result.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_the_wait(
    start: Start,
    write_cluster: Write,
    write_program: Write,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    said: str,
) -> None:
    program = write_program("open('told', 'w')")
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retries", "5")
    process = start(*words, "--retry-delay", "3600", program, attempt="2 1e300")
    status = Path("/proc", str(process.pid), "status")

    def waits() -> bool:
        """Its handler is set, and it sleeps: in between, a signal ends it without a word."""
        told = status.read_text()
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", told, re.MULTILINE)
        sleeps = re.search(r"^State:\s*S", told, re.MULTILINE) is not None
        return sleeps and bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)

    wait_until(lambda: all(waits() for _ in range(5)), 60)
    process.send_signal(number)
    result = ended(process)
    assert (result.returncode, result.stderr) == (code, f"redislink: alice: {said}\n")
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_program_cleans_up_ends_it(
    start: Start, write_cluster: Write, write_program: Write, tmp_path: Path, number: signal.Signals
) -> None:
    program = write_program(
        """
        import atexit, threading
        from redislink import PeerLost
        atexit.register(lambda: (print("cleans", flush=True), threading.Event().wait()))
        raise PeerLost("bob", 31.0)
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retries", "5", program)
    process = start(*words)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleans\n"
    process.send_signal(number)
    assert ended(process).returncode == -number


@pytest.mark.slow
def test_a_program_that_does_not_end_is_not_waited_for(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program(
        """
        import threading
        from redislink import PeerLost
        from redislink.cli import retries
        retries._GRACE = 0.1
        with open("told", "a") as told:
            told.write("x")
        if open("told").read() == "x":
            threading.Thread(target=threading.Event().wait).start()
            raise PeerLost("bob", 31.0)
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retries", "1")
    result = redislink(*words, "--retry-delay", "0", program)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "told").read_text() == "xx"


def test_a_child_of_the_program_does_not_start_it_again() -> None:
    attempts = Attempts(5, 0.0, ["run", "program.py"])
    lost = PeerLost("bob", 31.0)
    assert attempts.may_follow(lost)
    assert not attempts.may_follow(ProgramDiverged("at step 3"))
    assert in_child(lambda: attempts.may_follow(lost)) is False


def test_what_an_attempt_tells_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    for name, value in name_attempt({}, 3, now).items():
        monkeypatch.setenv(name, value)
    assert take_attempt() == (3, now)
    assert take_attempt() == (1, 0.0), "no process of the program inherits it"
    for nonsense in ("", "3", "x y", "1 2 3"):
        monkeypatch.setenv("REDISLINK_ATTEMPT", nonsense)
        assert take_attempt() == (1, 0.0)
    for far in ("inf", "nan", "1e300", "-1"):
        monkeypatch.setenv("REDISLINK_ATTEMPT", f"2 {far}")
        assert Attempts(5, 0.5, ["run"])._wait <= 0.5


@pytest.mark.slow
def test_a_broker_that_was_reached_before_is_waited_for(
    start: Start, write_cluster: Write, write_program: Write
) -> None:
    """The second attempt finds no broker, and goes on once there is one."""
    program = write_program("import redislink; redislink.Session.join()")
    with EmbeddedBroker() as broker:
        url = broker.url
        port = int(url.rpartition(":")[2].partition("/")[0])
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--retries", "1", program)
    process = start(*words, broker_url=url, attempt="2 0")
    assert process.stderr is not None
    assert "broker unreachable for" in process.stderr.readline()
    with EmbeddedBroker(port=port):
        seen = process.stderr.readline()
        while "waiting for bob" not in seen:
            assert "broker " in seen, seen
            seen = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert ended(process).returncode == 143
