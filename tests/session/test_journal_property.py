"""Random programs that are killed at random steps give what they give undisturbed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import Session
from redislink.spu.device import SpuDevice, Withheld
from tests.journal.memory_disk import Crash, MemoryDisk
from tests.support.journaled import NAMES, JournaledParties

Made = dict[int, Any]
Call = Callable[[SpuDevice, Made], Any]


def _double(x: Any) -> Any:
    return x + x


def _add(x: Any, y: Any) -> Any:
    return x + y


class Plan:
    """A program of random calls, and what it gives, computed in the clear."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.calls: list[Call] = []
        self.expected: list[int] = []
        self._clear: dict[int, int] = {}
        self._count = 0
        self._private()
        for _ in range(chance.randrange(5, 30)):
            chance.choice(
                [self._private, self._run, self._run, self._reveal, self._drop, self._spawn]
            )()
        self._reveal()

    def __call__(self, session: Session) -> list[Any]:
        device, made, found = session.spu("SP0"), {}, []
        for call in self.calls:
            value = call(device, made)
            if value is not None:
                found.append(value)
        return found

    def check(self, results: dict[str, Any]) -> None:
        """What the parties got, with `Withheld` in the place of what is for others."""
        for party, values in results.items():
            assert not isinstance(values, BaseException), (party, values)
            assert len(values) == len(self.expected)
            for value, expected in zip(values, self.expected, strict=True):
                assert (party not in value.to) if isinstance(value, Withheld) else value == expected
        for together in zip(*results.values(), strict=True):
            assert any(not isinstance(value, Withheld) for value in together)

    def _pick(self) -> int:
        return self.chance.choice(list(self._clear))

    def _new(self, value: int) -> int:
        self._count += 1
        self._clear[self._count] = value
        return self._count

    def _receivers(self) -> list[str]:
        return self.chance.sample(NAMES, self.chance.randrange(1, 4))

    def _private(self) -> None:
        value, owner = self.chance.randrange(1000), self.chance.choice(NAMES)
        number = self._new(value)

        def call(device: SpuDevice, made: Made) -> None:
            made[number] = device.private(lambda: np.int64(value), owner=owner)

        self.calls.append(call)

    def _run(self) -> None:
        one, other = self._pick(), self._pick()
        number = self._new(self._clear[one] + self._clear[other])

        def call(device: SpuDevice, made: Made) -> None:
            made[number] = device.run(_add)(made[one], made[other])

        self.calls.append(call)

    def _reveal(self) -> None:
        number, receivers = self._pick(), self._receivers()
        self.expected.append(self._clear[number])
        self.calls.append(lambda device, made: device.reveal(made[number], to=receivers))

    def _drop(self) -> None:
        number = self._pick()
        if len(self._clear) == 1:
            return
        del self._clear[number]

        def call(_: SpuDevice, made: Made) -> None:
            del made[number]

        self.calls.append(call)

    def _spawn(self) -> None:
        number, receivers, closes = self._pick(), self._receivers(), self.chance.random() < 0.7
        self.expected.append(2 * self._clear[number])

        def call(device: SpuDevice, made: Made) -> Any:
            other = device.spawn()
            value = other.reveal(other.run(_double)(made[number]), to=receivers)
            if closes:
                other.close()
            return value

        self.calls.append(call)


def _crash_later(disk: MemoryDisk, requests: int) -> None:
    """Crash at a request of this number from now on."""

    def inject(_: str) -> None:
        if len(disk.requests) >= requests:
            raise Crash

    disk.inject = inject


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_random_program_killed_at_random_steps_gives_what_it_gives_undisturbed(
    seed: int,
) -> None:
    chance = random.Random(seed)
    disks = {party: MemoryDisk(random.Random(f"{seed} {party}")) for party in NAMES}
    plan, parties = Plan(chance), JournaledParties(Path("/journals"), disks)
    for _ in range(chance.randrange(1, 4)):
        for party in chance.sample(NAMES, chance.choice([1, 1, 1, 2, 3])):
            _crash_later(disks[party], chance.randrange(1, 120))
        outcomes = parties.outcomes(plan)
        for disk in disks.values():
            disk.inject = lambda _: None
            disk.restart(power_lost=chance.random() < 0.5)
        if not any(isinstance(outcome, BaseException) for outcome in outcomes.values()):
            plan.check(outcomes)
    plan.check(parties.outcomes(plan))
