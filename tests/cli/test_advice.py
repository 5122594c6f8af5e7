"""Whoever gets exit code 3 is told the doctor's command line, and that one works as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode, with_advice, without_advice
from tests.cli.conftest import CLUSTER, Call, Write, key_file

NOBODY = "redis://127.0.0.1:1/0"


def advised(err: str) -> list[str]:
    """The words after ``redislink`` of the command that an error ends with."""
    found = re.search(r"; to find out more: redislink (.*)$", err)
    assert found, err
    return shlex.split(found[1])


@pytest.mark.parametrize(
    "command",
    [
        ("sessions", "--broker", NOBODY),
        ("inspect", "s", "--broker", NOBODY),
        ("purge", "s", "--broker", NOBODY),
        ("top", "--once", "--broker", NOBODY),
        ("top", "--once"),
        ("acl", "--apply", NOBODY),
        ("demo", "--broker", NOBODY),
        ("bench", "--party", "alice"),
        ("run", "--party", "alice"),
    ],
)
def test_a_broker_out_of_reach(
    call: Call, write_cluster: Write, write_program: Write, tmp_path: Path, command: tuple[str, ...]
) -> None:
    cluster = write_cluster(CLUSTER | {"broker": NOBODY})
    words: list[str | Path] = [*command]
    if command[0] not in ("sessions", "inspect", "purge", "demo"):
        words += ["--cluster", cluster]
    if "--party" in command:
        words += ["--identity", key_file(tmp_path, "alice")]
    if command[0] == "run":
        words.append(write_program("import redislink; redislink.connect()"))
    before = dict(os.environ)
    code, _, err = call(*words)
    os.environ.clear()
    os.environ.update(before)
    assert code == 3
    assert err.count("\n") == 1
    doctor = advised(err)
    assert doctor[0] == "doctor"
    code, out, _ = call(*doctor, "--json")
    told = json.loads(out)
    assert code == 3
    (failed,) = [f for f in told["findings"] if f["level"] == "FAIL"]
    assert failed["name"] == "TCP"
    assert told["broker"] == NOBODY


def test_no_password_is_repeated(call: Call, write_cluster: Write) -> None:
    url = "redis://admin:s3cret@127.0.0.1:1"
    for command in (("sessions",), ("demo",)):
        _, _, err = call(*command, "--broker", url)
        assert advised(err) == ["doctor", "--broker", "URL"]
        assert "s3cret" not in err


def test_what_the_doctor_reads_from_the_environment_is_not_repeated(
    call: Call, write_cluster: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", str(write_cluster()))
    monkeypatch.setenv("REDISLINK_PARTY", "alice")
    monkeypatch.setenv("REDISLINK_BROKER_URL", NOBODY)
    monkeypatch.setenv("REDISLINK_IDENTITY_FILE", str(key_file(tmp_path, "alice")))
    assert advised(call("bench")[2]) == ["doctor"]
    assert call("sessions")[2].endswith('doctor --broker "$REDISLINK_BROKER_URL"\n')


def test_only_where_the_broker_is_at_fault(call: Call) -> None:
    _, _, err = call("sessions", "--broker", "http://x")
    assert "to find out more" not in err
    call("sessions", "--broker", NOBODY)
    assert "to find out more" not in call("fingerprint")[2]
    told = with_advice("it is away", ExitCode.BROKER)
    assert told == without_advice(told) == "it is away", "nothing is left of an earlier command"


class TestDoctorOfABroker:
    def test_it_needs_no_session(self, call: Call, broker: EmbeddedBroker) -> None:
        code, out, err = call("doctor", "--broker", broker.url, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told["session"] is told["party"] is told["digest"] is None
        assert told["broker"] == broker.url
        names = [finding["name"] for finding in told["findings"]]
        assert names[0] == "broker URL"
        assert {"TCP", "login", "version", "eviction", "bandwidth"} <= set(names)
        assert not {"cluster file", "keys", "own lists", "same cluster file"} & set(names)
        code, out, _ = call("doctor", "--broker", broker.url)
        assert f"redislink doctor: {broker.url}" in out

    def test_with_a_password_file(self, call: Call, tmp_path: Path) -> None:
        with EmbeddedBroker(password="s3cret") as server:
            url = f"redis://127.0.0.1:{server.port}/0"
            path = tmp_path / "password"
            path.write_text("s3cret\n")
            path.chmod(0o600)
            assert call("doctor", "--broker", url, "--password-file", path)[0] == 0
            code, out, _ = call("doctor", "--broker", url, "--json")
        assert code == 3
        assert "login" in [f["name"] for f in json.loads(out)["findings"] if f["level"] == "FAIL"]

    @pytest.mark.parametrize(
        "words",
        [
            ("--broker", NOBODY, "--party", "alice"),
            ("--broker", NOBODY, "--cluster", "c"),
            ("--password-file", "f"),
            ("--broker", "http://x"),
        ],
    )
    def test_wrong_words(self, call: Call, words: tuple[str, ...]) -> None:
        assert call("doctor", *words)[0] == 2
