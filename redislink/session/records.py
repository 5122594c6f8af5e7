"""What the entries of a journal say: each is a value of `redislink.values`, whose first element is
its kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redislink.errors import JournalError, ValueDecodeError
from redislink.journal import Entry
from redislink.text import one_line
from redislink.values import decode_value_untrusted

Buffer = bytes | bytearray | memoryview
START_ANEW: Final = "start all parties anew with --fresh, which keeps the old journals aside"
LAST_CALL: Final = "close("
"""How the text of a session's last step begins."""
_MOST_WHY: Final = 200


def named(parties: Collection[str]) -> str:
    """Names of parties in a sentence."""
    return " and ".join(parties)


@dataclass(frozen=True)
class Gave:
    """What a step gave this party.

    Attributes:
        value: its kind, such as ``handles``, and what `redislink.values` can encode.
        blobs: what is large, or goes when its owner goes; each in pieces.
        owners: objects, one for each blob: when one is gone, so may be its blob.
    """

    value: Sequence[Any]
    blobs: Sequence[Sequence[Buffer]] = ()
    owners: Sequence[Any] = ()


NOTHING: Final = Gave(["nothing"])


@dataclass(frozen=True)
class StepRecord:
    """The record of a step.

    Attributes:
        chain, number: which step it is.
        digest: that of the chain after it.
        text, place, parts, labels: as in `redislink.session.steps`.
        touches: the parties that the step touches.
        needs: see `History.add`.
        written: when it was written, in seconds since 1970 UTC.
        gave: what it gave this party, see `Gave.value`.
    """

    chain: str
    number: int
    digest: bytes
    text: str
    place: str
    parts: bytes
    labels: tuple[str, ...]
    touches: tuple[str, ...]
    needs: int
    written: float
    gave: list[Any]


@dataclass(frozen=True)
class JoiningRecord:
    """A process of this party is about to claim the party's name on the broker.

    Attributes:
        instance: what tells its run from others there.
        boot: what tells this start of this machine from others; "" if that is not known.
        written: as in `StepRecord`.
    """

    instance: bytes
    boot: str
    written: float


@dataclass(frozen=True)
class BeganRecord:
    """The parties began a run together, whose records follow."""

    run: bytes


@dataclass(frozen=True)
class ResumedRecord:
    """The parties resumed after these steps, by chain; records of later ones do not count.

    Attributes:
        points: the steps.
        generation: counts how often the parties have gone back.
        made_in: the generation in which this party made its last step by then.
    """

    points: Mapping[str, int]
    generation: int
    made_in: int


@dataclass(frozen=True)
class RevealRecord:
    """This party is about to send its shares in a reveal.

    Attributes:
        chain, number: which step it is.
        reached: by chain, the step that every party reaches, so that none can go back behind it.
    """

    chain: str
    number: int
    reached: Mapping[str, int]


@dataclass(frozen=True)
class EndedRecord:
    """A party went on without a journal, so that nothing can be resumed.

    Attributes:
        party: its name.
        why: what its disk said.
    """

    party: str
    why: str

    @classmethod
    def of(cls, party: str, why: str) -> EndedRecord:
        """The record, of texts of any length and origin."""
        return cls(one_line(party, 64), one_line(why, _MOST_WHY))


AnyRecord = StepRecord | JoiningRecord | BeganRecord | ResumedRecord | RevealRecord | EndedRecord


def decode_record(entry: Entry) -> AnyRecord:
    """What an entry of a journal says.

    Raises:
        JournalError: this version of redislink does not write such entries.
    """
    try:
        told = decode_value_untrusted(entry.body)
    except ValueDecodeError as error:
        raise JournalError(f"entry {entry.number} of the journal: {error}") from None
    match told:
        case ["step", str(chain), int(number), bytes(digest), str(text), str(place), bytes(parts),
              list(labels), list(touches), int(needs), float(written), list(gave)]:  # fmt: skip
            return StepRecord(
                chain, number, digest, text, place, parts, tuple(labels), tuple(touches), needs,
                written, gave,
            )  # fmt: skip
        case ["joining", bytes(instance), str(boot), float(written)]:
            return JoiningRecord(instance, boot, written)
        case ["began", bytes(run)]:
            return BeganRecord(run)
        case ["resumed", dict(points), int(generation), int(made_in)]:
            return ResumedRecord(points, generation, made_in)
        case ["reveal", str(chain), int(number), dict(reached)]:
            return RevealRecord(chain, number, reached)
        case ["ended", str(party), str(why)]:
            return EndedRecord(party, why)
    raise JournalError(
        f"entry {entry.number} of the journal is none that this version of redislink writes: run "
        f"the version that wrote it, or {START_ANEW}"
    )
