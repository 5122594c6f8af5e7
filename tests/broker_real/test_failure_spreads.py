"""A failure of one party reaches all others, which then say who failed; silence is no failure."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from tests.support.spread_party import SECRET
from tests.support.spreading import PARTIES, trio
from tests.support.waiting import undisturbed

pytestmark = pytest.mark.slow


def test_an_exception_reaches_all_within_a_second(
    valkey: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def slowest() -> float:
        with trio(valkey.url, tmp_path_factory.mktemp("trio"), {"carol": "raise"}) as three:
            failed_at = three.signal("carol", signal.SIGUSR1)
            three.wait_for("raised", *PARTIES)
            took = []
            for party in ("alice", "bob"):
                raised = three.find("raised", party)
                assert raised is not None
                assert raised["type"] == "PeerAborted"
                took.append(raised["at"] - failed_at)
                assert "carol aborted" in three.said(party)
            assert "PeerAborted" not in three.said("carol")
            for party in ("alice", "bob"):
                assert SECRET not in three.processes[party].output()
        return max(took)

    undisturbed(slowest, lambda took: took < 1.0)


def test_a_killed_party_is_lost_within_peer_timeout(
    valkey: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def slowest() -> float:
        with trio(valkey.url, tmp_path_factory.mktemp("trio"), {}, peer_timeout=2) as three:
            killed_at = three.signal("carol", signal.SIGKILL)
            three.wait_for("raised", "alice", "bob")
            types, took = set(), []
            for party in ("alice", "bob"):
                raised = three.find("raised", party)
                assert raised is not None
                took.append(raised["at"] - killed_at)
                assert "carol was last heard" in raised["text"]
                types.add(raised["type"])
            assert types <= {"PeerLost", "PeerAborted"}, "who notices first tells the other"
            assert "PeerLost" in types
        return max(took)

    # 2 s since the last sign of life, and the time until somebody looks.
    undisturbed(slowest, lambda took: took < 2 + 1.5)


def test_a_party_that_was_suspended_learns_why_when_it_goes_on(
    valkey: EmbeddedBroker, tmp_path: Path
) -> None:
    """All others have left by then; it must neither wait for them nor blame one of them."""
    with trio(valkey.url, tmp_path, {}, peer_timeout=1.5) as three:
        three.signal("carol", signal.SIGSTOP)
        for party in ("alice", "bob"):
            assert "carol was last heard" in three.said(party)
        three.signal("carol", signal.SIGCONT)
        said = three.said("carol")
        assert "aborted the session" in said
        assert "you were silent for" in said or "carol was last heard" in said


def test_a_party_that_starts_again_is_noticed(valkey: EmbeddedBroker, tmp_path: Path) -> None:
    with trio(valkey.url, tmp_path, {}) as three:
        three.signal("carol", signal.SIGKILL)
        three.start("carol", "wait")
        three.wait_for("raised", "alice", "bob")
        found = [three.find("raised", party) for party in ("alice", "bob")]
        texts = [raised["text"] for raised in found if raised is not None]
        assert len(texts) == 2
        assert all("carol has started again" in text for text in texts)
        assert "PeerRestarted" in {raised["type"] for raised in found if raised is not None}


@pytest.mark.parametrize("announced", [True, False])
def test_a_silence_that_was_announced_is_not_death(
    valkey: EmbeddedBroker, tmp_path: Path, announced: bool
) -> None:
    role = "hold-announced" if announced else "hold"
    with trio(valkey.url, tmp_path, {"alice": role}, seconds=3.5, peer_timeout=1.5) as three:
        three.signal("alice", signal.SIGUSR1)
        if announced:
            three.wait_for("held", "alice")
            three.wait_for("received", "bob", "carol")
        else:
            three.wait_for("raised", "bob", "carol")
            raised = [three.find("raised", party) for party in ("bob", "carol")]
            assert "PeerLost" in {r["type"] for r in raised if r is not None}
