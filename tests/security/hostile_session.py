"""Whole sealed sessions in memory, on a fake clock, over a broker that attacks them.

The parties are the protocol's own cores: `SealedHandshake`, `SealedCodec`, `Delivery`. What
joins them here does what `Rendezvous` and `Endpoint` do, in one thread.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any, Final

from redislink.errors import (
    BrokerTampered,
    FrameError,
    HandshakeTimeout,
    PeerError,
    RecvTimeout,
    RedisLinkError,
)
from redislink.identity.keypair import Identity
from redislink.protocol import list_names
from redislink.protocol.delivery import DataPush, Delivery, Leftover, Push, Timing
from redislink.protocol.frame import decode_untrusted, encode, is_rest
from redislink.protocol.seal import Codec, Lend, StaleError
from redislink.protocol.sealed_handshake import SealedHandshake
from redislink.protocol.states import State
from redislink.transport import peer as transport
from tests.security.hostile_broker import Attacker

NAMES: Final = ("alice", "bob", "carol")
IDENTITIES: Final = {name: Identity(bytes([7 + rank]) * 32) for rank, name in enumerate(NAMES)}
DIGEST: Final = b"d" * 32
SESSION: Final = "hostile"
TICK: Final = 0.1
CONNECT_TIMEOUT: Final = 60.0
RECV_TIMEOUT: Final = 60.0
CLOSE_TIMEOUT: Final = 60.0
LONGEST: Final = 250.0
_OVER: Final = (State.CLOSED, State.FAILED)

Programme = dict[tuple[str, str, str], list[bytes]]
"""(source, destination, tag): the messages, in order."""


class WrongResult(AssertionError):
    """The one thing that no broker may bring about."""


class Lists:
    """The lists of the broker; everything that is pushed goes through the attacker."""

    def __init__(self, attacker: Attacker) -> None:
        self._attacker = attacker
        self._lists: dict[bytes, deque[bytes]] = {}

    def push(self, name: bytes, element: bytes, *, clear: bool = False) -> None:
        if clear:
            self.delete(name)
        for target, changed in self._attacker.on_push(name, element):
            self._append(target, changed)

    def delete(self, name: bytes) -> None:
        self._lists.pop(name, None)

    def pop(self, name: bytes) -> bytes | None:
        elements = self._lists.get(name)
        if not elements:
            return None
        element = elements.popleft()
        if not elements:
            del self._lists[name]
        return element

    def tick(self) -> None:
        for name, element in self._attacker.on_tick():
            self._append(name, element)
        if self._attacker.wants_flush:
            self._attacker.wants_flush = False
            self._lists.clear()

    def _append(self, name: bytes, element: bytes) -> None:
        if name.endswith(list_names.HELLO_TAG.encode()):
            self.delete(name)
        self._lists.setdefault(name, deque()).append(element)


def _no_lines(_: bytes) -> Any:
    """In place of lanes and rests: nothing here pops."""


class Peer(transport.Peer):
    """One side's view of another party, once the handshake is settled."""

    def __init__(
        self, name: str, prefixes: tuple[bytes, bytes], codec: Codec, delivery: Delivery
    ) -> None:
        super().__init__(name, prefixes, delivery, codec, _no_lines, _no_lines, 1 << 20)
        self.to_confirm: list[Push] = []


