"""Which server of a broker has a list now, as the sentinels or a Cluster's slot map say.

Rules:
- An answer is used for at most a second, and never after a failure: `forget` is called for each
  connection that cannot be opened, or whose server says that it does not have the list.
- One thread asks at a time; the others use its answer, or its error.
- What the servers say is untrusted: a reply of another shape, or with an invalid host, is a
  `BrokerRefused`. Hosts and ports are passed on as they are, and never become part of a URL.

redis-py's `Sentinel` and `NodesManager` are not used: they accept any host and replies of any
size, and raise the same exception for a wrong password as for an unreachable node; `NodesManager`
also forgets the nodes that the URL names.
"""

from __future__ import annotations

import abc
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from redis.crc import key_slot

from redislink.broker.url import Address, BrokerUrl, check_host, check_port
from redislink.errors import BrokerBusy, BrokerError, BrokerRefused, BrokerUnreachable
from redislink.forking import dies_in_child
from redislink.text import one_line

_GOOD_FOR: Final = 1.0
"""Seconds for which an answer is used, as several connections are opened at a time."""
_SLOTS: Final = 16384
_Answer = TypeVar("_Answer")


class Topology(abc.ABC, Generic[_Answer]):
    """Knows which server has a list. Thread-safe."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._answer: _Answer | None = None
        self._asked_at = float("-inf")
        self._stale = False
        self._failed: tuple[float, BrokerError] | None = None
        dies_in_child(self)

    def die_in_child(self) -> None:
        """Replace the lock, which a thread of the parent may hold; the rest stays usable."""
        self._asking = threading.Lock()

    @abc.abstractmethod
    def address(self, name: bytes, /) -> Address:
        """Return the address of the server that has this list.

        Raises:
            BrokerError: no server can tell now.
        """

    @abc.abstractmethod
    def any_master(self) -> Address:
        """Return the address of a server that has keys of its own.

        Raises: see `address`.
        """

    @abc.abstractmethod
    def every(self) -> list[Address]:
        """Return the addresses of all servers that are up, including replicas.

        Raises: see `address`.
        """

    def masters(self) -> list[Address]:
        """Return the servers that have keys of their own: in a Cluster, all nodes but the replicas.

        Raises: see `address`.
        """
        return [self.any_master()]

    def forget(self) -> None:
        """Ask again next time, because a connection failed."""
        self._stale = True

    @abc.abstractmethod
    def moved(self, told_by: Address, error_reply: str, /) -> None:
        """Note that a server does not have the list that it was asked for, or is a replica."""

    @abc.abstractmethod
    def _ask(self) -> _Answer: ...

    def _current(self) -> _Answer:
        came = time.monotonic()
        with self._asking:
            if self._failed is not None and self._failed[0] >= came:
                raise self._failed[1].with_traceback(None)
            if self._answer is None or self._stale or self._asked_at < came - _GOOD_FOR:
                self._stale = False
                asked_at = time.monotonic()
                try:
                    self._answer = self._ask()
                except BrokerError as error:
                    self._answer, self._failed = None, (asked_at, error)
                    raise
                self._asked_at = asked_at
            return self._answer


class SentinelTopology(Topology[Address]):
    """Asks the sentinels in turn for a master that is up."""

    def __init__(self, url: BrokerUrl, ask: Callable[..., Any]) -> None:
        """Args:
        url: the broker's URL.
        ask: ``ask(address, *command)`` returns a sentinel's reply, or raises a BrokerError.
        """
        super().__init__()
        self._url = url
        self._ask_sentinel = ask
        self._behind = False
        self._sentinels = list(url.addresses)
        """The sentinels, in the order in which they are asked."""

    def address(self, _: bytes) -> Address:
        return self._current()

    def any_master(self) -> Address:
        return self._current()

    def every(self) -> list[Address]:
        master = self._current()
        with self._asking:
            replicas = self._replicas()
        up = [state.address for state in replicas if state.up]
        return [master, *(address for address in up if address is not None)]

    def moved(self, _: Address, __: str) -> None:
        self._behind = True
        self.forget()

    def _ask(self) -> Address:
        failure: BrokerError | None = None
        answered = False
        if self._behind:  # the sentinel that named the last master: ask another one first
            self._behind = False
            self._sentinels.append(self._sentinels.pop(0))
        for place, sentinel in enumerate(self._sentinels):
            try:
                states = self._states(sentinel, b"MASTERS")
            except BrokerError as error:
                if failure is None or error.retryable:
                    failure = error
                continue
            answered = True
            for state in states:
                if state.name == self._url.master and state.is_master and state.up:
                    if state.address is None:
                        raise self._nonsense(sentinel)
                    self._sentinels.insert(0, self._sentinels.pop(place))
                    return state.address
        if failure is not None and not answered:
            raise failure
        raise BrokerUnreachable(
            f"broker {self._url.label}: the sentinels have no master named "
            f"{one_line(self._url.master, 80)!r} that is up: wait for a failover to end, or check "
            "the name"
        )

    def _replicas(self) -> list[_ServerState]:
        """Return the master's replicas, from the first sentinel that answers."""
        *others, last = self._sentinels
        for sentinel in others:
            with contextlib.suppress(BrokerError):
                return self._states(sentinel, b"REPLICAS", self._url.master)
        return self._states(last, b"REPLICAS", self._url.master)

    def _states(self, sentinel: Address, what: bytes, *arguments: str) -> list[_ServerState]:
        reply = self._ask_sentinel(sentinel, b"SENTINEL", what, *arguments)
        try:
            return [_state_untrusted(entry) for entry in reply]
        except (ValueError, TypeError):
            raise self._nonsense(sentinel) from None

    def _nonsense(self, sentinel: Address) -> BrokerRefused:
        return BrokerRefused(
            f"broker {self._url.label_of_sentinel(sentinel)}: its reply to SENTINEL is not a list "
            "of servers, each with a host and a port: check that it is a sentinel, and what the "
            "servers announce (replica-announce-ip, sentinel announce-ip)"
        )


