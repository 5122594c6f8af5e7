"""Sealing: what is changed, moved or made up does not open; no nonce seals two contents."""

import contextlib
import itertools
import random
import threading
import time

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from redislink.errors import FrameError, SealError
from redislink.protocol import frame as f
from redislink.protocol import list_names
from redislink.protocol.delivery import Delivery, Leftover, Timing
from redislink.protocol.seal import (
    SEAL_BYTES,
    AnyEdition,
    PlainCodec,
    ReplayWindow,
    SealedCodec,
    SealKeys,
    StaleError,
)
from tests.protocol.pair import tag_of

NAME = list_names.data_list("s", "bob", "alice", "0123456789abcdef", "t")
CONTROL = list_names.control_list("s", "bob", "alice", "0123456789abcdef")
ACK = f.AckState(3, ((5, 6),))
DATA = f.Data(7, 1, 3, 2, f.Encoding.RAW, 5)
CONTROLS = [
    f.Ack(ACK),
    f.Probe(("t",), ACK),
    f.Heartbeat(ACK, 500),
    f.Abort("why"),
    f.Fin(7, ACK, answer=True),
]


def make_keys(seed=0):
    rng = random.Random(seed)
    data_ab, data_ba, control_ab, control_ba = (rng.randbytes(32) for _ in range(4))
    return (
        SealKeys(data_ab, data_ba, control_ab, control_ba),
        SealKeys(data_ba, data_ab, control_ba, control_ab),
    )


def pair(seed=0):
    """Alice's and bob's codecs for each other."""
    alice, bob = make_keys(seed)
    return SealedCodec(alice), SealedCodec(bob)


@pytest.mark.parametrize("body", [b"", b"x", b"payload " * 1000], ids=len)
def test_data_round_trips_and_is_longer_by_the_tag(body):
    alice, bob = pair()
    element = alice.encode(NAME, DATA, memoryview(body))
    assert len(element) == len(f.encode(DATA, body)) + SEAL_BYTES
    assert bob.decode_untrusted(NAME, element) == (DATA, body)
    assert len(body) < 8 or body not in element


@pytest.mark.parametrize("frame", CONTROLS, ids=lambda frame: frame.kind.name)
def test_control_round_trips_and_does_not_show_what_it_is(frame):
    alice, bob = pair()
    element = alice.encode(CONTROL, frame, b"")
    assert bob.decode_untrusted(CONTROL, element) == (frame, b"")
    assert f.decode_untrusted(element)[0] == f.Sealed(1)
    assert f.encode(frame)[3:] not in element


def test_a_resend_of_data_is_the_same_ciphertext_and_of_control_another():
    alice, _ = pair()
    assert alice.encode(NAME, DATA, b"x") == alice.encode(NAME, DATA, b"x")
    assert alice.encode(CONTROL, CONTROLS[0], b"") != alice.encode(CONTROL, CONTROLS[0], b"")


def elements(codec):
    yield NAME, codec.encode(NAME, DATA, b"a payload of some length")
    yield NAME, codec.encode(NAME, f.Data(1), b"")
    for frame in CONTROLS:
        yield CONTROL, codec.encode(CONTROL, frame, b"")


def test_every_flipped_bit_is_refused_and_the_frame_still_opens_afterwards():
    alice, bob = pair()
    cases = 0
    for name, element in elements(alice):
        for place in range(len(element)):
            for bit in range(8):
                broken = bytearray(element)
                broken[place] ^= 1 << bit
                with pytest.raises(FrameError) as caught:
                    bob.decode_untrusted(name, bytes(broken))
                assert not isinstance(caught.value, StaleError)
                # What is still a frame to look at must fail by its seal.
                try:
                    f.decode_untrusted(bytes(broken))
                except FrameError:
                    pass
                else:
                    assert isinstance(caught.value, SealError)
                cases += 1
        bob.decode_untrusted(name, element)
    assert cases > 2000


def test_every_truncation_and_extension_is_refused():
    alice, bob = pair()
    for name, element in elements(alice):
        for end in range(len(element)):
            with pytest.raises(FrameError):
                bob.decode_untrusted(name, element[:end])
        for tail in (b"\0", b"x" * 16, element):
            with pytest.raises(SealError):
                bob.decode_untrusted(name, element + tail)
        bob.decode_untrusted(name, element)


