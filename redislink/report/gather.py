"""Reads audit records, statistics and timelines, and puts together what belongs to one run.

Rules:
- Files may come from other parties: everything read is untrusted, and what redislink would not
  have written is one error that names the file.
- A record that was changed is shown nevertheless, with what is wrong: that is when people look.
- An agent's record has no run; from it come the decisions about the job that began the run.
- Files belong to one run if they name the same session, and if each pair of parties names the same
  epoch, which no other run of the two has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redislink.audit import (
    AuditJob,
    AuditRun,
    AuditStep,
    Verification,
    jobs_of,
    verify_file,
)
from redislink.audit.records import Participant, StartSaid
from redislink.errors import ConfigError
from redislink.files import open_regular
from redislink.observe.account import SUFFIX as STATS_SUFFIX
from redislink.observe.account import RunAccount, account_of_trace, read_account
from redislink.observe.merge import PartyTrace, read_trace
from redislink.observe.record import SUFFIX as TRACE_SUFFIX

AUDIT_SUFFIX: Final = ".audit.jsonl"
_SUFFIXES: Final = (AUDIT_SUFFIX, STATS_SUFFIX, TRACE_SUFFIX)
_FIRST_BYTES: Final = 1 << 20
_MOST_PARTIES: Final = 256


@dataclass
class PartyPart:
    """What is known of one party's part in the run.

    Attributes:
        name: the party.
        record: its audit record, verified; None if there is none.
        run: the run in that record.
        account: its statistics, from its file or else from its timeline; None without either.
        is_timed_by_trace: whether the statistics are those of a timeline, which may be cut and
            knows of no faults.
        trace: its timeline; None if there is none.
        start: how a job began this run; None if none did.
        job: that job.
        agent_record: the record of the agent that tells of it, verified; None if it was not given.
    """

    name: str
    record: Verification | None = None
    run: AuditRun | None = None
    account: RunAccount | None = None
    is_timed_by_trace: bool = False
    trace: PartyTrace | None = None
    start: StartSaid | None = None
    job: AuditJob | None = None
    agent_record: Verification | None = None
    steps: list[AuditStep] = field(default_factory=list)


@dataclass
class Gathered:
    """All that is known of a run.

    Attributes:
        session: its name.
        parties: all parties in rank order, also those of which there is no file.
        participants: what the cluster file says of them, as the records tell it.
        files: the files, each with what it is.
    """

    session: str
    parties: list[PartyPart]
    participants: Mapping[str, Participant]
    files: Sequence[tuple[Path, str]]

    def began(self) -> float:
        """UTC seconds since 1970."""
        return min(self._times(0), default=0.0)

    def ended(self) -> float:
        """UTC seconds since 1970, as far as is known."""
        return max(self._times(1), default=0.0)

    def _times(self, which: int) -> Iterator[float]:
        for part in self.parties:
            if part.run is not None:
                last = part.run.records[-1].time
                yield (part.run.began, part.run.ended or last)[which]
            elif part.account is not None:
                yield part.account.began + which * part.account.seconds


@dataclass(frozen=True)
class _Found:
    """A run that a file tells of."""

    path: Path
    kind: str
    party: str
    session: str
    epochs: Mapping[str, str]
    began: float
    record: Verification | None = None
    run: AuditRun | None = None
    account: RunAccount | None = None
    trace: PartyTrace | None = None
    start: StartSaid | None = None
    job: AuditJob | None = None

    @property
    def is_run(self) -> bool:
        """Whether it tells of a run, not only of the job that began it."""
        return self.start is None


def gather(
    files: Iterable[str | Path],
    *,
    session: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    since: float = 0.0,
) -> Gathered:
    """Read files about one run; without ``session``, about the newest that they tell of.

    Args:
        files: audit records, statistics files and timelines, in any order, or directories in which
            their names end in ``.audit.jsonl``, ``.stats.json`` and ``.trace.jsonl``.
        session: the name of the session.
        keys: the ``signing_key`` of each party of the cluster file, with which records are
            verified; None without one.
        since: runs that began before are left out, UTC seconds since 1970.

    Raises:
        ConfigError: a file cannot be read or is none of these; there is no such session; or the
            files are of different runs.
        AuditError: an audit record cannot be read.
    """
    paths = list(dict.fromkeys(_expand(files)))
    if not paths:
        raise ConfigError(
            "no file to report about: name audit records, statistics or timelines "
            f"(*{', *'.join(_SUFFIXES)})"
        )
    found = [
        [run for run in _read(path, keys) if run.began >= since or not run.is_run] for path in paths
    ]
    named = [run for runs in found for run in runs if run.is_run and session in (None, run.session)]
    if not named:
        which = "run" if session is None else f"run of session {session!r:.80}"
        raise ConfigError(f"{paths[0]}: tells of no {which}: check the path")
    newest = max(named, key=lambda run: run.began)
    chosen = [_of_run(path, runs, newest) for path, runs in zip(paths, found, strict=True)]
    return _put_together(chosen, newest.session)


def _expand(files: Iterable[str | Path]) -> Iterator[Path]:
    for file in map(Path, files):
        if not file.is_dir():
            yield file
            continue
        inside = sorted(path for path in file.iterdir() if path.name.endswith(_SUFFIXES))
        if not inside:
            raise ConfigError(
                f"{file}: there is no file *{', *'.join(_SUFFIXES)} in it: name the files"
            )
        yield from inside


def _read(path: Path, keys: Mapping[str, str | None] | None) -> Iterator[_Found]:
    first = _first_of(path)
    if "redislink_stats" in first:
        account = read_account(path)
        about = (account.party, account.session, account.epochs, account.began)
        yield _Found(path, "statistics", *about, account=account)
    elif "redislink_trace" in first:
        trace = read_trace(path)
        about = (trace.party, trace.session, trace.epochs, trace.wall_ns / 1e9)
        yield _Found(path, "timeline", *about, trace=trace)
    elif "prev" in first:
        record = _verified(path, keys)
        runs = record.runs()
        for run in runs:
            begin = run.begin
            about = (begin.party, begin.session, begin.epochs, run.began)
            yield _Found(path, "audit record", *about, record=record, run=run)
        if not runs:
            yield from _starts_in(path, record)
    else:
        raise ConfigError(
            f"{path}: is neither an audit record nor statistics nor a timeline of redislink: check "
            "the path"
        )


def _verified(path: Path, keys: Mapping[str, str | None] | None) -> Verification:
    record = verify_file(path, keys, needs_head=False)
    if record.is_good:
        return record
    # Its writer may have added a line between two looks at it.
    return verify_file(path, keys, needs_head=False)


def _starts_in(path: Path, record: Verification) -> Iterator[_Found]:
    """The starts of jobs that an agent's record tells of, in order."""
    starts = [(at, start, job) for job in jobs_of(record.records) for at, start in job.starts]
    for at, start, job in sorted(starts, key=lambda each: each[0]):
        found = _Found(path, "agent's record", record.party, start.session, {}, at)
        yield dataclasses.replace(found, record=record, start=start, job=job)


