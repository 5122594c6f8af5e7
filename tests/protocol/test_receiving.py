"""The rules of `Receiving`, by what `Delivery` does: acks, memory, probes."""

import pytest

from redislink.errors import (
    FrameError,
    PeerLost,
    PeerProtocolError,
)
from redislink.protocol.delivery import Delivery, Push, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Encoding,
    Fin,
    Hello,
    Probe,
    Says,
)
from redislink.protocol.states import State
from tests.protocol.pair import (
    SMALL,
    Pair,
    acked,
    control,
)

# -- acks ------------------------------------------------------------------------------------


def test_an_ack_waits_for_ack_delay(alone):
    alone.receive_data("t", Data(1), b"x", 1.0)
    assert alone.pushes() == []
    assert alone.next_timeout() == pytest.approx(1.1)
    alone.tick(1.1)
    assert control(alone.pushes(), Ack) == [acked(1)]
    assert alone.next_timeout() == pytest.approx(5.0)  # a heartbeat


def test_many_bytes_are_acked_at_once(alone):
    alone.receive_data("t", Data(1), bytes(50), 1.0)
    assert alone.pushes() == []
    alone.receive_data("t", Data(2), bytes(50), 1.0)
    assert control(alone.pushes(), Ack) == [acked(2)]


def test_a_peer_that_asks_is_told_at_once_and_after_every_so_many_messages(roomy):
    alone = roomy
    alone.receive_control(Ack(AckState(0), every=2), 1.0)
    assert control(alone.pushes(), Ack) == [acked(0)]
    told = []
    for seq in range(1, 8):
        alone.receive_data("t", Data(seq), b"", 1.1)
        told += control(alone.pushes(), Ack)
    assert told == [acked(2), acked(4), acked(6)]
    alone.receive_data("t", Data(8), b"", 1.6)  # half a second later it no longer waits
    assert alone.pushes() == []


def test_an_ack_rides_on_data_but_stays_due(alone):
    """The data may lie unread for long; whoever waits for the ack reads the control list."""
    alone.receive_data("t", Data(1), b"", 1.0)
    alone.send("back", b"", 1.0)
    (push,) = alone.pushes()
    assert push.frame.acked == 1
    alone.tick(1.1)
    assert control(alone.pushes(), Ack) == [acked(1)]


def test_an_ack_that_is_known_to_have_come_on_data_is_not_said_again(roomy):
    roomy.receive_data("t", Data(1), b"", 1.0)
    roomy.send("back", b"", 1.0)
    roomy.pushes()
    roomy.receive_data("t", Data(2, acked=1), b"", 1.05)
    roomy.tick(1.1)
    assert control(roomy.pushes(), Ack) == []
    assert roomy.next_timeout() == pytest.approx(1.2)  # for the second
    roomy.tick(1.21)
    assert control(roomy.pushes(), Ack) == [acked(2)]


def test_no_ack_is_due_when_all_of_it_has_come_on_data(roomy):
    roomy.receive_data("t", Data(1), b"", 1.0)
    roomy.send("back", b"", 1.0)
    roomy.pushes()
    roomy.receive_control(acked(1), 1.05)
    roomy.tick(1.1)
    assert control(roomy.pushes(), Ack) == []
    assert roomy.next_timeout() == pytest.approx(5.0)  # a heartbeat


def test_what_came_out_of_its_turn_is_acked_whatever_came_on_data(roomy):
    roomy.receive_data("t", Data(2), b"", 1.0)
    roomy.send("back", b"", 1.0)
    roomy.pushes()
    roomy.receive_control(acked(1), 1.05)
    roomy.tick(1.1)
    assert control(roomy.pushes(), Ack) == [acked(0, (2, 2))]
    roomy.receive_data("t", Data(1), b"", 1.2)
    roomy.send("back", b"", 1.2)
    roomy.pushes()
    roomy.receive_data("t", Data(4, acked=2), b"", 1.25)
    roomy.tick(1.3)
    assert control(roomy.pushes(), Ack) == []
    roomy.tick(1.41)
    assert control(roomy.pushes(), Ack) == [acked(2, (4, 4))]


