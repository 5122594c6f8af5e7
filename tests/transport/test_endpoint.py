"""The endpoint's conformance suite: unchanged on every kind of broker."""

import random

import pytest

from redislink import (
    ClusterMismatch,
    ConfigError,
    EndpointClosed,
    HandshakeTimeout,
    PartyTaken,
    PayloadTypeError,
    PeerClosed,
    RecvCancelled,
    RecvTimeout,
    SendTimeout,
    UsageError,
)
from redislink.broker import Broker
from redislink.operate.survey import Survey
from redislink.protocol import list_names
from redislink.protocol.frame import Encoding
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until


@pytest.fixture
def broker_url(every_broker_url):
    return every_broker_url


def blocked(endpoint, tag):
    return any(wait.purpose[1] == tag for wait in endpoint.parts.core.inbox.waits())


@pytest.fixture
def pair(mesh, broker_url):
    return mesh(broker_url, 2, close_timeout=1)


class TestMessages:
    def test_what_is_sent_is_received(self, pair):
        alice, bob = pair
        alice.send("bob", "t", b"payload")
        assert bob.recv("alice", "t") == b"payload"

    def test_parties_are_named_by_name_or_rank(self, pair):
        alice, bob = pair
        alice.send(1, "t", b"1")
        alice.send("bob", "t", b"2")
        assert [bob.recv(0, "t"), bob.recv("alice", "t")] == [b"1", b"2"]

    def test_one_tag_keeps_its_order(self, pair):
        alice, bob = pair
        for i in range(200):
            alice.send("bob", "t", str(i).encode())
        assert [int(bob.recv("alice", "t")) for _ in range(200)] == list(range(200))

    def test_messages_of_many_chunks_follow_each_other(self, broker_url, mesh):
        alice, bob = mesh(broker_url, 2, chunk_bytes=1024)
        messages = [bytes([n]) * (1024 * n + 10) for n in range(1, 20)]
        for message in messages:
            alice.send("bob", "t", message)
        assert [bob.recv("alice", "t") for _ in messages] == messages
        assert alice.stats().frames_resent == 0
        assert bob.stats().probes_sent == 0

    @pytest.mark.slow
    def test_threads_that_receive_chunks_of_one_tag_lose_nothing(self, broker_url, mesh):
        """Nor does one wait for the end of its BLPOP while its message is here."""
        alice, bob = mesh(broker_url, 2, chunk_bytes=1024, blpop_timeout=30)
        messages = [bytes([n]) * 10_000 for n in range(12)]
        receives = [lambda: [bob.recv("alice", "t") for _ in range(4)] for _ in range(3)]
        threads = [in_thread(receive) for receive in receives]
        for message in messages:
            alice.send("bob", "t", message)
        for thread, _ in threads:
            thread.join(20)
        assert sorted(m for _, outcome in threads for m in outcome[0]) == messages

    def test_tags_do_not_wait_for_each_other(self, pair):
        alice, bob = pair
        for tag in "abc":
            alice.send("bob", tag, tag.encode())
        assert [bob.recv("alice", tag) for tag in "cab"] == [b"c", b"a", b"b"]

    def test_sending_needs_no_receiver_and_receiving_no_sender_yet(self, pair):
        alice, bob = pair
        thread, got = in_thread(lambda: bob.recv("alice", "later"))
        wait_until(lambda: blocked(bob, "later"))
        alice.send("bob", "later", b"now")
        thread.join(10)
        assert got == [b"now"]

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
    def test_sizes(self, pair, size):
        alice, bob = pair
        payload = random.Random(size).randbytes(size)
        alice.send("bob", "t", payload)
        assert bob.recv("alice", "t") == payload

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_bytes_like_object_arrives_as_bytes(self, pair, kind):
        alice, bob = pair
        alice.send("bob", "t", kind(b"\r\n$-1\r\n\0"))
        got = bob.recv("alice", "t")
        assert type(got) is bytes
        assert got == b"\r\n$-1\r\n\0"

    def test_a_payload_may_be_changed_after_the_call(self, pair):
        alice, bob = pair
        payload = bytearray(b"before")
        alice.send("bob", "t", payload)
        payload[:] = b"after!"
        assert bob.recv("alice", "t") == b"before"

    @pytest.mark.parametrize(
        "tag", ["root:P2P-7:0->1", "*", "{x}", "!hello", "ü ", "%21", "a" * 512]
    )
    def test_any_tag(self, pair, tag):
        alice, bob = pair
        alice.send("bob", tag, b"x")
        assert bob.recv("alice", tag) == b"x"

    def test_three_parties_both_ways(self, mesh, broker_url):
        endpoints = mesh(broker_url, 3)

        def work(me):
            others = [e for e in endpoints if e is not me]
            for other in others:
                me.send(other.party, "all", me.party.encode())
            return {other.party: me.recv(other.party, "all") for other in others}

        for got in run_parties(*(lambda e=e: work(e) for e in endpoints)):
            assert all(payload == name.encode() for name, payload in got.items())

    def test_many_threads_at_once(self, pair):
        alice, bob = pair
        tags = [f"thread {i}" for i in range(8)]

        def ping(tag):
            for i in range(25):
                alice.send("bob", tag, b"%d" % i)
                assert alice.recv("bob", tag) == b"%d!" % i

        def pong(tag):
            for _ in range(25):
                bob.send("alice", tag, bob.recv("alice", tag) + b"!")

        run_parties(*(lambda f=f, t=t: f(t) for t in tags for f in (ping, pong)))

    def test_a_message_that_another_thread_took_in_is_handed_over_at_once(self, valkey):
        alice, bob = join(make_cluster(valkey.url, 2), blpop_timeout=20)
        with alice, bob:
            delivery = bob.parts.core.peers["alice"].delivery
            waits = delivery._receiving._waits
            threads = [in_thread(lambda: bob.recv("alice", "t")) for _ in range(2)]
            wait_until(lambda: "t" in waits and waits["t"].threads == 2, 10)
            # The second comes first: whoever pops it must leave it to the next who is served.
            push, held = alice.parts.core.outbox.push, []
            alice.parts.core.outbox.push = lambda *args, **options: held.append((args, options))
            for number in range(2):
                alice.send("bob", "t", b"%d" % number)
            alice.parts.core.outbox.push = push
            (first, _), (second, _) = held
            push(*second)
            wait_until(lambda: "t" in delivery.kept, 10)
            push(*first)
            for thread, _ in threads:
                thread.join(5)
            assert sorted(outcome[0] for _, outcome in threads) == [b"0", b"1"]

    def test_a_receive_that_ends_while_it_is_registered_is_probed_for_no_more(self, pair):
        class EndingWait:
            """Of a receive in another thread, that ends after the first look at it."""

            registered = False
            looks = 0

            @property
            def purpose(self):
                self.looks += 1
                return ("bob", "t", 0.0) if self.looks == 1 else None

            def has_moved(self):
                return False

        alice, _ = pair
        wait = EndingWait()
        with alice.parts.core.lock:
            alice.parts.receiving.register(wait)
        assert not wait.registered
        assert "t" not in alice.parts.core.peers["bob"].delivery._receiving._waits

    def test_an_encoding_travels_with_its_message(self, pair):
        alice, bob = pair
        alice.send("bob", "t", b"raw")
        alice.parts.sending.post("bob", "t", b"x" * 3_000_000, Encoding.VALUE)
        assert bob.has_message("alice", "t")
        assert bob.parts.receiving.peek("alice", "t") == (b"raw", Encoding.RAW)
        assert bob.parts.receiving.recv("alice", "t") == (b"raw", Encoding.RAW)
        assert bob.parts.receiving.recv("alice", "t") == (b"x" * 3_000_000, Encoding.VALUE)

    def test_stats_count_payloads(self, pair):
        alice, bob = pair
        alice.send("bob", "t", b"12345")
        alice.send("bob", "t", b"678")
        bob.recv("alice", "t")
        assert (alice.stats().messages_sent, alice.stats().bytes_sent) == (2, 8)
        assert (bob.stats().messages_received, bob.stats().bytes_received) == (1, 5)