OTHER_LISTS = {
    "tag": list_names.data_list("s", "bob", "alice", "0123456789abcdef", "u"),
    "control": CONTROL,
    "destination": list_names.data_list("s", "carol", "alice", "0123456789abcdef", "t"),
    "source": list_names.data_list("s", "bob", "carol", "0123456789abcdef", "t"),
    "session": list_names.data_list("z", "bob", "alice", "0123456789abcdef", "t"),
    "epoch": list_names.data_list("s", "bob", "alice", "fedcba9876543210", "t"),
}


@pytest.mark.parametrize("other", OTHER_LISTS.values(), ids=OTHER_LISTS)
def test_an_element_that_was_moved_to_another_list_is_refused(other):
    alice, bob = pair()
    with pytest.raises(SealError):
        bob.decode_untrusted(other, alice.encode(NAME, DATA, b"x"))
    if other != CONTROL:
        with pytest.raises(SealError):
            bob.decode_untrusted(other, alice.encode(CONTROL, CONTROLS[0], b""))


def test_a_frame_is_sealed_alike_for_every_edition_of_its_list():
    """Two tags for one nonce would give the key of the authentication away."""
    prefix = list_names.inbox_prefix("s", "bob", "alice", "0123456789abcdef")
    names = [list_names.of_edition(prefix, edition) + b"t" for edition in (0, 1, 12)]
    assert names[0] == NAME
    alice, bob = pair()
    whole = f.encode_whole_header(9, f.Encoding.RAW, 3)
    first = alice.encode(NAME, DATA, b"x")
    first_whole = b"".join(alice.encode_whole(NAME, 9, f.Encoding.RAW, 3, b"y"))
    assert first_whole.startswith(whole)
    sender, receiver = (AnyEdition(codec, len(prefix)) for codec in (alice, bob))
    for name in names:
        assert sender.encode(name, DATA, b"x") == first
        assert b"".join(sender.encode_whole(name, 9, f.Encoding.RAW, 3, b"y")) == first_whole
        assert receiver.decode_untrusted(name, first) == (DATA, b"x")
        assert receiver.decode_whole_untrusted(name, first_whole) == (9, f.Encoding.RAW, 3, b"y")
    ack = sender.encode(CONTROL, CONTROLS[0], b"")
    assert receiver.decode_untrusted(CONTROL, ack) == (CONTROLS[0], b"")


def test_a_reflected_element_is_refused():
    alice, _ = pair()
    for name, element in elements(alice):
        with pytest.raises(SealError):
            alice.decode_untrusted(name, element)


def test_an_element_of_another_run_with_equal_names_is_refused():
    (alice, _), (_, bob) = pair(1), pair(2)
    for name, element in elements(alice):
        with pytest.raises(SealError):
            bob.decode_untrusted(name, element)


@pytest.mark.parametrize("frame", [*CONTROLS, f.Hello(b"d" * 32, b"instance")], ids=repr)
def test_an_unsealed_frame_is_refused(frame):
    _, bob = pair()
    for name in (NAME, CONTROL):
        with pytest.raises(SealError, match="not sealed"):
            bob.decode_untrusted(name, f.encode(frame))
    with pytest.raises(SealError):
        bob.decode_untrusted(NAME, f.encode(DATA, b"plain"))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_refused_by_the_one_type(element):
    _, bob = pair()
    with pytest.raises(FrameError):
        bob.decode_untrusted(NAME, element)


def test_what_a_peer_seals_inside_must_belong_on_a_control_list():
    """A peer that breaks the rules: SEALED in SEALED, HELLO, DATA, junk."""
    _, bob = pair()
    delivery = Delivery("alice", Timing(), 0.0)
    numbers = itertools.count(1)
    for inner in (f.Sealed(9), f.Hello(b"d" * 32, b"instance"), f.Data(1)):
        frame, _ = bob.decode_untrusted(CONTROL, seal_by_hand(next(numbers), f.encode(inner)))
        assert frame == inner
        with pytest.raises(FrameError, match=f"a {inner.kind.name} frame on a control list"):
            delivery.receive_control(frame, 0.0)
    for junk in (b"", b"junk", b"\1\xff\xff"):
        with pytest.raises(FrameError):
            bob.decode_untrusted(CONTROL, seal_by_hand(next(numbers), junk))
    with pytest.raises(FrameError, match="on a data list"):
        delivery.receive_data("t", f.Ack(ACK), b"", 0.0)


def seal_by_hand(number, inner):
    """As alice, who has the keys and her own program."""
    header = f.encode_header(f.Sealed(number))
    key = AESGCM(make_keys()[0].control_out)
    return header + key.encrypt(number.to_bytes(12, "big"), inner, CONTROL + header)


