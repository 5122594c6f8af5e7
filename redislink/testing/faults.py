"""`FaultyBroker`: a broker that drops, duplicates, reorders, delays, cuts, flushes and refuses.

Rules:
- The fault of the n-th push onto a list (or the n-th element popped from it) depends only on the
  seed, the list and n, not on run, session, time or threads. So a seed can be replayed.
- The server behind it is real (or fakeredis); faults change only what reaches it and what redislink
  sees of it.
- Faults hit only redislink's lists, and at most one hits a push or a pop.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.error_map import translate_error_reply
from redislink.broker.tcp import Traffic
from redislink.broker.wire import ELEMENT, LISTING, Bound, Buffer, element_of, pack_blpop
from redislink.errors import BrokerError, BrokerUnreachable, ConfigError, FrameError
from redislink.forking import dies_in_child
from redislink.protocol import list_names

_REORDER_SECONDS: Final = 0.05
"""Seconds after which a reordered push goes out if no other push overtakes it."""
_LONGEST_DELAY: Final = 0.3
_LONGEST_HOLD_TTL_MS: Final = 60_000
_POPS: Final = (b"BLPOP", b"LPOP")
_logger = logging.getLogger("redislink")
Command = Sequence[bytes | int | str]


@dataclass(frozen=True, slots=True)
class Faults:
    """The probability of each fault per push. Each is from 0 to 1, and all together at most 1.

    Attributes:
        drop: the push has no effect, although the broker says that it had.
        duplicate: the element is appended twice.
        reorder: the element is appended after the next one.
        delay: the element is appended up to 0.3 s later.
        cut: the connection breaks before or after the push takes effect. Pops are cut too, per
            element, after the broker has removed it; the element is then lost.
        flush: right after the push, all keys of the session are deleted, as by a restart of a
            server without persistence.
        refuse: the broker says that it is out of memory.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    cut: float = 0.0
    flush: float = 0.0
    refuse: float = 0.0

    def __post_init__(self) -> None:
        chances = self.chances()
        if any(not 0 <= chance <= 1 for chance in chances.values()) or sum(chances.values()) > 1:
            raise ConfigError(
                f"faults: {chances}: each must be from 0 to 1, and all together at most 1"
            )

    @classmethod
    def all(cls, chance: float) -> Faults:
        """Every fault with the same probability.

        Args:
            chance: that probability.
        """
        return cls(**{field.name: chance for field in fields(cls)})

    def chances(self) -> dict[str, float]:
        """The probabilities above 0, by fault."""
        found = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: chance for name, chance in found.items() if chance}


