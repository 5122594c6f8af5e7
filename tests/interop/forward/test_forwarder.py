"""Two forwarders at a real broker, and the sockets of programs at both."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from redislink import (
    BrokerPermissionError,
    ClusterSpec,
    ConfigError,
    Endpoint,
    PartyTaken,
    RecvTimeout,
    RedisLinkSettings,
    connect,
)
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.url import parse_url
from redislink.errors import HandshakeTimeout, PeerAborted
from redislink.interop.forward import link as link_module
from redislink.interop.forward.forwarder import Forwarder
from redislink.interop.forward.link import LOGGER, Plan, Retries
from redislink.interop.forward.pairs import pair_cluster
from redislink.interop.forward.places import Targets, parse_allowed, parse_forward
from redislink.interop.forward.streams import Streams
from redislink.operate import acl
from redislink.testing import Proxy
from tests.conftest import IDENTITIES, in_thread, make_cluster, quick_settings
from tests.support.waiting import wait_until

PATIENCE = 20.0


class _Collecting(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What all forwarders say."""
    with listening() as lines:
        yield lines


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    logger, handler = logging.getLogger(LOGGER), _Collecting()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as server:
        yield server


def until_said(lines: Sequence[str], words: str, times: int = 1) -> str:
    """The last line that holds these words, once there are so many."""
    found: list[str] = wait_until(
        lambda: found if len(found := [line for line in lines if words in line]) >= times else [],
        PATIENCE,
        f"{words!r} in {lines}",
    )
    return found[-1]


class Target:
    """A program that others reach: it accepts connections, and the test talks on them."""

    def __init__(self, family: int = socket.AF_INET, path: str = "") -> None:
        self.socket = socket.socket(family)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(path or ("127.0.0.1", 0))
        self.socket.listen(1000)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(PATIENCE)
        return connection

    def close(self) -> None:
        self.socket.close()


@dataclass
class Running:
    """A forwarder in a thread."""

    forwarder: Forwarder
    thread: threading.Thread
    outcome: list[object]

    def end(self) -> object:
        wait_until(lambda: self.forwarder._loop is not None or self.outcome, PATIENCE)
        self.forwarder.end()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.outcome[0]


def run(
    cluster: ClusterSpec,
    party: str,
    *,
    local: Sequence[str] = (),
    allow: Sequence[str] = (),
    retries: Retries | None = None,
    settings: RedisLinkSettings | None = None,
) -> Running:
    others = [name for name in cluster.party_names if name != party]
    plan = Plan(
        cluster,
        party,
        settings or quick_settings(),
        IDENTITIES[party],
        [parse_forward(text, cluster, party) for text in local],
        Targets([parse_allowed(text, cluster, party) for text in allow], others),
        retries or Retries(delay=0.02),
    )
    forwarder = Forwarder(plan)
    return Running(forwarder, *in_thread(forwarder.serve))


def port_in(line: str) -> int:
    found = re.search(r":(\d+) leads to", line)
    assert found, line
    return int(found[1])


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def is_reset_at_once(port: int) -> bool:
    """Whether a connection is reset, be it before the kernel says here that it is made."""
    try:
        connection = dial(port)
    except ConnectionResetError:
        return True
    with connection:
        return is_reset(connection)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def is_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    return False


@dataclass
class World:
    """Alice's programs reach two targets at bob, and a third that nothing listens at."""

    cluster: ClusterSpec
    target: Target
    unix: Target
    port: int
    path: Path
    dead_port: int
    unknown_port: int
    lines: list[str]


