"""What a user gets wrong: one line on stderr that says what to do, and the documented code."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from redislink.broker import EmbeddedBroker
from tests.cli.conftest import CLUSTER, NAMES, Run, Start, Write, check_one_line, ended

JOIN = """
    import redislink
    redislink.connect().close()
"""
SP0 = {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}


@pytest.fixture(scope="module")
def locked_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(password="right") as server:
        yield server


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("session: [unclosed", ["cluster.yaml, line 1", "not valid YAML", "fix"]),
        ("", ["cluster.yaml", "a mapping", "empty"]),
        ("- a\n- b\n", ["cluster.yaml", "a mapping", "a list"]),
        ({"parties": ["alice", "bob"]}, ["cluster.yaml: session", "missing: add it"]),
        (CLUSTER | {"sesion": "x"}, ["sesion", "check the spelling"]),
        (CLUSTER | {"parties": ["alice", "bob", "bob"]}, ["'bob'", "twice", "its own name"]),
        (CLUSTER | {"parties": ["alice", "bob:6379"]}, ["parties.1", "bob:6379"]),
        (
            CLUSTER | {"devices": {"SP0": SP0 | {"members": ["alice", "dave"]}}},
            ["devices.SP0.members", "'dave' is not a party", "use names from parties (alice, bob)"],
        ),
        (
            CLUSTER | {"devices": {"SP0": SP0 | {"config": {"protocol": "ABY3"}}}},
            ["devices.SP0", "ABY3 runs between 3 members", "change members"],
        ),
    ],
)
def test_bad_cluster_file(
    redislink: Run, write_cluster: Write, write_program: Write, cluster: object, words: list[str]
) -> None:
    path = write_cluster(cluster)
    result = redislink("run", "--cluster", path, "--party", "alice", write_program(JOIN))
    check_one_line(result, 2, *words)


def test_cluster_file_that_is_not_there(spawn: Start, write_program: Write) -> None:
    words = ("run", "--cluster", "none.yaml", "--party", "alice", write_program(JOIN))
    result = ended(spawn(*words))
    check_one_line(result, 2, "none.yaml: No such file", "check the path")


def test_cluster_file_not_given(redislink: Run, write_program: Write) -> None:
    result = redislink("run", "--party", "alice", write_program(JOIN))
    check_one_line(
        result,
        2,
        "there is no redislink-session/ in",
        "run redislink init here, give --cluster FILE, or set REDISLINK_CLUSTER_FILE",
    )


def test_party_not_in_the_file(redislink: Run, write_cluster: Write, write_program: Write) -> None:
    path = write_cluster()
    result = redislink("run", "--cluster", path, "--party", "dave", write_program(JOIN))
    check_one_line(result, 2, "party 'dave' is not in session 'cli'", "use one of alice, bob")


def test_party_not_given(redislink: Run, write_cluster: Write, write_program: Write) -> None:
    result = redislink("run", "--cluster", write_cluster(), write_program(JOIN))
    check_one_line(result, 2, "give --party NAME, or set REDISLINK_PARTY", "alice, bob")


def test_program_that_is_not_there(redislink: Run, write_cluster: Write) -> None:
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", "none.py")
    check_one_line(result, 2, "program none.py", "check the path")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://broker:6379", ["unknown scheme 'http'", "write redis://"]),
        ("broker:6379", ["no scheme", "write redis://"]),
        ("redis://", ["without a host", "write redis://"]),
        ("redis://broker:port", ["host or port is not valid", "write redis://"]),
        ("unix://", ["without a path", "write redis://"]),
    ],
)
def test_wrong_url(
    redislink: Run, write_cluster: Write, write_program: Write, url: str, words: list[str]
) -> None:
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
        broker_url=url,
    )
    check_one_line(result, 2, "alice: ", *words)
    check_one_line(redislink("demo", "--broker", url), 2, *words)


def test_no_url(redislink: Run, write_cluster: Write, write_program: Write) -> None:
    path = write_cluster()
    result = redislink("run", "--cluster", path, "--party", "alice", write_program(JOIN))
    check_one_line(result, 2, "no broker: set REDISLINK_BROKER_URL")


@pytest.mark.slow
def test_wrong_password(
    redislink: Run, write_cluster: Write, write_program: Write, locked_broker: EmbeddedBroker
) -> None:
    url = f"redis://:wr0ng@127.0.0.1:{locked_broker.port}/0"
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
        broker_url=url,
    )
    check_one_line(result, 3, "check the user and password", unsaid=["wr0ng"])
    result = redislink("demo", "--broker", url)
    check_one_line(result, 3, "check the user and password", unsaid=["wr0ng"])


def test_no_password_where_one_is_needed(
    redislink: Run, write_cluster: Write, write_program: Write, locked_broker: EmbeddedBroker
) -> None:
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
        broker_url=f"redis://127.0.0.1:{locked_broker.port}/0",
    )
    check_one_line(result, 3, "check the user and password")


@pytest.mark.slow
def test_unreachable_broker(redislink: Run, write_cluster: Write, write_program: Write) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # never listens
        url = f"redis://:secret@127.0.0.1:{taken.getsockname()[1]}/0"
        result = redislink(
            *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
            broker_url=url,
        )
        check_one_line(result, 3, "alice: ", "no connection", "check that", unsaid=["secret"])
        check_one_line(redislink("demo", "--broker", url), 3, "no connection", unsaid=["secret"])


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("recv_timeout", "soon", "Seconds that a receive waits"),
        ("connect_timeout", "-1", "Seconds to wait for every other party"),
        ("link_mode", "pigeon", "channels, brpc or mem"),
    ],
)
def test_bad_setting(
    redislink: Run, write_cluster: Write, write_program: Write, name: str, value: str, meant: str
) -> None:
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
        **{name: value},
    )
    check_one_line(result, 2, f"REDISLINK_{name.upper()}", meant)


def test_peer_that_does_not_come(
    redislink: Run, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", write_program(JOIN)),
        broker_url=broker.url,
        connect_timeout="0.2",
    )
    check_one_line(result, 4, "alice: ", "bob", "REDISLINK_CONNECT_TIMEOUT")


@pytest.mark.slow
def test_data_that_is_not_bytes(
    spawn: Start, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program(
        """
        import redislink
        with redislink.connect() as me:
            if me.party == "alice":
                me.send("bob", "greeting", "a text")
        """
    )
    path = write_cluster(CLUSTER | {"session": "not-bytes"})
    alice, bob = (
        spawn("run", "--cluster", path, "--party", name, program, broker_url=broker.url)
        for name in NAMES
    )
    check_one_line(ended(alice), 1, "alice: ", "str, not bytes", "encode it first")
    assert ended(bob).returncode == 0


@pytest.mark.slow
def test_two_processes_claim_one_party(
    start: Start, redislink: Run, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program(
        """
        import redislink
        redislink.connect(on_progress=lambda missing, waited: print("waits", flush=True))
        """
    )
    path = write_cluster(CLUSTER | {"session": "claimed"})
    words = ("run", "--cluster", path, "--party", "alice", program)
    first = start(*words, broker_url=broker.url)
    assert first.stdout is not None
    assert first.stdout.readline() == "waits\n"
    result = redislink(*words, broker_url=broker.url)
    check_one_line(result, 4, "'alice'", "already runs", "end that one")
    assert first.poll() is None, "the first goes on"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--cluster"], ["--cluster", " --help"]),
        (["run", "--colour", "red", "p.py"], ["--colour", "redislink run --help"]),
        (["run"], ["PROGRAM", "redislink run --help"]),
        (["walk"], ["walk", "redislink --help"]),
        (["broker", "--port", "high"], ["--port", "redislink broker --help"]),
        (["broker", "--port", "65536"], ["--port", "redislink broker --help"]),
        (["demo", "alice"], ["alice", "redislink demo --help"]),
        (["broker", "--password", ""], ["password is empty"]),
        (["broker", "--password-file", "none"], ["none", "check the path"]),
        (["demo", "--broker", "fakeredis://x"], ["one process", "redis://HOST:PORT"]),
    ],
)
def test_bad_command_line(redislink: Run, words: list[str], said: list[str]) -> None:
    check_one_line(redislink(*words), 2, *said)


@pytest.mark.slow
def test_verbose_shows_the_traceback(redislink: Run, write_program: Write) -> None:
    for words in (["run", "--verbose"], ["--verbose", "run"]):
        result = redislink(*words, "--cluster", "none.yaml", write_program(JOIN))
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("redislink: cluster file none.yaml")
