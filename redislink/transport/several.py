"""`SeveralClaims`: claims a party on each of several brokers, and moves the session between them.

There is a thread for each broker (`BrokerWatch`), with one connection. It renews the claim, and
between two renewals listens for what peers say there. So it knows whether its broker is alive, and
peers reach this party on every broker that both can use. `protocol.moves` decides; a decision is
carried out in `SeveralClaims._carry_out`: `SeveralBrokers.move` breaks all connections, and
everybody who reconnects does so on the new broker.

With a single broker, nothing in this module runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from redislink.broker import Outbox
from redislink.broker.connection import BrokerConnection
from redislink.broker.inbox import popped_untrusted
from redislink.broker.outage import Outage
from redislink.broker.several import SeveralBrokers
from redislink.broker.wire import CONTROL, Buffer, pack_blpop
from redislink.cluster import ClusterSpec
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerUnreachable,
    ClusterMismatch,
    FrameError,
    PartyTaken,
)
from redislink.forking import dies_in_child
from redislink.logs import PartyLogger
from redislink.protocol import list_names
from redislink.protocol.frame import Abort, Frame, Move
from redislink.protocol.moves import LISTEN_SECONDS, Moves
from redislink.protocol.states import State
from redislink.transport.claim import PartyClaim
from redislink.transport.control import Control
from redislink.transport.core import Core
from redislink.transport.peer import Peer
from redislink.transport.rendezvous import HELLO_TTL, Rendezvous

_SLICE: Final = 0.5
"""Seconds that a watch listens at a time, which is how long a move may take to be said."""
_SHORT_SLICE: Final = 0.05
"""Replaces it while the parties meet, or the present broker is away."""
_MARGIN: Final = 5.0
_MOVE_TTL: Final = 120
_MOST_LEFT: Final = 10_000
_BATCH: Final = 200
_UNHEARD_SECONDS: Final = 15.0
_GONE: Final = (State.CLOSED, State.FAILED)


class BrokerWatch(PartyClaim):
    """The claim to a party on one of several brokers, and what this party hears there."""

    def __init__(
        self,
        claims: SeveralClaims,
        index: int,
        key: bytes,
        instance: bytes,
        who: str,
        log: PartyLogger,
        before: bytes | None,
    ) -> None:
        """Not for users.

        Args:
            claims: all of this party's watches.
            index: the broker's index.
            key, instance, who, log, before: as for `PartyClaim`.
        """
        super().__init__(claims.brokers.members[index], key, instance, who, log, before)
        self._claims = claims
        self._index = index
        self._longest_wait = claims.brokers.members[index].timeout
        self.outcome: BrokerError | PartyTaken | bool | None = None
        """True once the party is claimed here; the error if the first tries have failed."""

    def begin(self, outage: Outage, *, patient: bool) -> None:
        """Start the thread."""

        def run() -> None:
            try:
                self._claim(outage, patient=patient)
            except (BrokerError, PartyTaken) as error:
                self.outcome = error
                self._claims.decided(self._index, error)
                if isinstance(error, PartyTaken):
                    return
            else:
                self.outcome = True
                self._claims.comes_back(self._index)  # perhaps the session began long ago
                self._claims.decided(self._index, None)
            self._renew()

        self._start(run)

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._stop.set()

    def _renew_once(self) -> BrokerBusy | None:
        if self._connection is None or not self._connection.usable:
            self._claims.comes_back(self._index)
        refusal = super()._renew_once()
        self.outcome = True
        self._claims.answered(self._index)
        return refusal

    def _not_reached(self, error: BrokerError) -> None:
        super()._not_reached(error)
        self._claims.lost(self._index, error)

    def _pause(self) -> bool:
        until = time.monotonic() + LISTEN_SECONDS
        try:
            while time.monotonic() < until and not self._stop.is_set():
                connection = self._connection
                if connection is None or not connection.usable:
                    return super()._pause()
                self._listen(connection)
        except BrokerError as error:
            self._not_reached(error)
        return self._stop.is_set()

    def _listen(self, connection: BrokerConnection) -> None:
        claims, index = self._claims, self._index
        self._push_last_words(connection, self._longest_wait)
        for commands in claims.to_do(index):
            _execute(connection, commands, self._longest_wait)
        names, seconds = claims.lists(index), claims.slice
        if not names:
            self._stop.wait(seconds)
            return
        connection.write((pack_blpop(names, seconds),))
        reply = connection.read(seconds + min(_MARGIN, self._longest_wait), CONTROL)
        claims.answered(index)
        if reply is not None:
            name, element = popped_untrusted(reply, names, self._broker.label)
            claims.take(index, name, element)

    def _take_leave(self, connection: BrokerConnection, timeout: float) -> None:
        _execute(connection, [(b"DEL", name) for name in self._claims.mine(self._index)], timeout)


@dataclass(frozen=True, slots=True)
class _Session:
    """What the watches need once the parties have met.

    Attributes:
        core, control: the endpoint's.
        moves_in: the lists on which the peers say where the session is, in this party's inbox.
        moves_out: such lists in the peers' inboxes, by peer.
    """

    core: Core
    control: Control
    moves_in: dict[bytes, Peer]
    moves_out: dict[str, bytes]


class SeveralClaims:
    """One run's claim to be a party on each of several brokers. It is used as a `PartyClaim` is.

    Attributes:
        brokers: the brokers.
    """

    def __init__(
        self,
        brokers: SeveralBrokers,
        spec: ClusterSpec,
        party: str,
        instance: bytes,
        log: PartyLogger,
        move_after: float,
        before: bytes | None = None,
    ) -> None:
        """Not for users.

        Args:
            brokers: where the claims are made.
            spec: the cluster file's content.
            party: this party.
            instance: this run's instance, 8 bytes.
            log: the party's logger.
            move_after: seconds that the present broker may be away.
            before: as for `PartyClaim`.
        """
        self.brokers = brokers
        self._party = party
        self._spec = spec
        self._log = log
        self._move_after = move_after
        self._lock = threading.Lock()
        """Guards ``_moves`` and what is to be said. Nothing is sent while it is held."""
        self._carrying_out = threading.Lock()
        """One move at a time."""
        peers = [name for name in spec.party_names if name != party]
        self._moves = Moves(peers, len(brokers.members), move_after)
        self._decided = threading.Condition(self._lock)
        self._begun = False
        self._outage: Outage | None = None
        self._outbox: Outbox | None = None
        self._rendezvous: Rendezvous | None = None
        self._session: _Session | None = None
        self._hellos_in: deque[tuple[str, Buffer]] = deque()
        self._hellos_out: list[dict[bytes, bytes]] = [{} for _ in brokers.members]
        self._left: list[set[bytes]] = [set() for _ in brokers.members]
        """Lists of this run on each broker that the session has left."""
        self._warn_at = float("inf")
        self._has_said = False
        """Whether there are last words on the peers' move lists."""
        key = list_names.claim_key(spec.session, party)
        who = f"party {party!r} of session {spec.session!r}"
        self._watches = [
            BrokerWatch(self, index, key, instance, who, log, before)
            for index in range(len(brokers.members))
        ]
        self.instance = instance.hex()
        self.since = time.monotonic()
        dies_in_child(self)

    @property
    def broker_number(self) -> int:
        """The present broker's place in the list, from 1."""
        return self.brokers.index + 1

    # -- as a claim ------------------------------------------------------------------------------

    @property
    def round_trip(self) -> float:
        """Seconds to the slowest of the brokers that have answered, and back."""
        known = [watch.round_trip for watch in self._watches if watch.round_trip < float("inf")]
        return max(known, default=float("inf"))

    @property
    def uplink(self) -> float:
        """Bytes a second to the broker with the slowest line; see `PartyClaim.uplink`."""
        return min(watch.uplink for watch in self._watches)

    @property
    def last_round_trip(self) -> float:
        """The last round trip to the present broker."""
        return self._watches[self._moves.current].last_round_trip

    def acquire(self, outage: Outage, *, patient: bool = False) -> None:
        """Claim the party on every broker that this party reaches; begin on the first of these.

        A broker that has not answered ``move_after`` seconds after another one did is not waited
        for.

        Args:
            outage: keeps track of how long the present broker is away.
            patient: as for `PartyClaim.acquire`.

        Raises:
            PartyTaken: another process keeps renewing its claim on one of them.
            BrokerError: none of them can be used; the message names each and says why.
        """
        self._outage = outage
        for watch in self._watches:
            watch.begin(Outage(self._party, outage.limit), patient=patient)
        give_up: float | None = None
        try:
            with self._decided:
                while (first := self._first(give_up)) is None:
                    reached = any(watch.outcome is True for watch in self._watches)
                    if give_up is None and reached:
                        give_up = time.monotonic() + self._move_after
                    self._decided.wait(_SHORT_SLICE)
                self._moves.begin(first, time.monotonic())
        except BaseException:
            self.release()
            raise
        self.brokers.move(first)
        self._begun = True

    def _first(self, give_up: float | None) -> int | None:
        """Return the index of the broker to begin on; None while that is not decided."""
        outcomes = [watch.outcome for watch in self._watches]
        for outcome in outcomes:
            if isinstance(outcome, PartyTaken):
                raise outcome
        late = give_up is not None and time.monotonic() >= give_up
        for index, outcome in enumerate(outcomes):
            if outcome is True:
                return index
            if outcome is None and not late:
                return None
        errors = [outcome for outcome in outcomes if isinstance(outcome, BrokerError)]
        if len(errors) < len(outcomes):
            return None
        raise self.brokers.why_away(0, errors[0])

    def distrust(self) -> None:
        """Use another connection to the present broker; see `PartyClaim.distrust`."""
        self._watches[self._moves.current].distrust()

    def publish(self, key: bytes, snapshot: Callable[[], bytes]) -> None:
        """Write a status next to each claim; see `PartyClaim.publish`."""
        for watch in self._watches:
            watch.publish(key, snapshot)

    def say(self, last_words: Sequence[tuple[Peer, Frame]]) -> None:
        """Tell peers something on every broker that can be reached; see `PartyClaim.say`.

        On the present one they listen to their control lists, on the others to their move lists.
        """
        session = self._session
        if session is None:
            return
        self._has_said = True
        for index, watch in enumerate(self._watches):
            if index == self._moves.current:
                watch.say(last_words)
                continue
            lists = [(session.moves_out[peer.name], peer, frame) for peer, frame in last_words]
            watch.push_soon(
                [(name, peer.codec.encode_parts(name, frame, b"")) for name, peer, frame in lists]
            )

    def abandon(self) -> None:
        """Leave every claim to lapse; see `PartyClaim.abandon`."""
        for watch in self._watches:
            watch.abandon()

    def release(self, timeout: float | None = None) -> None:
        """Give up every claim that can be reached. Never raises; see `PartyClaim.release`."""
        now = time.monotonic()
        for watch in self._watches:
            watch.stop()
        # Who waits for a broker that is away is not waited for: its claim lapses there.
        ends = [
            threading.Thread(
                target=watch.release, args=(timeout,), name="redislink-claim", daemon=True
            )
            for index, watch in enumerate(self._watches)
            if self._moves.reaches(index, now)
        ]
        for end in ends:
            end.start()
        for end in ends:
            end.join()

    def die_in_child(self) -> None:
        """In a forked child: the watches die by themselves."""
        self._lock = threading.Lock()
        self._carrying_out = threading.Lock()
        self._decided = threading.Condition(self._lock)
        self._session = self._rendezvous = None

    # -- the parties meet, and the session runs --------------------------------------------------

    def meet(self, rendezvous: Rendezvous, outbox: Outbox) -> None:
        """From now on, carry hellos on the brokers on which the session is not."""
        self._outbox, self._rendezvous = outbox, rendezvous
        rendezvous.elsewhere = self

    def serve(self, core: Core, control: Control) -> None:
        """From now on, tell the peers where the session is, and listen to them."""
        session, me = core.cluster.session, core.party
        epochs = {name: core.rendezvous.handshake.epoch(name) for name in core.peers}
        self._warn_at = time.monotonic() + _UNHEARD_SECONDS
        self._session = _Session(
            core,
            control,
            {
                list_names.move_list(session, me, name, epochs[name]): peer
                for name, peer in core.peers.items()
            },
            {
                name: list_names.move_list(session, name, me, epoch)
                for name, epoch in epochs.items()
            },
        )

    def push_hello(self, name: bytes, element: bytes) -> None:
        """See `Elsewhere`."""
        with self._lock:
            for index, hellos in enumerate(self._hellos_out):
                if index != self._moves.current:
                    hellos[name] = element

    def popped_hellos(self) -> list[tuple[str, Buffer]]:
        """See `Elsewhere`."""
        popped = []
        while self._hellos_in:
            popped.append(self._hellos_in.popleft())
        return popped

    # -- what the watches ask and say ------------------------------------------------------------

    @property
    def slice(self) -> float:
        """For how many seconds a watch may listen now before it has to look around."""
        away = self._outage is not None and self._outage.lasts
        return _SHORT_SLICE if away or self._session is None else _SLICE

    def decided(self, index: int, error: BrokerError | PartyTaken | None) -> None:
        """Note the outcome of a watch's first tries."""
        if isinstance(error, BrokerError):
            self._log.warning(
                "%s: broker %d of %d cannot be used at the start: %s",
                self._party,
                index + 1,
                len(self._watches),
                error,
            )
            self.lost(index, error)
        with self._decided:
            self._decided.notify_all()
        if error is None:
            self.answered(index)

    def answered(self, index: int) -> None:
        """Note that a broker is alive, and move there if the present one is not."""
        if self.brokers.note(index, None):
            self._log.info("%s: broker %s can be used", self._party, self._label(index))
        now, away = time.monotonic(), 0.0 if self._outage is None else self._outage.elapsed
        with self._lock:
            self._moves.answered(index, now)
            round_trip = _finite(self.last_round_trip)
            moves = self._begun and self._moves.consider(now, away, round_trip)
        if moves:
            self._carry_out("this party could not use the last one")
        if now >= self._warn_at:
            self._warn_of_unheard()

    def lost(self, index: int, error: BrokerError) -> None:
        """Note that a broker cannot be reached."""
        if self.brokers.note(index, error):
            self._log.info("%s: broker %s cannot be used", self._party, self._label(index))
        with self._lock:
            self._moves.lost(index)

    def comes_back(self, index: int) -> None:
        """Before a watch listens again: forget the hellos that a dead run may have left there."""
        if self._session is not None and self._rendezvous is not None:
            with self._lock:
                self._left[index].update(self._rendezvous.lists)

    def _label(self, index: int) -> str:
        return f"{self.brokers.members[index].label} (number {index + 1} of {len(self._watches)})"

    def lists(self, index: int) -> list[bytes]:
        """Return the lists of this party's inbox that a watch listens to."""
        names = [] if self._session is None else list(self._session.moves_in)
        if self._rendezvous is not None and index != self._moves.current:
            names += self._rendezvous.lists  # on the present broker, others listen to these
        return names

    def to_do(self, index: int) -> list[list[Sequence[bytes | int | str]]]:
        """Return the commands that a watch has to send now, in batches."""
        session, now = self._session, time.monotonic()
        with self._lock:
            hellos, self._hellos_out[index] = self._hellos_out[index], {}
            left: set[bytes] = set()
            if index != self._moves.current:
                left, self._left[index] = self._left[index], set()
            due = [] if session is None else self._moves.due(index, now)
        pushes = [(name, element, HELLO_TTL) for name, element in hellos.items()]
        for party, move in due:
            assert session is not None  # noqa: S101 - else nothing is due
            peer, move_list = session.core.peers[party], session.moves_out[party]
            if peer.delivery.state not in _GONE:
                element = peer.codec.encode(move_list, move, b"")
                pushes.append((move_list, element, _MOVE_TTL))
        commands: list[Sequence[bytes | int | str]] = [(b"DEL", name) for name in left]
        for name, element, ttl in pushes:
            commands += [(b"DEL", name), (b"RPUSH", name, element), (b"PEXPIRE", name, ttl * 1000)]
        return [commands[at : at + _BATCH] for at in range(0, len(commands), _BATCH)]

    def take(self, index: int, name: bytes, element: Buffer) -> None:
        """Process an element that a watch has popped."""
        session, rendezvous = self._session, self._rendezvous
        if rendezvous is not None and name in rendezvous.lists:
            peer_name = rendezvous.lists[name]
            if session is None:
                self._hellos_in.append((peer_name, bytes(element)))
            else:
                session.control.take_hello(session.core.peers[peer_name], element)
                session.core.check_peers()
        elif session is not None and name in session.moves_in:
            self._take_move(session, session.moves_in[name], index, name, element)

    def mine(self, index: int) -> list[bytes]:
        """Return the lists on a broker to remove when this party leaves."""
        session, rendezvous = self._session, self._rendezvous
        if session is None or rendezvous is None:
            return []
        peers = session.core.peers.values()
        names = {*session.moves_in, *self._left[index]}
        if not self._has_said:
            names.update(session.moves_out.values())
        if index != self._moves.current:
            names.update(rendezvous.lists, (peer.control_in for peer in peers))
            # A peer that never reached this broker has not taken our hellos either.
            names.update(
                list_names.hello_list(self._spec.session, peer.name, self._party) for peer in peers
            )
        return list(names)

    # -- moving ----------------------------------------------------------------------------------

    def _take_move(
        self, session: _Session, peer: Peer, index: int, name: bytes, element: Buffer
    ) -> None:
        core = session.core
        try:
            frame, _ = peer.codec.decode_untrusted(name, element)
        except FrameError as error:
            core.blame(peer, error)
            return
        if isinstance(frame, Abort):
            with core.talk(peer) as delivery:
                delivery.receive_control(frame, time.monotonic())
            core.check_peers()
            return
        if not isinstance(frame, Move):
            core.blame_peer(peer, FrameError(f"a {frame.kind.name} frame on a list for moves"))
            return
        if misfit := self._moves.misfit(peer.name, frame, index):
            core.fail(
                ClusterMismatch(
                    f"{core.party}: {misfit}: give every party the same brokers, in the same order "
                    "(REDISLINK_BROKER_URL, or broker in the cluster file)"
                )
            )
            return
        with self._lock:
            moves = self._moves.heard(peer.name, frame, time.monotonic())
        if moves:
            self._carry_out(f"{peer.name} says so")

    def _carry_out(self, why: str) -> None:
        """Let everybody here go to the broker that ``_moves`` names."""
        with self._carrying_out:
            last, index = self.brokers.index, self._moves.current
            if index == last or self._outbox is None:
                return
            to = self._label(index)
            self._log.warning("%s: the session moves to broker %s: %s", self._party, to, why)
            self.brokers.move(index)
            self._outbox.give_up(BrokerUnreachable(f"the session has moved to broker {to}"))
            if self._session is not None:
                left = _lists_under_way(self._session.core)
                with self._lock:
                    self._left[last] |= left
                self._session.core.mend_outbox()

    def _warn_of_unheard(self) -> None:
        self._warn_at = float("inf")
        session = self._session
        for name in self._moves.unheard:
            if session is not None and session.core.peers[name].delivery.state not in _GONE:
                self._log.warning(
                    "%s: %s has said on none of the brokers that it knows all of them (%s): give "
                    "it the same list, or it cannot move with the others",
                    self._party,
                    name,
                    self.brokers.labels,
                    extra={"peer": name},
                )


AnyClaim = PartyClaim | SeveralClaims


def _lists_under_way(core: Core) -> set[bytes]:
    """Return the names of the lists of this run that may have elements."""
    with core.lock:
        names = {
            peer.out_list(tag)
            for peer in core.peers.values()
            for tag in peer.delivery.unacked_tags()
        }
    for peer in core.peers.values():
        names |= {peer.control_out, peer.control_in}
    return set(list(names)[:_MOST_LEFT])


def _execute(
    connection: BrokerConnection, commands: Sequence[Sequence[bytes | int | str]], timeout: float
) -> None:
    with connection.pipeline(commands):
        for _ in commands:
            connection.read(timeout)


def _finite(seconds: float) -> float:
    return seconds if seconds < float("inf") else 0.0
