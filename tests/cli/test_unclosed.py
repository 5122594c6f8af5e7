"""What a program sent arrives although it ends without `close`; peers hear how it ended."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from redislink import PeerAborted, PeerClosed, TableError, load_cluster
from redislink.broker import EmbeddedBroker
from redislink.cli import errors
from tests.cli.conftest import Start, Write, ended, key_file
from tests.conftest import connect_as, in_thread, quick_settings

PROGRAM = """
import sys
from redislink import Session
session = Session.join()
for number in range(20):
    session.communicator.send("bob", f"t{number}", bytes(400_000))
"""


@pytest.mark.parametrize("how", ["run", "python"])
def test_what_was_sent_arrives(
    start: Start,
    write_cluster: Write,
    write_program: Write,
    broker: EmbeddedBroker,
    tmp_path: Path,
    how: str,
) -> None:
    """With plain python nobody knows the code of `sys.exit`: the peers hear of an end alone."""
    code = 7 if how == "python" else 0
    cluster, program = write_cluster(), write_program(f"{PROGRAM}sys.exit({code})")

    def bob() -> int:
        with connect_as(load_cluster(cluster), "bob", quick_settings(broker_url=broker.url)) as b:
            size = sum(len(b.recv("alice", f"~app:t{n}")) for n in range(20))
            with pytest.raises(PeerClosed, match="alice has left the session"):
                b.recv("alice", "never")
            return size

    if how == "run":
        words = ("run", "--cluster", cluster, "--party", "alice", program)
        process = start(*words, broker_url=broker.url)
    else:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            env={
                "PYTHONPATH": ":".join(sys.path),
                "REDISLINK_CLUSTER_FILE": str(cluster),
                "REDISLINK_PARTY": "alice",
                "REDISLINK_IDENTITY_FILE": str(key_file(tmp_path, "alice")),
                "REDISLINK_BROKER_URL": broker.url,
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    thread, outcome = in_thread(bob)
    result = ended(process)
    thread.join(30)
    assert outcome == [20 * 400_000]
    assert result.returncode == code, result.stderr
    assert "the program ended without closing session 'cli'" in result.stderr


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [("1 / 0", 1, "ZeroDivisionError in its program"), ("sys.exit(7)", 7, "SystemExit")],
)
def test_a_program_that_fails_is_no_end_in_good_order(
    start: Start,
    write_cluster: Write,
    write_program: Write,
    broker: EmbeddedBroker,
    end: str,
    code: int,
    told: str,
) -> None:
    cluster, program = write_cluster(), write_program(PROGRAM + end)
    process = start("run", "--cluster", cluster, "--party", "alice", program, broker_url=broker.url)
    bob = connect_as(load_cluster(cluster), "bob", quick_settings(broker_url=broker.url))
    with pytest.raises(PeerAborted) as failed:
        bob.recv("alice", "never")
    bob.close()
    result = ended(process)
    assert result.returncode == code
    assert "without closing" not in result.stderr
    assert failed.value.reason.startswith(told)


def test_nobody_is_told_that_peers_ended_because_of_its_own_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = errors._Failures()
    for party in ("alice", "bob"):
        failure = f"carol aborted the session (alice could not load its data) at {party}"
        fields = {"msg": failure, "party": party, "failure": failure, "levelno": logging.ERROR}
        failures._held.append(logging.makeLogRecord(fields))
    failures.say_rest(TableError("alice: psi: own.csv: rows 1 and 2 have the same id"))
    assert capsys.readouterr().err == (
        "redislink: carol aborted the session (alice could not load its data) at bob\n"
    )