def _first_of(path: Path) -> dict[str, object]:
    """The object in a file's first line; an empty one if there is none."""
    try:
        with open_regular(path) as file:
            told = json.loads(file.readline(_FIRST_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): check the path") from None
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _of_run(path: Path, runs: Sequence[_Found], newest: _Found) -> _Found:
    """The run in a file that is the chosen one."""
    of_session = [run for run in runs if run.session == newest.session]
    for run in reversed(of_session):
        if run.party == newest.party:
            same = not run.epochs or not newest.epochs or run.epochs == newest.epochs
        else:
            here, there = run.epochs.get(newest.party), newest.epochs.get(run.party)
            same = here is None or there is None or here == there
        if same:
            return run
    if of_session:
        raise ConfigError(f"{path} and {newest.path} are of different runs: pass the files of one")
    raise ConfigError(
        f"{path}: tells of no run of session {newest.session}, as {newest.path} does: pass the "
        "files of one run"
    )


def _put_together(chosen: Sequence[_Found], session: str) -> Gathered:
    parts: dict[str, PartyPart] = {}
    seen: dict[tuple[str, str], Path] = {}
    participants: dict[str, Participant] = {}
    for found in chosen:
        other = seen.setdefault((found.party, found.kind), found.path)
        if other is not found.path:
            raise ConfigError(
                f"{other} and {found.path}: both are the {found.kind} of {found.party}: pass one"
            )
        if not found.is_run:
            continue
        for name in _names(found):
            parts.setdefault(name, PartyPart(name))
        part = parts.setdefault(found.party, PartyPart(found.party))
        part.trace = found.trace or part.trace
        part.account = found.account or part.account
        if found.run is not None and found.record is not None:
            part.record, part.run = found.record, found.run
            part.steps = found.run.steps()
            part.start, part.job = _job_of(found.record, found.run)
            for participant in found.run.begin.parties:
                participants.setdefault(participant.name, participant)
    for found in chosen:
        if not found.is_run:
            if found.party not in parts:
                raise ConfigError(
                    f"{found.path}: is of {found.party}, who took no part in this run: pass the "
                    "files of one run"
                )
            part = parts[found.party]
            part.start, part.job, part.agent_record = found.start, found.job, found.record
    if len(parts) > _MOST_PARTIES:
        raise ConfigError(
            f"{chosen[0].path}: names {len(parts):,} parties: redislink wrote none such"
        )
    for part in parts.values():
        if part.account is None and part.trace is not None:
            part.account, part.is_timed_by_trace = account_of_trace(part.trace), True
    files = [
        (found.path, f"{_NAMES.get(found.kind, found.kind)} of {found.party}") for found in chosen
    ]
    return Gathered(session, list(parts.values()), participants, files)


_NAMES: Final = {"agent's record": "audit record of the agent"}


def _names(found: _Found) -> list[str]:
    """All parties, as a file names them."""
    if found.run is not None:
        return [participant.name for participant in found.run.begin.parties]
    if found.account is not None:
        return found.account.parties
    return [] if found.trace is None else found.trace.parties


def _job_of(record: Verification, run: AuditRun) -> tuple[StartSaid | None, AuditJob | None]:
    """The last start of a job before a run of its session, and that job."""
    starts = [
        (at, said, job)
        for job in jobs_of(record.records)
        for at, said in job.starts
        if said.session == run.begin.session and at <= run.began
    ]
    if not starts:
        return None, None
    _, start, job = max(starts, key=lambda each: each[0])
    return start, job
