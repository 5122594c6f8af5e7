"""RelayChannel: each of yacl's twelve methods, called as C++ calls them."""

import pytest
from spu.libspu import link

from redislink import (
    EndpointClosed,
    PayloadTypeError,
    RecvCancelled,
    RecvTimeout,
    SendTimeout,
    UsageError,
)
from redislink.spu.channel import RelayChannel
from tests.conftest import in_thread, run_parties
from tests.support.waiting import wait_until


@pytest.fixture
def broker_url(every_broker_url):
    return every_broker_url


@pytest.fixture
def channels(mesh, broker_url):
    alice, bob = mesh(broker_url, 2, close_timeout=0.5)
    return (
        RelayChannel(alice, "bob", "L/", recv_timeout=20),
        RelayChannel(bob, "alice", "L/", recv_timeout=20),
    )


def waiting(channel):
    return bool(channel._endpoint.parts.core.inbox.waits())


def test_it_is_a_channel_and_overrides_every_pure_virtual(channels):
    assert isinstance(channels[0], link.IChannel)
    # One attempt each through the C++ names; pybind11 raises for a pure virtual left out.
    alice, bob = channels
    link.IChannel.send_async(alice, "k", b"v")
    assert link.IChannel.recv(bob, "k") == b"v"
    link.IChannel.send(alice, "k", b"w")
    assert link.IChannel.recv(bob, "k") == b"w"
    link.IChannel.set_throttle_window_size(alice, 0)
    link.IChannel.send_async_throttled(alice, "k", b"x")
    assert link.IChannel.recv(bob, "k") == b"x"
    link.IChannel.set_chunk_parallel_send_size(alice, 8)
    link.IChannel.test_send(alice, 1000)
    link.IChannel.test_recv(bob)
    link.IChannel.wait_link_task_finish(alice)
    link.IChannel.abort(alice)


@pytest.mark.parametrize("method", ["Send", "SendAsync", "SendAsyncThrottled"])
def test_each_way_to_send_arrives(channels, method):
    alice, bob = channels
    getattr(alice, method)("root:P2P-1:0->1", b"\0payload")
    got = bob.Recv("root:P2P-1:0->1")
    assert type(got) is bytes
    assert got == b"\0payload"


def test_both_directions_with_the_same_key(channels):
    alice, bob = channels
    alice.SendAsync("k", b"from alice")
    bob.SendAsync("k", b"from bob")
    assert (alice.Recv("k"), bob.Recv("k")) == (b"from bob", b"from alice")


def test_both_directions_from_threads(channels):
    def work(channel):
        for i in range(100):
            channel.SendAsync(f"k{i}", b"%d" % i)
            assert channel.Recv(f"k{i}") == b"%d" % i

    run_parties(*(lambda c=c: work(c) for c in channels))


def test_receiving_from_several_threads(channels):
    alice, bob = channels
    threads = [in_thread(lambda i=i: bob.Recv(f"k{i}")) for i in range(6)]
    for i in reversed(range(6)):
        alice.Send(f"k{i}", b"%d" % i)
    for i, (thread, got) in enumerate(threads):
        thread.join(10)
        assert got == [b"%d" % i]


def test_send_returns_when_the_broker_has_it(channels, monkeypatch):
    alice, bob = channels
    flush, flushed = alice._endpoint.flush, []

    def noted():
        flushed.append(alice._last_sent[0])
        flush()

    monkeypatch.setattr(alice._endpoint, "flush", noted)
    alice.Send("k", b"v")
    assert flushed == ["L/k"]
    assert bob._endpoint.has_message("alice", "L/k")


def test_namespaces_keep_links_apart(channels):
    alice, bob = channels
    other = RelayChannel(bob._endpoint, "alice", "M/", recv_timeout=0.02)
    alice.Send("k", b"v")
    with pytest.raises(RecvTimeout):
        other.Recv("k")
    assert bob.Recv("k") == b"v"


def test_the_receive_timeout_is_what_was_set(channels):
    alice, _ = channels
    assert alice.GetRecvTimeout() == 20_000
    alice.SetRecvTimeout(30)
    assert alice.GetRecvTimeout() == 30
    with pytest.raises(RecvTimeout, match=r"waited 0\.03 s"):
        alice.Recv("never")
    alice.SetRecvTimeout(0)
    assert alice.GetRecvTimeout() == 60_000
    with pytest.raises(UsageError):
        alice.SetRecvTimeout(-1)


def test_the_throttle_window_holds_the_sender_back(channels):
    alice, bob = channels
    alice.SetThrottleWindowSize(2)
    sent = []

    def send_all():
        for i in range(5):
            alice.SendAsyncThrottled(f"k{i}", b"x")
            sent.append(i)

    thread, outcome = in_thread(send_all)
    for taken in range(3):
        wait_until(lambda taken=taken: len(sent) == taken + 2)
        assert thread.is_alive()
        bob.Recv(f"k{taken}")
    thread.join(10)
    assert outcome == [None]
    assert sent == [0, 1, 2, 3, 4]


def test_messages_taken_out_of_order_make_room_too(channels):
    alice, bob = channels
    alice.SetThrottleWindowSize(2)
    alice.SendAsyncThrottled("k0", b"x")
    alice.SendAsyncThrottled("k1", b"x")
    bob.Recv("k1")
    alice.SendAsyncThrottled("k2", b"x")


