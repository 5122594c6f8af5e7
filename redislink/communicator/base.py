"""`Communicator`: messages between the parties of a session, as values or as raw bytes.

There are two kinds with the same behaviour: `RedisCommunicator` over an `Endpoint` (relay.py), and
`ThreadCommunicator` between threads of one process (threads.py).

Rules:
- A bytes-like payload is sent raw; anything else is sent as a value (`redislink.values`). A flag
  in the frame says which it is; the tag never does.
- Every tag here is in a namespace: ``~<namespace>:<tag>``. A namespace contains no ``:``, so no
  two pairs of namespace and tag collide. SPU's tags begin with the name of a device, which never
  begins with ``~``.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Final, Self

from redislink.errors import (
    EndpointClosed,
    UsageError,
    ValueDecodeError,
)
from redislink.protocol import list_names
from redislink.protocol.frame import Encoding
from redislink.settings import check_seconds
from redislink.transport.peer import Party
from redislink.transport.request import Request
from redislink.transport.stats import EndpointStats
from redislink.values import decode_value_untrusted, encode_value
from redislink.with_block import ClosesOrAborts

DEFAULT_NAMESPACE: Final = "app"
MAX_NAMESPACE_BYTES: Final = 256
TAG_SIGN: Final = ":"
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*", re.ASCII)
Message = tuple[bytes, Encoding]
"""A payload, and how it is encoded."""


class Communicator(ClosesOrAborts):
    """One party's messages with the others. Usable from several threads at once.

    Peers are named by party name or by rank. Messages with different tags do not wait for each
    other; messages with the same tag keep their order. If an exception leaves the ``with`` block,
    the session is aborted and every peer is told.

    Attributes:
        session: the name of the session; None between threads.
        party: the name of this party.
        rank: the rank of this party.
        party_names: the names of all parties, in rank order.
        namespace: the namespace of its tags; only a communicator with the same namespace at the
            peer gets its messages.
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
            tag: valid Unicode, at most 512 bytes of UTF-8 including the namespace.
            value: the payload. bytes, bytearray and memoryview are sent as raw bytes, anything
                else as a value (see `redislink.values.encode_value`). It may be changed after the
                call.

        Raises:
            PayloadTypeError: the value has a type that cannot be sent.
            UsageError: there is no such party, or it is this one; or tag or size are not valid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: `close` or `abort` was called before.
        """
        self._check_open()
        full = self._full_tag(tag)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._send(dst, full, bytes(value), Encoding.RAW)
        return self._send(dst, full, encode_value(value), Encoding.VALUE)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Any:
        """Wait for the next message from ``src`` with ``tag``, and return it.

        Args:
            src: party name or rank.
            tag: the tag that the sender used.
            timeout: seconds; 0 does not wait; None means the receive timeout.

        Returns:
            ``bytes`` if the sender sent raw bytes, otherwise the value. Arrays in a value are
            read-only and keep the whole message alive: copy those that you want to change or keep.

        Raises:
            RecvTimeout: no message came in time.
            ValueDecodeError: the message cannot be decoded, or holds a dataclass that is not
                registered here. It is consumed all the same.
            PeerAborted, PeerLost, PeerRestarted, PeerClosed: no message will come any more.
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
            dst: party name or rank.
            tag: as for `send`.
            value: as for `send`.
            timeout: seconds; None means the receive timeout.

        Raises:
            SendTimeout: the peer did not receive it in time. It may still do so later.
            PayloadTypeError, UsageError, PeerError, BrokerError, EndpointClosed: see `send`.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self.send(dst, tag, value).wait(timeout)

    def has_message(self, src: Party, tag: str) -> bool:
        """Whether `recv` would return a message with this tag at once.

        Raises: see `recv`, but never a timeout.
        """
        self._check_open()
        return self._peek(src, self._full_tag(tag)) is not None

    def peek_message(self, src: Party, tag: str) -> Any | None:
        """The message that `recv` would return, without consuming it; None if there is none yet.

        A message may itself be None: `has_message` tells the difference.

        Raises: see `recv`, but never a timeout.
        """
        self._check_open()
        message = self._peek(src, self._full_tag(tag))
        return None if message is None else self._decode(src, tag, message)

    def sub(self, name: str) -> Self:
        """A communicator between the same parties, in a namespace below this one.

        Its `close` ends the receives in it and in its own subs, and tells no peer. If an exception
        leaves its ``with`` block, the session is aborted, as by `abort`.

        Args:
            name: 1 or more characters of ``A-Z a-z 0-9 _ . -``; the same at every party. Equal
                names give equal namespaces.

        Raises:
            UsageError: the name is not valid, or the namespace would have more than
                ``MAX_NAMESPACE_BYTES``.
        """
        if not isinstance(name, str) or "/" in name:
            raise UsageError(f"the name of a namespace is a str without '/', not {name!r:.80}")
        child = self._make_sub(_check_namespace(f"{self.namespace}/{name}"))
        child._parent = self
        return child

    def close(self) -> None:
        """Leave the session in good order. Blocked calls end with EndpointClosed.

        Peers can still receive what was sent. Safe to call twice.
        """
        if self._parent is None:
            self._close()
        else:
            self._sub_closed = True
            self._wake_sub()

    @abstractmethod
    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell every peer that this party's run has failed, and leave. A sub does so too.

        Args:
            reason: one line that the peers are shown, so it must hold no data.
            retryable: whether the cause may pass, so that the peers may start again.
        """

    def trouble(self, peer: Party) -> str:  # noqa: ARG002 - threads have none
        """Why messages with a peer are delayed, such as ``bob not heard for 12 s``; "" if not."""
        return ""

    @abstractmethod
    def stats(self) -> EndpointStats:
        """Counts so far, summed over all peers and namespaces."""

    @abstractmethod
    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:
        """A context in which the peers do not take this party's silence for death.

        For calls that hold the GIL, and so stop the heartbeat: compiling, making shares.

        Args:
            seconds: the longest time that the block may take.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.party} (rank {self.rank}), {self.namespace}>"

    # -- what each kind implements; tags include their namespace -------------------------------

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
        """End the blocked calls of this sub and of all subs below it."""

    # -- shared --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raise EndpointClosed if this sub, or one that contains it, is closed."""
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
