"""What hosts, files and other parties say reaches a terminal as text and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink import errors
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.error_map import translate_error_reply
from redislink.cli.errors import fail_program, say, say_progress, show, show_block
from redislink.cli.simulate import _Output
from redislink.logs import PartyLogger
from redislink.operate.doctor.finding import Blame, failed, failed_with, joined, passed, warned
from redislink.protocol import list_names
from tests.cli.conftest import Call, Write
from tests.support.keyspace import run

EVIL = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\r\n\u2028c\udc9b"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def error_classes(root: type[errors.RedisLinkError]) -> Iterator[type[errors.RedisLinkError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_every_error_is_one_line_of_text() -> None:
    seen = 0
    for kind in {*error_classes(errors.RedisLinkError)}:
        for arguments in ((EVIL,), (EVIL, EVIL), (EVIL, 1.0), (EVIL, EVIL, EVIL)):
            try:
                error = kind(*arguments)
            except (TypeError, ValueError, AttributeError):
                continue  # takes other arguments
            seen += 1
            assert all(part.isprintable() for part in error.args if isinstance(part, str)), kind
            assert str(error).isprintable() or len(error.args) > 1, kind
    assert seen > len({*error_classes(errors.RedisLinkError)})
    assert str(errors.ConfigError("x" * 10**6)).endswith("…")


def test_a_failure_that_ends_the_program_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = errors.PeerLost("bob", 3.0)
    own = logging.StreamHandler(sys.stderr)

    def play(error: Exception | None, *, handler: bool = False) -> str:
        package = logging.getLogger("redislink")
        monkeypatch.setattr(package, "propagate", False)
        monkeypatch.setattr(package, "handlers", [own] if handler else [])
        with contextlib.suppress(Exception), say_progress("alice"):
            extra = {"failure": str(failure)}
            PartyLogger("s", "alice").error("%s: failed: %s", "alice", failure, extra=extra)
            if error is not None:
                raise error
        return capsys.readouterr().err

    assert play(failure.afresh()) == ""
    line = f"alice: failed: {failure}\n"
    assert (
        play(None) == play(ValueError()) == play(errors.UsageError("other")) == f"redislink: {line}"
    )
    own.stream = sys.stderr
    assert play(failure, handler=True) == line


@pytest.mark.parametrize("code", ["NOPERM", "OOM", "MOVED", "READONLY", "LOADING", "WRONGPASS", ""])
def test_what_a_server_answers(code: str) -> None:
    assert str(translate_error_reply("here", f"{code} {EVIL}")).isprintable()


def test_how_a_broker_is_called() -> None:
    assert Broker("unix:///run/a%1bcb").label == "unix:///run/a�cb"


def test_log_records_whatever_handler_the_program_has(caplog: pytest.LogCaptureFixture) -> None:
    log = PartyLogger("s", "alice")
    with caplog.at_level(logging.DEBUG, "redislink"):
        log.warning("%s said %d: %s %.1f", "bob", 7, ValueError(EVIL), 0.5, extra={"peer": "bob"})
        log.log(logging.DEBUG, "%s", EVIL)
    first, second = caplog.records
    assert harmless(first.getMessage())
    assert harmless(second.getMessage())
    assert first.getMessage().startswith("bob said 7: a")
    assert (first.peer, first.filename) == ("bob", Path(__file__).name)  # type: ignore[attr-defined]


def test_what_the_doctor_finds() -> None:
    for verdict in (
        passed(EVIL),
        warned(EVIL, EVIL),
        failed(EVIL, EVIL),
        failed_with(errors.BrokerRefused(EVIL), Blame.BROKER),
        joined([(EVIL, passed("a")), (EVIL, warned("b", EVIL))]),
    ):
        assert verdict.text.isprintable()
        assert verdict.remedy.isprintable()


def test_the_lines_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    show(EVIL)
    show_block(f"{EVIL}\tindented\n")
    with pytest.raises(SystemExit):
        fail_program(ValueError(EVIL), __file__, "alice")
    told = capsys.readouterr()
    assert told.err.count("owned") == 3
    assert told.out.count("owned") == 1
    assert harmless(told.out + told.err.replace("\t", ""))
    assert told.err.count("redislink: ") == 2


@pytest.mark.parametrize(
    "command",
    [
        ("top", "--once"),
        ("sessions",),
        ("inspect", "s"),
        ("doctor", "--party", "alice"),
        ("bench", "--party", "alice"),
        ("fingerprint",),
    ],
)
def test_a_cluster_file(call: Call, write_cluster: Write, command: tuple[str, ...]) -> None:
    lines = (
        'session: "s"',
        r'broker: "redis://h\ecx\u202e.invalid:1/0"',
        "security: none",
        "parties: [alice, bob]",
        r'devices: {"d\e[2J": {kind: SPU, members: [alice, "b\e]0;x\a"]}}',
    )
    path = write_cluster("\n".join(lines[:4]))
    _, out, err = call(*command, "--cluster", path)
    assert harmless(out + err)
    path.write_text("\n".join(lines))
    code, out, err = call(*command, "--cluster", path)
    assert code == 2
    assert harmless(out + err)


def test_names_on_the_broker(call: Call, broker: EmbeddedBroker) -> None:
    tag = list_names.data_list("s", "bob", "alice", "0123456789abcdef", "\x1b[2J\u202etag")
    run(broker.url, "SET", tag, "of another type")
    run(broker.url, "RPUSH", "rl:{s\x1b[2J:bob}:alice:0:!hello", "x")
    for command in (("sessions",), ("inspect", "s"), ("inspect", "s", "--frames")):
        code, out, err = call(*command, "--broker", broker.url)
        assert code == 0
        assert harmless(out + err)
    assert "tag" in out
    run(broker.url, "FLUSHALL")


@pytest.mark.parametrize("field", ["session", "party", "parties"])
def test_a_trace(call: Call, tmp_path: Path, field: str) -> None:
    described = {
        "redislink_trace": 1,
        "session": "s",
        "party": "alice",
        "parties": ["alice"],
        "epochs": {},
        "monotonic_ns": 1,
        "wall_ns": 1,
    }
    path = tmp_path / "trace"
    path.write_text(json.dumps(described) + "\n")
    assert call("trace", "merge", path, "--out", "good")[0] == 0
    for evil in (EVIL, "..", "-rf"):
        value = ["alice", evil] if field == "parties" else evil
        if field == "party":
            described["parties"] = ["alice", evil]
        path.write_text(json.dumps(described | {field: value}) + "\n{}\n{}")
        code, out, err = call("trace", "merge", path, "--out", "out")
        assert (code, out) == (2, "")
        assert "line 1: is not a line of a redislink trace" in err
        assert harmless(err)


def test_the_output_of_simulated_parties(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[31mred\x1b[0m \x9b2J \x1b[2J\ttab \u202e bell\a"
    output = _Output({"alice": []})
    process = subprocess.Popen(
        [sys.executable, "-c", f"print({text!r})"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    output.follow("alice", process)
    process.wait(30)
    output.finish()
    shown = capsys.readouterr().out
    assert shown.startswith("alice | red ")
    assert harmless(shown.replace("\t", ""))