def test_an_ack_on_data_counts(pair):
    pair.alice.send("t", b"x", 0.0)
    pair.receive(pair.bob, "t")
    pair.bob.send("back", b"y", 0.0)
    assert pair.receive(pair.alice, "back") == b"y"
    assert pair.alice.all_acked


@pytest.mark.parametrize("ack", [acked(2), acked(0, (2, 2)), acked(0, (3, 1 << 62))])
def test_an_ack_for_what_was_never_sent_changes_nothing(alone, ack):
    alone.send("t", b"", 0.0)
    with pytest.raises(FrameError, match="never sent"):
        alone.receive_control(ack, 1.0)
    highest = max(ack.ack.cumulative, *(last for _, last in ack.ack.ranges), 0)
    with pytest.raises(FrameError, match="never sent"):
        alone.receive_data("u", Data(1, acked=highest), b"", 1.0)
    assert not alone.all_acked
    assert alone.last_heard == 0.0
    assert alone.peek("u") is None


def test_frames_on_the_wrong_list_change_nothing(alone):
    with pytest.raises(FrameError, match="DATA frame on a control list"):
        alone.receive_control(Data(1), 1.0)
    with pytest.raises(FrameError, match="HELLO frame on a control list"):
        alone.receive_control(Hello(bytes(32), bytes(8)), 1.0)
    with pytest.raises(FrameError, match="ABORT frame on a data list"):
        alone.receive_data("t", Abort("no"), b"", 1.0)
    assert (alone.state, alone.last_heard) == (State.OPEN, 0.0)


def test_a_contradiction_on_a_data_list_changes_nothing(alone):
    alone.receive_data("t", Data(1, 0, 2), b"x", 1.0)
    with pytest.raises(FrameError, match="disagree"):
        alone.receive_data("t", Data(2, 1, 3), b"x", 2.0)
    assert alone.last_heard == 1.0


# -- what one peer may do to us --------------------------------------------------------------


LIMIT = 1 << 20


@pytest.fixture
def bounded() -> Delivery:
    """As `alone`, and its peer may have it keep a MiB."""
    return Delivery("bob", Timing(peer_memory_bytes=LIMIT), 0.0)


WAYS_TO_FILL = {
    "whole messages that nothing takes": lambda n: Data(n, previous=max(0, n - 1)),
    "messages that wait for one that never comes": lambda n: Data(n + 1, previous=1),
    "chunks of one message": lambda n: Data(n, n - 1, 1 << 20),
    "first chunks of many messages": lambda n: Data(2 * n, 0, 2),
}


@pytest.mark.parametrize("way", WAYS_TO_FILL)
@pytest.mark.parametrize("size", [1, 4000])
def test_what_a_peer_makes_us_keep_is_bounded(bounded, way, size):
    seen = 0

    def fill() -> None:
        nonlocal seen
        for number in range(1, LIMIT):
            bounded.receive_data("t", WAYS_TO_FILL[way](number), b"x" * size, 1.0)
            seen += size + 128

    with pytest.raises(PeerProtocolError, match=r"bob has sent .* bytes that nothing") as caught:
        fill()
    assert LIMIT - size - 128 <= seen <= LIMIT
    assert "REDISLINK_PEER_MEMORY_BYTES" in str(caught.value)
    assert (bounded.state, str(bounded.failure)) == (State.FAILED, str(caught.value))
    assert not bounded.kept
    bounded.receive_data("t", Data(1 << 40), b"more", 2.0)
    assert not bounded.kept


@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_taken_does_not_count(bounded, parts):
    body = b"x" * 60_000
    for first in range(1, 50 * parts, parts):
        for part in range(parts):
            bounded.receive_data("t", Data(first + part, part, parts), body, 1.0)
        assert bounded.take("t") == (parts * body, Encoding.RAW)
    assert bounded.state is State.OPEN
    assert bounded._receiving.kept_bytes == 0


