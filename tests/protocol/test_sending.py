"""The rules of `Sending`, by what `Delivery` does: windows, losses, refusals, leftovers."""

from itertools import pairwise

import pytest

from redislink.errors import (
    UsageError,
)
from redislink.protocol.delivery import Delivery, Leftover, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Fin,
    Heartbeat,
    Probe,
    Says,
)
from tests.protocol.pair import (
    BOUND,
    CHUNK,
    FULL,
    WINDOW,
    acked,
    control,
    numbers,
    take_pushes,
)

# -- messages --------------------------------------------------------------------------------


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


def test_while_small_messages_wait_or_frames_are_refused_a_message_is_cut_finer():
    timing = Timing(chunk_bytes=400, fine_chunk_bytes=100, least_chunk_bytes=400)
    near = Delivery("bob", timing, 0.0)

    def parts(size, **how):
        near.send("t", bytes(size), 0.0, **how)
        return take_pushes(near)[-1].frame.parts

    sizes = (100, 101, 400, 401, 1600)
    assert [parts(size) for size in sizes] == [1, 1, 1, 2, 4]
    assert [parts(size, fine=True) for size in sizes] == [1, 2, 4, 5, 16]
    near.send("t", b"", 0.0)
    (push,) = near.pushes()
    near.refused(push, 0.0)
    near.tick(1.0)
    assert parts(1600) == 16


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
    alone.receive_control(Probe(("wanted",), AckState(0)), 0.1)
    assert numbers(take_pushes(alone)) == [11]
    alone.send("wanted", bytes(10 * CHUNK), 0.2)
    alone.receive_control(Probe(("wanted",), AckState(0)), 0.2)
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
    alone.receive_control(Probe(("a",), AckState(0)), 0.1)
    alone.receive_control(Probe(("b",), AckState(0)), 0.1)
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
    assert control(pushes, Probe) == [Probe(("t",), AckState(0))]
    assert control(pushes, Heartbeat) == [Heartbeat(AckState(0))]


