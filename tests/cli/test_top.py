"""``redislink top``: a session as an operator sees it, at once, as JSON, and again and again."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from redislink import ClusterSpec, Endpoint
from redislink.broker import Broker, EmbeddedBroker
from redislink.cli.top import screen
from redislink.operate import acl
from redislink.operate.watch import PairView, PartyView, Reading
from redislink.protocol import list_names
from redislink.protocol.status import Waiting
from redislink.transport import claim
from redislink.transport.receiving import blocked_on
from tests.cli.conftest import Call, Run, check_one_line
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.keyspace import run


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(password=secrets.token_urlsafe(16)) as broker:
        yield broker


@pytest.fixture(scope="module")
def running(server: EmbeddedBroker) -> Iterator[list[Endpoint]]:
    """Three parties; bob waits for carol, and has not taken what alice has sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim, "_RENEW_SECONDS", 0.05)
        alice, bob, _ = endpoints = join(make_cluster(server.url, 3))
        thread, _ = in_thread(lambda: bob.recv("carol", "\x1b[31m tag"))
        alice.send("bob", "unread", b"payload")
        alice.flush()
        give_up = time.monotonic() + 10
        while not (blocked_on(bob.parts.core) and bob.parts.closing._claim.last_round_trip):
            assert time.monotonic() < give_up
        yield endpoints
        bob.cancel_recv("carol", "")
        thread.join()
        run_parties(*(lambda e=e: e.abort("over") for e in endpoints))


