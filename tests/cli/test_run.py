"""``redislink run``: the program sees what it would see under plain python."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from redislink import PeerAborted, Session, load_cluster
from redislink.broker import EmbeddedBroker
from tests.cli.conftest import CLUSTER, NAMES, Run, Start, Write, check_one_line, ended
from tests.conftest import connect_as, in_thread, quick_settings

TELL = """
    import json, os, sys
    print(json.dumps({
        "argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0],
        "cluster": os.environ["REDISLINK_CLUSTER_FILE"], "party": os.environ["REDISLINK_PARTY"],
        "is_main": sys.modules["__main__"].__dict__ is globals(),
    }))
"""


def test_arguments_after_the_program_are_untouched(
    spawn: Start, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program(TELL)
    arguments = ["--data", "x y", "--party", "bob", "--help", "-v", "--", "-h", "", "ü"]
    cluster = write_cluster()
    result = ended(spawn("run", "--cluster", cluster, "--party", "alice", program, *arguments))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "argv": [str(program), *arguments],
        "name": "__main__",
        "file": str(program),
        "path": str(tmp_path),
        "cluster": str(cluster),
        "party": "alice",
        "is_main": True,
    }


def test_cluster_and_party_may_come_from_the_environment(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    write_cluster()
    result = redislink("run", write_program(TELL), cluster_file="cluster.yaml", party="bob")
    told = json.loads(result.stdout)
    assert told["party"] == "bob"
    assert Path(told["cluster"]).is_absolute(), "the program may change its directory"


def test_the_programs_exit_code_is_passed_on(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    program = write_program("import sys; sys.exit(7)")
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert (result.returncode, result.stderr) == (7, "")


def test_the_programs_error_has_its_own_traceback_only(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    program = write_program(
        """
        def divide():
            return 1 / 0
        divide()
        """
    )
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert result.returncode == 1
    assert "in divide" in result.stderr
    assert "runpy" not in result.stderr
    assert "redislink/cli" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"redislink: alice: {program} failed with")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("open('none.csv')", "none.csv: No such file or directory"),
        ("import pathlib; pathlib.Path('/').write_text('')", "/: Is a directory"),
    ],
)
def test_a_file_that_the_program_cannot_open_is_one_line(
    redislink: Run, write_cluster: Write, write_program: Write, line: str, said: str
) -> None:
    program = write_program(f"def read():\n    {line}\n\nread()\n")
    words = ("run", "--cluster", write_cluster(), "--party", "alice", program)
    check_one_line(redislink(*words), 1, f"alice: {program}, line 2: {said}", "check the path")
    assert "in read" in redislink("--verbose", *words).stderr


def test_a_program_that_cannot_be_parsed(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    program = write_program("def broken(:\n    pass\n")
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert result.returncode == 1
    assert "SyntaxError" in result.stderr
    assert "runpy" not in result.stderr


WAITS = "redislink: alice: waiting for bob to join\n"


def test_interrupt(
    spawn: Start, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program(
        """
        import redislink
        print("starts", flush=True)
        redislink.connect()
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", program)
    process = spawn(*words, broker_url=broker.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.returncode == 130
    assert result.stderr.removeprefix(WAITS) == "redislink: alice: interrupted\n"


def test_an_interrupt_that_python_drops_comes_again(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    """As in the callback that follows an import."""
    program = write_program(
        """
        import signal, threading, weakref
        thing = {"gone"}
        watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        print("goes on", flush=True)
        threading.Event().wait()
        """
    )
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert (result.returncode, result.stdout) == (130, "goes on\n")
    assert result.stderr == "redislink: alice: interrupted\n"


def test_sigterm_before_the_session(
    spawn: Start, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program(
        """
        from redislink import Session
        Session.join()
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", program)
    process = spawn(*words, broker_url=broker.url)
    assert process.stderr is not None
    assert process.stderr.readline() == "redislink: alice: waiting for bob to join\n"
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    assert (result.returncode, result.stderr) == (143, "redislink: alice: ended by SIGTERM\n")


SPU = {"SP0": {"kind": "SPU", "members": list(NAMES), "config": {"protocol": "SEMI2K"}}}


@pytest.mark.slow
@pytest.mark.parametrize("work", ["waits in SPU", "computes", "does something else"])
def test_sigterm_ends_the_session_for_all_at_once(
    start: Start, write_cluster: Write, write_program: Write, broker: EmbeddedBroker, work: str
) -> None:
    """Alice is a process that gets the signal, bob a thread here."""
    device = """
            import numpy as np
            sp = session.spu("SP0")
            x = sp.private(lambda: np.eye(100, dtype=np.float32), owner="alice")
            sp.run(lambda x: x * x)(x)
    """
    endless = "[sp.run(lambda x: x @ x)(x) for _ in iter(int, 1)]"
    prepare, do = {
        "waits in SPU": (device, "sp.run(lambda x: x * x)(x)"),
        "computes": (device, endless),
        "does something else": ("", "threading.Event().wait()"),
    }[work]
    program = f"""
        import threading
        from redislink import Session
        with Session.join() as session:
            {prepare.strip()}
            print("ready", flush=True)
            {do}
    """
    cluster = write_cluster(CLUSTER | {"devices": SPU})
    process = start(
        *("run", "--cluster", cluster, "--party", "alice", write_program(program)),
        broker_url=broker.url,
    )

    def bob() -> None:
        settings = quick_settings(broker_url=broker.url, recv_timeout=60)
        with Session.from_endpoint(connect_as(load_cluster(cluster), "bob", settings)) as session:
            if prepare:
                sp = session.spu("SP0")
                x = sp.private(None, owner="alice")
                sp.run(lambda x: x * x)(x)
            while work == "computes":
                x = sp.run(lambda x: x @ x)(x)
            session.communicator.recv("alice", "never")

    thread, outcome = in_thread(bob)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    alice = ended(process)
    thread.join(20)
    assert alice.returncode == 143, alice.stderr
    assert alice.stderr.splitlines()[-1] == "redislink: alice: ended by SIGTERM"
    assert isinstance(outcome[0], PeerAborted), outcome
    assert outcome[0].reason == "ended by SIGTERM"


def test_a_program_may_handle_sigterm_itself(
    start: Start, write_cluster: Write, write_program: Write
) -> None:
    program = write_program(
        """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        print("starts", flush=True)
        signal.pause()
        """
    )
    process = start("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process).returncode == 9


def test_as_json_every_line_of_ours_is_an_object(
    redislink: Run, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program("import redislink; redislink.Session.join()")
    result = redislink(
        *("run", "--cluster", write_cluster(), "--party", "alice", program),
        broker_url=broker.url,
        connect_timeout="1.5",
        log_format="json",
    )
    assert result.returncode == 4
    missing, failed = map(json.loads, result.stderr.splitlines())
    assert missing["message"] == "waiting for bob to join"
    assert (missing["level"], missing["session"], missing["party"]) == ("INFO", "cli", "alice")
    assert failed["message"].startswith("alice: waited 1.5 s at broker")
    assert (failed["level"], failed["party"]) == ("ERROR", "alice")
    verbose = redislink("run", "-v", "none.py", log_format="json")
    assert "no cluster file" in json.loads(verbose.stderr.splitlines()[-1])["message"]
