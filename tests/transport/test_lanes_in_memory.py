"""The rules of `Lanes`, with an inbox in memory whose answers the test gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redislink.broker.inbox import Interrupted
from redislink.errors import BrokerUnreachable, EndpointClosed
from redislink.transport.lanes import Lane, Lanes

DEPTH = 4


class FakeWait:
    """A connection: notes what is posted on it, and answers in that order."""

    def __init__(self, inbox: FakeInbox) -> None:
        self._inbox = inbox
        self.posted: list[bytes] = []
        self.answers: list[bytes | Exception | None] = []
        self.connected = self.disconnected = self.interrupted = self.registered = False

    def connect(self) -> None:
        self._inbox.while_connecting()
        self.connected = True

    def post(self, names: list[bytes], timeout: float) -> None:
        assert timeout == 5.0
        if self._inbox.is_away:
            raise BrokerUnreachable("away")
        self.posted += names

    def wait_posted(self, patience: float) -> bool:
        self._inbox.patience = patience
        return bool(self.answers)

    def read_posted(self, name: bytes, timeout: float) -> bytes | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def interrupt(self) -> None:
        self.interrupted = True

    def disconnect(self) -> None:
        self.disconnected = True


class FakeInbox:
    def __init__(self) -> None:
        self.waits: list[FakeWait] = []
        self.released: list[FakeWait] = []
        self.discarded: list[FakeWait] = []
        self.while_connecting: Callable[[], object] = lambda: None
        self.is_away = self.is_closed = False
        self.patience = 0.0

    def acquire(self) -> FakeWait:
        if self.is_closed:
            raise EndpointClosed("closed")
        self.waits.append(FakeWait(self))
        return self.waits[-1]

    def release(self, wait: FakeWait) -> None:
        self.released.append(wait)

    def discard(self, wait: FakeWait) -> None:
        self.discarded.append(wait)


@pytest.fixture
def inbox() -> FakeInbox:
    return FakeInbox()


@pytest.fixture
def lanes(inbox: FakeInbox) -> Lanes:
    return Lanes(inbox, DEPTH, 5.0, 0.5, b"prefix:")  # type: ignore[arg-type]


def come(lanes: Lanes, *tags: str) -> None:
    for tag in tags:
        lanes.foresee(tag)


def lane_for(lanes: Lanes, tag: str) -> Any:
    lane = lanes.lane_of(tag)
    assert isinstance(lane, Lane)
    return lane


def is_given_up(inbox: FakeInbox, lane: Any) -> bool:
    return lane.abandoned and lane.wait.disconnected and lane.wait in inbox.discarded


def test_two_in_a_row_foresee_as_many_as_the_depth(lanes: Lanes) -> None:
    come(lanes, "t{1}")
    assert lanes.lane_of("t{2}") is None
    come(lanes, "t{2}")
    lane = lane_for(lanes, "t{3}")
    assert lane.wait.connected
    assert lane.wait.posted == [b"prefix:t%%7B%d%%7D" % n for n in (3, 4, 5, 6)]
    assert [bool(lanes.lane_of(f"t{{{n}}}")) for n in (2, 3, 6, 7)] == [False, True, True, False]


def test_what_was_read_is_replaced(lanes: Lanes) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    lane.wait.answers = [b"three", None]
    assert lanes.read(lane, "t3") == ("t3", b"prefix:t3", b"three")
    assert lanes.read(lane, "t4") == ("t4", b"prefix:t4", None)
    assert lanes.lane_of("t3") is lanes.lane_of("t4") is None
    assert len(lane.posted) == lanes.few
    lanes.go_on(lane)
    assert lane.wait.posted[4:] == [b"prefix:t7", b"prefix:t8"]
    assert lanes.lane_of("t8") is lane
    assert not lane.abandoned


def test_a_tag_before_the_wanted_one_is_read_if_it_has_come(lanes: Lanes, inbox: FakeInbox) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    lane.wait.answers = [b"three"]
    assert lanes.read(lane, "t4") == ("t3", b"prefix:t3", b"three")
    assert inbox.patience == 1.0  # two round trips
    assert lanes.read(lane, "t5") is None
    assert is_given_up(inbox, lane)
    assert lanes.lane_of("t4") is lanes.lane_of("t5") is None
    assert lanes.read(lane, "t5") is None


def test_patience_has_a_least(inbox: FakeInbox) -> None:
    near = Lanes(inbox, DEPTH, 5.0, 0.0005, b"")  # type: ignore[arg-type]
    come(near, "t1", "t2")
    assert near.read(lane_for(near, "t3"), "t4") is None
    assert inbox.patience == 0.002


def rows(lanes: Lanes, start: int) -> int:
    """How many of a row of tags come before there is a lane."""
    for count in range(1, 2000):
        come(lanes, f"t{start + count}")
        if lanes.lane_of(f"t{start + count + 1}") is not None:
            return count
    return 0


def test_a_family_that_skips_tags_must_prove_itself_for_longer_each_time(
    lanes: Lanes, inbox: FakeInbox
) -> None:
    needed = []
    for start in range(0, 50_000, 10_000):
        needed.append(rows(lanes, start))
        following = start + needed[-1] + 2  # one is skipped
        lanes.read(lane_for(lanes, f"t{following}"), f"t{following}")
        assert lanes.lane_of(f"t{following}") is None
    assert needed == [2, 8, 32, 128, 512]
    assert rows(lanes, 60_000) == 512


def test_a_lane_that_lasted_is_trusted_again(lanes: Lanes, inbox: FakeInbox) -> None:
    assert rows(lanes, 0) == 2
    lanes.read(lane_for(lanes, "t4"), "t4")
    assert rows(lanes, 100) == 8
    lane = lane_for(lanes, "t109")
    for number in range(109, 109 + 32):
        lane.wait.answers = [b""]
        lanes.read(lane, f"t{number}")
        lanes.go_on(lane)
    assert lanes.read(lane, "t142") is None
    assert rows(lanes, 200) == 2


def test_many_distrusted_families_are_forgotten_in_turn(lanes: Lanes) -> None:
    for family in range(257):
        come(lanes, f"f{family * 2}x.1", f"f{family * 2}x.2")
        lanes.read(lane_for(lanes, f"f{family * 2}x.4"), f"f{family * 2}x.4")
    assert len(lanes._needed) == 256
    assert ("f0x.", "") not in lanes._needed


def test_eight_families_have_lanes_and_only_an_idle_one_makes_room(
    lanes: Lanes, inbox: FakeInbox
) -> None:
    for family in "abcdefghi":
        come(lanes, f"{family}1", f"{family}2")
    assert [bool(lanes.lane_of(f"{family}3")) for family in "abcdefghi"] == [True] * 8 + [False]
    idle = lane_for(lanes, "c3")
    idle.wait.answers = [None] * DEPTH
    for number in range(3, 3 + DEPTH):
        lanes.read(idle, f"c{number}")
    come(lanes, "i3")
    assert lane_for(lanes, "i4")
    assert is_given_up(inbox, idle)
    assert all(lanes.lane_of(f"{family}3") for family in "abdefgh")


def test_an_idle_lane_of_the_family_is_opened_anew(lanes: Lanes, inbox: FakeInbox) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    come(lanes, "t3")  # another thread brought it: the lane goes on
    assert lane_for(lanes, "t4") is lane
    lane.wait.answers = [None] * DEPTH
    for number in range(3, 3 + DEPTH):
        lanes.read(lane, f"t{number}")
    come(lanes, "t4")
    assert is_given_up(inbox, lane)
    assert lane_for(lanes, "t5") is not lane


def test_closing_gives_up_all_and_opens_none(lanes: Lanes, inbox: FakeInbox) -> None:
    come(lanes, "a1", "a2", "b1", "b2")
    both = lane_for(lanes, "a3"), lane_for(lanes, "b3")
    lanes.close()
    assert all(is_given_up(inbox, lane) for lane in both)
    assert lanes.lane_of("a3") is lanes.lane_of("b3") is None
    for lane in both:
        lanes.go_on(lane)
        assert len(lane.wait.posted) == DEPTH
    come(lanes, "a3", "c1", "c2")
    assert len(inbox.waits) == 2


def test_a_lane_that_is_being_read_is_ended_by_its_reader(lanes: Lanes, inbox: FakeInbox) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    with lane.lock:
        lanes.close()
        assert lane.wait.interrupted
        assert not lane.wait.disconnected
        assert lanes.read(lane, "t3") is None
    assert is_given_up(inbox, lane)


@pytest.mark.parametrize("error", [BrokerUnreachable("cut"), Interrupted()])
def test_a_read_that_fails_gives_the_lane_up(
    lanes: Lanes, inbox: FakeInbox, error: Exception
) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    lane.wait.answers = [error]
    with pytest.raises(type(error)):
        lanes.read(lane, "t3")
    assert is_given_up(inbox, lane)
    assert lanes.lane_of("t4") is None


def test_a_post_that_fails_gives_the_lane_up(lanes: Lanes, inbox: FakeInbox) -> None:
    come(lanes, "t1", "t2")
    lane = lane_for(lanes, "t3")
    lane.wait.answers = [b""]
    lanes.read(lane, "t3")
    inbox.is_away = True
    lanes.go_on(lane)
    assert is_given_up(inbox, lane)
    assert lanes.lane_of("t4") is None


def test_no_lane_where_there_is_no_connection(lanes: Lanes, inbox: FakeInbox) -> None:
    def fails() -> None:
        raise BrokerUnreachable("away")

    inbox.while_connecting = fails
    come(lanes, "t1", "t2")
    assert lanes.lane_of("t3") is None
    assert inbox.released == inbox.waits
    inbox.is_closed = True
    come(lanes, "t3")
    assert lanes.lane_of("t4") is None


def test_a_close_while_a_lane_connects(lanes: Lanes, inbox: FakeInbox) -> None:
    inbox.while_connecting = lanes.close
    come(lanes, "t1", "t2")
    assert lanes.lane_of("t3") is None
    assert inbox.released == inbox.waits
