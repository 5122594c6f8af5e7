"""The mailbox of an agent or a driver: pushes letters, and takes those to it, over the brokers.

Rules:
- A letter may be lost on the way, and nobody here notices: whoever sends one repeats it until it is
  answered (`redislink.jobs.replication`).
- An idle mailbox costs one BLPOP in `_LONGEST_WAIT` at each broker, on one connection.
- A broker that is away is tried again for ever, with growing pauses, up to a minute.
- A list that nobody reads stays short: a sender that finds too many of its letters there removes
  them, and pushes the latest. What was in the others is repeated.
- With several brokers, letters go to each, and are taken from each: one that both parties reach is
  enough, and what arrives twice says nothing new.
- What does not open is counted, logged now and then, and dropped.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.inbox import popped_untrusted
from redislink.broker.wire import Bound, pack_blpop
from redislink.cluster import ClusterSpec
from redislink.errors import BrokerError, ConfigError, FrameError
from redislink.identity.keypair import Identity, fingerprint
from redislink.jobs.letters import MOST_LETTER, Sealer
from redislink.jobs.machine import Letter
from redislink.logs import PartyLogger, is_power_of_two
from redislink.protocol.list_names import ANSWERS_TAG, JOBS_TAG, OFFERS_TAG, letter_list
from redislink.settings import RedisLinkSettings
from redislink.transport.security import load_psks

MOST_LETTERS: Final = 16
"""Letters of one sender that may wait on a list."""
_LONGEST_WAIT: Final = 30.0
"""Seconds of one BLPOP."""
_MARGIN: Final = 5.0
"""Seconds by which its reply may be late."""
_LETTER: Final = Bound(2, MOST_LETTER + (4 << 10))
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_IDLE: Final = 30.0
"""Seconds after which a connection for pushing that nobody uses is closed."""
_MOST_TAKEN: Final = 32
"""Letters that have been popped and not taken yet, each of up to 4 MiB; then the thread waits."""
_FULL_PAUSE: Final = 0.05
_END_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Received:
    """A letter that was opened.

    Attributes:
        src: who sealed it.
        tag: the kind of list that it was on.
        body: its content; any value.
    """

    src: str
    tag: str
    body: Any


class Mailbox:
    """Takes letters in a thread for each broker; pushes them in the caller's.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        brokers: Sequence[Broker],
        sealer: Sealer,
        *,
        session: str,
        me: str,
        sources: Mapping[str, Sequence[str]],
        log: PartyLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start to take letters; see `agent_sources` and `driver_sources`.

        Args:
            brokers: one, or several independent ones.
            sealer: seals and opens.
            session: the cluster's session.
            me: whose mailbox this is.
            sources: for each kind of list, whose letters are taken.
            log: for outages, and for letters that do not open.
            clock: monotonic seconds.
        """
        self._sealer = sealer
        self._session = session
        self._log = log
        self._clock = clock
        self._origins = {
            letter_list(session, me, src, tag): (src, tag)
            for tag, names in sources.items()
            for src in names
        }
        self.unopened: Counter[str] = Counter()
        """How many letters did not open, by the name of whose list they were on."""
        # A `SimpleQueue`, because `wake` may interrupt a `take` of the same thread.
        self._taken: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._takers = [_Taker(self, broker, list(self._origins)) for broker in brokers]
        self._me = me
        self.brokers = len(self._takers)
        """How many brokers it has."""
        self._pushers = [_Pusher(broker, clock) for broker in brokers]
        for taker in self._takers:
            taker.thread.start()

    def take(self, timeout: float) -> list[Received]:
        """Return the letters that have arrived; wait for the first one if there is none.

        Args:
            timeout: seconds; 0 does not wait.

        Returns:
            Nothing if none came in time, or another thread called `wake`.
        """
        for pusher in self._pushers:
            pusher.close_if_idle()
        found: list[Received] = []
        try:
            first = self._taken.get(timeout=timeout) if timeout > 0 else self._taken.get_nowait()
            while first is not None:
                found.append(first)
                first = self._taken.get_nowait()
        except queue.Empty:
            pass
        return found

    def wake(self) -> None:
        """End a `take` in another thread. A signal handler may call this too."""
        self._taken.put(None)

    def send(self, letter: Letter, now: float) -> BrokerError | None:
        """Seal a letter and push it to each broker.

        Args:
            letter: what to send.
            now: UTC seconds, for when its list expires.

        Returns:
            None if a broker took it; else the last one's error, or that of its outage. Nothing has
            to be done about it, unless it is not ``retryable``: the letter is repeated.
        """
        name = letter_list(self._session, letter.dst, self._me, letter.tag)
        element = self._sealer.seal(letter.dst, letter.tag, letter.body)
        ttl_ms = max(1000, int(1000 * (letter.expires - now)))
        errors = [pusher.push(name, element, ttl_ms) for pusher in self._pushers]
        return None if None in errors else errors[-1]

    @property
    def problems(self) -> list[BrokerError]:
        """For each broker from which letters cannot be taken now, why; empty if all is well."""
        return [taker.problem for taker in self._takers if taker.problem is not None]

    def close(self) -> None:
        """Take no more letters, and close all connections. Twice is harmless."""
        self._closed.set()
        for taker in self._takers:
            taker.interrupt()
        for pusher in self._pushers:
            pusher.close()
        for taker in self._takers:
            if taker.thread.is_alive():
                taker.thread.join(_END_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrived(self, name: bytes, element: bytes) -> None:
        """Open what was popped, in a taker's thread."""
        src, tag = self._origins[name]
        try:
            received = Received(src, tag, self._sealer.open_untrusted(src, tag, element))
        except FrameError as error:
            self.unopened[src] += 1
            if is_power_of_two(self.unopened[src]):
                self._log.warning(
                    "a letter that %s is said to have sent is dropped, the %d. of them: %s",
                    *(src, self.unopened[src], error),
                )
            return
        while self._taken.qsize() >= _MOST_TAKEN and not self._closed.wait(_FULL_PAUSE):
            pass
        self._taken.put(received)


