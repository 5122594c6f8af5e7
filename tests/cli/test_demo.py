"""``redislink demo``: what it says it measured, and how it ends when it cannot be ok."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import psutil
import pytest

from redislink.audit import verify_file
from redislink.broker import Broker, EmbeddedBroker
from redislink.cli.demo import PARTIES, next_commands
from redislink.operate import acl
from tests.cli.conftest import TIMEOUT, Run, Start, check_one_line, ended
from tests.support.groups import ClusterGroup
from tests.support.keyspace import run
from tests.support.tls_terminator import TlsTerminator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_over_tls_with_a_client_certificate_and_a_user_for_each_party(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table; and settings of the user's own sessions do not lead the demo astray."""
    with (
        EmbeddedBroker(password="s3cret") as broker,
        TlsTerminator(broker.port, tmp_path, client_cert_required=True) as tls,
    ):
        admin = Broker(broker.url).open()
        demo = start(
            *("demo", "--broker", tls.url("s3cret"), "--acl"),
            broker_tls_ca=str(tls.ca_file),
            broker_tls_cert=str(tls.client_cert_file),
            broker_tls_key=str(tls.client_key_file),
            broker_url="redis://127.0.0.1:1/0",
            cluster_file="elsewhere.yaml",
            party="mallory",
            identity_file="elsewhere.key",
            link_mode="brpc",
        )
        users: set[str] = set()
        while demo.poll() is None:
            clients = admin.execute(b"CLIENT", b"LIST", timeout=5).decode()
            users |= set(re.findall(r" user=(\S+)", clients))
            threading.Event().wait(0.05)
        result = ended(demo)
        assert result.returncode == 0, result.stderr
        assert "s3cret" not in result.stdout + result.stderr
        parties = {user.partition("~")[2] for user in users if user != "default"}
        assert parties == set(PARTIES)
        assert admin.execute(b"ACL", b"LOG", timeout=5) == []
        assert admin.execute(b"ACL", b"USERS", timeout=5) == [b"default"], "none is left behind"
        admin.close()
    for party in PARTIES:
        assert re.search(rf"│ {party} +│ +0 │ +[\d,]+ │ +[\d,]+ │ SHA256:", result.stdout)
    assert re.search(r"accuracy 0\.\d+; the same training in plaintext 0\.\d+", result.stdout)
    said = " ".join(result.stdout.split())
    assert tls.url() in said
    assert "no party listened, and every connection went to the broker" in said
    assert "sealed all messages" in said
    assert "Each party had its own Redis user" in said
    assert f"to whom: {tmp_path / 'demo-report.html'}" in said
    page = (tmp_path / "demo-report.html").read_text()
    assert page.count("as it was written, signed") == len(PARTIES)
    assert "Ended in good order at all parties" in page
    assert "30 float32" in page, "the weights, which alice learned"
    printed = [line.strip() for line in result.stdout.splitlines()]
    monkeypatch.chdir(tmp_path)
    assert printed[-len(next_commands()) :] == next_commands(), "it ends with what to type next"


def test_without_the_client_certificate(redislink: Run, tmp_path: Path) -> None:
    with (
        EmbeddedBroker(password="s3cret") as broker,
        TlsTerminator(broker.port, tmp_path, client_cert_required=True) as tls,
    ):
        result = redislink(
            *("demo", "--broker", tls.url("s3cret"), "--acl"), broker_tls_ca=str(tls.ca_file)
        )
        check_one_line(
            result, 3, "client certificate", "REDISLINK_BROKER_TLS_CERT", unsaid=["s3cret"]
        )


def test_acl_by_who_is_no_admin(redislink: Run) -> None:
    with EmbeddedBroker() as broker:
        users = acl.party_users("weak", PARTIES)
        acl.apply_users(Broker(broker.url), users, dict.fromkeys(PARTIES, "pw"))
        url = acl.party_url(broker.url, users[0].name, "pw")
        check_one_line(redislink("demo", "--broker", url, "--acl"), 3, "may not run ACL")


def test_a_party_that_fails(start_demo: Start) -> None:
    result = ended(start_demo("demo", "--json", connect_timeout="0.001"))
    assert result.returncode == 4, result.stderr
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert told["accuracy"] is None
    assert told["report"] is None
    assert [party["messages_sent"] for party in told["parties"]] == [None] * 3
    assert "Traceback" not in result.stderr
    for line in result.stderr.splitlines():
        assert re.match(rf"redislink: ({'|'.join(PARTIES)}): .*REDISLINK_CONNECT_TIMEOUT", line)