def test_no_window_is_no_limit(channels):
    alice, _ = channels
    alice.SetThrottleWindowSize(1)
    alice.SetThrottleWindowSize(0)
    for i in range(50):
        alice.SendAsyncThrottled(f"k{i}", b"x")
    with pytest.raises(UsageError):
        alice.SetThrottleWindowSize(-1)


@pytest.mark.parametrize("size", [0, 2])
def test_a_larger_window_lets_a_waiting_sender_go_on(channels, size):
    alice, bob = channels
    alice.SetThrottleWindowSize(1)
    alice.SendAsyncThrottled("k0", b"first")
    thread, outcome = in_thread(lambda: alice.SendAsyncThrottled("k1", b"second"))
    wait_until(lambda: alice._endpoint.parts.core.sleepers)
    setting, was_set = in_thread(lambda: alice.SetThrottleWindowSize(size))
    setting.join(10)
    assert was_set == [None], "it waits for the sender"
    thread.join(10)
    assert outcome == [None]
    assert bob.Recv("k1") == b"second"


def test_a_full_window_ends_with_an_error(channels, monkeypatch):
    alice, _ = channels
    alice.SetThrottleWindowSize(1)
    alice.SetRecvTimeout(50)
    alice.SendAsyncThrottled("k0", b"x")
    with pytest.raises(
        SendTimeout, match=r"bob has left 1 messages of this link untaken for 0.05 s:"
    ):
        alice.SendAsyncThrottled("k1", b"x")
    monkeypatch.setattr(alice._endpoint, "trouble", lambda peer: f"{peer} not heard for 12 s")
    with pytest.raises(SendTimeout, match=r" s \(bob not heard for 12 s\): check"):
        alice.SendAsyncThrottled("k1", b"x")


def test_abort_unblocks_local_waiters_and_ends_the_channel(channels):
    _, bob = channels
    thread, got = in_thread(lambda: bob.Recv("never"))
    wait_until(lambda: waiting(bob))
    bob.Abort()
    thread.join(10)
    assert isinstance(got[0], RecvCancelled)
    for call in (lambda: bob.Recv("k"), lambda: bob.SendAsync("k", b"")):
        with pytest.raises(RecvCancelled, match="aborted"):
            call()
    bob.WaitLinkTaskFinish()


def test_abort_unblocks_a_throttled_sender(channels):
    alice, _ = channels
    alice.SetThrottleWindowSize(1)
    alice.SendAsyncThrottled("k0", b"x")
    thread, got = in_thread(lambda: alice.SendAsyncThrottled("k1", b"x"))
    alice.Abort()
    thread.join(10)
    assert isinstance(got[0], RecvCancelled)


def test_wait_link_task_finish_is_bounded_though_nobody_receives(channels):
    alice, _ = channels
    for i in range(100):
        alice.SendAsync(f"k{i}", b"x" * 1000)
    thread, outcome = in_thread(alice.WaitLinkTaskFinish)
    thread.join(10)
    assert outcome == [None]


def test_wait_link_task_finish_waits_for_the_peer_to_receive(channels):
    alice, bob = channels
    alice.SendAsync("k", b"x")
    thread, outcome = in_thread(alice.WaitLinkTaskFinish)
    wait_until(lambda: alice._endpoint.parts.core.sleepers)
    assert not outcome
    assert bob.Recv("k") == b"x"
    thread.join(10)
    assert outcome == [None]


def test_the_handshake_does_not_need_the_peer_to_send_and_does_to_receive(channels):
    alice, bob = channels
    alice.TestSend(1000)
    bob.TestRecv()
    bob.SetRecvTimeout(20)
    with pytest.raises(RecvTimeout):
        bob.TestRecv()


@pytest.mark.parametrize("value", ["text", 3, None, [1]])
def test_a_value_that_is_not_bytes(channels, value):
    alice, bob = channels
    for send in (alice.Send, alice.SendAsync, alice.SendAsyncThrottled):
        with pytest.raises(PayloadTypeError):
            send("k", value)
    alice.Send("k", b"nothing was lost")
    assert bob.Recv("k") == b"nothing was lost"


@pytest.mark.parametrize("key", ["k" * 512, "\udc80"])
def test_a_key_that_is_no_tag(channels, key):
    alice, bob = channels
    for send in (alice.Send, alice.SendAsync, alice.SendAsyncThrottled):
        with pytest.raises(UsageError, match="tag"):
            send(key, b"x")
    with pytest.raises(UsageError, match="tag"):
        bob.Recv(key)
    alice.Send("k", b"nothing was lost")
    assert bob.Recv("k") == b"nothing was lost"


def test_after_the_endpoint_is_closed(channels):
    alice, _ = channels
    alice._endpoint.close()
    for call in (
        lambda: alice.Send("k", b""),
        lambda: alice.SendAsync("k", b""),
        lambda: alice.Recv("k"),
        lambda: alice.TestSend(1),
        alice.TestRecv,
    ):
        with pytest.raises(EndpointClosed):
            call()


def test_the_chunk_hint_is_checked(channels):
    channels[0].SetChunkParallelSendSize(4)
    with pytest.raises(UsageError):
        channels[0].SetChunkParallelSendSize(-1)


def test_closing_the_endpoint_ends_a_blocked_receive(channels):
    _, bob = channels
    thread, got = in_thread(lambda: bob.Recv("never"))
    wait_until(lambda: waiting(bob))
    bob._endpoint.close()
    thread.join(10)
    assert isinstance(got[0], EndpointClosed)