class TestPeek:
    def test_peek_does_not_take(self, pair):
        alice, bob = pair
        assert not bob.has_message("alice", "t")
        assert bob.peek_message("alice", "t") is None
        alice.send("bob", "t", b"1")
        alice.send("bob", "t", b"2")
        alice.flush()
        wait_until(lambda: bob.has_message("alice", "t"))
        assert bob.peek_message("alice", "t") == b"1"
        assert bob.peek_message("alice", "t") == b"1"
        assert [bob.recv("alice", "t"), bob.recv("alice", "t")] == [b"1", b"2"]
        assert not bob.has_message("alice", "t")

    def test_an_empty_message_is_a_message(self, pair):
        alice, bob = pair
        alice.send("bob", "t", b"")
        alice.flush()
        wait_until(lambda: bob.has_message("alice", "t"))
        assert bob.recv("alice", "t") == b""


class TestHandles:
    def test_a_handle_is_done_once_the_peer_took_the_message(self, pair):
        alice, bob = pair
        handle = alice.send("bob", "t", b"x")
        assert not handle.test()
        bob.recv("alice", "t")
        handle.wait(10)
        assert handle.test()

    def test_waiting_ends_when_the_peer_leaves_without_the_message(self, pair):
        alice, bob = pair
        handle = alice.send("bob", "never received", b"x")
        thread, outcome = in_thread(lambda: handle.wait(20))
        bob.close()
        thread.join(10)
        assert isinstance(outcome[0], PeerClosed)
        assert "bob has left the session without taking" in str(outcome[0])

    def test_waiting_ends_with_an_error_that_names_the_peer(self, pair):
        handle = pair[0].send("bob", "t", b"x")
        with pytest.raises(SendTimeout, match=r"alice: bob has not taken.*'t'.*0\.02 s"):
            handle.wait(0.02)


