"""Whether a record is as it was written.

Rules:
- A problem is what no crash can have done: somebody changed the file, or it is not who it says.
- A remark is what a reader must know: a crash, a run without an end, a key that nobody vouches for.
- Everything that the file says is untrusted. One look finds all problems, and stops at none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from redislink.audit.chain import first_of, follows, head_path, is_by, read_head
from redislink.audit.records import (
    VERSION,
    BeginSaid,
    FileSaid,
    MendedSaid,
    Record,
    RevealSaid,
    StepSaid,
    UnknownSaid,
    lines_of,
    parse_line_untrusted,
)
from redislink.audit.runs import AuditRun, jobs_of, runs_of
from redislink.errors import AuditError, ConfigError
from redislink.identity.signing import parse_signing_key
from redislink.text import one_line

_MOST_PROBLEMS: Final = 20
_REVEALS: Final = re.compile(r"[^(]*\.reveal\(")
"""How the text of a step begins that is a reveal."""


@dataclass
class Verification:
    """What is known of a record.

    Attributes:
        path: the file.
        party: whose it says it is; "" if it does not say.
        key: the public half of the key that signs it, ``ed25519:…``; None if nothing does.
        records: the lines that can be read.
        problems: what is wrong, one line each; empty if it is as it was written.
        remarks: what else a reader must know, one line each.
        has_head: whether its head pointer is there.
        digest: of the last line, in hex: it stands for the whole record.
    """

    path: Path
    party: str = ""
    key: str | None = None
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    has_head: bool = False

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def digest(self) -> str:
        """See above; "" if there is no line."""
        return self.records[-1].digest if self.records else ""

    def runs(self) -> list[AuditRun]:
        """The runs in it."""
        return runs_of(self.records)


def verify_file(
    path: str | Path, keys: Mapping[str, str | None] | None = None, *, needs_head: bool = True
) -> Verification:
    """Verify a record.

    Args:
        path: the file; its head pointer is looked for next to it.
        keys: the ``signing_key`` of each party and driver in the cluster file, None for one that
            has none; None without a cluster file.
        needs_head: whether a head pointer that is missing is a problem, or only a remark.

    Raises:
        AuditError: the file cannot be read.
    """
    found = Verification(Path(path))
    lines = list(lines_of(path))
    torn = len(lines.pop()[0]) if lines and not lines[-1][1] else 0
    key = _check_first(found, lines[0][0] if lines else b"")
    if found.problems:  # nothing else can be judged
        return found
    _check_lines(found, [line for line, _ in lines], key)
    _check_head(found, key, needs_head=needs_head)
    if torn:
        found.remarks.append(
            f"a last line of {torn} bytes has no end: a crash tore it, and it does not count"
        )
    _check_key(found, keys)
    if found.is_good:  # else the story has holes anyway
        _check_story(found)
    if len(found.problems) > _MOST_PROBLEMS:
        more = len(found.problems) - _MOST_PROBLEMS
        found.problems[_MOST_PROBLEMS:] = [f"and {more} more"]
    return found


def _check_first(found: Verification, line: bytes) -> bytes | None:
    """Take up whose record it is; return the key that signs it."""
    try:
        _, said = first_of(line)
        key = None if said.key is None else parse_signing_key(said.key)
    except (AuditError, ConfigError):
        found.problems.append("line 1: the beginning is missing or was changed")
        return None
    found.party, found.key = one_line(said.party, 80), said.key
    if said.version != VERSION:
        found.problems.append(
            f"line 1: has format {said.version}; this version of redislink knows {VERSION} only"
        )
    return key


def _check_lines(found: Verification, lines: list[bytes], key: bytes | None) -> None:
    """Check each line, and that it follows the one before."""
    parsed: list[Record | None] = []
    for line in lines:
        try:
            parsed.append(parse_line_untrusted(line))
        except AuditError:
            parsed.append(None)
    numbers = {record.n for record in parsed if record is not None}
    before: Record | None = None
    is_known = True  # whether the line before is as it was written
    for place, record in enumerate(parsed, 1):
        problem = ""
        is_theirs = record is not None and is_by(record, key)
        if record is None:
            problem = "is no line of an audit record: it was changed"
        elif not is_theirs:
            problem = "does not have its writer's signature: it was changed, or somebody added it"
        elif before is None:
            if place > 1 and is_known:
                problem = "follows no line"
        elif not follows(record, before):
            problem = _why_not(record, before, numbers, is_known=is_known)
        if problem:
            found.problems.append(f"line {place}: {problem}")
        if record is not None:
            found.records.append(record)
            before = record
        is_known = is_theirs


def _why_not(record: Record, before: Record, numbers: set[int], *, is_known: bool) -> str:
    """Why a line does not follow another; "" if that has been said of the other already."""
    due = before.n + 1
    if record.line == before.line:
        return "is the line before once more"
    if record.n > due and not numbers & set(range(due, min(record.n, due + len(numbers) + 1))):
        gone = f"line {due + 1} is" if record.n == due + 1 else f"lines {due + 1} to {record.n} are"
        return f"was written as line {record.n + 1}: {gone} missing" if is_known else ""
    if record.n != due:
        return (
            f"was written as line {record.n + 1}, and stands where line {due + 1} is due: lines "
            "were swapped or doubled"
        )
    return "does not follow the line before, which was changed or replaced" if is_known else ""


def _check_head(found: Verification, key: bytes | None, *, needs_head: bool) -> None:
    try:
        head = read_head(found.path, key)
    except AuditError as error:
        found.has_head = True
        found.problems.append(str(error))
        return
    if head is None:
        place = head_path(found.path).name
        said = f"its head pointer {place} is missing: lines may be missing at the end"
        (found.problems if needs_head else found.remarks).append(said)
        return
    found.has_head = True
    last = max((record.n for record in found.records), default=-1)
    if head.n > last:
        count = head.n - last
        found.problems.append(
            f"the last {count} lines were removed" if count > 1 else "the last line was removed"
        )
    elif all(record.digest != head.digest for record in found.records if record.n == head.n):
        found.problems.append(f"line {head.n + 1} is not the one that was written there")


def _check_key(found: Verification, keys: Mapping[str, str | None] | None) -> None:
    name = found.party
    if found.key is None:
        if name:
            found.remarks.append(
                "it is not signed: whoever can write the file can write all of it anew"
            )
        if keys is not None and keys.get(name) is not None:
            found.problems.append(
                f"it is not signed, but the cluster file has a signing_key of {name}"
            )
    elif keys is None:
        found.remarks.append(
            f"it is signed with {found.key}; whether that key is {name}'s, a cluster file says"
        )
    elif name not in keys:
        found.problems.append(f"the cluster file has no party or driver {name}")
    elif keys[name] is None:
        found.remarks.append(
            f"it is signed with {found.key}; the cluster file has no signing_key of {name} to "
            "compare"
        )
    elif keys[name] != found.key:
        found.problems.append(f"it is signed with {found.key}, which is not {name}'s signing_key")


def _check_story(found: Verification) -> None:
    """What the lines say, in itself."""
    for record in found.records:
        said = record.said
        if isinstance(said, BeginSaid) and said.party != found.party:
            party = one_line(said.party, 80)
            found.problems.append(f"line {record.n + 1}: a run of {party} is in its record")
        if isinstance(said, MendedSaid):
            found.remarks.append(_mended(record, said))
        if isinstance(said, FileSaid) and record.n:
            found.problems.append(f"line {record.n + 1}: another record begins in it")
        if isinstance(said, UnknownSaid):
            found.remarks.append(
                f"line {record.n + 1} is of a kind that this version of redislink does not know: "
                f"{one_line(record.kind, 40)}"
            )
    for run in found.runs():
        name = f"the run of {one_line(run.begin.session, 64)} that began {when(run.began)}"
        found.problems += [f"{name}: {gap}" for gap in _gaps(run)]
        if run.end is None:
            found.remarks.append(
                f"{name} has no end: it goes on, or its process was killed, or the tail is missing"
            )
    for job in jobs_of(found.records):
        accepted = any(said.action == "accept" for _, said in job.decisions)
        if job.starts and not accepted:
            found.remarks.append(
                f"job {one_line(job.job, 20)} was started, and no decision for it stands here"
            )


def _mended(record: Record, said: MendedSaid) -> str:
    at = when(record.time)
    if said.why == "torn":
        return f"{at}: {said.bytes} bytes that a crash had torn off the end were removed"
    return f"{at}: the head pointer was missing when the file was opened: lines may be missing"


def _gaps(run: AuditRun) -> Iterator[str]:
    """Steps that are missing between others, and reveals that do not say what."""
    last: dict[str, int] = {}
    told: set[tuple[str, int]] = set()
    for record in run.records:
        if isinstance(record.said, RevealSaid):
            told.add((record.said.chain, record.said.number))
    steps = [record.said for record in run.records if isinstance(record.said, StepSaid)]
    for said in steps:
        chain = f" of {one_line(said.chain, 80)}" if said.chain else ""
        due = last.get(said.chain, 0) + 1
        if said.number != due:
            yield f"step {said.number}{chain} stands where {due} is due"
        last[said.chain] = said.number
        is_last = said is steps[-1] and (run.end is None or run.end.how != "closed")
        if _REVEALS.match(said.text) and (said.chain, said.number) not in told and not is_last:
            yield f"step {said.number}{chain} reveals, and no line says to whom"


def when(seconds: float) -> str:
    """A time for people: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
