"""The commands for operators, and the doctor, with several independent brokers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from redislink.protocol import list_names
from redislink.protocol.frame import Data, encode
from tests.cli.conftest import CLUSTER, Call, Write, key_file
from tests.conftest import join, make_cluster, run_parties
from tests.support.keyspace import content_of, run
from tests.support.servers import make_server
from tests.support.waiting import wait_until

EPOCH = "0123456789abcdef"
NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def pair() -> Iterator[list[EmbeddedBroker]]:
    with make_server("valkey") as first, make_server("valkey") as second:
        yield [first, second]


@pytest.fixture(autouse=True)
def _empty(pair: list[EmbeddedBroker]) -> None:
    for server in pair:
        run(server.url, "FLUSHALL")


def leave(url: str, session: str) -> None:
    run(
        url,
        *(
            "RPUSH",
            list_names.data_list(session, "bob", "alice", EPOCH, "tag"),
            encode(Data(1), b"x"),
        ),
    )


def test_sessions_inspect_and_purge_go_to_each(call: Call, pair: list[EmbeddedBroker]) -> None:
    both = f"{pair[0].url},{pair[1].url}"
    leave(pair[0].url, "first")
    leave(pair[1].url, "second")
    code, out, _ = call("sessions", "--broker", both, "--json")
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["broker"], f["sessions"][0]["name"]) for f in found] == [
        (pair[0].url, "first"),
        (pair[1].url, "second"),
    ]
    code, out, _ = call("inspect", "second", "--broker", both, "--json")
    assert code == 0
    assert json.loads(out)["session"] == "second"
    assert call("inspect", "third", "--broker", both)[0] == 2
    code, _, err = call("purge", "--expired", "--yes", "--broker", both)
    assert code == 0
    assert "session first: removed 1 keys" in err
    assert "session second: removed 1 keys" in err
    assert content_of(pair[0].url) == content_of(pair[1].url) == {}


def test_one_that_is_away_is_named_and_the_others_are_shown(
    call: Call, pair: list[EmbeddedBroker]
) -> None:
    leave(pair[1].url, "second")
    code, out, err = call("sessions", "--broker", f"{NOBODY} {pair[1].url}")
    assert code == 0
    assert "second" in out
    assert "broker redis://127.0.0.1:1/0: no connection" in err
    code, _, err = call("sessions", "--broker", f"{NOBODY} redis://127.0.0.1:2/0")
    assert code == 3


@pytest.mark.slow
def test_top_shows_on_which_broker_the_session_is(
    call: Call, pair: list[EmbeddedBroker], tmp_path: Path
) -> None:
    spec = make_cluster(f"{NOBODY} {pair[0].url} {pair[1].url}", 2)
    ends = join(spec)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude={"devices"})))

    def top() -> dict | None:
        """What it shows, once both parties have said where they are."""
        code, out, _ = call("top", "--cluster", path, "--once", "--json")
        assert code == 0
        reading = json.loads(out)
        return reading if all(party["broker_number"] for party in reading["parties"]) else None

    reading = wait_until(top)
    assert (reading["broker_number"], reading["broker"]) == (2, pair[0].url)
    assert [party["broker_number"] for party in reading["parties"]] == [2, 2]
    _, out, _ = call("top", "--cluster", path, "--once")
    assert f"at {pair[0].url}, broker 2: 2 of 2 parties up" in " ".join(out.split())
    run_parties(*(end.close for end in ends))


def test_acl_gives_each_broker_passwords_of_its_own(
    call: Call, pair: list[EmbeddedBroker], write_cluster: Write, tmp_path: Path
) -> None:
    both = f"{pair[0].url}, {pair[1].url}"
    kept = tmp_path / "passwords"
    code, out, _ = call(
        *("acl", "--cluster", write_cluster(), "--apply", both, "--passwords", kept)
    )
    assert code == 0
    assert out.count("user      cli~alice") == 2
    texts = [(kept / f"broker-{n}" / "alice.password").read_text().strip() for n in (1, 2)]
    assert texts[0] != texts[1]
    for server, password in zip(pair, texts, strict=True):
        Broker(acl.party_url(server.url, "cli~alice", password)).open_answering().close()
    code, _, err = call("acl", "--cluster", write_cluster(), "--apply", both, "--out", "users.acl")
    assert code == 2
    assert "one broker's" in err


@pytest.mark.slow
def test_the_doctor_examines_each(
    call: Call, pair: list[EmbeddedBroker], write_cluster: Write, tmp_path: Path
) -> None:
    path = write_cluster(CLUSTER | {"broker": [pair[0].url, NOBODY]})
    code, out, _ = call(
        *("doctor", "--cluster", path, "--party", "alice", "--json"),
        *("--identity", key_file(tmp_path, "alice")),
    )
    reports = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [report["broker"] for report in reports] == [pair[0].url, NOBODY]
    assert [report["worst"] == "FAIL" for report in reports] == [False, True]
