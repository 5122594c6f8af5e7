"""How the statuses of a job reach everybody: documents with versions, repeated until seen.

Each participant of a job, its driver and its agents, owns one `Status` of it, and alone increases
its version. A `Note` carries the sender's status, and the version of the receiver's status that the
sender knows. Whoever has not said that it has seen a status is told it again.

Rules:
- The highest version wins. So a note may be lost, doubled, overtaken or replayed: an old one says
  nothing new.
- A note that wants an answer gets one, and an answer wants none. So two never talk for ever.
- Nothing here knows a clock or a broker. What arrives is checked field by field.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from redislink.errors import FrameError
from redislink.jobs.status import count_untrusted, fields_untrusted, job_untrusted

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two notes with the same status: the first pause, and the longest."""


@dataclass(frozen=True, slots=True)
class Note:
    """What one participant tells another about a job.

    Attributes:
        job: its id.
        version: of the sender's status.
        status: that status: `Status.to_value` of an agent, the offer and whether it is cancelled of
            a driver; None if the receiver has said that it knows it.
        seen: the version of the receiver's status that the sender knows; 0 for none.
        wants: whether the sender waits for an answer.
    """

    job: str
    version: int
    status: Mapping[str, Any] | None
    seen: int
    wants: bool

    def to_value(self) -> dict[str, Any]:
        """The note as the body of a letter."""
        return {
            "kind": "note",
            "job": self.job,
            "version": self.version,
            "status": self.status,
            "seen": self.seen,
            "wants": self.wants,
        }

    @classmethod
    def from_value_untrusted(cls, value: Any) -> Self:
        """The note with this body; its status is not checked yet.

        Raises:
            FrameError: it is no note's.
        """
        fields = fields_untrusted(value, _NOTE_FIELDS, "a note")
        status = fields["status"]
        if status is not None and type(status) is not dict:
            raise FrameError("a note whose status is not valid")
        return cls(
            job=job_untrusted(fields["job"]),
            version=count_untrusted(fields["version"]),
            status=status,
            seen=count_untrusted(fields["seen"]),
            wants=fields["wants"],
        )


_NOTE_FIELDS: Final[dict[str, type]] = {
    "kind": str,
    "job": str,
    "version": int,
    "status": object,
    "seen": int,
    "wants": bool,
}


@dataclass(slots=True)
class _Timer:
    due: float
    pause: float = 0.0


@dataclass(slots=True)
class Repeats:
    """When to say again what has not been seen. Keys say what, and to whom."""

    _timers: dict[Hashable, _Timer] = field(default_factory=dict)

    def want(self, key: Hashable, now: float) -> None:
        """Say it now, and again after the first pause."""
        self._timers[key] = _Timer(now)

    def __contains__(self, key: Hashable) -> bool:
        """Whether it is to be said."""
        return key in self._timers

    def stop(self, key: Hashable) -> None:
        """Say it no more."""
        self._timers.pop(key, None)

    def due(self, now: float) -> list[Any]:
        """Return what is due. The caller says it; then the pause doubles."""
        found = []
        for key, timer in self._timers.items():
            # A clock that was set back must not hold anything up.
            if timer.due <= now or timer.due > now + LONGEST_PAUSE:
                timer.pause = min(2 * timer.pause or FIRST_PAUSE, LONGEST_PAUSE)
                timer.due = now + timer.pause
                found.append(key)
        return found

    def next_due(self) -> float | None:
        """Return when something is due; None if nothing is to be said."""
        return min((timer.due for timer in self._timers.values()), default=None)
