"""Where a broker of several servers has its lists just now: sentinels, or a Cluster's slot map.

Rules:
- What was told is used for a second at most, and never after a failure: `forget` is called for
  each connection that could not be opened, or whose server said that it is not the one.
- One thread asks at a time; the others take its answer, or its error.
- What the servers say is untrusted: a reply of another shape, or with a host that is none, is a
  `BrokerRefused`. Hosts and ports go on as they are, and never become part of a URL.

redis-py's `Sentinel` and `NodesManager` are not used: they take hosts unchecked and replies
without a limit, make one exception of a wrong password and of a node out of reach, and the latter
forgets the nodes that the URL names.
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
"""Seconds for which an answer is used: connections are opened several at a time."""
_SLOTS: Final = 16384
_Answer = TypeVar("_Answer")


class Topology(abc.ABC, Generic[_Answer]):
    """Says which server has a list. Thread-safe."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._answer: _Answer | None = None
        self._asked_at = float("-inf")
        self._stale = False
        self._failed: tuple[float, BrokerError] | None = None
        dies_in_child(self)

    def die_in_child(self) -> None:
        """It may be used on: it has no connection, and perhaps a thread of the parent's asks."""
        self._asking = threading.Lock()

    @abc.abstractmethod
    def address(self, name: bytes, /) -> Address:
        """Return the address of the server that has this list.

        Raises:
            BrokerError: nobody says so just now.
        """

    @abc.abstractmethod
    def any_master(self) -> Address:
        """Return the address of a server that has keys of its own.

        Raises: as `address`.
        """

    @abc.abstractmethod
    def every(self) -> list[Address]:
        """All servers of the broker that are up, replicas too.

        Raises: as `address`.
        """

    def masters(self) -> list[Address]:
        """The servers that have keys of their own: of a Cluster each node but the replicas.

        Raises: as `address`.
        """
        return [self.any_master()]

    def forget(self) -> None:
        """A connection failed: ask anew."""
        self._stale = True

    @abc.abstractmethod
    def moved(self, told_by: Address, error_reply: str, /) -> None:
        """A server said that it does not have the list that it was asked for, or is a replica."""

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
    """The master, as the first sentinel has it that knows one that is up."""

    def __init__(self, url: BrokerUrl, ask: Callable[..., Any]) -> None:
        """Args:
        url: the broker's.
        ask: ``ask(address, *command)`` gives a sentinel's reply, or raises a BrokerError.
        """
        super().__init__()
        self._url = url
        self._ask_sentinel = ask
        self._behind = False
        self._sentinels = list(url.addresses)
        """In the order in which they are asked."""

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
        if self._behind:  # the one that named the last master: ask another one first
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
        """Of the master, as the first sentinel has them that answers."""
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
            f"broker {self._url.label_of_sentinel(sentinel)}: answered SENTINEL with something "
            "else than servers, each with a host and a port: check that it is a sentinel, and what "
            "the servers announce (replica-announce-ip, sentinel announce-ip)"
        )


@dataclass(frozen=True, slots=True)
class _ServerState:
    """What a sentinel says of a server.

    Attributes:
        name: of the master.
        address: None if what it says is none.
        is_master: it is one.
        up: neither this sentinel nor several of them take it for down.
    """

    name: str
    address: Address | None
    is_master: bool
    up: bool


def _state_untrusted(entry: Any) -> _ServerState:
    """An entry of a reply to ``SENTINEL MASTERS``; ValueError or TypeError if it is none."""
    if not isinstance(entry, list) or not all(isinstance(text, bytes) for text in entry):
        raise TypeError
    said = dict(zip(entry[::2], entry[1::2], strict=True))
    flags = said.get(b"flags", b"").split(b",")
    address: Address | None
    try:
        host = check_host(said.get(b"ip", b"").decode())
        address = host, check_port(int(said.get(b"port", b"")))
    except ValueError:  # UnicodeDecodeError too
        address = None
    return _ServerState(
        said.get(b"name", b"").decode(errors="replace"),
        address,
        is_master=b"master" in flags,
        up=not {b"s_down", b"o_down"} & set(flags),
    )


class _SlotMap:
    """Who serves which slots: master first, then its replicas."""

    def __init__(self, ranges: Iterable[tuple[int, int, list[Address]]]) -> None:
        self._ranges = list(ranges)
        self._moved: dict[int, Address] = {}

    def master(self, slot: int) -> Address | None:
        """Return who serves this slot; None if nobody does."""
        if slot in self._moved:
            return self._moved[slot]
        for first, last, servers in self._ranges:
            if first <= slot <= last:
                return servers[0]
        return None

    def move(self, moved: dict[int, Address]) -> None:
        """Somebody knows better of some slots."""
        self._moved.update(moved)

    def masters(self) -> list[Address]:
        """All that serve slots, each once."""
        first = [servers[0] for _, _, servers in self._ranges]
        return list(dict.fromkeys([*first, *self._moved.values()]))

    def servers(self) -> list[Address]:
        """All, each once."""
        every = [server for _, _, servers in self._ranges for server in servers]
        return list(dict.fromkeys([*every, *self._moved.values()]))


class ClusterTopology(Topology[_SlotMap]):
    """The node that serves a list's slot."""

    def __init__(self, url: BrokerUrl, ask: Callable[[Address], Any]) -> None:
        """Args: the broker's; the reply of a node to CLUSTER SLOTS."""
        super().__init__()
        self._url = url
        self._ask_node = ask
        self._known: list[Address] = []
        """In the order in which they are asked."""
        self._told: dict[int, Address] = {}
        """By slot, what MOVED said since the map was read: other nodes may not know it yet."""

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
                    f"broker {self._url.label_at(address)}: answered CLUSTER SLOTS with something "
                    "else than slots, each with a host and a port: check that it is a node of a "
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
    """The ranges in a reply to CLUSTER SLOTS; ValueError, TypeError, IndexError if it is none."""
    if not isinstance(reply, list):
        raise TypeError
    for first, last, *servers in reply:
        if not 0 <= first <= last < _SLOTS or not servers:
            raise ValueError
        yield first, last, [_server_untrusted(server, asked_host) for server in servers]


def _server_untrusted(server: Any, asked_host: str) -> Address:
    host, port = server[0], server[1]
    # Where a node knows no host of its own, it is the one under which it was asked.
    if not isinstance(host, bytes | None):
        raise TypeError
    return _host_untrusted((host or b"").decode(), asked_host), check_port(port)


def _host_untrusted(text: str, asked_host: str) -> str:
    """What a node calls itself, or another; ValueError if that is no host.

    A node that knows no host of its own says nothing, or ``?`` where it is to announce a name and
    has none; then it is the host under which it was asked.
    """
    return asked_host if text in ("", "?") else check_host(text)


def _moved_untrusted(text: str, asked_host: str) -> dict[int, Address]:
    """Slot and address of ``MOVED slot host:port``; empty if it is something else."""
    try:
        verb, slot, place = text.split()[:3]
        host, _, port = place.rpartition(":")
        if verb != "MOVED" or not 0 <= int(slot) < _SLOTS:
            return {}
        address = _host_untrusted(host.strip("[]"), asked_host), check_port(int(port))
        return {int(slot): address}
    except ValueError:
        return {}
