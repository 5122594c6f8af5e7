"""Random programs for a `JournalStore`, and what its journal may hold after any crash of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from redislink.errors import JournalError
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from tests.journal.memory_disk import Crash, MemoryDisk

DIRECTORY = Path("/data")
BINDING = Binding("training", "alice", b"c" * 32, "redislink 1, spu 2, jax 3", "train.py")
IDENTITY = Identity(bytes(range(32)))

State = tuple[bytes, ...]
"""Bodies of the entries. No two are equal."""


@dataclass
class Program:
    """One program: the same seed makes the same calls, whatever happens to the disk."""

    seed: int
    steps: int = 9
    rng: random.Random = field(init=False)
    disk: MemoryDisk = field(init=False)
    store: JournalStore | None = None
    possible: list[State] = field(default_factory=lambda: [()])
    """What the journal may hold after a crash, oldest first; the last is what was asked for."""
    blobs: dict[bytes, list[bytes]] = field(default_factory=dict)
    freed: set[tuple[bytes, int]] = field(default_factory=set)
    refused: bool = False
    """A call has raised, so that the store takes no more entries."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.disk = MemoryDisk(random.Random(self.seed + 1))

    def open(self) -> None:
        store = JournalStore.open(DIRECTORY, BINDING, IDENTITY, disk=self.disk)
        self.store, self.refused = store, False
        self.possible = [self.look(store)]

    def look(self, store: JournalStore) -> State:
        """Check all that the journal holds; return the bodies."""
        entries = list(store.entries())
        found = tuple(entry.body for entry in entries)
        assert found in self.possible, (found, self.possible)
        numbers = [entry.number for entry in entries]
        assert numbers == sorted(set(numbers))
        for entry in entries:
            blobs = self.blobs[entry.body]
            assert len(entry.blobs) == len(blobs)
            for place, (number, blob) in enumerate(zip(entry.blobs, blobs, strict=True)):
                if store.has(number):
                    assert store.read(number) == blob
                else:
                    assert (entry.body, place) in self.freed
        assert 0 <= store.live_bytes <= store.size
        return found

    def run(self) -> None:
        """Make all calls. A call that raises `JournalError` is made once more after a restart."""
        for step in range(self.steps):
            self.step(step)

    def step(self, step: int) -> None:
        if self.store is None:
            self.open()
        assert self.store is not None
        call = self.rng.choices(
            (self.append, self.append_later, self.free, self.drop, self.open_again),
            (5, 2, 3, 1, 1),
        )[0]
        call(self.store, step)

    def append(self, store: JournalStore, step: int, *, durable: bool = True) -> None:
        body = b"%d of %d" % (step, self.seed)
        blobs = [
            self.rng.randbytes(self.rng.randint(0, 200)) for _ in range(self.rng.randint(0, 3))
        ]
        parts = [self._split(blob) for blob in blobs]
        self.blobs[body] = blobs
        self.possible.append((*self.possible[-1], body))
        entry = store.append(body, parts, durable=durable)
        assert entry.body == body
        if durable:
            del self.possible[:-1]

    def append_later(self, store: JournalStore, step: int) -> None:
        self.append(store, step, durable=False)

    def _split(self, blob: bytes) -> list[bytes | memoryview]:
        cut = self.rng.randint(0, len(blob))
        return [blob[:cut], memoryview(blob)[cut:]]

    def free(self, store: JournalStore, step: int) -> None:
        for entry in store.entries():
            for place, number in enumerate(entry.blobs):
                if self.rng.random() < 0.5:
                    self.freed.add((entry.body, place))
                    store.free([number])

    def drop(self, store: JournalStore, step: int) -> None:
        entries = list(store.entries())
        keep = self.rng.randint(0, len(entries))
        self.possible.append(tuple(entry.body for entry in entries[:keep]))
        store.drop(entry.number for entry in entries[keep:])
        del self.possible[:-1]

    def open_again(self, store: JournalStore, step: int) -> None:
        store.close()
        self.store = None
        self.open()


def requests_of(seed: int) -> int:
    """How many requests a program makes to the disk if nothing goes wrong."""
    program = Program(seed)
    program.run()
    return len(program.disk.requests)


def cases(count: int) -> list[tuple[int, int]]:
    """Seeds and requests: half of them every request of some programs, half one of many more."""
    found: list[tuple[int, int]] = []
    seed = 0
    while len(found) < count // 2:
        found += [(seed, request) for request in range(1, requests_of(seed) + 1)]
        seed += 1
    chance = random.Random(count)
    rest = range(seed, seed + count - len(found))
    return found + [(seed, chance.randint(1, 70)) for seed in rest]


def after(requests: int, error: Callable[[], BaseException]) -> Callable[[str], None]:
    """Let some requests happen, and raise at the next one and at all that follow."""
    left = requests

    def inject(request: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise error()

    return inject


def crash_and_go_on(seed: int, request: int) -> None:
    """Crash at a request, then maybe again while the journal is opened; then run to the end."""
    chance = random.Random(seed * 1000 + request)
    _crash(
        Program(seed),
        [request, *(chance.choice((3, 6, 9)) for _ in range(chance.randint(0, 2)))],
        [chance.random() < 0.7 for _ in range(3)],
    )


def killed_and_then_without_power(seed: int, request: int, then: int, luck: int) -> None:
    """Only the process is killed at first, so the next one sees what is not on the disk yet."""
    program = Program(seed)
    program.disk.rng.seed(luck)
    _crash(program, [request, then], [False, True])


def _crash(program: Program, requests: list[int], power_lost: list[bool]) -> None:
    """Run to the end; after each start, crash when so many requests were made."""
    crashes = 0
    program.disk.inject = after(requests[0], Crash)
    for step in range(program.steps):
        try:
            program.step(step)
        except Crash:
            program.store = None
            program.disk.restart(power_lost=power_lost[crashes])
            crashes += 1
            follows = requests[crashes] if crashes < len(requests) else 10**6
            program.disk.inject = after(follows, Crash)
    program.disk.inject = lambda request: None
    program.disk.restart(power_lost=True)
    program.open()


def fail_and_go_on(seed: int, request: int, error: Callable[[], OSError]) -> int:
    """Let a request and what follows fail for a while, then run to the end; count the errors."""
    program = Program(seed)
    chance = random.Random(seed * 1000 + request)
    failing = after(request, error)
    lasts = chance.choice((1, 2, 10**6))
    program.disk.inject = failing
    errors = 0
    for step in range(program.steps):
        try:
            program.step(step)
        except JournalError:
            errors += 1
            if program.store is not None:
                _still_reads_and_refuses(program, program.store)
                program.store.close()
            program.store = None
            if errors >= lasts or program.rng.random() < 0.5:
                program.disk.inject = lambda request: None
    program.disk.inject = lambda request: None
    program.disk.restart(power_lost=True)
    program.open()
    return errors


def _still_reads_and_refuses(program: Program, store: JournalStore) -> None:
    program.look(store)
    for call in (lambda: store.append(b"more"), lambda: store.drop([1])):
        try:
            call()
        except JournalError:
            continue
        raise AssertionError("written after writing failed")