@pytest.fixture
def file(running: list[Endpoint], tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    content = running[0].cluster.model_dump(mode="json", exclude={"devices"})
    path.write_text(yaml.safe_dump(content))
    return path


def read_json(call: Call, *words: str | Path) -> dict[str, Any]:
    """The first reading in which all is known."""
    give_up = time.monotonic() + 10
    while True:
        code, out, err = call("top", "--once", "--json", *words)
        assert (code, err) == (0, "")
        (line,) = out.splitlines()
        found: dict[str, Any] = json.loads(line)
        if all(party["waits"] or party["name"] != "bob" for party in found["parties"]):
            return found
        assert time.monotonic() < give_up, found


def test_json(call: Call, running: list[Endpoint], file: Path, server: EmbeddedBroker) -> None:
    found = read_json(call, "--cluster", file)
    assert found["session"] == running[0].session
    assert found["broker"] == f"redis://127.0.0.1:{server.port}/0"
    assert found["refused"] == []
    assert [(p["name"], p["up"]) for p in found["parties"]] == [
        *(("alice", True), ("bob", True), ("carol", True))
    ]
    (wait,) = found["parties"][1]["waits"]
    assert (wait["peer"], wait["tag"]) == ("carol", "\x1b[31m tag")
    (pair,) = (p for p in found["pairs"] if (p["src"], p["dst"]) == ("alice", "bob"))
    assert (pair["messages"], pair["lists"]) == (1, 1)
    assert pair["messages_per_second"] is None, "takes two readings"


def test_once(call: Call, running: list[Endpoint], file: Path) -> None:
    read_json(call, "--cluster", file)
    code, out, err = call("top", "--cluster", file, "--once")
    assert (code, err) == (0, "")
    assert f"session {running[0].session} at redis://" in out
    assert "3 of 3 parties up" in out
    assert "alice → bob" in out
    assert "carol \N{REPLACEMENT CHARACTER}[31m tag" in out
    assert "\x1b" not in out, "a tag cannot steer the terminal"
    assert "payload" not in out


def operator_url(cluster: ClusterSpec, server: EmbeddedBroker, *less: str) -> str:
    """URL of the operator's user, without these commands."""
    operator = acl.operator_user(cluster.session, cluster.party_names, "watcher")
    acl.apply_users(Broker(server.url), [operator], {"watcher": "pw"})
    url = acl.party_url(server.url, operator.name, "pw")
    for command in less:
        run(server.url, "ACL", "SETUSER", operator.name, f"-{command}")
    return url


def test_an_operators_user_sees_all(
    call: Call, running: list[Endpoint], file: Path, server: EmbeddedBroker, tmp_path: Path
) -> None:
    url = operator_url(running[0].cluster, server)
    assert read_json(call, "--cluster", file, "--broker", url)["refused"] == []
    (tmp_path / "password").write_text("pw\n")
    (tmp_path / "password").chmod(0o600)
    no_password = url.replace(":pw@", "@")
    words = ("--broker", no_password, "--password-file", "password")
    assert read_json(call, "--cluster", file, *words)["refused"] == []


def test_what_may_not_be_seen_is_said(
    call: Call, running: list[Endpoint], file: Path, server: EmbeddedBroker
) -> None:
    url = operator_url(running[0].cluster, server, "memory|usage")
    code, out, err = call("top", "--cluster", file, "--broker", url, "--once")
    assert (code, err) == (0, "")
    assert "this user may not run MEMORY USAGE on all keys here" in out
    url = operator_url(running[0].cluster, server, "scan")
    found = read_json(call, "--cluster", file, "--broker", url)
    assert found["refused"] == ["SCAN"]
    assert found["pairs"][0]["messages"] is None
    assert all(party["up"] for party in found["parties"]), "by the names that are known"
    # A party's own user may see none of this.
    cluster = running[0].cluster
    users = acl.party_users(cluster.session, cluster.party_names)
    acl.apply_users(Broker(server.url), users, dict.fromkeys(cluster.party_names, "pw"))
    url = acl.party_url(server.url, "nobody", "pw")
    run(server.url, "ACL", "SETUSER", "nobody", "on", ">pw", "-@all", "+ping")
    code, out, err = call("top", "--cluster", file, "--broker", url, "--once")
    assert (code, out) == (3, "")
    assert "may run neither SCAN nor GET" in err
    assert err.count("\n") == 1


def test_wrong_use(call: Call, file: Path) -> None:
    for words, code, said in (
        (["--once"], 2, "give --cluster FILE, or set REDISLINK_CLUSTER_FILE"),
        (["--cluster", file, "--broker", "redis://127.0.0.1:1/0"], 3, "no connection"),
        (["--cluster", file, "--broker", "http://x"], 2, "unknown scheme"),
        (["--cluster", file, "--password-file", "none"], 2, "password file none"),
        (["--cluster", file, "--every", "0"], 2, "--every"),
    ):
        found = call("top", *words)
        assert found[:2] == (code, ""), words
        assert said in found[2]
        assert found[2].count("\n") == 1


@pytest.mark.slow
def test_on_a_terminal_it_goes_on_until_ctrl_c(file: Path, running: list[Endpoint]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*(sys.executable, "-m", "redislink", "top", "--cluster", str(file)), "--every", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"},
    )
    os.close(theirs)
    try:
        shown = b""
        give_up = time.monotonic() + 30
        # A rate needs a second document of a party: so this is a later screen than the first.
        while shown.count(b"parties up") < 3 or b"0.0" not in shown:
            assert time.monotonic() < give_up, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 1 << 16)
        process.send_signal(2)
        while select.select([ours], [], [], 0.1)[0] or process.poll() is None:
            assert time.monotonic() < give_up, "it goes on after Ctrl-C"
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # how the end shows on Linux
                break
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        os.close(ours)


PARTY = PartyView("alice", True, "open", 10.0, 0.001, 0, 0.5, ())
PAIR = PairView("alice", "bob", 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0)


