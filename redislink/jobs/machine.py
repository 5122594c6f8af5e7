"""The jobs of one agent: what it has been told, what it decides, and what it tells.

Pure: times, letters and decisions go in; letters, and `Action`s for the agent's process, come out.

Rules:
- Nothing is told before it is on disk: `letters` is silent about a job that `unsaved` still holds.
- A job starts only after all of its agents have accepted the same offer, and each of them once.
- One agent's word is about itself. Others may end a job; nobody makes this agent accept.
- A job whose process waits for the other parties gives its room to an earlier offer that can start.
  So two agents with room for one job each never wait for each other. Offers have one order
  everywhere: when they were issued, then their ids.
- What is not understood, or not meant for this agent, changes nothing and is counted.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redislink.errors import ConfigError, FrameError, ValueDecodeError
from redislink.jobs.offer import Offer
from redislink.jobs.policy import Action as Verdict
from redislink.jobs.policy import Decision, JobLimits
from redislink.jobs.replication import Note, Repeats
from redislink.jobs.requests import MOST_LISTED, About, Answer, Ask
from redislink.jobs.status import MOST_TEXT, State, Status, Whole, whole
from redislink.protocol.list_names import ANSWERS_TAG, JOBS_TAG, OFFERS_TAG
from redislink.text import one_line

DRIVER: Final = ""
"""Stands for a job's driver among its agents: a party's agent and its driver have one name."""
KEEP: Final = 7 * 86400.0
"""Seconds for which a job that has ended is kept: so long others may still ask how."""
MOST_JOBS: Final = 1000
"""Jobs of one driver that an agent keeps at the same time."""
STRANDED: Final = 120.0
"""Seconds for which a process may go on without the others after one of them has finished. One that
was started again cannot meet them any more."""
MOST_AHEAD: Final = 300.0
"""Seconds by which a driver's clock may be ahead."""
_BURST: Final = 64
_ASKS_PER_SECOND: Final = 32.0
"""Requests of one driver that are answered; more than that are dropped."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter to be sealed and pushed; nobody waits until it has arrived.

    Attributes:
        dst: name of the party or driver.
        tag: the kind of list, one of `LETTER_TAGS`.
        body: a value of `redislink.values`.
        expires: until when its list is to be kept, in UTC seconds.
    """

    dst: str
    tag: str
    body: Any
    expires: float


# -- what the agent's process has to do -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the policy, and call `AgentMachine.decided`."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Start:
    """Start the job's process, again if it ran before; then call `progress`, and at its end
    `finished`, `failed` or `stopped`."""

    job: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the job's process, and call `stopped`. ``why`` is one line."""

    job: str
    why: str


@dataclass(frozen=True, slots=True)
class Give:
    """Read a part of a log or result that the driver may have, and call `AgentMachine.give`."""

    driver: str
    ask: Ask


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove what is kept of the job: its offer has expired, and it has long ended."""

    job: str


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something for the audit record and the log.

    Attributes:
        kind: ``offer`` (a new one), ``state`` (the job came into another state), ``conflict`` (an
            offer that contradicts an earlier one of the same id).
        job: the job's id.
        text: one line.
    """

    kind: str
    job: str
    text: str


Action = Decide | Start | Stop | Give | Forget | Noticed


# -- one job --------------------------------------------------------------------------------------


