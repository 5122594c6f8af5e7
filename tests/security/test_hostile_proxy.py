"""Real endpoints on a real server, with a hostile proxy between them."""

import random
import threading
import time
from functools import partial

import pytest

from redislink import (
    BrokerError,
    BrokerRefused,
    BrokerTampered,
    EndpointClosed,
    HandshakeTimeout,
    PeerAborted,
    PeerProtocolError,
    RecvTimeout,
    RedisLinkError,
)
from redislink.protocol import list_names
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Fin,
    Hello,
    Sealed,
    encode,
    encode_header,
)
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.security import hostile_broker as hostile
from tests.security.hostile_broker import Attacker
from tests.security.hostile_proxy import HostileProxy


@pytest.fixture
def proxy(valkey):
    with HostileProxy(valkey.port) as running:
        yield running


def attack(proxy, kinds, rate, seed=0, older=()):
    proxy.attacker = Attacker(random.Random(seed), kinds, rate, older)
    return proxy.attacker


def exchange(endpoints, count=10):
    """Every party sends to every other one, and receives all of it; wrong results fail here."""

    def work(me):
        others = [e.party for e in endpoints if e is not me]
        for i in range(count):
            for other in others:
                me.send(other, f"t{i % 3}", f"{me.party} to {other} {i}".encode() * (i + 1))
        for i in range(count):
            for other in others:
                expected = f"{other} to {me.party} {i}".encode() * (i + 1)
                assert me.recv(other, f"t{i % 3}") == expected

    run_parties(*(lambda e=endpoint: work(e) for endpoint in endpoints))


def leave(endpoints):
    run_parties(*(endpoint.close for endpoint in endpoints))


MOST_ROUNDS = 100
"""Of an exchange, until an attack has struck."""


def older_elements(proxy, cluster):
    """All that a session with the same names and keys left with the broker."""
    recorder = attack(proxy, (), 0.0)
    endpoints = join(cluster)
    exchange(endpoints)
    leave(endpoints)
    return recorder.seen


def survives(port, kind, *, passes):
    """A session of two under one attack, which ends after a second if it ``passes``."""
    with HostileProxy(port) as proxy:
        cluster = make_cluster(proxy.url, 2)
        older = older_elements(proxy, cluster) if kind in hostile.OF_OLDER else ()
        proxy.attacker = None
        if passes:  # what is lost of hellos only costs time, and is tested in memory
            endpoints = join(cluster, tamper_limit=1_000_000)
            attacker = attack(proxy, (kind,), 0.3, older=older)
            threading.Timer(1.0, lambda: setattr(attacker, "active", False)).start()
        else:
            attacker = attack(proxy, (kind,), 0.3, older=older)
            endpoints = join(cluster, tamper_limit=1_000_000)
        for _ in range(MOST_ROUNDS):  # how many elements one consists of is up to the scheduler
            exchange(endpoints)
            if any(attacker.done.values()) or not attacker.active:
                break
        attacker.active = False
        leave(endpoints)
        return kind, sum(attacker.done.values())


@pytest.mark.slow
def test_what_is_added_changes_nothing(valkey):
    attacks = [partial(survives, valkey.port, k, passes=False) for k in hostile.ADDS_ONLY]
    assert all(strikes for _, strikes in run_parties(*attacks))


@pytest.mark.slow
def test_what_is_changed_or_lost_for_a_while_is_sent_again(valkey):
    kinds = sorted(set(hostile.EVERY_KIND) - set(hostile.ADDS_ONLY))
    attacks = [partial(survives, valkey.port, kind, passes=True) for kind in kinds]
    for kind, strikes in run_parties(*attacks):
        assert strikes, kind


