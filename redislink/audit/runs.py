"""The runs and jobs in a record: its lines, put together by what they are about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from redislink.audit.records import (
    BeginSaid,
    DecisionSaid,
    EndSaid,
    OfferSaid,
    PsiSaid,
    Record,
    ResultSaid,
    RevealSaid,
    StartSaid,
    StepSaid,
)


@dataclass(frozen=True)
class AuditStep:
    """A step of a run.

    Attributes:
        began: UTC seconds since 1970.
        seconds: how long it took; None if that is not known.
        said: what its line says.
        reveal: what it revealed; None if it is no reveal.
        psi: which intersection it was; None if it was none.
    """

    began: float
    seconds: float | None
    said: StepSaid
    reveal: RevealSaid | None
    psi: PsiSaid | None


@dataclass
class AuditRun:
    """One run of a session.

    Attributes:
        began: UTC seconds since 1970.
        begin: what its first line says.
        records: its lines, the first and the last among them.
        ended: UTC seconds since 1970; None if the record does not say.
        end: what its last line says; None if there is none: it still runs, its process was killed,
            or the tail is missing.
    """

    began: float
    begin: BeginSaid
    records: list[Record] = field(default_factory=list)
    ended: float | None = None
    end: EndSaid | None = None

    def steps(self) -> list[AuditStep]:
        """The steps of all chains, in the order in which they began."""
        reveals: dict[tuple[str, int], RevealSaid] = {}
        psis: dict[tuple[str, int], PsiSaid] = {}
        took: dict[tuple[str, int], float | None] = {}
        for record in self.records:
            match record.said:
                case RevealSaid() as said:
                    reveals[said.chain, said.number] = said
                case PsiSaid() as said:
                    psis[said.chain, said.number] = said
                case StepSaid() as said:
                    took[said.chain, said.number - 1] = said.previous_seconds
                case EndSaid() as said:
                    took["", said.steps] = said.previous_seconds
        return [
            AuditStep(
                record.time, took.get(place), record.said, reveals.get(place), psis.get(place)
            )
            for record in self.records
            if isinstance(record.said, StepSaid)
            for place in [(record.said.chain, record.said.number)]
        ]


@dataclass
class AuditJob:
    """What a record says about one job.

    Attributes:
        job: its id.
        offers: the offers with this id; only the first one counts.
        decisions, starts, results: in order, each with its time.
    """

    job: str
    offers: list[OfferSaid] = field(default_factory=list)
    decisions: list[tuple[float, DecisionSaid]] = field(default_factory=list)
    starts: list[tuple[float, StartSaid]] = field(default_factory=list)
    results: list[tuple[float, ResultSaid]] = field(default_factory=list)


def runs_of(records: Iterable[Record]) -> list[AuditRun]:
    """The runs in a record, in order."""
    return list(_runs(records))


def _runs(records: Iterable[Record]) -> Iterator[AuditRun]:
    run: AuditRun | None = None
    for record in records:
        if isinstance(record.said, BeginSaid):
            if run is not None:
                yield run
            run = AuditRun(record.time, record.said, [record])
        elif run is not None and isinstance(record.said, StepSaid | RevealSaid | PsiSaid | EndSaid):
            run.records.append(record)
            if isinstance(record.said, EndSaid):
                run.ended, run.end = record.time, record.said
                yield run
                run = None
    if run is not None:
        yield run


def jobs_of(records: Iterable[Record]) -> list[AuditJob]:
    """The jobs in a record, in the order in which each is first named."""
    found: dict[str, AuditJob] = {}
    for record in records:
        said = record.said
        if not isinstance(said, OfferSaid | DecisionSaid | StartSaid | ResultSaid):
            continue
        job = found.setdefault(said.job, AuditJob(said.job))
        match said:
            case OfferSaid():
                job.offers.append(said)
            case DecisionSaid():
                job.decisions.append((record.time, said))
            case StartSaid():
                job.starts.append((record.time, said))
            case ResultSaid():
                job.results.append((record.time, said))
    return list(found.values())
