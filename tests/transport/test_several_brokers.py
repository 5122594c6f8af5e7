"""Several independent brokers: where the parties meet, when they move, and that nothing is lost."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from redislink import (
    BrokerPermissionError,
    BrokerUnreachable,
    ClusterMismatch,
    ConfigError,
    PartyTaken,
    PeerAborted,
)
from redislink.broker import Broker, EmbeddedBroker, SeveralBrokers
from redislink.operate import acl
from redislink.protocol import list_names
from redislink.protocol.frame import Hello, encode
from redislink.testing.proxy import Proxy
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.servers import Admin, make_server
from tests.support.waiting import wait_until

QUICK = {"broker_move_after": 0.5, "reply_timeout": 2.0, "blpop_timeout": 1.0}


@pytest.fixture
def pair() -> Iterator[list[EmbeddedBroker]]:
    with make_server("valkey") as first, make_server("valkey") as second:
        yield [first, second]


def kill(server: EmbeddedBroker) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def urls(*brokers) -> str:
    return ", ".join(b if isinstance(b, str) else b.url for b in brokers)


def proxied(proxy: Proxy) -> str:
    return proxy.url()


def exchange(ends, first: int, count: int) -> None:
    """Each party sends numbered messages to the others and checks what it gets."""

    def work(end):
        others = [name for name in end.cluster.party_names if name != end.party]
        for number in range(first, first + count):
            for other in others:
                end.send(other, f"t:{number}", f"{end.party} {number}".encode() * 20)
            for other in others:
                assert end.recv(other, f"t:{number}") == f"{other} {number}".encode() * 20

    run_parties(*(lambda end=end: work(end) for end in ends))


def where(end) -> int:
    return end.parts.core.broker.index


def reaches(end, index: int) -> bool:
    """Whether a party that is not on this broker is connected to it."""
    return end.parts.closing._claim._moves.reaches(index, time.monotonic())


def keys(server: EmbeddedBroker) -> list[bytes]:
    admin = Admin(server)
    try:
        return list(admin(b"KEYS", b"*"))
    finally:
        admin.close()


def left(server: EmbeddedBroker) -> list[bytes]:
    """What a session has left behind, but for acks that were written after their reader had left.

    Their list lives for two minutes.
    """
    return [name for name in keys(server) if not name.endswith(b":!control")]


@contextlib.contextmanager
def joined(cluster, settings):
    """Every party's endpoint, each with its own settings; closed at the end."""
    ends = run_parties(
        *(lambda n=n: connect_as(cluster, n, settings[n]) for n in cluster.party_names)
    )
    try:
        yield ends
    finally:
        run_parties(*(end.close for end in ends))


@pytest.mark.slow
def test_the_present_broker_is_killed_for_good_and_all_go_on(pair):
    ends = join(make_cluster(urls(*pair)), **QUICK)
    exchange(ends, 0, 20)
    assert [where(end) for end in ends] == [0, 0, 0]
    kill(pair[0])
    exchange(ends, 20, 200)
    assert [where(end) for end in ends] == [1, 1, 1]
    run_parties(*(end.close for end in ends))
    assert left(pair[1]) == []


@pytest.mark.slow
def test_one_party_is_cut_off_and_all_move_and_clear_up_behind_them(pair):
    cluster = make_cluster(urls(*pair))
    with Proxy(pair[0].port) as proxy:
        settings = dict.fromkeys(cluster.party_names, quick_settings(**QUICK))
        settings["bob"] = quick_settings(broker_url=urls(proxied(proxy), pair[1]), **QUICK)
        with joined(cluster, settings) as ends:
            exchange(ends, 0, 10)
            proxy.go_away()
            exchange(ends, 10, 50)
            assert [where(end) for end in ends] == [1, 1, 1]
            proxy.come_back()
            exchange(ends, 60, 10)
            assert [where(end) for end in ends] == [1, 1, 1]  # nobody goes back by itself
            # The first one is alive all the time, so what the session has left there goes at once.
            wait_until(
                lambda: {k.rsplit(b":")[-1] for k in keys(pair[0])} == {b"!claim", b"!status"}
            )
            wait_until(lambda: reaches(ends[1], 0))
    assert left(pair[0]) == left(pair[1]) == []