class TestReplay:
    def test_a_control_frame_is_taken_exactly_once(self):
        alice, bob = pair()
        sealed = [alice.encode(CONTROL, frame, b"") for frame in CONTROLS]
        random.Random(1).shuffle(sealed)
        for element in sealed:
            bob.decode_untrusted(CONTROL, element)
        for element in sealed * 2:
            with pytest.raises(StaleError):
                bob.decode_untrusted(CONTROL, element)

    def test_a_forged_number_does_not_use_up_the_true_one(self):
        alice, bob = pair()
        element = alice.encode(CONTROL, CONTROLS[0], b"")
        header = len(f.encode_header(f.Sealed(1)))
        with pytest.raises(SealError):
            bob.decode_untrusted(CONTROL, element[:header] + b"x" * 40)
        bob.decode_untrusted(CONTROL, element)

    def test_a_peer_may_not_make_us_keep_much(self):
        """Its numbers are its own choice: a leap must not become a large shift."""
        _, bob = pair()
        for number in (1, 1 << 30, (1 << 63) - 1):
            bob.decode_untrusted(CONTROL, seal_by_hand(number, f.encode(CONTROLS[0])))
            assert bob._control_window._seen.bit_length() <= 1024

    @given(st.lists(st.integers(1, 200), max_size=200), st.integers(1, 64))
    def test_window_admits_what_it_should(self, numbers, size):
        window, highest, admitted = ReplayWindow(size), 0, set()
        for number in numbers:
            expected = number not in admitted and number > highest - size
            assert window.admit(number) == expected
            highest = max(highest, number)
            if expected:
                admitted.add(number)

    def test_window_ends_where_it_should(self):
        window = ReplayWindow(4)
        assert [window.admit(number) for number in (10, 6, 7, 8, 7)] == [
            *(True, False, True, True, False)
        ]

    def test_window_is_cheap(self):
        window = ReplayWindow()
        started = time.perf_counter()
        for number in range(1, 100_001):
            window.admit(number)
        assert time.perf_counter() - started < 2  # takes about 0.05 s


def test_the_codec_is_safe_for_several_threads():
    """Each thread seals and opens its own; control numbers are never given twice."""
    alice, bob = pair()
    failures, numbers = [], []

    def work(thread):
        rng = random.Random(thread)
        for i in range(300):
            body = rng.randbytes(rng.choice([10, 1000, 100_000]))
            frame = f.Data(thread * 1000 + i + 1)
            try:
                assert bob.decode_untrusted(NAME, alice.encode(NAME, frame, body)) == (frame, body)
                control = alice.encode(CONTROL, f.Heartbeat(ACK, i), b"")
                numbers.append(f.decode_untrusted(control)[0].number)
            except Exception as error:  # noqa: BLE001 - shown below
                failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(set(numbers)) == len(numbers) == 1200


def test_the_plain_codec_keeps_frames_as_they_are():
    codec = PlainCodec()
    element = codec.encode(NAME, DATA, b"body")
    assert element == f.encode(DATA, b"body")
    assert codec.decode_untrusted(NAME, element) == (DATA, b"body")


def test_nothing_that_holds_a_key_shows_it():
    alice, bob = pair()
    sealing = make_keys()[0]
    element = alice.encode(NAME, DATA, b"secret payload")
    errors = []
    for broken in (element[:-1], element[:40], b"x" + element):
        with pytest.raises(FrameError) as caught:
            bob.decode_untrusted(NAME, broken)
        errors.append(caught.value)
        assert caught.value.__cause__ is None
    texts = [repr(thing) + str(thing) for thing in (sealing, alice, bob, *errors)]
    for key in (sealing.data_out, sealing.data_in, sealing.control_out, sealing.control_in):
        for text in texts:
            assert key.hex() not in text
            assert repr(key)[2:-1] not in text
    assert all("secret payload" not in text for text in texts)


# -- the short way of whole messages --------------------------------------------------------------

KINDS_OF_CODEC = {"plain": lambda: (PlainCodec(), PlainCodec()), "sealed": pair}


@pytest.mark.parametrize("kind", KINDS_OF_CODEC)
def test_the_short_way_gives_what_the_long_way_gives(kind):
    alice, bob = KINDS_OF_CODEC[kind]()
    sizes = [0, 5, 16_000, 20_000, 65_535, 65_536, 300_000, 70_000, (4 << 20) + 1, 65_536]
    for seq, size in enumerate(sizes, 3):
        body = random.Random(seq).randbytes(size)
        for encoding in f.Encoding:
            frame = f.Data(seq, encoding=encoding, acked=2)
            element = b"".join(alice.encode_whole(NAME, seq, encoding, 2, body))
            assert element == alice.encode(NAME, frame, body)
            assert bob.decode_whole_untrusted(NAME, element) == (seq, encoding, 2, body)
            assert bob.decode_untrusted(NAME, element) == (frame, body)


