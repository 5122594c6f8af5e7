"""`Survey`: lists the keys that sessions have on a broker (names, sizes, times), and removes them.

Rules:
- The broker supplies names and replies, so they are checked. A key without our form or type is
  never shown as ours, and never removed.
- If the user may not run a command, its answer is None, and `Survey.refused` names the command.
- Nothing is popped from a list, and only `Survey.elements` reads elements.
- On a Cluster, SCAN sees only one node's keys: `_Nodes` knows which node has a key.
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
from redislink.broker.error_map import UNKNOWN_COMMAND, WRONG_TYPE
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
"""Keys to ask about, or to remove, at a time: the broker serves others between two batches."""
_STRINGS: Final = (list_names.CLAIM_TAG, list_names.STATUS_TAG, list_names.AGENT_TAG)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a session.

    Attributes:
        name: the key's name on the broker.
        session, dst, src, epoch, tag: the parts of the name.
        kind: Redis's word for its type; empty if unknown.
        depth: the number of elements; None if unknown, or if the key is not a list.
        memory_bytes: the memory that it takes on the broker; None if unknown.
        expires_seconds: seconds until the broker removes it by itself; None if never or unknown.
        value: the value of a claim or status; None if unknown.
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
        """True if the key has the type that redislink gives to keys with such a name."""
        return self.kind == ("string" if self.tag in _STRINGS else "list")

    @property
    def is_claim(self) -> bool:
        """True for the claim that a running party keeps renewing."""
        return self.tag == list_names.CLAIM_TAG and self.dst == self.src

    @property
    def holds_messages(self) -> bool:
        """True for lists with messages of the application or of SPU."""
        return not self.tag.startswith("!")


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a list, without its body.

    Attributes:
        kind: the frame's kind, in capitals; empty if the element is not a frame.
        size_bytes: the size of the whole element.
        number: a DATA frame's number; None for other frames.
        part, parts: the chunk's place in its message, from 0, and the number of chunks.
    """

    kind: str
    size_bytes: int
    number: int | None = None
    part: int = 0
    parts: int = 1


class Survey:
    """An operator's view of a broker. Use it in one thread, and `close` it."""

    def __init__(self, broker: Broker) -> None:
        """Connects at the first question.

        Args:
            broker: the broker, with the operator's user.
        """
        self.label = broker.label
        self.refused: set[str] = set()
        """Commands, in capitals, that this user may not run on some or all keys."""
        self._timeout = broker.timeout
        self._nodes = _Nodes(broker)

    def keys(self, session: str | None = None) -> list[Key]:
        """Return every key with a redislink name.

        Args:
            session: only this session's keys; None returns those of all sessions.

        Raises:
            BrokerPermissionError: this user may not run SCAN.
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
                # If a slot moves while we look, we see its keys twice.
                for key in self._describe(connection, {name: names[name] for name in batch}):
                    found[key.name] = key
        return list(found.values())

    def sessions(self) -> list[str]:
        """Return the names of all sessions that have a key, sorted. Asks only for key names.

        Raises: see `keys`.
        """
        names = set()
        for connection in self._nodes.all():
            for name in self._scan(connection, f"{list_names.PREFIX}:{{".encode()):
                with contextlib.suppress(FrameError):
                    names.add(list_names.parse_list_untrusted(name)[0])
        return sorted(names)

    def values(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these claims and statuses; None if missing or not readable.

        Args:
            names: the names of the keys.

        Raises:
            BrokerError: see `keys`.
        """
        found = []
        for name in names:
            connection = self._nodes.of(name)
            found.append(_as_bytes(self._ask(connection, [("GET", name)])[0]))
        return found

    def elements(self, key: Key, most: int) -> Iterator[Element]:
        """Yield the first elements of a list. Their bodies are transferred too, and dropped.

        Args:
            key: the list.
            most: the largest number of elements to yield.

        Raises:
            BrokerPermissionError: this user may not read elements.
            BrokerError: see `keys`.
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
        """Remove these keys of a session, and return how many still existed.

        Args:
            session: the session's name.
            found: the keys to remove.

        Raises:
            UsageError: a key belongs to another session, or is not ours.
            BrokerPermissionError: this user may run neither UNLINK nor DEL on them.
            BrokerError: see `keys`.
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
            # Since we looked, the slot has moved, or its node was lost.
            return self._remove_on(self._nodes.of(names[0]), names)

    def _remove_on(self, connection: BrokerConnection, names: Sequence[bytes]) -> int:
        for command in ("UNLINK", "DEL"):  # UNLINK frees large lists without a pause
            try:
                removed = connection.execute(command, *names, timeout=self._timeout)
            except BrokerPermissionError:
                continue
            except BrokerRefused as error:
                if error.refusal != UNKNOWN_COMMAND.called:
                    raise
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
                continue  # the key disappeared while we looked
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
        """Return the reply to each command; None for a refused command."""
        give_up = time.monotonic() + self._timeout
        with connection.pipeline(commands):
            return [self._reply(connection, command, give_up) for command in commands]

    def _reply(self, connection: BrokerConnection, command: Command, give_up: float) -> Any:
        try:
            reply = connection.read(max(0.001, give_up - time.monotonic()))
        except (BrokerPermissionError, BrokerRefused) as error:
            # A key with the wrong type for its name is not a matter of permissions.
            if error.refusal != WRONG_TYPE.called:
                words = command[:2] if command[0] == "MEMORY" else command[:1]
                self.refused.add(" ".join(map(str, words)))
            return None
        # A large reply is a view that is valid only until the next read.
        return bytes(reply) if isinstance(reply, memoryview) else reply


class _Nodes:
    """The connections to the servers that hold keys: one server, or each node of a Cluster."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._connections: dict[Address | None, BrokerConnection] = {}
        """By Cluster node; without a Cluster, the key is None."""

    @property
    def are_many(self) -> bool:
        """True for a Cluster."""
        return self._broker.is_cluster

    def all(self) -> list[BrokerConnection]:
        """Return a connection to each server that holds keys."""
        places = self._broker.masters() if self._broker.is_cluster else [None]
        return [self._to(place) for place in places]

    def of(self, name: bytes) -> BrokerConnection:
        """Return a connection to the server that holds this key."""
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
