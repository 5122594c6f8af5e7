"""`SeveralBrokers`: independent brokers, of which one at a time has the lists.

Rules:
- `open` connects to the present one. `move` makes another one the present one and breaks every
  connection that was opened before: for whoever uses one, a move is an outage that ends elsewhere.
- A connection that is opened while the brokers change is closed at once, and never handed out.
- No wait for a broker that is away outlasts a move: a thread of its own opens each connection.
- A broker that refuses us is no reason to end the session while there is another one: its errors
  are retryable unless all brokers refuse.
- Each broker gets only its own user and password.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Self

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.credentials import CredentialsCallable
from redislink.broker.proxy import EgressProxy
from redislink.broker.url import Address
from redislink.errors import BrokerError, BrokerUnreachable, UsageError
from redislink.forking import dies_in_child
from redislink.settings import RedisLinkSettings


class SeveralBrokers(Broker):
    """Independent brokers, in the same order at every party; the session is on one at a time.

    Attributes:
        members: the brokers.
        index: the index of the present one.
    """

    def __init__(self, members: Sequence[Broker]) -> None:
        """Args:
        members: single servers, or masters with sentinels; at least two.

        Raises:
            UsageError: there are fewer, or one of them is a Cluster or in this process.
        """
        if len(members) < 2 or any(broker.is_cluster or broker.in_process for broker in members):
            raise UsageError(
                "several brokers: give at least two, and no Redis Cluster or fakeredis among them"
            )
        self.members = tuple(members)
        self.index = 0
        self.timeout = max(broker.timeout for broker in members)
        self.label = members[0].label
        self._changed = threading.Condition()
        self._opened: weakref.WeakSet[BrokerConnection] = weakref.WeakSet()
        self._causes: list[BrokerError | None] = [None] * len(members)
        """Why each cannot be reached; None if it can, or was not tried."""
        dies_in_child(self)

    @property
    def labels(self) -> str:
        """The labels of all brokers, for messages."""
        return ", ".join(broker.label for broker in self.members)

    @property
    def user(self) -> str:
        """The Redis user at the present broker, as far as it is known so far."""
        return self.members[self.index].user

    @property
    def in_process(self) -> bool:
        """False: each is a server."""
        return False

    @property
    def may_be_quiet(self) -> bool:
        """Whether we may ask every one of them not to answer pushes."""
        return all(broker.may_be_quiet for broker in self.members)

    @property
    def is_cluster(self) -> bool:
        """False: none of them is a Redis Cluster."""
        return False

    def at(self, name: bytes) -> Self:  # noqa: ARG002 - one broker has all lists
        """Return itself."""
        return self

    def addresses(self) -> list[Address]:
        """Return what the present broker returns."""
        return self.members[self.index].addresses()

    def proxy_to(self, address: Address) -> EgressProxy | None:
        """Return what the present broker returns."""
        return self.members[self.index].proxy_to(address)

    def blpop_slice(self, wanted: float) -> float:
        """Return ``wanted``."""
        return wanted

    def open(self) -> BrokerConnection:
        """Open a connection to the present broker, and log in.

        Raises:
            BrokerError: that is not possible now, or the session moves to another broker
                meanwhile. Not retryable only if every broker refuses us for good.
        """
        with self._changed:
            index = self.index
            dial = self._open_member(index)
            self._changed.wait_for(lambda: dial.done() or self.index != index)
            if not dial.done():
                dial.add_done_callback(_close_late)
                raise self._left(index)
            error = dial.exception()
            if error is None and self.index == index:
                connection = dial.result()
                self._opened.add(connection)
                self._causes[index] = None
                return connection
        if error is None:
            dial.result().close()
            raise self._left(index)
        if not isinstance(error, BrokerError):
            raise error
        raise self.why_away(index, error)

    def note(self, index: int, error: BrokerError | None) -> bool:
        """Note why a broker cannot be reached; None if it can. Return whether that is new."""
        before, self._causes[index] = self._causes[index], error
        return (before is None) != (error is None)

    def why_away(self, index: int, error: BrokerError) -> BrokerError:
        """Return the error to raise because a broker cannot be reached.

        It names each broker and its last error if none of them can be reached.

        Args:
            index: the broker's index.
            error: why it cannot be reached.
        """
        self.note(index, error)
        none = self.why_none(error)
        if none is error:
            error.retryable = True
        return none

    def why_none(self, error: BrokerError) -> BrokerError:
        """Return the error that names each broker and its last error; ``error`` if one is alive."""
        causes = [cause for cause in self._causes if cause is not None]
        if len(causes) < len(self.members):
            return error
        kinds = {type(cause) for cause in causes}
        kind = kinds.pop() if len(kinds) == 1 else BrokerUnreachable
        none = kind(
            f"none of the {len(causes)} brokers can be used: "
            + "; ".join(str(cause) for cause in causes)
        )
        none.retryable = any(cause.retryable for cause in causes)
        none.refusal = error.refusal
        return none

    def move(self, index: int) -> None:
        """Make another broker the present one, and break every connection to the last one."""
        with self._changed:
            self.index = index
            self.label = self.members[index].label
            opened, self._opened = list(self._opened), weakref.WeakSet()
            self._changed.notify_all()
        for connection in opened:
            connection.interrupt()

    def die_in_child(self) -> None:
        """In a forked child: the connections die by themselves."""
        self._changed = threading.Condition()
        self._opened = weakref.WeakSet()

    def _open_member(self, index: int) -> Future[BrokerConnection]:
        dial: Future[BrokerConnection] = Future()
        dial.add_done_callback(self._notify)

        def run() -> None:
            try:
                connection = self.members[index].open()
            except BaseException as error:  # noqa: BLE001 - `open` raises it
                dial.set_exception(error)
            else:
                dial.set_result(connection)

        try:
            threading.Thread(target=run, name="redislink-dial", daemon=True).start()
        except RuntimeError as error:  # no more threads
            raise BrokerUnreachable(
                f"broker {self.label}: no thread left to connect to it ({error}): raise this "
                "process's limit on threads"
            ) from None
        return dial

    def _notify(self, _: Future[BrokerConnection]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _left(self, index: int) -> BrokerUnreachable:
        return BrokerUnreachable(
            f"broker {self.members[index].label}: the session has moved to {self.label}"
        )


def make_broker(
    settings: RedisLinkSettings,
    cluster_url: str | None,
    *,
    credentials: CredentialsCallable | None = None,
) -> Broker:
    """Return the broker that the settings name, or else the cluster file's; or several as one.

    Args:
        settings, cluster_url, credentials: as for `Broker.all_from_settings`.

    Raises:
        ConfigError: as `Broker.all_from_settings`.
    """
    members = Broker.all_from_settings(settings, cluster_url, credentials=credentials)
    return members[0] if len(members) == 1 else SeveralBrokers(members)


def _close_late(dial: Future[BrokerConnection]) -> None:
    """Close what was opened after the session had moved."""
    if dial.exception() is None:
        dial.result().close()
