"""``redislink simulate``: a program as every party, unchanged, with its outputs merged."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.cli.simulate import _worst
from tests.cli.conftest import Call, Start, Write, ended

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _keep_sigterm() -> Iterator[None]:
    """The command, called in this process, sets a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_outputs_are_merged_and_the_exit_code_is_of_the_party_that_failed_by_itself(
    call: Call, write_program: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_program(
        """
        import argparse
        from redislink import Session
        parser = argparse.ArgumentParser()
        parser.add_argument("--mine", type=int, required=True)
        parser.add_argument("--name")
        options = parser.parse_args()
        with Session.join() as session:
            assert options.name == session.party
            peer = 1 - session.rank
            session.communicator.send(peer, "mine", options.mine)
            total = options.mine + session.communicator.recv(peer, "mine")
            print(f"[b]{session.name}[/b], {list(session.cluster.devices)}:", total)
            if session.party == "bob":
                session.communicator.recv("alice", "has printed")
                raise KeyError
            session.communicator.send("bob", "has printed", None)
            session.communicator.recv("bob", "never")
        """
    )
    monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://nowhere.invalid:1")
    monkeypatch.setenv("REDISLINK_BROKER_PASSWORD_FILE", str(write_program("real", "password")))
    call("init", "alice", "bob")
    own = Path("redislink-session", ".env")
    own.write_text(f"{own.read_text()}REDISLINK_PARTY=dave\nREDISLINK_AUDIT_FILE=audit.jsonl\n")
    code, out, err = call(
        *("simulate", "--for", "alice --mine 20", "--for", "bob --mine '22'"),
        *(program, "--name", "{party}"),
    )
    assert code == 1, out
    assert "parties and devices are those of redislink-session/cluster.yaml" in err
    assert not Path("audit.jsonl").exists(), "that is of real runs"
    lines = out.splitlines()
    assert "alice | [b]trial[/b], ['SP0', 'PSI0']: 42" in lines
    assert "bob   | [b]trial[/b], ['SP0', 'PSI0']: 42" in lines
    assert "bob   | KeyError" in lines
    assert "alice | redislink: alice: bob aborted the session (KeyError in its" in out


def test_a_cluster_file_that_it_found_is_named(call: Call, write_program: Write) -> None:
    program = write_program("")
    call("init", "--as", "alice", "alice", "bob")
    code, _, err = call("simulate", "--for", "dave 1", program)
    assert code == 2
    assert "redislink-session/cluster.yaml is not there yet" in err
    assert "use one of alice, bob, carol, of 3 parties (--parties N" in err
    Path("redislink-session").rename("before")
    call("init", "alice", "bob")
    code, _, err = call("simulate", "--for", "carol 1", program)
    assert code == 2
    assert (
        "use one of alice, bob, of redislink-session/cluster.yaml, which redislink init made here "
        "(--parties N takes others)"
    ) in err


def test_time_is_bounded(call: Call, write_program: Write) -> None:
    program = write_program("import threading; threading.Event().wait()")
    code, _, err = call("simulate", "--timeout", "1", "--parties", "2", program)
    assert (code, err) == (124, "redislink: time is up after 1 s\n")


def test_it_ends_its_parties_on_sigterm(start: Start, write_program: Write, tmp_path: Path) -> None:
    program = write_program(
        """
        import os, threading
        print(os.getpid(), flush=True)
        threading.Event().wait()
        """
    )
    process = start("simulate", "--parties", "2", program)
    assert process.stdout is not None
    pids = [int(process.stdout.readline().rpartition("|")[2]) for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert ended(process).returncode == 130
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parties", "1", "x.py"], "--parties"),
        (["--parties", "2", "--cluster", "c.yaml", "x.py"], "--cluster or --parties, not both"),
        (["--cluster", "c.yaml", "x.py"], "cluster file c.yaml"),
        (["x.py"], "program x.py: there is no such file"),
        (["--for", "dave 1", "p.py"], "does not begin with a party: use one of alice, bob, carol"),
        (["--for", "bob '", "p.py"], "fix the quotes"),
    ],
)
def test_wrong_command_lines(call: Call, write_program: Write, words: list[str], said: str) -> None:
    write_program("", "p.py")
    code, out, err = call("simulate", *words)
    assert (code, out) == (2, "")
    assert err.startswith("redislink: ")
    assert said in err


def test_the_worst_code() -> None:
    assert _worst([0, 0]) == 0
    assert _worst([4, 1, 4]) == 1
    assert _worst([0, 4]) == 4
    assert _worst([-9, 4]) == 137