class TestTampered:
    """The limit is reached: every call ends with it, soon, and the peers are told."""

    @pytest.fixture
    def endpoints(self, proxy):
        endpoints = join(make_cluster(proxy.url, 3), tamper_limit=10, close_timeout=1)
        yield endpoints
        proxy.attacker = None
        leave(endpoints)

    def flood(self, proxy, endpoint, src, tag="t"):
        """What a broker does that puts its own elements onto a list."""
        prefix = endpoint.parts.core.peers[src].in_prefix
        name = prefix + (tag.encode() if tag.startswith("!") else list_names.encode_tag(tag))
        connection = endpoint.parts.core.broker.open()
        connection.execute(b"RPUSH", name, *[b"x" * 40] * 20, timeout=5)
        connection.close()

    @pytest.mark.parametrize("tag", ["t", list_names.CONTROL_TAG])
    def test_all_calls_end_with_it_and_the_peers_are_aborted(self, proxy, endpoints, tag):
        alice, bob, carol = endpoints
        waiting = [
            in_thread(lambda: alice.recv("bob", "t")),
            in_thread(lambda: alice.recv("carol", "u")),
        ]
        told = [in_thread(lambda e=e: e.recv("alice", "t")) for e in (bob, carol)]
        started = time.monotonic()
        self.flood(proxy, alice, "bob", tag)
        for thread, outcome in waiting:
            thread.join(10)
            assert isinstance(outcome[0], BrokerTampered)
            assert "bob" in str(outcome[0])
            assert "check the broker" in str(outcome[0])
        for call in (
            lambda: alice.send("bob", "t", b""),
            lambda: alice.recv("bob", "t"),
            lambda: alice.has_message("carol", "t"),
            alice.flush,
        ):
            with pytest.raises(BrokerTampered):
                call()
        # As a ``with`` block does that the error leaves.
        alice.__exit__(BrokerTampered, waiting[0][1][0], None)
        for thread, outcome in told:
            thread.join(10)
            assert isinstance(outcome[0], PeerAborted)
            assert "did not open" in str(outcome[0])
        assert time.monotonic() - started < 5
        with pytest.raises(EndpointClosed):
            alice.send("bob", "t", b"")

    def test_below_the_limit_nothing_happens(self, proxy, endpoints):
        alice, bob, _ = endpoints
        connection = alice.parts.core.broker.open()
        name = alice.parts.core.peers["bob"].in_prefix + b"t"
        connection.execute(b"RPUSH", name, *[b"x" * 40] * 9, timeout=5)
        connection.close()
        bob.send("alice", "t", b"genuine")
        assert alice.recv("bob", "t") == b"genuine"

    def test_has_message_sees_it_too(self, proxy, endpoints):
        alice, _, _ = endpoints
        self.flood(proxy, alice, "bob")
        with pytest.raises(BrokerTampered):
            alice.has_message("bob", "t")


