"""Lets the parties of a session find each other: runs the handshake over the hello lists.

A party that has met all others says so, and waits until each of them has said the same
(`protocol.roster`). So a party that starts again in this waiting room ends no run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from redislink.broker import AnyOutbox, Broker, Inbox
from redislink.broker.inbox import Wait
from redislink.broker.outage import Outage, Way
from redislink.broker.wire import Buffer
from redislink.cluster import ClusterSpec
from redislink.errors import BrokerError, ClusterMismatch, FrameError, HandshakeTimeout
from redislink.logs import PartyLogger, is_power_of_two
from redislink.protocol import list_names
from redislink.protocol.frame import (
    PROTOCOL_VERSION,
    Hello,
    OtherVersionError,
    decode_untrusted,
    encode_header,
)
from redislink.protocol.handshake import Handshake, Message, MismatchGrace
from redislink.protocol.roster import Roster

Progress = Callable[[list[str], float], None]

_HELLO_INTERVAL: Final = 1.0
HELLO_TTL: Final = 60
_ELSEWHERE_INTERVAL: Final = 0.1
"""Seconds between two looks at the hellos that came from elsewhere."""
_LINGER: Final = 2.0
"""Seconds for which hellos continue after a mismatch, so that the peer surely sees it too."""


class Elsewhere(Protocol):
    """The brokers on which the session is not, while the parties meet."""

    def push_hello(self, name: bytes, element: bytes) -> None:
        """Push a hello onto this list on each of them, soon."""
        ...

    def popped_hellos(self) -> list[tuple[str, Buffer]]:
        """Return (peer, element) of each hello that came on one of them since the last call."""
        ...


class Rendezvous:
    """Sends and receives hellos: `meet` at the start, `receive` for those that come later."""

    def __init__(
        self, spec: ClusterSpec, party: str, handshake: Handshake, outbox: AnyOutbox, inbox: Inbox
    ) -> None:
        """Not for users.

        Args:
            spec: the cluster file's content.
            party: this party.
            handshake: this run's handshake; nobody else changes it.
            outbox, inbox: this party's outbox and inbox.
        """
        self._lock = threading.Lock()
        """Guards the handshake and the times of hellos: the control thread receives hellos, and
        the thread that mends the outbox sends some again. Nothing is pushed while it is held."""
        self._spec = spec
        self._party = party
        self._log = PartyLogger(spec.session, party)
        self._outbox = outbox
        self._inbox = inbox
        self.peers = [name for name in spec.party_names if name != party]
        self.handshake = handshake
        self._roster = Roster(spec.session, self.peers, handshake)
        self._said_roster = b""
        self.lists = {list_names.hello_list(spec.session, party, peer): peer for peer in self.peers}
        """The hello lists in this party's inbox, each with the peer that pushes onto it."""
        self._said_hello_at = dict.fromkeys(self.peers, float("-inf"))
        self._unsaid: set[str] = set()
        self._token: object = None
        """Marks our hellos in `Outbox.collect` while the parties meet."""
        self._connected = False
        self._taken_at = float("-inf")
        self._refusal: BrokerError | None = None
        """Why the broker has accepted no hello since ``_taken_at``; None if nothing is wrong."""
        self._ignored = dict.fromkeys(self.peers, 0)
        self.elsewhere: Elsewhere | None = None
        """Set where there are several brokers: hellos go to all of them, and come from all."""
        self._other_versions: dict[str, tuple[int, float]] = {}
        """Peers whose hellos are of another protocol version: which, and since when."""

    def meet(
        self, broker: Broker, timeout: float, outage: Outage, on_progress: Progress | None
    ) -> None:
        """Exchange hellos until all have met all; on return the handshake is settled.

        Args:
            broker: where the parties meet.
            timeout: seconds.
            outage: keeps track of how long the broker is away.
            on_progress: called with the parties that we wait for and the seconds so far, about
                once a second.

        Raises:
            HandshakeTimeout: some parties are still missing after ``timeout`` seconds; the message
                names them.
            ClusterMismatch: a peer has another cluster file.
            BrokerError: the broker is away or refuses us; or it has taken no hello from us for
                ``outage.limit`` seconds or half of ``timeout``, whichever is shorter.
        """
        wait = self._inbox.acquire()
        self._token, self._taken_at = object(), time.monotonic()
        try:
            self._meet(wait, broker, timeout, outage, on_progress)
        finally:
            self._inbox.release(wait)
        self.handshake.settle()
        self._token = None
        self._outbox.flush()
        self._outbox.collect()  # the endpoint does not know these tokens

    def _meet(
        self,
        wait: Wait,
        broker: Broker,
        timeout: float,
        outage: Outage,
        on_progress: Progress | None,
    ) -> None:
        started = next_hello = time.monotonic()
        mismatch: ClusterMismatch | None = None
        give_up = started + timeout
        while absent := self.absent:
            now = time.monotonic()
            self._collect(now)
            self._check_taken(now, min(outage.limit, timeout / 2))
            if now >= give_up and mismatch is not None:
                self._outbox.flush()
                raise mismatch
            if now >= give_up:
                raise self._timed_out(absent, timeout, broker, outage)
            way = Way.PUSH
            try:
                if now >= next_hello:
                    away = self._reconnect(outage)
                    for peer in absent:
                        self._say_hello(peer)
                    if away is not None:
                        raise away
                    if on_progress is not None and now > started:
                        on_progress(absent, now - started)
                    next_hello = now + _HELLO_INTERVAL
                self._say_roster()
                slice_ = max(0.001, min(next_hello, give_up) - now)
                way = Way.POP
                if self.elsewhere is not None:
                    slice_ = min(slice_, _ELSEWHERE_INTERVAL)
                popped = wait.pop(list(self.lists), broker.blpop_slice(slice_))
                outage.ended(way)
            except BrokerError as error:
                threading.Event().wait(outage.failed(error, way))
                next_hello, popped = 0.0, None
            came = [] if popped is None else [(self.lists[popped[0]], popped[1])]
            if self.elsewhere is not None:
                came += self.elsewhere.popped_hellos()
            for peer, element in came:
                try:
                    self.receive(peer, element)
                except ClusterMismatch as error:
                    if mismatch is None:
                        mismatch = error
                        give_up = min(give_up, time.monotonic() + _LINGER)
                        next_hello = 0.0
        self._say_roster()  # the last to say so may have been a peer

    @property
    def absent(self) -> list[str]:
        """Parties that have not joined, or else those that have not confirmed that all have."""
        with self._lock:
            return self._roster.absent

    def _say_roster(self) -> None:
        """Tell all peers at once when we have met them all, or other runs of them."""
        with self._lock:
            roster = self._roster.mine
            is_news, self._said_roster = roster not in (b"", self._said_roster), roster
        if is_news:
            for peer in self.peers:
                self._say_hello(peer)

    def _timed_out(
        self, absent: list[str], timeout: float, broker: Broker, outage: Outage
    ) -> HandshakeTimeout:
        who, session = ", ".join(absent), self._spec.session
        what = f"to join session {session!r}: start them with the same cluster file and broker"
        if not self.handshake.missing:
            what = (
                f"to confirm that all parties have joined session {session!r}: see whether they "
                "still run, and whom they wait for"
            )
        troubles = (outage.describe(), *map(self.handshake.trouble, absent))
        return HandshakeTimeout(
            f"{self._party}: waited {timeout:g} s at broker {broker.labels} for {who} {what}, or "
            "raise REDISLINK_CONNECT_TIMEOUT" + "".join(f"; {text}" for text in troubles if text)
        )

    def _reconnect(self, outage: Outage) -> BrokerError | None:
        """Connect the outbox if it is not connected.

        Returns:
            Why that is not possible now, if hellos can go elsewhere.

        Raises:
            BrokerError: it is not possible now.
        """
        if self._outbox.error is None:
            return None
        try:
            self._outbox.reconnect()
        except BrokerError as error:
            if self.elsewhere is None:
                raise
            return error
        outage.ended(Way.PUSH)
        self._connected = True
        self.reconnected()
        return None

    def _collect(self, now: float) -> None:
        """Note how the broker answered our hellos."""
        for token, taken in self._outbox.collect():
            if token is self._token and taken:
                self._taken_at, self._refusal = now, None
            elif token is self._token:
                self._refusal = self._outbox.refusal
        if self._outbox.error is not None and self._connected:
            self._refusal = self._outbox.error

    def _check_taken(self, now: float, longest: float) -> None:
        """Raise the broker's refusal of our hellos if it is final, or has lasted too long."""
        refusal, silent_for = self._refusal, now - self._taken_at
        if refusal is not None and (not refusal.retryable or silent_for > longest):
            raise refusal.restated(
                f"{self._party}: the broker has taken no hello from this party for "
                f"{silent_for:.0f} s, so the other parties cannot see it: {refusal}"
            )

    def receive(self, peer: str, element: Buffer) -> None:
        """Process an element from ``peer``'s hello list, and answer it.

        Raises:
            ClusterMismatch: the peer runs with another cluster file, another security mode or
                another version.
        """
        try:
            frame, body = decode_untrusted(bytes(element))
            with self._lock:
                now = time.monotonic()
                answer = self.handshake.receive_untrusted(peer, frame, bytes(body), now)
                if isinstance(frame, Hello):
                    self._roster.heard(peer, frame)
                    self._other_versions.pop(peer, None)
                # A peer that keeps saying hello has not had our answer: the broker lost it.
                unanswered = now - self._said_hello_at[peer] > 0.9 * _HELLO_INTERVAL
                if answer is None and unanswered:
                    answer = self.handshake.hello_for(peer)
        except FrameError as error:
            # Nothing to worry about: it may come from a dead run. A lasting fault becomes an error.
            self._ignored[peer] += 1
            if is_power_of_two(self._ignored[peer]):  # there may be any number
                self._log.info(
                    "%s: ignored a hello from %s: %s (%d so far)",
                    self._party,
                    peer,
                    error,
                    self._ignored[peer],
                    extra={"peer": peer},
                )
            if isinstance(error, OtherVersionError):
                self._check_version(peer, error.version)
            return
        if answer is not None:
            self._push(peer, answer)

    def _check_version(self, peer: str, version: int) -> None:
        """Raise if a peer's hellos have been of this other version for long, as for any mismatch.

        The peer ignores ours: an older one waits until its ``connect_timeout``.
        """
        now = time.monotonic()
        seen, since = self._other_versions.get(peer, (version, now))
        if seen != version:
            since = now
        self._other_versions[peer] = version, since
        if now - since >= MismatchGrace.SECONDS:
            raise ClusterMismatch(
                f"{self._party}: party {peer!r} runs another version of redislink (protocol "
                f"{version}, here {PROTOCOL_VERSION}): install the same version at every party"
            )

    def reconnected(self) -> None:
        """Send the hellos that could not be sent while the outbox was broken."""
        with self._lock:
            unsaid, self._unsaid = self._unsaid, set()
        for peer in unsaid:
            self._say_hello(peer)

    def _say_hello(self, peer: str) -> None:
        with self._lock:
            message = self.handshake.hello_for(peer)
        self._push(peer, message)

    def _push(self, peer: str, message: Message) -> None:
        """Push a hello; it replaces any older one on the list."""
        with self._lock:
            self._said_hello_at[peer] = time.monotonic()
            roster = self._roster.mine
        name = list_names.hello_list(self._spec.session, peer, self._party)
        hello, body = message
        header = encode_header(replace(hello, roster=roster))
        self._outbox.push(name, (header, body), self._token, clear=True, ttl=HELLO_TTL)
        if self.elsewhere is not None:
            self.elsewhere.push_hello(name, header + body)
        if self._outbox.error is not None:
            with self._lock:
                self._unsaid.add(peer)