@pytest.mark.parametrize("kind", KINDS_OF_CODEC)
def test_the_short_way_leaves_the_rest_to_the_long_way(kind):
    alice, bob = KINDS_OF_CODEC[kind]()
    for frame in (DATA, f.Data(7, previous=2), f.Data(7, parts=2), *CONTROLS):
        assert bob.decode_whole_untrusted(NAME, alice.encode(NAME, frame, b"")) is None


def test_the_short_way_refuses_what_was_changed_or_moved():
    alice, bob = pair()
    element = b"".join(alice.encode_whole(NAME, 7, f.Encoding.RAW, 5, b"a payload"))
    changed = [bytearray(element) for _ in range(8 * len(element))]
    for bit, broken in enumerate(changed):
        broken[bit // 8] ^= 1 << bit % 8
    for broken in (*map(bytes, changed), *(element[:end] for end in range(len(element)))):
        with contextlib.suppress(SealError):
            assert bob.decode_whole_untrusted(NAME, broken) is None
    for other in OTHER_LISTS.values():
        with pytest.raises(SealError):
            bob.decode_whole_untrusted(other, element)
    with pytest.raises(SealError):
        alice.decode_whole_untrusted(NAME, element)
    assert bob.decode_whole_untrusted(NAME, element) == (7, f.Encoding.RAW, 5, b"a payload")


# -- chunks that are opened in their place --------------------------------------------------------


class Places:
    """Lends a place of the right size, and knows what it was asked for."""

    def __init__(self):
        self.asked = []
        self.memory = bytearray()

    def __call__(self, frame, size):
        self.asked.append((frame, size))
        self.memory = bytearray(b"?" * max(0, size))
        return memoryview(self.memory) if size > 0 else None


@pytest.mark.parametrize("kind", KINDS_OF_CODEC)
def test_a_chunk_is_opened_in_the_place_that_is_lent_for_it(kind):
    alice, bob = KINDS_OF_CODEC[kind]()
    for codec in (bob, AnyEdition(bob, 0)):
        for size in (1, 20_000, 70_000):
            frame, body = f.Data(7, 1, 3), random.Random(size).randbytes(size)
            places = Places()
            element = alice.encode(NAME, frame, body)
            for popped in (element, memoryview(element)):
                decoded, place = codec.decode_untrusted(NAME, popped, places)
                assert (decoded, place) == (frame, body)
                assert place.obj is places.memory
            assert places.asked == [(frame, size)] * 2
            assert codec.decode_untrusted(NAME, element, lambda *_: None) == (frame, body)


def test_what_was_changed_or_moved_is_not_opened_in_any_place():
    alice, bob = pair()
    element, places = alice.encode(NAME, f.Data(7, 1, 3), b"a payload"), Places()
    broken = [element[:at] + bytes([element[at] ^ 1]) + element[at + 1 :] for at in (20, -1, -20)]
    for name, forged in [*((NAME, it) for it in (*broken, element[:-1])), (CONTROL, element)]:
        with pytest.raises(SealError):
            bob.decode_untrusted(name, forged, places)
    for short in (element[: f.DATA_HEADER_BYTES], element[: f.DATA_HEADER_BYTES + SEAL_BYTES]):
        with pytest.raises(SealError):
            bob.decode_untrusted(NAME, short, places)


def test_no_place_is_asked_for_a_control_frame():
    alice, bob = pair()
    places = Places()
    for frame in CONTROLS:
        assert bob.decode_untrusted(CONTROL, alice.encode(CONTROL, frame, b""), places)[0] == frame
    assert not places.asked


# -- nonces ------------------------------------------------------------------------------------


class Recorder:
    """Stands in for an AESGCM key: notes what each nonce seals, and allows no second content."""

    def __init__(self, key, used):
        self._key = key
        self._used = used

    def encrypt(self, nonce, data, associated):
        content = (bytes(data), associated)
        assert self._used.setdefault(nonce, content) == content, "one nonce for two contents"
        return self._key.encrypt(nonce, data, associated)

    def encrypt_into(self, nonce, data, associated, out):
        out[:] = self.encrypt(nonce, data, associated)
        return len(out)

    def decrypt(self, nonce, data, associated):
        return self._key.decrypt(nonce, data, associated)


def watch(codec):
    """Record what a codec's two sealing keys seal; returns nonces by key."""
    data, control = {}, {}
    codec._data_out.aes = Recorder(codec._data_out.aes, data)
    codec._control_out = Recorder(codec._control_out, control)
    return data, control


class Conversation:
    """Two deliveries whose frames are sealed, over lists; every step is hypothesis's choice."""

    def __init__(self):
        timing = Timing(window_bytes=2000, chunk_bytes=300, peer_timeout=1e6)
        self.now = 0.0
        self.codecs = dict(zip("ab", pair(), strict=True))
        self.used = {side: watch(codec) for side, codec in self.codecs.items()}
        self.cores = {side: Delivery(other, timing, 0.0) for side, other in ("ab", "ba")}
        self.lists = {}
        self.pushed = {"a": [], "b": []}
        self.waiting = {"a": set(), "b": set()}

    def push(self, side):
        """Seal and put on the lists what a core hands out, as `Endpoint._push` does."""
        for push in self.cores[side].pushes():
            if isinstance(push, Leftover):
                self.lists.pop((side, push.tag), None)
                continue
            tag = tag_of(push)
            name = f"{side}{tag}".encode()
            element = self.codecs[side].encode(name, push.frame, push.body)
            if push.clear:
                self.lists.pop((side, tag), None)
            self.lists.setdefault((side, tag), []).append(element)
            self.pushed[side].append(push)

    def send(self, side, tag, size):
        self.cores[side].send(tag, b"%d" % size * size, self.now)

    def deliver(self, side, tag, at):
        """Take an element, from anywhere in its list, and maybe leave it there."""
        other = "b" if side == "a" else "a"
        elements = self.lists.get((other, tag), [])
        if not elements:
            return
        element = elements[at % len(elements)] if at % 3 else elements.pop(at % len(elements))
        try:
            frame, body = self.codecs[side].decode_untrusted(f"{other}{tag}".encode(), element)
        except StaleError:
            return
        if tag is None:
            self.cores[side].receive_control(frame, self.now)
        else:
            self.cores[side].receive_data(tag, frame, body, self.now)
            self.cores[side].take(tag)

    def step(self, choice):
        kind, side, tag, number = choice
        core = self.cores[side]
        self.now += number / 10
        if kind == "send":
            self.send(side, tag, number * 40)
        elif kind == "deliver":
            self.deliver(side, tag, number)
        elif kind == "control":
            self.deliver(side, None, number)
        elif kind == "tick":
            core.tick(self.now)
        elif kind == "reconnect":
            core.reconnected(self.now)
        elif kind in ("refuse", "confirm") and self.pushed[side]:
            push = self.pushed[side][number % len(self.pushed[side])]
            (core.refused if kind == "refuse" else core.confirm)(push, self.now)
        elif kind == "wait":
            if tag in self.waiting[side]:
                core.unwait(tag)
            else:
                core.wait(tag, self.now)
            self.waiting[side] ^= {tag}
        elif kind == "lose":
            self.lists.pop((side, tag), None)
        elif kind == "ask":
            core.ask_ack(self.now)
        self.push(side)


KINDS = ["send"] * 4 + ["deliver"] * 4 + ["control"] * 2
KINDS += ["tick", "reconnect", "refuse", "confirm", "wait", "lose", "ask"]
steps = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.sampled_from("ab"), st.sampled_from("tu"), st.integers(0, 30)
    ),
    min_size=5,
    max_size=120,
)


@given(steps)
@settings(max_examples=300)
def test_no_nonce_ever_seals_two_contents(choices):
    """Under losses, refusals, reconnects, probes and piggybacked acks. Security rests on it."""
    conversation = Conversation()
    for choice in choices:
        conversation.step(choice)


@pytest.mark.parametrize("seed", range(60))
def test_no_nonce_ever_seals_two_contents_in_long_runs(seed):
    rng = random.Random(seed)
    conversation = Conversation()
    for _ in range(800):
        choice = (rng.choice(KINDS), rng.choice("ab"), rng.choice("tu"), rng.randrange(31))
        conversation.step(choice)
    resent = sum(core.stats.frames_resent for core in conversation.cores.values())
    used = [len(nonces) for pair in conversation.used.values() for nonces in pair]
    assert resent > 0
    assert min(used) > 0


def test_the_recorder_can_fail():
    alice, _ = pair()
    watch(alice)
    alice.encode(NAME, f.Data(1), b"one")
    with pytest.raises(AssertionError, match="two contents"):
        alice.encode(NAME, f.Data(1), b"two")
    with pytest.raises(AssertionError, match="two contents"):
        alice.encode(NAME, f.Data(1, acked=ACK.cumulative), b"one")