def test_only_what_is_new_counts_as_life(alone):
    """A broker that has one element of a dead peer could play it for ever."""
    alone.receive_whole("t", (1, Encoding.RAW, 0, b"x"), 1.0)
    alone.receive_data("u", Data(2, 0, 2), b"y", 2.0)
    assert alone.last_heard == 2.0
    for now in range(3, 60):
        alone.receive_whole("t", (1, Encoding.RAW, 0, b"x"), float(now))
        alone.receive_data("u", Data(2, 0, 2), b"y", float(now))
        alone.listened(float(now))
    assert isinstance(alone.failure, PeerLost)
    assert alone.failure.last_heard_seconds < 2 + SMALL.peer_timeout + 6


def test_what_comes_again_is_acked_again(alone):
    alone.receive_whole("t", (1, Encoding.RAW, 0, b"x"), 1.0)
    alone.tick(2.0)
    alone.pushes()
    alone.receive_whole("t", (1, Encoding.RAW, 0, b"x"), 3.0)
    alone.tick(4.0)
    assert control(alone.pushes(), Ack) == [acked(1)]


def test_a_peer_that_breaks_rules_is_named(alone):
    alone.send("t", b"x", 0.0)
    alone.broke_rules("an ack for frames that were never sent")
    assert isinstance(alone.failure, PeerProtocolError)
    assert alone.failure.peer == "bob"
    assert "bob sent what the protocol forbids (an ack for frames" in str(alone.failure)
    with pytest.raises(PeerProtocolError):
        alone.send("t", b"x", 0.0)


def test_duplicates_are_dropped_and_acked(alone):
    for now in (1.0, 2.0):
        alone.receive_data("t", Data(1), b"x", now)
        assert alone.next_timeout() == pytest.approx(now + 0.1)
        alone.tick(now + 0.1)
    assert alone.take("t") == (b"x", Encoding.RAW)
    assert alone.take("t") is None
    assert alone.stats.duplicates_dropped == 1


# -- probes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [True, False])
def test_a_blocked_receive_asks_soon_and_then_twice_a_second(alone, answered):
    """More rarely if nothing answers: what nobody reads fills the broker."""
    alone.wait("t", 0.0)
    alone.wait("t", 0.5)  # a second thread
    probed_at = []
    while (now := alone.next_timeout()) < 4.9:
        alone.tick(now)
        for probe in control(alone.pushes(), Probe):
            assert probe == Probe(("t",), AckState(0))
            probed_at.append(now)
            if answered:
                alone.receive_control(Probe(("t",), AckState(0), Says.NOT_SENT), now)
    alone.unwait("t")
    alone.unwait("t")
    assert alone.next_timeout() == 5.0  # a heartbeat
    often = [0.15 + n / 2 for n in range(10)]
    assert probed_at == pytest.approx(often if answered else [0.15, 0.65, 1.65, 3.65])


def test_three_thousand_waiting_tags_are_asked_for_in_few_frames(pair):
    tags = [f"root:P2P-{n}:0->1" for n in range(3000)]
    for tag in tags:
        pair.bob.wait(tag, 0.0)
    pair.advance(0.2)
    asked, answered = pair.pushed("bob", Probe), pair.pushed("alice", Probe)
    assert len(asked) == len(answered) < 3000 / 40
    assert sorted(tag for push in asked for tag in push.frame.tags) == sorted(tags)
    assert all(pair.bob.describe_wait(tag, pair.now).endswith("not sent it yet") for tag in tags)


def test_on_a_slow_line_the_first_question_waits_for_the_pop(alone):
    slow = Delivery("bob", Timing(round_trip=5.0), 0.0)
    slow.wait("t", 0.0)
    asked_at = []
    while (now := slow.next_timeout()) < 20:
        slow.tick(now)
        asked_at += [now] * len(control(slow.pushes(), Probe))
    assert asked_at == [7.5, 10.0, 12.5, 15.0, 17.5]


def test_a_chunk_that_comes_postpones_the_probe(alone):
    alone.wait("t", 0.0)
    for n in range(1, 9):
        alone.receive_data("t", Data(n, n - 1, 100), b"x", n / 8)
        alone.receive_data("t", Data(n, n - 1, 100), b"x", n / 8)
        alone.tick(n / 8 + 0.1)
    assert alone.stats.probes_sent == 0
    alone.receive_data("t", Data(1, 0, 100), b"", 1.4)  # again: that is no progress
    alone.tick(1.5)
    assert alone.stats.probes_sent == 1