class Party:
    """Says hello, sends its part of the programme, receives the rest, closes.

    Attributes:
        outcome: None while it runs, then the error that ended it, or "done".
    """

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session
        rng = session.rng
        self.handshake = SealedHandshake(
            SESSION,
            name,
            [peer for peer in session.names if peer != name],
            DIGEST,
            rng.randbytes(8),
            ranks={peer: NAMES.index(peer) for peer in session.names},
            private_key=IDENTITIES[name].private_key,
            public_keys={peer: IDENTITIES[peer].public_key for peer in session.names},
            random_bytes=rng.randbytes,
        )
        self.peers: dict[str, Peer] = {}
        self.outcome: RedisLinkError | str | None = None
        self.not_opened = 0
        self._next_hello = 0.0
        self._settled_at: float | None = None
        self._closing_since: float | None = None
        self._waiting: dict[tuple[str, str], deque[bytes]] = {
            (src, tag): deque(messages)
            for (src, dst, tag), messages in session.programme.items()
            if dst == name
        }

    @property
    def now(self) -> float:
        return self._session.now

    def turn(self) -> None:
        """Everything that a party does in one tick."""
        if self.outcome is not None:
            return
        try:
            self._hellos()
            if self._settled_at is not None:
                self._converse()
        except RedisLinkError as error:
            self._end(error)

    # -- the handshake ---------------------------------------------------------------------

    def _hellos(self) -> None:
        lists, handshake = self._session.lists, self.handshake
        if self._settled_at is None:
            if self.now >= CONNECT_TIMEOUT:
                raise HandshakeTimeout(f"{self.name}: {handshake.missing}")
            if self.now >= self._next_hello:
                for peer in handshake.missing:
                    self._say_hello(peer, handshake.hello_for(peer))
                self._next_hello = self.now + 1.0
        for peer in [n for n in self._session.names if n != self.name]:
            element = lists.pop(list_names.hello_list(SESSION, self.name, peer))
            if element is None:
                continue
            try:
                frame, body = decode_untrusted(element)
                answer = handshake.receive_untrusted(peer, frame, bytes(body), self.now)
            except FrameError:
                continue
            if answer is not None:
                self._say_hello(peer, answer)
            if handshake.has_restarted(peer):
                self.peers[peer].delivery.restarted()
        if self._settled_at is None and not handshake.missing:
            handshake.settle()
            self._begin()

    def _say_hello(self, peer: str, message: tuple) -> None:
        name = list_names.hello_list(SESSION, peer, self.name)
        self._session.lists.push(name, encode(*message), clear=True)

    def _begin(self) -> None:
        self._settled_at = self.now
        timing = self._session.timing
        for peer in [n for n in self._session.names if n != self.name]:
            epoch = self.handshake.epoch(peer)
            self.peers[peer] = Peer(
                peer,
                (
                    list_names.inbox_prefix(SESSION, peer, self.name, epoch),
                    list_names.inbox_prefix(SESSION, self.name, peer, epoch),
                ),
                self.handshake.codec(peer),
                Delivery(peer, timing, self.now),
            )
        for (src, dst, tag), messages in self._session.programme.items():
            if src == self.name:
                for message in messages:
                    self.peers[dst].delivery.send(tag, message, self.now)
        for src, tag in self._waiting:
            self.peers[src].delivery.wait(tag, self.now)

    # -- the session -----------------------------------------------------------------------

    def _converse(self) -> None:
        for peer in self.peers.values():
            confirmed, peer.to_confirm = peer.to_confirm, []
            for push in confirmed:
                peer.delivery.confirm(push, self.now)
            self._take_control(peer)
            self._take_rests(peer)
        for (src, tag), messages in list(self._waiting.items()):
            self._take_data(self.peers[src], tag, messages)
        for peer in self.peers.values():
            due = peer.delivery.next_timeout()
            if due is not None and due <= self.now:
                peer.delivery.tick(self.now)
                if peer.delivery.overdue(self.now):
                    peer.delivery.read_anew(self.now)
                    peer.delivery.tick(self.now)
                    peer.follow()
            self._push(peer)
            if peer.delivery.failure is not None and self._closing_since is None:
                raise peer.delivery.failure
        self._close_if_done()

    def _take_control(self, peer: Peer) -> None:
        for _ in range(200):
            element = self._session.lists.pop(peer.control_in)
            if element is None:
                peer.delivery.listened(self.now)
                return
            opened = self._open(peer, peer.control_in, element)
            if opened is not None:
                try:
                    peer.delivery.receive_control(opened[0], self.now)
                except FrameError:
                    self._refuse(peer)
                peer.follow()

    def _take_rests(self, peer: Peer) -> None:
        for _ in range(200):
            element = self._session.lists.pop(peer.rests_in)
            if element is None:
                return
            self._receive(peer, None, peer.rests_in, element)

    def _take_data(self, peer: Peer, tag: str, messages: deque[bytes]) -> None:
        name = peer.in_prefix + list_names.encode_tag(tag)
        empty = False
        for _ in range(200):
            message = peer.delivery.take(tag)
            if message is not None:
                if not messages or message[0] != messages.popleft():
                    raise WrongResult(f"{self.name}: from {peer.name}, tag {tag}")
                if not messages:
                    peer.delivery.unwait(tag)
                    del self._waiting[peer.name, tag]
                    return
                continue
            element = self._session.lists.pop(name)
            if element is None:
                empty = True
                break
            self._receive(peer, tag, peer.rests_in if is_rest(element) else name, element)
        if empty:
            peer.delivery.check_can_receive(tag, self.now)
        if self._settled_at is not None and self.now - self._settled_at > RECV_TIMEOUT:
            raise RecvTimeout(f"{self.name}: tag {tag} from {peer.name}")

    def _receive(self, peer: Peer, tag: str | None, name: bytes, element: bytes) -> None:
        """Take in an element from a tag's list, or from that of rests if ``tag`` is None."""
        lend = None if tag is None else partial(peer.delivery.lend, tag)
        opened = self._open(peer, name, element, lend)
        if opened is not None:
            try:
                peer.delivery.receive_data(tag, *opened, self.now)
            except FrameError:
                self._refuse(peer)

    def _open(self, peer: Peer, name: bytes, element: bytes, lend: Lend | None = None):
        try:
            return peer.codec.decode_untrusted(name, element, lend)
        except StaleError:
            return None
        except FrameError:
            self._refuse(peer)
            return None

    def _refuse(self, peer: Peer) -> None:
        self.not_opened += 1
        if self.not_opened >= self._session.tamper_limit:
            raise BrokerTampered(f"{self.name}: {self.not_opened} from {peer.name}")

    def _push(self, peer: Peer) -> None:
        for push in peer.delivery.pushes():
            if isinstance(push, Leftover):
                self._session.lists.delete(peer.left_list(push))
                continue
            name = sealed_for = peer.control_out
            if isinstance(push, DataPush):
                name = peer.out_list(push.tag)
                sealed_for = peer.rests_out if push.is_rest else name
                if not push.again:
                    name = sealed_for
            element = peer.codec.encode(sealed_for, push.frame, push.body)
            self._session.lists.push(name, element, clear=push.clear)
            peer.to_confirm.append(push)

    def _close_if_done(self) -> None:
        deliveries = [peer.delivery for peer in self.peers.values()]
        if self._closing_since is None:
            if self._waiting or not all(delivery.all_acked for delivery in deliveries):
                return
            self._closing_since = self.now
            for peer in self.peers.values():
                peer.delivery.close(self.now)
                self._push(peer)
        over = all(delivery.state in _OVER for delivery in deliveries)
        if over or self.now - self._closing_since > CLOSE_TIMEOUT:
            self.outcome = "done"

    def _end(self, error: RedisLinkError) -> None:
        self.outcome = error
        for peer in self.peers.values():
            peer.delivery.abort(str(error))
            self._push(peer)