def shown(*parties: PartyView, pairs: tuple[PairView, ...] = (PAIR,), trouble: str = "") -> str:
    console = Console(width=140, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
    console.print(screen(Reading("s", "redis://h:1/0", parties, pairs, ()), trouble))
    return console.export_text()


def test_the_screen() -> None:
    waits = tuple(
        Waiting(*w) for w in (("bob", "x" * 100, 70.0), ("bob", "y", 3.0), ("c", "z", 0.1))
    )
    text = shown(
        PartyView("alice", True, "open", 7300.0, 0.0123, 2, 0.5, waits),
        PartyView("bob", False, "not seen", None, None, None, 12.0, ()),
    )
    assert "1 of 2 parties up" in text
    assert f"bob {'x' * 39}… 70 s (+1)" in text
    assert "c z 0.1 s" in text
    assert "12.3 ms" in text
    assert "2 h" in text
    assert "12 s ago" in text
    assert "not up to date" not in text
    assert "no party publishes a status" not in text
    assert "not up to date: gone" in shown(PARTY, trouble="gone")
    silent = PartyView("alice", True, "up", None, None, None, None, ())
    assert "no party publishes a status" in shown(silent)


def test_a_run_that_goes_on_from_its_journal_says_so() -> None:
    resumed = PartyView("alice", True, "open", 9.0, 0.001, 0, 0.5, (), resumed_steps=1200)
    assert "resumed after 1 200 steps" in shown(resumed)
    assert "resumed after 1 step " in shown(replace(resumed, resumed_steps=1))
    assert "resumed" not in shown(PARTY)


def test_how_many_streams_a_forwarder_carries_is_shown() -> None:
    assert "3 streams" in shown(replace(PARTY, streams=3))
    assert "1 stream " in shown(replace(PARTY, streams=1))
    assert "stream" not in shown(replace(PARTY, streams=0))


def test_what_holds_a_party_up_is_shown() -> None:
    away = PartyView("alice", True, "open", 9.0, 0.001, 0, 0.5, (), broker_away_seconds=12.0)
    unheard = PartyView("bob", True, "open", 9.0, 0.001, 0, 31.0, (), 0.0, ("alice", "carol"))
    text = shown(away, unheard)
    assert "broker unreachable for 12 s" in text
    assert "not heard by alice, carol" in text
    assert "unreachable" not in shown(PARTY)
    assert "not heard" not in shown(PARTY)


def at_width(width: int, *, resent: int = 0, name: str = "bob") -> list[str]:
    """The lines of a busy reading on a terminal of this width."""
    waits = (Waiting(name, "root:P2P-7:0->1", 70.0),)
    parties = (
        PartyView("alice", True, "joining", 7300.0, 0.0123, 2, 0.5, waits),
        PartyView(name, True, "open", 7300.0, 123.4567, 20, 12.0, ()),
    )
    pairs = tuple(
        PairView(src, dst, 9, 123_456, 10**9, 10**7, 10**9, 9999.9, 10**8, 10**8, resent, 0, 12_345)
        for src, dst in (("alice", name), (name, "alice"))
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen(Reading("s", "redis://b:6379/0", parties, pairs, ())))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", ["bob", "university-hospital-north"])
def test_who_sends_to_whom_and_who_waits_for_whom_at_any_width(width: int, name: str) -> None:
    text = "\n".join(at_width(width, name=name))
    assert f"│ alice → {name} " in text
    assert f"│ {name} → alice " in text
    assert "from → to" in text
    waiting = text.partition("from → to")[0]
    assert name in waiting
    assert "root:P2P-7:0->1" in waiting
    assert "123 456" in text


def test_what_there_is_no_room_for_is_said() -> None:
    narrow, wide = "\n".join(at_width(80)), "\n".join(at_width(200))
    assert "no room for" in narrow
    assert re.search(r"no room for .*probes", narrow)
    assert "no room for" not in wide
    assert all(word in wide for word in ("probes", "under way", "bytes per s", "round trip"))


def test_what_is_wrong_is_shown_before_what_is_of_less_interest() -> None:
    wrong, well = (
        "\n".join(at_width(60, resent=n)).partition("from → to")[2].partition("no room")[0]
        for n in (5, 0)
    )
    assert "resent" in wrong
    assert "resent" not in well


def test_of_many_pairs_the_busiest_are_shown() -> None:
    pairs = tuple(
        PairView(f"p{n}", "bob", 1, 1, n, 0, 0, None, None, None, 0, 0, 0) for n in range(30)
    )
    text = shown(PARTY, pairs=pairs)
    assert "p29 → bob" in text
    assert "p0 → bob" not in text
    assert "and 18 pairs with less" in text


def test_it_is_there_without_a_session(
    redislink: Run, server: EmbeddedBroker, tmp_path: Path
) -> None:
    cluster = make_cluster(server.url, 2)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster.model_dump(mode="json", exclude={"devices"})))
    result = redislink("top", "--cluster", path)  # no terminal: one reading
    assert result.returncode == 0
    assert "0 of 2 parties up" in result.stdout
    assert list_names.claim_key(cluster.session, "alice").decode() not in result.stdout
    check_one_line(redislink("top", "--cluster", tmp_path / "none"), 2, "none")
