"""Any input in any state: a legal state results, or one error and a legal state.

One machine gives a single `Delivery` whatever its interface allows, sense or none. The other
joins two over a broker that may lose, double and reorder, and in the end lets them finish.
"""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from redislink.errors import PeerError, RedisLinkError
from redislink.protocol.delivery import Delivery, Leftover, Push, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Encoding,
    Fin,
    Heartbeat,
    Probe,
    Says,
)
from redislink.protocol.received import ReceivedNumbers
from redislink.protocol.states import TABLE, State
from tests.protocol.pair import tag_of
from tests.protocol.simulation import kept_internally

TIMING = Timing(window_bytes=600, chunk_bytes=40)
BOUND = 2 * max(TIMING.window_bytes, TIMING.chunk_bytes + 128)
OVER = (State.CLOSED, State.FAILED)

TAGS = st.sampled_from(["a", "b", "c"])
SIZES = st.sampled_from([0, 1, 40, 41, 200, 1000])
SECONDS = st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0, 3.0, 10.0, 40.0])
LUCK = st.integers(0, 9)
"""Most runs would be short, did each call that ends a conversation do so."""
NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, (1 << 63) - 1))


@st.composite
def ack_states(draw) -> AckState:
    """Of the numbers that one to thirty frames may have, or of any."""
    numbers = ReceivedNumbers()
    for number in draw(st.lists(st.integers(1, 30), max_size=8)):
        numbers.add(number)
    ack = numbers.ack_state(draw(st.sampled_from([0, 0, 0, 1, 2])))
    if draw(st.integers(0, 9)) == 0:
        return AckState(draw(NUMBERS))
    return ack


@st.composite
def data_frames(draw) -> Data:
    part = draw(st.integers(0, 3))
    seq = part + draw(st.one_of(st.integers(1, 10), st.integers(1, 1 << 60)))
    previous = draw(st.one_of(st.just(0), st.integers(0, seq - part - 1)))
    parts = part + draw(st.integers(1, 3))
    acked = draw(ack_states()).cumulative
    return Data(seq, part, parts, previous, draw(st.sampled_from(Encoding)), acked)


CONTROL_FRAMES = st.one_of(
    st.builds(Ack, ack_states(), st.sampled_from([0, 1, 5])),
    st.builds(
        Probe,
        st.lists(TAGS, min_size=1, max_size=3).map(tuple),
        ack_states(),
        st.sampled_from(Says),
    ),
    st.builds(Heartbeat, ack_states(), st.sampled_from([0, 1, 60_000, 86_400_000])),
    st.builds(Fin, NUMBERS, ack_states(), st.booleans()),
)


