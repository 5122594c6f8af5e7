"""Messages of any size, in chunks of any size, that come in any order."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError, UsageError
from redislink.protocol.chunking import (
    MAX_MESSAGE_BYTES,
    NOTHING,
    OVERHEAD,
    Reassembly,
    choose,
    count_parts,
    most_uncut,
    split,
)
from redislink.protocol.frame import MAX_PARTS, Data, Encoding
from redislink.protocol.received import ReceivedNumbers


class Huge(bytes):
    """Claims a size that no test can allocate."""

    def __new__(cls, size: int) -> "Huge":
        huge = super().__new__(cls)
        huge.size = size
        return huge

    def __len__(self) -> int:
        return self.size


def frames_of(tag: str, message: bytes, chunk: int, first: int, previous: int = 0):
    bodies = list(split(message, chunk))
    return [
        (tag, Data(first + part, part, len(bodies), previous), bytes(body))
        for part, body in enumerate(bodies)
    ]


def take_all(reassembly: Reassembly, tag: str) -> list[bytes]:
    messages = []
    while (peeked := reassembly.peek(tag)) is not None:
        assert reassembly.take(tag) == peeked
        messages.append(peeked[0])
    assert reassembly.take(tag) is None
    return messages


def feed(frames) -> tuple[Reassembly, ReceivedNumbers]:
    """As a delivery does: what came before is dropped."""
    reassembly, received = Reassembly(), ReceivedNumbers()
    for tag, frame, body in frames:
        if frame.seq not in received:
            reassembly.add(tag, frame, body, received)
            assert frame.seq in received
    return reassembly, received


@given(st.binary(max_size=300), st.integers(1, 320))
def test_split(body, chunk):
    chunks = [bytes(part) for part in split(body, chunk)]
    assert b"".join(chunks) == body
    assert len(chunks) == count_parts(len(body), chunk)
    assert all(len(part) == chunk for part in chunks[:-1])
    assert body == b"" or 1 <= len(chunks[-1]) <= chunk


def test_split_does_not_copy():
    body = bytes(1000)
    assert next(split(body, 1000)) is body
    assert all(part.obj is body for part in split(body, 300))


@pytest.mark.parametrize(
    ("size", "chunk"), [(MAX_MESSAGE_BYTES + 1, 1 << 20), (MAX_PARTS + 1, 1), (4 << 30, 4095)]
)
def test_too_large_a_message(size, chunk):
    with pytest.raises(UsageError, match=f"of {size} bytes is too large"):
        next(split(Huge(size), chunk))


def test_the_largest_message_is_not_too_large():
    assert count_parts(MAX_MESSAGE_BYTES, 4096) == MAX_PARTS
    assert count_parts(MAX_MESSAGE_BYTES, 1 << 20) == 4096


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_any_order_and_duplicates(messages, chunk, copies, rng):
    frames, first, previous = [], 1, 0
    for message in messages:
        made = frames_of("t", message, chunk, first, previous)
        frames += made * copies
        first, previous = first + len(made), first
    rng.shuffle(frames)
    reassembly, received = feed(frames)
    assert take_all(reassembly, "t") == messages
    assert received.cumulative == first - 1
    assert not reassembly.tags


@given(st.data())
def test_order_per_tag_with_acks_in_between(data):
    """A sender names the newest message on the tag that is not acked; acks come at any time.

    Whatever order frames then arrive in, each tag's messages come out as they were sent.
    """
    rng = data.draw(st.randoms(use_true_random=False))
    reassembly, received = Reassembly(), ReceivedNumbers()
    under_way, sent, taken = [], {"a": [], "b": []}, {"a": [], "b": []}
    unacked: dict[str, dict[int, int]] = {"a": {}, "b": {}}  # frame number: its message
    next_seq = 1

    def arrive():
        tag, frame, body = under_way.pop(rng.randrange(len(under_way)))
        reassembly.add(tag, frame, body, received)
        taken[tag] += take_all(reassembly, tag)

    for number in range(data.draw(st.integers(1, 12))):
        tag, body = rng.choice("ab"), bytes([number]) * rng.randrange(8)
        mine = unacked[tag]
        frames = frames_of(tag, body, 3, next_seq, mine[max(mine)] if mine else 0)
        mine.update(dict.fromkeys((frame.seq for _, frame, _ in frames), next_seq))
        next_seq += len(frames)
        under_way += frames
        sent[tag].append(body)
        for _ in range(rng.randrange(len(under_way) + 1)):
            arrive()
        if rng.random() < 0.5:
            for numbers in unacked.values():
                for seq in [seq for seq in numbers if seq in received]:
                    del numbers[seq]
    while under_way:
        arrive()
    assert taken == sent
    assert not reassembly.tags


@given(
    st.sampled_from(
        [
            Data(3, 1, 4),
            Data(3, 1, 3, previous=1),
            Data(3, 1, 3, encoding=Encoding.VALUE),
        ]
    )
)
def test_a_contradiction_changes_nothing(contradiction):
    reassembly, received = feed([("t", Data(2, 0, 3), b"ab")])
    with pytest.raises(FrameError, match="disagree"):
        reassembly.add("t", contradiction, b"xx", received)
    assert 3 not in received
    reassembly.add("t", Data(3, 1, 3), b"cd", received)
    reassembly.add("t", Data(4, 2, 3), b"e", received)
    assert take_all(reassembly, "t") == [b"abcde"]


@pytest.mark.parametrize(
    ("frames", "what"),
    [
        ([(Data(2, 0, 3), b"ab"), (Data(3, 1, 3), b"abc")], "differ in size"),
        ([(Data(2, 0, 3), b"ab"), (Data(3, 1, 3), b"a")], "differ in size"),
        ([(Data(2, 0, 3), b"ab"), (Data(4, 2, 3), b"abc")], "differ in size"),
        ([(Data(4, 2, 3), b"abc"), (Data(2, 0, 3), b"")], "a chunk of 0 bytes"),
        ([(Data(4, 2, 3), b"")], "a chunk of 0 bytes"),
        ([(Data(1, 0, MAX_PARTS), bytes(4097))], "a chunk of 4097 bytes"),
        ([(Data(2, 1, 5), Huge(1 << 30))], f"a chunk of {1 << 30} bytes"),
    ],
)
def test_chunks_of_no_message_that_can_be(frames, what):
    """The first chunk shows an endless message: none is larger than 4 GiB."""
    reassembly, received = feed([("t", *chunk) for chunk in frames[:-1]])
    frame, body = frames[-1]
    kept = reassembly.bytes
    with pytest.raises(FrameError, match=what):
        reassembly.add("t", frame, body, received)
    assert frame.seq not in received
    assert reassembly.bytes == kept


@pytest.mark.parametrize(
    ("frame", "size"), [(Data(1, 0, MAX_PARTS), 4096), (Data(2, 1, 4096), 1 << 20)]
)
def test_chunks_of_the_largest_message_are_taken(frame, size):
    reassembly, _ = feed([("t", frame, bytes(size))])
    assert reassembly.bytes == size + OVERHEAD


def test_the_encoding_travels_with_the_message():
    reassembly, _ = feed([("t", Data(1, encoding=Encoding.VALUE), b"x")])
    assert reassembly.take("t") == (b"x", Encoding.VALUE)


def test_tags_do_not_wait_for_each_other():
    reassembly, _ = feed([("a", Data(2, 1, 2), b"late"), ("b", Data(3), b"now")])
    assert take_all(reassembly, "a") == []
    assert take_all(reassembly, "b") == [b"now"]


def test_what_waits_for_the_last_frame_comes_with_it():
    """The frame before may be the very last to come: nothing else would hand out the rest."""
    frames = [("t", Data(n, previous=n - 1), b"%d" % n) for n in range(1, 6)]
    reassembly, _ = feed(reversed(frames))
    assert take_all(reassembly, "t") == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        *((0, 1000), (799, 1000), (800, 100), (6400, 100)),
        *((6401, 101), (64_000, 1000), (99_999, 1000)),
    ],
)
def test_a_message_is_cut_into_many_but_not_too_fine_or_too_coarse(size, chunk):
    assert choose(size, least=100, most=1000) == chunk


@pytest.mark.parametrize("most", [50, 100, 799, 800, 1000])
def test_what_is_left_whole_has_one_chunk_and_one_byte_more_has_several(most):
    whole = most_uncut(100, most)
    assert count_parts(whole, choose(whole, 100, most)) == 1
    assert count_parts(whole + 1, choose(whole + 1, 100, most)) > 1


def test_the_largest_chunk_allowed_wins_over_the_least():
    assert choose(10_000, least=100, most=50) == 50


def test_how_many_chunks_are_missing():
    reassembly, received = Reassembly(), ReceivedNumbers()
    assert reassembly.missing("t") == NOTHING
    first = frames_of("t", b"abcde", 1, first=1)
    second = frames_of("t", b"fg", 1, first=6, previous=1)
    for count, frame in enumerate(first[:-1], 1):
        reassembly.add(*frame, received)
        assert reassembly.missing("t") == (5 - count, 1, False)
    reassembly.add(*second[0], received)
    assert reassembly.missing("t") == (1, 1, False), "of the message that comes first"
    reassembly.add(*first[-1], received)
    assert reassembly.missing("t") == (1, 1, False), "of the second"
    reassembly.add(*second[1], received)
    assert reassembly.missing("t") == NOTHING
    assert take_all(reassembly, "t") == [b"abcde", b"fg"]


def test_all_that_is_kept_is_counted_until_it_is_taken():
    reassembly, received = Reassembly(), ReceivedNumbers()
    assert reassembly.bytes == 0
    for frame in frames_of("t", b"abcdefg", 3, first=1)[:2]:
        reassembly.add(*frame, received)
    assert reassembly.bytes == 6 + 2 * OVERHEAD, "two chunks"
    reassembly.add("t", Data(4, previous=1), b"after", received)
    reassembly.add("u", Data(5), b"other", received)
    assert reassembly.bytes == 16 + 4 * OVERHEAD
    reassembly.add("t", Data(3, 2, 3), b"g", received)
    assert reassembly.bytes == 17 + 3 * OVERHEAD, "three chunks are one message now"
    assert reassembly.peek("t") == (b"abcdefg", Encoding.RAW)
    assert reassembly.bytes == 17 + 3 * OVERHEAD
    for tag, left in (("t", 10 + 2 * OVERHEAD), ("u", 5 + OVERHEAD), ("t", 0), ("t", 0)):
        reassembly.take(tag)
        assert reassembly.bytes == left
    assert not reassembly.tags


def test_what_is_cleared_is_neither_kept_nor_counted():
    reassembly, _ = feed([("t", Data(1), b"x"), ("u", Data(3, 1, 2), b"y")])
    reassembly.clear()
    assert (reassembly.bytes, reassembly.tags, reassembly.take("t")) == (0, {}, None)


# -- chunks that are opened in their place -----------------------------------------------------


def open_in_place(reassembly, received, tag, frame, body) -> bool:
    """Write a chunk into its place, and add it; False if it has none."""
    place = reassembly.lend(tag, frame, len(body), received)
    if place is None:
        return False
    place[:] = body
    reassembly.add(tag, frame, place, received)
    return True


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_whatever_is_written_in_the_place_of_a_chunk_only_the_chunk_is_in_the_message(
    messages, chunk, rng
):
    """Forged copies and genuine ones, early, late, twice, and at the same time as one another."""
    frames, first, previous = [], 1, 0
    for message in messages:
        made = frames_of("t", message, chunk, first, previous)
        frames += made
        first, previous = first + len(made), first
    under_way = frames * 2
    rng.shuffle(under_way)
    reassembly, received, held, taken = Reassembly(), ReceivedNumbers(), [], []

    def add(tag, frame, body):
        if frame.seq not in received:
            reassembly.add(tag, frame, body, received)

    for count, (tag, frame, body) in enumerate(under_way + frames):
        kinds = ["apart", "in place"]  # in the end, each comes
        if count < len(under_way):
            kinds += ["forged", "altered", "held"]
        kind, told, size = rng.choice(kinds), frame, len(body)
        if kind == "altered":
            told = Data(frame.seq, frame.part, frame.parts + rng.choice([0, 1]), frame.previous)
            size += rng.choice([-1, 0, 1])
        place = None if kind == "apart" else reassembly.lend(tag, told, size, received)
        if kind in ("forged", "altered"):
            if place is not None:
                place[:] = b"?" * size
        elif place is None:
            add(tag, frame, body)
        elif kind == "held":
            held.append((place, tag, frame, body))
        else:
            place[:] = body
            add(tag, frame, place)
        if held and rng.random() < 0.3:  # another thread has opened it at last
            place, tag, frame, body = held.pop(rng.randrange(len(held)))
            place[:] = body
            add(tag, frame, place)
        taken += take_all(reassembly, "t")
    taken += take_all(reassembly, "t")
    assert taken == messages
    assert reassembly.bytes == 0
    assert not reassembly.tags


def test_what_is_opened_late_changes_no_message_that_was_handed_out():
    first, *others = frames_of("t", b"abcdef", 2, first=1)
    reassembly, received = feed([first])
    place = reassembly.lend(*others[0][:2], 2, received)
    assert place is not None
    for frame in others:
        reassembly.add(*frame, received)
    (message,) = take_all(reassembly, "t")
    place[:] = b"??"
    assert message == b"abcdef"


def test_a_message_that_is_opened_in_place_is_never_there_twice():
    message = bytes(range(256)) * (4 << 12)
    frames = frames_of("t", message, 1 << 18, first=1)
    reassembly, received = feed(frames[:2])
    tracemalloc.start()
    try:
        for frame in frames[2:-1]:
            assert open_in_place(reassembly, received, *frame)
        reassembly.add(*frames[-1], received)  # for a small one, no place is asked for
        (taken,) = take_all(reassembly, "t")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken == message
    assert peak < 1.1 * len(message)


def test_who_announces_much_and_sends_little_is_given_no_room():
    """Of the largest message that there can be, seven eighths of the chunks may be missing."""
    chunks = [("t", Data(n, n - 1, 1000), b"four") for n in range(1, 1001)]
    reassembly, received = feed(chunks[:124])
    assert reassembly.lend(*chunks[124][:2], 4, received) is None
    assert reassembly.bytes == 124 * (4 + OVERHEAD)
    reassembly.add(*chunks[124], received)
    assert open_in_place(reassembly, received, *chunks[125])
    assert reassembly.bytes == 4000 + 126 * OVERHEAD, "it counts in full"


def test_there_is_no_room_past_the_limit():
    chunks = frames_of("t", b"abcdefgh", 2, first=1)
    for most in (7 + OVERHEAD, 8 + OVERHEAD):
        reassembly, received = Reassembly(most), ReceivedNumbers()
        reassembly.add(*chunks[0], received)
        assert open_in_place(reassembly, received, *chunks[1]) == (most == 8 + OVERHEAD)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (Data(3, 1, 3), 1),
        (Data(3, 1, 3), 3),
        (Data(4, 2, 3), 0),
        (Data(4, 2, 3), 3),
        (Data(3, 1, 4), 2),
        (Data(3, 1, 3, previous=1), 2),
        (Data(3, 1, 3, encoding=Encoding.VALUE), 2),
        (Data(3, 0, 3), 2),
        (Data(2, 0, 3), 2),
        (Data(9), 2),
    ],
)
def test_there_is_no_place_for_what_cannot_belong_to_the_message(frame, size):
    reassembly, received = feed([("t", Data(2, 0, 3), b"ab")])
    assert reassembly.lend("t", frame, size, received) is None
    assert reassembly.lend("u", Data(3, 1, 3), 2, received) is None
    assert reassembly.bytes == 2 + OVERHEAD


def test_a_place_is_lent_once():
    frames = frames_of("t", b"abcdef", 2, first=1)
    reassembly, received = feed(frames[:1])
    place = reassembly.lend(*frames[1][:2], 2, received)
    assert reassembly.lend(*frames[1][:2], 2, received) is None, "somebody writes there"
    place[:] = b"??"  # and it was forged
    assert not open_in_place(reassembly, received, *frames[1])
    reassembly.add(*frames[1], received)
    assert open_in_place(reassembly, received, *frames[2])
    assert take_all(reassembly, "t") == [b"abcdef"]


def test_all_that_has_come_is_counted_wherever_it_is():
    """Besides the room, what was opened elsewhere meanwhile."""
    frames = frames_of("t", b"abcdefg", 2, first=1)
    reassembly, received = feed(frames[:1])
    reassembly.lend(*frames[1][:2], 2, received)
    assert reassembly.bytes == 8 + OVERHEAD
    reassembly.add(*frames[1], received)
    assert reassembly.bytes == 10 + 2 * OVERHEAD
    for frame in itertools.islice(frames, 2, None):
        assert open_in_place(reassembly, received, *frame)
    assert reassembly.bytes == 7 + OVERHEAD
    assert take_all(reassembly, "t") == [b"abcdefg"]
    assert reassembly.bytes == 0
