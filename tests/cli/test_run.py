"""``redislink run``: the program sees what it would see under plain python."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from redislink.broker import EmbeddedBroker
from tests.cli.conftest import Run, Start, Write, ended

TELL = """
    import json, os, sys
    print(json.dumps({
        "argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0],
        "cluster": os.environ["REDISLINK_CLUSTER_FILE"], "party": os.environ["REDISLINK_PARTY"],
        "is_main": sys.modules["__main__"].__dict__ is globals(),
    }))
"""


def test_arguments_after_the_program_are_untouched(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program(TELL)
    arguments = ["--data", "x y", "--party", "bob", "--help", "-v", "--", "-h", "", "ü"]
    cluster = write_cluster()
    result = redislink("run", "--cluster", cluster, "--party", "alice", program, *arguments)
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


def test_a_program_that_cannot_be_parsed(
    redislink: Run, write_cluster: Write, write_program: Write
) -> None:
    program = write_program("def broken(:\n    pass\n")
    result = redislink("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert result.returncode == 1
    assert "SyntaxError" in result.stderr
    assert "runpy" not in result.stderr


def test_interrupt(
    start: Start, write_cluster: Write, write_program: Write, broker: EmbeddedBroker
) -> None:
    program = write_program(
        """
        import redislink
        print("starts", flush=True)
        redislink.connect()
        """
    )
    words = ("run", "--cluster", write_cluster(), "--party", "alice", program)
    process = start(*words, broker_url=broker.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "starts\n"
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert (result.returncode, result.stderr) == (130, "redislink: alice: interrupted\n")