class TestWrongUse:
    @pytest.mark.parametrize("payload", ["text", 3, None, [b"x"], {}])
    def test_a_payload_that_is_not_bytes(self, pair, payload):
        alice, bob = pair
        with pytest.raises(PayloadTypeError, match=r"alice: .* for bob .*encode it first"):
            alice.send("bob", "t", payload)
        alice.send("bob", "t", b"nothing was lost")
        assert bob.recv("alice", "t") == b"nothing was lost"

    @pytest.mark.parametrize("party", ["dave", "alice", 0, 2, -1, True, None, 1.0])
    def test_a_party_that_cannot_be_meant(self, pair, party):
        for call in (
            lambda: pair[0].send(party, "t", b""),
            lambda: pair[0].recv(party, "t"),
            lambda: pair[0].has_message(party, "t"),
        ):
            with pytest.raises(UsageError, match="alice"):
                call()

    def test_an_empty_tag(self, pair):
        with pytest.raises(UsageError, match="tag"):
            pair[0].send("bob", "", b"")

    @pytest.mark.parametrize("timeout", [float("nan"), -1, -float("inf"), "1", True])
    def test_a_timeout_that_is_no_time(self, pair, timeout):
        alice, bob = pair
        handle = alice.send("bob", "t", b"x")
        for call in (lambda: bob.recv("alice", "t", timeout), lambda: handle.wait(timeout)):
            with pytest.raises(UsageError, match="a timeout is a number of seconds"):
                call()
        assert bob.recv("alice", "t") == b"x"

    @pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400])
    def test_a_timeout_for_ever(self, pair, timeout):
        alice, bob = pair
        handle = alice.send("bob", "t", b"x")
        assert bob.recv("alice", "t", timeout) == b"x"
        handle.wait(timeout)

    def test_after_close(self, pair):
        alice, _ = pair
        alice.close()
        alice.close()
        for call in (
            lambda: alice.send("bob", "t", b""),
            lambda: alice.recv("bob", "t"),
            lambda: alice.peek_message("bob", "t"),
        ):
            with pytest.raises(EndpointClosed, match="connect"):
                call()


class TestWaiting:
    def test_a_timeout_says_who_what_and_how_long(self, pair):
        with pytest.raises(RecvTimeout, match=r"bob: waited 0\.05 s for tag 't' from alice"):
            pair[1].recv("alice", "t", timeout=0.05)

    def test_a_late_message_is_still_there_after_a_timeout(self, pair):
        alice, bob = pair
        with pytest.raises(RecvTimeout):
            bob.recv("alice", "t", timeout=0.02)
        alice.send("bob", "t", b"late")
        assert bob.recv("alice", "t") == b"late"

    def test_close_ends_what_waits(self, pair):
        _, bob = pair
        thread, got = in_thread(lambda: bob.recv("alice", "never"))
        wait_until(lambda: blocked(bob, "never"))
        bob.close()
        thread.join(10)
        assert isinstance(got[0], EndpointClosed)

    def test_cancel_ends_only_what_it_names(self, pair):
        alice, bob = pair
        threads = {tag: in_thread(lambda tag=tag: bob.recv("alice", tag)) for tag in ("a/1", "b/1")}
        wait_until(lambda: blocked(bob, "a/1") and blocked(bob, "b/1"))
        bob.cancel_recv("alice", "a/")
        threads["a/1"][0].join(10)
        assert isinstance(threads["a/1"][1][0], RecvCancelled)
        alice.send("bob", "b/1", b"still here")
        threads["b/1"][0].join(10)
        assert threads["b/1"][1] == [b"still here"]


