"""Runs of jobs over a hostile broker, with agents and a driver that are killed; the seed decides.

``python -m tests.jobs.simulation --seed N -v`` plays one. The broker drops, doubles, delays,
reorders, replays, cuts, changes, moves and forges letters. Agents and the driver are killed, and go
on from what they had saved. Policies accept, ask and refuse; people approve, refuse and cancel;
processes take their time and fail. Time is a number.
"""

from __future__ import annotations

import argparse
import json
import marshal
import random
from dataclasses import dataclass, field
from typing import Any

from redislink.errors import FrameError, SealError
from redislink.identity import Identity
from redislink.jobs.driver import DriverJob
from redislink.jobs.letters import Sealer
from redislink.jobs.machine import (
    AgentJob,
    AgentMachine,
    Decide,
    Forget,
    Give,
    Letter,
    Noticed,
    Start,
    Stop,
)
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.policy import Action, Decision
from redislink.jobs.replication import Note, Repeats
from redislink.jobs.requests import About, Answer, Ask
from redislink.jobs.status import State
from redislink.protocol.list_names import ANSWERS_TAG, JOBS_TAG, OFFERS_TAG

BEGIN = 1_800_000_000.0
PARTIES = ("alice", "bob", "carol")
DRIVER = "dora"
OUTSIDER = "eve"
"""A driver whom every policy refuses."""
TROUBLE = 400.0
"""Seconds after which the broker delivers and nobody is killed any more."""
PROGRAM = "sha256:" + "ab" * 32
_IDENTITIES = {
    name: Identity(random.Random(name).randbytes(32)) for name in (*PARTIES, DRIVER, OUTSIDER)
}
_PUBLIC = {name: identity.public_key for name, identity in _IDENTITIES.items()}
_STRANGER = Identity(random.Random("nobody").randbytes(32))


@dataclass
class Run:
    """The process of a job at one agent."""

    started: float
    ends: float
    fails: bool
    step: int = 0
    has_met: bool = False
    stopping: float | None = None


@dataclass
class Agent:
    """One agent: its machine, and what a crash leaves of it."""

    name: str
    machine: AgentMachine
    disk: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    down_until: float | None = None
    forgotten: set[str] = field(default_factory=set)


class TableSealer:
    """Seals as `Sealer`, at no cost: only an element that was sealed here opens, on its list."""

    def __init__(self, name: str, table: dict[bytes, tuple[Any, ...]], rng: random.Random) -> None:
        self._name, self._table, self._random = name, table, rng

    def seal(self, dst: str, tag: str, body: Any) -> bytes:
        """Return an element that stands for the letter."""
        element = self._random.randbytes(24)
        self._table[element] = (self._name, dst, tag, marshal.dumps(body))
        return element

    def open_untrusted(self, src: str, tag: str, element: bytes) -> Any:
        """Return the letter's body."""
        *where, encoded = self._table.get(element, ("", "", "", b""))
        if where != [src, self._name, tag]:
            raise SealError("it does not open")
        return marshal.loads(encoded)