class _Taker:
    """Pops letters from one broker, in a thread of its own."""

    def __init__(self, mailbox: Mailbox, broker: Broker, names: list[bytes]) -> None:
        self._mailbox = mailbox
        self._broker = broker
        self._names = names
        self._connection: BrokerConnection | None = None
        self.problem: BrokerError | None = None
        self.thread = threading.Thread(target=self._run, name="redislink-letters", daemon=True)

    def interrupt(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def _run(self) -> None:
        closed, log = self._mailbox._closed, self._mailbox._log
        pause = _FIRST_PAUSE
        while not closed.is_set():
            try:
                self._take_one()
            except BrokerError as error:
                if closed.is_set():
                    break
                if self.problem is None or str(self.problem) != str(error):
                    log.warning("no letters can be taken, trying again: %s", error)
                self.problem = error
                self._disconnect()
                closed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if self.problem is not None:
                    log.info("letters are taken again from broker %s", self._broker.label)
                self.problem, pause = None, _FIRST_PAUSE
        self._disconnect()

    def _take_one(self) -> None:
        if self._connection is None:
            self._connection = self._broker.at(self._names[0]).open_answering()
            if self._mailbox._closed.is_set():
                return
        seconds = self._broker.blpop_slice(_LONGEST_WAIT)
        self._connection.write((pack_blpop(self._names, seconds),))
        reply = self._connection.read(seconds + _MARGIN, _LETTER)
        if reply is None:
            return
        name, element = popped_untrusted(reply, self._names, self._broker.label)
        # BLPOP looks at the lists in order: whoever fills one must not keep others waiting.
        self._names.remove(name)
        self._names.append(name)
        self._mailbox._arrived(name, bytes(element))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Pusher:
    """Pushes letters to one broker."""

    def __init__(self, broker: Broker, clock: Callable[[], float]) -> None:
        self._broker = broker
        self._clock = clock
        self._connections: dict[bytes, BrokerConnection] = {}
        """By inbox in a Redis Cluster, else one."""
        self._used = 0.0
        self._problem: BrokerError | None = None
        self._pause = _FIRST_PAUSE
        self._again = 0.0

    def push(self, name: bytes, element: bytes, ttl_ms: int) -> BrokerError | None:
        """Push a letter; return why the broker did not take it, or cannot be tried yet."""
        self._used = self._clock()
        if self._problem is not None and self._used < self._again:
            return self._problem
        inbox = name[: name.find(b"}")] if self._broker.is_cluster else b""
        try:
            self._push(inbox, name, element, ttl_ms)
        except BrokerError as error:
            self.close()
            self._problem, self._again = error, self._clock() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return error
        self._problem, self._pause = None, _FIRST_PAUSE
        return None

    def _push(self, inbox: bytes, name: bytes, element: bytes, ttl_ms: int) -> None:
        connection = self._connections.get(inbox)
        if connection is None:
            connection = self._connections[inbox] = self._broker.at(name).open()
        push = ((b"RPUSH", name, element), (b"PEXPIRE", name, ttl_ms))
        timeout = self._broker.timeout
        with connection.pipeline(push):
            waiting = connection.read(timeout)
            connection.read(timeout)
        if type(waiting) is int and waiting > MOST_LETTERS:
            with connection.pipeline(((b"DEL", name), *push)):
                for _ in range(3):
                    connection.read(timeout)

    def close_if_idle(self) -> None:
        """Close the connection if nobody has used it for a while."""
        if self._connections and self._clock() - self._used > _IDLE:
            self.close()

    def close(self) -> None:
        """Close the connections; the next letter opens one."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def open_mailbox(
    cluster: ClusterSpec,
    me: str,
    identity: Identity,
    settings: RedisLinkSettings,
    *,
    sources: Mapping[str, Sequence[str]],
    brokers: Sequence[Broker] | None = None,
    log: PartyLogger | None = None,
) -> Mailbox:
    """Return the mailbox of a party's agent or a driver, with its keys and its brokers.

    Args:
        cluster: the cluster file.
        me: the party's or driver's name.
        identity: its key pair.
        settings: name the brokers, unless the cluster file does, and the pre-shared keys.
        sources: see `agent_sources` and `driver_sources`.
        brokers: instead of those of the settings.
        log: instead of the package's.

    Raises:
        ConfigError: the cluster file, a setting or the key does not fit.
    """
    keys = cluster.keys_for_jobs()
    if me not in keys:
        raise ConfigError(
            f"{me!r:.80} is neither a party nor a driver of session {cluster.session!r}: it has "
            f"{', '.join(keys)}"
        )
    if identity.public_key != keys[me]:
        raise ConfigError(
            f"{me}: the key file is of {fingerprint(identity.public_key)}, but the cluster file "
            f"has {fingerprint(keys[me])} for {me!r}: give the right one with --identity, or mend "
            "its public_key"
        )
    sealer = Sealer(
        me,
        session=cluster.session,
        digest=cluster.digest(),
        private_key=identity.private_key,
        public_keys=keys,
        random_bytes=secrets.token_bytes,
        psks=load_psks([name for name in keys if name != me], settings),
    )
    return Mailbox(
        Broker.all_from_settings(settings, cluster.broker) if brokers is None else brokers,
        sealer,
        session=cluster.session,
        me=me,
        sources=sources,
        log=log or PartyLogger(cluster.session, me),
    )


def agent_sources(
    me: str, parties: Sequence[str], drivers: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Whose letters an agent takes: offers of everybody, statuses of the other agents."""
    others = [party for party in parties if party != me]
    return {OFFERS_TAG: [*parties, *drivers], JOBS_TAG: others}


def driver_sources(parties: Sequence[str]) -> dict[str, Sequence[str]]:
    """Whose letters a driver takes: the answers of all agents."""
    return {ANSWERS_TAG: parties}
