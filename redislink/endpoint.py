"""One party in one session: joins the protocol core and the broker.

`connect` says hello to every peer and gives an `Endpoint`. What one party sends with a tag,
another receives with that tag; different tags do not wait for each other, and messages with
the same tag keep their order.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from redislink.broker import Broker, Inbox, Outbox
from redislink.broker.claim import PartyClaim
from redislink.broker.inbox import Wait
from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import (
    BrokerError,
    ConfigError,
    EndpointClosed,
    FrameError,
    HandshakeTimeout,
    PayloadTypeError,
    RecvTimeout,
    SendTimeout,
    UsageError,
)
from redislink.protocol import keys
from redislink.protocol.frame import BytesLike, Data, decode_untrusted, encode, encode_header
from redislink.protocol.handshake import INSTANCE_BYTES, Handshake
from redislink.settings import RedisLinkSettings

Progress = Callable[[list[str], float], None]
Party = str | int

_HELLO_INTERVAL: Final = 1.0
_HELLO_TTL: Final = 60
_POLL_SECONDS: Final = (0.001, 0.05)
_logger = logging.getLogger("redislink")


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """What passed through an endpoint so far: messages, and bytes of their payloads."""

    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int


class _Peer:
    """What the endpoint knows of one other party."""

    def __init__(self, name: str, out_prefix: bytes, in_prefix: bytes) -> None:
        self.name = name
        self.out_prefix = out_prefix
        self.in_prefix = in_prefix
        self.last_seq = 0
        self.ready: dict[str, deque[bytes]] = defaultdict(deque)


class SendHandle:
    """A message under way, as MPI's request: `test` it or `wait` for it."""

    __slots__ = ("_endpoint", "_list", "_tag", "_to")

    def __init__(self, endpoint: Endpoint, to: str, tag: str, name: bytes) -> None:
        self._endpoint = endpoint
        self._to = to
        self._tag = tag
        self._list = name

    def test(self) -> bool:
        """True once the peer has taken the message (and all before it with the same tag)."""
        return self._endpoint._is_taken(self._list)

    def wait(self, timeout: float | None = None) -> None:
        """Return once the peer has taken the message.

        Args:
            timeout: seconds; None takes ``recv_timeout``.

        Raises:
            SendTimeout: the peer has not taken it in time.
        """
        limit = self._endpoint.settings.recv_timeout if timeout is None else timeout
        started = time.monotonic()
        pause, longest_pause = _POLL_SECONDS
        while not self.test():
            if time.monotonic() - started >= limit:
                raise SendTimeout(
                    f"{self._endpoint.party}: {self._to} has not taken the message with tag "
                    f"{self._tag!r:.120} in {limit:g} s: check that {self._to} runs and receives it"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest_pause)