@dataclass(frozen=True, slots=True)
class _ServerState:
    """What a sentinel says about a server.

    Attributes:
        name: the master's name.
        address: the server's address; None if the sentinel names no valid one.
        is_master: True if it is a master.
        up: True if neither this sentinel nor a quorum of them considers it down.
    """

    name: str
    address: Address | None
    is_master: bool
    up: bool


def _state_untrusted(entry: Any) -> _ServerState:
    """Parse an entry of a reply to ``SENTINEL MASTERS``; raise ValueError or TypeError."""
    if not isinstance(entry, list) or not all(isinstance(text, bytes) for text in entry):
        raise TypeError
    said = dict(zip(entry[::2], entry[1::2], strict=True))
    flags = said.get(b"flags", b"").split(b",")
    address: Address | None
    try:
        host = check_host(said.get(b"ip", b"").decode())
        address = host, check_port(int(said.get(b"port", b"")))
    except ValueError:  # including UnicodeDecodeError
        address = None
    return _ServerState(
        said.get(b"name", b"").decode(errors="replace"),
        address,
        is_master=b"master" in flags,
        up=not {b"s_down", b"o_down"} & set(flags),
    )


class _SlotMap:
    """Which servers have which slots; for each range the master first, then its replicas."""

    def __init__(self, ranges: Iterable[tuple[int, int, list[Address]]]) -> None:
        self._ranges = list(ranges)
        self._moved: dict[int, Address] = {}

    def master(self, slot: int) -> Address | None:
        """Return the master of this slot; None if it has none."""
        if slot in self._moved:
            return self._moved[slot]
        for first, last, servers in self._ranges:
            if first <= slot <= last:
                return servers[0]
        return None

    def move(self, moved: dict[int, Address]) -> None:
        """Correct the master of some slots."""
        self._moved.update(moved)

    def masters(self) -> list[Address]:
        """Return all masters, each once."""
        first = [servers[0] for _, _, servers in self._ranges]
        return list(dict.fromkeys([*first, *self._moved.values()]))

    def servers(self) -> list[Address]:
        """Return all servers, each once."""
        every = [server for _, _, servers in self._ranges for server in servers]
        return list(dict.fromkeys([*every, *self._moved.values()]))