# -- losses ----------------------------------------------------------------------------------


def lose_one(pair: Pair, tag: str) -> list[Push]:
    """The broker loses the next push onto this list, and says that it took it."""
    lost = []
    pair.loses = lambda push: getattr(push, "tag", "") == tag and not lost and not lost.append(push)
    return lost


def test_a_silent_loss_is_healed_before_the_second_question(pair):
    lost = lose_one(pair, "t")
    pair.alice.send("t", b"x", 0.0)
    pair.settle()
    assert lost
    pair.bob.wait("t", 0.0)
    pair.advance(0.18)
    assert pair.receive(pair.bob, "t") == b"x"
    assert [push.frame.says for push in pair.pushed("bob", Probe)] == [Says.WAITS, Says.OVERDUE]
    assert [push.frame.says for push in pair.pushed("alice", Probe)] == [Says.SENT, Says.RESENT]
    assert pair.bob.edition_in == 0, "the line is well"
    assert pair.alice.stats.frames_resent == 1


def test_an_element_of_no_use_is_sent_again_at_once(pair):
    """A changed element: not even a question has to be due."""
    pair.alice.send("t", b"x", 0.0)
    pair.alice.send("t", b"y", 0.0)
    pair.settle()
    pair.lists[pair.bob, "t"].popleft()  # it does not open
    pair.bob.lost("t", 0.001)
    pair.now = 0.001
    assert [pair.receive(pair.bob, "t") for _ in range(2)] == [b"x", b"y"]
    assert pair.alice.stats.frames_resent == 1
    pair.advance(1)
    assert not pair.lists


def test_elements_of_no_use_without_end_are_not_answered_without_end(pair):
    """Somebody forges elements: each could have the sender push something again."""
    pair.alice.send("t", b"x", 0.0)
    for n in range(1000):
        pair.now = n / 1000
        pair.bob.lost("t", pair.now)
        pair.settle()
    assert pair.alice.stats.frames_resent <= 3


def test_after_a_broken_pop_the_peer_is_told_at_once(alone):
    alone.wait("t", 0.0)
    alone.misses("t", 0.2)
    assert control(alone.pushes(), Probe) == [Probe(("t",), AckState(0), Says.MISSES)]
    assert alone.next_timeout() == pytest.approx(0.35)  # perhaps that was lost
    alone.close(1.0)
    alone.receive_control(Fin(0, AckState(0)), 1.0)
    alone.pushes()
    alone.misses("t", 1.0)
    assert alone.pushes() == []  # nobody listens


def test_not_sent_yet(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(2.5)
    assert pair.pushed("alice", Probe)[-1].frame == Probe(("t",), AckState(0), Says.NOT_SENT)
    assert pair.bob.describe_wait("t", pair.now) == (
        "alice was last heard 0.4 s ago and says that it has not sent it yet"
    )


def test_an_answer_does_not_hold_for_ever(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(1.5)
    pair.loses = lambda push: True
    pair.advance(3)
    assert pair.bob.describe_wait("t", pair.now) == "alice was last heard 3.4 s ago"


def test_an_answer_does_not_hold_when_some_of_it_came(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(1.5)
    pair.bob.receive_data("t", Data(1, 0, 2), b"x", 1.5)
    assert pair.bob.describe_wait("t", 1.5) == "alice was last heard 0.0 s ago"


def test_an_answer_for_what_nobody_waits_for(alone):
    alone.receive_control(Probe(("t",), AckState(0), Says.NOT_SENT), 1.0)
    assert alone.describe_wait("t", 3.0) == "bob was last heard 2.0 s ago"


def test_what_comes_in_part_is_not_probed_for(alone):
    alone.wait("t", 0.0)
    for n in range(1, 9):
        alone.came_in_part("t", n / 8)
        alone.tick(n / 8 + 0.4)
    alone.came_in_part("unknown", 9.0)
    assert alone.stats.probes_sent == 0