class Endpoint:
    """This party's end of a session. Made by `connect`; usable from several threads at once.

    Peers are named by party name or by rank. A payload is any bytes-like object; what is
    received is ``bytes``.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        party: str,
        settings: RedisLinkSettings,
        broker: Broker,
        outbox: Outbox,
        inbox: Inbox,
        claim: PartyClaim,
        epochs: dict[str, str],
    ) -> None:
        """Not for users: `connect` is."""
        self.cluster = cluster
        self.party = party
        self.settings = settings
        self.rank = cluster.rank(party)
        self._outbox = outbox
        self._inbox = inbox
        self._claim = claim
        self._blpop_slice = broker.blpop_slice(settings.blpop_timeout)
        session = cluster.session
        self._peers = {
            peer: _Peer(
                peer,
                keys.inbox_prefix(session, peer, party, epoch),
                keys.inbox_prefix(session, party, peer, epoch),
            )
            for peer, epoch in epochs.items()
        }
        self._lock = threading.Lock()
        self._waits: dict[Wait, tuple[str, str]] = {}
        self._link_numbers: dict[str, int] = defaultdict(int)
        self._closed = False
        self._sent = [0, 0]
        self._received = [0, 0]

    @property
    def session(self) -> str:
        """Name of the session."""
        return self.cluster.session

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return self.cluster.world_size

    def send(self, dst: Party, tag: str, data: BytesLike) -> SendHandle:
        """Hand a message to the broker; waits neither for the peer nor for the broker.

        Args:
            dst: party name or rank.
            tag: 1 to 512 bytes of UTF-8; the peer receives with the same.
            data: any bytes-like object; it may be changed after the call.

        Raises:
            PayloadTypeError: ``data`` is not bytes-like.
            UsageError: no such party, or it is this one; or the tag is not valid.
            BrokerError: this push or an earlier one failed.
            EndpointClosed: after `close`.
        """
        peer = self._peer(dst)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise PayloadTypeError(
                f"{self.party}: the message for {peer.name} with tag {tag!r:.120} is "
                f"{type(data).__name__}, not bytes: encode it first"
            )
        name = peer.out_prefix + keys.encode_tag(tag).encode()
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        with self._lock:
            self._check_open()
            peer.last_seq += 1
            seq = peer.last_seq
            self._sent[0] += 1
            self._sent[1] += size
        self._outbox.push(name, (encode_header(Data(seq)), memoryview(data)), self._ttl)
        return SendHandle(self, peer.name, tag, name)

    def flush(self) -> None:
        """Wait until the broker has taken all that was sent.

        Raises:
            BrokerError: it has not.
        """
        self._outbox.flush()

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> bytes:
        """The next message from ``src`` with ``tag``; waits for it.

        Args:
            src: party name or rank.
            tag: as the sender gave it.
            timeout: seconds; None takes ``recv_timeout``.

        Raises:
            RecvTimeout: it did not come in time.
            RecvCancelled: `cancel_recv` was called for it.
            BrokerError: the broker failed.
            EndpointClosed: `close` was called, before or while this waited.
        """
        peer = self._peer(src)
        name = peer.in_prefix + keys.encode_tag(tag).encode()
        limit = self.settings.recv_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        wait = Wait()
        with self._lock:
            self._check_open()
            if peer.ready.get(tag):
                return self._take_ready(peer, tag)
            self._waits[wait] = (peer.name, tag)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RecvTimeout(
                        f"{self.party}: waited {limit:g} s for tag {tag!r:.120} from "
                        f"{peer.name}: check that {peer.name} runs and sends it, or allow more "
                        "time (REDISLINK_RECV_TIMEOUT)"
                    )
                popped = self._inbox.pop((name,), max(0.001, min(left, self._blpop_slice)), wait)
                if popped is not None:
                    message = self._open_element(peer, popped[1])
                    if message is not None:
                        self._count_received(message)
                        return message
        finally:
            with self._lock:
                del self._waits[wait]

    def has_message(self, src: Party, tag: str) -> bool:
        """True if `recv` for this tag would return at once."""
        return self.peek_message(src, tag) is not None

    def peek_message(self, src: Party, tag: str) -> bytes | None:
        """The message that `recv` would return, without taking it; None if there is none yet.

        Raises: as `recv`, but never a timeout.
        """
        peer = self._peer(src)
        name = peer.in_prefix + keys.encode_tag(tag).encode()
        with self._lock:
            self._check_open()
            waiting = peer.ready.get(tag)
            if waiting:
                return waiting[0]
        while (element := self._inbox.pop_now(name)) is not None:
            message = self._open_element(peer, element)
            if message is not None:
                with self._lock:
                    peer.ready[tag].append(message)
                    return peer.ready[tag][0]
        return None

    def cancel_recv(self, src: Party, tag_prefix: str) -> None:
        """End every blocked `recv` from ``src`` whose tag begins so, with RecvCancelled."""
        peer = self._peer(src)
        with self._lock:
            for wait, (name, tag) in self._waits.items():
                if name == peer.name and tag.startswith(tag_prefix):
                    wait.cancel()

    def next_link_number(self, device: str) -> int:
        """How many links this endpoint has made for a device, this one included.

        Links to the same device are made in the same order everywhere, so the number keeps
        their equal tags apart.
        """
        with self._lock:
            self._link_numbers[device] += 1
            return self._link_numbers[device]

    def stats(self) -> EndpointStats:
        """Counts so far."""
        with self._lock:
            return EndpointStats(*self._sent, *self._received)

    def close(self) -> None:
        """Flush what was sent, end what waits, leave the session. Safe to call twice.

        Raises:
            BrokerError: what was sent did not reach the broker.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._inbox.close()
        try:
            self._outbox.delete(
                *(keys.hello_list(self.session, self.party, peer) for peer in self._peers)
            )
            self._outbox.flush()
        finally:
            self._outbox.close()
            self._claim.release()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BrokerError as broker_error:
            if error is None:
                raise
            _logger.warning("%s: while closing after an error: %s", self.party, broker_error)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Endpoint {self.party} (rank {self.rank}) of session {self.session}, {state}>"

    @property
    def _ttl(self) -> int:
        return self.settings.list_ttl

    def _is_taken(self, name: bytes) -> bool:
        return self._outbox.length(name) == 0

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed(
                f"{self.party}: the endpoint is closed: open a new one with redislink.connect()"
            )

    def _peer(self, party: Party) -> _Peer:
        if isinstance(party, int) and not isinstance(party, bool):
            if not 0 <= party < self.world_size:
                raise UsageError(
                    f"{self.party}: there is no rank {party}: ranks are 0 to {self.world_size - 1}"
                )
            name: object = self.cluster.party_names[party]
        else:
            name = party
        peer = self._peers.get(name) if isinstance(name, str) else None
        if peer is None:
            raise UsageError(
                f"{self.party}: {name!r:.80} is "
                + ("this party itself" if name == self.party else "not a party")
                + f": use one of {', '.join(self._peers)}"
            )
        return peer

    def _open_element(self, peer: _Peer, element: bytes) -> bytes | None:
        """The message in a list element; None, and a warning, if it is not one."""
        try:
            frame, body = decode_untrusted(element)
            if not isinstance(frame, Data) or frame.parts != 1:
                raise FrameError(f"a {frame.kind.name} frame where a whole message belongs")
        except FrameError as error:
            _logger.warning("%s: ignored an element from %s: %s", self.party, peer.name, error)
            return None
        return bytes(body)

    def _take_ready(self, peer: _Peer, tag: str) -> bytes:
        waiting = peer.ready[tag]
        message = waiting.popleft()
        if not waiting:
            del peer.ready[tag]
        self._received[0] += 1
        self._received[1] += len(message)
        return message

    def _count_received(self, message: bytes) -> None:
        with self._lock:
            self._received[0] += 1
            self._received[1] += len(message)


