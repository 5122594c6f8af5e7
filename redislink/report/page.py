"""What stands on the page, section by section, as texts and figures that a template lays out.

Rules: nothing here is HTML, except what `charts` draws, which holds no text of anybody else. All
that somebody else wrote goes through `words.said`; the template escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redislink._version import __version__
from redislink.audit import AuditStep, Verification
from redislink.observe.account import PeerAccount
from redislink.report import charts, words
from redislink.report.gather import Gathered, PartyPart
from redislink.report.words import said

_MOST_ROWS: Final = 1000
_FEW_STEPS: Final = 12
"""Up to so many are shown at once; a longer table is unfolded."""
_MOST_LANES: Final = 64
_LONGEST: Final = 1e9
"""Seconds; what claims to have lasted longer is not drawn."""


@dataclass(frozen=True)
class Lane:
    """A party's strip in a chart: SVG for wide and for narrow screens."""

    name: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Chart:
    """Strips with one time axis.

    Attributes:
        legend: the names of the series, in the order of their colours.
    """

    legend: Sequence[str]
    lanes: Sequence[Lane]


@dataclass(frozen=True)
class Table:
    """Headings and rows of texts.

    Attributes:
        numeric: the columns, from 0, that hold figures.
        code: the columns that hold digests and the like.
        more: how many rows were left out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()
    more: int = 0


@dataclass(frozen=True)
class Cell:
    """What one party sent another; ``heat`` is its part of the largest, from 0 to 1."""

    bytes: str
    messages: str
    heat: float


@dataclass
class Page:
    """All of it; None or an empty list where nothing is known."""

    title: str
    session: str
    verdict: str
    is_good: bool
    when: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    parties: Table
    reveals: Table | None
    program: list[tuple[str, str]]
    data: Table | None
    decisions: Table | None
    steps_chart: Chart | None
    steps: Table | None
    steps_unfolded: bool
    times_chart: Chart | None
    times: Table | None
    waits: Table | None
    names: list[str]
    traffic: list[list[Cell | None]] | None
    traffic_unknown: list[str]
    faults: Table | None
    faults_text: str
    files: Table
    remarks: list[str]
    version: str = __version__


def make_page(run: Gathered) -> Page:
    """Put the page together.

    Args:
        run: what is known.

    Raises:
        ConfigError: ``redislink[report]`` is not installed.
    """
    parts = run.parties
    names = [said(part.name, 64) for part in parts]
    recorded = [part for part in parts if part.run is not None]
    verdict, is_good = _verdict(recorded, parts)
    steps = _merged_steps(recorded)
    reveals = _reveals(recorded)
    faults, faults_text = _faults(parts)
    traffic, unknown = _traffic(parts)
    warnings = [
        f"{whose} is not to be trusted: {said(problem)}"
        for whose, record in _records(parts)
        for problem in record.problems
    ]
    warnings += _contradictions(recorded)
    if reveals is not None and len({row[0] for row in reveals.rows}) < len(reveals.rows):
        warnings.append("The parties' records differ in what was revealed to whom")
    return Page(
        title=f"Run of {said(run.session, 64)}",
        session=said(run.session, 64),
        verdict=verdict,
        is_good=is_good,
        when=_when(run),
        facts=_facts(run, recorded, steps, reveals, has_traffic=traffic is not None),
        warnings=warnings,
        parties=_parties(run),
        reveals=reveals,
        program=_program(recorded),
        data=_data(recorded),
        decisions=_decisions(recorded),
        steps_chart=_steps_chart(run, recorded),
        steps=steps,
        steps_unfolded=steps is not None and len(steps.rows) <= _FEW_STEPS,
        times_chart=_times_chart(parts),
        times=_times(parts),
        waits=_waits(parts),
        names=names,
        traffic=traffic,
        traffic_unknown=unknown,
        faults=faults,
        faults_text=faults_text,
        files=_files(run),
        remarks=[
            f"{whose}: {said(remark)}"
            for whose, record in _records(parts)
            for remark in record.remarks
        ]
        + _cuts(parts),
    )


def _records(parts: Sequence[PartyPart]) -> Iterator[tuple[str, Verification]]:
    """All audit records, and whose each is."""
    for part in parts:
        if part.record is not None:
            yield f"{said(part.name, 64)}'s audit record", part.record
        if part.agent_record is not None:
            yield f"The audit record of {said(part.name, 64)}'s agent", part.agent_record


# -- the top -------------------------------------------------------------------------------------


def _verdict(recorded: Sequence[PartyPart], parts: Sequence[PartyPart]) -> tuple[str, bool]:
    """How the run ended in one sentence, and whether all is well."""
    if not recorded:
        return "How it ended is not known: there is no audit record", True
    ends = {part.name: part.run.end for part in recorded if part.run is not None}
    bad = {name: end for name, end in ends.items() if end is not None and end.how != "closed"}
    if bad:
        # A party that blames nobody is the cause, if there is one.
        cause = next((name for name, end in bad.items() if not end.by), next(iter(bad)))
        return f"{said(cause, 64)}: {words.how_ended(bad[cause])}", False
    open_ = [name for name, end in ends.items() if end is None]
    if open_:
        return f"No end is recorded by {words.listed(open_)}", False
    if len(ends) < len(parts):
        return f"Ended in good order, as {words.listed(list(ends))} recorded", True
    return "Ended in good order at all parties", True


def _when(run: Gathered) -> str:
    began, ended = run.began(), run.ended()
    return f"{words.moment(began)}, {words.duration(ended - began)}"


def _facts(
    run: Gathered,
    recorded: Sequence[PartyPart],
    steps: Table | None,
    reveals: Table | None,
    *,
    has_traffic: bool,
) -> list[tuple[str, str]]:
    facts = [
        (words.duration(run.ended() - run.began()), "duration"),
        (words.count(len(run.parties)), "parties"),
    ]
    if recorded:
        number = len(steps.rows) + steps.more if steps is not None else 0
        facts.append((words.count(number), "step" if number == 1 else "steps"))
        number = len({row[0] for row in reveals.rows}) + reveals.more if reveals is not None else 0
        facts.append((words.count(number), "reveal" if number == 1 else "reveals"))
    if has_traffic:
        sent = sum(
            pair[0]
            for one in run.parties
            for other in run.parties
            if (pair := _sent(one, other)) is not None
        )
        facts.append((words.size(sent), "exchanged"))
    return facts


def _contradictions(recorded: Sequence[PartyPart]) -> list[str]:
    """What the records tell differently, as far as this page shows it."""
    found = []
    alike: tuple[tuple[str, Callable[[PartyPart], Any]], ...] = (
        ("cluster files", lambda part: part.run and part.run.begin.cluster),
        ("programs", lambda part: part.start and part.start.program),
        ("arguments", lambda part: part.start and part.start.arguments),
    )
    for what, of in alike:
        if len({value for part in recorded if (value := of(part)) is not None}) > 1:
            found.append(f"The parties' records name different {what}")
    texts: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for part in recorded:
        for step in part.steps:
            place = (step.said.chain, step.said.number)
            texts.setdefault(place, set()).add((step.said.text, step.said.digest))
    for (chain, number), told in texts.items():
        if len(told) > 1:
            where = f" of {said(chain, 64)}" if chain else ""
            found.append(f"The parties' records differ from step {number}{where} on")
            break
    return found


# -- who, what, to whom --------------------------------------------------------------------------


def _parties(run: Gathered) -> Table:
    rows = []
    for part in run.parties:
        known = run.participants.get(part.name)
        key = known.fingerprint if known is not None and known.fingerprint else None
        rows.append(
            [
                said(part.name, 64),
                said(key, 100) if key else "no key",
                _record_state(part),
                words.how_ended(part.run.end) if part.run is not None else words.NONE,
            ]
        )
    head = ("Party", "Fingerprint of its key", "Audit record", "Its run ended")
    return Table(head, rows, code=frozenset({1}))


def _record_state(part: PartyPart) -> str:
    if part.record is None:
        return "not given"
    if part.record.problems:
        return "not to be trusted"
    if part.record.key is None:
        return "chained, not signed"
    return "as it was written, signed"


def _reveals(recorded: Sequence[PartyPart]) -> Table | None:
    if not recorded:
        return None
    rows: dict[tuple[str, ...], list[str]] = {}
    for part in recorded:
        for step in part.steps:
            for told in _revealed_in(step):
                rows.setdefault(tuple(told), []).append(part.name)
    # If records differ, each row says who tells it.
    places: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        places.setdefault(row[0], set()).add(row)
    shown = []
    for row, tellers in rows.items():
        what = row[3]
        if len(places[row[0]]) > 1:
            what += f" (as {words.listed(tellers)} recorded)"
        shown.append([row[0], row[1], row[2], what])
    head = ("Step", "Device", "Who learned it", "What, without its values")
    return Table(head, shown[:_MOST_ROWS], more=max(0, len(shown) - _MOST_ROWS))


def _revealed_in(step: AuditStep) -> list[list[str]]:
    place = _place(step)
    if step.reveal is not None:
        what = words.arrays(step.reveal.shapes, step.reveal.dtypes)
        again = ", answered from the journal" if step.reveal.from_journal else ""
        whom = words.listed(step.reveal.receivers)
        return [[place, said(step.reveal.device, 64), whom or "nobody", what + again]]
    if step.psi is not None:
        what = f"which of its own keys the other has, and its number of rows ({step.psi.protocol})"
        return [[place, "intersection", words.listed(step.psi.parties), said(what)]]
    return []


def _place(step: AuditStep) -> str:
    chain = f"{said(step.said.chain, 64)} " if step.said.chain else ""
    return f"{chain}{step.said.number}"


def _program(recorded: Sequence[PartyPart]) -> list[tuple[str, str]]:
    rows: dict[tuple[str, str], list[str]] = {}

    def tell(what: str, value: str | None, part: PartyPart) -> None:
        if value:
            rows.setdefault((what, said(value)), []).append(part.name)

    for part in recorded:
        if part.run is None:
            continue
        begin = part.run.begin
        if part.start is not None:
            tell("Job", part.start.job, part)
            tell("Program", _named(part.start.program_name, part.start.program), part)
            tell("Arguments, their digest", part.start.arguments, part)
        elif begin.script is not None:
            tell("Program", _named(begin.script.name, f"sha256:{begin.script.sha256}"), part)
        tell("Cluster file, its digest", begin.cluster, part)
        tell("Security", _SECURITY.get(begin.security, begin.security), part)
        tell("Versions", begin.versions, part)
        if begin.resumed_after:
            tell("Went on from a journal", f"after step {begin.resumed_after}", part)
        if part.start is not None and part.start.attempt > 1:
            tell("Attempt", str(part.start.attempt), part)
    everybody = len(recorded)
    return [
        (what, value if len(who) == everybody else f"{value} (at {words.listed(who)})")
        for (what, value), who in sorted(rows.items(), key=lambda row: _ORDER.index(row[0][0]))
    ]


_SECURITY: Final = {
    "sealed": "sealed: the broker saw names, tags, sizes and times only",
    "none": "none: the broker saw every message",
}
_ORDER: Final = (
    "Job", "Program", "Arguments, their digest", "Cluster file, its digest", "Security",
    "Versions", "Went on from a journal", "Attempt",
)  # fmt: skip


def _named(name: str, digest: str) -> str:
    return f"{name}, {digest}" if name else digest


def _data(recorded: Sequence[PartyPart]) -> Table | None:
    rows = [
        [said(part.name, 64), said(name, 100), said(digest or "not read", 100)]
        for part in recorded
        if part.start is not None
        for name, digest in part.start.data.items()
    ]
    if not rows:
        return None
    return Table(
        ("Party", "Data set", "Digest of its file"), rows[:_MOST_ROWS], code=frozenset({2})
    )


def _decisions(recorded: Sequence[PartyPart]) -> Table | None:
    rows = [
        [
            said(part.name, 64),
            words.moment(at),
            _ACTIONS.get(decision.action, decision.action),
            f"rule {said(decision.rule, 80)}"
            if decision.rule
            else said(f"{_BY.get(decision.by, decision.by)} {decision.who}", 100),
            said(decision.reason),
        ]
        for part in recorded
        if part.job is not None
        for at, decision in part.job.decisions
    ]
    if not rows:
        return None
    return Table(("Party", "When", "Decision", "By", "Reason"), rows[:_MOST_ROWS])


_ACTIONS: Final = {
    "accept": "accepted", "ask": "a person was asked", "refuse": "refused", "cancel": "cancelled",
}  # fmt: skip
_BY: Final = {"policy": "the policy", "person": "", "driver": "the driver", "peer": "party"}


# -- steps ---------------------------------------------------------------------------------------


def _merged_steps(recorded: Sequence[PartyPart]) -> Table | None:
    """One row for each step, with what it took at each party."""
    if not recorded:
        return None
    rows: dict[tuple[str, str], dict[str, AuditStep]] = {}
    for part in recorded:
        for step in part.steps:
            rows.setdefault((_place(step), said(step.said.text)), {})[part.name] = step
    shown = [
        [place, text, *(_took(at.get(part.name)) for part in recorded)]
        for (place, text), at in rows.items()
    ]
    head = ["Step", "Call", *(said(part.name, 64) for part in recorded)]
    numeric = frozenset(range(2, len(head)))
    return Table(head, shown[:_MOST_ROWS], numeric, frozenset({1}), max(0, len(shown) - _MOST_ROWS))


def _took(step: AuditStep | None) -> str:
    if step is None:
        return words.NONE
    return "journal" if step.said.from_journal else words.duration(step.seconds)


def _steps_chart(run: Gathered, recorded: Sequence[PartyPart]) -> Chart | None:
    zero = run.began()
    end = run.ended() - zero
    if not recorded or not 0 < end < _LONGEST or not any(part.steps for part in recorded):
        return None
    bars = {}
    for part in recorded[:_MOST_LANES]:
        series: list[list[tuple[float, float]]] = [[], [], []]
        last = part.run.ended if part.run is not None and part.run.ended else run.ended()
        for step in part.steps:
            took = step.seconds if step.seconds is not None else last - step.began
            began = min(max(step.began - zero, 0.0), end)
            ended = min(max(began, began + took), end) if math.isfinite(took) else end
            series[_kind(step)].append((began, ended))
        bars[said(part.name, 64)] = series
    return _chart(
        (
            "computing and exchanging shares",
            "revealing or intersecting",
            "answered from the journal",
        ),
        bars,
        end,
    )


def _kind(step: AuditStep) -> int:
    if step.said.from_journal:
        return 2
    return 1 if step.reveal is not None or step.psi is not None else 0


def _chart(legend: Sequence[str], bars: Mapping[str, Sequence[charts.Bars]], end: float) -> Chart:
    used = [any(series[number] for series in bars.values()) for number in range(len(legend))]
    lanes = []
    for number, (name, series) in enumerate(bars.items(), 1):
        is_last = number == len(bars)
        wide, narrow = (
            charts.strip(series, end, width, "bars on a time axis", has_axis=is_last)
            for width in (charts.WIDE, charts.NARROW)
        )
        lanes.append(Lane(name, wide, narrow))
    shown = [text if is_used else "" for text, is_used in zip(legend, used, strict=True)]
    return Chart(shown, lanes)


# -- time ----------------------------------------------------------------------------------------


def _times_chart(parts: Sequence[PartyPart]) -> Chart | None:
    accounts = [part.account for part in parts[:_MOST_LANES] if part.account is not None]
    end = max((account.seconds for account in accounts), default=0.0)
    if not 0 < end < _LONGEST:
        return None
    bars = {}
    for account in accounts:
        lengths = (account.computing, account.sending, account.waiting)
        places = [min(sum(lengths[:number]), end) for number in range(4)]
        bars[said(account.party, 64)] = [
            [(places[number], places[number + 1])] if lengths[number] > 0 else []
            for number in range(3)
        ]
    return _chart(("computing", "sending", "waiting"), bars, end)


def _cuts(parts: Sequence[PartyPart]) -> list[str]:
    """What timelines do not cover, where the page has its times from them."""
    found = []
    for part in parts:
        if not part.is_timed_by_trace or part.trace is None:
            continue
        name = said(part.name, 64)
        if part.trace.cut_us is not None:
            at = words.duration(part.trace.cut_us / 1e6)
            found.append(f"{name}'s times are those of a timeline that was cut after {at}")
        elif not part.trace.is_whole:
            found.append(f"{name}'s times are those of a timeline whose end is missing")
    return found


def _times(parts: Sequence[PartyPart]) -> Table | None:
    rows = []
    for part in parts:
        account = part.account
        if account is not None:
            whole = account.computing + account.sending + account.waiting
            rows.append(
                [
                    said(part.name, 64),
                    *(
                        f"{words.duration(each)} ({words.share(each, whole)})"
                        for each in (account.computing, account.sending, account.waiting)
                    ),
                    words.duration(account.seconds),
                ]
            )
    if not rows:
        return None
    head = ("Party", "Computing", "Sending", "Waiting", "In the session")
    return Table(head, rows, frozenset({1, 2, 3, 4}))


def _waits(parts: Sequence[PartyPart]) -> Table | None:
    names = [part.name for part in parts]
    rows = [
        [
            said(part.name, 64),
            *(
                words.duration(peer.waiting) if (peer := part.account.peers.get(name)) else ""
                for name in names
            ),
        ]
        for part in parts
        if part.account is not None
    ]
    if not rows:
        return None
    head = ("Party", *(f"for {said(name, 64)}" for name in names))
    return Table(head, rows, frozenset(range(1, len(head))))


# -- traffic and faults --------------------------------------------------------------------------


def _sent(one: PartyPart, other: PartyPart) -> tuple[int, int] | None:
    """Bytes and messages from one party to another; None if neither tells."""
    for part, peer, way in ((one, other, "sent"), (other, one, "received")):
        told: Any = None
        if part.account is not None and not part.is_timed_by_trace:
            told = part.account.peers.get(peer.name)
        if told is None and part.run is not None and part.run.end is not None:
            told = part.run.end.peers.get(peer.name)
        if told is None and part.account is not None:
            told = part.account.peers.get(peer.name)
        if told is not None:
            return getattr(told, f"bytes_{way}"), getattr(told, f"messages_{way}")
    return None


def _traffic(parts: Sequence[PartyPart]) -> tuple[list[list[Cell | None]] | None, list[str]]:
    """The matrix, a row for each sender; and between whom nobody tells."""
    if len(parts) > _MOST_LANES:
        return None, []
    pairs = {
        (row, column): _sent(one, other)
        for row, one in enumerate(parts)
        for column, other in enumerate(parts)
        if row != column
    }
    known = {place: pair for place, pair in pairs.items() if pair is not None}
    if not known:
        return None, []
    most = max(max(pair[0] for pair in known.values()), 1)

    def cell(place: tuple[int, int]) -> Cell | None:
        pair = known.get(place)
        if pair is None:
            return None
        return Cell(
            words.size(pair[0]), words.counted(pair[1], "message"), round(pair[0] / most, 3)
        )

    matrix = [[cell((row, column)) for column in range(len(parts))] for row in range(len(parts))]
    unknown = [
        f"{said(parts[row].name, 64)} to {said(parts[column].name, 64)}"
        for (row, column), pair in pairs.items()
        if pair is None
    ]
    return matrix, unknown


_FAULTS: Final[tuple[tuple[str, Callable[[PeerAccount], int]], ...]] = (
    ("Frames sent again", lambda peer: peer.frames_resent),
    ("Frames that came again", lambda peer: peer.duplicates_dropped),
    ("Frames refused by a full broker", lambda peer: peer.frames_refused),
    ("Questions for a late message", lambda peer: peer.probes_sent),
)
"""The last one is no fault: a late message may just be late."""


def _faults(parts: Sequence[PartyPart]) -> tuple[Table | None, str]:
    known = [
        part for part in parts if part.account is not None and part.account.reconnects is not None
    ]
    if not known:
        return None, "Not known: there is no statistics file."
    head = ("Party", "Connections opened again", *(name for name, _ in _FAULTS))
    counts = {
        said(part.name, 64): [
            part.account.reconnects or 0,
            *(sum(of(peer) for peer in part.account.peers.values()) for _, of in _FAULTS),
        ]
        for part in known
        if part.account is not None
    }
    unknown = [part.name for part in parts if part not in known]
    about = f" Of {words.listed(unknown)} it is not known." if unknown else ""
    if not any(any(numbers[:-1]) for numbers in counts.values()):
        return None, (
            "Nothing had to be healed: no connection broke, and no frame was lost or doubled."
            + about
        )
    rows = [[name, *map(words.count, numbers)] for name, numbers in counts.items()]
    return Table(head, rows, frozenset(range(1, len(head)))), (
        "What was lost on the way was sent again, and what came twice was dropped." + about
    )


# -- the end -------------------------------------------------------------------------------------


def _files(run: Gathered) -> Table:
    return Table(
        ("File", "What it is"),
        [[said(path.name, 200), said(what, 100)] for path, what in run.files],
    )
