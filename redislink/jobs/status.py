"""Where a job is: at one agent, as that agent tells it, and as a whole.

Rules: what arrives from others is checked field by field; `from_value_untrusted` raises
`FrameError` and nothing else, and what it returns is safe to print.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from redislink.errors import ConfigError, FrameError
from redislink.jobs.offer import check_digest, check_job_id
from redislink.protocol.list_names import check_name
from redislink.text import one_line

MOST_TEXT: Final = 500
"""Characters of a text in a status."""
_MOST_NAMES: Final = 64
_MOST_VERSION: Final = 1 << 53


class State(enum.StrEnum):
    """Where a job is at one agent, or as a whole."""

    OFFERED = "offered"
    """Nothing is decided yet."""
    WAITING = "waiting"
    """A person at the agent's machine has to decide."""
    ACCEPTED = "accepted"
    """It starts once all agents have accepted, and there is room."""
    STARTING = "starting"
    """Its process runs, and waits for the other parties. Nothing is computed yet."""
    RUNNING = "running"
    """All parties have met."""
    FINISHED = "finished"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows."""
        return self in _ENDED

    @property
    def ends_others(self) -> bool:
        """Whether one agent in this state ends the job at all others."""
        return self in _ENDED and self is not State.FINISHED

    @property
    def has_accepted(self) -> bool:
        """Whether an agent in this state agrees to run the job."""
        return self in _AGREED


_ENDED: Final = frozenset(
    {State.FINISHED, State.FAILED, State.REFUSED, State.CANCELLED, State.EXPIRED}
)
_AGREED: Final = frozenset({State.ACCEPTED, State.STARTING, State.RUNNING, State.FINISHED})


@dataclass(frozen=True, slots=True)
class Status:
    """What an agent says of its part in a job.

    Attributes:
        version: counts the changes; the agent alone increases it.
        state: where it is.
        offer: ``sha256:…`` of the offer that the agent has; all must have the same.
        since: when it came into this state, in UTC seconds since 1970.
        by: name of who ended it: a party or the driver; empty while it has not ended, or has
            finished.
        reason: why it ended, or who has to decide, in one line.
        step: number of the step that runs; 0 before the first.
        text: that step's call.
        waits_for: whom it waits for, and what is known of each.
        results: names of the results that the driver may have.
    """

    version: int
    state: State
    offer: str
    since: int = 0
    by: str = ""
    reason: str = ""
    step: int = 0
    text: str = ""
    waits_for: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def to_value(self) -> dict[str, Any]:
        """The status as a value of `redislink.values`, which JSON can hold too."""
        return {
            "version": self.version,
            "state": str(self.state),
            "offer": self.offer,
            "since": self.since,
            "by": self.by,
            "reason": self.reason,
            "step": self.step,
            "text": self.text,
            "waits_for": list(self.waits_for),
            "results": list(self.results),
        }

    @classmethod
    def from_value_untrusted(cls, value: Any) -> Self:
        """The status that `to_value` made into this. Its texts are safe to print.

        Raises:
            FrameError: it made no such value.
        """
        fields = fields_untrusted(value, _STATUS_FIELDS, "a status")
        try:
            if fields["by"]:
                check_name(fields["by"], "party")
            state, offer = State(fields["state"]), check_digest(fields["offer"])
            results = tuple(check_name(name, "result") for name in fields["results"])
        except (ConfigError, ValueError) as error:
            raise FrameError(f"a status that is not valid: {error}") from None
        names = fields["waits_for"]
        if max(len(results), len(names)) > _MOST_NAMES or any(type(n) is not str for n in names):
            raise FrameError("a status with lists that are not valid")
        return cls(
            version=count_untrusted(fields["version"], least=1),
            state=state,
            offer=offer,
            since=count_untrusted(fields["since"]),
            by=fields["by"],
            reason=one_line(fields["reason"], MOST_TEXT),
            step=count_untrusted(fields["step"]),
            text=one_line(fields["text"], MOST_TEXT),
            waits_for=tuple(one_line(name, MOST_TEXT) for name in names),
            results=results,
        )


_STATUS_FIELDS: Final[dict[str, type]] = {
    "version": int,
    "state": str,
    "offer": str,
    "since": int,
    "by": str,
    "reason": str,
    "step": int,
    "text": str,
    "waits_for": list,
    "results": list,
}


@dataclass(frozen=True, slots=True)
class Whole:
    """Where a job is as a whole, as far as whoever asks knows. The same statuses give the same.

    Attributes:
        state: `State.FINISHED` only if all agents have finished.
        by: who ended it; empty while it has not ended, or has finished.
        reason: why.
        waits_for: parties whose approval or start it waits for, or that still run it.
        unknown: parties of which nothing has been heard.
    """

    state: State
    by: str = ""
    reason: str = ""
    waits_for: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


_WORST_FIRST: Final = (State.REFUSED, State.CANCELLED, State.EXPIRED, State.FAILED)
_FURTHEST_FIRST: Final = (State.RUNNING, State.STARTING)


def whole(parties: Iterable[str], known: Mapping[str, Status]) -> Whole:
    """Return where a job is as a whole.

    Args:
        parties: all parties of the job.
        known: the latest status of each that is known.
    """
    names = tuple(parties)
    unknown = tuple(name for name in names if name not in known)
    for state in _WORST_FIRST:
        ended = [name for name in names if name in known and known[name].state is state]
        if ended:
            # Whoever ended it says so itself; the others repeat it.
            first = next((name for name in ended if known[name].by == name), ended[0])
            return Whole(state, known[first].by, known[first].reason, unknown=unknown)
    states = {name: known[name].state if name in known else State.OFFERED for name in names}
    if set(states.values()) == {State.FINISHED}:
        return Whole(State.FINISHED)
    for state in _FURTHEST_FIRST:
        if state in states.values() or (
            state is State.RUNNING and State.FINISHED in states.values()
        ):
            rest = tuple(name for name in names if states[name] is not State.FINISHED)
            return Whole(state, waits_for=rest, unknown=unknown)
    for state in (State.WAITING, State.OFFERED):
        rest = tuple(name for name in names if states[name] is state)
        if rest:
            return Whole(state, waits_for=rest, unknown=unknown)
    return Whole(State.ACCEPTED)


def fields_untrusted(value: Any, fields: Mapping[str, type], what: str) -> dict[str, Any]:
    """Return a mapping that has just these fields, each of exactly its type (`object`: any).

    Raises:
        FrameError: it is none.
    """
    if type(value) is not dict or value.keys() != fields.keys():
        raise FrameError(f"{what} with other fields: run the same version of redislink everywhere")
    for name, kind in fields.items():
        if kind is not object and type(value[name]) is not kind:
            raise FrameError(f"{what} whose {name} is of another type")
    return value


def count_untrusted(number: Any, least: int = 0) -> int:
    """Return a whole number that is not negative, and not so large that sums overflow.

    Raises:
        FrameError: it is none.
    """
    if type(number) is not int or not least <= number <= _MOST_VERSION:
        raise FrameError("a number of impossible size")
    return number


def job_untrusted(job: Any) -> str:
    """Return the id of a job.

    Raises:
        FrameError: it is none.
    """
    try:
        return check_job_id(job)
    except ConfigError:
        raise FrameError("a job's id that is none") from None
