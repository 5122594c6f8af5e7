"""Brokers of several real servers for the tests: sentinels with master and replica, a Cluster.

Rules: all on 127.0.0.1, on free ports, with a password; every server ends with the ``with`` block,
and with this process however that ends (see `EmbeddedBroker`).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.crc import key_slot

from redislink.broker import EmbeddedBroker
from redislink.broker.embedded import _server_binary
from redislink.errors import BrokerError
from redislink.protocol import list_names
from tests.support.servers import Admin, debian_redis
from tests.support.waiting import wait_until

MASTER = "relay"
SLOTS = 16384
_PATIENCE = 30.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds; servers that do not answer yet count as no."""
    wait_until(condition, _PATIENCE, what, passing=(BrokerError,))


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


class _Group:
    """Servers of one kind that belong together."""

    def __init__(self, kind: str) -> None:
        self.password = secrets.token_urlsafe(12)
        self._binary = debian_redis() if kind == "redis-server" else _server_binary()
        assert self._binary is not None, "redis-server is not installed: run .ci/install-redis"
        self._directory = Path()
        self._stack = ExitStack()
        self._servers: dict[int, EmbeddedBroker] = {}
        self._admins: dict[int, Admin] = {}

    def __enter__(self) -> Self:
        temporary = tempfile.TemporaryDirectory(prefix="redislink-group-")
        self._directory = Path(self._stack.enter_context(temporary))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every server."""
        for admin in self._admins.values():
            admin.close()
        for server in self._servers.values():
            server.stop()
        self._stack.close()

    def _start(self) -> None:
        raise NotImplementedError

    def ask(self, port: int, *command: bytes | int | str) -> Any:
        """The reply of one server, as its admin."""
        words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
        return self._admins[port](*words)

    def kill(self, port: int) -> None:
        """SIGKILL."""
        server = self._servers[port]
        os.kill(server.pid, signal.SIGKILL)
        server.stop()

    def _run(self, port: int, options: dict[str, str], binary: Path | None = None) -> None:
        # By default a replica's first copy begins five seconds after it was asked for.
        plain = {"masterauth": self.password, "repl-diskless-sync-delay": "0"}
        secret = plain if binary is None else {}
        server = EmbeddedBroker(
            port,
            password=self.password if binary is None else None,
            options=secret | options,
            binary=binary or self._binary,
        )
        self._servers[port] = server.start()
        self._admins[port] = Admin(server)


class SentinelGroup(_Group):
    """A master, a replica, and sentinels that watch them."""

    def __init__(self, kind: str = "valkey", sentinels: int = 1) -> None:
        super().__init__(kind)
        *self.ports, self.master = ports = free_ports(sentinels + 2)
        self.replica = self.ports.pop()
        assert len({*self.ports, self.master, self.replica}) == len(ports)

    @property
    def url(self) -> str:
        """Of the master, by way of the sentinels; the first address is nobody's."""
        places = ",".join(f"127.0.0.1:{port}" for port in [1, *self.ports])
        return f"redis+sentinel://:{self.password}@{places}/{MASTER}"

    def fail_over(self) -> None:
        """Kill the master; return once the sentinels have promoted the replica.

        What was the master is then started empty, as the replica.
        """
        dead, alive = self.master, self.replica
        self.kill(dead)
        wait_for(lambda: all(self._master_of(port) == alive for port in self.ports), "a failover")
        self.master, self.replica = alive, dead
        self._start_replica()

    def _start(self) -> None:
        self._run(self.master, {})
        self._start_replica()
        # Sentinel mode goes by the name of the binary.
        name = self._directory / "redis-sentinel"
        name.symlink_to(self._binary)
        quorum = len(self.ports) // 2 + 1
        for port in self.ports:
            watch = {
                f"sentinel monitor {MASTER}": f"127.0.0.1 {self.master} {quorum}",
                f"sentinel auth-pass {MASTER}": self.password,
                f"sentinel down-after-milliseconds {MASTER}": "800",
                f"sentinel failover-timeout {MASTER}": "2000",
            }
            self._run(port, watch, name)
            # By default it asks once a second, and finds a master down that answers. And it
            # promotes no replica of which it knows nothing since five of these periods, while it
            # asks the replica of a master that is down once a second.
            self.ask(port, "SENTINEL", "DEBUG", "PING-PERIOD", 300, "INFO-PERIOD", 500)
            self.ask(port, "SENTINEL", "DEBUG", "PUBLISH-PERIOD", 200)
        for port in self.ports:
            wait_for(lambda port=port: self._is_settled(port), "sentinels that know all others")

    def _start_replica(self) -> None:
        self._run(self.replica, {"replicaof": f"127.0.0.1 {self.master}"})
        wait_for(
            lambda: (
                self._admins[self.replica].info("replication").get("master_link_status") == "up"
            ),
            "a replica in step",
        )

    def _is_settled(self, port: int) -> bool:
        state = self._state(port)
        others = int(state[b"num-other-sentinels"])
        return int(state[b"num-slaves"]) == 1 and others == len(self.ports) - 1

    def _master_of(self, port: int) -> int:
        return int(self._state(port)[b"port"])

    def _state(self, port: int) -> dict[bytes, bytes]:
        reply = self.ask(port, "SENTINEL", "MASTER", MASTER)
        return dict(zip(reply[::2], reply[1::2], strict=True))


