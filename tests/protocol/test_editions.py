"""Editions of the data lists: how a receiver leaves a line that swallows what it should bring."""

from itertools import pairwise

import pytest

from redislink.protocol.delivery import Delivery, Leftover, Timing
from redislink.protocol.frame import Ack, AckState, Fin, Heartbeat, Probe, Says
from tests.protocol.pair import Pair, control, numbers, tag_of, take_pushes

TIMING = Timing()


@pytest.fixture
def alone() -> Delivery:
    return Delivery("bob", TIMING, 0.0)


def ask(alone: Delivery, tag: str, now: float) -> None:
    """A receive has begun to wait, and its question goes out."""
    alone.wait(tag, now - TIMING.first_ask)
    alone.tick(now)
    assert control(take_pushes(alone), Probe) == [Probe((tag,), AckState(0))]


def answer(alone: Delivery, tag: str, what: Says, now: float) -> None:
    alone.receive_control(Probe((tag,), AckState(0), what), now)


# -- when a message is overdue -------------------------------------------------------------------


def test_what_the_broker_has_taken_is_overdue_if_it_does_not_come(alone):
    ask(alone, "t", 1.0)
    answer(alone, "t", Says.SENT, 1.05)
    assert alone.next_timeout() == pytest.approx(1.1)
    assert alone.overdue(1.09) == []
    assert alone.overdue(1.11) == ["t"]
    assert alone.overdue(9.0) == [], "once for each answer"


def test_what_is_overdue_is_missed_before_its_line_is_left(alone):
    """The line gets more time than the message: a new one costs more than a frame."""
    ask(alone, "t", 1.0)
    answer(alone, "t", Says.SENT, 1.01)
    assert alone.overdue(1.03) == ["t"]
    assert not alone.missed_in_vain("t", 1.03)
    assert control(take_pushes(alone), Probe) == [Probe(("t",), AckState(0), Says.OVERDUE)]
    answer(alone, "t", Says.RESENT, 1.04)
    assert alone.overdue(1.2) == []
    assert alone.overdue(1.04 + TIMING.overdue_after) == ["t"]
    assert alone.missed_in_vain("t", 1.3)
    alone.read_anew(1.3)
    take_pushes(alone)
    assert not alone.missed_in_vain("t", 1.4), "the new line may lose one, too"
    assert not alone.missed_in_vain("unknown", 1.4)


def test_where_no_line_can_die_what_is_overdue_is_missed_again_and_again(alone):
    """What says so may be lost as well."""
    ask(alone, "t", 1.0)
    for now in (2.0, 3.0, 4.0):
        assert not alone.missed_in_vain("t", now, can_leave=False)
        assert control(take_pushes(alone), Probe) == [Probe(("t",), AckState(0), Says.OVERDUE)]


def test_a_slow_way_gets_as_long_again_as_question_and_answer_took(alone):
    """5 s to the broker and back: the BLPOP may have reached it only with the answer."""
    ask(alone, "t", 1.0)
    answer(alone, "t", Says.SENT, 11.0)
    assert alone.overdue(20.9) == []
    assert alone.overdue(21.0) == ["t"]


def test_only_a_question_makes_an_answer(alone):
    alone.wait("t", 0.0)
    answer(alone, "t", Says.SENT, 1.0)
    answer(alone, "other", Says.SENT, 1.0)
    assert alone.overdue(99.0) == []


@pytest.mark.parametrize("what", ["came", "came in part", "taken back", "asked anew"])
def test_what_makes_a_message_not_overdue(alone, what):
    ask(alone, "t", 1.0)
    answer(alone, "t", Says.SENT, 1.1)
    if what == "came":
        peer = Delivery("alice", TIMING, 0.0)
        peer.send("t", b"x", 0.0)
        [push] = take_pushes(peer)
        alone.receive_data("t", push.frame, push.body, 1.2)
    elif what == "came in part":
        alone.came_in_part("t", 1.2)
    elif what == "taken back":
        answer(alone, "t", Says.NOT_SENT, 1.2)
    else:
        alone.unwait("t")
        alone.wait("t", 1.2)
    assert alone.overdue(99.0) == []


def test_the_peer_says_sent_only_of_what_the_broker_has(alone):
    alone.send("t", b"x", 0.0)
    [push] = alone.pushes()
    alone.receive_control(Probe(("t",), AckState(0)), 0.1, in_order=False)
    assert control(alone.pushes(), Probe) == []
    alone.confirm(push, 0.2)
    alone.receive_control(Probe(("t",), AckState(0)), 0.3, in_order=False)
    assert [probe.says for probe in control(alone.pushes(), Probe)] == [Says.SENT]


def test_what_comes_never_is_waited_for_longer_each_time(alone):
    """Else all that is not acked would be pushed again and again, in vain."""
    now = 1.0
    ask(alone, "t", now)
    moved_at = []
    while len(moved_at) < 5:
        alone.tick(now)
        answer(alone, "t", Says.SENT, now)
        now = alone._waits.by_tag["t"].overdue_at
        assert alone.overdue(now) == ["t"]
        if alone.missed_in_vain("t", now):
            alone.read_anew(now)
            moved_at.append(now)
    gaps = [after - before for before, after in pairwise(moved_at)]
    assert all(gap > 1.9 * before for before, gap in pairwise(gaps[:3]))
    assert moved_at[0] < 1.3
    assert gaps[-1] > 10