class OneDelivery(RuleBasedStateMachine):
    """Everything that its interface allows, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.delivery = Delivery("bob", TIMING, 0.0)
        self.given: list[Push] = []
        self.waits: list[str] = []
        self.last_state = State.OPEN
        self.last_failure: PeerError | None = None

    # -- what comes ------------------------------------------------------------------------

    @rule(tag=TAGS, size=SIZES)
    def send(self, tag, size):
        try:
            self.delivery.send(tag, bytes(size), self.now)
        except RedisLinkError:
            assert self.delivery.state is not State.OPEN

    @rule(tag=TAGS, frame=data_frames(), size=SIZES)
    def receive_data(self, tag, frame, size):
        self._receive(lambda: self.delivery.receive_data(tag, frame, bytes(size), self.now))

    @rule(tag=TAGS, seq=st.integers(1, 30), acked=NUMBERS, size=SIZES)
    def receive_whole(self, tag, seq, acked, size):
        whole = (seq, Encoding.RAW, acked, bytes(size))
        self._receive(lambda: self.delivery.receive_whole(tag, whole, self.now))

    @rule(frame=CONTROL_FRAMES)
    def receive_control(self, frame):
        in_order = bool(frame.ack.cumulative % 2)
        self._receive(lambda: self.delivery.receive_control(frame, self.now, in_order=in_order))

    @rule(frame=st.one_of(CONTROL_FRAMES, data_frames()))
    def receive_on_the_wrong_list(self, frame):
        if isinstance(frame, Data):
            self._receive(lambda: self.delivery.receive_control(frame, self.now))
        else:
            self._receive(lambda: self.delivery.receive_data("a", frame, b"", self.now))

    @rule(reason=st.text(max_size=10), luck=LUCK)
    def receive_abort(self, reason, luck):
        if luck == 0:
            self.delivery.receive_control(Abort(reason), self.now)

    def _receive(self, call) -> None:
        before = self._picture()
        try:
            call()
        except RedisLinkError:
            assert self._picture() == before, "an error that changed something"

    def _picture(self) -> object:
        d = self.delivery
        return (
            d.state,
            d.failure,
            d.last_heard,
            d.next_timeout(),
            d.unacked_bytes,
            d.in_flight_bytes,
            d._receiving.received.cumulative,
            list(d._receiving.received._starts),
            len(d.unpushed),
        )

    @rule(tag=TAGS)
    def ask_for_an_ack_of_all(self, tag):
        if self.delivery.state not in OVER:
            ack = AckState(self.delivery._sending.last_seq)
            self.delivery.receive_control(Probe((tag,), ack), self.now)

    # -- what the party does ---------------------------------------------------------------

    @rule(tag=TAGS)
    def take(self, tag):
        peeked = self.delivery.peek(tag)
        assert self.delivery.take(tag) == peeked

    @rule(tag=TAGS)
    def wait(self, tag):
        self.delivery.wait(tag, self.now)
        self.waits.append(tag)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def unwait(self, data):
        tag = data.draw(st.sampled_from(self.waits))
        self.delivery.unwait(tag)
        self.waits.remove(tag)

    @rule(tag=TAGS, says=st.sampled_from([Says.LOST, Says.MISSES]))
    def complain(self, tag, says):
        (self.delivery.lost if says is Says.LOST else self.delivery.misses)(tag, self.now)

    @rule(tag=TAGS)
    def look(self, tag):
        assert "bob was last heard" in self.delivery.describe_wait(tag, self.now)
        try:
            self.delivery.check_can_receive(tag, self.now)
        except RedisLinkError:
            assert self.delivery.state in (*OVER, State.PEER_CLOSED)

    @rule()
    def ask_ack(self):
        assert self.delivery.ask_ack(self.now) > 0

    @rule(seconds=st.sampled_from([-1.0, 0.0, 60.0, 1e9]))
    def announce_silence(self, seconds):
        self.delivery.announce_silence(seconds, self.now)

    @rule(luck=LUCK)
    def close(self, luck):
        if luck < 2:
            self.delivery.close(self.now)
            assert self.delivery.state not in (State.OPEN, State.PEER_CLOSED)

    @rule(luck=LUCK)
    def abort(self, luck):
        if luck == 0:
            self.delivery.abort("out of luck")
            assert self.delivery.state in OVER

    @rule(luck=LUCK)
    def restarted(self, luck):
        if luck == 0:
            self.delivery.restarted()

    # -- what the broker says --------------------------------------------------------------

    @rule()
    def push(self):
        self.given += [push for push in self.delivery.pushes() if isinstance(push, Push)]

    @precondition(lambda self: self.given)
    @rule(data=st.data(), takes=st.booleans())
    def reply(self, data, takes):
        """To any push, also one that was replied to before."""
        push = data.draw(st.sampled_from(self.given[-20:]))
        if takes:
            self.delivery.confirm(push, self.now)
        else:
            self.delivery.refused(push, self.now)

    @rule()
    def reconnected(self):
        self.delivery.reconnected(self.now)

    @rule()
    def read_anew(self):
        self.delivery.read_anew(self.now)

    # -- time ------------------------------------------------------------------------------

    @rule(seconds=SECONDS)
    def time_goes_by(self, seconds):
        self.now += seconds

    @rule(seconds=SECONDS)
    def tick(self, seconds):
        self.now += seconds
        self.delivery.tick(self.now)
        assert set(self.delivery.overdue(self.now)) <= set(self.waits)
        due = self.delivery.next_timeout()
        assert due is None or due > self.now

    @precondition(lambda self: self.delivery.next_timeout() is not None)
    @rule()
    def tick_when_due(self):
        self.now = max(self.now, self.delivery.next_timeout())
        self.tick(0.0)

    @rule(found_empty=st.booleans())
    def listen(self, found_empty):
        if found_empty:
            self.delivery.listened(self.now)
        else:
            self.delivery.not_listening(self.now)

    # -- what always holds -----------------------------------------------------------------

    @invariant()
    def the_state_is_a_legal_one(self):
        state = self.delivery.state
        assert state is self.last_state or state in TABLE[self.last_state].values()
        self.last_state = state

    @invariant()
    def a_failure_is_final(self):
        failure = self.delivery.failure
        if self.last_failure is not None:
            assert failure is self.last_failure
        if failure is not None:
            assert self.delivery.state is State.FAILED
        self.last_failure = failure

    @invariant()
    def at_most_two_windows_are_under_way(self):
        assert 0 <= self.delivery.in_flight_bytes <= BOUND

    @invariant()
    def the_books_balance(self):
        d = self.delivery._sending
        chunks = d._unacked.values()
        flying = [chunk for chunk in chunks if chunk.account is not None]
        assert d.in_flight_bytes == sum(chunk.size for chunk in flying)
        assert all(chunk.queued for chunk in chunks if chunk.account is None)
        assert {seq for mine in d._by_tag.values() for seq in mine} == d._unacked.keys()
        assert all(d._by_tag.values())
        for tags in (d._waited_for.keys(), d._to_clear, d._pushed_twice):
            assert tags <= d._by_tag.keys()
        assert len(d._queue) <= len(set(d._queue)) <= d.last_seq

    @invariant()
    def over_is_over(self):
        if self.delivery.state in OVER:
            assert self.delivery.next_timeout() is None
            assert self.delivery.in_flight_bytes == self.delivery.unacked_bytes == 0

    def teardown(self):
        """When all is acked, nothing is kept for it."""
        delivery = self.delivery
        for tag in self.waits:
            delivery.unwait(tag)
        if delivery.state in (State.OPEN, State.CLOSING):
            delivery.receive_control(Ack(AckState(delivery._sending.last_seq)), self.now)
            delivery.tick(self.now + 100)
            assert delivery.all_acked
        of_receiving = {"tags", "ranges"}
        given_up = {"_chunks_left"} if delivery.state is not State.OPEN else set()
        assert kept_internally(delivery).keys() <= of_receiving | given_up


class TwoDeliveries(RuleBasedStateMachine):
    """Two parties, and a broker that hypothesis may let fail in any way."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.parties = {
            "alice": Delivery("bob", TIMING, 0.0),
            "bob": Delivery("alice", TIMING, 0.0),
        }
        self.lists: dict[tuple[str, str | None], deque] = defaultdict(deque)
        self.sent: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.taken: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.count = 0

    NAMES = st.sampled_from(["alice", "bob"])

    @initialize(name=NAMES)
    def begin(self, name):
        self.send(name, "a", 200)

    @rule(name=NAMES, tag=TAGS, size=SIZES)
    def send(self, name, tag, size):
        self.count += 1
        body = self.count.to_bytes(4, "little") + bytes(size)
        delivery = self.parties[name]
        delivery.send(tag, body, self.now)
        self.sent[delivery.peer, tag].append(body)

    @rule(name=NAMES, fate=st.sampled_from(["taken", "taken", "taken", "refused", "lost", "mute"]))
    def push(self, name, fate):
        """All that one of them wants pushed."""
        delivery = self.parties[name]
        for push in delivery.pushes():
            key = (delivery.peer, tag_of(push))
            if isinstance(push, Leftover):
                self.lists[key].clear()
                continue
            if push.clear:
                self.lists[key].clear()
            if fate in ("taken", "mute"):
                self.lists[key].append((push.frame, bytes(push.body)))
            if fate == "refused":
                delivery.refused(push, self.now)
            elif fate != "mute":
                delivery.confirm(push, self.now)

    @rule(name=NAMES, tag=TAGS, lost=st.booleans())
    def pop(self, name, tag, lost):
        if self.lists[name, tag]:
            frame, body = self.lists[name, tag].popleft()
            if not lost:
                self.parties[name].receive_data(tag, frame, body, self.now)
        while (message := self.parties[name].take(tag)) is not None:
            self.taken[name, tag].append(message[0])

    @rule(name=NAMES, lost=st.booleans())
    def hear(self, name, lost):
        while self.lists[name, None]:
            frame, _ = self.lists[name, None].popleft()
            if not lost:
                self.parties[name].receive_control(frame, self.now)

    @rule(name=NAMES, tag=st.one_of(st.none(), TAGS), how=st.sampled_from(["x2", "turn", "clear"]))
    def fault(self, name, tag, how):
        elements = self.lists[name, tag]
        if how == "x2":
            elements.extend(list(elements))
        elif how == "turn":
            elements.reverse()
        else:
            elements.clear()

    @rule(name=NAMES)
    def reconnect(self, name):
        self.parties[name].reconnected(self.now)

    @rule(name=NAMES, tag=TAGS)
    def ask(self, name, tag):
        delivery = self.parties[name]
        delivery.wait(tag, self.now)
        delivery.misses(tag, self.now)
        delivery.tick(self.now)
        delivery.unwait(tag)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 5.0]))
    def time_goes_by(self, seconds):
        self.now += seconds
        for delivery in self.parties.values():
            delivery.tick(self.now)

    @invariant()
    def what_was_taken_was_sent(self):
        for key, bodies in self.taken.items():
            assert bodies == self.sent[key][: len(bodies)]

    @invariant()
    def at_most_two_windows_are_under_way(self):
        for delivery in self.parties.values():
            assert delivery.in_flight_bytes <= BOUND

    def teardown(self):
        """Nothing fails any more: everything arrives, and all of it is forgotten."""
        for name in self.parties:
            self.reconnect(name)
        for delivery in self.parties.values():
            for tag in ("a", "b", "c"):
                delivery.wait(tag, self.now)
        for _ in range(400):
            self._carry()
            if self.taken == self.sent:
                break
            self.time_goes_by(0.5)
        assert {key: bodies for key, bodies in self.taken.items() if bodies} == dict(self.sent)
        for delivery in self.parties.values():
            for tag in ("a", "b", "c"):
                delivery.unwait(tag)
            delivery.close(self.now)
        self._carry()
        assert {delivery.state for delivery in self.parties.values()} == {State.CLOSED}
        assert [kept_internally(delivery) for delivery in self.parties.values()] == [{}, {}]

    def _carry(self) -> None:
        """Until nothing is on its way; pushes beget pushes."""
        for _ in range(200):
            for name in self.parties:
                self.push(name, "taken")
            if not any(self.lists.values()):
                return
            for name in self.parties:
                for tag in ("a", "b", "c"):
                    while self.lists[name, tag]:
                        self.pop(name, tag, lost=False)
                self.hear(name, lost=False)


OneDelivery.TestCase.settings = settings(max_examples=60, stateful_step_count=60, print_blob=True)
TwoDeliveries.TestCase.settings = settings(max_examples=50, stateful_step_count=60, print_blob=True)
TestOneDelivery = OneDelivery.TestCase
TestTwoDeliveries = TwoDeliveries.TestCase
