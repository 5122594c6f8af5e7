"""A driver's own jobs: what it has offered, what it knows of them, and what it tells the agents.

Pure, like `redislink.jobs.machine`: times and letters go in, letters come out. Several processes of
a driver share its files, so each hands in what it reads there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redislink.errors import ConfigError, FrameError, ValueDecodeError
from redislink.jobs.machine import KEEP, Letter, offer_from_json, offer_to_json
from redislink.jobs.offer import Offer
from redislink.jobs.replication import Note
from redislink.jobs.status import State, Status, Whole, whole
from redislink.protocol.list_names import OFFERS_TAG


@dataclass(slots=True)
class DriverJob:
    """What a driver knows of one of its jobs.

    Attributes:
        offer: what it offered.
        version: 1: the offer; 2: it is cancelled.
        cancelled: when, in UTC seconds; None if it is not.
        statuses: the latest status of each agent that has been heard.
        seen: the version that each agent has seen.
    """

    offer: Offer
    version: int = 1
    cancelled: float | None = None
    statuses: dict[str, Status] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def cancel(self, now: float) -> bool:
        """Cancel it; return whether it was not cancelled and had not ended."""
        if self.version >= 2 or self.has_ended(now):
            return False
        self.version, self.cancelled = 2, now
        return True

    def heard_untrusted(self, src: str, note: Note) -> bool:
        """Take in an agent's note about this job; return whether it said anything new.

        Raises:
            FrameError: it is no note of one of its agents.
        """
        if src not in self.offer.parties:
            raise FrameError("a status from somebody who does not take part in the job")
        is_new = False
        if note.status is not None:
            status = Status.from_value_untrusted(note.status)
            known = self.statuses.get(src)
            if known is None or status.version > known.version:
                self.statuses[src] = status
                is_new = True
        if self.seen.get(src, 0) < note.seen <= self.version:
            self.seen[src] = note.seen
            is_new = True
        return is_new

    def unseen(self, now: float) -> tuple[str, ...]:
        """The agents that have to be told of the offer or that it is cancelled."""
        return tuple(
            party
            for party in self.offer.parties
            if self.seen.get(party, 0) < self.version
            and not (party in self.statuses and self.statuses[party].state.has_ended)
            # An offer that has expired cannot start; but what started may yet be cancelled.
            and (now < self.offer.expires or party in self.statuses)
        )

    def note(self, party: str) -> Note:
        """What to tell an agent now."""
        known = self.statuses.get(party)
        unseen = self.seen.get(party, 0) < self.version
        return Note(
            self.offer.job,
            self.version,
            self._status() if unseen else None,
            known.version if known is not None else 0,
            wants=unseen,
        )

    def letter(self, party: str, now: float) -> Letter:
        """`note` as a letter."""
        expires = max(float(self.offer.expires), now + KEEP if self.statuses else 0.0)
        return Letter(party, OFFERS_TAG, self.note(party).to_value(), expires)

    def _status(self) -> dict[str, Any]:
        # Nobody needs the source of what is cancelled.
        offer = self.offer if self.version == 1 else replace(self.offer, source=None)
        return {"offer": offer.to_value(), "cancelled": self.version >= 2}

    def whole(self, now: float) -> Whole:
        """Where the job is as a whole, as far as the driver knows."""
        known = whole(self.offer.parties, self.statuses)
        if known.state.has_ended or known.state is State.RUNNING:
            return known
        me = self.offer.driver
        if self.version >= 2:
            return Whole(State.CANCELLED, me, "by its driver", unknown=self._open())
        if now >= self.offer.expires:
            return Whole(State.EXPIRED, me, "its time is over", unknown=self._open())
        return known

    def _open(self) -> tuple[str, ...]:
        return tuple(
            party
            for party in self.offer.parties
            if party not in self.statuses or not self.statuses[party].state.has_ended
        )

    def has_ended(self, now: float) -> bool:
        """Whether the job has ended as a whole, as far as the driver knows."""
        return self.whole(now).state.has_ended

    def is_settled(self, now: float) -> bool:
        """Whether there is nothing left to tell or to hear."""
        return self.has_ended(now) and not self._open()

    def to_value(self) -> dict[str, Any]:
        """The job as JSON, for `from_value`."""
        return {
            "format": _FORMAT,
            "offer": offer_to_json(self.offer),
            "version": self.version,
            "cancelled": self.cancelled,
            "statuses": {name: status.to_value() for name, status in self.statuses.items()},
            "seen": dict(self.seen),
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> DriverJob:
        """The job that `to_value` made into this.

        Raises:
            ConfigError: it made no such value.
        """
        try:
            if value["format"] != _FORMAT:
                raise ConfigError("its format is another version's: use that version of redislink")
            return cls(
                offer=offer_from_json(value["offer"]),
                version=value["version"],
                cancelled=value["cancelled"],
                statuses={
                    name: Status.from_value_untrusted(each)
                    for name, each in value["statuses"].items()
                },
                seen=dict(value["seen"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, FrameError, ValueDecodeError) as e:
            raise ConfigError(f"it is not the state of a job ({type(e).__name__})") from None


_FORMAT: Final = 1
