"""Parties of a `Simulator` that are killed and start again from their journals.

Rules:
- A party that is killed tells nobody, and nothing that it does later has any effect. Its thread
  unwinds, as no thread can be ended otherwise.
- Whatever ends an attempt of one party ends that of all, and all make the next one together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

from redislink.errors import RedisLinkError, UsageError
from redislink.forking import dies_in_child
from redislink.session.agreement import MAIN
from redislink.session.journal import Journal

Kill = Mapping[str, Sequence[int]]
"""For each party the steps of the session's own chain at which it is killed, one in each attempt
that gets there."""


class Killed(BaseException):
    """Ends the thread of a party as ``kill -9`` ends a process."""


class Plan:
    """What is left of a `Kill`."""

    def __init__(self, kill: Kill, parties: Collection[str]) -> None:
        """Raises:
        UsageError: it names a party or a step that cannot be.
        """
        for party, steps in kill.items():
            if party not in parties:
                raise UsageError(
                    f"kill names {party!r:.80}, which is not a party: use {', '.join(parties)}"
                )
            is_list = isinstance(steps, list | tuple)
            if not is_list or not all(type(n) is int and n > 0 for n in steps):
                raise UsageError(
                    f"kill[{party!r}] is a list of numbers of steps, from 1, not {steps!r:.80}"
                )
        self._left = {party: list(steps) for party, steps in kill.items()}
        self.most_attempts = 1 + 3 * sum(map(len, self._left.values()))
        """A kill may cost the others more than one attempt, if they come back one by one."""

    def is_due(self, party: str, number: int, moment: str) -> bool:
        """Whether a party is killed now.

        Args:
            party: the name of the party.
            number: the step that it is in.
            moment: ``begins``; or ``writes`` or ``written``, before and after its record is on
                disk, for tests of redislink itself.
        """
        left = self._left.get(party)
        if not left or moment != "begins" or left[0] != number:
            return False
        del left[0]
        return True

    def check_done(self) -> None:
        """Raise UsageError if a party was not killed although it was to be."""
        for party, left in self._left.items():
            if left:
                raise UsageError(
                    f"{party} was to be killed at step {left[0]}, but its program made no such "
                    "step in the attempts that were left: choose a step that it makes"
                )


class MortalJournal(Journal):
    """The journal of a party that a `Plan` may kill."""

    plan: Plan
    vanish: Callable[[], None]
    """Takes the party out of the session, as if its process had been killed."""

    def begins(self, chain: str, number: int) -> None:
        self._die_if_due(chain, number, "begins")

    def writes(self, chain: str, number: int) -> None:
        self._die_if_due(chain, number, "writes")

    def written(self, chain: str, number: int) -> None:
        self._die_if_due(chain, number, "written")

    def _die_if_due(self, chain: str, number: int, moment: str) -> None:
        if chain == MAIN and self.plan.is_due(self.party, number, moment):
            self._die(number)

    def _die(self, number: int) -> NoReturn:
        self.close()
        self.vanish()
        raise Killed(f"{self.party} is killed at step {number}")


class Attempts:
    """Which attempt the parties are in: all make the same one, or are on the way to the next."""

    def __init__(self, parties: Collection[str]) -> None:
        self._parties = parties
        self._changed = threading.Condition()
        self._newest = 1
        self._ended_well: dict[str, int] = {}
        self._is_over = False
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork only one party's thread is left."""
        self._changed = threading.Condition()

    def failed(self, attempt: int) -> int:
        """Note that a party's attempt ended before its program did; return the next one."""
        with self._changed:
            self._newest = max(self._newest, attempt + 1)
            self._changed.notify_all()
            return self._newest

    def ended_well(self, party: str, attempt: int) -> int | None:
        """Wait for the other parties to end too; return the next attempt, None if all are done."""
        with self._changed:
            self._ended_well[party] = attempt
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    self._is_over
                    or self._newest > attempt
                    or all(self._ended_well.get(party) == attempt for party in self._parties)
                )
            )
            return self._newest if self._newest > attempt and not self._is_over else None

    def give_up(self) -> None:
        """There will be no other attempt."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def goes_on_after(error: BaseException) -> bool:
    """Whether a party starts again after this error, as under ``redislink run --retries``."""
    return isinstance(error, Killed) or (isinstance(error, RedisLinkError) and error.retryable)