@pytest.mark.slow
def test_it_comes_back_to_a_broker_that_it_has_left_with_lists_still_there(pair):
    cluster = make_cluster(urls(*pair))
    with Proxy(pair[0].port) as first, Proxy(pair[1].port) as second:
        own = quick_settings(broker_url=urls(proxied(first), proxied(second)), **QUICK)
        with joined(cluster, dict.fromkeys(cluster.party_names, own)) as ends:
            exchange(ends, 0, 10)
            alice = ends[0]
            requests = [alice.send("bob", "later", bytes([n]) * 1000) for n in range(50)]
            alice.flush()
            first.go_away()
            exchange(ends, 10, 20)
            second.go_away()
            first.come_back()
            exchange(ends, 30, 20)
            assert [where(end) for end in ends] == [0, 0, 0]
            for number in range(50):
                assert ends[1].recv("alice", "later") == bytes([number]) * 1000
            for request in requests:
                request.wait()
            assert not ends[1].has_message("alice", "later")


@pytest.mark.slow
def test_both_are_away_and_the_other_one_comes_back(pair):
    cluster = make_cluster(urls(*pair))
    with Proxy(pair[0].port) as first, Proxy(pair[1].port) as second:
        own = quick_settings(broker_url=urls(proxied(first), proxied(second)), **QUICK)
        with joined(cluster, dict.fromkeys(cluster.party_names, own)) as ends:
            exchange(ends, 0, 10)
            first.go_away()
            second.go_away()
            thread, outcome = in_thread(lambda: exchange(ends, 10, 10))
            core = ends[0].parts.core
            wait_until(lambda: core.outage.seconds > 1.0)
            second.come_back()
            thread.join(20)
            assert outcome == [None]
            assert [where(end) for end in ends] == [1, 1, 1]


@pytest.mark.slow
def test_a_broker_that_falls_silent_is_left_without_waiting_for_timeouts(pair):
    """Its connections stand and nothing comes: as if its machine were gone."""
    cluster = make_cluster(urls(*pair))
    slow = {"broker_move_after": 0.5, "reply_timeout": 60.0, "blpop_timeout": 20.0}
    with Proxy(pair[0].port) as proxy:
        own = quick_settings(broker_url=urls(proxied(proxy), pair[1]), **slow)
        with joined(cluster, dict.fromkeys(cluster.party_names, own)) as ends:
            exchange(ends, 0, 10)
            proxy.go_away(silently=True)
            exchange(ends, 10, 10)
            assert [where(end) for end in ends] == [1, 1, 1]


@pytest.mark.slow
def test_parties_that_reach_different_brokers_first_meet_where_both_are(pair):
    with socket_without_server() as nobody:
        cluster = make_cluster(urls(*pair), 2)
        settings = {
            "alice": quick_settings(**QUICK),
            "bob": quick_settings(broker_url=urls(nobody, pair[1]), **QUICK),
        }
        with joined(cluster, settings) as ends:
            exchange(ends, 0, 10)
            wait_until(lambda: [where(end) for end in ends] == [1, 1])
            exchange(ends, 10, 10)
    assert keys(pair[0]) == keys(pair[1]) == []


