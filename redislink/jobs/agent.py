"""The agent of one party: it waits for offers, asks the policy, and runs what was accepted.

Rules:
- It dials out, and listens nowhere. People at its machine decide by files (`redislink.jobs.work`).
- Each state of a job is on disk before anybody is told of it. An agent that was killed goes on
  where it was: what ran is started again, with its journal.
- One thread does all that is here, and starts all processes of jobs, which end with it. Letters are
  taken, and the claim is renewed, in threads of their own: jobs run on while a broker is away.
- What others say is logged in one line, made safe to show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from redislink.audit import AuditLog
from redislink.broker import make_broker
from redislink.broker.outage import Outage
from redislink.cluster import ClusterSpec
from redislink.errors import AuditError, ConfigError, PartyTaken, RedisLinkError
from redislink.identity.keypair import Identity
from redislink.jobs import runner
from redislink.jobs.cgroup import ControlGroups
from redislink.jobs.machine import (
    Action,
    AgentJob,
    AgentMachine,
    Decide,
    Forget,
    Give,
    Noticed,
    Start,
    Stop,
)
from redislink.jobs.mailbox import Mailbox, Received, agent_sources, open_mailbox
from redislink.jobs.offer import Offer
from redislink.jobs.outgoing import answer, result_names
from redislink.jobs.policy import Action as Verdict
from redislink.jobs.policy import Decision, JobLimits, Policy
from redislink.jobs.prepare import cluster_of, write_cluster, write_program
from redislink.jobs.processes import Processes
from redislink.jobs.program import Program
from redislink.jobs.recorder import Decider, Recorder
from redislink.jobs.requests import About
from redislink.jobs.runner import Outcome, Runner, Task
from redislink.jobs.status import State
from redislink.jobs.store import ProgramStore
from redislink.jobs.usage import disk_bytes
from redislink.jobs.work import CLUSTER, PROGRAM, REPORT, Noted, WorkDirectory
from redislink.jobs.work import Verdict as PersonsVerdict
from redislink.logs import PartyLogger
from redislink.protocol import list_names
from redislink.report.writing import can_report
from redislink.settings import LONGEST_SECONDS, RedisLinkSettings, environment_of_job
from redislink.transport.claim import PartyClaim

_IDLE: Final = 1.0
"""Seconds between two looks for decisions of people."""
_BUSY: Final = 0.5
"""Seconds between two looks at processes."""
_NOTE_INTERVAL: Final = 2.0
"""Seconds between two notes of how far a job is."""
_LEASE_MS: Final = 30_000
_RENEW: Final = 10.0
_INSTANCE_BYTES: Final = 8
_NO_LONGER: Final = "this party's policy has changed, and does not accept it any more"
_DONE: Final = {"approve": "approved", "refuse": "refused", "cancel": "cancelled"}


class AgentClaim(PartyClaim):
    """Makes sure that a party has one agent, at a pace that costs next to nothing."""

    @property
    def _lease_ms(self) -> int:
        return _LEASE_MS

    def _pause(self) -> bool:
        return self._stop.wait(_RENEW)


@dataclass(frozen=True, slots=True)
class Place:
    """What an agent is started with.

    Attributes:
        cluster: the cluster file's content.
        party: the party whose agent it is.
        identity: the party's key file.
        policy: the policy file.
        programs: the directory of programs.
        work: the work directory.
    """

    cluster: ClusterSpec
    party: str
    identity: Path
    policy: Path
    programs: Path
    work: Path


class Agent:
    """An agent. `serve` runs it until it is told to end."""

    def __init__(self, place: Place, settings: RedisLinkSettings) -> None:
        """Args:
        place: where everything is.
        settings: this party's settings.

        Raises:
            ConfigError: something of that is wrong; the message says what.
        """
        self._place = place
        self._settings = settings
        self._policy = Policy.load(place.policy)
        self._store = ProgramStore(place.programs)
        self._work = WorkDirectory(place.work)
        self._identity = Identity.load(place.identity)
        self._environment = environment_of_job(settings)
        self._broker = make_broker(settings, place.cluster.broker)
        self._log = PartyLogger(place.cluster.session, place.party, "redislink.jobs")
        self._machine = AgentMachine(
            place.party,
            parties=place.cluster.party_names,
            drivers=place.cluster.driver_names,
            slots=self._policy.limits.jobs,
        )
        self._processes = Processes(Runner(groups=ControlGroups.find()).start)
        self._recorder: Recorder
        self._stopping: set[str] = set()
        """Jobs whose process the machine wants ended."""
        self._unsaved: set[str] = set()
        """Jobs that the disk does not take now."""
        self._conflicts: set[str] = set()
        """Jobs of which it is recorded that another offer has their id."""
        self._noted: dict[str, tuple[float, bool]] = {}
        """When each job was noted, and whether its parties had met."""
        self._is_to_end = self._is_to_reload = False
        """Set by signals."""

    # -- from start to end -------------------------------------------------------------------

    def serve(self) -> None:
        """Wait for offers and run jobs, until SIGTERM or SIGINT. Call it in the main thread.

        Raises:
            PartyTaken: another agent of this party runs.
            BrokerError: at the start, the broker cannot be reached or refuses this party.
            ConfigError: the work directory cannot be used.
            AuditError: the audit record cannot be opened or written.
        """
        self._work.take(self._place.party)
        try:
            with self._claimed() as claim, self._signals(), self._recorded() as recorder:
                self._recorder = recorder
                self._restore()
                self._serve(claim)
        finally:
            self._work.release()

    def _serve(self, claim: AgentClaim) -> None:
        self._log.info(
            "agent of %s waits for jobs of session %s (policy: %d rules)",
            self._place.party,
            self._place.cluster.session,
            len(self._policy.rules),
        )
        with self._open_mailbox() as mailbox:
            while not self._is_to_end:
                letters = mailbox.take(self._seconds())
                if self._is_to_reload:
                    self._is_to_reload = False
                    self._reload()
                if claim.is_taken:
                    raise PartyTaken(
                        f"{self._place.party}: another agent of this party runs now: end one of "
                        "them; this one's jobs go on when it starts again"
                    )
                self._turn(mailbox, letters)
            self._end(mailbox)

    def _turn(self, mailbox: Mailbox, letters: Sequence[Received]) -> None:
        """Take in what has happened, do what follows, and tell it."""
        now = time.time()
        for letter in letters:
            self._machine.heard(letter.src, letter.tag, letter.body, now)
        self._take_decisions(now)
        self._take_processes(now)
        self._machine.tick(now)
        self._act(now)
        self._tell(mailbox, now)

    def _tell(self, mailbox: Mailbox, now: float) -> None:
        for letter in self._machine.letters(now):
            error = mailbox.send(letter, now)
            if error is not None and not error.retryable:
                self._log.error("cannot tell %s: %s", letter.dst, error)

    def _end(self, mailbox: Mailbox) -> None:
        """End the processes; the jobs stay where they are, and go on later."""
        if self._processes:
            self._log.info("ends; its jobs go on when it starts again")
        self._processes.stop(f"the agent of {self._place.party} stops")
        while self._processes:
            self._take_processes(time.time())
            time.sleep(_BUSY / 5)
        self._act(time.time())
        self._tell(mailbox, time.time())

    def _seconds(self) -> float:
        """How long there is nothing to do, but for letters."""
        seconds = _BUSY if self._processes else _IDLE
        if self._unsaved:  # what is to be told of them is always due
            return seconds
        due = self._machine.next_time()
        return seconds if due is None else min(seconds, max(0.0, due - time.time()))

    @contextlib.contextmanager
    def _open_mailbox(self) -> Iterator[Mailbox]:
        cluster, party = self._place.cluster, self._place.party
        sources = agent_sources(party, cluster.party_names, cluster.driver_names)
        with open_mailbox(
            cluster, party, self._identity, self._settings, sources=sources, log=self._log
        ) as mailbox:
            yield mailbox

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the agent, SIGHUP has it read its policy again.

        A SIGHUP that was blocked until now counts, too: the policy may have changed since it was
        read.
        """

        def end(_number: int, _frame: FrameType | None) -> None:
            self._is_to_end = True

        def reload(_number: int, _frame: FrameType | None) -> None:
            self._is_to_reload = True

        handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: reload}
        before = {number: signal.signal(number, to) for number, to in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[AgentClaim]:
        """Be this party's only agent, also among those with other work directories."""
        cluster, party = self._place.cluster, self._place.party
        key = list_names.agent_key(cluster.session, party)
        instance = secrets.token_bytes(_INSTANCE_BYTES)
        before = self._work.instance()
        claim = AgentClaim(
            self._broker.at(key),
            key,
            instance,
            f"the agent of {party} in session {cluster.session!r}",
            self._log,
            bytes.fromhex(before) if before else None,
        )
        outage = Outage(party, LONGEST_SECONDS, self._log, self._log, self._broker.memory)
        claim.acquire(outage, patient=self._settings.broker_wait)
        try:
            self._work.save_instance(instance.hex())
            yield claim
        finally:
            claim.release()

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[Recorder]:
        place = self._place
        self._work.record.parent.mkdir(mode=0o700, exist_ok=True)
        with AuditLog.open(self._work.record, place.party, self._identity) as log:
            yield Recorder(log, place.cluster.session)

    def _restore(self) -> None:
        now = time.time()
        for job in self._work.jobs():
            value = self._work.load(job)
            try:
                if value is None:
                    raise ConfigError("it cannot be read")
                self._machine.restore(value, now)
            except ConfigError as error:
                self._log.error("%s: its state is left alone: %s", job, error)
        self._act(now)

    def _reload(self) -> None:
        try:
            self._policy = Policy.load(self._place.policy)
        except ConfigError as error:
            self._log.error("the policy stays as it was: %s", error)
            return
        self._machine.slots = self._policy.limits.jobs
        self._log.info("read %s again: %d rules", self._place.policy, len(self._policy.rules))
        self._ask_again()

    def _ask_again(self) -> None:
        """End jobs that have not started, and that the policy would not let through any more.

        Their windows were open when they came, so their rules are asked as of then.
        """
        now = time.time()
        for name, job in list(self._machine.jobs.items()):
            if job.state not in (State.WAITING, State.ACCEPTED):
                continue
            decision = self._asked(job.offer, job.received)
            is_approved = job.state is State.WAITING or job.approved_by
            if decision.action is Verdict.ACCEPT or (
                decision.action is Verdict.ASK and is_approved
            ):
                continue
            if self._machine.cancel(name, _NO_LONGER, now):
                self._recorder.decided(
                    name, "cancel", "policy", rule=decision.rule, reason=_NO_LONGER
                )
                self._log.info("%s: cancelled: %s", name, _NO_LONGER)
        self._act(now)

    # -- people ------------------------------------------------------------------------------

    def _take_decisions(self, now: float) -> None:
        for job, verdict in self._work.decisions():
            entry = self._machine.jobs.get(job)
            if verdict is None or entry is None:
                self._log.error("%s: a decision about it makes no sense, and is dropped", job)
            elif verdict.program != entry.offer.program:
                self._log.error("%s: %s decided about another program", job, verdict.by)
            else:
                taken = self._apply(job, verdict, now)
                if taken:
                    self._recorder.decided(
                        job,
                        "accept" if verdict.action == "approve" else verdict.action,
                        "person",
                        who=verdict.by,
                        reason=verdict.reason,
                    )
                effect = "" if taken else ", which comes too late"
                self._log.info("%s: %s by %s%s", job, _DONE[verdict.action], verdict.by, effect)
                self._act(now)
                if job in self._unsaved:
                    continue
            self._work.drop_decision(job)

    def _apply(self, job: str, verdict: PersonsVerdict, now: float) -> bool:
        reason = verdict.reason or f"by a person at {self._place.party}"
        match verdict.action:
            case "approve":
                return self._machine.approve(job, verdict.by, now)
            case "refuse":
                return self._machine.refuse(job, reason, now)
            case _:
                return self._machine.cancel(job, reason, now)

    # -- what the machine wants --------------------------------------------------------------

    def _act(self, now: float) -> None:
        """Have the machine's jobs on disk, then do what it wants, until it wants nothing."""
        while True:
            for job, value in self._machine.unsaved():
                self._save(job, value)
            actions = self._machine.actions()
            if not actions:
                return
            for action in actions:
                self._do(action, now)

    def _save(self, job: str, value: Any) -> None:
        try:
            self._work.save(job, value)
        except OSError as error:
            if job not in self._unsaved:
                self._log.error("%s: cannot be saved (%s): nobody is told", job, error.strerror)
            self._unsaved.add(job)
        else:
            self._unsaved.discard(job)
            self._machine.saved(job)

    def _do(self, action: Action, now: float) -> None:
        match action:
            case Decide(offer):
                self._machine.decided(offer.job, self._decide(offer, now), now)
            case Start(job):
                self._begin(self._machine.jobs[job], now)
            case Stop(job, why):
                self._stopping.add(job)
                self._processes.end(job, why)
                if job not in self._processes:  # it never began
                    self._has_ended(job, Outcome(why, why), now)
            case Give(driver, ask):
                given = answer(self._work.of(ask.job), ask)
                if ask.about is About.RESULT and not given.problem:
                    self._recorder.given(ask.job, ask.name, driver, given.total)
                self._machine.give(driver, given, now)
            case Forget(job):
                shutil.rmtree(self._work.of(job), ignore_errors=True)
                self._noted.pop(job, None)
                self._conflicts.discard(job)
            case Noticed(kind, job, text):
                self._notice(kind, job, text)

    def _notice(self, kind: str, job: str, text: str) -> None:
        if kind == "conflict":
            if job in self._conflicts:  # its driver may repeat it without end
                return
            self._conflicts.add(job)
        self._log.info("%s: %s", job, text)
        if job in self._machine.jobs:
            self._record(kind, self._machine.jobs[job])

    def _record(self, kind: str, job: AgentJob) -> None:
        """Record what the machine has noticed and is no decision of this organisation's."""
        offer, status = job.offer, job.status
        if kind == "offer":
            self._recorder.offered(offer)
        elif kind == "conflict":
            self._recorder.offered(offer, conflicts=True)
        elif status.state in (State.CANCELLED, State.REFUSED) and status.by != self._place.party:
            by: Decider = "driver" if status.by == offer.driver else "peer"
            self._recorder.decided(offer.job, "cancel", by, who=status.by, reason=status.reason)
        elif status.state is State.REFUSED and job.decision is None:  # before the policy was asked
            self._recorder.decided(offer.job, "refuse", "policy", reason=status.reason)

    def _decide(self, offer: Offer, now: float) -> Decision:
        decision = self._decision(offer, now)
        self._recorder.decided(
            offer.job,
            decision.action.value,
            "policy",
            rule=decision.rule,
            reason=decision.reason,
        )
        return decision

    def _decision(self, offer: Offer, now: float) -> Decision:
        most = self._policy.limits.disk
        if most is not None and disk_bytes(self._work.path) >= most:
            return Decision(Verdict.REFUSE, "", "its agent has no room on its disk")
        decision = self._asked(offer, now)
        for detail in decision.details:
            self._log.debug("%s: %s", offer.job, detail)
        return decision

    def _asked(self, offer: Offer, now: float) -> Decision:
        try:
            program = self._store.find(offer.program)
            cluster_of(self._place.cluster, offer)
        except ConfigError as error:
            return Decision(Verdict.REFUSE, "", str(error))
        return self._policy.decide(offer, now, party=self._place.party, program=program)

    # -- processes ---------------------------------------------------------------------------

    def _begin(self, job: AgentJob, now: float) -> None:
        """Start the job's process, or take in how the last one ended without being seen."""
        name, directory = job.offer.job, self._work.of(job.offer.job)
        runner.end_leftovers(directory)
        before = runner.outcome_before(directory)
        if before is not None and not before.may_pass:
            self._has_ended(name, before, now)
            return
        try:
            self._processes.add(self._task(job, directory))
        except AuditError:
            raise
        except RedisLinkError as error:
            self._log.error("%s: cannot start: %s", name, error)
            self._machine.failed(name, now, f"its agent cannot start it ({_kind(error)})")
        except OSError as error:
            self._log.error("%s: cannot start: %s", name, error)
            self._machine.failed(name, now, f"its agent cannot start it ({error.strerror})")

    def _task(self, job: AgentJob, directory: Path) -> Task:
        offer, place = job.offer, self._place
        if offer.source is not None and self._store.find(offer.program) is None:
            program = Program.unpack_untrusted(offer.source)
        else:
            program = self._store.load(offer.program)
        if program.digest != offer.program:
            raise ConfigError("the attached program is not the one that was offered")
        write_cluster(place.cluster, offer, directory / CLUSTER)
        data, noted = self._data_of(offer), self._work.noted(offer.job)
        noted = dataclasses.replace(noted, starts=noted.starts + 1)
        self._work.note(offer.job, noted)
        known = self._store.find(offer.program)
        name = offer.program_name if known is None else known.name
        self._recorder.starts(offer, name, data, noted.starts)
        return Task(
            job=offer.job,
            directory=directory,
            cluster=directory / CLUSTER,
            party=place.party,
            identity=place.identity.absolute(),
            program=write_program(program, directory / PROGRAM),
            arguments=tuple(offer.argv()),
            environment=self._environment,
            data=data,
            audit=self._work.record_of(offer.job),
            report=directory / REPORT if can_report() else None,
            agent_record=self._work.record,
            limits=job.decision.limits if job.decision is not None else JobLimits(),
            used=noted.used,
        )

    def _data_of(self, offer: Offer) -> dict[str, Path]:
        found = {}
        for name in offer.data_of(self._place.party):
            if name not in self._policy.data:
                raise ConfigError(f"there is no data set {name!r} here any more")
            found[name] = self._policy.data[name]
        return found

    def _take_processes(self, now: float) -> None:
        for job, outcome in self._processes.poll():
            self._has_ended(job, outcome, now)
        for job in self._processes:
            self._note(job, now)

    def _has_ended(self, job: str, outcome: Outcome, now: float) -> None:
        """A job's process has ended for good."""
        directory = self._work.of(job)
        self._noted.pop(job, None)
        runner.clear(directory)
        shutil.rmtree(directory / PROGRAM, ignore_errors=True)
        if outcome.ended_well:
            self._machine.finished(job, now, result_names(directory))
        elif job in self._stopping:
            self._log.info("%s: its process has ended", job)
            self._machine.stopped(job, now)
        else:
            self._log.error("%s: failed: %s (%s)", job, outcome.why, directory / runner.LOG)
            self._machine.failed(job, now, outcome.told, outcome.peer or "")
        self._stopping.discard(job)

    def _note(self, job: str, now: float) -> None:
        """Tell and note how far a job is, now and then."""
        progress, used = self._processes.state(job)
        last, had_met = self._noted.get(job, (0.0, False))
        if 0 <= now - last < _NOTE_INTERVAL and progress.has_met == had_met:
            return
        self._noted[job] = now, progress.has_met
        starts = self._work.noted(job).starts
        self._work.note(job, Noted(str(progress), used.wall, used.cpu, starts))
        self._machine.progress(
            job,
            now,
            step=progress.step,
            text=progress.text,
            waits_for=progress.waits_for,
            has_met=progress.has_met,
        )


def _kind(error: RedisLinkError) -> str:
    return type(error).__name__
