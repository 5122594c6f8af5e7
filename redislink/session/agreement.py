"""Where a session resumes: what journals know of each other, as pure functions.

A *chain* is the main one, named ``""``, or that of a spawned device, named after the device. Its
steps count from 1. A step *touches* a party if it sends to that party or receives from it. A party
whose journal ends before a step that does not touch it can make that step without any message.

Rules:
- A party *reaches* as far as its journal goes, and beyond it up to the next step that touches it.
- A chain resumes at the last step that every party reaches. A party whose journal ends earlier
  makes the steps up to there anew; one whose journal goes further goes back.
- The chain of a spawned device resumes at most where the chain of its parent has made what it
  needs.
- Nothing here does I/O. Every party computes the same from the same numbers.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

MAIN: Final = ""
DIGEST_BYTES: Final = 16


def parent_of(chain: str) -> str:
    """The chain in which a spawned device was spawned; the main chain's is itself."""
    return chain.rpartition("~")[0] if chain.count("~") > 1 else MAIN


def parents_first(chains: Iterable[str]) -> list[str]:
    """The chains in an order in which each comes after its parent."""
    return sorted(chains, key=lambda name: (name.count("~"), name))


@dataclass
class History:
    """What one party's records say of one chain.

    Attributes:
        last: the number of the last step; 0 if there is none.
    """

    last: int = 0
    _digests: bytearray = field(default_factory=bytearray)
    _touching: dict[str, array[int]] = field(default_factory=dict)
    _rises: list[tuple[int, int]] = field(default_factory=list)

    def add(self, digest: bytes, touches: Collection[str], needs: int) -> None:
        """Add the next step.

        Args:
            digest: that of the chain after this step; `DIGEST_BYTES` long.
            touches: the parties that the step touches.
            needs: the number of the step of the parent's chain without which it cannot be made.
        """
        self.last += 1
        self._digests += digest
        for party in touches:
            self._touching.setdefault(party, array("Q")).append(self.last)
        if needs > self.needs():
            self._rises.append((self.last, needs))

    def cut(self, last: int) -> None:
        """Forget the steps after ``last``."""
        if last >= self.last:
            return
        self.last = last
        del self._digests[last * DIGEST_BYTES :]
        for numbers in self._touching.values():
            del numbers[bisect_right(numbers, last) :]
        while self._rises and self._rises[-1][0] > last:
            self._rises.pop()

    def digest(self, number: int) -> bytes:
        """The digest of the chain after a step; empty for step 0."""
        return bytes(self._digests[(number - 1) * DIGEST_BYTES : number * DIGEST_BYTES])

    def reach(self, party: str, on_disk: int) -> int:
        """How far a party reaches whose journal ends at ``on_disk``, as far as is known here."""
        return max(on_disk, self._next_touching(party, on_disk) - 1)

    def needs(self) -> int:
        """What the steps so far need of the parent's chain."""
        return self._rises[-1][1] if self._rises else 0

    @property
    def rises(self) -> tuple[tuple[int, int], ...]:
        """The steps that need more of the parent's chain than all before, and what they need."""
        return tuple(self._rises)

    def _next_touching(self, party: str, after: int) -> int:
        numbers = self._touching.get(party, ())
        place = bisect_right(numbers, after)
        return numbers[place] if place < len(numbers) else self.last + 1


@dataclass(frozen=True)
class Position:
    """How far a party's journal goes on one chain.

    Attributes:
        last: the number of its last step.
        digest: that of the chain after this step.
        rises: as `History.rises`.
    """

    last: int
    digest: bytes
    rises: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, history: History) -> Position:
        """The position of a party that has this history."""
        return cls(history.last, history.digest(history.last), history.rises)


Positions = Mapping[str, Position]
"""By chain."""
Reaches = Mapping[str, Mapping[str, int]]
"""By chain, then by party."""


def chains_of(told: Mapping[str, Positions]) -> list[str]:
    """All chains that any party has, parents first.

    Args:
        told: what each party told.
    """
    return parents_first({MAIN, *(chain for positions in told.values() for chain in positions)})


def last_of(positions: Positions, chain: str) -> int:
    """The number of a party's last step on a chain."""
    return positions[chain].last if chain in positions else 0


def first_difference(
    history: Mapping[str, History], told: Mapping[str, Positions]
) -> tuple[str, str, int] | None:
    """A party whose last step, which this party has too, is another one than this party's.

    Args:
        history: this party's, by chain.
        told: what the other parties told.

    Returns:
        The party, the chain and the number of the step; None if there is no such party.
    """
    for party, positions in told.items():
        for chain, position in positions.items():
            mine = history.get(chain)
            if mine is None or not 0 < position.last <= mine.last:
                continue
            if mine.digest(position.last) != position.digest:
                return party, chain, position.last
    return None


def reaches(
    history: Mapping[str, History], told: Mapping[str, Positions]
) -> dict[str, dict[str, int]]:
    """How far each party reaches on each chain, as far as this party's records tell.

    Args:
        history: this party's, by chain.
        told: what all parties told, this one included.
    """
    found: dict[str, dict[str, int]] = {}
    for chain in chains_of(told):
        mine = history.get(chain, History())
        found[chain] = {
            party: mine.reach(party, last_of(positions, chain)) for party, positions in told.items()
        }
    return found


def resume_points(told: Mapping[str, Positions], known: Iterable[Reaches]) -> dict[str, int]:
    """The step after which each chain goes on.

    Args:
        told: what all parties told.
        known: what each of them found with `reaches`.
    """
    by_all = list(known)
    points: dict[str, int] = {}
    for chain in chains_of(told):
        point = min(max(reach[chain][party] for reach in by_all) for party in told)
        if chain != MAIN:
            rises = max((p[chain].rises for p in told.values() if chain in p), key=len)
            parent = points.get(parent_of(chain), 0)
            point = min([point, *(number - 1 for number, needs in rises if needs > parent)])
        points[chain] = point
    return points