def test_a_lost_pop_costs_one_list(alone):
    alone.send("a", b"", 0.0)
    alone.send("b", b"", 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(Probe(("a",), AckState(0), Says.OVERDUE), 0.1)
    removal, push, answer = alone.pushes()
    assert removal == Leftover("a")
    assert (push.tag, push.frame.seq) == ("a", 1)
    assert answer.frame == Probe(("a",), AckState(0), Says.RESENT)
    assert alone.stats.frames_resent == 1


def test_how_long_its_line_may_take_only_the_peer_knows(alone):
    """A minute on a slow one: the sender, whose line is fast, does not judge that."""
    alone.send("t", b"", 0.0)
    (push,) = alone.pushes()
    alone.receive_control(Probe(("t",), AckState(0)), 1.0, in_order=False)
    assert alone.pushes() == []  # it may wait here, in the backlog
    alone.receive_control(Probe(("t",), AckState(0)), 1.0)
    assert control(alone.pushes(), Probe) == [Probe(("t",), AckState(0), Says.SENT)]
    alone.confirm(push, 1.0)
    for now in range(2, 60):
        alone.receive_control(Probe(("t",), AckState(0)), float(now), in_order=False)
        (answer,) = alone.pushes()
        assert answer.frame == Probe(("t",), AckState(0), Says.SENT)
    alone.receive_control(Probe(("t",), AckState(0), Says.OVERDUE), 60.0)
    assert numbers(alone.pushes()) == [1]


def test_only_the_first_chunk_says_whether_a_list_is_lost_again(alone):
    """A slow line: the first chunk is on its way down it, and the others wait behind."""
    overdue = Probe(("t",), AckState(0), Says.OVERDUE)
    alone.send("t", bytes(3 * CHUNK), 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(overdue, 0.1)
    _, first, *others, _ = alone.pushes()
    for push in others:
        alone.confirm(push, 0.1)
    alone.receive_control(overdue, 1.0)
    assert numbers(alone.pushes()) == []
    alone.confirm(first, 1.0)
    alone.receive_control(overdue, 1.5)
    assert numbers(alone.pushes()) == [1, 2, 3]


def test_patience_doubles_for_a_frame_that_seems_lost_again_and_again(alone):
    alone.send("t", b"", 0.0)
    take_pushes(alone, 0.0)
    resent_at = [0.0]
    for tick in range(1, 400):
        now = tick / 4
        alone.receive_control(Probe(("t",), AckState(0), Says.OVERDUE), now)
        if numbers(take_pushes(alone, now)):
            resent_at.append(now)
    gaps = [after - before for before, after in pairwise(resent_at)]
    assert gaps[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize("what", ["small", "large", "queued first"])
def test_a_gap_shows_that_a_small_message_is_lost(roomy, what):
    """The peer, which waits for it, has had what was pushed later."""
    if what == "queued first":
        roomy.send("before", b"", 0.0)
        roomy.refused(take_pushes(roomy)[0], 0.0)
    number = roomy.send("t", bytes(1 << 15 if what == "large" else 10), 0.0)
    later = roomy.send("u", b"", 0.0)
    roomy.tick(0.2)
    assert {number, later} <= set(numbers(roomy.pushes()))
    asks = Probe(("t",), AckState(number - 1, ((later, later),)))
    roomy.receive_control(asks, 0.25)
    assert numbers(take_pushes(roomy, 0.25)) == ([number] if what == "small" else [])
    roomy.receive_control(asks, 0.75)
    assert numbers(roomy.pushes()) == [], "once: the gap stays while the second copy is late"


@pytest.mark.parametrize("says", [Says.MISSES, Says.OVERDUE])
def test_the_third_loss_in_a_row_sends_everything_again(alone, says):
    for tag in "abcde":
        alone.send(tag, b"", 0.0)
    take_pushes(alone, 0.0)
    resent = []
    for n, tag in enumerate("abc"):
        alone.receive_control(Probe((tag,), AckState(n), says), 0.3 + n / 10)
        resent.append(numbers(take_pushes(alone, 0.3 + n / 10)))
    assert resent == [[1], [2], [3, 4, 5]]


def test_elements_of_no_use_say_nothing_about_others(alone):
    for tag in "abcd":
        alone.send(tag, b"", 0.0)
    take_pushes(alone, 0.0)
    for n, tag in enumerate("abcd"):
        alone.receive_control(Probe((tag,), AckState(n), Says.LOST), 1.0 + n)
        assert numbers(take_pushes(alone, 1.0 + n)) == [n + 1]
    assert alone._sending._window == WINDOW


def test_a_lost_chunk_costs_one_chunk(alone):
    alone.send("t", bytes(4 * CHUNK), 0.0)
    take_pushes(alone, 0.0)
    alone.receive_control(Probe(("t",), AckState(1), Says.LOST), 0.1)
    assert numbers(take_pushes(alone, 0.1)) == [2]


def test_a_loss_long_after_two_others_does_not(alone):
    for tag in "abcd":
        alone.send(tag, b"", 0.0)
    take_pushes(alone, 0.0)
    for tag, now in (("a", 1.0), ("b", 2.0), ("c", 12.0)):
        alone.receive_control(Probe((tag,), AckState(0), Says.OVERDUE), now)
        resent = numbers(take_pushes(alone, now))
    assert resent == [3]


def test_losses_shrink_the_window_and_success_lets_it_grow_again(alone):
    for _ in range(400):
        alone.send("t", bytes(CHUNK), 0.0)
    take_pushes(alone, 0.0)
    for now in (1.0, 3.0, 5.0):
        alone.receive_control(Probe(("t",), AckState(0), Says.OVERDUE), now)
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
    alone.receive_control(Probe(("now",), AckState(0)), 0.05)  # in the pause
    assert alone.pushes() == []
    alone.receive_control(Probe(("now",), AckState(0)), 1.0)
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


def test_a_body_at_which_the_peers_connection_breaks_again_and_again_is_told(alone):
    """The broker has it, and breaks the connection of whoever takes it."""
    alone.send("t", b"x" * CHUNK, 0.0)
    for now in (1.0, 2.0, 3.0):
        assert not alone.often_lost
        take_pushes(alone, now - 1.0)
        alone.receive_control(Probe(("t",), AckState(0), Says.MISSES), now)
    assert alone.often_lost == CHUNK


def test_of_one_push_the_peers_connection_breaks_once(alone):
    """And a push that follows for another reason counts, if the connection breaks at it too."""
    misses = Probe(("t",), AckState(0), Says.MISSES)
    alone.send("t", b"x" * CHUNK, 0.0)
    take_pushes(alone, 0.0)
    for n in range(20):
        alone.receive_control(misses, n / 100)
        take_pushes(alone, n / 100)
    assert alone.stats.frames_resent == 1
    assert not alone.often_lost
    alone.receive_control(Ack(AckState(0, (), 1)), 0.2)
    take_pushes(alone, 0.2)
    assert alone.stats.frames_resent == 2
    alone.receive_control(misses, 0.2)
    assert alone.often_lost == CHUNK


@pytest.mark.parametrize("says", [Says.WAITS, Says.OVERDUE])
def test_a_body_that_is_late_again_and_again_blames_no_size(alone, says):
    """The machine is busy: all copies may be on their way."""
    alone.send("t", b"x" * CHUNK, 0.0)
    for now in range(60):
        take_pushes(alone, float(now))
        alone.receive_control(Probe(("t",), AckState(0), says), now + 1.0)
    assert alone.stats.frames_resent == (0 if says is Says.WAITS else 11)
    assert not alone.often_lost
