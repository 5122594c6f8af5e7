"""`ClusterOutbox`: one `Outbox` for each node of a Redis Cluster that has an inbox of a peer.

Rules:
- It is used like an `Outbox`, and is only as good as its worst connection: it has an error while
  one of them has. `reconnect` looks up every inbox again, and replaces broken connections.
- One assignment changes which `Outbox` serves an inbox, so pushes take no lock here. A push to an
  `Outbox` that was just closed is dropped, like a push on a broken connection: after a reconnect,
  the endpoint resends everything that the peers have not acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from typing import cast

from redislink.broker.broker import Broker
from redislink.broker.outbox import Outbox, Silence
from redislink.broker.url import Address
from redislink.broker.wire import Buffer
from redislink.errors import BrokerBusy, BrokerError, BrokerUnreachable, EndpointClosed
from redislink.forking import Dead, dies_in_child, used_after_fork
from redislink.protocol import list_names
from redislink.protocol.conversation import LONG_AGO


class ClusterOutbox:
    """Everything that one party sends, on one connection for each node."""

    def __init__(
        self, broker: Broker, ttl: int, inboxes: Iterable[bytes], marks: Sequence[bytes] = ()
    ) -> None:
        """Args:
        broker: the broker, a Redis Cluster.
        ttl: seconds until a list expires after the last push.
        inboxes: the name of one list from each inbox.
        marks: see `Outbox.use_marks`.
        """
        self._broker = broker
        self.use_marks(marks)
        self._ttl = ttl
        self._inboxes = {list_names.inbox_of(name): name for name in inboxes}
        self._reconnecting = threading.Lock()
        self._nodes: dict[Address, Outbox] = {}
        self._of_inbox: dict[bytes, Outbox] = {}
        self._answered: list[tuple[object, bool]] = []
        """Answers from the nodes whose outbox was closed."""
        self._unconnected: BrokerError | None = BrokerUnreachable(
            f"broker {broker.label}: the outbox has not connected yet"
        )
        self._closed = False
        dies_in_child(self)

    def use_marks(self, names: Sequence[bytes]) -> None:
        """As `Outbox.use_marks`; each node gets those in its inboxes, from `reconnect` on."""
        self._marks = {list_names.inbox_of(name): name for name in names}

    @property
    def error(self) -> BrokerError | None:
        """Why a node is not connected; None while all are."""
        found = self._unconnected
        for outbox in self._nodes.values():
            error = outbox.error
            if error is not None and (found is None or not error.retryable):
                found = error
        return found

    @property
    def refusal(self) -> BrokerBusy | None:
        """See `Outbox.refusal`, of a node that refuses pushes; None if none does."""
        refusals = (outbox.refusal for outbox in tuple(self._nodes.values()))
        return next((refusal for refusal in refusals if refusal is not None), None)

    @property
    def has_unread(self) -> bool:
        """True while a node owes replies."""
        return any(outbox.has_unread for outbox in tuple(self._nodes.values()))

    @property
    def is_behind(self) -> bool:
        """True while writes wait for one of the nodes."""
        return any(outbox.is_behind for outbox in tuple(self._nodes.values()))

    @property
    def moved_at(self) -> float:
        """The latest `Outbox.moved_at` of all nodes."""
        return max((outbox.moved_at for outbox in tuple(self._nodes.values())), default=0.0)

    @property
    def small_waited_at(self) -> float:
        """The latest `Outbox.small_waited_at` of all nodes."""
        waited = (outbox.small_waited_at for outbox in tuple(self._nodes.values()))
        return max(waited, default=LONG_AGO)

    def push(
        self,
        name: bytes,
        element: tuple[bytes, Buffer],
        token: object = None,
        *,
        clear: bool = False,
        size: int = 0,
        ttl: int | None = None,
        urgent: bool = False,
    ) -> None:
        """Do what `Outbox.push` does."""
        push = methodcaller(
            "push", name, element, token, clear=clear, size=size, ttl=ttl, urgent=urgent
        )
        self._route(list_names.inbox_of(name), push)

    def push_later(
        self,
        name: bytes,
        encode: Callable[[], tuple[bytes, Buffer]],
        size: int,
        token: object = None,
        *,
        clear: bool = False,
    ) -> None:
        """Do what `Outbox.push_later` does."""
        self._route(
            list_names.inbox_of(name),
            lambda outbox: outbox.push_later(name, encode, size, token, clear=clear),
        )

    def delete(self, *names: bytes) -> None:
        """Do what `Outbox.delete` does; the lists may be in several inboxes."""
        by_inbox: dict[bytes, list[bytes]] = defaultdict(list)
        for name in names:
            by_inbox[list_names.inbox_of(name)].append(name)
        for inbox, lists in by_inbox.items():
            self._route(inbox, methodcaller("delete", *lists))

    def collect(self) -> list[tuple[object, bool]]:
        """Do what `Outbox.collect` does, for all nodes."""
        answered, self._answered = self._answered, []
        for outbox in tuple(self._nodes.values()):
            answered += outbox.collect()
        return answered

    def silent(self, patience: float) -> list[Silence]:
        """As `Outbox.silent`, of all nodes."""
        return [found for node in tuple(self._nodes.values()) for found in node.silent(patience)]

    def flush(self, timeout: float | None = None) -> bool:
        """Flush all nodes like `Outbox.flush`; return False if a connection broke."""
        deadline = None if timeout is None else time.monotonic() + timeout
        whole = self._unconnected is None
        for outbox in tuple(self._nodes.values()):
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            whole = outbox.flush(left) and whole
        return whole

    def reconnect(self) -> None:
        """Look up the inboxes, and open the connections that are missing or broken.

        Raises:
            BrokerError: at least one of them cannot be opened now.
        """
        with self._reconnecting:
            addresses = {inbox: self._broker.address(name) for inbox, name in self._inboxes.items()}
            old, nodes = self._nodes, {}
            try:
                for address in dict.fromkeys(addresses.values()):
                    outbox = old.get(address) or Outbox(self._broker.on(address), self._ttl)
                    nodes[address] = outbox
                    here = (inbox for inbox, at in addresses.items() if at == address)
                    outbox.use_marks([self._marks[i] for i in here if i in self._marks])
                    if outbox.error is not None:
                        outbox.reconnect()
            except BaseException:
                for address in nodes.keys() - old.keys():
                    nodes[address].close()
                raise
            self._nodes = nodes
            self._of_inbox = {inbox: nodes[address] for inbox, address in addresses.items()}
            self._unconnected = None
            for address in old.keys() - nodes.keys():
                self._answered += old[address].collect()
                old[address].close()
            if self._closed:
                self._close_all()

    def give_up(self, error: BrokerError) -> None:
        """As `Outbox.give_up`, of all nodes."""
        for outbox in tuple(self._nodes.values()):
            outbox.give_up(error)

    def close(self) -> None:
        """Close the connections; later writes raise EndpointClosed."""
        self._closed = True
        self._close_all()

    def die_in_child(self) -> None:
        """Do what `Outbox.die_in_child` does; the nodes' outboxes do so themselves."""
        self._reconnecting = threading.Lock()
        self._closed = True
        self._broker = cast("Broker", Dead(used_after_fork("the outbox")))

    def _route(self, inbox: bytes, write: Callable[[Outbox], None]) -> None:
        """Write through the inbox's present outbox; do nothing if it has none."""
        outbox = self._of_inbox.get(inbox)
        if outbox is None:  # not connected yet
            self._check_open()
            return
        try:
            write(outbox)
        except EndpointClosed:  # a reconnect has just closed this outbox
            self._check_open()

    def _close_all(self) -> None:
        for outbox in tuple(self._nodes.values()):
            outbox.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed: open one with redislink.connect()")


AnyOutbox = Outbox | ClusterOutbox


def make_outbox(
    broker: Broker, ttl: int, inboxes: Iterable[bytes], marks: Sequence[bytes]
) -> AnyOutbox:
    """Return the kind of outbox that fits the broker: `Outbox` or `ClusterOutbox`."""
    if broker.is_cluster:
        return ClusterOutbox(broker, ttl, inboxes, marks)
    return Outbox(broker, ttl, marks)
