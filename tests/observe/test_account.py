"""The statistics of a run: every moment counts once, and the file says what the endpoint does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from redislink import ConfigError, Endpoint, RecvTimeout, UsageError
from redislink.observe.account import Shares, account_of_trace, read_account
from redislink.observe.merge import read_trace
from redislink.transport.receiving import Receiving
from redislink.transport.sending import Sending
from tests.conftest import connect_as, join, make_cluster, quick_settings, run_parties
from tests.observe.test_timeline import play, record

SECRET = b"a payload that no file may hold"


def test_every_moment_counts_once() -> None:
    shares = Shares(10.0)
    shares.wait(11, "bob", 1)  # computing: 1 s
    shares.send(12, 1)  # waiting for bob: 1 s, and while another thread sends
    shares.wait(14, "carol", 1)  # 2 s more
    shares.wait(16, "bob", 1)  # another thread; 1 s for each
    shares.wait(17, "bob", -1)
    shares.wait(18, "bob", -1)  # 1 s for each
    shares.wait(20, "carol", -1)  # 2 s
    shares.send(23, -1)  # sending: 3 s
    shares.until(25)
    shares.until(24)  # a thread that comes late
    assert (shares.computing, shares.sending) == (3, 3)
    assert shares.waiting == {"bob": 5, "carol": 4}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stats")
    record(made, play, stats_file=made / "{session}.{party}.stats.json")
    return made


def test_the_file_says_what_was_exchanged_and_no_value(directory: Path) -> None:
    path = directory / "traced.alice.stats.json"
    account = read_account(path)
    assert (account.session, account.party) == ("traced", "alice")
    assert account.parties == ["alice", "bob", "carol"]
    assert (
        account.epochs["bob"] == read_account(directory / "traced.bob.stats.json").epochs["alice"]
    )
    assert set(account.peers) == {"bob", "carol"}
    for peer in account.peers.values():
        assert peer.messages_sent == peer.messages_received == 80
        assert peer.bytes_sent > len(SECRET) * 40
        assert peer.waiting > 0
    assert account.reconnects == 0
    parts = account.computing + account.sending + account.waiting
    assert parts == pytest.approx(account.seconds, abs=1e-4)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET.decode() not in path.read_text()


def test_a_timeline_tells_the_same(directory: Path) -> None:
    """Up to the edges: it measures each call a little later, and ends with the last one."""
    told = account_of_trace(read_trace(directory / "traced.bob.trace.jsonl"))
    account = read_account(directory / "traced.bob.stats.json")
    assert told.reconnects is None
    assert told.epochs == account.epochs
    for name, peer in told.peers.items():
        same = account.peers[name]
        assert peer.messages_sent == same.messages_sent
        assert peer.bytes_received == same.bytes_received
    assert told.seconds <= account.seconds
    assert told.waiting <= account.waiting
    assert told.computing + told.sending + told.waiting == pytest.approx(told.seconds, abs=1e-6)


def test_only_who_asks_pays(tmp_path: Path) -> None:
    """And errors of a call count its time, and are what they are."""
    cluster = make_cluster("fakeredis://stats", 2)
    plain, measured = run_parties(
        lambda: connect_as(cluster, "alice", quick_settings()),
        lambda: connect_as(cluster, "bob", quick_settings(stats_file=tmp_path / "s.json")),
    )
    assert type(plain.parts.sending) is Sending
    assert type(plain.parts.receiving) is Receiving
    with pytest.raises(RecvTimeout):
        measured.recv("alice", "never", timeout=0.05)
    for nobody in ("mallory", 7):
        with pytest.raises((UsageError, ConfigError)):
            measured.recv(nobody, "t")
    run_parties(plain.close, measured.close)
    account = read_account(tmp_path / "s.json")
    assert account.peers["alice"].waiting >= 0.05
    assert set(account.peers) == {"alice"}


def test_after_an_abort_it_is_there_too(tmp_path: Path) -> None:
    def meet(me: Endpoint) -> None:
        if me.party == "alice":
            me.abort("enough")
        else:
            threading.Event().wait(0)

    cluster = make_cluster("fakeredis://stats-abort", 2)
    endpoints = join(cluster, stats_file=tmp_path / "{party}.json")
    run_parties(*(lambda e=e: meet(e) for e in endpoints))
    run_parties(*(endpoint.close for endpoint in endpoints))
    assert {path.name for path in tmp_path.iterdir()} == {"alice.json", "bob.json"}


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    cluster = make_cluster("fakeredis://stats-nowhere", 2)
    with pytest.raises(ConfigError, match="REDISLINK_STATS_FILE: there is no directory"):
        connect_as(cluster, "alice", quick_settings(stats_file=tmp_path / "no" / "s.json"))


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "\x00", '{"redislink_stats": 2}', "null",
        '{"redislink_stats":1,"session":"<b>","party":"a","parties":["a"],"began":1,'
        '"seconds":1,"computing":1,"sending":0,"peers":{}}',
        '{"redislink_stats":1,"session":"s","party":"a","parties":["a"],"began":1,'
        '"seconds":-1,"computing":1,"sending":0,"peers":{}}',
        '{"redislink_stats":1,"session":"s","party":"a","parties":["a"],"began":1,'
        '"seconds":NaN,"computing":1,"sending":0,"peers":{}}',
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json is not a statistics file of redislink"):
        read_account(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_account(tmp_path / "none.json")
