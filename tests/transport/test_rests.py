"""Mid-sized messages whose rest comes on a list of its own, on a real broker."""

import random
import threading

import pytest

from redislink import Endpoint, PeerAborted, PeerProtocolError, RecvCancelled, RecvTimeout
from redislink.protocol.chunking import MOST_APART
from redislink.protocol.frame import DATA_HEADER_BYTES, Data
from tests.conftest import in_thread, result, run_parties
from tests.support.waiting import wait_until

PART = 256


@pytest.fixture
def pair(pair_on_valkey):
    """alice and bob, whose messages of 512 bytes and more travel in parts."""
    return lambda **changes: pair_on_valkey(**({"part_bytes": PART} | changes))


def message(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def peer(endpoint: Endpoint, name: str):
    return endpoint.parts.core.peers[name]


def names(alice: Endpoint, tag: str) -> tuple[bytes, bytes]:
    """The lists from alice to bob for a tag, and for rests."""
    to_bob = peer(alice, "bob")
    return to_bob.out_list(tag), to_bob.rests_out


def rests_connection(endpoint: Endpoint, name: str):
    wait = peer(endpoint, name).rests._wait
    return None if wait is None else wait._connection


def reads_rests(endpoint: Endpoint, name: str) -> bool:
    """Whether a receive waits for what is to come on the list of rests."""
    return rests_connection(endpoint, name) is not None and peer(endpoint, name).rests.lock.locked()


@pytest.mark.parametrize(
    ("size", "rest"),
    [
        (0, 0),
        (2 * PART - 1, 0),
        (2 * PART, 1),
        (2 * PART + 1, 2),
        (16 * PART, 15),
        (64 * PART, 63),
        (64 * PART + 1, 63),
        (1 << 20, 63),
        (MOST_APART, 63),
    ],
)
def test_all_chunks_but_the_first_go_onto_the_list_of_rests(pair, admin, size, rest):
    alice, bob = pair()
    body = message(size)
    alice.send("bob", "t", body)
    alice.flush()
    assert [admin(b"LLEN", name) for name in names(alice, "t")] == [1, rest]
    assert bob.recv("alice", "t") == body


def test_a_larger_message_stays_on_its_list(pair, admin):
    alice, bob = pair()
    body = message(MOST_APART + 1)
    alice.send("bob", "t", body)
    alice.flush()
    assert admin(b"LLEN", names(alice, "t")[1]) == 0
    assert bob.recv("alice", "t") == body


def test_a_long_conversation(pair):
    alice, bob = pair()
    for n in range(50):
        body = message(random.Random(n).randrange(6000), n)
        alice.send("bob", f"t{n}", body)
        assert bob.recv("alice", f"t{n}") == body
        bob.send("alice", f"u{n}", body[::-1])
        assert alice.recv("bob", f"u{n}") == body[::-1]
    # Some, on a machine that is so busy that a message seems late; but most are read from there.
    assert alice.stats().frames_resent + bob.stats().frames_resent < 100


def test_messages_are_received_in_any_order(pair):
    alice, bob = pair()
    bodies = {f"t{n}": message(random.Random(n).randrange(4000), n) for n in range(60)}
    for tag, body in bodies.items():
        alice.send("bob", tag, body)
    order = list(bodies)
    random.Random(1).shuffle(order)
    assert [bob.recv("alice", tag) == bodies[tag] for tag in order] == [True] * len(order)


def test_several_messages_of_one_tag_keep_their_order(pair):
    alice, bob = pair()
    bodies = [message(random.Random(n).choice([10, 600, 3000]), n) for n in range(30)]
    for body in bodies:
        alice.send("bob", "t", body)
    assert [bob.recv("alice", "t") for _ in bodies] == bodies


def test_threads_that_wait_for_different_tags_get_what_one_of_them_reads(pair):
    alice, bob = pair()
    waiting = [in_thread(lambda n=n: bob.recv("alice", f"t{n}")) for n in range(6)]
    wait_until(lambda: sum(w.purpose is not None for w in bob.parts.core.inbox.waits()) == 6)
    for n in range(6):
        alice.send("bob", f"t{n}", message(3000 + n, n))
    assert [result(started) for started in waiting] == [message(3000 + n, n) for n in range(6)]
    assert bob.stats().reconnects == 0


def test_a_lost_rest_comes_again_on_its_tags_list(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.flush()
    assert admin(b"DEL", names(alice, "t")[1]) == 1
    assert bob.recv("alice", "t", timeout=10) == body
    assert alice.stats().frames_resent > 0
    alice.send("bob", "u", body)
    assert bob.recv("alice", "u") == body


def test_what_was_pushed_again_leaves_nothing_on_the_broker(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.flush()
    list_of_t, rests = names(alice, "t")
    admin(b"RPOP", rests)
    assert bob.recv("alice", "t", timeout=10) == body
    wait_until(lambda: not admin(b"EXISTS", list_of_t, rests))


def test_a_first_chunk_that_is_lost_comes_after_the_rest(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.send("bob", "u", body[::-1])
    alice.flush()
    admin(b"DEL", names(alice, "t")[0])
    assert bob.recv("alice", "u") == body[::-1]
    assert bob.recv("alice", "t", timeout=10) == body


def test_a_rest_that_the_broker_moves_to_another_list_stays_with_its_message(pair, admin):
    alice, bob = pair()
    one, other = message(700, 1), message(700, 2)
    alice.send("bob", "t", one)
    alice.send("bob", "u", other)
    alice.flush()
    list_of_t, rests = names(alice, "t")
    while (element := admin(b"LPOP", rests)) is not None:
        admin(b"RPUSH", list_of_t, element)
    received = in_thread(lambda: bob.recv("alice", "u", timeout=15))
    assert bob.recv("alice", "t", timeout=10) == one
    assert result(received) == other


def test_what_somebody_else_pushes_onto_the_list_of_rests_is_ignored(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.flush()
    rests = names(alice, "t")[1]
    genuine = bytes(admin(b"LINDEX", rests, 0))
    flipped = bytearray(genuine)
    flipped[DATA_HEADER_BYTES] ^= 1
    for forged in (b"", b"\x05", b"x" * 100, bytes(flipped), genuine[:-1], genuine):
        admin(b"LPUSH", rests, forged)
    assert bob.recv("alice", "t", timeout=10) == body
    assert bob.stats().duplicates_dropped == 1


def test_a_peer_that_pushes_a_whole_message_there_breaks_the_protocol(pair):
    alice, bob = pair()
    alice.send("bob", "t", message(5000))
    to_bob = peer(alice, "bob")
    element = to_bob.codec.encode_parts(to_bob.rests_out, Data(99), b"x")
    alice.parts.core.outbox.push(to_bob.rests_out, element, clear=True)
    alice.flush()
    with pytest.raises(PeerProtocolError):
        bob.recv("alice", "t", timeout=10)
    alice.abort("found out")


def test_the_connection_for_rests_breaks(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    assert bob.recv("alice", "t") == body
    port = rests_connection(bob, "alice")._wire._socket.getsockname()[1]
    assert admin(b"CLIENT", b"KILL", b"ADDR", b"127.0.0.1:%d" % port) == 1
    alice.send("bob", "u", body)
    assert bob.recv("alice", "u", timeout=10) == body
    assert rests_connection(bob, "alice") is not None


def test_the_next_edition(pair):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    assert bob.recv("alice", "t") == body
    bob.parts.receiving.read_anew(peer(bob, "alice"))
    wait_until(lambda: peer(alice, "bob").delivery.edition_out == 1)
    for tag in ("u", "v"):
        alice.send("bob", tag, body)
        assert bob.recv("alice", tag, timeout=10) == body
    assert peer(bob, "alice").rests._name.endswith(b".1:!rest")


def test_in_the_next_edition_comes_what_was_under_way(pair, admin):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.flush()
    rests = names(alice, "t")[1]
    bob.parts.receiving.read_anew(peer(bob, "alice"))
    assert bob.recv("alice", "t", timeout=10) == body
    wait_until(lambda: not admin(b"EXISTS", rests))


def incomplete(pair, admin) -> tuple[Endpoint, Endpoint]:
    """alice and bob; the last chunk of her message of tag t stays away, and she does not answer."""
    alice, bob = pair()
    alice.send("bob", "t", message(5000))
    alice.flush()
    admin(b"RPOP", names(alice, "t")[1])
    return alice, bob


def test_a_receive_times_out_that_waits_for_a_rest(pair, admin):
    alice, bob = incomplete(pair, admin)
    alice.parts.core.lock.acquire()  # she hears no question
    try:
        with pytest.raises(RecvTimeout):
            bob.recv("alice", "t", timeout=0.7)
    finally:
        alice.parts.core.lock.release()
    assert bob.recv("alice", "t", timeout=10) == message(5000)


def test_a_receive_is_cancelled_that_waits_for_a_rest(pair, admin):
    alice, bob = incomplete(pair, admin)
    with alice.parts.core.lock:
        started = in_thread(lambda: bob.recv("alice", "t"))
        wait_until(lambda: reads_rests(bob, "alice"))
        bob.cancel_recv("alice", "t")
        assert isinstance(result(started), RecvCancelled)


def test_an_abort_ends_a_receive_that_waits_for_a_rest(pair, admin):
    alice, bob = incomplete(pair, admin)
    with alice.parts.core.lock:
        started = in_thread(lambda: bob.recv("alice", "t"))
        wait_until(lambda: reads_rests(bob, "alice"))
    alice.abort("enough")
    assert isinstance(result(started), PeerAborted)


def test_peek_takes_the_rest_in(pair):
    alice, bob = pair()
    body = message(5000)
    alice.send("bob", "t", body)
    alice.flush()
    found = []
    wait_until(lambda: found.append(bob.parts.receiving.peek("alice", "t")) or found[-1])
    assert found[-1][0] == body
    assert bob.recv("alice", "t") == body


def test_after_a_long_pause_another_connection_is_opened(pair):
    alice, bob = pair()
    alice.send("bob", "t", message(5000))
    bob.recv("alice", "t")
    before = rests_connection(bob, "alice")
    peer(bob, "alice").rests._read_at -= 3600
    alice.send("bob", "u", message(5000))
    assert bob.recv("alice", "u") == message(5000)
    assert rests_connection(bob, "alice") is not before


def test_closing_closes_its_connection(pair, admin):
    alice, bob = pair()
    alice.send("bob", "t", message(5000))
    bob.recv("alice", "t")
    run_parties(alice.close, bob.close)
    assert rests_connection(bob, "alice") is None


def test_a_tag_may_be_called_like_the_list(pair):
    alice, bob = pair()
    for size in (10, 5000):
        alice.send("bob", "!rest", message(size))
        assert bob.recv("alice", "!rest") == message(size)


def test_messages_wait_in_the_kernel_until_somebody_receives(pair):
    """What nobody has asked for takes no memory beyond what the peer may send ahead."""
    alice, bob = pair()
    for n in range(100):
        alice.send("bob", f"t{n}", message(100_000, n))
    alice.flush()
    kept = peer(bob, "alice").delivery._receiving
    assert kept.kept_bytes == 0
    assert bob.recv("alice", "t50") == message(100_000, 50)
    assert kept.kept_bytes <= MOST_APART * 1.5
    assert [bob.recv("alice", f"t{n}") for n in range(50)] == [
        message(100_000, n) for n in range(50)
    ]


def test_many_threads_in_both_directions(pair):
    alice, bob = pair()
    failures = []

    def talk(one: Endpoint, other: str, out: str, into: str, rounds: int) -> None:
        for n in range(rounds):
            one.send(other, f"{out}{n}", message(2000 + n, n))
            if one.recv(other, f"{into}{n}", timeout=20) != message(2000 + n, n):
                failures.append((out, n))

    threads = [
        threading.Thread(target=talk, args=args)
        for k in range(3)
        for args in ((alice, "bob", f"a{k}:", f"b{k}:", 20), (bob, "alice", f"b{k}:", f"a{k}:", 20))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert bob.stats().messages_received == 60