# -- the next edition ----------------------------------------------------------------------------


def test_all_that_is_not_acked_is_pushed_again_on_the_next_edition(alone):
    for tag in ("a", "b", "c"):
        alone.send(tag, b"x", 0.0)
    take_pushes(alone)
    alone.receive_control(Ack(AckState(1)), 0.1)
    alone.receive_control(Ack(AckState(1, (), 1)), 0.2)
    assert alone.edition_out == 1
    pushes = take_pushes(alone)
    assert pushes[:2] == [Leftover("b", 0), Leftover("c", 0)], "the old lists are removed first"
    assert numbers(pushes) == [2, 3]
    assert alone.stats.frames_resent == 2
    alone.receive_control(Ack(AckState(3, (), 1)), 0.3)
    assert take_pushes(alone) == [Leftover("b", 1), Leftover("c", 1)], "both were pushed twice"


@pytest.mark.parametrize("kind", ["ack", "probe", "answer", "heartbeat", "fin"])
def test_every_frame_with_an_ack_announces_the_edition(alone, kind):
    alone.send("a", b"x", 0.0)
    take_pushes(alone)
    ack = AckState(0, (), 3)
    frame = {
        "ack": Ack(ack),
        "probe": Probe(("z",), ack),
        "answer": Probe(("z",), ack, Says.NOT_SENT),
        "heartbeat": Heartbeat(ack),
        "fin": Fin(0, ack),
    }[kind]
    alone.receive_control(frame, 0.1)
    assert alone.edition_out == 3
    if kind != "fin":
        assert numbers(take_pushes(alone)) == [1]


def test_an_older_edition_is_a_frame_that_came_late(alone):
    alone.receive_control(Ack(AckState(0, (), 2)), 0.1)
    alone.send("a", b"x", 0.2)
    take_pushes(alone)
    alone.receive_control(Ack(AckState(0, (), 1)), 0.3)
    alone.receive_control(Ack(AckState(0)), 0.4)
    assert alone.edition_out == 2
    assert numbers(take_pushes(alone)) == []


def test_a_list_that_was_to_be_emptied_is_removed_in_its_own_edition(alone):
    """The connection broke, so the list would be emptied with the next push, which moves on."""
    alone.send("a", b"x", 0.0)
    alone.send("b", b"x", 0.0)
    _, second = take_pushes(alone)
    alone.refused(second, 0.1)  # nothing is pushed for a while
    alone.reconnected(0.1)
    assert numbers(alone.pushes()) == []
    alone.receive_control(Ack(AckState(0, (), 1)), 0.15)
    assert alone.pushes() == [Leftover("a", 0)]


def test_ghosts_swallow_nothing_of_the_next_edition():
    """The broker serves 32 BLPOPs of a dead lane; two messages are lost to it, not 32."""
    pair = Pair(TIMING)
    ghosts = {f"t{n}" for n in range(32)}
    swallowed = []

    def swallow(push) -> bool:
        if pair.bob.edition_out == 0 and tag_of(push) in ghosts:
            ghosts.discard(tag_of(push))
            swallowed.append(tag_of(push))
            return True
        return False

    pair.loses = swallow
    for number in range(32):
        pair.bob.send(f"t{number}", b"%d" % number, pair.now)
        pair.settle()
        pair.alice.wait(f"t{number}", pair.now)
        while pair.receive(pair.alice, f"t{number}") is None:
            pair.advance(0.05)
            assert pair.now < 5.0
        pair.alice.unwait(f"t{number}")
    assert swallowed == ["t0", "t1"]
    assert pair.alice.edition_in == 1


def test_two_losses_far_apart_are_two_lost_pops():
    pair = Pair(TIMING)
    for tag in ("a", "b"):
        pair.loses = lambda push, tag=tag: tag_of(push) == tag
        pair.bob.send(tag, b"x", pair.now)
        pair.settle()
        pair.loses = lambda push: False
        assert pair.wait_for(pair.alice, tag) == b"x"
        pair.advance(10.0)
    assert pair.alice.edition_in == 0


def test_a_dead_line_is_left_although_the_lists_are_well(alone):
    """A ghost may swallow the resent frame as well: an answer makes it overdue again."""
    ask(alone, "t", 1.0)
    answer(alone, "t", Says.RESENT, 1.1)
    assert alone.overdue(1.4) == ["t"]


def test_a_lost_announcement_is_repeated_by_the_next_question():
    pair = Pair(TIMING)
    pair.bob.send("t", b"x", pair.now)
    pair.settle()
    pair.alice.wait("t", pair.now)
    pair.loses = lambda push: isinstance(push.frame, Ack)
    pair.alice.read_anew(pair.now)
    assert pair.receive(pair.alice, "t") is None
    assert pair.bob.edition_out == 0
    pair.alice.tick(pair.now)
    assert pair.receive(pair.alice, "t") == b"x"


def test_whoever_has_left_reads_nothing_anew(alone):
    alone.close(0.0)
    alone.receive_control(Fin(0, AckState(0)), 0.1)
    take_pushes(alone)
    alone.read_anew(0.2)
    assert alone.edition_in == 0
    assert alone.pushes() == []
