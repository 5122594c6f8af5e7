"""Brokers of several servers: sentinels' master and Redis Cluster, found anew when they change."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from redislink import BrokerAuthError, BrokerRefused, BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker, make_outbox, topology
from redislink.broker.cluster_outbox import ClusterOutbox
from redislink.broker.topology import ClusterTopology, _moved_untrusted, _slots_untrusted
from redislink.broker.url import parse_url
from redislink.errors import BrokerBusy, EndpointClosed
from redislink.protocol import list_names
from tests.conftest import in_thread, join, make_cluster
from tests.support.groups import MASTER, ClusterGroup, SentinelGroup, slot_of
from tests.support.servers import debian_redis
from tests.support.traffic import talk
from tests.support.waiting import wait_until

PARTIES = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def sentinels():
    kind = "redis-server" if debian_redis() else "valkey"
    with SentinelGroup(kind) as group:
        yield group


@pytest.fixture(scope="module")
def cluster():
    with ClusterGroup(replicas=1) as group:
        yield group


def execute(broker, *command):
    connection = broker.open()
    try:
        return connection.execute(*command, timeout=5)
    finally:
        connection.close()


def ports_of(broker):
    """What each server of the broker says of its own port."""
    servers = map(broker.on, broker.addresses())
    return [int(execute(server, b"CONFIG", b"GET", b"port")[1]) for server in servers]


@pytest.mark.slow
class TestSentinel:
    def test_the_master_is_found_past_a_sentinel_that_is_down(self, sentinels):
        broker = Broker(sentinels.url, timeout=5)
        assert execute(broker, b"RPUSH", b"x", b"y") == 1
        assert sentinels.ask(sentinels.master, "LPOP", "x") == b"y"
        assert sentinels.password not in broker.label
        assert broker.at(b"x") is broker

    def test_users_are_made_on_replicas_too(self, sentinels):
        ports = ports_of(Broker(sentinels.url, timeout=5))
        assert ports == [sentinels.master, sentinels.replica]

    def test_a_name_that_no_sentinel_has(self, sentinels):
        url = sentinels.url.replace(f"/{MASTER}", "/other")
        with pytest.raises(BrokerUnreachable, match="no master named 'other'") as caught:
            Broker(url, timeout=5).open()
        assert sentinels.password not in str(caught.value)

    def test_a_wrong_password(self, sentinels):
        url = sentinels.url.replace(sentinels.password, "wr0ng")
        with pytest.raises(BrokerAuthError, match="master of redis\\+sentinel://") as caught:
            Broker(url, timeout=5).open()
        assert "wr0ng" not in str(caught.value)

    def test_a_failover_in_the_middle_of_a_run(self, sentinels):
        went = talk(sentinels.url, sentinels.fail_over, reply_timeout=2)
        assert went.comparison.clean, went
        assert all(stats.reconnects >= 1 for stats in went.stats)

    def test_a_master_that_became_a_replica_is_left(self, sentinels):
        """Its connections stay open where no sentinel kills them: it says READONLY itself."""
        connection = Broker(sentinels.url, timeout=5).on(("127.0.0.1", sentinels.replica)).open()
        with pytest.raises(BrokerUnreachable, match="is a replica now"):
            connection.execute(b"RPUSH", b"x", b"y", timeout=5)
        assert not connection.usable


def test_no_sentinel_is_there():
    with pytest.raises(BrokerUnreachable, match="a sentinel") as caught:
        Broker("redis+sentinel://:s3cret@127.0.0.1:1/relay", timeout=5).open()
    assert "s3cret" not in str(caught.value)


def test_a_sentinel_that_wants_a_password():
    with EmbeddedBroker(password="right") as server:  # asks for it before all else
        place = f"127.0.0.1:{server.port}/relay"
        for query in ("", "?sentinel_password=wr0ng"):
            with pytest.raises(BrokerAuthError, match="a sentinel") as caught:
                Broker(f"redis+sentinel://{place}{query}", timeout=5).open()
            assert "wr0ng" not in str(caught.value)
        # It is let in now, and finds that this is no sentinel.
        with pytest.raises(BrokerRefused, match="SENTINEL"):
            Broker(f"redis+sentinel://{place}?sentinel_password=right", timeout=5).open()


@pytest.mark.slow
class TestCluster:
    def test_each_party_is_on_a_node_and_several_share_a_connection(self, cluster):
        broker = Broker(cluster.url, timeout=5)
        session = cluster.spread_session(PARTIES)
        names = [list_names.claim_key(session, party) for party in PARTIES]
        assert sorted(broker.address(name)[1] for name in names) == sorted(cluster.masters)
        outbox = make_outbox(broker, 60, [*names, *(name + b"2" for name in names)], names)
        outbox.reconnect()
        for name in names:
            outbox.push(name, (b"x", b"y"), name)
            outbox.push(name + b"2", (b"x", b"y"), name)
        assert outbox.flush()
        assert sorted(outbox.collect()) == sorted((name, True) for name in names * 2)
        assert not outbox.has_unread
        for name, party in zip(names, PARTIES, strict=True):
            clients = cluster.ask(cluster.node_of(slot_of(session, party)), "CLIENT", "LIST")
            assert bytes(clients).count(b"cmd=pexpire") == 1
            assert execute(broker.at(name), b"LPOP", name) == b"xy"
        outbox.delete(*(name + b"2" for name in names))  # in three slots
        assert outbox.flush()
        assert all(execute(broker.at(name), b"LPOP", name + b"2") is None for name in names)
        outbox.close()
        with pytest.raises(EndpointClosed):
            outbox.push(names[0], (b"x", b"y"))

    def test_every_server_of_it(self, cluster):
        ports = set(ports_of(Broker(cluster.url, timeout=5)))
        assert ports == {*cluster.masters, *cluster.replicas.values()}

    def test_a_list_that_is_elsewhere_now(self, cluster):
        """MOVED says where to: that counts, even if the other nodes do not know it yet."""
        broker = Broker(cluster.url, timeout=5)
        name = list_names.claim_key("moved", "alice")
        right = broker.address(name)
        port = next(p for p in cluster.masters if p != right[1])
        wrong = broker.on(("127.0.0.1", port))
        connection = wrong.open()
        with pytest.raises(BrokerUnreachable, match="MOVED"):
            connection.execute(b"RPUSH", name, b"x", timeout=5)
        assert not connection.usable
        assert broker.address(name) == right
        plain = f"redis://:{cluster.password}@127.0.0.1:{port}"
        with pytest.raises(BrokerRefused, match="write redis\\+cluster://"):
            execute(Broker(plain, timeout=5), b"RPUSH", name, b"x")

    def test_a_full_node_is_given_up_and_no_peer_is_blamed(self, cluster):
        """Whose inbox is there pushes to other nodes, which accept it: only the claim shows it."""
        session = cluster.spread_session(PARTIES)
        spec = make_cluster(cluster.url, 2, session=session)
        ends = join(spec, broker_timeout=3, peer_timeout=2, close_timeout=0.5)
        port = cluster.node_of(slot_of(session, "alice"))
        cluster.ask(port, "CONFIG", "SET", "maxmemory", "100kb")
        try:
            for end in ends:
                thread, outcome = in_thread(lambda end=end: end.recv(1 - end.rank, "never"))
                thread.join(20)
                assert type(outcome[0]) is BrokerBusy, outcome
                assert "out of memory" in str(outcome[0])
        finally:
            cluster.ask(port, "CONFIG", "SET", "maxmemory", "0")
            for end in ends:
                end.abort("done")

    def test_slots_moved_a_node_restarted_and_one_lost_in_the_middle_of_a_run(self, cluster):
        session = cluster.spread_session(PARTIES)
        moved = []

        def move(party):
            slot = slot_of(session, party)
            others = [port for port in cluster.masters if port != cluster.node_of(slot)]
            moved.append(cluster.move_slot(slot, others[0]))

        went = talk(
            cluster.url,
            lambda: move("alice"),
            lambda: move("bob"),
            lambda: cluster.restart_empty(cluster.masters[-1]),
            lambda: cluster.lose(cluster.masters[0]),
            session=session,
            reply_timeout=2,
        )
        assert went.comparison.clean, went
        assert len(moved) == 2
        assert all(stats.reconnects >= 1 for stats in went.stats)


def test_a_server_that_is_no_cluster(valkey):
    url = f"redis+cluster://127.0.0.1:{valkey.port}"
    with pytest.raises(BrokerRefused, match="not a node of a Redis Cluster"):
        Broker(url, timeout=5).open()


def test_one_server_has_a_plain_outbox(valkey):
    broker = Broker(valkey.url)
    assert not isinstance(make_outbox(broker, 60, [b"rl:{a:b}:"], [b"rl:{a:b}:"]), ClusterOutbox)
    assert broker.at(b"x") is broker
    assert broker.addresses() == []


SLOTS = [[0, 100, [b"h", 1, b"id", []], [b"r", 2]], [101, 16383, [b"", 3, b"id"]]]


class TestSlotMap:
    def test_what_nodes_say(self):
        assert list(_slots_untrusted(SLOTS, "asked")) == [
            (0, 100, [("h", 1), ("r", 2)]),
            (101, 16383, [("asked", 3)]),
        ]

    @pytest.mark.parametrize(
        "reply",
        [
            *(b"OK", None, 1, [1], [[]], [[0, 1]], [[0, 16384, [b"h", 1]]], [[5, 1, [b"h", 1]]]),
            *([[0, 1, [b"h"]]], [[0, 1, [b"h", 0]]], [[0, 1, [b"h", b"1"]]], [[0, 1, b"h"]]),
            *([[0, 1, [b"\xff", 1]]], [[0, 1, [7, 1]]], [[b"0", 1, [b"h", 1]]], [[0, 1, []]]),
        ],
    )
    def test_nonsense(self, reply):
        nodes = ClusterTopology(parse_url("redis+cluster://h:1"), lambda _: reply)
        with pytest.raises(BrokerRefused, match="is not a list of slots"):
            nodes.address(b"x")

    def test_a_slot_that_nobody_serves(self):
        nodes = ClusterTopology(parse_url("redis+cluster://h:1"), lambda _: SLOTS[:1])
        with pytest.raises(BrokerBusy, match="no node serves slot 16287"):
            nodes.address(b"x")  # its slot
        assert nodes.any_master() == ("h", 1)

    def test_nobody_serves_any_slot(self):
        nodes = ClusterTopology(parse_url("redis+cluster://h:1"), lambda _: [])
        with pytest.raises(BrokerBusy, match="no node serves any slot"):
            nodes.any_master()

    @pytest.mark.parametrize(
        ("text", "moved"),
        [
            ("MOVED 7 10.0.0.1:6379", {7: ("10.0.0.1", 6379)}),
            ("MOVED 7 :6380", {7: ("asked", 6380)}),
            ("MOVED 7 fe80::1:6380", {7: ("fe80::1", 6380)}),
            *((text, {}) for text in ("MOVED", "MOVED x h:1", "MOVED 99999 h:1", "MOVED 7 h:0")),
            *((text, {}) for text in ("MOVED 7 h", "MOVED -1 h:1", "READONLY You cannot", "")),
        ],
    )
    def test_moved(self, text, moved):
        assert _moved_untrusted(text, "asked") == moved

    def test_who_says_moved_knows_better_than_the_next_map_only(self):
        nodes = ClusterTopology(parse_url("redis+cluster://h:1"), lambda _: SLOTS)
        nodes.moved(("h", 1), "MOVED 16287 new:9")
        assert nodes.address(b"x") == ("new", 9)
        nodes.forget()
        assert nodes.address(b"x") == ("h", 3)

    def test_one_thread_asks_for_all_and_all_get_its_error(self, monkeypatch):
        asked, came = [], []

        def ask(address):
            asked.append(address)
            raise BrokerUnreachable("away")

        def monotonic():
            came.append(threading.get_ident())
            return time.monotonic()

        nodes = ClusterTopology(parse_url("redis+cluster://h:1"), ask)
        monkeypatch.setattr(topology, "time", SimpleNamespace(monotonic=monotonic))
        with nodes._asking:  # so that all of them come before the first may ask
            threads = [in_thread(lambda: nodes.address(b"x")) for _ in range(4)]
            wait_until(lambda: len(set(came)) == 4)
        for thread, _ in threads:
            thread.join(10)
        errors = [outcome for _, (outcome,) in threads]
        assert isinstance(errors[0], BrokerUnreachable)
        assert all(error is errors[0] for error in errors)
        assert asked == [("h", 1)]

    def test_a_node_that_is_out_of_reach_is_asked_last_from_then_on(self):
        asked = []

        def ask(address):
            asked.append(address)
            if address == ("down", 6379):
                raise BrokerUnreachable("down")
            return SLOTS

        nodes = ClusterTopology(parse_url("redis+cluster://down,up"), ask)
        nodes.address(b"x")
        nodes.forget()
        nodes.address(b"x")
        assert asked == [("down", 6379), ("up", 6379), ("up", 6379)]

    def test_a_wrong_password_is_said_where_another_node_is_down(self):
        def ask(address):
            raise (BrokerAuthError("no") if address[0] == "a" else BrokerUnreachable("down"))

        nodes = ClusterTopology(parse_url("redis+cluster://a,b"), ask)
        with pytest.raises(BrokerAuthError):
            nodes.address(b"x")


def test_a_node_that_says_nothing_does_not_hold_up_the_rest():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = Broker(f"redis+cluster://127.0.0.1:{mute.getsockname()[1]}", timeout=0.1)
        with pytest.raises(BrokerUnreachable, match="node of redis\\+cluster"):
            broker.open()