def connect(
    cluster: ClusterSpec | str | Path | None = None,
    party: str | None = None,
    settings: RedisLinkSettings | None = None,
    *,
    on_progress: Progress | None = None,
) -> Endpoint:
    """Join a session: returns once every pair of parties has said hello.

    Args:
        cluster: the cluster, or the path of its file; None takes ``REDISLINK_CLUSTER_FILE``.
        party: who this process is; None takes ``REDISLINK_PARTY``.
        settings: None reads the environment and ``.env``.
        on_progress: called about once a second while parties are missing, with their names
            and the seconds waited.

    Raises:
        ConfigError: cluster, party or settings are wrong.
        BrokerError: the broker is out of reach or refuses this party.
        PartyTaken: another process already runs as this party.
        ClusterMismatch: a peer runs with another cluster file.
        HandshakeTimeout: not every party came within ``connect_timeout``; names them.
    """
    settings = settings or RedisLinkSettings.load()
    spec = _resolve_cluster(cluster, settings)
    name = party or settings.party
    if name is None:
        raise ConfigError(
            "no party: pass one, or set REDISLINK_PARTY to one of " + ", ".join(spec.party_names)
        )
    spec.rank(name)
    broker = Broker.from_settings(settings, spec.broker)
    instance = secrets.token_bytes(INSTANCE_BYTES)
    claim = PartyClaim(
        broker,
        keys.claim_key(spec.session, name),
        instance,
        f"party {name!r} of session {spec.session!r}",
    )
    claim.acquire()
    outbox, inbox = Outbox(broker), Inbox(broker)
    try:
        epochs = _say_hello(spec, name, settings, broker, outbox, inbox, instance, on_progress)
    except BaseException:
        inbox.close()
        outbox.close()
        claim.release()
        raise
    return Endpoint(spec, name, settings, broker, outbox, inbox, claim, epochs)


def _resolve_cluster(
    cluster: ClusterSpec | str | Path | None, settings: RedisLinkSettings
) -> ClusterSpec:
    if isinstance(cluster, ClusterSpec):
        return cluster
    path = cluster if cluster is not None else settings.cluster_file
    if path is None:
        raise ConfigError("no cluster: pass one, or set REDISLINK_CLUSTER_FILE to its file")
    return load_cluster(path)


def _say_hello(
    spec: ClusterSpec,
    party: str,
    settings: RedisLinkSettings,
    broker: Broker,
    outbox: Outbox,
    inbox: Inbox,
    instance: bytes,
    on_progress: Progress | None,
) -> dict[str, str]:
    """Drive the handshake over the hello lists; returns each pair's epoch by peer name."""
    peers = [name for name in spec.party_names if name != party]
    handshake = Handshake(spec.session, party, peers, spec.digest(), instance)
    sources = {keys.hello_list(spec.session, party, peer): peer for peer in peers}

    def say_hello_to(peer: str) -> None:
        name = keys.hello_list(spec.session, peer, party)
        outbox.replace(name, encode(handshake.hello_for(peer)), _HELLO_TTL)

    started = time.monotonic()
    next_hello = started
    while missing := handshake.missing:
        now = time.monotonic()
        if now - started >= settings.connect_timeout:
            raise HandshakeTimeout(
                f"{party}: waited {settings.connect_timeout:g} s at broker {broker.label} for "
                f"{', '.join(missing)} to join session {spec.session!r}: start them with the "
                "same cluster file and broker, or raise REDISLINK_CONNECT_TIMEOUT"
            )
        if now >= next_hello:
            for peer in missing:
                say_hello_to(peer)
            outbox.flush()
            if on_progress is not None and now > started:
                on_progress(missing, now - started)
            next_hello = now + _HELLO_INTERVAL
        wait = min(next_hello - now, started + settings.connect_timeout - now)
        popped = inbox.pop(list(sources), max(0.001, broker.blpop_slice(wait)))
        if popped is None:
            continue
        peer = sources[popped[0]]
        try:
            frame, _ = decode_untrusted(popped[1])
            answer = handshake.receive(peer, frame)
        except FrameError as error:
            _logger.warning("%s: ignored a hello from %s: %s", party, peer, error)
            continue
        if answer is not None:
            say_hello_to(peer)
    outbox.flush()
    return {peer: handshake.epoch(peer) for peer in peers}