class ClusterGroup(_Group):
    """A Redis Cluster: masters with equal shares of the slots, and replicas of the first ones."""

    def __init__(self, kind: str = "valkey", masters: int = 3, replicas: int = 0) -> None:
        super().__init__(kind)
        self.changing = threading.RLock()
        """Held while something is done to the cluster: one thing at a time."""
        ports = free_ports(2 * (masters + replicas))
        self.masters = ports[:masters]
        self.replicas = dict(zip(self.masters, ports[masters : masters + replicas], strict=False))
        """By the port of their master."""
        self._bus = dict(zip([*self.masters, *self.replicas.values()], ports[::-1], strict=False))

    @property
    def url(self) -> str:
        """The nodes are found from two of them, of which the first is nobody."""
        return f"redis+cluster://:{self.password}@127.0.0.1:1,127.0.0.1:{self.masters[-1]}"

    def spread_session(self, parties: Sequence[str]) -> str:
        """A name for a session whose parties have their inboxes on different nodes."""
        while True:
            session = f"spread-{secrets.token_hex(4)}"
            nodes = {self.node_of(slot_of(session, party)) for party in parties}
            if len(nodes) == min(len(parties), len(self.masters)):
                return session

    def node_of(self, slot: int) -> int:
        """Port of the master that serves a slot."""
        for first, last, master, *_ in self.ask(self.masters[-1], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(master[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def move_slot(self, slot: int, target: int) -> int:
        """Give a slot and what is in it to another master; returns how many keys went along."""
        with self.changing:
            return self._move_slot(slot, target)

    def _move_slot(self, slot: int, target: int) -> int:
        source, moved = self.node_of(slot), 0
        assert source != target
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))
        while found := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            migrate = ("MIGRATE", "127.0.0.1", target, "", 0, 5000, "REPLACE")
            self.ask(source, *migrate, "AUTH", self.password, "KEYS", *found)
            moved += len(found)
        for port in dict.fromkeys([target, source, *self.masters]):
            self.ask(port, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))
        return moved

    def restart_empty(self, port: int) -> None:
        """Kill a master, and start it again as the same node without its data."""
        with self.changing, self.away(port):
            pass

    @contextmanager
    def away(self, port: int) -> Iterator[None]:
        """Without this master; at the end it is started again, empty."""
        with self.changing:
            self.kill(port)
            try:
                yield
            finally:
                self._run_node(port)
                self._wait_until_whole()

    def lose(self, port: int) -> None:
        """Kill a master that has a replica; return once the replica has taken its slots."""
        with self.changing:
            self._lose(port)

    def _lose(self, port: int) -> None:
        replica = self.replicas.pop(port)
        slot = next(
            first
            for first, _, master, *_ in self.ask(port, "CLUSTER", "SLOTS")
            if master[1] == port
        )
        self.kill(port)
        self.masters[self.masters.index(port)] = replica
        wait_for(
            lambda: {self._master_of(each, slot) for each in self.masters} == {replica},
            "a replica that takes over",
        )
        self._wait_until_whole()

    def _start(self) -> None:
        for port in self._bus:
            self._run_node(port)
        share = SLOTS // len(self.masters) + 1
        for number, port in enumerate(self.masters):
            last = min(SLOTS, (number + 1) * share) - 1
            self.ask(port, "CLUSTER", "ADDSLOTSRANGE", number * share, last)
            self.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first, *others = self._bus
        for port in others:
            self.ask(first, "CLUSTER", "MEET", "127.0.0.1", port, self._bus[port])
        self._wait_until_whole()
        for master, port in self.replicas.items():
            wait_for(lambda master=master, port=port: self._knows(port, master), "a node's name")
            self.ask(port, "CLUSTER", "REPLICATE", self._id(master))
            self._wait_for_replica(port)

    def _run_node(self, port: int) -> None:
        directory = self._directory / str(port)
        directory.mkdir(exist_ok=True)  # has nodes.conf: who this node is
        self._run(
            port,
            {
                "cluster-enabled": "yes",
                "cluster-port": str(self._bus[port]),
                "cluster-node-timeout": "1000",
                "dir": str(directory),
            },
        )

    def _wait_until_whole(self) -> None:
        for port in self.masters:
            wait_for(lambda port=port: self._is_whole(port), "a cluster with all its nodes")

    def _wait_for_replica(self, port: int) -> None:
        wait_for(
            lambda: self._admins[port].info("replication").get("master_link_status") == "up",
            "a replica in step",
        )
        for each in self.masters:
            wait_for(lambda each=each: self._is_replica(port, each), "news of a replica")

    def _is_replica(self, port: int, asked: int) -> bool:
        ranges = self.ask(asked, "CLUSTER", "SLOTS")
        return any(server[1] == port for _, _, _, *servers in ranges for server in servers)

    def _is_whole(self, port: int) -> bool:
        info = bytes(self.ask(port, "CLUSTER", "INFO"))
        known = f"cluster_known_nodes:{len(self._bus)}\r".encode()
        return b"cluster_state:ok" in info and known in info

    def _master_of(self, port: int, slot: int) -> int:
        for first, last, master, *_ in self.ask(port, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(master[1])
        return 0

    def _knows(self, port: int, other: int) -> bool:
        return self._id(other) in bytes(self.ask(port, "CLUSTER", "NODES"))

    def _id(self, port: int) -> bytes:
        return bytes(self.ask(port, "CLUSTER", "MYID"))


def slot_of(session: str, party: str) -> int:
    """Of a party's inbox."""
    return key_slot(list_names.party_prefix(session, party))
