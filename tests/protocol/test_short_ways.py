"""The short ways of `Delivery` give what the long ways give, from any state, to the last field.

`Sending.send_at_once` beside `send_in_turn`, and `Delivery.receive_whole` beside `receive_data`.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol.delivery import Delivery, DeliveryStats, Leftover, Timing
from redislink.protocol.frame import Ack, AckState, Data, Encoding, Probe
from tests.protocol.pair import tag_of

TIMING = Timing(window_bytes=2000, chunk_bytes=300, least_chunk_bytes=100)
CHUNK_FIELDS = (
    *("tag", "body", "seq", "part", "parts", "previous", "encoding", "acked", "clear"),
    *("confirmed_at", "queued", "launched", "refused", "times_lost"),
)
TAGS = st.sampled_from("abc")
SIZES = st.sampled_from([0, 1, 64, 300, 301, 900])
ENCODINGS = st.sampled_from(Encoding)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), TAGS, SIZES, ENCODINGS),
        st.tuples(st.just("receive"), TAGS, st.integers(1, 12), st.integers(0, 6), ENCODINGS),
        st.tuples(st.just("in parts"), TAGS, st.integers(1, 12)),
        st.tuples(st.just("keep"), TAGS, st.integers(1, 12)),
        st.tuples(st.just("ack"), st.integers(0, 6), st.booleans()),
        st.tuples(st.just("probe"), TAGS),
        st.tuples(st.just("wait"), TAGS),
        st.tuples(st.just("refuse")),
        st.tuples(st.just("reconnect")),
        st.tuples(st.just("close")),
        st.tuples(st.just("time"), st.sampled_from([0.05, 0.5, 5.0])),
    ),
    max_size=25,
)


class Party:
    """A delivery that goes the short ways where it can, or never."""

    def __init__(self, *, short: bool) -> None:
        self._short = short
        self._now = 0.0
        self.delivery = Delivery("bob", TIMING, 0.0)
        self._given: list[object] = []
        self.shortcuts = 0

    def do(self, what: str, *arguments) -> object:
        """Do a step; gives all that can be seen of what came of it."""
        try:
            result = getattr(self, "_" + what.replace(" ", "_"))(*arguments)
        except FrameError as error:
            result = str(error)
        pushed = [
            push
            if isinstance(push, Leftover)
            else (tag_of(push), push.frame, push.body, push.clear)
            for push in self._push()
        ]
        return result, pushed, picture(self.delivery)

    def _push(self):
        pushes = self.delivery.pushes()
        self._given += [push for push in pushes if not isinstance(push, Leftover)]
        return pushes

    def _send(self, tag, size, encoding):
        delivery, body = self.delivery, bytes(size)
        if not delivery._sending.open:
            return None
        if not self._short:
            return delivery._sending.send_in_turn(tag, body, encoding, self._now)
        chunk = delivery.send_at_once(tag, body, encoding)
        if chunk is None:
            return delivery.send(tag, body, self._now, encoding)
        self.shortcuts += 1
        delivery.unpushed.append(chunk)
        return chunk.seq

    def _receive(self, tag, seq, acked, encoding):
        if self._short:
            return self.delivery.receive_whole(tag, (seq, encoding, acked, b"body"), self._now)
        frame = Data(seq, encoding=encoding, acked=acked)
        return self.delivery.receive_data(tag, frame, b"body", self._now, take=True)

    def _in_parts(self, tag, seq):
        return self.delivery.receive_data(tag, Data(seq, 0, 2), b"part", self._now)

    def _keep(self, tag, seq):
        return self.delivery.receive_data(tag, Data(seq), b"kept", self._now)

    def _ack(self, cumulative, wanted):
        self.delivery.receive_control(Ack(AckState(cumulative), wanted), self._now)

    def _probe(self, tag):
        self.delivery.receive_control(Probe((tag,), AckState(0)), self._now)

    def _wait(self, tag):
        self.delivery.wait(tag, self._now)

    def _refuse(self):
        if self._given:
            self.delivery.refused(self._given[-1], self._now)

    def _reconnect(self):
        self.delivery.reconnected(self._now)

    def _close(self):
        self.delivery.close(self._now)

    def _time(self, seconds):
        self._now += seconds
        self.delivery.tick(self._now)


def picture(delivery: Delivery) -> object:
    """Every field of a delivery and of its halves; what they share, once."""
    sending, receiving = delivery._sending, delivery._receiving
    plain = {
        (type(part).__name__, name): value.copy() if isinstance(value, set | list) else value
        for part in (delivery, sending, receiving)
        for name, value in vars(part).items()
        if isinstance(value, int | float | str | set | list | None) and name != "_unpushed"
    }
    chunks = [
        ([getattr(chunk, name) for name in CHUNK_FIELDS], _account(sending, chunk.account))
        for chunk in sending._unacked.values()
    ]
    tags = {tag: list(chunks) for tag, chunks in sending._by_tag.items()}
    received = receiving.received
    counts = [getattr(delivery.stats, name) for name in DeliveryStats.__slots__]
    return (
        *(plain, chunks, tags, list(sending._waited_for.items()), dict(sending._chunks_left)),
        *(sending._ahead.bytes, sending._asked_for.bytes, counts, receiving.kept_bytes),
        *(received.cumulative, list(received._starts), list(received._ends)),
        *(sorted(receiving._reassembly.tags), repr(receiving._waits), delivery.next_timeout()),
    )


def _account(sending, account) -> str:
    names = {id(sending._ahead): "ahead", id(sending._asked_for): "asked for", id(None): "none"}
    return names[id(account)]


@given(STEPS)
@example([("keep", "a", 1), ("receive", "a", 2, 0, Encoding.RAW)])
@example([("in parts", "a", 2), ("keep", "a", 1), ("receive", "a", 4, 0, Encoding.RAW)])
@example([("send", "a", 64, Encoding.RAW), ("send", "a", 64, Encoding.VALUE)])
def test_the_short_ways_give_what_the_long_ways_give(steps):
    short, long = Party(short=True), Party(short=False)
    for step in steps:
        assert short.do(*step) == long.do(*step), step


def test_the_short_ways_are_taken():
    """Else the test above would compare the long ways with themselves."""
    party = Party(short=True)
    for number in range(1, 4):
        party.do("send", "abc"[number - 1], 64, Encoding.VALUE)
        assert party.delivery._receiving.add_whole("t", number, 64, 0.0)
    assert party.shortcuts == 3


def test_what_every_message_touches_stays_small():
    """In CPython 3.11, writing to an object and calling its methods is faster up to there."""
    delivery = Delivery("bob", TIMING, 0.0)
    for part in (delivery, delivery._sending, delivery._receiving):
        assert len(vars(part)) <= 30