@contextlib.contextmanager
def socket_without_server() -> Iterator[str]:
    """The URL of a port on which nobody listens, and nobody else can."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.mark.slow
def test_a_hello_of_a_dead_run_on_a_broker_that_comes_back_ends_nothing(pair):
    cluster = make_cluster(urls(*pair), 2, security="none")
    with Proxy(pair[1].port) as hers, Proxy(pair[1].port) as proxy:
        settings = {}
        for name, line in (("alice", hers), ("bob", proxy)):
            line.go_away()
            settings[name] = quick_settings(broker_url=urls(pair[0], proxied(line)), **QUICK)
        with joined(cluster, settings) as ends:
            hello = encode(Hello(cluster.digest(), b"deadbeef"))
            name = list_names.hello_list(cluster.session, "bob", "alice")
            admin = Admin(pair[1])
            admin(b"RPUSH", name, hello)
            proxy.come_back()
            wait_until(lambda: reaches(ends[1], 1))
            wait_until(lambda: not admin(b"EXISTS", name))
            admin.close()
            exchange(ends, 0, 10)


@pytest.mark.slow
def test_none_is_left_and_the_error_names_each(pair):
    ends = join(make_cluster(urls(*pair), 2), broker_timeout=2.0, **QUICK)
    exchange(ends, 0, 5)
    for server in pair:
        kill(server)
    for end in ends:
        with (
            pytest.raises(BrokerUnreachable, match="none of the 2 brokers can be used") as caught,
            end,
        ):
            end.recv({"alice": "bob", "bob": "alice"}[end.party], "never")
        assert all(server.url in str(caught.value) for server in pair)
        assert "REDISLINK_BROKER_TIMEOUT" in str(caught.value)


def test_the_users_that_acl_makes_are_enough(pair):
    cluster = make_cluster(urls(*pair), 2)
    names = cluster.party_names
    users = acl.party_users(cluster.session, names)
    for server in pair:
        acl.apply_users(Broker(server.url), users, dict.fromkeys(names, "pw"))
    settings = {
        user.party: quick_settings(
            broker_url=urls(*(acl.party_url(server.url, user.name, "pw") for server in pair)),
            **QUICK,
        )
        for user in users
    }
    with joined(cluster, settings) as ends:
        exchange(ends, 0, 5)
        # Each has claimed its name on both, and has heard the other on one of them.
        wait_until(lambda: all(reaches(end, 1) for end in ends))
        wait_until(lambda: not any(end.parts.closing._claim._moves.unheard for end in ends))


@pytest.mark.slow
def test_a_broker_that_refuses_pushes_is_left(pair):
    """It answers PING, and renews nothing: as a master without its replicas."""
    ends = join(make_cluster(urls(*pair), 2), **QUICK)
    exchange(ends, 0, 10)
    admin = Admin(pair[0])
    admin(b"CONFIG", b"SET", b"min-replicas-to-write", b"1")
    admin.close()
    exchange(ends, 10, 10)
    assert [where(end) for end in ends] == [1, 1]
    run_parties(*(end.close for end in ends))


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_a_party_that_its_broker_refuses_for_good_tells_the_others_over_another(pair, present):
    """Its user lost the right to push there, to anybody; the other broker knows nothing of it."""
    cluster = make_cluster(urls(*pair))
    names = cluster.party_names
    users = acl.party_users(cluster.session, names)
    for server in pair:
        acl.apply_users(Broker(server.url), users, dict.fromkeys(names, "pw"))
    with Proxy(pair[0].port) as line:
        settings = {}
        for user in users:
            both = [acl.party_url(url, user.name, "pw") for url in (line.url(), pair[1].url)]
            settings[user.party] = quick_settings(
                broker_url=urls(*both), peer_timeout=60.0, recv_timeout=20.0, **QUICK
            )
        ends = run_parties(*(lambda n=n: connect_as(cluster, n, settings[n]) for n in names))
        exchange(ends, 0, 5)
        if present:
            line.go_away()
            exchange(ends, 5, 5)
            line.come_back()
            wait_until(lambda: all(reaches(end, 0) for end in ends))
        alice = next(user.name for user in users if user.party == "alice")
        with contextlib.closing(Admin(pair[present])) as admin:
            admin(b"ACL", b"SETUSER", alice.encode(), b"-rpush")

        def fail(end):
            end.send("bob", "t", b"x")
            with pytest.raises(BrokerPermissionError), end:
                end.recv("bob", "never")

        def hear(end):
            with pytest.raises(PeerAborted, match="BrokerPermissionError") as caught, end:
                end.recv("alice", "t")
            return caught.value.peer

        told = run_parties(lambda: fail(ends[0]), lambda: hear(ends[1]), lambda: hear(ends[2]))
        # Whoever hears it first tells the other, too.
        assert "alice" in told
        assert set(told[1:]) <= set(names)


@pytest.mark.slow
def test_parties_do_not_wait_at_the_start_for_a_broker_that_does_not_answer(pair, caplog):
    cluster = make_cluster("redis://first", 2)
    slow = {"broker_move_after": 0.5, "reply_timeout": 60.0}
    with Proxy(pair[0].port) as proxy:
        proxy.go_away(silently=True)
        own = quick_settings(broker_url=urls(proxied(proxy), pair[1]), **slow)
        with joined(cluster, dict.fromkeys(cluster.party_names, own)) as ends:
            assert [where(end) for end in ends] == [1, 1]
            exchange(ends, 0, 10)


def test_an_error_names_each_broker_and_its_last_cause(valkey):
    with socket_without_server() as one, socket_without_server() as other:
        cluster = make_cluster(urls(one, other), 2)
        with pytest.raises(BrokerUnreachable) as caught:
            connect_as(cluster, "alice", quick_settings(**QUICK))
    text = str(caught.value)
    assert text.startswith("none of the 2 brokers can be used: broker redis://127.0.0.1:")
    assert text.count("refused") == 2
    assert all(url in text for url in (one[:-2], other[:-2]))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["reversed", "longer"])
def test_lists_that_differ_end_the_session_at_both(pair, valkey, order):
    cluster = make_cluster(urls(*pair), 2)
    other = urls(*pair, valkey) if order == "longer" else urls(*reversed(pair))
    settings = {"alice": quick_settings(**QUICK), "bob": quick_settings(broker_url=other, **QUICK)}
    ends = run_parties(*(lambda n=n: connect_as(cluster, n, settings[n]) for n in settings))

    def receive(end, peer):
        with pytest.raises((ClusterMismatch, PeerAborted)) as caught, end:
            end.recv(peer, "never")
        return caught.value

    errors = run_parties(lambda: receive(ends[0], "bob"), lambda: receive(ends[1], "alice"))
    # Whoever ends first tells the other, who may hear that before it finds out by itself.
    assert any(isinstance(error, ClusterMismatch) for error in errors)
    assert all("the same brokers, in the same order" in str(error) for error in errors)


@pytest.mark.slow
def test_a_party_is_claimed_on_all_of_them(pair):
    cluster = make_cluster(urls(*pair), 2)
    ends = join(cluster, **QUICK)
    with pytest.raises(PartyTaken):
        # It lists one of them only, and not the one where the session is.
        connect_as(cluster, "alice", quick_settings(broker_url=pair[1].url, **QUICK))
    run_parties(*(end.close for end in ends))


def test_one_broker_starts_no_thread_of_these(valkey):
    before = set(threading.enumerate())
    ends = join(make_cluster(valkey.url, 2))
    names = sorted(thread.name for thread in set(threading.enumerate()) - before)
    assert names == ["redislink-claim"] * 2 + ["redislink-control-alice", "redislink-control-bob"]
    assert not any(isinstance(end.parts.core.broker, SeveralBrokers) for end in ends)
    run_parties(*(end.close for end in ends))


def test_one_password_does_not_go_to_several_brokers(pair):
    cluster = make_cluster(urls(*pair), 2)
    with pytest.raises(ConfigError, match="another one's password"):
        connect_as(cluster, "alice", quick_settings(), credentials=lambda: "secret")
    broker = SeveralBrokers([Broker(server.url) for server in pair])
    assert broker.labels == ", ".join(server.url for server in pair)