class TestPeerThatBreaksTheRules:
    """It has the keys, and another program."""

    @pytest.fixture
    def pair(self, valkey):
        endpoints = join(make_cluster(valkey.url, 2), tamper_limit=10, close_timeout=0.5)
        yield endpoints
        leave(endpoints)

    def seal(self, sender, receiver, inner):
        """Push a control frame that holds these bytes."""
        peer = sender.parts.core.peers[receiver]
        codec, name = peer.codec, peer.control_out
        number = next(codec._control_numbers)
        header = encode_header(Sealed(number))
        sealed = codec._control_out.encrypt(number.to_bytes(12, "big"), inner, name + header)
        sender.parts.core.outbox.push(name, (header, sealed))

    RULELESS = (
        encode(Sealed(9), b"x" * 20),
        encode(Hello(b"d" * 32, b"instance")),
        encode(Data(1), b"data on a control list"),
        encode(Ack(AckState(1 << 60))),
        encode(Fin(0, AckState(1 << 60))),
        b"",
        b"junk",
    )

    @pytest.mark.parametrize("number", range(len(RULELESS)))
    def test_is_named_for_a_control_frame(self, pair, number):
        alice, bob = pair
        self.seal(alice, "bob", self.RULELESS[number])
        with pytest.raises(PeerProtocolError, match="alice sent what the protocol forbids"):
            bob.recv("alice", "never")
        assert bob.parts.core._not_opened == 0

    FORBIDDEN = (
        Data(1, acked=1 << 60),
        Data(1, 0, 1 << 20),
        Data(2, 1, 2, previous=0),
    )

    @pytest.mark.parametrize("frame", FORBIDDEN)
    def test_is_named_for_a_message(self, pair, frame):
        alice, bob = pair
        peer = alice.parts.core.peers["bob"]
        name = peer.out_list("t")
        body = b"" if frame.part else bytes(10_000)
        alice.parts.core.outbox.push(name, peer.codec.encode_parts(name, frame, body))
        with pytest.raises(PeerProtocolError, match="alice sent what the protocol forbids"):
            bob.recv("alice", "t")
        assert bob.parts.core._not_opened == 0

    def test_is_named_for_what_it_makes_us_keep(self, valkey):
        cluster = make_cluster(valkey.url, 2)
        alice, bob = join(cluster, close_timeout=0.5, peer_memory_bytes=1 << 20)
        peer = alice.parts.core.peers["bob"]
        name = peer.out_list("t")
        for part in range(2, 40):  # the first never comes
            frame = Data(part, part - 1, 1000)
            alice.parts.core.outbox.push(name, peer.codec.encode_parts(name, frame, bytes(60_000)))
        with pytest.raises(PeerProtocolError, match=r"alice has sent .* bytes that nothing"):
            bob.recv("alice", "t")
        leave([alice, bob])

    def test_is_not_known_without_sealing(self, valkey):
        """There anybody may have sent it, so nobody is blamed."""
        alice, bob = endpoints = join(make_cluster(valkey.url, 2, security="none"))
        peer = alice.parts.core.peers["bob"]
        name = peer.control_out
        alice.parts.core.outbox.push(
            name, peer.codec.encode_parts(name, Ack(AckState(1 << 60)), b"")
        )
        exchange(endpoints)
        assert bob.parts.core.peers["alice"].delivery.failure is None
        leave(endpoints)

    def test_its_reasons_cannot_steer_a_terminal(self, pair):
        alice, bob = pair
        self.seal(alice, "bob", encode(Abort("\x1b[2J\x1b]0;title\x07 it \u202e failed\n\r\0")))
        with pytest.raises(PeerAborted) as caught:
            bob.recv("alice", "never")
        assert str(caught.value).isprintable()