@dataclass(slots=True)
class AgentJob:
    """What an agent knows of a job. Read it; `AgentMachine` alone changes it.

    Attributes:
        offer: what the driver offered.
        status: of this agent.
        told_peers: the version of `status` in which the state last changed: other agents need not
            hear of each step.
        offer_version: 1: the offer; 2: the driver has cancelled it.
        decision: the policy's; None before it has decided, or if the offer was never shown to it.
        approved_by: who approved it at this agent's machine; empty if nobody has.
        peers: the other agents' statuses.
        seen: the version of `status` that each of the others has seen; the driver's under `DRIVER`.
        received, started, ended: UTC seconds; None: not yet.
    """

    offer: Offer
    digest: str
    status: Status
    told_peers: int = 1
    offer_version: int = 1
    decision: Decision | None = None
    approved_by: str = ""
    peers: dict[str, Status] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    received: float = 0.0
    started: float | None = None
    ended: float | None = None

    @property
    def state(self) -> State:
        """Where the job is at this agent."""
        return self.status.state

    @property
    def order(self) -> tuple[int, str]:
        """Which of two jobs goes first, the same at every agent."""
        return self.offer.issued, self.offer.job

    def whole(self, me: str) -> Whole:
        """Where the job is as a whole, as far as this agent knows."""
        return whole(self.offer.parties, {**self.peers, me: self.status})

    def to_value(self) -> dict[str, Any]:
        """The job as JSON, for `AgentMachine.restore`."""
        return {
            "format": 1,
            "offer": offer_to_json(self.offer),
            "digest": self.digest,
            "status": self.status.to_value(),
            "told_peers": self.told_peers,
            "offer_version": self.offer_version,
            "decision": None if self.decision is None else _decision_value(self.decision),
            "approved_by": self.approved_by,
            "peers": {name: status.to_value() for name, status in self.peers.items()},
            "seen": dict(self.seen),
            "received": self.received,
            "started": self.started,
            "ended": self.ended,
        }

    @classmethod
    def from_value(cls, value: Any) -> AgentJob:
        """The job that `to_value` made into this.

        Raises:
            ConfigError: it made no such value.
        """
        try:
            if value["format"] != 1:
                raise ConfigError("its format is another version's: use that version of redislink")
            decision = value["decision"]
            return cls(
                offer=offer_from_json(value["offer"]),
                digest=value["digest"],
                status=Status.from_value_untrusted(value["status"]),
                told_peers=value["told_peers"],
                offer_version=value["offer_version"],
                decision=None if decision is None else _decision(decision),
                approved_by=value["approved_by"],
                peers={
                    name: Status.from_value_untrusted(each) for name, each in value["peers"].items()
                },
                seen=dict(value["seen"]),
                received=value["received"],
                started=value["started"],
                ended=value["ended"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, FrameError, ValueDecodeError) as e:
            raise ConfigError(f"it is not the state of a job ({type(e).__name__})") from None


def offer_to_json(offer: Offer) -> dict[str, Any]:
    """An offer as JSON; its source in base64."""
    value = offer.to_value()
    if offer.source is not None:
        value["source"] = base64.b64encode(offer.source).decode()
    return value


def offer_from_json(value: Any) -> Offer:
    """The offer that `offer_to_json` made into this.

    Raises:
        ValueDecodeError, ValueError, TypeError: it made no such value.
    """
    source = value["source"]
    try:
        given = {**value, "source": None if source is None else base64.b64decode(source)}
    except binascii.Error:
        raise ValueDecodeError("an attached program that is no base64") from None
    return Offer.from_value_untrusted(given)


def _decision_value(decision: Decision) -> dict[str, Any]:
    limits = decision.limits
    return {
        "action": str(decision.action),
        "rule": decision.rule,
        "reason": decision.reason,
        "limits": {
            "wall": limits.wall,
            "cpu": limits.cpu,
            "memory": limits.memory,
            "disk": limits.disk,
        },
        "results": list(decision.results),
        "logs": decision.logs,
        "details": list(decision.details),
    }


def _decision(value: Mapping[str, Any]) -> Decision:
    return Decision(
        action=Verdict(value["action"]),
        rule=value["rule"],
        reason=value["reason"],
        limits=JobLimits(**value["limits"]),
        results=tuple(value["results"]),
        logs=value["logs"],
        details=tuple(value["details"]),
    )


# -- the machine ----------------------------------------------------------------------------------


class AgentMachine:
    """All jobs of one agent.

    The agent's process hands in what happens; writes what `unsaved` holds, and calls `saved`; does
    what `actions` says, which may change more, so again from the start until there is nothing; and
    then pushes the `letters`. Times are UTC seconds. `next_time` says when to call `tick` and
    `letters` even if nothing happens.
    """

    def __init__(
        self,
        me: str,
        *,
        parties: tuple[str, ...],
        drivers: tuple[str, ...] = (),
        slots: int | None = None,
    ) -> None:
        """Args:
        me: the party whose agent this is.
        parties: all parties of the cluster file; each may submit jobs.
        drivers: its drivers.
        slots: how many jobs may run at the same time; None: any number.
        """
        self._me = me
        self._parties = parties
        self._drivers = frozenset((*parties, *drivers))
        self.slots = slots
        self.jobs: dict[str, AgentJob] = {}
        """By id; read it only."""
        self.ignored: Counter[str] = Counter()
        """How many letters were ignored, by why."""
        self._alive: set[str] = set()
        """Jobs whose process may still run."""
        self._stopping: set[str] = set()
        self._together: set[str] = set()
        """Jobs whose present process has met the other parties."""
        self._stranded: dict[str, float] = {}
        """Since when somebody has finished a job that the process here is not in the middle of."""
        self._unsaved: set[str] = set()
        self._actions: list[Action] = []
        self._repeats = Repeats()
        self._owed: set[tuple[str, str]] = set()
        """(job, receiver) of those who want an answer."""
        self._answers: list[Letter] = []
        self._tokens: dict[str, tuple[float, float]] = {}

    # -- what comes out ---------------------------------------------------------------------------

    def actions(self) -> list[Action]:
        """Take what the agent's process has to do now, in order."""
        taken, self._actions = self._actions, []
        return taken

    def unsaved(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (id, JSON value) of each job that has changed. Write each, then call `saved`."""
        return [(job, self.jobs[job].to_value()) for job in sorted(self._unsaved)]

    def saved(self, job: str) -> None:
        """The value of `unsaved` is on disk; nothing has changed since it was taken."""
        self._unsaved.discard(job)

    def letters(self, now: float) -> list[Letter]:
        """Return the letters that are due. Whoever does not answer is told again later."""
        found = self._answers
        self._answers = []
        due = set(self._repeats.due(now)) | self._owed
        for key in sorted(due):
            job, receiver = key
            if job in self._unsaved:  # the caller has not written it: say it when it has
                if key not in self._owed:
                    self._repeats.want(key, now)
                continue
            self._owed.discard(key)
            found.append(self._note(self.jobs[job], receiver, now))
        return found

    def next_time(self) -> float | None:
        """Return when to call `tick` and `letters` again if nothing happens; None: never."""
        times = [self._deadline(job) for job in self.jobs.values()]
        times += [since + STRANDED for since in self._stranded.values()]
        due = self._repeats.next_due()
        if due is not None:
            times.append(due)
        return min(times, default=None)

    # -- what goes in -----------------------------------------------------------------------------

    def restore(self, value: Any, now: float) -> str:
        """Take up a job that was saved by an agent that ran before. Return its id.

        Raises:
            ConfigError: the value is not one of `unsaved`.
        """
        job = AgentJob.from_value(value)
        name = job.offer.job
        self.jobs[name] = job
        if job.state is State.OFFERED:
            self._actions.append(Decide(job.offer))
        elif job.state in (State.STARTING, State.RUNNING):
            self._start(job)
        self._tell(job, now)
        return name

    def heard(self, src: str, tag: str, body: Any, now: float) -> None:
        """Take in a letter that was opened. One that says nothing new changes nothing.

        Args:
            src: who sealed it: a party or driver of the cluster file.
            tag: the kind of list that it was on: `OFFERS_TAG` or `JOBS_TAG`.
            body: the letter's body; any value.
            now: UTC seconds.
        """
        try:
            kind = body.get("kind") if type(body) is dict else None
            if tag == OFFERS_TAG and kind == "ask":
                self._asked(src, Ask.from_value_untrusted(body), now)
            elif tag == OFFERS_TAG and kind == "note" and src in self._drivers:
                self._heard_driver(src, Note.from_value_untrusted(body), now)
            elif tag == JOBS_TAG and kind == "note" and src in self._parties and src != self._me:
                self._heard_agent(src, Note.from_value_untrusted(body))
            else:
                raise FrameError(
                    "a letter of an unknown kind, or from somebody who may not send it"
                )
        except FrameError as error:
            self._ignore(str(error))
        self._look(now)

    def decided(self, job: str, decision: Decision, now: float) -> None:
        """The policy has decided about an offer, see `Decide`."""
        entry = self.jobs.get(job)
        if entry is None or entry.state is not State.OFFERED:
            return
        entry.decision = decision
        if decision.action is Verdict.ACCEPT:
            self._enter(entry, State.ACCEPTED, now)
        elif decision.action is Verdict.ASK:
            self._enter(entry, State.WAITING, now, reason=decision.reason)
        else:
            self._enter(entry, State.REFUSED, now, by=self._me, reason=decision.reason)
        self._look(now)

    def approve(self, job: str, who: str, now: float) -> bool:
        """A person at this agent's machine approves a job; return whether it waited for that."""
        entry = self.jobs.get(job)
        if entry is None or entry.state is not State.WAITING:
            return False
        entry.approved_by = one_line(who, MOST_TEXT)
        self._enter(entry, State.ACCEPTED, now)
        self._look(now)
        return True

    def refuse(self, job: str, reason: str, now: float) -> bool:
        """A person at this agent's machine refuses a job; return whether it waited for that."""
        entry = self.jobs.get(job)
        if entry is None or entry.state is not State.WAITING:
            return False
        self._enter(entry, State.REFUSED, now, by=self._me, reason=reason)
        self._look(now)
        return True

    def cancel(self, job: str, reason: str, now: float) -> bool:
        """A person at this agent's machine ends a job; return whether it had not ended before."""
        entry = self.jobs.get(job)
        if entry is None or entry.state.has_ended:
            return False
        self._enter(entry, State.CANCELLED, now, by=self._me, reason=reason)
        self._look(now)
        return True

    def progress(
        self,
        job: str,
        now: float,
        *,
        step: int,
        text: str = "",
        waits_for: tuple[str, ...] = (),
        has_met: bool = False,
    ) -> None:
        """A job's process tells where it is.

        Args:
            job: the job's id.
            now: UTC seconds.
            step: the number of its step; 0 before the first.
            text: what it does.
            waits_for: whom it waits for.
            has_met: whether all parties have met; they have if there is a step.
        """
        entry = self.jobs.get(job)
        if entry is None or entry.state not in (State.STARTING, State.RUNNING):
            return
        said = (one_line(text, MOST_TEXT), tuple(one_line(w, MOST_TEXT) for w in waits_for[:64]))
        has_met = has_met or step > 0
        if has_met:
            self._together.add(job)
        else:
            self._together.discard(job)
        if has_met and entry.state is State.STARTING:
            self._enter(entry, State.RUNNING, now)
        elif (entry.status.step, entry.status.text, entry.status.waits_for) == (step, *said):
            return
        self._change(entry, step=step, text=said[0], waits_for=said[1])
        self._tell(entry, now)
        self._look(now)

    def finished(self, job: str, now: float, results: tuple[str, ...] = ()) -> None:
        """A job's process has come to its end, and left these results.

        The driver is told the names of those that the policy lets it have.
        """
        entry = self._process_ended(job, well=True)
        if entry is None:
            self._look(now)  # there is room now
            return
        allowed = () if entry.decision is None else entry.decision.results
        given = tuple(name for name in results if name in allowed and name in entry.offer.results)
        entry.status = replace(entry.status, results=given)
        self._enter(entry, State.FINISHED, now)
        self._look(now)

    def failed(self, job: str, now: float, reason: str, by: str = "") -> None:
        """A job's process has failed, or could not be started.

        Args:
            job: its id.
            now: UTC seconds.
            reason: one line that the driver and the other parties may read.
            by: whose failure it was; empty: this party's.
        """
        entry = self._process_ended(job, well=False)
        if entry is None:
            self._look(now)  # there is room now
            return
        whose = by if by in entry.offer.parties else self._me
        self._enter(entry, State.FAILED, now, by=whose, reason=reason)
        self._look(now)

    def stopped(self, job: str, now: float) -> None:
        """The process of a job has ended as `Stop` asked for, however it ended."""
        self._has_ended(job)
        self._look(now)

    def give(self, driver: str, answer: Answer, now: float) -> None:
        """Answer a request, see `Give`. An answer with a ``problem`` has nothing else."""
        self._answers.append(Letter(driver, ANSWERS_TAG, answer.to_value(), now + 600))

    def tick(self, now: float) -> None:
        """Let what depends on the time alone happen."""
        for name, job in list(self.jobs.items()):
            if job.ended is not None and name not in self._alive and now >= self._deadline(job):
                self._forget(job)
        self._look(now)

    # -- letters ----------------------------------------------------------------------------------

    def _heard_driver(self, src: str, note: Note, now: float) -> None:
        job = self.jobs.get(note.job)
        if job is None:
            job = self._new(src, note, now)
            if job is None:
                return
        elif job.offer.driver != src:
            self._conflict(
                note.job, f"{src} offers a job with the id of one of {job.offer.driver}'s"
            )
            return
        elif note.status is not None:
            self._again(job, note, now)
        self._seen_by(job, DRIVER, note)

    def _new(self, src: str, note: Note, now: float) -> AgentJob | None:
        if note.status is None:
            self._ignore("an answer about a job that is not known here")
            return None
        offer, cancelled = offer_untrusted(note.status)
        if offer.job != note.job or offer.driver != src:
            raise FrameError("an offer for somebody else, or under another id")
        if self._me not in offer.parties:
            raise FrameError("an offer of a job in which this party does not take part")
        if now >= offer.expires:  # perhaps a replay: its job may be forgotten already
            self._ignore("an offer that has expired")
            return None
        if sum(job.offer.driver == src for job in self.jobs.values()) >= MOST_JOBS:
            self._ignore("more offers of a driver than an agent keeps")
            return None
        digest = offer.digest()
        status = Status(version=1, state=State.OFFERED, offer=digest, since=int(now))
        job = AgentJob(offer, digest, status, received=now)
        self.jobs[note.job] = job
        self._unsaved.add(note.job)
        self._actions.append(Noticed("offer", note.job, f"{src} offers {offer.program}"))
        unknown = [name for name in offer.parties if name not in self._parties]
        if cancelled:
            self._cancelled(job, now)
        elif unknown:
            self._enter(
                job, State.REFUSED, now, by=self._me, reason=f"{unknown[0]} is not in the cluster"
            )
        elif offer.issued > now + MOST_AHEAD:
            late = offer.issued - now
            reason = f"it was issued {late:.0f} s ahead of the clock here: set the clocks"
            self._enter(job, State.REFUSED, now, by=self._me, reason=reason)
        else:
            self._actions.append(Decide(offer))
            self._tell(job, now)
        return job

    def _again(self, job: AgentJob, note: Note, now: float) -> None:
        """Take in another letter with an offer that is known."""
        offer, cancelled = offer_untrusted(note.status or {})
        if offer.driver != job.offer.driver or offer.job != job.offer.job:
            raise FrameError("an offer for somebody else, or under another id")
        if cancelled:
            self._cancelled(job, now)
        elif offer.digest() != job.digest:
            self._conflict(note.job, "another offer under the same id: the first one stands")

    def _cancelled(self, job: AgentJob, now: float) -> None:
        if job.offer_version >= 2:
            return
        job.offer_version = 2
        self._unsaved.add(job.offer.job)
        if not job.state.has_ended:
            self._enter(job, State.CANCELLED, now, by=job.offer.driver, reason="by its driver")

    def _heard_agent(self, src: str, note: Note) -> None:
        job = self.jobs.get(note.job)
        if job is None:
            # Its offer has not arrived yet: the sender tells it again once we say that it has.
            self._ignore("a status of a job that is not known here")
            return
        if src not in job.offer.parties:
            raise FrameError("a status from somebody who does not take part in the job")
        if note.status is not None:
            status = Status.from_value_untrusted(note.status)
            known = job.peers.get(src)
            if known is None or status.version > known.version:
                job.peers[src] = status
                self._unsaved.add(note.job)
        self._seen_by(job, src, note)

    def _seen_by(self, job: AgentJob, receiver: str, note: Note) -> None:
        """Note what somebody has seen of this agent's status, and whether it wants an answer."""
        if note.seen <= job.status.version:  # nobody can have seen more
            job.seen[receiver] = max(job.seen.get(receiver, 0), note.seen)
        key = (job.offer.job, receiver)
        if not self._is_unseen(job, receiver):
            self._repeats.stop(key)
        if note.wants:
            self._owed.add(key)

    def _is_unseen(self, job: AgentJob, receiver: str) -> bool:
        version = job.status.version if receiver == DRIVER else job.told_peers
        return job.seen.get(receiver, 0) < version

    def _note(self, job: AgentJob, receiver: str, now: float) -> Letter:
        unseen = self._is_unseen(job, receiver)
        to_driver = receiver == DRIVER
        known = job.peers.get(receiver)
        seen = job.offer_version if to_driver else known.version if known is not None else 0
        note = Note(
            job.offer.job,
            job.status.version,
            job.status.to_value() if unseen else None,
            seen,
            wants=unseen,
        )
        return Letter(
            job.offer.driver if to_driver else receiver,
            ANSWERS_TAG if to_driver else JOBS_TAG,
            note.to_value(),
            self._kept_until(job, now),
        )

    # -- requests ---------------------------------------------------------------------------------

    def _asked(self, src: str, ask: Ask, now: float) -> None:
        if src not in self._drivers:
            raise FrameError("a request from somebody who may not make one")
        if not self._may_ask(src, now):
            self._ignore("more requests of a driver than an agent answers")
            return
        if ask.about is About.JOBS:
            own = [job for job in self.jobs.values() if job.offer.driver == src]
            newest = sorted(own, key=lambda job: job.order)[-MOST_LISTED:]
            listed = tuple(
                {"offer": _without_source(job.offer), "status": job.status.to_value()}
                for job in newest
            )
            self.give(src, Answer(ask.nonce, jobs=listed), now)
            return
        problem = self._why_not(src, ask)
        if problem:
            self.give(src, Answer(ask.nonce, problem=problem), now)
        else:
            self._actions.append(Give(src, ask))

    def _why_not(self, src: str, ask: Ask) -> str:
        """Why a driver may not have what it asks for; empty if it may."""
        job = self.jobs.get(ask.job)
        if job is None or job.offer.driver != src:  # another driver's jobs are not there for it
            return f"{self._me} knows of no such job of {src}"
        if ask.about is About.LOG:
            if job.decision is None or not job.decision.logs:
                return f"{self._me}'s policy does not let logs of this job out"
            return "" if job.started is not None else f"it has not started at {self._me}"
        if job.state is not State.FINISHED:
            return f"it has not finished at {self._me}: it is {job.state}"
        if ask.name not in job.status.results:
            return (
                f"{self._me} gives no result {ask.name!r}: its policy does not allow it, or the "
                "job did not ask for it or make it"
            )
        return ""

    def _may_ask(self, src: str, now: float) -> bool:
        """Whether a driver has not asked too often: a bucket of tokens for each."""
        tokens, since = self._tokens.get(src, (float(_BURST), now))
        tokens = min(_BURST, tokens + max(0.0, now - since) * _ASKS_PER_SECOND)
        self._tokens[src] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    # -- states -----------------------------------------------------------------------------------

    def _enter(
        self, job: AgentJob, state: State, now: float, *, by: str = "", reason: str = ""
    ) -> None:
        """Come into another state. If a process runs that must not, have it ended."""
        if state.has_ended:
            job.ended = now
            self._stranded.pop(job.offer.job, None)
        reason = one_line(reason, MOST_TEXT)
        self._change(job, state=state, since=int(now), by=by, reason=reason)
        job.told_peers = job.status.version
        self._tell(job, now)
        said = f"{state}{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"
        self._actions.append(Noticed("state", job.offer.job, said))
        if state.has_ended and state is not State.FINISHED:
            self._stop(job, said)

    def _change(self, job: AgentJob, **fields: Any) -> None:
        job.status = replace(job.status, version=job.status.version + 1, **fields)
        self._unsaved.add(job.offer.job)

    def _tell(self, job: AgentJob, now: float) -> None:
        """Tell everybody who has not seen this agent's status, as soon as it is on disk."""
        for receiver in self._receivers(job):
            if self._is_unseen(job, receiver):
                self._repeats.want((job.offer.job, receiver), now)

    def _receivers(self, job: AgentJob) -> Iterator[str]:
        yield DRIVER
        for party in job.offer.parties:
            if party != self._me and party in self._parties:
                yield party

    def _start(self, job: AgentJob) -> None:
        self._together.discard(job.offer.job)
        self._alive.add(job.offer.job)
        self._actions.append(Start(job.offer.job))

    def _stop(self, job: AgentJob, why: str) -> None:
        name = job.offer.job
        if name in self._alive and name not in self._stopping:
            self._stopping.add(name)
            self._actions.append(Stop(name, why))

    def _process_ended(self, job: str, *, well: bool) -> AgentJob | None:
        """A process has ended; return its job if that ends it."""
        was_alive, asked = job in self._alive, job in self._stopping
        self._has_ended(job)
        entry = self.jobs.get(job)
        if entry is None or not was_alive or entry.state.has_ended or (asked and not well):
            return None
        return entry

    def _has_ended(self, job: str) -> None:
        """A process is gone: a `Stop` that nobody has taken yet has nothing to stop."""
        self._alive.discard(job)
        self._stopping.discard(job)
        self._actions = [
            action
            for action in self._actions
            if not (isinstance(action, Stop) and action.job == job)
        ]

    def _look(self, now: float) -> None:
        """Let happen what follows from what is known, and from the time."""
        for job in self.jobs.values():
            if not job.state.has_ended:
                self._look_at(job, now)
        self._schedule(now)

    def _look_at(self, job: AgentJob, now: float) -> None:
        for peer, status in job.peers.items():
            if status.offer != job.digest:
                # The driver, or this peer, tells two stories: nobody may take one for the other.
                reason = f"{peer} was offered another job under this id"
                self._enter(job, State.REFUSED, now, by=self._me, reason=reason)
                return
            if status.state.ends_others:
                # Whom the peer names may say otherwise itself: then that counts (`whole`).
                by = status.by if status.by in (*job.offer.parties, job.offer.driver) else peer
                self._enter(job, status.state, now, by=by, reason=status.reason)
                return
        if now >= job.offer.expires and job.state is not State.RUNNING:
            missing = ", ".join(self._without_consent(job))
            reason = f"without the consent of {missing}" if missing else "before all had started"
            self._enter(job, State.EXPIRED, now, by=self._me, reason=reason)

        elif self._is_stranded(job, now):
            reason = "its process was lost, and others had finished when it was started again"
            self._enter(job, State.FAILED, now, by=self._me, reason=reason)

    def _is_stranded(self, job: AgentJob, now: float) -> bool:
        name = job.offer.job
        left = any(status.state is State.FINISHED for status in job.peers.values())
        if not left or name in self._together:
            self._stranded.pop(name, None)
            return False
        return now >= self._stranded.setdefault(name, now) + STRANDED

    def _without_consent(self, job: AgentJob) -> list[str]:
        return [
            party
            for party in job.offer.parties
            if not (
                job.status if party == self._me else job.peers.get(party, _NONE)
            ).state.has_accepted
        ]

    def _schedule(self, now: float) -> None:
        """Start what can start, in the order of the offers; see the rules above."""
        waiting = [
            job
            for job in self.jobs.values()
            if job.state is State.STARTING
            or (job.state is State.ACCEPTED and not self._without_consent(job))
        ]
        waiting.sort(key=lambda job: job.order)
        starting = {job.offer.job for job in waiting if job.state is State.STARTING}
        held = len(self._alive - starting)
        room = len(waiting) if self.slots is None else max(0, self.slots - held)
        for place, job in enumerate(waiting):
            if job.state is State.STARTING and place >= room:
                self._enter(job, State.ACCEPTED, now)
                self._stop(job, "it makes room for an earlier job, and starts again later")
        for job in waiting[:room]:
            if job.state is not State.ACCEPTED or job.offer.job in self._alive:
                continue
            if self.slots is not None and len(self._alive) >= self.slots:
                break  # a process that was told to end has not ended yet
            job.started = job.started or now
            self._enter(job, State.STARTING, now)
            self._start(job)

    # -- time -------------------------------------------------------------------------------------

    def _kept_until(self, job: AgentJob, now: float) -> float:
        return max(float(job.offer.expires), (now if job.ended is None else job.ended) + KEEP)

    def _deadline(self, job: AgentJob) -> float:
        """When the time alone changes something about a job."""
        if job.ended is not None:
            return self._kept_until(job, job.ended)
        return float("inf") if job.state is State.RUNNING else float(job.offer.expires)

    def _forget(self, job: AgentJob) -> None:
        name = job.offer.job
        del self.jobs[name]
        self._unsaved.discard(name)
        self._stranded.pop(name, None)
        for receiver in self._receivers(job):
            self._repeats.stop((name, receiver))
            self._owed.discard((name, receiver))
        self._actions.append(Forget(name))

    def _ignore(self, why: str) -> None:
        self.ignored[why] += 1

    def _conflict(self, job: str, text: str) -> None:
        self._ignore("an offer that contradicts an earlier one")
        self._actions.append(Noticed("conflict", job, text))


_NONE: Final = Status(version=1, state=State.OFFERED, offer="")
"""Of an agent that has said nothing yet."""


def offer_untrusted(status: Mapping[str, Any]) -> tuple[Offer, bool]:
    """Return the offer in a driver's status, and whether it is cancelled.

    Raises:
        FrameError: the status holds no offer.
    """
    if status.keys() != {"offer", "cancelled"} or type(status["cancelled"]) is not bool:
        raise FrameError("a driver's status with other fields")
    try:
        return Offer.from_value_untrusted(status["offer"]), status["cancelled"]
    except ValueDecodeError as error:
        raise FrameError(str(error)) from None


def _without_source(offer: Offer) -> dict[str, Any]:
    return replace(offer, source=None).to_value()
