"""``redislink simulate``: a program as every party, unchanged, with its outputs merged."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from redislink.cli.simulate import _worst
from tests.cli.conftest import Call, Run, Start, Write, ended

pytestmark = pytest.mark.slow
SUM = """
    import argparse, os
    from redislink import Session
    parser = argparse.ArgumentParser()
    parser.add_argument("--mine", type=int, required=True)
    parser.add_argument("--name")
    options = parser.parse_args()
    with Session.join() as session:
        assert options.name == session.party
        sp = session.spu("SP0")
        parts = [sp.private(lambda: options.mine, owner=name) for name in session.party_names]
        total = sp.reveal(sp.run(lambda *parts: sum(parts))(*parts), to=["bob"])
        print(f"{len(parts)} [b]parties[/b] of {session.name}:", total)
"""


def test_one_program_as_two_parties(redislink: Run, write_program: Write) -> None:
    result = redislink(
        *("simulate", "--parties", "2", "--for", "alice --mine 20", "--for", "bob --mine '22'"),
        *(write_program(SUM), "--name", "{party}"),
        broker_url="redis://nowhere.invalid:1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = sorted(line for line in result.stdout.splitlines() if "waiting" not in line)
    assert lines == [
        "alice | 2 [b]parties[/b] of simulator: <Withheld i32[], revealed to bob>",
        "bob   | 2 [b]parties[/b] of simulator: 42",
    ]


def test_the_exit_code_is_of_the_party_that_failed_by_itself(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    program = write_program(
        """
        from redislink import Session
        with Session.join() as session:
            if session.party == "bob":
                raise KeyError
            session.communicator.recv("bob", "never")
        """
    )
    result = redislink("simulate", program, cluster_file=str(write_cluster()))
    assert result.returncode == 1, result.stdout
    assert "bob   | KeyError" in result.stdout
    assert "alice | redislink: alice: bob aborted the session (KeyError in its" in result.stdout


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
        (["--for", "dave 1", "p.py"], "begins with no party: the parties are alice, bob, carol"),
        (["--for", "bob '", "p.py"], "mend the quotes"),
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