class TestReplies:
    """The broker lies in its replies instead."""

    @pytest.fixture
    def pair(self, proxy):
        endpoints = join(make_cluster(proxy.url, 2), recv_timeout=3, reply_timeout=0.5,
                         broker_timeout=2, close_timeout=0.5)  # fmt: skip
        yield endpoints
        proxy.twist = None
        leave(endpoints)

    def twist_pops(self, proxy, change):
        def twist(command, reply):
            popped = command[0].upper() in (b"BLPOP", b"LPOP") and b":t" in b"".join(command)
            return change(command, reply) if popped else reply

        proxy.twist = twist

    @pytest.mark.parametrize("error", [BrokerRefused])
    @pytest.mark.parametrize(
        "reply",
        [
            b":1\r\n",
            b"+OK\r\n",
            b"$1\r\nx\r\n",
            b"*0\r\n",
            b"*1\r\n$1\r\nx\r\n",
            b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n",
            b"*2\r\n:1\r\n:2\r\n",
            b"*2\r\n$-1\r\n$-1\r\n",
            b"*2\r\n*1\r\n:1\r\n*0\r\n",
            b"*3\r\n$1\r\nx\r\n$1\r\ny\r\n$1\r\nz\r\n",
            b"-ERR no\r\n",
        ],
    )
    def test_nonsense_is_a_broker_error(self, pair, proxy, reply, error):
        alice, bob = pair
        self.twist_pops(proxy, lambda _, __: reply)
        bob.send("alice", "t", b"so that the pop is answered at once")
        with pytest.raises(error):
            alice.recv("bob", "t", timeout=3)

    @pytest.mark.slow
    @pytest.mark.parametrize("reply", [b"!junk\r\n", b"\0" * 50, b"*-7\r\n", b"$x\r\n", b"*2\r\n"])
    def test_what_is_not_even_resp_ends_in_a_named_error(self, pair, proxy, reply):
        alice, bob = pair
        self.twist_pops(proxy, lambda _, __: reply)
        bob.send("alice", "t", b"so that the pop is answered at once")
        with pytest.raises((BrokerError, RecvTimeout)):
            alice.recv("bob", "t", timeout=1)

    def test_an_error_reply_cannot_steer_a_terminal(self, pair, proxy):
        alice, bob = pair
        self.twist_pops(proxy, lambda _, __: b"-ERR \x1b]0;title\x07 \x1b[2J\xff gone\r\n")
        bob.send("alice", "t", b"so that the pop is answered at once")
        with pytest.raises(BrokerRefused) as caught:
            alice.recv("bob", "t")
        assert str(caught.value).isprintable()

    def test_an_element_under_another_lists_name_is_refused(self, pair, proxy):
        alice, bob = pair
        bob.send("alice", "u", b"for u")
        self.twist_pops(proxy, lambda _, reply: reply.replace(b":t\r\n", b":u\r\n"))
        bob.send("alice", "t", b"for t")
        with pytest.raises(BrokerError, match="did not answer a pop"):
            alice.recv("bob", "t")

    @pytest.mark.slow
    def test_the_same_element_for_ever_hangs_nothing(self, pair, proxy):
        alice, bob = pair
        bob.send("alice", "t", b"once")
        kept = []

        def again(_, reply):
            if reply[:1] in b"*$" and reply[:3] not in (b"*-1", b"$-1"):
                kept.append(reply)
            return kept[0] if kept else reply

        self.twist_pops(proxy, again)
        assert alice.recv("bob", "t") == b"once"
        with pytest.raises(RecvTimeout):
            alice.recv("bob", "t", timeout=0.3)
        kept[:] = [
            b"$%d\r\n" % len(body) + body + b"\r\n" for body in [kept[0].split(b"\r\n", 4)[4][:-2]]
        ]
        assert not alice.has_message("bob", "t")

    @pytest.mark.slow
    @pytest.mark.parametrize("drips", [False, True])
    def test_one_that_withholds_replies_cannot_hold_a_leaving_party(self, pair, proxy, drips):
        alice, bob = pair
        if drips:
            proxy.drip = 0.3
        else:
            proxy.twist = lambda command, reply: None if command[0] == b"RPUSH" else reply
        for i in range(20):
            alice.send("bob", f"t{i}", b"x")
        started = time.monotonic()
        alice.abort("leaving")
        assert time.monotonic() - started < 4
        proxy.drip = 0.0
        bob.close()


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_from_the_first_reply_on_is_a_named_error(proxy, seed):
    """Also to the claim, and before anybody has met anybody."""
    rng = random.Random(seed)
    replies = [b":7\r\n", b"$-1\r\n", b"+OK\r\n", b"*0\r\n", b"*2\r\n:1\r\n:2\r\n", b"$2\r\nhi\r\n",
               b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"-ERR x\r\n", b":-1\r\n"]  # fmt: skip
    proxy.twist = lambda command, reply: rng.choice(replies) if rng.random() < 0.5 else reply
    settings = quick_settings(connect_timeout=0.5, reply_timeout=0.5, broker_timeout=0.5)
    with pytest.raises(RedisLinkError):
        connect_as(make_cluster(proxy.url, 2), "alice", settings)


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncate", "extend"])
def test_changed_hellos_end_in_a_timeout_that_names_who_is_missing(proxy, kind):
    attack(proxy, (kind,), 1.0)
    cluster = make_cluster(proxy.url, 2)
    settings = quick_settings(connect_timeout=2.5)
    sides = [in_thread(lambda n=n: connect_as(cluster, n, settings)) for n in cluster.party_names]
    for (thread, outcome), peer in zip(sides, ("bob", "alice"), strict=True):
        thread.join(20)
        assert isinstance(outcome[0], HandshakeTimeout)
        assert peer in str(outcome[0])


def test_the_hellos_of_an_older_session_do_not_disturb_a_new_one(proxy):
    cluster = make_cluster(proxy.url, 3)
    older = older_elements(proxy, cluster)
    attack(proxy, ("replay older", "replay hello"), 1.0, older=older)
    endpoints = join(cluster)
    exchange(endpoints)
    leave(endpoints)
