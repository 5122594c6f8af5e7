"""`Communicator`: messages between the parties of a session, as values or as raw bytes.

Two kinds act alike: `RedisCommunicator` over an `Endpoint` (relay.py), `ThreadCommunicator` between
threads of one process (threads.py).

Rules:
- A payload that is bytes-like travels raw; anything else as a value (`redislink.values`). A
  flag in the frame tells which, never the tag.
- Every tag here stands in a namespace: ``~<namespace>:<tag>``. A namespace holds no ``:``, so
  no two pairs of namespace and tag meet; SPU's tags begin with a device's name, which no ``~``
  begins.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self

from redislink.errors import (
    EndpointClosed,
    UsageError,
    ValueDecodeError,
    reason_for_peers,
)
from redislink.protocol import list_names
from redislink.protocol.frame import Encoding
from redislink.settings import check_seconds
from redislink.transport.peer import Party
from redislink.transport.request import Request
from redislink.transport.stats import EndpointStats
from redislink.values import decode_value_untrusted, encode_value

DEFAULT_NAMESPACE: Final = "app"
MAX_NAMESPACE_BYTES: Final = 256
TAG_SIGN: Final = ":"
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*", re.ASCII)
Message = tuple[bytes, Encoding]
"""A payload, and how it travels."""


class Communicator(ABC):
    """One party's messages with the others. Usable from several threads at once.

    Peers are named by party name or by rank. Different tags do not wait for each other;
    messages with the same tag keep their order. Leaving its ``with`` block by an exception
    tells every peer.

    Attributes:
        session: name of the session; None between threads.
        party: name of this party.
        rank: its rank.
        party_names: of all parties, in rank order.
        namespace: in which its tags stand; only a communicator with the same one at the peer
            gets its messages.
    """

    session: str | None = None
    party: str
    rank: int
    party_names: tuple[str, ...]
    namespace: str

    def __init__(self, namespace: str) -> None:
        """Not for users: the two kinds and `sub` are."""
        self.namespace = _check_namespace(namespace)
        self._parent: Communicator | None = None
        self._sub_closed = False

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return len(self.party_names)

    def send(self, dst: Party, tag: str, value: object) -> Request:
        """Send a message. Never waits, neither for the peer nor for the broker.

        `send_sync` waits until the peer has received it; so does ``send(…).wait()``.

        Args:
            dst: party name or rank.
            tag: of valid Unicode; 512 bytes with its namespace.
            value: bytes, bytearray or memoryview go as raw bytes, anything else as a value, see
                `redislink.values.encode_value`; it may be changed after the call.

        Raises:
            PayloadTypeError: the value is of a type that does not travel.
            UsageError: no such party, or it is this one; or tag or size are not valid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: after `close` or `abort`.
        """
        self._check_open()
        full = self._full_tag(tag)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._send(dst, full, bytes(value), Encoding.RAW)
        return self._send(dst, full, encode_value(value), Encoding.VALUE)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Any:
        """The next message from ``src`` with ``tag``; waits for it.

        Args:
            src: party name or rank.
            tag: as the sender gave it.
            timeout: seconds; 0 takes only what is there; None takes the receive timeout.

        Returns:
            ``bytes`` if the sender gave raw bytes, else the value. Arrays in it are read-only,
            and keep the whole message alive: copy what is to be changed or kept.

        Raises:
            RecvTimeout: it did not come in time.
            ValueDecodeError: it came and is no value, or holds a dataclass that is not
                registered here. It is taken all the same.
            PeerAborted, PeerLost, PeerRestarted, PeerClosed: it will not come.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: `close` or `abort` was called, before or while this waited.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self._check_open()
        return self._decode(src, tag, self._recv(src, self._full_tag(tag), timeout))

    def send_sync(self, dst: Party, tag: str, value: object, timeout: float | None = None) -> None:
        """Send a message and wait until the peer has received it. `send` does not wait.

        Args:
            dst, tag, value: as for `send`.
            timeout: seconds; None takes the receive timeout.

        Raises:
            SendTimeout: the peer did not receive it in time; it may still do so later.
            others: as `send`.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self.send(dst, tag, value).wait(timeout)

    def has_message(self, src: Party, tag: str) -> bool:
        """True if `recv` for this tag would return at once.

        Raises: as `recv`, but never a timeout.
        """
        self._check_open()
        return self._peek(src, self._full_tag(tag)) is not None

    def peek_message(self, src: Party, tag: str) -> Any | None:
        """What `recv` would return, without taking it; None if there is none yet.

        A value may be None too: `has_message` tells which it is.

        Raises: as `recv`, but never a timeout.
        """
        self._check_open()
        message = self._peek(src, self._full_tag(tag))
        return None if message is None else self._decode(src, tag, message)

    def sub(self, name: str) -> Self:
        """The same parties, with a tag namespace of its own beneath this one.

        Closing it ends the receives in it and in its own subs, and tells no peer; leaving its
        ``with`` block by an exception aborts the session, as `abort` does.

        Args:
            name: 1 or more characters of ``A-Z a-z 0-9 _ . -``; the same at every party. The
                same name again gives the same namespace.

        Raises:
            UsageError: the name is not valid, or the namespace has more than
                ``MAX_NAMESPACE_BYTES``.
        """
        if not isinstance(name, str) or "/" in name:
            raise UsageError(f"a namespace's name is a str without '/', not {name!r:.80}")
        child = self._make_sub(_check_namespace(f"{self.namespace}/{name}"))
        child._parent = self
        return child

    def close(self) -> None:
        """Leave the session in good order; blocked calls end with EndpointClosed.

        What was sent can still be received. Safe to call twice.
        """
        if self._parent is None:
            self._close()
        else:
            self._sub_closed = True
            self._wake_sub()

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Tell every peer that this party's run has failed, and leave; of a sub too.

        Args:
            reason: one line; it is shown to the peers, so it must hold no data.
        """

    def trouble(self, peer: Party) -> str:  # noqa: ARG002 - threads have none
        """What holds messages with a peer up, such as ``bob not heard for 12 s``; "" if nothing."""
        return ""

    @abstractmethod
    def stats(self) -> EndpointStats:
        """Counts so far, over all peers and namespaces."""

    @abstractmethod
    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:
        """Within this block, peers do not take this party's silence for death.

        For calls that hold the GIL, and with it the heartbeat: compiling, making shares.

        Args:
            seconds: the longest that it may take.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(reason_for_peers(error))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.party} (rank {self.rank}), {self.namespace}>"

    # -- what the two kinds do each in its way; tags with their namespace ----------------------

    @abstractmethod
    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request: ...

    @abstractmethod
    def _recv(self, src: Party, tag: str, timeout: float | None) -> Message: ...

    @abstractmethod
    def _peek(self, src: Party, tag: str) -> Message | None: ...

    @abstractmethod
    def _make_sub(self, namespace: str) -> Self: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _wake_sub(self) -> None:
        """End the blocked calls of this sub and of those beneath it."""

    # -- shared --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raises EndpointClosed if this sub, or one that it stands in, is closed."""
        link: Communicator | None = self
        while link is not None:
            if link._sub_closed:
                raise EndpointClosed(
                    f"{self.party}: the communicator {link.namespace} is closed: make a new one "
                    "with sub()"
                )
            link = link._parent

    def _full_tag(self, tag: str) -> str:
        if not isinstance(tag, str) or not tag:
            raise UsageError(
                f"{self.party}: a tag is a str of 1 or more characters, not {tag!r:.80}"
            )
        full = f"{namespace_prefix(self.namespace)}{TAG_SIGN}{tag}"
        try:
            list_names.encode_tag(full)
        except UsageError as error:
            raise UsageError(
                f"{self.party}: tag {tag!r:.80} in namespace {self.namespace:.80}: {error}"
            ) from None
        return full

    def _decode(self, src: Party, tag: str, message: Message) -> Any:
        data, encoding = message
        if encoding is Encoding.RAW:
            return data
        try:
            return decode_value_untrusted(data)
        except ValueDecodeError as error:
            name = src if isinstance(src, str) else self.party_names[src]
            raise ValueDecodeError(
                f"{self.party}: the message from {name} with tag {tag!r:.120} is {error}"
            ) from error.__cause__


def namespace_prefix(namespace: str) -> str:
    return f"~{namespace}"


def _check_namespace(namespace: str) -> str:
    if (
        not isinstance(namespace, str)
        or not _NAMESPACE.fullmatch(namespace)
        or len(namespace) > MAX_NAMESPACE_BYTES
    ):
        raise UsageError(
            f"namespace {namespace!r:.80} is not valid: use names of A-Z a-z 0-9 _ . - joined by "
            f"'/', {MAX_NAMESPACE_BYTES} characters at most"
        )
    return namespace