def test_a_party_that_is_killed_on_a_broker_without_users(start_demo: Start) -> None:
    """They have joined over it by then, with the URL as it is."""
    with EmbeddedBroker(password="s3cret") as broker:
        demo = start_demo("demo", "--json", "--broker", broker.url)
        parties = wait_for_parties(demo.pid)
        wait_until(lambda: len(run(broker.url, "KEYS", "rl:*:!claim")) == len(PARTIES), TIMEOUT)
        clients = run(broker.url, "CLIENT", "LIST").decode()
        parties[1].kill()
        result = ended(demo)
    assert set(re.findall(r" user=(\S+)", clients)) == {"default"}
    assert result.returncode != 0
    assert "ended by signal 9" in result.stderr
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert told["broker"] == broker.url.replace(":s3cret@", "")
    assert "s3cret" not in result.stdout + result.stderr
    assert not psutil.wait_procs(parties, timeout=10)[1]


def test_one_that_is_terminated_leaves_no_process_and_no_user_on_a_cluster(
    start_demo: Start,
) -> None:
    with ClusterGroup() as group:
        demo = start_demo("demo", "--broker", group.url, "--acl")
        parties = wait_for_parties(demo.pid)
        wait_until(lambda: claims(group) == len(PARTIES), TIMEOUT)
        for port in group.masters:
            assert len(group.ask(port, "ACL", "USERS")) == 1 + len(PARTIES)
        family = psutil.Process(demo.pid).children(recursive=True)
        assert set(parties) <= set(family)
        demo.terminate()
        result = ended(demo)
        for port in group.masters:
            assert group.ask(port, "ACL", "USERS") == [b"default"], "none is left behind"
        assert group.password not in result.stdout + result.stderr
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert not psutil.wait_procs(family, timeout=10)[1]


def claims(group: ClusterGroup) -> int:
    """How many parties have joined with the users that they were given."""
    return sum(len(group.ask(port, "KEYS", "rl:*:!claim")) for port in group.masters)


def test_bad_broker_is_said_before_anything_starts(redislink: Run) -> None:
    check_one_line(redislink("demo", "--json", "--broker", "redis://"), 2, "without a host")


def wait_for_parties(demo: int) -> list[psutil.Process]:
    """The party processes, once all three have been started: a demo on another broker than the
    embedded one starts nothing else."""
    process = psutil.Process(demo)
    wait_until(lambda: len(process.children()) == len(PARTIES), TIMEOUT)
    return process.children()


def test_as_a_job_of_agents(redislink: Run, tmp_path: Path) -> None:
    """A person approves at alice, who lets the accuracy out and keeps the model."""
    demo = redislink("demo", "--jobs", "--yes", "--dir", tmp_path / "demo")
    assert (demo.returncode, demo.stderr) == (0, "")
    told = demo.stdout
    (job,) = re.findall(r"submits job (j[a-z0-9]{12})", told)
    order = ["submits job", "alice: waiting", "jobs approve", "alice: running", "alice: finished"]
    places = [told.index(words) for words in order]
    assert places == sorted(places)
    (accuracy,) = re.findall(r"^coordinator: accuracy = (0\.\d+)$", told, re.MULTILINE)
    assert float(accuracy) > 0.9
    assert f"coordinator: job {job}: alice gives no result 'model'" in told
    assert "none listened, and each connection went to the broker" in told
    for name in PARTIES:
        place = tmp_path / "demo" / name
        assert (place / "work" / job / "log").is_file()
        page = (place / "work" / job / "report.html").read_text()
        assert "<svg" in page
        assert "rule training for the coordinator" in page or name == "alice", "who let it run"
        records = place / "work" / "audit"
        for record in (records / "agent.jsonl", records / f"{job}.jsonl"):
            assert str(record) in told
            assert verify_file(record).problems == []
        assert f"{name}: {job}: finished" in (place / "agent.log").read_text()
    kept = tmp_path / "demo" / "alice" / "work" / job / "results" / "model.msgpack"
    assert kept.stat().st_mode & 0o777 == 0o600
