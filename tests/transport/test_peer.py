"""`Peer`: names of lists and the codec for them change together, whoever sends meanwhile."""

import random

import pytest

from redislink.protocol import list_names
from redislink.protocol.delivery import Delivery, Leftover, Timing
from redislink.protocol.frame import Ack, AckState, Data
from redislink.protocol.seal import SealedCodec, SealKeys
from redislink.transport.peer import Peer

EPOCH = "0123456789abcdef"


@pytest.fixture
def peer() -> Peer:
    keys = SealKeys(*(random.Random(seed).randbytes(32) for seed in range(4)))
    prefixes = (
        list_names.inbox_prefix("s", "bob", "alice", EPOCH),
        list_names.inbox_prefix("s", "alice", "bob", EPOCH),
    )
    delivery = Delivery("bob", Timing(), 0.0)
    return Peer(
        "bob", prefixes, delivery, SealedCodec(keys), lambda _: None, lambda _: None, 1 << 20
    )


def moves_on(peer: Peer) -> bool:
    """The peer reads its next edition from now on."""
    ack = AckState(0, (), peer.delivery.edition_out + 1)
    peer.delivery.receive_control(Ack(ack), 0.0)
    return peer.follow()


def test_a_frame_has_one_tag_whenever_the_edition_changes(peer, monkeypatch):
    """Else the broker would have two tags for one nonce, and from them the key."""
    elements = set()

    def push() -> None:
        name, encode = peer.to_list("t")
        elements.add(b"".join(encode(name, Data(1), b"x")))

    push()
    out_list = peer.out_list

    def out_list_and_then_another_thread(tag: str) -> bytes:
        name = out_list(tag)
        moves_on(peer)
        return name

    monkeypatch.setattr(peer, "out_list", out_list_and_then_another_thread)
    push()
    monkeypatch.undo()
    push()
    assert len(elements) == 1


def test_each_edition_has_its_lists_and_control_lists_have_none(peer):
    first, control = peer.out_list("t"), peer.control_out
    assert not moves_on(peer), "we read the same lists as before"
    assert peer.out_list("t") == first.replace(b":t", b".1:t")
    assert peer.left_list(Leftover("t", 0)) == first
    assert peer.control_out == control
    peer.delivery.read_anew(0.0)
    assert peer.follow()
    assert peer.in_list("t") == list_names.data_list("s", "alice", "bob", f"{EPOCH}.1", "t")
    assert not peer.follow()
