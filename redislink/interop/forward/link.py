"""`Link`: the session with one other party, which carries all streams between the two.

Rules:
- Each pair of parties has a session of its own. So a party that is away, or restarts, breaks no
  stream of others; and it runs beside the session of the cluster file.
- A thread joins the session and receives; all else happens in the loop's thread. Streams live as
  long as the endpoint that carries them: when it fails, all are broken off, and the next begins
  with none.
- Packets have numbered tags, because the transport then asks for the next ones in advance.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from redislink.cluster import ClusterSpec
from redislink.errors import (
    BrokerPermissionError,
    ConfigError,
    EndpointClosed,
    FrameError,
    HandshakeTimeout,
    PartyTaken,
    PeerAborted,
    PeerError,
    PeerProtocolError,
    RecvTimeout,
    RedisLinkError,
)
from redislink.identity.keypair import Identity
from redislink.interop.forward.pairs import pair_cluster
from redislink.interop.forward.pipes import Door, Pipe, connect_to
from redislink.interop.forward.places import Forward, Targets
from redislink.interop.forward.streams import (
    Broken,
    Came,
    Ended,
    Event,
    HasRoom,
    Opened,
    Reason,
    Streams,
)
from redislink.interop.parties import explained
from redislink.joining import connect
from redislink.logs import PartyLogger, is_power_of_two
from redislink.settings import LONGEST_SECONDS, RedisLinkSettings
from redislink.transport.endpoint import Endpoint

LOGGER: Final = "redislink.forward"
"""What a forwarder does and why; each record is one line."""
_TAG: Final = "forward:"
_MOST_UNHANDLED: Final = 8
"""Packets that the thread may have received and the loop not yet handled."""
_MOST_HELD: Final = 32 << 20
"""Bytes of messages of one peer that the endpoint may hold. A peer that keeps the rules has far
less on its way."""
_LATER: Final = 0.004
"""Seconds that bytes wait for more of them, while many are on their way."""
_FAREWELL: Final = "its forwarder has ended"
_SAY_AFTER: Final = 3.0
"""Seconds after which a party that is waited for is named."""
_WHY: Final = {
    Reason.NOT_ALLOWED: "{peer} has no --allow {name}=… for {me}: ask {peer} for one",
    Reason.UNREACHABLE: "what {name} leads to at {peer} accepts no connection: see that it runs",
}


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a session is tried again.

    Attributes:
        most: failures in a row that are followed by another attempt; None: any number.
        delay: seconds between two attempts.
    """

    most: int | None = None
    delay: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one party forwards.

    Attributes:
        cluster, party, settings, identity: as for `redislink.connect`.
        forwards: where programs connect here, and what they reach.
        targets: what the others may reach here.
        retries: how often a session is tried again.
    """

    cluster: ClusterSpec
    party: str
    settings: RedisLinkSettings
    identity: Identity | None
    forwards: Sequence[Forward]
    targets: Targets
    retries: Retries


class Owner(Protocol):
    """Whom a link tells how it fares; called in the loop's thread."""

    def fail(self, error: BaseException) -> None:
        """No link can go on, because of this error."""
        ...


