"""What a journal of steps holds, for people who look after it: everything but values."""

from __future__ import annotations

from dataclasses import dataclass

from redislink.journal import Description, Entry
from redislink.session.records import (
    BeganRecord,
    EndedRecord,
    JoiningRecord,
    ResumedRecord,
    StepRecord,
    decode_record,
)
from redislink.text import one_line

_MOST_KIND = 20


@dataclass(frozen=True)
class StepView:
    """A step that a journal has.

    Attributes:
        chain, number: which step it is; the session's own chain is "".
        call: the call: names and shapes.
        place: where and when the program made it.
        gave: the kind of what it gave this party.
        stored_bytes: bytes on disk of that; None if nothing needs it any more and it is gone.
        written: in seconds of Unix time.
        digest: that of the chain after it, the same at every party.
    """

    chain: str
    number: int
    call: str
    place: str
    gave: str
    stored_bytes: int | None
    written: float
    digest: str


@dataclass(frozen=True)
class JournalView:
    """What a journal holds.

    Attributes:
        about: what its files say.
        steps: those from which a run could go on, in the order of writing.
        starts: when each process began with it, in seconds of Unix time.
        ended: why no run can go on from it; "" if one can.
    """

    about: Description
    steps: tuple[StepView, ...]
    starts: tuple[float, ...]
    ended: str


def view_of(about: Description) -> JournalView:
    """Read the entries of a journal.

    Raises:
        JournalError: another version of redislink wrote them.
    """
    steps: list[StepView] = []
    starts: list[float] = []
    ended = ""
    for entry in about.entries:
        match decode_record(entry):
            case StepRecord() as record:
                steps.append(_step(about, entry, record))
            case JoiningRecord() as joining:
                starts.append(joining.written)
            case BeganRecord():
                steps.clear()
            case ResumedRecord(points, _, _):
                steps = [step for step in steps if step.number <= points.get(step.chain, 0)]
            case EndedRecord() as record:
                ended = f"{record.party} went on without a journal: {record.why}"
    return JournalView(about, tuple(steps), tuple(starts), ended)


def _step(about: Description, entry: Entry, record: StepRecord) -> StepView:
    there = [about.blob_bytes[blob] for blob in entry.blobs if blob in about.blob_bytes]
    return StepView(
        record.chain,
        record.number,
        record.text,
        record.place,
        one_line(str(record.gave[0]), _MOST_KIND) if record.gave else "",
        sum(there) if there or not entry.blobs else None,
        record.written,
        record.digest.hex(),
    )
