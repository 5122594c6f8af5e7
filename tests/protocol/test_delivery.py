"""The rules of `Delivery`, one by one."""

from itertools import pairwise, permutations

import pytest

from redislink.errors import (
    FrameError,
    PeerAborted,
    PeerClosed,
    PeerLost,
    PeerProtocolError,
    PeerRestarted,
    UsageError,
)
from redislink.protocol.delivery import Delivery, Leftover, Push, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Encoding,
    Fin,
    Heartbeat,
    Hello,
    Probe,
)
from redislink.protocol.states import State
from tests.protocol.pair import SMALL, Pair

CHUNK = SMALL.chunk_bytes
WINDOW = SMALL.window_bytes
FULL = CHUNK + 128
"""What a full chunk counts; four fit into a window."""
BOUND = 2 * WINDOW


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def alone() -> Delivery:
    """One delivery, whose peer the test plays itself."""
    return Delivery("bob", SMALL, 0.0)


@pytest.fixture
def roomy() -> Delivery:
    """As `alone`, but no number of bytes in these tests makes an ack due at once."""
    return Delivery("bob", Timing(), 0.0)


def acked(cumulative: int, *ranges: tuple[int, int]) -> Ack:
    return Ack(AckState(cumulative, ranges))


def numbers(pushes) -> list[int]:
    return [push.frame.seq for push in pushes if isinstance(push, Push) and push.tag is not None]


def control(pushes, kind):
    return [push.frame for push in pushes if isinstance(push, Push) and type(push.frame) is kind]


def take_pushes(delivery: Delivery, now: float = 0.0) -> list[Push | Leftover]:
    """What it wants pushed; the broker takes all of it."""
    pushes = delivery.pushes()
    for push in pushes:
        if isinstance(push, Push):
            delivery.confirm(push, now)
    return pushes


