"""One link of a sidecar, over endpoints that meet in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from redislink.errors import PeerAborted, PeerClosed, UsageError
from redislink.interop.sidecar import link as module
from redislink.interop.sidecar.link import Link, Told
from redislink.testing.fixtures import RelayMesh
from tests.support.waiting import wait_until

MakeLinks = Callable[..., list[Link]]


@pytest.fixture
def told() -> list[Told]:
    return []


@pytest.fixture
def links(relay_mesh: RelayMesh, told: list[Told]) -> Iterator[MakeLinks]:
    made = []

    def make(count: int = 2, **settings: object) -> list[Link]:
        mine = [Link(7, endpoint, told.append) for endpoint in relay_mesh(count, **settings)]
        made.extend(mine)
        for each in mine:
            each.start()
        return mine

    yield make
    for each in made:
        each.close()


def test_messages_are_popped_in_the_order_in_which_they_were_pushed(links: MakeLinks) -> None:
    alice, bob, carol = links(3)
    for number in range(5):
        assert alice.push("bob", b"to bob %d" % number)
        assert alice.push("carol", b"to carol %d" % number)
    assert [bob.pop("alice", 10) for _ in range(5)] == [b"to bob %d" % n for n in range(5)]
    assert carol.pop("alice", 10) == b"to carol 0"
    assert bob.pop("carol", 0) == b""
    assert alice.parties == ("alice", "bob", "carol")


def test_a_message_whose_answer_got_lost_is_popped_again(links: MakeLinks) -> None:
    alice, bob = links()
    alice.push("bob", b"first")
    alice.push("bob", b"second")
    bob.give_back("alice", bob.pop("alice", 10))
    assert [bob.pop("alice", 10), bob.pop("alice", 10)] == [b"first", b"second"]


def test_memory_is_bounded_whatever_is_pushed(
    links: MakeLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    window = 64 << 10
    alice, bob = links(window_bytes=window)
    piece = b"x" * (32 << 10)
    pushed = 0
    while alice.push("bob", piece):
        pushed += 1
        assert pushed < 30, "bob takes nothing"
        there = min(pushed * len(piece), 2 * window)
        wait_until(lambda there=there: bob._lanes["alice"].bytes_arrived >= there)
    assert bob._lanes["alice"].bytes_arrived <= 2 * window + len(piece)
    for _ in range(pushed):  # room again as soon as messages are popped
        assert bob.pop("alice", 10) == piece
    wait_until(lambda: alice.push("bob", piece))


def test_objects_have_tags_of_their_own(links: MakeLinks) -> None:
    alice, bob = links()
    alice.send("bob", "1:2", b"object")
    assert alice.push("bob", b"blackbox")
    assert bob.recv("alice", "1:2", 10) == b"object"
    assert bob.pop("alice", 10) == b"blackbox"
    assert bob.recv("alice", "1:3", 0.01) is None


def test_objects_that_nobody_asks_for_hold_up_no_others(links: MakeLinks) -> None:
    alice, bob = links(window_bytes=64 << 10)
    for number in range(8):
        alice.send("bob", f"not asked for {number}", bytes(32 << 10))
    alice.send("bob", "asked for", b"here")
    assert bob.recv("alice", "asked for", 10) == b"here"


def test_a_peer_that_leaves_is_said_once_and_fails_nothing(
    links: MakeLinks, told: list[Told]
) -> None:
    alice, bob = links()
    alice.push("bob", b"last words")
    alice.close()
    wait_until(lambda: told)
    with pytest.raises(PeerClosed):
        bob.recv("alice", "never", 10)
    with pytest.raises(PeerClosed):
        bob.push("alice", b"too late")
    assert bob.pop("alice", 10) == b"last words"
    assert bob.pop("alice", 0.01) == b""
    assert [(each.link, each.failed) for each in told] == [(7, False)]
    assert "alice" in told[0].text


def test_a_peer_that_fails_fails_the_link_at_all_others(links: MakeLinks, told: list[Told]) -> None:
    alice, bob, carol = links(3)
    alice.abort("its program ended without a word")
    wait_until(lambda: len(told) == 2)
    assert all(each.failed and "ended without a word" in each.text for each in told)
    for each in (bob, carol):
        with pytest.raises(PeerAborted):
            each.send("alice", "tag", b"x")
        assert each.pop("alice", 0.01) == b""
    assert len(told) == 2, "each hears of it once"


def test_a_link_with_others_is_not_with_these(links: MakeLinks) -> None:
    alice, _ = links()
    for call in (
        lambda: alice.push("dave", b""),
        lambda: alice.pop("dave", 0),
        lambda: alice.recv("alice", "tag", 0),
    ):
        with pytest.raises(UsageError, match="is with bob"):
            call()
