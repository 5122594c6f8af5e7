"""The rules of `Delivery`: messages, endings, liveness, time."""

from itertools import permutations

import pytest

from redislink.errors import (
    PeerAborted,
    PeerClosed,
    PeerLost,
    PeerRestarted,
    UsageError,
)
from redislink.protocol.delivery import Delivery, Leftover, Push
from redislink.protocol.frame import (
    Abort,
    AckState,
    Data,
    Encoding,
    Fin,
    Heartbeat,
    Probe,
)
from redislink.protocol.states import State
from tests.protocol.pair import (
    CHUNK,
    SMALL,
    acked,
    control,
    take_pushes,
)

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


def test_statistics(pair):
    pair.alice.send("t", bytes(3 * CHUNK), 0.0)
    pair.receive(pair.bob, "t")
    assert (pair.alice.stats.messages_sent, pair.alice.stats.bytes_sent) == (1, 3 * CHUNK)
    assert (pair.bob.stats.messages_received, pair.bob.stats.bytes_received) == (1, 3 * CHUNK)


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


@pytest.mark.parametrize("retryable", [False, True])
def test_an_abort_says_whether_its_cause_may_pass(pair, retryable):
    pair.alice.abort("no", retryable=retryable)
    pair.settle()
    assert pair.bob.failure.retryable is retryable


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


def test_an_abort_is_heard_before_all_that_waits_on_the_control_list(alone):
    alone.abort("no")
    first, second = alone.pushes()
    assert first.clear
    assert not second.clear  # it would eat the first


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


def test_a_peer_that_was_given_up_finds_the_reason_when_it_comes_back(pair):
    """First of all on its control list, ahead of what came while it was suspended."""
    pair.bob.wait("t", 0.0)
    lost_at = listen(pair.alice, 0.0, 100.0)
    first, second = (push for push in pair.alice.pushes() if isinstance(push.frame, Abort))
    assert first.clear
    assert not second.clear
    assert isinstance(pair.alice.failure, PeerLost)
    pair.bob.receive_control(first.frame, lost_at + 10)
    assert str(pair.bob.failure).startswith(
        "alice aborted the session (you were silent for 31 s): "
    )
    assert pair.bob.failure.retryable
    listen(pair.alice, lost_at, 100.0)
    pair.alice.abort("the program ends")
    assert pair.alice.pushes() == []


def test_whatever_comes_is_a_sign_of_life(alone):
    for frame in (
        acked(0),
        Probe(("t",), AckState(0)),
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


@pytest.mark.parametrize("closes", [False, True], ids=["a receive waits", "closing"])
@pytest.mark.parametrize("room", [1, 8])
def test_what_we_told_a_peer_that_is_gone_does_not_hide_that_it_is_gone(alone, closes, room):
    """Found by the soak (seeds 4214, 9767, 13631, 27759): our control frames filled the broker.

    It refused more of them, in which time no silence counts: until those frames expired.
    """
    alone.wait("t", 0.0)
    if closes:
        alone.close(0.0)
    now, listens_at, held, refusals = 0.0, 1.0, 0, 0
    while alone.failure is None:
        for push in alone.pushes():
            held = 0 if push.clear else held
            if held < room:
                held += 1
                alone.confirm(push, now)
            else:
                refusals += 1
                alone.refused(push, now)
        now = min(listens_at, max(now, alone.next_timeout()))
        alone.tick(now)
        if now == listens_at:
            alone.listened(now)
            listens_at += 1.0
        assert now < 45
    assert isinstance(alone.failure, PeerLost)
    assert refusals


def test_only_a_silent_peer_loses_what_it_has_not_taken_to_a_refusal(alone):
    def clears_after_a_refusal(now: float) -> list[bool]:
        for _ in range(3):
            alone.announce_silence(0.0, now)
        first, *others = alone.pushes()
        alone.refused(first, now)
        assert not any(push.clear for push in (first, *others))
        for _ in range(2):
            alone.announce_silence(0.0, now)
        return [push.clear for push in alone.pushes()]

    assert clears_after_a_refusal(9.0) == [False, False]
    assert clears_after_a_refusal(11.0) == [True, False]
    alone.receive_control(acked(0), 12.0)
    assert clears_after_a_refusal(13.0) == [False, False]


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
