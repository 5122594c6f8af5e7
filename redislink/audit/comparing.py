"""Whether the records of two organisations tell the same story.

Rules:
- A difference is what cannot be if both are honest and complete: another program, step, argument or
  receiver, a run or a line that only one has. A remark is what explains itself, or proves nothing.
- Runs belong together by their epoch, which only the two of them share; where there is none (all
  parties are threads of one process), by their order.
- Each digest of a step covers all steps before it, so the first one that differs tells where the
  two went apart, and nothing after it is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redislink.audit.records import EndSaid, RevealSaid, StartSaid
from redislink.audit.runs import AuditJob, AuditRun, AuditStep, jobs_of
from redislink.audit.verifying import Verification, when
from redislink.errors import AuditError
from redislink.text import one_line

UNKNOWN: Final = (
    "That two records agree does not tell which values went in, what a party did besides the "
    "calls of the session, or what two parties have left out together."
)
"""What a comparison cannot know."""
_DIGITS: Final = 12
_OFFERED: Final = (
    "driver", "program", "program_name", "arguments", "issued", "expires", "parties", "devices",
    "data", "results",
)  # fmt: skip
_STARTED: Final = ("session", "program", "arguments", "parties", "devices")


@dataclass
class Comparison:
    """What two records say of each other.

    Attributes:
        parties: the two.
        agreed: what both tell alike, one line for each run and job.
        differences: what they tell differently, one line each.
        remarks: what else a reader must know, one line each.
    """

    parties: tuple[str, str]
    agreed: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def is_same_story(self) -> bool:
        """Whether the two differ in nothing, and have something in common."""
        return not self.differences


def compare_records(mine: Verification, theirs: Verification) -> Comparison:
    """Hold two records against each other.

    Args:
        mine, theirs: of two parties, from `redislink.audit.verify_file`.

    Raises:
        AuditError: both are of the same party.
    """
    if mine.party == theirs.party:
        raise AuditError(
            f"audit records {mine.path} and {theirs.path}: both are {mine.party}'s: compare those "
            "of two parties"
        )
    found = Comparison((mine.party, theirs.party))
    for record in (mine, theirs):
        who = record.party or Path(record.path).name
        found.differences += [f"{who}'s record is damaged: {what}" for what in record.problems]
        found.remarks += [f"{who}'s record: {what}" for what in record.remarks]
    pairs = _pair_runs(found, mine, theirs)
    for one, other in pairs:
        _compare_runs(found, one, other, theirs.key, mine.key)
    common = _compare_jobs(found, jobs_of(mine.records), jobs_of(theirs.records))
    if not pairs and not common:
        found.differences.append("the two records have no run and no job in common")
    return found


def _pair_runs(
    found: Comparison, mine: Verification, theirs: Verification
) -> list[tuple[AuditRun, AuditRun]]:
    """The runs of both that belong together; of the others it is said which they are."""
    me, them = found.parties
    left = theirs.runs()
    pairs = []
    for run in mine.runs():
        if them not in _names(run):
            continue
        epoch = run.begin.epochs.get(them)
        other = next(
            (
                each
                for each in left
                if each.begin.session == run.begin.session
                and each.begin.epochs.get(me) == epoch
                and me in _names(each)
            ),
            None,
        )
        if other is None:
            _miss(found, run, me, them, theirs)
        else:
            left.remove(other)
            pairs.append((run, other))
    for run in left:
        if me in _names(run):
            _miss(found, run, them, me, mine)
    return pairs


def _names(run: AuditRun) -> list[str]:
    return [party.name for party in run.begin.parties]


def _miss(found: Comparison, run: AuditRun, who: str, other: str, theirs: Verification) -> None:
    name = _run_name(run)
    if all(each.begin.session != run.begin.session for each in theirs.runs()):
        found.remarks.append(f"{other}'s record has nothing of {who}'s {name}: is it in another?")
    else:
        killed = (
            "" if run.end and run.end.how == "closed" else ", unless it was killed as it joined"
        )
        found.differences.append(f"{who}'s record has the {name}, and {other}'s does not{killed}")


def _run_name(run: AuditRun) -> str:
    return f"run of {one_line(run.begin.session, 64)} that began {when(run.began)}"


def _compare_runs(
    found: Comparison, one: AuditRun, other: AuditRun, their_key: str | None, my_key: str | None
) -> None:
    me, them = found.parties
    name = _run_name(one)
    before = len(found.differences)
    different = [
        *_begins(me, them, one, other),
        *_keys(them, one, their_key),
        *_keys(me, other, my_key),
    ]
    mine, theirs = _by_place(one), _by_place(other)
    chains = list(dict.fromkeys(chain for chain, _ in (*mine, *theirs)))
    for chain in chains:
        different += _chains(found, chain, (one, mine), (other, theirs))
    different += _ends(me, them, one.end, other.end)
    found.differences += [f"{name}: {what}" for what in different]
    found.remarks += [f"{name}: {what}" for what in _notes(me, them, one, other)]
    if len(found.differences) == before:
        reveals = sum(step.reveal is not None for step in mine.values())
        found.agreed.append(
            f"{name}: {len(mine)} steps, {reveals} reveals, cluster file "
            f"{one_line(one.begin.cluster, _DIGITS)}, {_how(one.end)}"
        )


def _begins(me: str, them: str, one: AuditRun, other: AuditRun) -> Iterator[str]:
    a, b = one.begin, other.begin
    if a.cluster != b.cluster:
        yield (
            f"{me} has cluster file {one_line(a.cluster, _DIGITS)}, {them} has "
            f"{one_line(b.cluster, _DIGITS)}"
        )
    if a.security != b.security:
        yield f"{me} has security {one_line(a.security, 20)}, {them} {one_line(b.security, 20)}"
    if a.script and b.script and a.script.sha256 != b.script.sha256:
        mine, theirs = (
            f"{one_line(script.name, 80)} (SHA-256 {one_line(script.sha256, _DIGITS)})"
            for script in (a.script, b.script)
        )
        yield f"{me} ran {mine}, {them} ran {theirs}"
    shown = {party.name: party.fingerprint for party in a.parties}
    for party in b.parties:
        if shown.get(party.name) != party.fingerprint:
            yield f"the two have other public keys for {one_line(party.name, 64)}"


def _keys(party: str, run: AuditRun, key: str | None) -> Iterator[str]:
    """Whether a record is signed with the key that the other party knows of its writer."""
    known = next((each.signing_key for each in run.begin.parties if each.name == party), None)
    if known is not None and known != key:
        yield f"{party}'s record is not signed with the signing_key that the other one has of it"


def _by_place(run: AuditRun) -> dict[tuple[str, int], AuditStep]:
    return {(step.said.chain, step.said.number): step for step in run.steps()}


_Side = tuple[AuditRun, dict[tuple[str, int], AuditStep]]


def _chains(found: Comparison, chain: str, one: _Side, other: _Side) -> Iterator[str]:
    """How the steps of one chain differ."""
    me, them = found.parties
    of = f" of {one_line(chain, 80)}" if chain else ""
    mine = {number: step for (name, number), step in one[1].items() if name == chain}
    theirs = {number: step for (name, number), step in other[1].items() if name == chain}
    for number in sorted(mine.keys() & theirs.keys()):
        a, b = mine[number], theirs[number]
        where = f"step {number}{of}"
        yield from (f"{where}: {what}" for what in _tellings(me, them, a, b))
        if (a.said.digest, a.said.text) != (b.said.digest, b.said.text):
            yield f"{where}: {_calls(me, them, a, b)}"
            return
    last, their_last = max(mine, default=0), max(theirs, default=0)
    if last == their_last:
        return
    shorter, longer = (me, them) if last < their_last else (them, me)
    short_run = one[0] if last < their_last else other[0]
    said = (
        f"{longer} made {max(last, their_last)} steps{of}, {shorter} only {min(last, their_last)}"
    )
    if one[0].end and other[0].end and one[0].end.how == other[0].end.how == "closed":
        yield said
    else:
        found.remarks.append(f"{_run_name(short_run)}: {said}: {_how(short_run.end)}")


def _tellings(me: str, them: str, one: AuditStep, other: AuditStep) -> Iterator[str]:
    """How the two tell differently what a step revealed."""
    a, b = one.reveal, other.reveal
    if a is not None and b is not None:
        if a.receivers != b.receivers:
            yield f"{me} revealed to {_listed(a.receivers)}, {them} to {_listed(b.receivers)}"
        if (a.shapes, a.dtypes, a.device) != (b.shapes, b.dtypes, b.device):
            yield f"{me} revealed {_values(a)}, {them} {_values(b)}"
    elif a is not None or b is not None:
        has, lacks = (me, them) if a is not None else (them, me)
        if one.said.text == other.said.text:
            yield f"{has}'s record says what it revealed to whom, {lacks}'s does not"
    if (one.psi is None) == (other.psi is None) and one.psi != other.psi:
        a_psi, b_psi = one.psi, other.psi
        if a_psi and b_psi and (a_psi.parties, a_psi.protocol) != (b_psi.parties, b_psi.protocol):
            yield (
                f"{me} intersected for {_listed(a_psi.parties)}, {them} for "
                f"{_listed(b_psi.parties)}"
            )


def _calls(me: str, them: str, one: AuditStep, other: AuditStep) -> str:
    a, b = one.said, other.said
    if a.text != b.text:
        return f"{me} called {one_line(a.text, 200)}, {them} called {one_line(b.text, 200)}"
    theirs = dict(b.parts)
    differ = [label for label, short in a.parts if theirs.get(label, short) != short]
    what = one_line(", ".join(differ), 200) or "what it was called with, or a step before"
    return f"both called {one_line(a.text, 200)}; what differs: {what}"


def _ends(me: str, them: str, one: EndSaid | None, other: EndSaid | None) -> Iterator[str]:
    if one and other and (one.how == "closed") != (other.how == "closed"):
        yield f"they ended differently: {me}'s {_how(one)}, {them}'s {_how(other)}"


def _notes(me: str, them: str, one: AuditRun, other: AuditRun) -> Iterator[str]:
    if one.begin.versions != other.begin.versions:
        yield (
            f"{me} had {one_line(one.begin.versions, 200)}, {them} "
            f"{one_line(other.begin.versions, 200)}"
        )
    if not (one.end and other.end and one.end.how == other.end.how == "closed"):
        return
    for who, whom, a, b in ((me, them, one.end, other.end), (them, me, other.end, one.end)):
        sent, received = a.peers.get(whom), b.peers.get(who)
        if (
            sent
            and received
            and (sent.messages_sent, sent.bytes_sent)
            != (
                received.messages_received,
                received.bytes_received,
            )
        ):
            yield (
                f"{who} sent {whom} {sent.messages_sent} messages ({sent.bytes_sent} bytes), and "
                f"{whom} received {received.messages_received} ({received.bytes_received} bytes)"
            )


def _how(end: EndSaid | None) -> str:
    if end is None:
        return "has no end"
    by = f" by {one_line(end.by, 64)}" if end.by else ""
    error = f" ({one_line(end.error, 80)}{by})" if end.error else ""
    return f"{end.how}{error}"


def _listed(names: Iterable[str]) -> str:
    return one_line(", ".join(names), 200)


def _values(reveal: RevealSaid) -> str:
    shown = [f"{dtype}{shape}" for dtype, shape in zip(reveal.dtypes, reveal.shapes, strict=False)]
    return one_line(f"{', '.join(shown)} of {reveal.device}", 200)


# -- jobs --------------------------------------------------------------------------------------


def _compare_jobs(found: Comparison, mine: list[AuditJob], theirs: list[AuditJob]) -> int:
    """Compare the jobs that both name; return how many these are."""
    me, them = found.parties
    others = {job.job: job for job in theirs}
    common = 0
    for job in mine:
        other = others.pop(job.job, None)
        if other is None:
            _miss_job(found, job, me, them)
            continue
        common += 1
        name = f"job {one_line(job.job, 20)}"
        different = list(_jobs(found, name, job, other))
        found.differences += [f"{name}: {what}" for what in different]
        if not different:
            found.agreed.append(f"{name}: {_job_summary(job)}")
    for job in others.values():
        _miss_job(found, job, them, me)
    return common


def _miss_job(found: Comparison, job: AuditJob, who: str, other: str) -> None:
    parties = [said.parties for said in job.offers] + [said.parties for _, said in job.starts]
    if not any(other in named for named in parties):
        return
    said = f"job {one_line(job.job, 20)}: {who}'s record has it, and {other}'s does not"
    (found.differences if job.starts else found.remarks).append(said)


def _jobs(found: Comparison, name: str, one: AuditJob, other: AuditJob) -> Iterator[str]:
    me, them = found.parties
    if one.offers and other.offers:
        a, b = one.offers[0], other.offers[0]
        for what in _OFFERED:
            if getattr(a, what) != getattr(b, what):
                yield f"{me} and {them} were offered another {what.replace('_', ' ')}"
    if one.starts and other.starts:
        yield from _starts(found, name, one.starts[-1][1], other.starts[-1][1])
    for who, job, whom, others in ((me, one, them, other), (them, other, me, one)):
        if job.starts and not any(said.action == "accept" for _, said in others.decisions):
            yield f"{who} started it, and {whom}'s record has no word that {whom} accepted it"


def _starts(found: Comparison, name: str, one: StartSaid, other: StartSaid) -> Iterator[str]:
    me, them = found.parties
    for what in _STARTED:
        a, b = getattr(one, what), getattr(other, what)
        if a != b:
            yield (
                f"{me} started it with {what} {one_line(str(a), 80)}, {them} with "
                f"{one_line(str(b), 80)}"
            )
    for data in sorted(one.data.keys() & other.data.keys()):
        if one.data[data] != other.data[data]:
            found.remarks.append(
                f"{name}: data set {one_line(data, 64)} is another file at {me} than at {them}, as "
                "it is if each has its own"
            )


def _job_summary(job: AuditJob) -> str:
    decided = ", ".join(
        f"{said.action} by {said.by}{f' {one_line(said.who, 40)}' if said.who else ''}"
        for _, said in job.decisions
    )
    program = job.starts[-1][1].program if job.starts else ""
    return f"{one_line(program, 20) or 'not started'}; here: {decided or 'no decision'}"
