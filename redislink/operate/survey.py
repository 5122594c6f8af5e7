"""`Survey`: reads, and removes, the keys that sessions have on a broker: names, sizes and times.

Rules:
- Names and replies are the broker's, and checked. A key of another form or type than ours is
  never shown as ours, and never removed.
- A command that the user may not run leaves None where its answer belongs, and its name in
  `Survey.refused`.
- No element is taken off a list, and none is read but by `Survey.elements`.
- On a Cluster SCAN sees one node's keys: all that depends on which node has a key is in `_Nodes`.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.url import Address
from redislink.broker.wire import ELEMENT, LISTING
from redislink.errors import (
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    FrameError,
    UsageError,
)
from redislink.protocol import list_names
from redislink.protocol.frame import Data, decode_header_untrusted

Command = tuple[bytes | int | str, ...]

_SCAN_COUNT: Final = 1000
_LONGEST_SCAN: Final = 60.0
_MOST_KEYS: Final = 1 << 20
_BATCH: Final = 200
"""Keys that one writing asks about, or removes: a broker serves others between two of them."""
_STRINGS: Final = (list_names.CLAIM_TAG, list_names.STATUS_TAG)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a session.

    Attributes:
        name: on the broker.
        session, dst, src, epoch, tag: what the name says.
        kind: Redis's word for its type; empty if it is not known.
        depth: elements of a list; None if it is not known, or no list.
        memory_bytes: what it takes on the broker; None if it is not known.
        expires_seconds: until the broker removes it by itself; None if never, or not known.
        value: of a claim or status; None if it is not known.
    """

    name: bytes
    session: str
    dst: str
    src: str
    epoch: str
    tag: str
    kind: str
    depth: int | None
    memory_bytes: int | None
    expires_seconds: float | None
    value: bytes | None

    @property
    def is_ours(self) -> bool:
        """True if it also has the type that redislink gives to a key of this name."""
        return self.kind == ("string" if self.tag in _STRINGS else "list")

    @property
    def is_claim(self) -> bool:
        """True for what a party that runs keeps renewing."""
        return self.tag == list_names.CLAIM_TAG and self.dst == self.src

    @property
    def holds_messages(self) -> bool:
        """True for lists of the application's, or SPU's, messages."""
        return not self.tag.startswith("!")


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a list, without its body.

    Attributes:
        kind: of the frame, in capitals; empty if it is none.
        size_bytes: of the whole element.
        number: of a DATA frame; None of others.
        part, parts: which chunk of how many it is, from 0.
    """

    kind: str
    size_bytes: int
    number: int | None = None
    part: int = 0
    parts: int = 1


class Survey:
    """An operator's view of a broker; used by one thread. `close` it."""

    def __init__(self, broker: Broker) -> None:
        """Connects when it is first asked something."""
        self.label = broker.label
        self.refused: set[str] = set()
        """Commands, in capitals, that this user may not run, on all keys or on some."""
        self._timeout = broker.timeout
        self._nodes = _Nodes(broker)

    def keys(self, session: str | None = None) -> list[Key]:
        """Every key with a name of ours: of one session, or of all.

        Raises:
            BrokerPermissionError: without SCAN there is nothing to see.
            BrokerError: the broker is out of reach, or answers nonsense.
        """
        prefix = (
            f"{list_names.PREFIX}:{{".encode()
            if session is None
            else list_names.session_prefix(session)
        )
        found: dict[bytes, Key] = {}
        for connection in self._nodes.all():
            names = {}
            for name in self._scan(connection, prefix):
                try:
                    parsed = list_names.parse_list_untrusted(name)
                except FrameError:
                    continue
                if session in (None, parsed[0]) and name.startswith(prefix):
                    names[name] = parsed
                if len(names) > _MOST_KEYS:
                    raise BrokerRefused(
                        f"broker {self.label}: it names more than {_MOST_KEYS} keys of ours: "
                        "check that it is a Redis or Valkey server, and who pushes to it"
                    )
            for batch in _batches(list(names)):
                # A slot that moves while we look shows its keys twice.
                for key in self._describe(connection, {name: names[name] for name in batch}):
                    found[key.name] = key
        return list(found.values())

    def sessions(self) -> list[str]:
        """Names of all sessions that have a key, in order; no key is asked about.

        Raises: as `keys`.
        """
        names = set()
        for connection in self._nodes.all():
            for name in self._scan(connection, f"{list_names.PREFIX}:{{".encode()):
                with contextlib.suppress(FrameError):
                    names.add(list_names.parse_list_untrusted(name)[0])
        return sorted(names)

    def values(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The values of these claims and status, where there is one and it may be read.

        Raises:
            BrokerError: as `keys`.
        """
        found = []
        for name in names:
            connection = self._nodes.of(name)
            found.append(_as_bytes(self._ask(connection, [("GET", name)])[0]))
        return found

    def elements(self, key: Key, most: int) -> Iterator[Element]:
        """The first elements of a list; their bodies come here too, and are dropped.

        Args:
            most: how many.

        Raises:
            BrokerPermissionError: this user may not read elements.
            BrokerError: as `keys`.
        """
        connection = self._nodes.of(key.name)
        for index in range(most):
            try:
                element = connection.execute(
                    "LINDEX", key.name, index, timeout=self._timeout, most=ELEMENT
                )
            except BrokerPermissionError:
                raise _not_allowed(
                    self.label, "LINDEX", "leave --frames out, or come as an admin"
                ) from None
            if not isinstance(element, bytes | memoryview):
                return
            yield _element_untrusted(element)

    def remove(self, session: str, found: Iterable[Key]) -> int:
        """Remove these keys of a session; returns how many were still there.

        Raises:
            UsageError: one is of another session, or not ours.
            BrokerPermissionError: this user may run neither UNLINK nor DEL on them.
            BrokerError: as `keys`.
        """
        prefix = list_names.session_prefix(session)
        by_inbox: dict[str, list[bytes]] = defaultdict(list)
        for key in found:
            if key.session != session or not key.name.startswith(prefix) or not key.is_ours:
                raise UsageError(f"not a key of session {session!r}: only its own are removed")
            by_inbox[key.dst].append(key.name)  # one slot of a Cluster each
        return sum(
            self._remove_batch(batch) for names in by_inbox.values() for batch in _batches(names)
        )

    def close(self) -> None:
        """Close the connections; never raises."""
        self._nodes.close()

    def _remove_batch(self, names: Sequence[bytes]) -> int:
        try:
            return self._remove_on(self._nodes.of(names[0]), names)
        except BrokerUnreachable:
            if not self._nodes.are_many:
                raise
            # The slot has moved, or its node was lost, since we looked.
            return self._remove_on(self._nodes.of(names[0]), names)

    def _remove_on(self, connection: BrokerConnection, names: Sequence[bytes]) -> int:
        for command in ("UNLINK", "DEL"):  # UNLINK frees large lists without a pause
            try:
                removed = connection.execute(command, *names, timeout=self._timeout)
            except (BrokerPermissionError, BrokerRefused):
                continue
            if isinstance(removed, int):
                return removed
        raise _not_allowed(self.label, "UNLINK or DEL", _MAKE_ONE)

    def _scan(self, connection: BrokerConnection, prefix: bytes) -> Iterator[bytes]:
        cursor = b"0"
        give_up = time.monotonic() + _LONGEST_SCAN
        while True:
            try:
                reply = connection.execute(
                    *("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", _SCAN_COUNT),
                    timeout=self._timeout,
                    most=LISTING,
                )
            except BrokerPermissionError:
                self.refused.add("SCAN")
                raise _not_allowed(self.label, "SCAN", _MAKE_ONE) from None
            match reply:
                case [bytes() as cursor, list() as names]:
                    yield from (bytes(name) for name in names if isinstance(name, bytes))
                case _:
                    raise BrokerRefused(
                        f"broker {self.label}: answered SCAN with something else: check that it "
                        "is a Redis or Valkey server"
                    )
            if cursor == b"0":
                return
            if time.monotonic() > give_up:
                raise BrokerRefused(
                    f"broker {self.label}: SCAN did not come to its end in {_LONGEST_SCAN:g} s: "
                    "use a database of its own for redislink"
                )

    def _describe(
        self, connection: BrokerConnection, names: dict[bytes, tuple[str, str, str, str, str]]
    ) -> Iterator[Key]:
        commands: list[Command] = []
        for name, (*_, tag) in names.items():
            commands += [("TYPE", name), ("PTTL", name), ("MEMORY", "USAGE", name, "SAMPLES", 0)]
            commands.append(("GET" if tag in _STRINGS else "LLEN", name))
        replies = iter(self._ask(connection, commands))
        for name, parsed in names.items():
            kind, ttl, size, last = (next(replies) for _ in range(4))
            if kind == b"none" or ttl == -2:
                continue  # it went while we looked
            is_string = parsed[-1] in _STRINGS
            yield Key(
                name,
                *parsed,
                kind=kind.decode("ascii", "replace") if isinstance(kind, bytes) else "",
                depth=None if is_string else _as_count(last),
                memory_bytes=_as_count(size),
                expires_seconds=None if (left := _as_count(ttl)) is None else left / 1000,
                value=_as_bytes(last) if is_string else None,
            )

    def _ask(self, connection: BrokerConnection, commands: Sequence[Command]) -> list[Any]:
        """The replies, None for each that is refused."""
        give_up = time.monotonic() + self._timeout
        connection.send(commands)
        try:
            return [self._reply(connection, command, give_up) for command in commands]
        except BaseException:
            connection.close()  # replies are still to come: out of step
            raise

    def _reply(self, connection: BrokerConnection, command: Command, give_up: float) -> Any:
        try:
            reply = connection.read(max(0.001, give_up - time.monotonic()))
        except (BrokerPermissionError, BrokerRefused) as error:
            # A key of another type than its name says is no matter of permissions.
            if "WRONGTYPE" not in str(error):
                words = command[:2] if command[0] == "MEMORY" else command[:1]
                self.refused.add(" ".join(map(str, words)))
            return None
        # A large one is a view that is good until the next is read.
        return bytes(reply) if isinstance(reply, memoryview) else reply


class _Nodes:
    """Connections to the servers that hold keys: one, or that to each node of a Cluster."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._connections: dict[Address | None, BrokerConnection] = {}
        """By node of a Cluster; None is the one server of another broker."""

    @property
    def are_many(self) -> bool:
        """True for a Cluster."""
        return self._broker.is_cluster

    def all(self) -> list[BrokerConnection]:
        """To each server that has keys of its own."""
        places = self._broker.masters() if self._broker.is_cluster else [None]
        return [self._to(place) for place in places]

    def of(self, name: bytes) -> BrokerConnection:
        """To the server that has this key."""
        return self._to(self._broker.address(name) if self._broker.is_cluster else None)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _to(self, place: Address | None) -> BrokerConnection:
        connection = self._connections.get(place)
        if connection is None or not connection.usable:
            broker = self._broker if place is None else self._broker.on(place)
            connection = self._connections[place] = broker.open_answering()
        return connection


_MAKE_ONE: Final = (
    "come as an admin, or as a user that redislink acl --operator NAME makes for this session"
)


def _not_allowed(label: str, command: str, remedy: str) -> BrokerPermissionError:
    return BrokerPermissionError(f"broker {label}: this user may not run {command}: {remedy}")


def _element_untrusted(element: bytes | memoryview) -> Element:
    try:
        frame, _ = decode_header_untrusted(element)
    except FrameError:
        return Element("", len(element))
    if isinstance(frame, Data):
        return Element(frame.kind.name, len(element), frame.seq, frame.part, frame.parts)
    return Element(frame.kind.name, len(element))


def _batches(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def _as_count(reply: Any) -> int | None:
    return reply if isinstance(reply, int) and reply >= 0 else None


def _as_bytes(reply: Any) -> bytes | None:
    return reply if isinstance(reply, bytes) else None