class Link:
    """All streams with one other party."""

    def __init__(self, plan: Plan, peer: str, owner: Owner) -> None:
        """Reserve the places where programs connect.

        Args:
            plan: what this party forwards.
            peer: the other party.
            owner: is told when the link cannot go on.

        Raises:
            ConfigError: a place is taken, or cannot be used.
        """
        settings, self._party, self._peer = plan.settings, plan.party, peer
        self._whole = plan.cluster
        self._cluster = pair_cluster(plan.cluster, plan.party, peer)
        self._settings = settings.model_copy(
            update={"peer_memory_bytes": min(settings.peer_memory_bytes, _MOST_HELD)}
        )
        self._identity = plan.identity
        self._targets = plan.targets
        self._retries = plan.retries
        self._owner = owner
        self._log = PartyLogger(plan.cluster.session, plan.party, LOGGER)
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"redislink-forward-{peer}", daemon=True
        )
        self._handed = threading.Semaphore(_MOST_UNHANDLED)
        self._joined: Endpoint | None = None
        """The newest endpoint: set by the thread, ended by `stop`."""
        self._wrong: PeerProtocolError | None = None
        self._doors: list[Door] = []
        self._forwards = [forward for forward in plan.forwards if forward.peer == peer]
        self._is_first = min(plan.party, peer) == plan.party
        self._endpoint: Endpoint | None = None
        self._streams = Streams(is_first=self._is_first)
        self._names: dict[int, str] = {}
        self._pipes: dict[int, Pipe] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_up = False
        self._sent = 0
        self._will_pump = False
        self._later: asyncio.TimerHandle | None = None
        self._refused: dict[tuple[str, Reason], int] = {}
        self._said_down = ""
        self._times_said = 0
        for forward in self._forwards:
            try:
                self._doors.append(Door(forward.listen, partial(self._enter, forward)))
            except BaseException:
                self.cut()
                raise

    def start(self) -> None:
        """Begin to join."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the session, from any thread but the loop's; the peer is told. Takes seconds."""
        self._stopping.set()
        if self._joined is not None:
            self._joined.abort(_FAREWELL, retryable=True)  # nothing is left to be delivered
        if self._thread.is_alive():
            self._thread.join(self._settings.close_timeout)

    def cut(self) -> None:
        """Give all places up, and break all streams off."""
        for door in self._doors:
            door.close()
        self._doors.clear()
        self._break_all()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None
        try:
            error = self._run_sessions()
        except BaseException as bug:  # noqa: BLE001 - the loop's thread raises it again
            error = bug
        if error is not None and not self._stopping.is_set():
            self._call(self._owner.fail, error)

    def _call(self, function: object, *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all streams
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]

    def _run_sessions(self) -> RedisLinkError | None:
        """Join again and again; returns why it is not tried any more."""
        failures = 0
        settings = self._settings
        while not self._stopping.is_set():
            try:
                with connect(
                    self._cluster,
                    self._party,
                    settings,
                    on_progress=self._waits,
                    identity=self._identity,
                ) as endpoint:
                    failures = 0
                    settings = self._settings.model_copy(update={"broker_wait": True})
                    self._receive_all(endpoint)
            except RedisLinkError as error:
                if self._stopping.is_set():
                    return None
                if isinstance(error, BrokerPermissionError):
                    error = explained(error, self._whole)
                failures += 1
                is_last = self._retries.most is not None and failures > self._retries.most
                if is_last or not _may_be_mended(error):
                    self._call(self._down, error)
                    return error
                self._call(self._down, error)
            self._stopping.wait(self._retries.delay)
        return None

    def _waits(self, _absent: list[str], seconds: float) -> None:
        if self._stopping.is_set():
            raise EndpointClosed("the forwarder is ending")
        if seconds >= _SAY_AFTER:
            self._call(
                self._say_down,
                f"waits for {self._peer} to run redislink forward with {self._party}",
            )

    def _receive_all(self, endpoint: Endpoint) -> None:
        """Hand the loop what comes, until the session ends by an error."""
        self._joined, self._wrong = endpoint, None
        if self._stopping.is_set():  # `stop` may have looked before
            endpoint.abort(_FAREWELL, retryable=True)
            return
        streams = Streams(is_first=self._is_first)
        self._call(self._up, endpoint, streams)
        number = 0
        try:
            while True:
                try:
                    packet = endpoint.recv(self._peer, f"{_TAG}{number}", LONGEST_SECONDS)
                except RecvTimeout:  # so long nobody has used it
                    continue
                number += 1
                self._handed.acquire()
                self._call(self._came, streams, packet)
        except EndpointClosed:
            if self._wrong is not None:
                raise self._wrong from None
            if not self._stopping.is_set():
                raise

    # -- the loop's thread --------------------------------------------------------------------

    def _up(self, endpoint: Endpoint, streams: Streams) -> None:
        if self._stopping.is_set():
            return
        self._endpoint, self._streams, self._sent, self._is_up = endpoint, streams, 0, True
        self._said_down, self._times_said = "", 0
        self._log.info("%s: joined %s", self._party, self._peer)
        for door, forward in zip(self._doors, self._forwards, strict=True):
            try:
                door.open()
            except ConfigError as error:
                self._owner.fail(error)
                return
            self._log.info(
                "%s: %s leads to %s of %s", self._party, door.place, forward.name, self._peer
            )
        self._wake()

    def _down(self, error: RedisLinkError) -> None:
        """Break all streams off: the session has ended, or could not be joined."""
        was_up, self._is_up, self._endpoint = self._is_up, False, None
        count = len(self._pipes)
        self._break_all()
        try:
            for door in self._doors:
                door.shut()
        except ConfigError as taken:
            self._owner.fail(taken)
        if was_up:
            what = f"{self._peer} has ended its forwarder" if _is_farewell(error) else str(error)
            were = "1 stream was" if count == 1 else f"{count} streams were"
            self._log.warning("%s: %s reset: %s", self._party, were, what)
        elif not isinstance(error, HandshakeTimeout):  # whom it waits for was said
            self._say_down(f"not joined with {self._peer}: {error}")

    def _break_all(self) -> None:
        for task in self._connecting:
            task.cancel()
        for pipe in list(self._pipes.values()):
            pipe.broken()

    def _say_down(self, text: str) -> None:
        if text != self._said_down:
            self._said_down, self._times_said = text, 0
        self._times_said += 1
        if self._times_said == 1 or (self._times_said > 60 and is_power_of_two(self._times_said)):
            self._log.warning("%s: %s", self._party, text)

    def _wake(self) -> None:
        """Send what there is to send when this turn of the loop is over."""
        if not self._will_pump:
            self._will_pump = True
            self._loop.call_soon(self._pump)

    def _wake_later(self) -> None:
        """Send soon: a packet costs as much as a quarter of a megabyte in it."""
        if not self._will_pump and self._later is None:
            self._later = self._loop.call_later(_LATER, self._wake)

    def _pump(self) -> None:
        self._will_pump = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        endpoint = self._endpoint
        if endpoint is None:
            return
        endpoint.streams = self._streams.count
        try:
            while (packet := self._streams.next_packet()) is not None:
                endpoint.send(self._peer, f"{_TAG}{self._sent}", packet)
                self._sent += 1
        except RedisLinkError:
            return  # the thread gets it too
        for event in self._streams.rooms():
            self._handle(event)
        if not self._streams.is_full:
            for door in self._doors:
                door.accept()

    def _came(self, streams: Streams, packet: bytes) -> None:
        self._handed.release()
        endpoint = self._endpoint
        if endpoint is None or streams is not self._streams:
            return
        try:
            for event in streams.receive_untrusted(packet):
                self._handle(event)
        except FrameError as error:
            self._wrong = PeerProtocolError(
                self._peer, f"{self._peer} broke the rules of streams ({error}): see its log"
            )
            self._endpoint = None
            self._loop.run_in_executor(None, endpoint.abort, str(self._wrong))
            return
        self._wake()

    def _handle(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._opened(event)
            return
        pipe = self._pipes.get(event.stream)
        if pipe is None:
            return
        if isinstance(event, Came):
            pipe.came(event.data)
        elif isinstance(event, HasRoom):
            pipe.has_room()
        elif isinstance(event, Ended):
            pipe.ended()
        elif isinstance(event, Broken):
            self._say_refused(event)
            pipe.broken()

    def _enter(self, forward: Forward, connection: socket.socket) -> None:
        """A program has connected here."""
        stream = self._streams.open(forward.name)  # there is room: see below
        self._names[stream] = forward.name
        self._new_pipe(stream).attach(connection)
        if self._streams.is_full:
            for door in self._doors:
                door.pause()
        self._wake()

    def _opened(self, event: Opened) -> None:
        """A program has connected there."""
        target = self._targets.find(self._peer, event.name)
        if target is None:
            self._streams.reset(event.stream, Reason.NOT_ALLOWED)
            self._say_once(
                ("", Reason.NOT_ALLOWED),  # not by name: the other party chooses those
                f"refused {self._peer} a stream to {event.name}: no --allow gives it that name",
            )
            return
        pipe = self._new_pipe(event.stream)
        task = self._loop.create_task(self._connect(pipe, event.name))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, pipe: Pipe, name: str) -> None:
        target = self._targets.find(self._peer, name)
        assert target is not None  # noqa: S101 - else it was refused
        try:
            connection = await connect_to(target)
        except OSError as error:
            self._say_once(
                (name, Reason.UNREACHABLE),
                f"cannot reach {target} for {self._peer}'s stream to {name} "
                f"({error.strerror or type(error).__name__}): see that it runs",
            )
            pipe.cut(Reason.UNREACHABLE)
            return
        pipe.attach(connection)

    def _new_pipe(self, stream: int) -> Pipe:
        pipe = self._pipes[stream] = Pipe(
            self._streams, stream, self._wake, self._wake_later, self._forget
        )
        return pipe

    def _forget(self, stream: int) -> None:
        del self._pipes[stream]
        self._names.pop(stream, None)

    def _say_refused(self, event: Broken) -> None:
        name = self._names.get(event.stream)
        if name is not None and event.reason in _WHY:
            why = _WHY[event.reason].format(peer=self._peer, name=name, me=self._party)
            self._say_once((name, event.reason), f"{self._peer} reset a stream to {name}: {why}")

    def _say_once(self, what: tuple[str, Reason], text: str) -> None:
        """Say it the first, second, fourth, … time: programs try again and again."""
        count = self._refused[what] = self._refused.get(what, 0) + 1
        if is_power_of_two(count):
            more = f" ({count} times so far)" if count > 1 else ""
            self._log.warning("%s: %s%s", self._party, text, more)


def _is_farewell(error: RedisLinkError) -> bool:
    return isinstance(error, PeerAborted) and error.reason == _FAREWELL


def _may_be_mended(error: RedisLinkError) -> bool:
    """Whether trying again may help: the cause may pass, or is at the other party."""
    return error.retryable or (isinstance(error, PeerError) and not isinstance(error, PartyTaken))