class ClusterTopology(Topology[_SlotMap]):
    """Asks the nodes of a Cluster which of them serves a list's slot."""

    def __init__(self, url: BrokerUrl, ask: Callable[[Address], Any]) -> None:
        """Args:
        url: the broker's URL.
        ask: ``ask(address)`` returns a node's reply to CLUSTER SLOTS, or raises a BrokerError.
        """
        super().__init__()
        self._url = url
        self._ask_node = ask
        self._known: list[Address] = []
        """The nodes, in the order in which they are asked."""
        self._told: dict[int, Address] = {}
        """By slot: what MOVED has said since the map was read; other nodes may not know it yet."""

    def address(self, name: bytes) -> Address:
        slot = key_slot(name)
        address = self._current().master(slot)
        if address is None:
            self.forget()
            raise BrokerBusy(
                f"broker {self._url.label}: no node serves slot {slot}: "
                "wait for a failover to end, or see CLUSTER INFO"
            )
        return address

    def any_master(self) -> Address:
        masters = self._current().masters()
        if not masters:
            self.forget()
            raise BrokerBusy(
                f"broker {self._url.label}: no node serves any slot: "
                "wait for a failover to end, or see CLUSTER INFO"
            )
        return masters[0]

    def every(self) -> list[Address]:
        return self._current().servers()

    def masters(self) -> list[Address]:
        return self._current().masters()

    def moved(self, told_by: Address, error_reply: str) -> None:
        self._told.update(_moved_untrusted(error_reply, told_by[0]))
        self.forget()

    def _ask(self) -> _SlotMap:
        failure: BrokerError | None = None
        for address in dict.fromkeys([*self._known, *self._url.addresses]):
            try:
                reply = self._ask_node(address)
            except BrokerError as error:
                if failure is None or failure.retryable:
                    failure = error
                continue
            try:
                slot_map = _SlotMap(_slots_untrusted(reply, address[0]))
            except (ValueError, TypeError, IndexError):
                raise BrokerRefused(
                    f"broker {self._url.label_at(address)}: its reply to CLUSTER SLOTS is not a "
                    "list of slots, each with a host and a port: check that it is a node of a "
                    "Redis Cluster, and what the nodes announce (cluster-announce-ip, "
                    "cluster-announce-hostname)"
                ) from None
            told, self._told = self._told, {}
            slot_map.move(told)
            others = [server for server in slot_map.servers() if server != address]
            self._known = [address, *others]
            return slot_map
        if failure is not None:
            raise failure
        raise BrokerUnreachable(f"broker {self._url.label}: no node to ask: add one to the URL")


def _slots_untrusted(reply: Any, asked_host: str) -> Iterator[tuple[int, int, list[Address]]]:
    """Parse a reply to CLUSTER SLOTS; raise ValueError, TypeError or IndexError."""
    if not isinstance(reply, list):
        raise TypeError
    for first, last, *servers in reply:
        if not 0 <= first <= last < _SLOTS or not servers:
            raise ValueError
        yield first, last, [_server_untrusted(server, asked_host) for server in servers]


def _server_untrusted(server: Any, asked_host: str) -> Address:
    host, port = server[0], server[1]
    # A node that does not know its own host has the one at which we asked it.
    if not isinstance(host, bytes | None):
        raise TypeError
    return _host_untrusted((host or b"").decode(), asked_host), check_port(port)


def _host_untrusted(text: str, asked_host: str) -> str:
    """Return the host that a node names, or ``asked_host``; raise ValueError if it is not valid.

    A node that does not know its own host names none, or ``?`` if it is to announce a host name
    and has none; its host is then the one at which we asked it.
    """
    return asked_host if text in ("", "?") else check_host(text)


def _moved_untrusted(text: str, asked_host: str) -> dict[int, Address]:
    """Parse ``MOVED slot host:port`` into {slot: address}; empty if it is something else."""
    try:
        verb, slot, place = text.split()[:3]
        host, _, port = place.rpartition(":")
        if verb != "MOVED" or not 0 <= int(slot) < _SLOTS:
            return {}
        address = _host_untrusted(host.strip("[]"), asked_host), check_port(int(port))
        return {int(slot): address}
    except ValueError:
        return {}
