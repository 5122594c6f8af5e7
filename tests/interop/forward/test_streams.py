"""The protocol of streams: two sides joined in memory, and sides that break its rules."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from redislink.errors import ConfigError, FrameError, UsageError
from redislink.interop.forward import streams as module
from redislink.interop.forward.streams import (
    ALL_QUEUED,
    EXTRA_CREDIT,
    FIRST_CREDIT,
    IN_TRANSIT,
    MOST_CREDIT,
    MOST_QUEUED,
    MOST_STREAMS,
    PACKET,
    VERSION,
    Broken,
    Came,
    Ended,
    Event,
    HasRoom,
    Kind,
    Opened,
    Reason,
    Streams,
)


def frame(kind: int, stream: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack(">BQI", kind, stream, number) + body


START = frame(Kind.START, 0, VERSION)


def opening(stream: int, name: bytes = b"web") -> bytes:
    return frame(Kind.OPEN, stream, len(name), name)


def data(stream: int, body: bytes) -> bytes:
    return frame(Kind.DATA, stream, len(body), body)


def receive(streams: Streams, packet: bytes) -> list[Event]:
    """All events; the bytes of `Came` are copied, as they are valid for a while only."""
    found: list[Event] = []
    for event in streams.receive_untrusted(packet):
        if isinstance(event, Came):
            event = Came(event.stream, memoryview(bytes(event.data)))
        found.append(event)
    return found


def started(*frames: bytes, is_first: bool = True) -> Streams:
    """A side whose peer has said START and these frames; what it says to them is thrown away."""
    streams = Streams(is_first=is_first)
    receive(streams, START + b"".join(frames))
    streams.next_packet()
    return streams


class Pair:
    """Two sides, and the packets between them."""

    def __init__(self) -> None:
        self.sides = (Streams(is_first=True), Streams(is_first=False))
        self.under_way: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.events: tuple[list[Event], list[Event]] = ([], [])

    def send(self, side: int) -> None:
        while (packet := self.sides[side].next_packet()) is not None:
            self.under_way[1 - side].append(packet)
        self.events[side].extend(self.sides[side].rooms())

    def arrive(self, side: int) -> None:
        if self.under_way[side]:
            packet = self.under_way[side].popleft()
            self.events[side].extend(receive(self.sides[side], packet))

    def settle(self) -> None:
        """Exchange packets until both have nothing more to say."""
        for side in (0, 1):
            self.send(side)
        while any(self.under_way):
            for side in (0, 1):
                self.arrive(side)
                self.send(side)

    def take_events(self, side: int) -> list[Event]:
        found = list(self.events[side])
        self.events[side].clear()
        return found

    def bytes_of(self, side: int, stream: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events[side]
            if isinstance(event, Came) and event.stream == stream
        )


class TestOneStream:
    def test_bytes_go_both_ways_and_each_way_ends_by_itself(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        alice.send(stream, b"question")
        alice.end(stream)
        pair.settle()
        assert pair.take_events(1) == [
            Opened(stream, "web"), Came(stream, memoryview(b"question")), Ended(stream),
        ]  # fmt: skip
        bob.taken(stream, len(b"question"))
        bob.send(stream, b"answer")
        pair.settle()
        assert pair.take_events(0) == [Came(stream, memoryview(b"answer"))]
        bob.end(stream)
        pair.settle()
        assert pair.take_events(0) == [Ended(stream)]
        assert (alice.count, bob.count) == (1, 1), "alice has not taken the answer"
        alice.taken(stream, len(b"answer"))
        pair.settle()
        assert (alice.count, bob.count) == (0, 0)

    @pytest.mark.parametrize("reason", Reason)
    def test_a_reset_is_told_once_and_forgets_the_stream(self, reason: Reason) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        alice.send(stream, b"lost")
        pair.settle()
        pair.take_events(1)
        alice.send(stream, b"never sent")
        bob.reset(stream, reason)
        pair.settle()
        assert pair.take_events(0) == [Broken(stream, reason)]
        assert pair.take_events(1) == []
        assert (alice.count, bob.count) == (0, 0)
        for side in pair.sides:  # late calls of a program's socket do nothing
            side.reset(stream)
            side.end(stream)
            side.taken(stream, 4)
            assert side.room(stream) == 0
            assert side.next_packet() is None

    def test_both_may_reset_at_once(self) -> None:
        pair = Pair()
        stream = pair.sides[0].open("web")
        pair.settle()
        pair.take_events(1)
        for side in pair.sides:
            side.reset(stream)
        pair.settle()
        assert pair.events == ([], [])
        assert [side.count for side in pair.sides] == [0, 0]

    def test_what_comes_before_the_other_side_knows_of_a_reset_is_dropped(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        pair.settle()
        pair.take_events(1)
        alice.send(stream, bytes(FIRST_CREDIT))
        alice.end(stream)
        pair.send(0)
        bob.reset(stream)
        pair.settle()
        assert pair.take_events(1) == []
        assert bob._untold == FIRST_CREDIT, "it counts as taken in all the same"

    def test_the_two_sides_number_apart(self) -> None:
        pair = Pair()
        numbers = [side.open("web") for side in pair.sides for _ in range(3)]
        pair.settle()
        assert numbers == [0, 2, 4, 1, 3, 5]
        assert [event.stream for event in pair.events[1] if isinstance(event, Opened)] == [0, 2, 4]

    def test_wrong_use_is_an_error(self) -> None:
        streams = started()
        with pytest.raises(ConfigError):
            streams.open("no name")
        stream = streams.open("web")
        for wrong in (b"", bytes(FIRST_CREDIT + 1)):
            with pytest.raises(UsageError):
                streams.send(stream, wrong)
        with pytest.raises(UsageError):
            streams.taken(stream, 1)
        streams.end(stream)
        with pytest.raises(UsageError):
            streams.send(stream, b"after the end")


class TestFlow:
    def test_a_stream_that_nobody_reads_stops_and_the_others_go_on(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stuck, other = alice.open("stuck"), alice.open("other")
        alice.send(stuck, bytes(FIRST_CREDIT))
        pair.settle()
        assert alice.room(stuck) == 0
        for _ in range(300):
            alice.send(other, bytes(alice.room(other)))
            pair.settle()
            bob.taken(other, len(pair.bytes_of(1, other)))
            pair.take_events(1)
            pair.settle()
        assert alice.room(stuck) == 0
        bob.taken(stuck, FIRST_CREDIT)
        pair.settle()
        assert HasRoom(stuck) in pair.events[0]
        assert alice.room(stuck) > FIRST_CREDIT // 2

    def test_credit_grows_with_a_program_that_reads_up_to_a_bound(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        held = []
        for _ in range(12):
            while room := alice.room(stream):
                alice.send(stream, bytes(room))
                pair.settle()
            held.append(len(pair.bytes_of(1, stream)))
            bob.taken(stream, held[-1])
            pair.take_events(1)
            pair.settle()
        assert held[0] == FIRST_CREDIT
        assert held[-1] == max(held) == MOST_CREDIT

    def test_credit_does_not_grow_with_a_program_that_leaves_some(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        for _ in range(20):
            while room := alice.room(stream):
                alice.send(stream, bytes(room))
                pair.settle()
            bob.taken(stream, FIRST_CREDIT - 1)
            pair.settle()
        assert bob._streams[stream].window == FIRST_CREDIT

    def test_the_credit_of_all_streams_is_bounded_and_given_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        extra = 1 << 20
        monkeypatch.setattr(module, "EXTRA_CREDIT", extra)
        pair = Pair()
        alice, bob = pair.sides
        opened = [alice.open("web") for _ in range(20)]
        for _ in range(10):
            for stream in opened:
                while room := alice.room(stream):
                    alice.send(stream, bytes(room))
                    pair.settle()
                bob.taken(stream, bob._streams[stream].untaken)
            pair.take_events(1)
            pair.settle()
        more = [bob._streams[stream].window - FIRST_CREDIT for stream in opened]
        assert sum(more) == extra - bob._extra_left
        assert extra // 2 < sum(more) <= extra
        assert sum(each > 0 for each in more) > 5, "the first do not get it all"
        for stream in opened:
            alice.reset(stream)
        pair.settle()
        assert bob._extra_left == extra

    def test_it_is_busy_while_much_is_on_its_way_and_little_waits(self) -> None:
        streams = started()
        numbers = [streams.open("web") for _ in range(IN_TRANSIT // FIRST_CREDIT)]
        busy = []
        for number in numbers:
            streams.send(number, bytes(FIRST_CREDIT))
            streams.next_packet()
            busy.append(streams.is_busy)
        quarter = len(numbers) // 4
        assert busy == [False] * quarter + [True] * (len(numbers) - quarter)
        receive(streams, frame(Kind.TAKEN, 0, IN_TRANSIT))
        assert not streams.is_busy

    def test_data_on_its_way_is_bounded_for_all_streams_together(self) -> None:
        streams = started()
        numbers = [streams.open("web") for _ in range(2 * IN_TRANSIT // FIRST_CREDIT)]
        sent = 0
        for number in numbers:
            streams.send(number, bytes(FIRST_CREDIT))
        while (packet := streams.next_packet()) is not None:
            sent += len(packet)
        assert IN_TRANSIT <= sent < 1.1 * IN_TRANSIT
        receive(streams, frame(Kind.TAKEN, 0, IN_TRANSIT))
        assert len(streams.next_packet() or b"") >= PACKET

    def test_what_waits_to_be_sent_is_bounded_for_all_streams_together(self) -> None:
        streams = started()
        numbers = [streams.open("web") for _ in range(MOST_STREAMS)]
        streams.next_packet()
        grants = b"".join(frame(Kind.CREDIT, number, MOST_CREDIT) for number in numbers)
        receive(streams, grants)
        queued = 0
        for number in numbers:
            room = streams.room(number)
            assert room <= MOST_QUEUED
            if room:
                streams.send(number, bytes(room))
                queued += room
        assert queued == ALL_QUEUED
        found: set[int] = set()
        for _ in range(4):
            while streams.next_packet() is not None:
                found |= {event.stream for event in streams.rooms()}
            receive(streams, frame(Kind.TAKEN, 0, IN_TRANSIT))
        assert found == set(numbers[ALL_QUEUED // MOST_QUEUED :]), "those that were crowded out"

    def test_streams_take_turns(self) -> None:
        streams = started()
        busy, quick = streams.open("busy"), streams.open("quick")
        receive(streams, frame(Kind.CREDIT, busy, MOST_CREDIT))
        for _ in range(MOST_QUEUED // (64 << 10)):
            streams.send(busy, bytes(64 << 10))
        streams.send(quick, b"soon")
        packet = streams.next_packet()
        assert packet is not None
        assert packet.index(b"soon") < (64 << 10) + 200

    def test_an_end_passes_although_no_data_may(self) -> None:
        streams = started()
        numbers = [streams.open("web") for _ in range(1 + IN_TRANSIT // FIRST_CREDIT)]
        for number in numbers[:-1]:
            streams.send(number, bytes(FIRST_CREDIT))
        while streams.next_packet() is not None:
            pass
        streams.end(numbers[-1])
        assert streams.next_packet() == frame(Kind.END, numbers[-1], 0)

    def test_taking_in_is_told_with_credit_and_never_answered(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        stream = alice.open("web")
        pair.settle()
        count = 0
        for _ in range(IN_TRANSIT // 1024):
            alice.send(stream, bytes(1024))
            pair.send(0)
            pair.arrive(1)
            bob.taken(stream, 1024)
            while (packet := bob.next_packet()) is not None:
                count += 1
                receive(alice, packet)
        assert count <= IN_TRANSIT // (FIRST_CREDIT // 2), "it goes with what gives credit"
        pair.settle()


class TestManyStreams:
    def test_no_more_than_so_many_at_once(self) -> None:
        pair = Pair()
        alice, bob = pair.sides
        numbers = [alice.open("web") for _ in range(MOST_STREAMS)]
        pair.settle()
        assert alice.is_full
        assert not bob.is_full
        with pytest.raises(UsageError):
            alice.open("web")
        bob.reset(numbers[0])
        pair.settle()
        assert not alice.is_full
        alice.open("web")
        pair.settle()
        with pytest.raises(FrameError):
            receive(bob, opening(2 * MOST_STREAMS + 2))

    def test_a_stream_that_is_over_for_one_side_alone_still_counts(self) -> None:
        """Else a program that does not read would let them pile up."""
        pair = Pair()
        alice, bob = pair.sides
        for _ in range(MOST_STREAMS):
            stream = alice.open("web")
            alice.send(stream, b"x")
            alice.end(stream)
            bob_knows = len(pair.events[1])
            pair.settle()
            assert len(pair.events[1]) > bob_knows
            bob.end(stream)
        pair.settle()
        assert alice.is_full
        for stream in range(0, 2 * MOST_STREAMS, 2):
            bob.taken(stream, 1)
        pair.settle()
        assert (alice.count, bob.count) == (0, 0)


class _Program:
    """What one program does with its stream, and what it must see."""

    def __init__(self, rng: random.Random) -> None:
        self.to_send = rng.randbytes(rng.choice((0, 1, 1000, 100_000, 300_000)))
        self.sent = 0
        self.got = bytearray()
        self.untaken = 0
        self.has_ended = False
        self.saw_end = False
        self.broken = False


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_things_keeps_the_promises(seed: int) -> None:
    """Both ends of all streams do what they like; packets arrive when they like, in order."""
    rng = random.Random(seed)
    pair = Pair()
    ends: tuple[dict[int, _Program], dict[int, _Program]] = ({}, {})
    opened = 0

    def note(side: int) -> None:
        for event in pair.take_events(side):
            if isinstance(event, Opened):
                ends[side][event.stream] = _Program(rng)
                continue
            program = ends[side].get(event.stream)
            if isinstance(event, HasRoom):
                continue
            assert program is not None
            assert not program.broken
            if isinstance(event, Came):
                assert not program.saw_end
                program.got += event.data
                program.untaken += len(event.data)
                assert program.untaken <= MOST_CREDIT
            elif isinstance(event, Ended):
                assert not program.saw_end
                program.saw_end = True
            else:
                program.broken = True

    def act(side: int, stream: int, *, may_reset: bool) -> None:
        streams, program = pair.sides[side], ends[side][stream]
        if program.broken:
            return
        choice = rng.random()
        if may_reset and choice < 0.02:
            streams.reset(stream)
            program.broken = True
        elif choice < 0.5:
            room = min(streams.room(stream), len(program.to_send) - program.sent)
            if room and not program.has_ended:
                count = rng.randint(1, room)
                streams.send(stream, program.to_send[program.sent : program.sent + count])
                program.sent += count
            elif program.sent == len(program.to_send) and not program.has_ended:
                streams.end(stream)
                program.has_ended = True
        elif program.untaken:
            count = rng.randint(1, program.untaken)
            streams.taken(stream, count)
            program.untaken -= count

    def step(*, may_reset: bool) -> None:
        side = rng.randrange(2)
        rng.choice((pair.send, pair.arrive))(side)
        note(side)
        for _ in range(3):
            if ends[side]:
                act(side, rng.choice(list(ends[side])), may_reset=may_reset)
        for streams in pair.sides:
            assert 0 <= streams._in_transit <= IN_TRANSIT
            assert 0 <= streams._all_queued <= ALL_QUEUED
            assert streams._extra_left >= 0

    for _ in range(400):
        if opened < 12 and rng.random() < 0.1:
            side = rng.randrange(2)
            ends[side][pair.sides[side].open("web")] = _Program(rng)
            opened += 1
        step(may_reset=True)
    for _ in range(20_000):
        if not any(streams.count for streams in pair.sides):
            break
        step(may_reset=False)
    pair.settle()
    assert [streams.count for streams in pair.sides] == [0, 0]
    assert all(streams._extra_left == EXTRA_CREDIT for streams in pair.sides)
    assert all(streams._all_queued == 0 for streams in pair.sides)
    for stream, mine in ends[0].items():
        theirs = ends[1][stream]
        assert mine.broken == theirs.broken or not mine.broken or not theirs.broken
        for source, sink in ((mine, theirs), (theirs, mine)):
            assert source.to_send.startswith(bytes(sink.got)), "what came is what was sent"
            if sink.saw_end and not source.broken:
                assert bytes(sink.got) == source.to_send, "an end comes after everything"


HOSTILE = {
    "nothing": b"",
    "half a header": START + b"\x03",
    "no start": opening(1),
    "another version": frame(Kind.START, 0, VERSION + 1),
    "a start of a stream": frame(Kind.START, 1, VERSION),
    "two starts": START + START,
    "a kind that is none": START + frame(99, 1, 0),
    "kind 0": START + opening(1) + frame(0, 1, 0),
    "a number of the other side": START + opening(0),
    "a number left out": START + opening(3),
    "a number twice": START + opening(1) + opening(1),
    "a name that is none": START + opening(1, b"../web"),
    "an empty name": START + opening(1, b""),
    "a name in another script": START + opening(1, "wéb".encode()),
    "a name cut short": START + frame(Kind.OPEN, 1, 10, b"web"),
    "data cut short": START + opening(1) + frame(Kind.DATA, 1, 10, b"x"),
    "data of no stream": START + data(1, b"x"),
    "no data": START + opening(1) + data(1, b""),
    "more than may come": START + opening(1) + data(1, bytes(FIRST_CREDIT)) + data(1, b"x"),
    "data after the end": START + opening(1) + frame(Kind.END, 1, 0) + data(1, b"x"),
    "two ends": START + opening(1) + 2 * frame(Kind.END, 1, 0),
    "an end with a number": START + opening(1) + frame(Kind.END, 1, 1),
    "done before the end": START + opening(1) + frame(Kind.DONE, 1, 0),
    "a credit of nothing": START + opening(1) + frame(Kind.CREDIT, 1, 0),
    "credit without end": START + opening(1) + frame(Kind.CREDIT, 1, 0xFFFFFFFF),
    "credit for no stream": START + frame(Kind.CREDIT, 1, 1),
    "a reason that is none": START + opening(1) + frame(Kind.RESET, 1, 77),
    "two resets": START + opening(1) + 2 * frame(Kind.RESET, 1, 0),
    "taken what was not sent": START + frame(Kind.TAKEN, 0, 1),
    "taken nothing": START + frame(Kind.TAKEN, 0, 0),
    "taken of a stream": START + opening(1) + frame(Kind.TAKEN, 1, 1),
    "far too long": START + bytes(2 << 20),
}


@pytest.mark.parametrize("packet", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_breaks_the_rules_is_one_error(packet: bytes) -> None:
    with pytest.raises(FrameError):
        receive(Streams(is_first=True), packet)


def test_bytes_of_any_kind_raise_nothing_else() -> None:
    rng = random.Random(4)
    good = START + opening(1) + data(1, b"abc") + frame(Kind.CREDIT, 1, 9) + frame(Kind.END, 1, 0)
    for _ in range(1500):
        packet = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            packet[rng.randrange(len(packet))] = rng.randrange(256)
        with contextlib.suppress(FrameError):
            receive(Streams(is_first=True), bytes(packet[: rng.randint(0, len(packet))]))


def test_a_packet_may_be_cut_between_frames_but_not_within() -> None:
    frames = [START, opening(1), data(1, b"abc"), frame(Kind.END, 1, 0)]
    whole = b"".join(frames)
    between = {sum(map(len, frames[:count])) for count in range(1, len(frames) + 1)}
    for size in range(len(whole) + 1):
        if size in between:
            receive(Streams(is_first=True), whole[:size])
        else:
            with pytest.raises(FrameError):
                receive(Streams(is_first=True), whole[:size])


_HERE: dict[str, Callable[[Streams], None]] = {
    "end": lambda streams: streams.end(1),
    "reset": lambda streams: streams.reset(1),
    "take": lambda streams: streams.taken(1, streams._streams[1].untaken),
}
_THERE = {
    "DATA": data(1, b"x"),
    "CREDIT": frame(Kind.CREDIT, 1, 1),
    "END": frame(Kind.END, 1, 0),
    "DONE": frame(Kind.DONE, 1, 0),
    "RESET": frame(Kind.RESET, 1, Reason.CUT),
    "OPEN": opening(1),
}


class _Rules:
    """The rules of one stream again, as a table of what may follow what."""

    def __init__(self) -> None:
        self.ended_here = self.last_here = self.ended_there = self.last_there = False
        self.untaken = 0

    @property
    def is_over(self) -> bool:
        return self.last_here and self.last_there

    def allows(self, what: str) -> bool:
        if what == "OPEN" or self.last_there:
            return False
        if what in ("DATA", "END"):
            return not self.ended_there
        return what != "DONE" or self.last_here or (self.ended_here and self.ended_there)

    def apply(self, what: str) -> None:
        if what == "reset":
            self.last_here = True
        elif what == "end":
            self.ended_here = True
        elif what == "take":
            self.untaken = 0
        elif what == "DATA":
            self.untaken += not self.last_here
        elif what == "END":
            self.ended_there = True
        elif what == "DONE":
            self.last_there = True
        elif what == "RESET":
            self.last_there = self.last_here = True
        if self.ended_here and self.ended_there and not self.untaken:
            self.last_here = True


def test_in_each_state_a_frame_is_right_or_is_one_error() -> None:
    """All rows of four things that happen to a stream, here or there."""
    seen: set[tuple[bool, ...]] = set()

    def follow(row: Iterable[str]) -> None:
        streams, rules = started(opening(1)), _Rules()
        for what in row:
            if what in _HERE:
                if what == "take" and not rules.untaken:
                    return
                if rules.last_there and not rules.is_over and what == "end":
                    return  # nobody is there to be told
                _HERE[what](streams)
            elif not rules.allows(what):
                with pytest.raises(FrameError):
                    receive(streams, _THERE[what])
                return
            else:
                receive(streams, _THERE[what])
            rules.apply(what)
            streams.next_packet()
            seen.add((rules.ended_here, rules.last_here, rules.ended_there, rules.last_there))
            assert streams.count == (not rules.is_over)
            if rules.is_over:
                return

    for row in itertools.product([*_HERE, *_THERE], repeat=4):
        follow(row)
    assert len(seen) > 9


def test_the_limits_fit_together() -> None:
    assert 2 * MOST_STREAMS * (2 * module._HEADER.size + 64) + PACKET < module._MOST_FRAMES_BYTES
    assert FIRST_CREDIT <= MOST_QUEUED <= PACKET <= IN_TRANSIT