class FaultyBroker(Broker):
    """A `Broker` that injects faults. Pass it to ``connect(..., broker=...)``.

    Usage::

        broker = FaultyBroker("fakeredis://test", seed=7, faults=Faults(drop=0.1))
        with connect(cluster, "alice", settings, broker=broker) as endpoint: ...
        print(broker.injected)

    One may serve several parties at once; the faults then hit the lists of all of them.
    """

    def __init__(
        self, url: str, *, seed: int = 0, faults: Faults | None = None, **options: Any
    ) -> None:
        """Args:
        url: the broker's URL.
        seed: decides which pushes and pops the faults hit.
        faults: which faults to inject, and how often; None for none.
        **options: passed on to `Broker`.
        """
        super().__init__(url, **options)
        self.seed = seed
        self.faults = faults or Faults()
        """You may change it at any time, for example to stop all faults."""
        self.history: list[tuple[str, int, str]] = []
        """Every fault so far: ``push alice>bob:tag``, the number of the push, the fault."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._held: list[tuple[float, int, bool, list[Command]]] = []
        self._order = itertools.count()
        self._releaser: threading.Thread | None = None
        dies_in_child(self)

    @property
    def injected(self) -> dict[str, int]:
        """How many times each fault was injected so far."""
        with self._lock:
            return dict(Counter(fault for _, _, fault in self.history))

    @property
    def may_be_quiet(self) -> bool:
        """False, because each push needs a reply that shows whether it was hit."""
        return False

    def open(self) -> BrokerConnection:
        """Open a connection that injects faults."""
        return FaultyConnection(super().open(), self)

    # -- for FaultyConnection ----------------------------------------------------------------

    def decide(self, verb: str, name: bytes) -> tuple[str | None, random.Random]:
        """The fault of this push or pop, and the random numbers for its details."""
        try:
            _, dst, src, _, tag = list_names.parse_list_untrusted(name)
        except FrameError:
            return None, random.Random(0)  # noqa: S311 - a fault, not a secret
        # Neither session nor epoch: they differ from run to run.
        where = f"{verb} {src}>{dst}:{tag}"
        chances = self.faults.chances()
        if verb == "pop":
            chances = {"cut": chances.get("cut", 0.0)}
        with self._lock:
            self._counts[where] += 1
            number = self._counts[where]
            chance = random.Random(f"{self.seed} {where} {number}")  # noqa: S311
            drawn = chance.random()
            for fault, probability in chances.items():
                drawn -= probability
                if drawn < 0:
                    self.history.append((where, number, fault))
                    return fault, chance
        return None, chance

    def hold(self, commands: list[Command], fault: str, chance: random.Random) -> None:
        """Make the commands take effect later."""
        reorder = fault == "reorder"
        seconds = _REORDER_SECONDS if reorder else chance.uniform(0.01, _LONGEST_DELAY)
        with self._lock:
            due = time.monotonic() + seconds
            heapq.heappush(self._held, (due, next(self._order), reorder, commands))
            if self._releaser is None:
                self._releaser = threading.Thread(
                    target=self._release_held, name="redislink-faults", daemon=True
                )
                self._releaser.start()

    def take_overtaken(self) -> list[Command]:
        """The commands of reordered pushes that have now been overtaken."""
        with self._lock:
            overtaken = [held for held in self._held if held[2]]
            if overtaken:
                self._held = [held for held in self._held if not held[2]]
                heapq.heapify(self._held)
        return [command for *_, commands in sorted(overtaken, key=_age) for command in commands]

    def flush_session(self, name: bytes) -> None:
        """Delete all keys of the session to which a list belongs."""
        session = list_names.parse_list_untrusted(name)[0]
        with self._own_connection() as connection:
            pattern = f"{list_names.PREFIX}:{{{session}:*"
            keys = connection.execute(b"KEYS", pattern, timeout=self.timeout, most=LISTING)
            if keys:
                connection.execute(b"DEL", *keys, timeout=self.timeout)

    def die_in_child(self) -> None:
        """In the child of a fork: the parent pushes what is held."""
        self._lock = threading.Lock()
        self._held, self._releaser = [], None

    def _release_held(self) -> None:
        while True:
            with self._lock:
                if not self._held:
                    self._releaser = None
                    return
                due = self._held[0][0]
                pause = due - time.monotonic()
                commands = heapq.heappop(self._held)[3] if pause <= 0 else []
            if commands:
                with self._own_connection() as connection:
                    for command in commands:
                        connection.execute(*command, timeout=self.timeout, most=LISTING)
            else:
                time.sleep(pause)

    @contextlib.contextmanager
    def _own_connection(self) -> Iterator[BrokerConnection]:
        """A connection without faults. If the broker is away, the block ends without an error."""
        try:
            with contextlib.closing(super().open()) as connection:
                yield connection
        except BrokerError as error:
            _logger.debug("a held push is lost, because the broker is away: %s", error)


def _age(held: tuple[float, int, bool, list[Command]]) -> int:
    return held[1]


@dataclass(slots=True)
class _Owed:
    """What `read` returns for one command: the first of some real replies, or a made-up one."""

    real_replies: int
    reply: Any = 1
    error: BrokerError | None = None
    popped_from: bytes | None = None
    settled: bool = False


class FaultyConnection(BrokerConnection):
    """A connection of a `FaultyBroker`, in front of a real one."""

    def __init__(self, inner: BrokerConnection, broker: FaultyBroker) -> None:
        """Not for users: `FaultyBroker.open` is."""
        self._inner = inner
        self._broker = broker
        self._owed: deque[_Owed] = deque()

    @property
    def usable(self) -> bool:
        """True if the real connection is usable."""
        return self._inner.usable

    @usable.setter
    def usable(self, value: bool) -> None:
        self._inner.usable = value

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write packed commands, with their faults; each owes one `read`."""
        commands = _unpack(b"".join(pieces))
        out: list[Command] = []
        flushed: bytes | None = None
        for place, command in enumerate(commands):
            name = _first_key(command)
            if command[0] in _POPS:
                out.append(command)
                self._owed.append(_Owed(1, popped_from=name))
                continue
            if command[0] != b"RPUSH":
                out.append(command)
                self._owed.append(_Owed(1))
                continue
            fault, chance = self._broker.decide("push", name)
            if fault == "cut":
                if chance.random() < 0.5:
                    out.append(command)
                    self._owed.append(_Owed(1))
                self._cut(out, "around a push")
            elif fault == "drop":
                self._owed.append(_Owed(0))
            elif fault == "refuse":
                self._owed.append(_Owed(0, error=self._out_of_memory()))
            elif fault in ("reorder", "delay"):
                self._broker.hold([command, _expiry(commands, place, name)], fault, chance)
                self._owed.append(_Owed(0))
            else:
                again: list[Command] = [command] if fault == "duplicate" else []
                pushed = [command, *again, *self._broker.take_overtaken()]
                out += pushed
                self._owed.append(_Owed(len(pushed)))
                flushed = name if fault == "flush" else flushed
        if out:
            self._inner.send(out)
        if flushed is not None:
            self._settle()
            self._broker.flush_session(flushed)

    def write_some(
        self,
        pieces: Sequence[Buffer],
        *,
        wait: bool = True,  # noqa: ARG002 - as `BrokerConnection.write_some`
    ) -> Sequence[Buffer]:
        """Write everything, because a fault hits a whole command."""
        self.write(pieces)
        return ()

    def be_patient(self, seconds: float) -> None:
        """Ignored: writes are whole, and wait."""

    def limit_unsent(self, *, on: bool) -> None:
        """Pass it on to the real connection."""
        self._inner.limit_unsent(on=on)

    @property
    def traffic(self) -> Traffic | None:
        """As of the connection behind."""
        return self._inner.traffic

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Wait until there is something to read."""
        if not writes and not self.readable():
            self._inner.wait_movable(seconds, writes=False)

    def read(self, timeout: float, most: Bound = ELEMENT) -> Any:
        """Return the next reply: the broker's, or one that a fault makes."""
        if not self._owed:
            return self._inner.read(timeout, most)
        owed = self._owed[0]
        self._read_real(owed, timeout, most)
        self._owed.popleft()
        if owed.error is not None:
            raise owed.error
        if owed.popped_from is not None and owed.reply is not None:
            # BLPOP replies with the name of the list, LPOP does not.
            name = owed.reply[0] if isinstance(owed.reply, list) else owed.popped_from
            if self._broker.decide("pop", name)[0] == "cut":
                self._cut([], "after a pop")
        return owed.reply

    def pop(self, name: bytes, timeout: float, margin: float) -> Any:
        """Send BLPOP of one list, and read the reply."""
        self.write((pack_blpop((name,), timeout),))
        return self.read_popped(name, timeout + margin)

    def read_popped(self, name: bytes, timeout: float) -> Any:
        """Read the reply to a BLPOP of one list that was sent before."""
        return element_of(self.read(timeout), name)

    def read_successes(self) -> int:
        """Return 0: each reply is read by itself, because faults may hit it."""
        return 0

    @property
    def buffered(self) -> bool:
        """Return True: the faults, too, may have something to say."""
        return True

    def read_now(self) -> bool:
        """Read the next reply, which has begun to arrive."""
        self.read(self._broker.timeout)
        return True

    def wait_readable(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for `readable`, and return it."""
        return self.readable() or self._inner.wait_readable(seconds)

    def poll_busily(self, seconds: float) -> bool:
        """Do the same without sleeping."""
        return self.readable() or self._inner.poll_busily(seconds)

    def readable(self) -> bool:
        """Whether `read` would return without waiting."""
        owed = self._owed[0] if self._owed else None
        made_up = owed is not None and (owed.settled or not owed.real_replies)
        return made_up or self._inner.readable()

    def interrupt(self) -> None:
        """Interrupt the real connection."""
        self._inner.interrupt()

    def close(self) -> None:
        """Close the real connection."""
        self._inner.close()

    def _read_real(self, owed: _Owed, timeout: float, most: Bound = ELEMENT) -> None:
        """Read the broker's replies to one command; the first counts."""
        if owed.settled:
            return
        for number in range(owed.real_replies):
            try:
                reply = self._inner.read(timeout, most)
            except BrokerError as error:
                if not self._inner.usable:
                    raise
                if number == 0:
                    owed.error = error
            else:
                if number == 0:
                    owed.reply = reply
        owed.settled = True

    def _settle(self) -> None:
        """Wait until everything sent has taken effect."""
        for owed in self._owed:
            self._read_real(owed, self._broker.timeout)

    def _cut(self, out: list[Command], when: str) -> None:
        """Break the connection once the commands in ``out`` have taken effect."""
        try:
            if out:
                self._inner.send(out)
                self._settle()
        finally:
            self.close()
        raise BrokerUnreachable(f"broker {self._broker.label}: FaultyBroker cut it {when}")

    def _out_of_memory(self) -> BrokerError:
        text = "command not allowed when used memory > 'maxmemory' (FaultyBroker)"
        return translate_error_reply(self._broker.label, f"OOM {text}")


def _first_key(command: Command) -> bytes:
    key = command[1] if len(command) > 1 else b""
    return key if isinstance(key, bytes) else str(key).encode()


def _expiry(commands: Sequence[Command], place: int, name: bytes) -> Command:
    """The PEXPIRE of a push, without which a held push would make a list that never expires."""
    for command in commands[place + 1 :]:
        if command[0] == b"PEXPIRE" and command[1] == name:
            return command
    return (b"PEXPIRE", name, _LONGEST_HOLD_TTL_MS)


def _unpack(packed: bytes) -> list[Command]:
    """The commands in what `wire.pack` and similar functions packed."""
    commands: list[Command] = []
    place = 0

    def number() -> int:
        nonlocal place
        end = packed.index(b"\r\n", place)
        value, place = int(packed[place + 1 : end]), end + 2
        return value

    while place < len(packed):
        command = []
        for _ in range(number()):
            size = number()
            command.append(packed[place : place + size])
            place += size + 2
        commands.append(command)
    return commands