class TestConnect:
    def test_each_may_start_first_and_progress_names_who_is_missing(self, broker_url):
        cluster = make_cluster(broker_url, 3)
        heard = []
        early, got = in_thread(
            lambda: connect_as(
                cluster, "carol", quick_settings(), on_progress=lambda *news: heard.append(news)
            )
        )
        wait_until(lambda: heard)
        assert heard[0][0] == ["alice", "bob"]
        assert heard[0][1] > 0
        rest = run_parties(
            lambda: connect_as(cluster, "alice", quick_settings()),
            lambda: connect_as(cluster, "bob", quick_settings()),
        )
        early.join(10)
        for endpoint in (*rest, got[0]):
            endpoint.close()

    def test_a_timeout_names_the_missing(self, broker_url):
        cluster = make_cluster(broker_url, 3)
        settings = quick_settings(connect_timeout=0.2)
        with pytest.raises(HandshakeTimeout, match=r"alice: waited 0\.2 s .*for bob, carol"):
            connect_as(cluster, "alice", settings)

    @pytest.mark.usefixtures("brisk_hellos")
    def test_a_differing_cluster_file_is_refused_at_both_sides(self, broker_url):
        devices = {
            "SP0": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
        }
        cluster = make_cluster(broker_url, 2, devices=devices)
        other = cluster.model_copy(update={"devices": {}})
        sides = [
            in_thread(lambda: connect_as(cluster, "alice", quick_settings())),
            in_thread(lambda: connect_as(other, "bob", quick_settings())),
        ]
        for thread, _ in sides:
            thread.join(20)
        assert [type(outcome[0]) for _, outcome in sides] == [ClusterMismatch] * 2

    def test_a_second_process_as_the_same_party_is_refused(self, pair):
        alice, bob = pair
        with pytest.raises(PartyTaken, match=r"party 'alice'.*already runs in another process"):
            connect_as(alice.cluster, "alice", quick_settings())
        alice.send("bob", "t", b"undisturbed")
        assert bob.recv("alice", "t") == b"undisturbed"

    def test_a_session_can_be_joined_again_and_old_messages_are_not_seen(self, broker_url):
        cluster = make_cluster(broker_url, 2)
        settings = quick_settings()
        for run in range(3):
            alice, bob = run_parties(
                lambda: connect_as(cluster, "alice", settings),
                lambda: connect_as(cluster, "bob", settings),
            )
            alice.send("bob", "t", b"%d" % run)
            assert bob.recv("alice", "t") == b"%d" % run
            assert not bob.has_message("alice", "left behind")
            alice.send("bob", "left behind", b"")
            run_parties(alice.close, bob.close)

    def test_what_a_crashed_run_left_behind_is_ignored(self, broker_url):
        cluster = make_cluster(broker_url, 2)
        stale = list_names.hello_list(cluster.session, "bob", "alice")
        connection = Broker(broker_url).at(stale).open()
        for junk in (b"", b"junk", b"\1\0\0", b"\x63" * 50):
            connection.execute(b"RPUSH", stale, junk, timeout=5)
        alice, bob = join(cluster)
        alice.send("bob", "t", b"x")
        assert bob.recv("alice", "t") == b"x"
        run_parties(alice.close, bob.close)
        connection.close()

    def test_junk_in_a_data_list_is_skipped(self, pair, broker_url):
        alice, bob = pair
        name = alice.parts.core.peers["bob"].out_prefix + list_names.encode_tag("t")
        connection = Broker(broker_url).at(name).open()
        for junk in (b"", b"junk", b"\1\xff\xff"):
            connection.execute(b"RPUSH", name, junk, timeout=5)
        alice.send("bob", "t", b"good")
        assert bob.recv("alice", "t") == b"good"
        connection.close()

    def test_every_list_expires(self, pair, broker_url):
        alice, _ = pair
        alice.send("bob", "t", b"x")
        alice.flush()
        survey = Survey(Broker(broker_url))
        keys = survey.keys(alice.session)
        assert keys
        assert all(key.expires_seconds for key in keys)
        survey.close()

    @pytest.mark.parametrize(
        ("party", "cluster", "message"),
        [("dave", True, "use one of"), (None, True, "no party"), ("alice", False, "no cluster")],
    )
    def test_what_is_missing_is_said(self, broker_url, party, cluster, message):
        with pytest.raises(ConfigError, match=message):
            connect_as(make_cluster(broker_url) if cluster else None, party, quick_settings())
