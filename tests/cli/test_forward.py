"""``redislink forward`` as a process: what it says, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from tests.cli.conftest import CLUSTER, Call, Start, Write, ended
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["nothing to forward", "-L PORT:PARTY:NAME", "--allow NAME=HOST:PORT"]),
        (["-L", "0.0.0.0:1:bob:web"], ["0.0.0.0", "not an address of this machine alone"]),
        (["-L", "1:carol:web"], ["carol", "the others are bob"]),
        (["--allow", "web=1"], ["is not HOST:PORT"]),
        (["-L", "1:bob:web", "--retry-delay", "inf"], ["2000000 seconds"]),
    ],
)
def test_wrong_words_are_one_line(
    call: Call, write_cluster: Write, words: list[str], named: list[str]
) -> None:
    cluster = write_cluster()
    code, out, err = call("forward", "--cluster", cluster, "--party", "alice", *words)
    assert (code, out) == (2, "")
    assert err.startswith("redislink: ")
    assert err.count("\n") == 1
    for each in named:
        assert each in err


@pytest.mark.slow
def test_it_says_where_it_leads_and_sigterm_ends_it(
    start: Start, call: Call, write_cluster: Write, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    cluster = write_cluster(CLUSTER | {"session": "forwarded"})
    words = ("forward", "--cluster", cluster, "--party")
    with socket.socket() as target:
        target.bind(("127.0.0.1", 0))
        target.listen()
        allow = f"alice:web=127.0.0.1:{target.getsockname()[1]}"
        settings = {"broker_url": broker.url, "log_format": "json"}
        bob = start(*words, "bob", "--allow", allow, **settings)
        alice = start(*words, "alice", "-L", f"unix:{tmp_path / 'door'}:bob:web", **settings)
        assert alice.stderr is not None
        for wanted in ("alice: joined bob", f"alice: unix:{tmp_path / 'door'} leads to web of bob"):
            line = json.loads(alice.stderr.readline())
            assert (line["message"], line["party"]) == (wanted, "alice")
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(tmp_path / "door"))
            program.sendall(b"question")
            connection, _ = target.accept()
            with connection:
                assert connection.recv(100) == b"question"
                options = ("--broker", broker.url, "--once", "--cluster", cluster)

                def streams_shown() -> int:
                    code, out, err = call("top", *options, "--forward", "bob,alice")
                    assert (code, err) == (0, "")
                    assert "session forwarded.j" in out
                    return out.count("1 stream")

                wait_until(lambda: streams_shown() == 2, 20)
    wait_until(lambda: streams_shown() == 0, 20)  # both have seen its end
    alice.send_signal(signal.SIGTERM)
    assert ended(alice).returncode == 0
    assert bob.stderr is not None
    said = (json.loads(line)["message"] for line in iter(bob.stderr.readline, ""))
    last = next(message for message in said if "has ended its forwarder" in message)
    assert last == "bob: 0 streams were reset: alice has ended its forwarder"
    bob.send_signal(signal.SIGTERM)
    rest = ended(bob)
    assert rest.returncode == 0
    assert all(json.loads(line) for line in rest.stderr.splitlines())
    assert not (tmp_path / "door").exists()


def test_top_names_the_pair_that_it_was_not_given(call: Call, write_cluster: Write) -> None:
    for wrong in ("alice", "alice,alice", "alice,carol"):
        code, _, err = call("top", "--cluster", write_cluster(), "--forward", wrong)
        assert code == 2
        assert "alice, bob" in err


@pytest.mark.slow
def test_without_a_broker_it_ends_when_its_attempts_do(start: Start, write_cluster: Write) -> None:
    result = ended(
        start(
            *("forward", "--cluster", write_cluster(), "--party", "alice", "-L", "0:bob:web"),
            *("--retries", "1", "--retry-delay", "0"),
            broker_url="redis://127.0.0.1:1",
        )
    )
    assert result.returncode == 3
    first, last = result.stderr.splitlines()
    assert "not joined with bob" in first
    assert "redislink doctor" in last
    assert "Traceback" not in result.stderr
