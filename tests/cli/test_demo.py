"""``redislink demo``: what it says it measured, and how it ends when it cannot be ok."""

from __future__ import annotations

import json
import re
from typing import Any

import psutil
import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.demo import PARTIES
from tests.cli.conftest import Run, Start, check_one_line, ended

pytestmark = pytest.mark.slow


def check_is_ok(printed: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(printed)
    assert list(told) == ["ok", "accuracy", "plaintext_accuracy", "seconds", "broker", "parties"]
    assert told["ok"] is True
    assert told["accuracy"] == pytest.approx(told["plaintext_accuracy"], abs=0.02)
    assert told["plaintext_accuracy"] > 0.9
    assert told["seconds"] > 0
    assert [party["name"] for party in told["parties"]] == list(PARTIES)
    for party in told["parties"]:
        assert list(party) == ["name", "listening_sockets", "messages_sent", "bytes_sent"]
        assert party["listening_sockets"] == 0
        assert party["messages_sent"] > 0
        assert party["bytes_sent"] > party["messages_sent"]
    return told


def test_json_over_the_embedded_broker(redislink: Run) -> None:
    result = redislink("demo", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    told = check_is_ok(result.stdout)
    assert re.fullmatch(r"redis://127\.0\.0\.1:\d+/0", told["broker"])


def test_json_over_another_broker_hides_its_password(redislink: Run) -> None:
    with EmbeddedBroker(password="s3cret") as broker:
        result = redislink("demo", "--json", "--broker", broker.url)
        assert result.returncode == 0, result.stderr
        told = check_is_ok(result.stdout)
        assert told["broker"] == broker.url.replace(":s3cret@", "")
        assert "s3cret" not in result.stdout + result.stderr


def test_table(redislink: Run) -> None:
    result = redislink("demo")
    assert result.returncode == 0, result.stderr
    for party in PARTIES:
        assert re.search(rf"│ {party} +│ +0 │ +[\d,]+ │ +[\d,]+ │", result.stdout)
    assert re.search(r"accuracy 0\.\d+; the same training in plaintext 0\.\d+", result.stdout)
    said = " ".join(result.stdout.split())
    assert "no party listened, and every connection went to the broker" in said


def test_a_party_that_fails(redislink: Run) -> None:
    result = redislink("demo", "--json", connect_timeout="0.001")
    assert result.returncode == 4, result.stderr
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert told["accuracy"] is None
    assert [party["messages_sent"] for party in told["parties"]] == [None] * 3
    assert "Traceback" not in result.stderr
    for line in result.stderr.splitlines():
        assert re.match(rf"redislink: ({'|'.join(PARTIES)}): .*REDISLINK_CONNECT_TIMEOUT", line)


def test_a_party_that_is_killed(start: Start) -> None:
    demo = start("demo", "--json")
    parties = wait_for_parties(demo.pid)
    parties[1].kill()
    result = ended(demo)
    assert result.returncode != 0
    assert "ended by signal 9" in result.stderr
    assert json.loads(result.stdout)["ok"] is False
    assert not psutil.wait_procs(parties, timeout=10)[1]


def test_a_demo_that_is_terminated_leaves_no_process(start: Start) -> None:
    demo = start("demo")
    wait_for_parties(demo.pid)
    family = psutil.Process(demo.pid).children(recursive=True)
    demo.terminate()
    result = ended(demo)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_settings_of_the_user_do_not_lead_it_astray(redislink: Run) -> None:
    result = redislink(
        *("demo", "--json"),
        broker_url="redis://127.0.0.1:1/0",
        cluster_file="elsewhere.yaml",
        party="mallory",
        link_mode="brpc",
    )
    assert result.returncode == 0, result.stderr
    check_is_ok(result.stdout)


def test_bad_broker_is_said_before_anything_starts(redislink: Run) -> None:
    check_one_line(redislink("demo", "--json", "--broker", "redis://"), 2, "without a host")


def wait_for_parties(demo: int) -> list[psutil.Process]:
    """The party processes, once all three have been started."""
    while True:
        found = [
            child
            for child in psutil.Process(demo).children()
            if "run" in child.cmdline() and "--party" in child.cmdline()
        ]
        if len(found) == len(PARTIES):
            return found
