"""When a sender that waits for acks asks for them: how many control frames that makes."""

from itertools import pairwise

import pytest

from redislink.protocol.ack_requests import AckRequests
from redislink.protocol.conversation import Timing
from redislink.protocol.frame import Ack, AckState
from redislink.protocol.pushes import ControlPush
from tests.protocol.pair import Pair, acked, control


def test_nothing_under_way_asks_for_nothing(alone):
    assert alone.ask_ack(0.0) > 0
    assert alone.pushes() == []


@pytest.mark.parametrize(("under_way", "every"), [(1, 1), (3, 1), (8, 2), (256, 64)])
def test_the_first_question_asks_for_a_quarter_of_what_is_under_way(roomy, under_way, every):
    for n in range(under_way):
        roomy.send(f"t{n}", b"", 0.0)
    roomy.pushes()
    roomy.ask_ack(0.0)
    assert control(roomy.pushes(), Ack) == [Ack(AckState(0), every)]


def test_any_number_of_threads_ask_as_one():
    requests = AckRequests(0.0)
    asked_at = [n / 1000 for n in range(2000) if requests.due(8, n / 1000) or requests.answered()]
    assert len(asked_at) <= 16
    assert max(after - before for before, after in pairwise(asked_at)) < 0.21


def test_questions_that_nothing_answers_become_rare():
    """A line with a round trip of 5 s and 20 kbit/s must not fill with them."""
    requests = AckRequests(5.0)
    asked_at = [n / 100 for n in range(6000) if requests.due(8, n / 100)]
    assert len(asked_at) <= 7
    fast = AckRequests(0.0)
    assert sum(bool(fast.due(8, n / 1000)) for n in range(60_000)) < 45


def test_a_window_that_shrinks_asks_for_acks_in_smaller_steps():
    requests = AckRequests(0.0)
    asked = []
    for left in range(256, 0, -1):
        asked.append(requests.due(left, 1.0 + (256 - left) / 1e6))
        requests.answered()
    assert [every for every in asked if every] == [64, 32, 16, 8, 4, 2, 1]


def test_a_sender_that_rested_is_answered_at_once_again():
    requests = AckRequests(0.0)
    for n in range(300):
        requests.due(4, n / 1000)
        requests.answered()
    assert not requests.due(4, 0.31)
    assert requests.due(4, 1.0)


@pytest.mark.parametrize("window", [1, 4, 64, 256])
def test_a_sliding_window_costs_few_control_frames(window):
    """alice waits for the oldest of so many messages before she sends the next."""
    pair, handles, count = Pair(Timing()), [], 1000
    for n in range(count):
        pair.now += 0.0002  # what a message takes on one machine
        tag = f"t{n % 300}"
        handles.append(pair.alice.send(tag, b"", pair.now))
        assert pair.receive(pair.bob, tag) == b""
        if len(handles) > window - 1:
            while not pair.alice.is_acked(handles[0]):
                pair.alice.ask_ack(pair.now)
                pair.settle()
                pair.now += 0.001
                pair.alice.tick(pair.now)
                pair.bob.tick(pair.now)
                pair.settle()
            del handles[0]
    frames = sum(isinstance(push, ControlPush) for _, push in pair.log)
    assert frames <= count * (4 / window if window > 4 else 1) * 1.1 + 40
    assert pair.now < count * 0.0002 * 2 + 0.5


def test_a_peer_that_asks_twice_is_told_twice(alone):
    """The first answer may be lost."""
    for _ in range(2):
        alone.receive_control(Ack(AckState(0), every=9), 1.0)
    assert control(alone.pushes(), Ack) == [acked(0), acked(0)]