class Simulation:
    """One run. After `play`, look at what happened, or let `check` do it."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        """Decide what is going to happen, as far as the seed alone says."""
        self.random = random.Random(seed)
        self.seals_for_real = seed % 500 == 0
        self.table: dict[bytes, tuple[Any, ...]] = {}
        self.verbose = verbose
        self.now = BEGIN
        chance = self.random.random
        self.loss = self.random.choice((0.0, 0.1, 0.3, 0.6))
        self.doubling = self.random.choice((0.0, 0.2))
        self.delay = self.random.choice((0.5, 5.0, 90.0))
        self.kills = self.random.choice((0.0, 0.002, 0.02))
        self.slots = self.random.choice((None, 1, 1, 2))
        self.driver_vanishes = chance() < 0.15
        self.lists: dict[tuple[str, str, str], list[tuple[float, bytes]]] = {}
        self.kept: list[tuple[str, str, str, bytes]] = []
        self.sealers = {
            name: self._sealer(name, identity) for name, identity in _IDENTITIES.items()
        }
        self.forger = self._sealer(PARTIES[0], _STRANGER)
        self.agents = {name: Agent(name, self._machine(name)) for name in PARTIES}
        self.policies = {
            name: self.random.choices(tuple(Action), weights=(8, 3, 1))[0] for name in PARTIES
        }
        self.offers = self._offers()
        self.driver_disk: dict[str, str] = {}
        self.driver: dict[str, DriverJob] = {}
        self.repeats = Repeats()
        self.driver_down: float | None = None
        self.driver_gone = False
        self.started: dict[str, set[str]] = {}
        self.consents: dict[str, set[str]] = {offer.job: set() for offer in self.offers}
        """By job: the agents whose policy or people have accepted it."""
        self.computed: set[str] = set()
        self.done: set[tuple[str, str]] = set()
        self.served: list[tuple[str, Answer]] = []
        self.answers: list[Answer] = []
        self.conflicts = 0

    # -- the cast ---------------------------------------------------------------------------------

    def _sealer(self, name: str, identity: Identity) -> Sealer | TableSealer:
        if not self.seals_for_real:
            return TableSealer(name, self.table if identity is not _STRANGER else {}, self.random)
        return Sealer(
            name,
            session="study",
            digest=bytes(32),
            private_key=identity.private_key,
            public_keys=_PUBLIC,
            random_bytes=self.random.randbytes,
        )

    def _machine(self, name: str) -> AgentMachine:
        return AgentMachine(name, parties=PARTIES, drivers=(DRIVER, OUTSIDER), slots=self.slots)

    def _offers(self) -> list[Offer]:
        count = self.random.choice((1, 1, 2, 2, 3))
        found = []
        for _ in range(count):
            issued = int(BEGIN) + self.random.randrange(0, 300)
            size = self.random.choice((2, 3, 3))
            found.append(
                Offer(
                    job=new_job_id(self.random.choice),
                    driver=DRIVER,
                    issued=issued,
                    expires=issued + self.random.choice((60, 300, 900, 3600)),
                    program=PROGRAM,
                    parties=tuple(sorted(self.random.sample(PARTIES, size))),
                    arguments=[f"--rounds={self.random.randrange(9)}"],
                    results=("weights", "secret"),
                )
            )
        return found

    def say(self, text: str) -> None:
        """Say what happens, if anybody wants to hear it."""
        if self.verbose:
            print(f"{self.now - BEGIN:8.1f} {text}")

    # -- the broker -------------------------------------------------------------------------------

    @property
    def calm(self) -> bool:
        """Whether the trouble is over."""
        return self.now >= BEGIN + TROUBLE

    def push(self, src: str, letter: Letter) -> None:
        """What a sender pushes; the broker does what it likes with it."""
        element = self.sealers[src].seal(letter.dst, letter.tag, letter.body)
        where = (src, letter.dst, letter.tag)
        if self.calm:
            self._deliver_at(where, element, self.now)
            return
        if len(self.kept) < 200:
            self.kept.append((*where, element))
        if self.random.random() < self.loss:
            return
        self._deliver_at(where, element, self.now + self.random.random() * self.delay)
        if self.random.random() < self.doubling:
            self._deliver_at(where, element, self.now + self.random.random() * 10 * self.delay)
        if self.random.random() < 0.1:
            self._mischief()

    def _deliver_at(self, where: tuple[str, str, str], element: bytes, at: float) -> None:
        _, dst, tag = where
        if dst == OUTSIDER or (tag == ANSWERS_TAG) != (dst == DRIVER):
            return  # nobody reads that list
        self.lists.setdefault(where, []).append((at, element))

    def _mischief(self) -> None:
        """Replay, change, cut, move or forge a letter."""
        src, dst, tag, element = self.random.choice(self.kept)
        where = (src, dst, tag)
        kind = self.random.randrange(5)
        if kind == 1:
            place = self.random.randrange(len(element))
            element = element[:place] + bytes([element[place] ^ 64]) + element[place + 1 :]
        elif kind == 2:
            element = element[: self.random.randrange(len(element))]
        elif kind == 3:
            where = (self.random.choice(PARTIES), dst, self.random.choice((OFFERS_TAG, JOBS_TAG)))
        elif kind == 4:
            offer = self.random.choice(self.offers)
            lie = {"kind": "note", "job": offer.job, "version": 99, "seen": 1, "wants": True}
            lie["status"] = {"offer": offer.to_value(), "cancelled": True}
            element = self.forger.seal(dst, tag, lie)
        self._deliver_at(where, element, self.now + self.random.random() * 100)

    def _arrived(self, dst: str, tags: tuple[str, ...]) -> list[tuple[str, str, Any]]:
        found = []
        for (src, to, tag), waiting in self.lists.items():
            if to != dst or tag not in tags or not waiting:
                continue
            here = [each for each in waiting if each[0] <= self.now]
            self.lists[src, to, tag] = [each for each in waiting if each[0] > self.now]
            for _, element in here:
                try:
                    found.append((src, tag, self.sealers[dst].open_untrusted(src, tag, element)))
                except FrameError:
                    continue
        self.random.shuffle(found)
        return found

    # -- agents -----------------------------------------------------------------------------------

    def _agent(self, agent: Agent) -> None:
        if agent.down_until is not None:
            if self.now < agent.down_until:
                return
            self._begin_again(agent)
        for src, tag, body in self._arrived(agent.name, (OFFERS_TAG, JOBS_TAG)):
            agent.machine.heard(src, tag, body, self.now)
        self._people(agent)
        self._processes(agent)
        agent.machine.tick(self.now)
        if not self._settle(agent):
            return
        for letter in agent.machine.letters(self.now):
            self.push(agent.name, letter)
            if self._is_killed(agent):
                return

    def _settle(self, agent: Agent) -> bool:
        """Write, and do what there is to do, until there is nothing; False if killed meanwhile."""
        while True:
            for job, value in agent.machine.unsaved():
                if self._is_killed(agent):
                    return False
                agent.disk[job] = json.dumps(value)
                agent.machine.saved(job)
            actions = agent.machine.actions()
            if not actions:
                return True
            for action in actions:
                self._do(agent, action)
                if self._is_killed(agent):
                    return False

    def _do(self, agent: Agent, action: Any) -> None:
        if isinstance(action, Decide):
            verdict = self.policies[agent.name]
            if action.offer.driver != DRIVER:
                verdict = Action.REFUSE
            if verdict is Action.ACCEPT:
                self.consents[action.offer.job].add(agent.name)
            decision = Decision(verdict, "rule", "because", results=("weights",))
            agent.machine.decided(action.offer.job, decision, self.now)
        elif isinstance(action, Start):
            self.say(f"{agent.name} starts {action.job}")
            self.started.setdefault(action.job, set()).add(agent.name)
            assert self._offer(action.job).parties, action
            assert action.job not in agent.runs
            lasts = self.random.uniform(1, 200)
            agent.runs[action.job] = Run(
                self.now, self.now + lasts, fails=self.random.random() < 0.1
            )
            self._nobody_starts_unless_all_have_accepted(action.job)
        elif isinstance(action, Stop):
            self.say(f"{agent.name} stops {action.job}: {action.why}")
            agent.runs[action.job].stopping = self.now + self.random.uniform(0, 10)
        elif isinstance(action, Give):
            assert action.ask.name == "weights"
            agent.machine.give(action.driver, Answer(action.ask.nonce, data=b"w"), self.now)
        elif isinstance(action, Forget):
            agent.disk.pop(action.job, None)
            agent.forgotten.add(action.job)
        elif isinstance(action, Noticed):
            self.conflicts += action.kind == "conflict"
            self.say(f"{agent.name} {action.kind} {action.job}: {action.text}")

    def _nobody_starts_unless_all_have_accepted(self, job: str) -> None:
        offer = self._offer(job)
        missing = set(offer.parties) - self.consents[job]
        assert not missing, f"{job} starts without the consent of {missing}"

    def _people(self, agent: Agent) -> None:
        for name, job in agent.machine.jobs.items():
            if job.state is State.WAITING and self.random.random() < 0.05:
                if self.random.random() < 0.8:
                    self.consents[name].add(agent.name)
                    assert agent.machine.approve(name, "ann", self.now)
                else:
                    assert agent.machine.refuse(name, "no", self.now)
                break
            if not self.calm and not job.state.has_ended and self.random.random() < 0.0005:
                self.say(f"{agent.name} cancels {name} while {job.state}")
                assert agent.machine.cancel(name, "ann changed her mind", self.now)
                break

    def _processes(self, agent: Agent) -> None:
        for job, run in list(agent.runs.items()):
            machine = agent.machine
            if run.stopping is not None:
                if self.now >= run.stopping:
                    del agent.runs[job]
                    machine.stopped(job, self.now)
                continue
            peers = [party for party in self._offer(job).parties if party != agent.name]
            there = [party for party in peers if self._runs(party, job)]
            done = [party for party in peers if (party, job) in self.done]
            # As sessions with journals: whoever is killed joins again, if the others still run.
            run.has_met = len(there) == len(peers) or (
                run.has_met and set(there) | set(done) == set(peers)
            )
            if not run.has_met:
                machine.progress(job, self.now, step=0, text="joining")
                continue
            run.step += 1
            self.computed.add(job)
            if self.now >= run.ends:
                del agent.runs[job]
                if run.fails:
                    machine.failed(job, self.now, "division by zero")
                else:
                    self.done.add((agent.name, job))
                    machine.finished(job, self.now, ("weights", "secret", "more"))
            else:
                machine.progress(job, self.now, step=run.step, text="reveal")

    def _runs(self, party: str, job: str) -> bool:
        run = self.agents[party].runs.get(job)
        return run is not None and run.stopping is None

    def _is_killed(self, agent: Agent) -> bool:
        if self.calm or self.random.random() >= self.kills:
            return False
        self.say(f"{agent.name} is killed")
        agent.down_until = self.now + self.random.choice((0.0, 1.0, 30.0, 500.0))
        agent.runs.clear()
        return True

    def _begin_again(self, agent: Agent) -> None:
        self.say(f"{agent.name} begins again")
        agent.down_until = None
        agent.machine = self._machine(agent.name)
        for text in agent.disk.values():
            agent.machine.restore(json.loads(text), self.now)

    def _offer(self, job: str) -> Offer:
        return next(offer for offer in self.offers if offer.job == job)

    # -- the driver -------------------------------------------------------------------------------

    def _drive(self) -> None:
        if self.driver_gone:
            return
        if self.driver_down is not None:
            if self.now < self.driver_down:
                return
            self.driver_down = None
            self.driver = {
                job: DriverJob.from_value(json.loads(text))
                for job, text in self.driver_disk.items()
            }
            self.repeats = Repeats()
        for offer in self.offers:
            if offer.driver != DRIVER:
                continue
            if offer.job not in self.driver and self.now >= offer.issued:
                self.say(f"{DRIVER} offers {offer.job} to {', '.join(offer.parties)}")
                self.driver[offer.job] = DriverJob(offer)
                self._keep(offer.job)
        owed = set()
        for src, _, body in self._arrived(DRIVER, (ANSWERS_TAG,)):
            if body["kind"] == "answer":
                self.answers.append(Answer.from_value_untrusted(body))
                continue
            note = Note.from_value_untrusted(body)
            job = self.driver.get(note.job)
            if job is not None:
                if job.heard_untrusted(src, note):
                    self._keep(note.job)
                if note.wants:
                    owed.add((note.job, src))
        if not self.calm:
            self._hostile_driver()
            for name, job in self.driver.items():
                if self.random.random() < 0.0005 and job.cancel(self.now):
                    self.say(f"{DRIVER} cancels {name}")
                    self._keep(name)
        for name, job in self.driver.items():
            unseen = job.unseen(self.now)
            for party in job.offer.parties:
                if party not in unseen:
                    self.repeats.stop((name, party))
                elif (name, party) not in self.repeats:
                    self.repeats.want((name, party), self.now)
        for name, party in sorted({*self.repeats.due(self.now), *owed}):
            self.push(DRIVER, self.driver[name].letter(party, self.now))
        if self.random.random() < 0.02:
            self._ask()
        if not self.calm and self.random.random() < self.kills:
            self.say(f"{DRIVER} is killed")
            self.driver_down = self.now + self.random.choice((0.0, 5.0, 300.0))
            self.driver_gone = self.driver_vanishes

    def _keep(self, job: str) -> None:
        self.driver_disk[job] = json.dumps(self.driver[job].to_value())

    def _hostile_driver(self) -> None:
        """Somebody without right offers, cancels and asks."""
        if self.random.random() >= 0.01:
            return
        real = self.random.choice(self.offers)
        own = self.random.random() < 0.5
        job = "j" + "e" * 12 if own else real.job
        offer = Offer(job, OUTSIDER, real.issued, real.expires, PROGRAM, real.parties)
        if own and job not in self.consents:
            self.consents[job] = set()
            self.offers.append(offer)
        if own:
            offer = self._offer(job)
        status = {"offer": offer.to_value(), "cancelled": self.random.random() < 0.5}
        body = Note(job, 9, status, 0, wants=True).to_value()
        dst = self.random.choice(real.parties)
        self.push(OUTSIDER, Letter(dst, OFFERS_TAG, body, self.now + 60))
        for about in About:
            ask = Ask(f"{self.random.getrandbits(128):032x}", about, real.job, "weights")
            self.push(OUTSIDER, Letter(dst, OFFERS_TAG, ask.to_value(), self.now + 60))

    def _ask(self) -> None:
        offer = self.random.choice(self.offers)
        party = self.random.choice(offer.parties)
        name = self.random.choice(("weights", "secret"))
        ask = Ask(f"{self.random.getrandbits(128):032x}", About.RESULT, offer.job, name)
        self.push(DRIVER, Letter(party, OFFERS_TAG, ask.to_value(), self.now + 60))

    # -- all of it --------------------------------------------------------------------------------

    def play(self) -> None:
        """Play until everything has settled."""
        end = BEGIN + 6000
        while self.now < end:
            self._drive()
            for agent in self.agents.values():
                self._agent(agent)
            if self.calm and self._is_quiet():
                break
            self.now = self._next()

    def _next(self) -> float:
        """Now and then in the trouble; later, when something happens."""
        soon = self.now + 4.0
        if not self.calm or any(agent.runs for agent in self.agents.values()):
            return soon
        times = [at for waiting in self.lists.values() for at, _ in waiting]
        machines = [agent.machine for agent in self.agents.values()]
        if any(j.state is State.WAITING for m in machines for j in m.jobs.values()):
            return soon
        times += [at for m in machines if (at := m.next_time()) is not None]
        times += [at for at in (self.repeats.next_due(),) if at is not None]
        return max(soon, min(times, default=self.now + 100))

    def _is_quiet(self) -> bool:
        jobs = [job for agent in self.agents.values() for job in agent.machine.jobs.values()]
        ended = all(job.state.has_ended for job in jobs)
        waiting = any(
            there
            for (_, dst, _), there in self.lists.items()
            if dst != OUTSIDER and not (dst == DRIVER and self.driver_gone)
        )
        told = all(
            job.is_settled(self.now) or self._is_contested(job.offer)
            for job in self.driver.values()
        )
        told = told and len(self.driver) == sum(o.driver == DRIVER for o in self.offers)
        told = told or self.driver_gone
        settled = all(a.down_until is None and not a.runs for a in self.agents.values())
        return ended and told and not waiting and settled and all(map(self._is_known, jobs))

    def _is_known(self, job: AgentJob) -> bool:
        """Whether the other agents that know of the job have seen this one's last word."""
        return self._is_contested(job.offer) or all(
            job.seen.get(name, 0) >= job.told_peers
            for name in job.offer.parties
            if job.offer.job in self.agents[name].machine.jobs
            and self.agents[name].machine.jobs[job.offer.job] is not job
        )

    def _is_contested(self, offer: Offer) -> bool:
        """Whether an agent took the job's id for somebody else's offer."""
        entries = [agent.machine.jobs.get(offer.job) for agent in self.agents.values()]
        return any(job is not None and job.offer != offer for job in entries)

    def check(self) -> None:
        """Check what must hold after any run."""
        for offer in self.offers:
            entries = {
                party: self.agents[party].machine.jobs.get(offer.job) for party in offer.parties
            }
            self._check_ends(offer, entries)
            if offer.driver == OUTSIDER:
                assert offer.job not in self.started
        assert not any(agent.runs for agent in self.agents.values())
        assert all(answer.data in (b"", b"w") for answer in self.answers)

    def _check_ends(self, offer: Offer, entries: dict[str, AgentJob | None]) -> None:
        known = {party: job for party, job in entries.items() if job is not None}
        for party, job in known.items():
            assert job.state.has_ended, (offer.job, party, job.state)
        if self._is_contested(offer):
            # Whoever knows a job's id, as those that take part do, can take it for another offer.
            assert offer.job not in self.started
            return
        wholes = {party: job.whole(party) for party, job in known.items()}
        if len(known) == len(offer.parties):
            ends = {(end.state, end.by) for end in wholes.values()}
            assert len(ends) == 1, (offer.job, wholes)
            if offer.driver == DRIVER and not self.driver_gone and offer.job in self.driver:
                mine = self.driver[offer.job].whole(self.now)
                assert (mine.state, mine.by) in ends, (offer.job, mine, wholes)
                assert not mine.unknown
        else:  # the offer never reached somebody: nobody may have started
            assert offer.job not in self.started
            for end in wholes.values():
                assert end.state is not State.FINISHED
                assert end.state.has_ended
        states = {job.state for job in known.values()}
        if State.REFUSED in states:
            assert offer.job not in self.computed
        if states == {State.FINISHED}:
            assert set(offer.parties) <= self.consents[offer.job]
            for job in known.values():
                assert job.status.results == ("weights",)


def main() -> None:
    """Play one seed, or many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("-v", action="store_true")
    given = parser.parse_args()
    for seed in range(given.seed, given.seed + given.count):
        simulation = Simulation(seed, verbose=given.v)
        try:
            simulation.play()
            simulation.check()
        except BaseException:
            print(f"seed {seed}")
            raise


if __name__ == "__main__":
    main()