class Session:
    """One session of two or three parties; `run` plays it to its end."""

    def __init__(
        self,
        rng: random.Random,
        attacker: Attacker,
        programme: Programme,
        *,
        tamper_limit: int = 1 << 30,
        attack_ends: float = float("inf"),
    ) -> None:
        self.rng = rng
        self.names = tuple(n for n in NAMES if any(n in path[:2] for path in programme))
        self.programme = programme
        self.attacker = attacker
        self.tamper_limit = tamper_limit
        self.lists = Lists(attacker)
        self.timing = Timing(
            window_bytes=rng.choice([2000, 1 << 20]),
            chunk_bytes=200,
            part_bytes=rng.choice([0, 50]),
            peer_timeout=20.0,
        )
        self.now = 0.0
        self._attack_ends = attack_ends
        self.parties = {name: Party(name, self) for name in self.names}

    def run(self) -> dict[str, RedisLinkError | str]:
        """What became of each party.

        Raises:
            WrongResult: a message that was not sent so, or twice, or in another order.
            AssertionError: it did not end.
        """
        while any(party.outcome is None for party in self.parties.values()):
            self.now += TICK
            if self.now >= LONGEST:
                running = [p.name for p in self.parties.values() if p.outcome is None]
                raise AssertionError(f"a session that does not end: {running}")
            self.attacker.active = self.now < self._attack_ends
            for name in self.rng.sample(self.names, len(self.names)):
                self.parties[name].turn()
            self.lists.tick()
        return {name: party.outcome or "" for name, party in self.parties.items()}


def make_programme(rng: random.Random, size: int) -> Programme:
    """Some messages between every two parties: short, empty, of several chunks; some tags twice."""
    programme: Programme = {}
    names = NAMES[:size]
    for src in names:
        for dst in names:
            if src == dst:
                continue
            for tag in ("t0", "t1", "root:P2P-7:0->1")[: rng.randint(1, 3)]:
                count = rng.randint(1, 3)
                programme[src, dst, tag] = [
                    rng.randbytes(rng.choice([0, 8, 60, 199, 200, 700])) for _ in range(count)
                ]
    return programme


def older_session(size: int) -> list[tuple[bytes, bytes]]:
    """All elements of a session that went well, with the names and keys of those to come."""
    rng = random.Random(f"older {size}")
    attacker = Attacker(rng, (), 0.0)
    programme = make_programme(rng, size)
    outcome = Session(rng, attacker, programme).run()
    assert set(outcome.values()) == {"done"}, outcome
    return attacker.seen


def is_named(error: RedisLinkError | str) -> bool:
    """An error that says who and what; a session may end with one under attack."""
    return isinstance(error, PeerError | BrokerTampered)