@pytest.fixture(scope="module")
def world(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("f")
    cluster = make_cluster(broker.url, 3)
    target, unix = Target(), Target(socket.AF_UNIX, str(directory / "target"))
    with socket.socket() as unused, listening() as lines:
        unused.bind(("127.0.0.1", 0))  # and never listens
        bob = run(
            cluster,
            "bob",
            allow=[
                f"web=127.0.0.1:{target.port}",
                f"alice:quiet=unix:{directory / 'target'}",
                f"dead=127.0.0.1:{unused.getsockname()[1]}",
                "carol:unknown=127.0.0.1:1",
            ],
        )
        alice = run(
            cluster,
            "alice",
            local=[
                "0:bob:web",
                f"unix:{directory / 'door'}:bob:quiet",
                "127.0.0.1:0:bob:dead",
                "localhost:0:bob:unknown",
            ],
        )
        until_said(lines, "leads to unknown")
        yield World(
            cluster,
            target,
            unix,
            port_in(until_said(lines, "leads to web")),
            directory / "door",
            port_in(until_said(lines, "leads to dead")),
            port_in(until_said(lines, "leads to unknown")),
            lines,
        )
        assert [bob.end(), alice.end()] == [None, None]
        assert not (directory / "door").exists()
    target.close()
    unix.close()


class TestConnections:
    def test_each_way_ends_by_itself(self, world: World) -> None:
        with dial(world.port) as mine:
            mine.sendall(b"question")
            mine.shutdown(socket.SHUT_WR)
            with world.target.accept() as theirs:
                assert read_all(theirs) == b"question"
                theirs.sendall(b"answer")
            assert read_all(mine) == b"answer"

    def test_the_other_side_may_speak_and_end_first(self, world: World) -> None:
        with dial(world.port) as mine, world.target.accept() as theirs:
            theirs.sendall(b"welcome")
            theirs.shutdown(socket.SHUT_WR)
            assert read_all(mine) == b"welcome"
            mine.sendall(b"thanks")
            mine.shutdown(socket.SHUT_WR)
            assert read_all(theirs) == b"thanks"

    def test_unix_sockets_at_both_ends(self, world: World) -> None:
        assert world.path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as mine:
            mine.settimeout(PATIENCE)
            mine.connect(str(world.path))
            mine.sendall(b"question")
            mine.shutdown(socket.SHUT_WR)
            with world.unix.accept() as theirs:
                assert read_all(theirs) == b"question"
                theirs.sendall(b"answer")
            assert read_all(mine) == b"answer"

    def test_much_goes_both_ways_while_another_stream_is_not_read(self, world: World) -> None:
        sent = random.Random(1).randbytes(5 << 20)
        with dial(world.port) as stuck, world.target.accept():
            stuck.settimeout(0.0)
            with contextlib.suppress(BlockingIOError):
                while stuck.send(bytes(1 << 16)):
                    pass
            with (
                dial(world.port) as mine,
                world.target.accept() as theirs,
                ThreadPoolExecutor(4) as pool,
            ):

                def send(connection: socket.socket) -> None:
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)

                for connection in (mine, theirs):
                    pool.submit(send, connection)
                came = list(pool.map(read_all, (mine, theirs)))
        digest = hashlib.sha256(sent).digest()
        assert [hashlib.sha256(each).digest() for each in came] == [digest, digest]

    def test_many_short_connections(self, world: World) -> None:
        def serve() -> None:
            for _ in range(100):
                with world.target.accept() as theirs:
                    theirs.sendall(theirs.recv(100))

        def ask(number: int) -> bool:
            with dial(world.port) as mine:
                mine.sendall(str(number).encode())
                return read_all(mine) != b""

        server, _ = in_thread(serve)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(100)))
        server.join(PATIENCE)

    def test_a_reset_reaches_the_other_program(self, world: World) -> None:
        with dial(world.port) as mine, world.target.accept() as theirs:
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            assert is_reset(mine)

    def test_a_killed_forwarder_would_reset_its_connections(self, world: World) -> None:
        """The kernel would, because they linger for no time; the acceptance run kills one."""
        with dial(world.port) as mine, world.target.accept() as theirs:
            programs = {mine.getsockname(), theirs.getsockname()}
            lingering = []
            for each in psutil.Process().net_connections("tcp"):
                if each.raddr in programs and each.laddr not in programs:
                    it = socket.socket(fileno=each.fd)
                    lingering.append(it.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
                    it.detach()
            assert lingering == [struct.pack("ii", 1, 0)] * 2


class TestRefusals:
    def test_what_is_not_allowed_is_reset_and_said_at_both(self, world: World) -> None:
        assert is_reset_at_once(world.unknown_port)
        assert "ask bob" in until_said(world.lines, "bob has no --allow unknown=… for alice")
        until_said(world.lines, "bob: refused alice a stream to unknown")

    def test_what_cannot_be_reached_is_reset_and_said_at_both(self, world: World) -> None:
        assert is_reset_at_once(world.dead_port)
        until_said(world.lines, "what dead leads to at bob accepts no connection")
        assert "127.0.0.1" in until_said(world.lines, "bob: cannot reach")
        told = [line for line in world.lines if line.startswith("alice") and "dead leads" in line]
        assert not any("127.0.0.1" in line for line in told), "the target's place stays there"

    @pytest.mark.slow
    def test_a_second_forwarder_of_a_party_ends(self, world: World) -> None:
        second = run(world.cluster, "bob", allow=["web=127.0.0.1:1"])
        second.thread.join(PATIENCE)
        assert isinstance(second.outcome[0], PartyTaken)

    def test_a_place_that_is_taken_ends_it_at_once(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("somebody's")
        for place in (str(world.target.port), f"unix:{world.path}", f"unix:{tmp_path / 'file'}"):
            refused = run(world.cluster, "carol", local=[f"{place}:bob:web"])
            refused.thread.join(PATIENCE)
            assert isinstance(refused.outcome[0], ConfigError), refused.outcome
            assert place.rsplit("/", 1)[-1] in str(refused.outcome[0])
        assert (tmp_path / "file").read_text() == "somebody's"

    def test_a_socket_that_nobody_serves_is_replaced(self, world: World, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        with listening() as lines:
            carol = run(world.cluster, "carol", local=[f"unix:{tmp_path / 'dead'}:bob:web"])
            until_said(lines, "dead leads to web")
            with socket.socket(socket.AF_UNIX) as mine:
                mine.connect(str(tmp_path / "dead"))
                world.target.accept().close()
            assert carol.end() is None


class TestSessions:
    def test_when_the_other_side_ends_all_is_reset_and_begins_again_with_it(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        cluster, target = make_cluster(broker.url, 2), Target()
        alice = run(cluster, "alice", local=["0:bob:web"])
        bob = run(cluster, "bob", allow=[f"web=127.0.0.1:{target.port}"])
        port = port_in(until_said(said, "leads to web"))
        with dial(port) as mine, target.accept() as theirs:
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"
            assert bob.end() is None
            assert is_reset(mine)
            assert is_reset(theirs)
        until_said(said, "alice: 1 stream was reset: bob has ended its forwarder")
        with pytest.raises(ConnectionRefusedError):
            dial(port)
        bob = run(cluster, "bob", allow=[f"web=127.0.0.1:{target.port}"])
        assert port_in(until_said(said, "leads to web", 2)) == port
        with dial(port) as mine, target.accept() as theirs:
            theirs.close()
            assert read_all(mine) == b""
        assert [alice.end(), bob.end()] == [None, None]
        target.close()

    @pytest.mark.slow
    def test_a_party_that_vanishes_is_lost_and_its_streams_are_reset(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        cluster = make_cluster(broker.url, 2)
        alice = run(
            cluster,
            "alice",
            local=["0:bob:web"],
            settings=quick_settings(peer_timeout=0.6, connect_timeout=0.3),
            retries=Retries(most=1, delay=0.02),
        )
        endpoint = connect(
            pair_cluster(cluster, "alice", "bob"),
            "bob",
            quick_settings(),
            identity=IDENTITIES["bob"],
        )
        with dial(port_in(until_said(said, "leads to web"))) as mine:
            endpoint.parts.closing.vanish()
            assert is_reset(mine)
        assert "last heard" in until_said(said, "1 stream was reset")
        alice.thread.join(PATIENCE)
        assert isinstance(alice.outcome[0], HandshakeTimeout), "one more attempt, then the end"

    def test_a_party_that_breaks_the_rules_is_told_and_joined_again(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        cluster = make_cluster(broker.url, 2)
        alice = run(cluster, "alice", local=["0:bob:web"])
        pair = pair_cluster(cluster, "alice", "bob")
        for times in (1, 2):
            bob = connect(pair, "bob", quick_settings(), identity=IDENTITIES["bob"])
            bob.send("alice", "forward:0", b"\x03 no frame")
            with pytest.raises(PeerAborted, match="broke the rules"):
                bob.recv("alice", "never")
            bob.close()
            until_said(said, "bob broke the rules of streams", times)
        assert alice.end() is None

    @pytest.mark.slow
    def test_one_that_waits_for_another_says_so_and_ends_when_told(
        self, broker: EmbeddedBroker, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_module, "_SAY_AFTER", 0.0)
        alice = run(make_cluster(broker.url, 2), "alice", local=["0:bob:web"])
        until_said(said, "alice: waits for bob to run redislink forward with alice")
        assert alice.end() is None

    def test_a_stream_that_is_idle_for_ever_stays(
        self, broker: EmbeddedBroker, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_module, "LONGEST_SECONDS", 0.01)
        cluster, target = make_cluster(broker.url, 2), Target()
        timeouts = []
        recv = Endpoint.recv

        def noting(*arguments: Any) -> bytes:
            try:
                return recv(*arguments)
            except RecvTimeout:
                timeouts.append(arguments)
                raise

        monkeypatch.setattr(Endpoint, "recv", noting)
        bob = run(cluster, "bob", allow=[f"web=127.0.0.1:{target.port}"])
        alice = run(cluster, "alice", local=["0:bob:web"])
        with dial(port_in(until_said(said, "leads to web"))) as mine, target.accept() as theirs:
            so_far = len(timeouts)
            wait_until(lambda: len(timeouts) > so_far + 4, PATIENCE)
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"
        assert [alice.end(), bob.end()] == [None, None]
        assert not any("reset: " in line and "ended" not in line for line in said)
        target.close()

    def test_a_wrong_key_of_our_own_ends_it(self, broker: EmbeddedBroker) -> None:
        cluster = make_cluster(broker.url, 2)
        plan = Plan(
            cluster,
            "alice",
            quick_settings(),
            IDENTITIES["bob"],
            [parse_forward("0:bob:web", cluster, "alice")],
            Targets([], ["bob"]),
            Retries(),
        )
        with pytest.raises(ConfigError, match="identity"):
            Forwarder(plan).serve()

    def test_the_status_tells_how_many_streams_there_are(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        cluster = make_cluster(broker.url, 2)
        alice = run(cluster, "alice", local=["0:bob:web"])
        with connect(
            pair_cluster(cluster, "bob", "alice"),
            "bob",
            quick_settings(),
            identity=IDENTITIES["bob"],
        ) as bob:
            port = port_in(until_said(said, "leads to web"))
            streams = Streams(is_first=False)
            packet = streams.next_packet()
            assert packet is not None
            bob.send("alice", "forward:0", packet)
            with dial(port), dial(port):
                (link,) = alice.forwarder._links
                wait_until(
                    lambda: link._endpoint is not None and link._endpoint.streams == 2, PATIENCE
                )
            assert alice.end() is None
            with pytest.raises(PeerAborted):
                bob.recv("alice", "never")


class TestUsersOfTheBroker:
    @staticmethod
    def urls(broker: EmbeddedBroker, cluster: ClusterSpec) -> dict[str, str]:
        drivers = None if cluster.drivers is None else cluster.driver_names
        users = acl.party_users(cluster.session, cluster.party_names, drivers=drivers)
        passwords = {user.party: acl.make_password() for user in users}
        acl.apply_users(Broker(broker.url), users, passwords)
        return {u.party: acl.party_url(broker.url, u.name, passwords[u.party]) for u in users}

    def test_the_rights_for_jobs_cover_the_session_of_a_pair(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        cluster, target = make_cluster(broker.url, 2, drivers=[]), Target()
        urls = self.urls(broker, cluster)
        settings = {name: quick_settings(broker_url=url) for name, url in urls.items()}
        bob = run(cluster, "bob", allow=[f"web=127.0.0.1:{target.port}"], settings=settings["bob"])
        alice = run(cluster, "alice", local=["0:bob:web"], settings=settings["alice"])
        with dial(port_in(until_said(said, "leads to web"))) as mine, target.accept() as theirs:
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"
        assert [alice.end(), bob.end()] == [None, None]
        target.close()

    def test_without_them_it_says_what_to_do(self, broker: EmbeddedBroker) -> None:
        cluster = make_cluster(broker.url, 2)
        settings = quick_settings(broker_url=self.urls(broker, cluster)["alice"])
        alice = run(cluster, "alice", local=["0:bob:web"], settings=settings)
        alice.thread.join(PATIENCE)
        assert isinstance(alice.outcome[0], BrokerPermissionError)
        assert "write drivers: []" in str(alice.outcome[0])


class TestFaults:
    def test_connections_to_the_broker_that_break_change_nothing(
        self, broker: EmbeddedBroker, said: list[str]
    ) -> None:
        sent = random.Random(2).randbytes(4 << 20)
        with Proxy(parse_url(broker.url).addresses[0][1]) as proxy:
            cluster, target = make_cluster(proxy.url(), 2), Target()
            bob = run(cluster, "bob", allow=[f"web=127.0.0.1:{target.port}"])
            alice = run(cluster, "alice", local=["0:bob:web"])
            with dial(port_in(until_said(said, "leads to web"))) as mine, target.accept() as theirs:
                sender, _ = in_thread(lambda: theirs.sendall(sent))
                got = bytearray()
                for share in (1, 2, 3, 4):
                    while len(got) < share * len(sent) // 4:
                        got += mine.recv(1 << 16)
                    for connection in proxy.connections if share < 4 else ():
                        connection.cut()
                sender.join(PATIENCE)
                assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
            assert [alice.end(), bob.end()] == [None, None]
            target.close()

    def test_a_fault_of_ours_ends_it(
        self, broker: EmbeddedBroker, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError

        cluster = make_cluster(broker.url, 2)
        alice = run(cluster, "alice", local=["0:bob:web"])
        bob = run(cluster, "bob", allow=["web=127.0.0.1:1"])
        port = port_in(until_said(said, "leads to web"))
        monkeypatch.setattr(Streams, "open", fail)
        assert is_reset_at_once(port)
        alice.thread.join(PATIENCE)
        assert isinstance(alice.outcome[0], ZeroDivisionError)
        assert bob.end() is None


class TestPairs:
    def test_a_pair_has_one_session_whoever_names_it(self) -> None:
        cluster = make_cluster("redis://127.0.0.1", 3)
        turned = cluster.model_copy(update={"parties": cluster.parties[::-1]})
        one = pair_cluster(cluster, "alice", "bob")
        assert one == pair_cluster(turned, "bob", "alice")
        assert one.digest() == pair_cluster(turned, "bob", "alice").digest()
        assert one.party_names == ("alice", "bob")
        others = {pair_cluster(cluster, name, "carol").session for name in ("alice", "bob")}
        assert len(others | {one.session}) == 3

    def test_a_session_whose_name_is_too_long_is_an_error(self) -> None:
        cluster = make_cluster("redis://127.0.0.1", 2, session="s" * 51)
        with pytest.raises(ConfigError, match="at most 50"):
            pair_cluster(cluster, "alice", "bob")
