"""The rules of `Receiving`, by what `Delivery` does: acks, memory, probes."""

import pytest

from redislink.errors import (
    FrameError,
    PeerLost,
    PeerProtocolError,
)
from redislink.protocol.delivery import Delivery, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Answer,
    Data,
    Encoding,
    Heartbeat,
    Hello,
    Probe,
)
from redislink.protocol.states import State
from tests.protocol.pair import (
    SMALL,
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


def test_a_peer_that_asks_is_told_at_once_and_once_more(alone):
    alone.receive_control(Ack(AckState(0), wanted=True), 1.0)
    assert control(alone.pushes(), Ack) == [acked(0)]
    alone.receive_data("t", Data(1), b"", 1.0)
    assert control(alone.pushes(), Ack) == [acked(1)]
    alone.receive_data("t", Data(2), b"", 1.0)
    assert alone.pushes() == []


def test_asking_for_acks(alone):
    alone.ask_ack()
    assert alone.pushes() == []  # for what?
    alone.send("t", b"", 0.0)
    alone.pushes()
    alone.ask_ack()
    assert control(alone.pushes(), Ack) == [Ack(AckState(0), wanted=True)]


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
    assert (bounded.state, bounded.failure) == (State.FAILED, caught.value)
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


def test_a_blocked_receive_probes_every_second(alone):
    alone.wait("t", 0.0)
    alone.wait("t", 0.5)  # a second thread
    probed_at = []
    while (now := alone.next_timeout()) < 4.5:
        alone.tick(now)
        if control(alone.pushes(), Probe) == [Probe("t", AckState(0))]:
            probed_at.append(now)
        alone.unwait("t") if now == 2.0 else None
    assert probed_at == [1.0, 2.0, 3.0, 4.0]
    alone.unwait("t")
    assert alone.next_timeout() == 5.0
    alone.tick(5.0)
    assert [type(push.frame) for push in alone.pushes()] == [Heartbeat]
    assert alone.stats.probes_sent == 4


def test_a_chunk_that_comes_postpones_the_probe(alone):
    alone.wait("t", 0.0)
    for n in range(1, 9):
        alone.receive_data("t", Data(n, n - 1, 100), b"x", n / 2)
        alone.receive_data("t", Data(n, n - 1, 100), b"x", n / 2)
        alone.tick(n / 2 + 0.1)
    assert alone.stats.probes_sent == 0
    alone.receive_data("t", Data(1, 0, 100), b"", 4.9)  # again: that is no progress
    alone.tick(5.0)
    assert alone.stats.probes_sent == 1


def test_after_a_broken_pop_the_probe_goes_out_at_once(alone):
    alone.wait("t", 0.0)
    alone.probe_soon("t", 0.2)
    assert alone.next_timeout() == 0.2


def test_not_sent_yet(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(2.5)
    assert pair.pushed("alice", Probe)[-1].frame == Probe("t", AckState(0), Answer.NOT_SENT)
    assert pair.bob.describe_wait("t", pair.now) == (
        "alice was last heard 0.5 s ago and says that it has not sent it yet"
    )


def test_an_answer_does_not_hold_for_ever(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(1.5)
    pair.loses = lambda push: True
    pair.advance(3)
    assert pair.bob.describe_wait("t", pair.now) == "alice was last heard 3.5 s ago"


def test_an_answer_does_not_hold_when_some_of_it_came(pair):
    pair.bob.wait("t", 0.0)
    pair.advance(1.5)
    pair.bob.receive_data("t", Data(1, 0, 2), b"x", 1.5)
    assert pair.bob.describe_wait("t", 1.5) == "alice was last heard 0.0 s ago"


def test_an_answer_for_what_nobody_waits_for(alone):
    alone.receive_control(Probe("t", AckState(0), Answer.NOT_SENT), 1.0)
    assert alone.describe_wait("t", 3.0) == "bob was last heard 2.0 s ago"


def test_what_comes_in_part_is_not_probed_for(alone):
    alone.wait("t", 0.0)
    for now in range(1, 9):
        alone.came_in_part("t", now - 0.5)
        alone.tick(float(now))
    alone.came_in_part("unknown", 9.0)
    assert alone.stats.probes_sent == 0