# -- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK + 7])
def test_a_message_arrives_once(pair, size):
    body = bytes(range(256))[: size % 256] * (size // 256 + 1)
    pair.alice.send("t", body[:size], 0.0)
    assert pair.receive(pair.bob, "t") == body[:size]
    assert pair.receive(pair.bob, "t") is None
    pair.advance(1)
    assert pair.alice.all_acked
    assert not pair.lists


def test_the_encoding_arrives_too(pair):
    pair.alice.send("t", b"x", 0.0, Encoding.VALUE)
    pair.pop(pair.bob, "t")
    assert pair.bob.peek("t") == (b"x", Encoding.VALUE)
    assert pair.bob.take("t") == (b"x", Encoding.VALUE)


def test_a_tag_keeps_its_order_and_tags_do_not_wait_for_each_other(pair):
    for n in range(3):
        pair.alice.send("a", b"a%d" % n, 0.0)
        pair.alice.send("b", b"b%d" % n, 0.0)
    assert [pair.receive(pair.bob, "b") for _ in range(3)] == [b"b0", b"b1", b"b2"]
    assert [pair.receive(pair.bob, "a") for _ in range(3)] == [b"a0", b"a1", b"a2"]


def test_too_large_a_message(alone):
    class Huge(bytes):
        def __len__(self):
            return (4 << 30) + 1

    with pytest.raises(UsageError, match="too large"):
        alone.send("t", Huge(), 0.0)
    assert alone.all_acked
    assert alone.send("t", b"", 0.0) == 1


def test_a_message_is_acked_when_all_of_it_is(alone):
    message = alone.send("t", bytes(3 * CHUNK), 0.0)
    assert message == 3
    for ack, whole in [(acked(0, (2, 3)), False), (acked(0, (3, 3)), False), (acked(3), True)]:
        alone.receive_control(ack, 0.0)
        assert alone.is_acked(message) is whole
        assert alone.all_acked is whole
    assert not alone.is_acked(message + 1)


def test_over_a_far_line_a_message_is_cut_finer():
    delivery = Delivery("bob", Timing(chunk_bytes=1000, least_chunk_bytes=100), 0.0)
    for size, parts in [(799, 1), (800, 8), (1600, 16), (6400, 64), (12_800, 64), (64_001, 65)]:
        delivery.send("t", bytes(size), 0.0)
        pushes = take_pushes(delivery)
        assert len(pushes) == parts
        assert {push.frame.parts for push in pushes} == {parts}
        assert {push.message_bytes for push in pushes} == {size if parts > 1 else 0}
        assert sum(len(push.body) for push in pushes) == size


def test_of_a_stream_only_the_first_messages_are_cut_finer():
    size = 100_000
    far = Delivery("bob", Timing(chunk_bytes=size, least_chunk_bytes=size // 10), 0.0)

    def parts(number):
        far.send(f"t{number}", bytes(size), 0.0)
        return far.pushes()[-1].frame.parts

    assert [parts(number) for number in range(4)] == [10, 10, 1, 1]
    far.receive_control(acked(11), 0.0)  # all of the first, one chunk of the second
    assert parts(4) == 1
    far.receive_control(acked(22), 0.0)
    assert parts(5) == 10, "as where each waits for the answer to the one before"


def test_what_the_window_holds_up_is_not_cut_finer():
    size = 1000
    timing = Timing(chunk_bytes=size, least_chunk_bytes=100, window_bytes=size)
    far = Delivery("bob", timing, 0.0)
    far.send("first", bytes(size), 0.0)
    assert far._sending._queue
    far.send("second", bytes(100 * size), 0.0)
    far.receive_control(acked(10), 0.0)
    assert far.pushes()[-1].frame.parts == 100


def test_what_was_given_up_is_not_acked(alone):
    message = alone.send("t", b"x", 0.0)
    alone.receive_control(Abort("no"), 0.0)
    assert not alone.is_acked(message)
    assert not alone.all_acked


def test_statistics(pair):
    pair.alice.send("t", bytes(3 * CHUNK), 0.0)
    pair.receive(pair.bob, "t")
    assert (pair.alice.stats.messages_sent, pair.alice.stats.bytes_sent) == (1, 3 * CHUNK)
    assert (pair.bob.stats.messages_received, pair.bob.stats.bytes_received) == (1, 3 * CHUNK)


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


# -- windows ---------------------------------------------------------------------------------


def test_send_does_not_wait_and_the_broker_gets_one_window(alone):
    for _ in range(100):
        alone.send("t", bytes(CHUNK), 0.0)
    assert numbers(alone.pushes()) == [1, 2, 3, 4]
    assert alone.in_flight_bytes == 4 * FULL
    assert alone.unacked_bytes == 100 * FULL
    alone.receive_control(acked(2), 0.0)
    assert numbers(alone.pushes()) == [5, 6]


def test_a_chunk_larger_than_the_window_goes_alone():
    alone = Delivery("bob", Timing(window_bytes=50, chunk_bytes=100), 0.0)
    alone.send("t", bytes(200), 0.0)
    assert numbers(alone.pushes()) == [1]
    alone.receive_control(acked(1), 0.0)
    assert numbers(alone.pushes()) == [2]


def test_small_messages_fill_a_window_too(alone):
    for _ in range(100):
        alone.send("t", b"", 0.0)
    assert len(alone.pushes()) == WINDOW // 128


def test_a_message_of_a_thousand_windows(pair):
    """1 GB through 1 MiB chunks and a 1 MiB window, in small: a millionth of each."""
    body = bytes(range(250)) * 4000
    pair.alice.send("t", body, 0.0)
    assert pair.wait_for(pair.bob, "t") == body
    assert pair.peak <= BOUND


def test_a_slow_reader_bounds_the_broker(pair):
    for n in range(200):
        pair.alice.send(f"t{n}", bytes(3 * CHUNK), pair.now)
    for n in range(200):
        assert pair.wait_for(pair.bob, f"t{n}") == bytes(3 * CHUNK)
        pair.advance(0.1 if n % 10 else 20)
    assert pair.peak <= BOUND


def test_a_probe_lets_its_tag_pass_the_window(alone):
    alone.send("large", bytes(10 * CHUNK), 0.0)
    alone.send("wanted", b"", 0.0)
    assert numbers(take_pushes(alone)) == [1, 2, 3, 4]
    alone.receive_control(Probe("wanted", AckState(0)), 0.1)
    assert numbers(take_pushes(alone)) == [11]
    alone.send("wanted", bytes(10 * CHUNK), 0.2)
    alone.receive_control(Probe("wanted", AckState(0)), 0.2)
    assert numbers(take_pushes(alone)) == [12, 13, 14]
    assert alone.in_flight_bytes <= BOUND


def test_opposite_orders_do_not_deadlock(pair):
    """Each sends two messages of many windows, and wants first what the other sends last."""
    for party in (pair.alice, pair.bob):
        party.send("first", bytes(20 * CHUNK), 0.0)
        party.send("second", bytes(20 * CHUNK), 0.0)
    for party in (pair.alice, pair.bob):
        party.wait("second", 0.0)
    left = {pair.alice, pair.bob}
    while left:
        assert pair.now < 10
        pair.advance(0.1)
        for party in list(left):
            if pair.receive(party, "second") is not None:
                party.unwait("second")
                left.remove(party)
    assert pair.peak <= 2 * BOUND
    for party in (pair.alice, pair.bob):
        assert pair.wait_for(party, "first") == bytes(20 * CHUNK)


def test_what_was_asked_for_and_then_left_does_not_block_what_is_asked_for_now(pair):
    """bob takes one message of each of two tags that fill both windows, then wants a third."""
    for tag in ("ahead", "asked"):
        for n in range(20):
            pair.alice.send(tag, b"%d" % n + bytes(CHUNK - 2), 0.0)
    pair.alice.send("third", b"3", 0.0)
    assert pair.wait_for(pair.bob, "asked")[:1] == b"0"
    assert pair.alice.in_flight_bytes > BOUND - 2 * FULL
    assert pair.wait_for(pair.bob, "third", 10.0) == b"3"
    for tag in ("ahead", "asked"):
        for n in range(20):
            if (tag, n) != ("asked", 0):
                assert pair.wait_for(pair.bob, tag)[: len(str(n))] == b"%d" % n
    assert pair.peak <= BOUND


def test_tags_that_are_asked_for_at_once_take_turns(alone):
    alone.send("ahead", bytes(4 * CHUNK), 0.0)
    for tag in ("a", "b"):
        alone.send(tag, bytes(8 * CHUNK), 0.0)  # 5 to 12, and 13 to 20
    take_pushes(alone)
    alone.receive_control(Probe("a", AckState(0)), 0.1)
    alone.receive_control(Probe("b", AckState(0)), 0.1)
    assert numbers(take_pushes(alone)) == [5, 6, 7, 8]
    turns = []
    for last in (5, 6, 7, 8):
        alone.receive_control(acked(0, (5, last)), 0.1)
        turns += numbers(take_pushes(alone))
    assert turns == [9, 13, 10, 14]


# -- what was lost ---------------------------------------------------------------------------


def test_after_a_reconnect_all_that_is_not_acked_is_sent_again(alone):
    alone.send("a", bytes(2 * CHUNK), 0.0)
    alone.send("b", b"", 0.0)
    alone.send("b", b"", 0.0)
    before = take_pushes(alone)
    first = {push.frame.seq: (push.frame, bytes(push.body)) for push in before}
    alone.receive_data("back", Data(1), b"", 0.0)  # an ack that could ride along
    alone.receive_control(acked(1), 0.0)
    alone.pushes()
    alone.reconnected(1.0)
    again = alone.pushes()
    assert numbers(again) == [2, 3, 4]
    assert {push.frame.seq: (push.frame, bytes(push.body)) for push in again}.items() <= (
        first.items()
    )
    assert [push.clear for push in again] == [True, True, False]  # each list is cleared once
    assert alone.stats.frames_resent == 3


def test_what_was_handed_out_does_not_change(alone):
    """Another thread may push it only after the same chunks have been handed out again."""
    alone.send("a", b"1", 0.0)
    alone.send("a", b"2", 0.0)
    told = [alone.pushes()]
    for now in (1.0, 2.0):
        alone.reconnected(now)
        told.append(alone.pushes())
        alone.receive_control(acked(1), now)  # another is the first of its list
    clears = [[push.clear for push in pushes] for pushes in told]
    assert clears == [[False, False], [True, False], [True]]
    assert [numbers(pushes) for pushes in told] == [[1, 2], [1, 2], [2]]


@pytest.mark.parametrize("taken", [True, False])
def test_the_brokers_answer_to_a_push_that_clears_is_of_its_chunk(alone, taken):
    alone.send("a", b"1", 0.0)
    alone.pushes()
    alone.reconnected(1.0)
    (push,) = alone.pushes()
    (chunk,) = alone._sending._unacked.values()
    if taken:
        alone.confirm(push, 2.0)
        assert chunk.confirmed_at == 2.0
    else:
        alone.refused(push, 2.0)
        assert chunk.refused
        assert chunk.account is None
        alone.tick(alone._sending.paused_until)
        assert numbers(alone.pushes()) == [1]


def test_after_a_reconnect_the_window_still_holds(alone):
    alone.send("t", bytes(20 * CHUNK), 0.0)
    take_pushes(alone)
    for _ in range(3):
        alone.reconnected(1.0)
        assert numbers(take_pushes(alone)) == [1, 2, 3, 4]
    assert alone.in_flight_bytes == 4 * FULL


def test_after_a_reconnect_the_peer_hears_from_us_at_once(alone):
    alone.wait("t", 0.0)
    alone.reconnected(0.5)
    assert alone.next_timeout() == 0.5
    alone.tick(0.5)
    pushes = alone.pushes()
    assert control(pushes, Probe) == [Probe("t", AckState(0))]
    assert control(pushes, Heartbeat) == [Heartbeat(AckState(0))]


def test_a_lost_pop_costs_one_list(alone):
    alone.send("a", b"", 0.0)
    alone.send("b", b"", 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(Probe("a", AckState(0)), 1.0)
    assert [push.tag for push in alone.pushes()] == ["a", "a"]  # the list is removed first
    assert alone.stats.frames_resent == 1


def test_a_frame_that_the_broker_has_only_just_got_is_not_lost(alone):
    alone.send("t", b"", 0.0)
    (push,) = alone.pushes()
    alone.receive_control(Probe("t", AckState(0)), 1.0)
    assert alone.pushes() == []  # the broker has not answered yet
    alone.confirm(push, 1.0)
    alone.receive_control(Probe("t", AckState(0)), 1.4)
    assert alone.pushes() == []
    alone.receive_control(Probe("t", AckState(0)), 1.5)
    assert numbers(alone.pushes()) == [1]


def test_only_the_first_chunk_says_whether_a_list_is_lost(alone):
    """A slow line: the first chunk is on its way down it, and the others wait behind."""
    alone.send("t", bytes(3 * CHUNK), 0.0)
    first, *others = alone.pushes()
    for push in others:
        alone.confirm(push, 0.0)
    alone.receive_control(Probe("t", AckState(0)), 1.0)
    assert alone.pushes() == []
    alone.confirm(first, 1.0)
    alone.receive_control(Probe("t", AckState(0)), 1.5)
    assert numbers(alone.pushes()) == [1, 2, 3]


def test_patience_doubles_for_a_frame_that_seems_lost_again_and_again(alone):
    alone.send("t", b"", 0.0)
    take_pushes(alone, 0.0)
    resent_at = [0.0]
    for tick in range(1, 400):
        now = tick / 4
        alone.receive_control(Probe("t", AckState(0)), now)
        if numbers(take_pushes(alone, now)):
            resent_at.append(now)
    gaps = [after - before for before, after in pairwise(resent_at)]
    assert gaps[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_second_loss_soon_after_sends_everything_again(alone):
    for tag in ("a", "b", "c"):
        alone.send(tag, b"", 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(Probe("a", AckState(0)), 1.0)
    assert numbers(take_pushes(alone, 1.0)) == [1]
    alone.receive_control(Probe("b", AckState(1)), 2.0)
    assert numbers(take_pushes(alone, 2.0)) == [2, 3]


def test_a_second_loss_long_after_does_not(alone):
    for tag in ("a", "b", "c"):
        alone.send(tag, b"", 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(Probe("a", AckState(0)), 1.0)
    take_pushes(alone, 1.0)
    alone.receive_control(Probe("b", AckState(1)), 12.0)
    assert numbers(take_pushes(alone, 12.0)) == [2]


def test_losses_shrink_the_window_and_success_lets_it_grow_again(alone):
    for _ in range(400):
        alone.send("t", bytes(CHUNK), 0.0)
    take_pushes(alone, 0.0)
    for now in (1.0, 3.0):
        alone.receive_control(Probe("t", AckState(0)), now)
        take_pushes(alone, now)
    alone.receive_control(acked(4), 10.0)
    largest = 0
    done = 4
    in_flight = []
    while done < 300:
        in_flight.append(alone.in_flight_bytes)
        largest = max([largest, *numbers(take_pushes(alone, 10.0))])
        done = largest
        alone.receive_control(acked(done), 10.0)
    assert in_flight[0] < WINDOW
    assert in_flight[-1] > 2 * WINDOW - 2 * FULL


def test_the_broker_loses_everything(pair):
    for n in range(4):
        pair.alice.send(f"t{n}", b"%d" % n, 0.0)
    pair.settle()
    pair.lists.clear()
    pair.advance(1)
    for n in range(4):
        assert pair.wait_for(pair.bob, f"t{n}", 5.0) == b"%d" % n


def test_a_lost_ack_is_sent_again_with_the_heartbeat(pair):
    pair.alice.send("t", b"", 0.0)
    pair.loses = lambda push: isinstance(push.frame, Ack)
    pair.receive(pair.bob, "t")
    pair.advance(1)
    assert not pair.alice.all_acked
    pair.advance(5)
    assert pair.alice.all_acked


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
    assert alone.next_timeout() == 5.0  # a heartbeat
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
    assert pair.pushed("alice", Probe)[-1].frame == Probe("t", AckState(0), answer=True)
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
    alone.receive_control(Probe("t", AckState(0), answer=True), 1.0)
    assert alone.describe_wait("t", 3.0) == "bob was last heard 2.0 s ago"


# -- a broker without room -------------------------------------------------------------------


def test_a_refused_push_is_kept_and_sent_after_a_pause(alone):
    alone.send("t", b"x", 0.0)
    (push,) = alone.pushes()
    alone.refused(push, 1.0)
    assert alone.in_flight_bytes == 0
    alone.send("t", b"y", 1.05)
    assert alone.pushes() == []
    assert alone.next_timeout() == pytest.approx(1.1)
    alone.tick(1.1)
    assert numbers(alone.pushes()) == [1, 2]
    assert alone.stats.frames_refused == 1
    assert alone.stats.frames_resent == 0


def test_refusals_halve_the_window_once_a_pause(alone):
    alone.send("t", bytes(100 * CHUNK), 0.0)
    for now in (1.0, 2.0):
        for push in alone.pushes():
            alone.refused(push, now)
        alone.tick(now + 0.1)
    assert len(alone.pushes()) == 1  # a quarter of four


def test_a_refusal_of_what_is_acked_or_given_up_is_nothing(alone):
    alone.send("t", b"", 0.0)
    (push,) = alone.pushes()
    alone.receive_control(acked(1), 0.0)
    alone.refused(push, 0.0)
    alone.send("t", b"", 0.0)
    alone.tick(1.0)
    (push,) = alone.pushes()
    alone.receive_control(Abort("no"), 0.0)
    alone.refused(push, 0.0)
    assert alone.in_flight_bytes == 0
    assert not alone._sending._queue


def test_a_refused_ack_is_sent_again(alone):
    alone.receive_data("t", Data(1), b"", 0.0)
    alone.tick(0.1)
    (push,) = alone.pushes()
    alone.refused(push, 0.2)
    assert alone.next_timeout() == pytest.approx(0.3)
    alone.tick(0.31)
    assert control(alone.pushes(), Ack) == [acked(1)]


def test_what_fills_the_broker_makes_room_for_what_is_asked_for(alone):
    alone.send("later", bytes(3 * CHUNK), 0.0)
    alone.send("now", b"", 0.0)
    *filling, refused = alone.pushes()
    for push in filling:
        alone.confirm(push, 0.0)
    alone.refused(refused, 0.0)
    alone.receive_control(Probe("now", AckState(0)), 0.05)  # in the pause
    assert alone.pushes() == []
    alone.receive_control(Probe("now", AckState(0)), 1.0)
    first, second, *_ = alone.pushes()
    assert (first, second.tag) == (Leftover("later"), "now")


def test_what_fills_the_broker_makes_room_for_control_frames(alone):
    alone.send("later", bytes(3 * CHUNK), 0.0)
    take_pushes(alone, 0.0)
    now = 5.0
    while (pushes := alone.pushes()) == [] or Leftover("later") not in pushes:
        for push in pushes:
            alone.refused(push, now)
        now = alone.next_timeout()
        alone.tick(now)
    assert 6.0 <= now < 6.3
    kinds = [type(getattr(push, "frame", push)) for push in pushes]
    assert kinds == [Leftover, Ack, Data]  # one chunk, behind the ack


def test_a_control_frame_that_passes_ends_that(alone):
    alone.send("later", b"", 0.0)
    take_pushes(alone, 0.0)
    for now in (5.0, 10.0, 15.0):
        alone.tick(now)
        (push, *_) = alone.pushes()
        alone.refused(push, now)
        alone.confirm(push, now)
    assert alone.in_flight_bytes == 128


# -- leftovers -------------------------------------------------------------------------------


def test_a_list_of_what_was_pushed_twice_is_removed_when_it_is_acked(alone):
    alone.send("t", b"", 0.0)
    take_pushes(alone)
    alone.reconnected(1.0)
    take_pushes(alone)
    alone.receive_control(acked(1), 1.0)
    assert alone.pushes() == [Leftover("t")]
    alone.send("t", b"", 2.0)
    take_pushes(alone)
    alone.receive_control(acked(2), 2.0)
    assert alone.pushes() == []  # pushed once, and so popped


@pytest.mark.parametrize("end", ["abort", "aborted", "fin"])
def test_at_the_end_what_nobody_will_take_is_removed(alone, end):
    alone.send("large", bytes(10 * CHUNK), 0.0)
    alone.send("never pushed", b"", 0.0)
    take_pushes(alone)
    if end == "abort":
        alone.abort("no")
    else:
        alone.receive_control(Abort("no") if end == "aborted" else Fin(0, AckState(0)), 1.0)
    assert [push for push in alone.pushes() if isinstance(push, Leftover)] == [Leftover("large")]
    assert alone.in_flight_bytes == 0


# -- FIN -------------------------------------------------------------------------------------


def test_one_closes_and_then_the_other(pair):
    pair.alice.send("t", b"x", 0.0)
    pair.receive(pair.bob, "t")
    pair.alice.close(pair.now)
    pair.settle()
    assert pair.states == (State.CLOSED, State.PEER_CLOSED)
    pair.bob.close(pair.now)
    pair.settle()
    assert pair.states == (State.CLOSED, State.CLOSED)
    assert pair.pushed("bob", Fin)[-1].frame.answer  # alice has left: nobody reads another FIN
    assert pair.alice.next_timeout() is pair.bob.next_timeout() is None


def test_both_close_at_once(pair):
    for party in (pair.alice, pair.bob):
        party.close(pair.now)
    assert pair.states == (State.CLOSING, State.CLOSING)
    pair.settle()
    assert pair.states == (State.CLOSED, State.CLOSED)
    assert len(pair.pushed("alice", Fin)) == len(pair.pushed("bob", Fin)) == 1


def test_closing_waits_until_the_peer_has_everything(pair):
    pair.alice.send("t", bytes(10 * CHUNK), 0.0)
    pair.alice.close(0.0)
    pair.advance(20)
    assert pair.states == (State.CLOSING, State.PEER_CLOSED)
    assert pair.wait_for(pair.bob, "t") == bytes(10 * CHUNK)
    pair.advance(0.2)
    assert pair.states == (State.CLOSED, State.PEER_CLOSED)


def test_a_peer_that_has_closed_is_still_asked_for_what_was_lost(pair):
    pair.alice.send("t", b"x", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.lists.clear()
    assert pair.wait_for(pair.bob, "t", 5.0) == b"x"
    pair.advance(1)
    assert pair.states == (State.CLOSED, State.PEER_CLOSED)


def test_the_last_ack_is_not_lost_when_the_receiver_leaves_at_once(pair):
    pair.alice.send("t", b"x", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    assert pair.receive(pair.bob, "t") == b"x"
    pair.bob.close(pair.now)
    assert pair.bob.state is State.CLOSED
    pair.settle()
    assert pair.alice.state is State.CLOSED
    assert pair.alice.all_acked


def test_the_receiver_leaves_without_taking_everything(pair):
    message = pair.alice.send("t", b"x", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.bob.close(0.0)
    pair.settle()
    assert pair.states == (State.CLOSED, State.CLOSED)
    assert not pair.alice.is_acked(message)
    assert not pair.lists


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
@pytest.mark.parametrize("first", ["alice", "bob", "both"])
def test_any_fin_may_be_lost(pair, first, lost, unread):
    """While a party still answers, the other one ends, whatever was lost on the way."""
    if unread:
        pair.alice.send("t", b"x", 0.0)
    fins = []

    def loses(push: Push) -> bool:
        if isinstance(push.frame, Fin):
            fins.append(push)
        return bool(fins) and push is fins[-1] and len(fins) - 1 == lost

    pair.loses = loses
    if first != "bob":
        pair.alice.close(0.0)
    if first != "alice":
        pair.bob.close(0.0)
    pair.advance(0.3)
    pair.alice.close(pair.now)
    pair.bob.close(pair.now)
    pair.advance(3)
    assert pair.states == (State.CLOSED, State.CLOSED)
    assert len(fins) < 10


def test_closed_parties_do_not_answer_each_other_for_ever(pair):
    for party in (pair.alice, pair.bob):
        party.send("unread", b"", 0.0)
        party.close(0.0)
    pair.settle()
    assert pair.states == (State.CLOSED, State.CLOSED)
    before = len(pair.log)
    pair.alice.receive_control(Fin(1, AckState(0)), 0.0)  # a double that comes late
    pair.bob.receive_control(Fin(1, AckState(0)), 0.0)
    pair.settle()
    assert len(pair.log) <= before + 4


def test_an_answer_that_we_did_not_ask_for_is_nothing(alone):
    alone.receive_control(Fin(0, AckState(0), answer=True), 0.0)
    assert alone.state is State.OPEN
    alone.close(0.0)
    alone.receive_control(acked(0), 0.0)
    assert alone.state is State.CLOSING


def test_an_answer_to_fin_is_said_again_after_a_reconnect(alone):
    """Found by the soak (seed 32710): each answer fell into an outage of ours, for 30 s."""
    alone.receive_control(Fin(0, AckState(0)), 0.0)
    alone.close(0.1)
    assert any(fin.answer for fin in control(alone.pushes(), Fin))
    alone.reconnected(1.0)
    assert [fin.answer for fin in control(alone.pushes(), Fin)] == [True]


def test_fin_is_said_until_it_is_answered(alone):
    alone.close(0.0)
    alone.pushes()
    times = []
    while (now := alone.next_timeout()) < 2.2:
        alone.tick(now)
        times += [now] * len(control(alone.pushes(), Fin))
    assert times == [0.5, 1.0, 1.5, 2.0]


def test_after_the_peers_fin(pair):
    pair.bob.close(0.0)
    pair.settle()
    with pytest.raises(PeerClosed, match="bob has left the session: send to it before it closes"):
        pair.alice.send("t", b"", 0.0)
    pair.alice.wait("t", 0.0)
    with pytest.raises(PeerClosed, match="bob has left the session without sending tag 't'"):
        pair.alice.check_can_receive("t", 0.0)


def test_what_the_peer_sent_before_its_fin_can_be_received_after_it(pair):
    """FIN and data come on different lists, so the FIN may be the first to come."""
    pair.alice.send("t", b"x", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.bob.check_can_receive("t", 0.0)
    assert pair.receive(pair.bob, "t") == b"x"
    with pytest.raises(PeerClosed):
        pair.bob.check_can_receive("t", 0.0)


def test_a_peer_that_closed_and_died_before_we_had_everything(pair):
    pair.alice.send("t", b"x", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.lists.clear()
    bob = pair.bob
    bob.wait("t", 0.0)
    for now in range(1, 30):
        bob.listened(float(now))
        bob.tick(float(now))
        bob.check_can_receive("t", float(now))
    bob.listened(31.0)
    assert bob.state is State.PEER_CLOSED
    with pytest.raises(PeerLost, match=r"alice was last heard 31.0 s ago"):
        bob.check_can_receive("t", 31.0)


def test_after_our_own_close(alone):
    alone.close(0.0)
    alone.close(0.0)
    assert len(control(alone.pushes(), Fin)) == 1
    with pytest.raises(UsageError, match=r"send before close\(\)"):
        alone.send("t", b"", 0.0)
    alone.receive_control(Fin(0, AckState(0)), 0.0)
    with pytest.raises(UsageError, match=r"receive before close\(\)"):
        alone.check_can_receive("t", 0.0)
    alone.receive_data("t", Data(1), b"", 0.0)
    assert alone.take("t") is None


@pytest.mark.parametrize("order", list(permutations(["data", "fin", "answer", "ack"])))
def test_closing_in_any_order_of_what_comes(alone, order):
    """Only the peer's FIN, or its answer and the ack together, end it."""
    alone.send("t", b"", 0.0)
    alone.close(0.0)
    frames = {
        "fin": Fin(1, AckState(0)),
        "answer": Fin(0, AckState(0), answer=True),
        "ack": acked(1),
    }
    seen = set()
    for what in order:
        if what == "data":
            alone.receive_data("u", Data(1), b"", 1.0)
        else:
            alone.receive_control(frames[what], 1.0)
        seen.add(what)
        over = "fin" in seen or seen >= {"answer", "ack"}
        assert alone.state is (State.CLOSED if over else State.CLOSING)


# -- ABORT -----------------------------------------------------------------------------------


def test_abort_ends_both(pair):
    pair.alice.send("t", b"", 0.0)
    pair.bob.wait("u", 0.0)
    pair.settle()
    pair.alice.abort("ValueError: no such column")
    pair.settle()
    assert pair.states == (State.FAILED, State.FAILED)
    assert not pair.lists
    assert pair.alice.failure is None
    for call in (
        lambda: pair.bob.check_can_receive("u", 0.0),
        lambda: pair.bob.send("t", b"", 0.0),
    ):
        with pytest.raises(PeerAborted, match="ValueError: no such column") as raised:
            call()
        assert raised.value.peer == "alice"
    with pytest.raises(UsageError):
        pair.alice.check_can_receive("u", 0.0)
    with pytest.raises(UsageError):
        pair.alice.send("u", b"", 0.0)


def test_one_lost_pop_does_not_eat_an_abort(pair):
    lost = []
    pair.loses = lambda push: not lost and not lost.append(push)
    pair.alice.abort("no")
    pair.settle()
    assert pair.bob.state is State.FAILED


def test_the_memory_of_the_broker_is_freed_before_the_abort(alone):
    """Else a broker that is full of our data would refuse it."""
    alone.send("t", b"", 0.0)
    take_pushes(alone)
    alone.abort("no")
    assert [type(getattr(push, "frame", push)) for push in alone.pushes()] == [
        Leftover,
        Abort,
        Abort,
    ]


def test_a_peer_that_is_closing_is_told_of_an_abort(pair):
    pair.alice.send("t", b"", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.bob.abort("no")
    pair.settle()
    assert isinstance(pair.alice.failure, PeerAborted)


def test_a_peer_that_has_left_is_not(pair):
    pair.alice.close(0.0)
    pair.settle()
    pair.bob.abort("no")
    pair.bob.abort("no")
    assert pair.bob.pushes() == []
    assert pair.states == (State.CLOSED, State.FAILED)


def test_closed_and_failed_are_final(pair):
    for party in (pair.alice, pair.bob):
        party.close(0.0)
    pair.settle()
    pair.alice.abort("no")
    pair.alice.receive_control(Abort("no"), 1.0)
    pair.alice.restarted()
    pair.alice.close(1.0)
    assert (pair.alice.state, pair.alice.failure) == (State.CLOSED, None)
    failed = Delivery("bob", SMALL, 0.0)
    failed.receive_control(Abort("the first"), 0.0)
    failed.restarted()
    failed.receive_control(Abort("the second"), 0.0)
    failed.receive_control(acked(0), 0.0)
    failed.receive_data("t", Data(1), b"", 0.0)
    failed.close(0.0)
    failed.announce_silence(1.0, 0.0)
    failed.reconnected(0.0)
    failed.tick(0.0)
    assert failed.state is State.FAILED
    assert "the first" in str(failed.failure)
    assert failed.pushes() == []
    assert failed.next_timeout() is None


# -- liveness --------------------------------------------------------------------------------


def listen(delivery: Delivery, start: float, seconds: float, every: float = 1.0) -> float:
    """Look at an empty control list again and again; returns when it ended."""
    now = start
    while now < start + seconds and delivery.state is State.OPEN:
        now += every
        delivery.listened(now)
    return now


@pytest.mark.parametrize("every", [0.1, 1.0, 5.0])
def test_a_silent_peer_is_lost_after_peer_timeout(alone, every):
    lost_at = listen(alone, 0.0, 100.0, every)
    assert 30.0 < lost_at <= 30.1 + every
    assert isinstance(alone.failure, PeerLost)
    assert alone.failure.last_heard_seconds == pytest.approx(lost_at)
    assert str(alone.failure).startswith(f"bob was last heard {lost_at:.1f} s ago")


def test_whatever_comes_is_a_sign_of_life(alone):
    for frame in (
        acked(0),
        Probe("t", AckState(0)),
        Heartbeat(AckState(0)),
        Fin(0, AckState(0), answer=True),
    ):
        start = alone.last_heard + 29
        listen(alone, alone.last_heard, 29)
        alone.receive_control(frame, start)
    listen(alone, alone.last_heard, 29)
    alone.receive_data("t", Data(1), b"", alone.last_heard + 29)
    assert alone.state is State.OPEN


def test_only_time_spent_listening_counts(alone):
    now = 0.0
    for _ in range(5):
        now = listen(alone, now + 1000.0, 0.5)  # the GIL was held for long before each
    assert alone.state is State.OPEN
    for _ in range(100):
        now += 20.0
        alone.not_listening(now)  # the broker was away
    listen(alone, now, 3.0)
    assert alone.state is State.OPEN


def test_reconnects_do_not_hide_a_dead_peer(alone):
    now = 0.0
    while alone.state is State.OPEN:
        now += 0.2
        alone.reconnected(now)
        alone.tick(now)
        alone.pushes()
        alone.listened(now)
        assert now < 31
    assert isinstance(alone.failure, PeerLost)


def test_two_idle_parties_hear_each_other(pair):
    pair.advance(300)
    assert pair.states == (State.OPEN, State.OPEN)
    assert len(pair.pushed("alice", Heartbeat)) == 59


def test_an_announced_silence_is_allowed(pair):
    pair.alice.announce_silence(100.0, 0.0)
    pair.settle()
    assert listen(pair.bob, 0.0, 1000.0) == 131.0


def test_an_announced_silence_is_over_when_it_is_taken_back(pair):
    pair.alice.announce_silence(100.0, 0.0)
    pair.settle()
    pair.now = 10.0
    pair.alice.announce_silence(0.0, 10.0)
    pair.settle()
    assert listen(pair.bob, 10.0, 1000.0) == 41.0


def test_signs_of_life_within_an_announced_silence_do_not_end_it(pair):
    """A phase with the GIL held has gaps, in which the timers run."""
    pair.alice.announce_silence(100.0, 0.0)
    pair.alice.send("t", b"x", 0.0)
    pair.advance(11)
    assert [push.frame.silence_ms for push in pair.pushed("alice", Heartbeat)] == [
        100_000,
        95_000,
        90_000,
    ]
    assert pair.receive(pair.bob, "t") == b"x"  # an old one, taken just now
    assert listen(pair.bob, 11.0, 1000.0) == 11 + 121.0


def test_a_silence_of_any_length_can_be_announced(alone):
    alone.announce_silence(1e9, 0.0)
    alone.announce_silence(-1.0, 0.0)
    assert [f.silence_ms for f in control(alone.pushes(), Heartbeat)] == [86_400_000, 0]


def test_a_closing_peer_hears_of_a_silence_too(pair):
    pair.alice.send("t", b"", 0.0)
    pair.alice.close(0.0)
    pair.settle()
    pair.bob.announce_silence(100.0, 0.0)
    pair.settle()
    now = 0.0
    while now < 130:
        now += 1
        pair.alice.listened(now)
    assert pair.alice.state is State.CLOSING
    pair.alice.listened(now + 1)
    assert isinstance(pair.alice.failure, PeerLost)


def test_a_restarted_peer(alone):
    alone.send("t", b"", 0.0)
    alone.restarted()
    assert isinstance(alone.failure, PeerRestarted)
    with pytest.raises(PeerRestarted, match="bob has started again"):
        alone.send("t", b"", 0.0)


def test_a_peer_that_restarts_while_we_close(alone):
    alone.send("t", b"", 0.0)
    alone.close(0.0)
    alone.restarted()
    assert (alone.state, alone.failure) == (State.CLOSED, None)
    assert not alone.all_acked


# -- time ------------------------------------------------------------------------------------


def test_a_tick_that_is_not_due_does_nothing(alone):
    alone.wait("t", 0.0)
    alone.receive_data("u", Data(1), b"", 0.0)
    alone.tick(0.05)
    assert alone.pushes() == []
    assert alone.next_timeout() == pytest.approx(0.1)


def test_a_clock_that_stands_still_or_jumps(pair):
    pair.alice.send("t", bytes(10 * CHUNK), 0.0)
    for now in (0.0, 0.0, 1e9, 1e9):
        pair.alice.tick(now)
        pair.bob.tick(now)
    pair.now = 1e9
    assert pair.receive(pair.bob, "t") == bytes(10 * CHUNK)


# -- brokers that take no large elements ------------------------------------------------------


def test_what_was_pushed_and_not_answered(alone):
    alone.send("t", b"x" * 90, 0.0)
    alone.send("u", b"x" * 40, 0.0)
    first, second = alone.pushes()
    assert alone.largest_unanswered == 90
    alone.confirm(first, 0.0)
    assert alone.largest_unanswered == 40
    alone.confirm(second, 0.0)
    assert alone.largest_unanswered == 0
    alone.reconnected(1.0)
    assert alone.largest_unanswered == 90


def test_messages_are_cut_finer_from_then_on():
    alice = Delivery("bob", Timing(chunk_bytes=CHUNK), 0.0)
    alice.send("t", b"x" * CHUNK, 0.0)
    alice.cut_finer(CHUNK // 4)
    alice.send("t", b"x" * CHUNK, 0.0)
    alice.send("u", b"x" * (CHUNK // 4), 0.0)
    alice.cut_finer(CHUNK)  # never coarser again
    alice.send("v", b"x" * CHUNK, 0.0)
    quarters = [(part, 4) for part in range(4)]
    parts = [(push.frame.part, push.frame.parts) for push in alice.pushes()]
    assert parts == [(0, 1), *quarters, (0, 1), *quarters]


def test_a_body_that_gets_lost_again_and_again_is_told(alone):
    """The broker has it, and breaks the connection of whoever takes it."""
    alone.send("t", b"x" * CHUNK, 0.0)
    now, probes = 0.0, 0
    while not alone.often_lost:
        take_pushes(alone, now)
        now += 1.0
        alone.receive_control(Probe("t", AckState(0)), now)
        probes += 1
        assert probes < 20
    assert alone.often_lost == CHUNK
    assert alone.stats.frames_resent == 3


def test_what_comes_in_part_is_not_probed_for(alone):
    alone.wait("t", 0.0)
    for now in range(1, 9):
        alone.came_in_part("t", now - 0.5)
        alone.tick(float(now))
    alone.came_in_part("unknown", 9.0)
    assert alone.stats.probes_sent == 0
