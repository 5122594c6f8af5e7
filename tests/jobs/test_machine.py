"""An agent's machine: each state, and what may not lead out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redislink.errors import ConfigError
from redislink.jobs import machine as m
from redislink.jobs.driver import DriverJob
from redislink.jobs.machine import AgentMachine, Decide, Forget, Give, Noticed, Start, Stop
from redislink.jobs.offer import Offer
from redislink.jobs.policy import Action, Decision, JobLimits
from redislink.jobs.replication import Note
from redislink.jobs.requests import About, Answer, Ask
from redislink.jobs.status import State, Status
from redislink.protocol.list_names import ANSWERS_TAG, JOBS_TAG, OFFERS_TAG
from tests.jobs.examples import NOW, an_offer

OFFER = an_offer()
JOB = OFFER.job
DRIVER = OFFER.driver
ACCEPT = Decision(
    Action.ACCEPT, "rule", "fine", JobLimits(wall=5.0, memory=9), ("weights",), logs=True
)
ASK = Decision(Action.ASK, "rule", "ask ann")
REFUSE = Decision(Action.REFUSE, "", "no rule matches")
NONCE = "ab" * 16


class Alice:
    """Alice's machine, and what the tests do to it."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.disk: dict[str, str] = {}
        self.now = float(NOW)
        self.machine = self.new()

    def new(self) -> AgentMachine:
        return AgentMachine(
            "alice", parties=("alice", "bob", "carol"), drivers=(DRIVER, "eve"), **self.options
        )

    def offered(self, offer: Offer = OFFER, src: str = DRIVER, **fields: Any) -> None:
        status = {"offer": offer.to_value(), "cancelled": False} | fields
        note = Note(offer.job, 2 if status["cancelled"] else 1, status, 0, wants=True)
        self.machine.heard(src, OFFERS_TAG, note.to_value(), self.now)

    def told(self, state: State, src: str = "bob", offer: Offer = OFFER, **fields: Any) -> None:
        usual = {"version": 5, "state": state, "offer": offer.digest()}
        status = Status(**(usual | fields))
        note = Note(offer.job, status.version, status.to_value(), 0, wants=True)
        self.machine.heard(src, JOBS_TAG, note.to_value(), self.now)

    def decide(self, decision: Decision = ACCEPT, job: str = JOB) -> None:
        self.machine.decided(job, decision, self.now)

    def settle(self) -> list[m.Action]:
        """Write what has changed; return what there is to do."""
        for job, value in self.machine.unsaved():
            self.disk[job] = json.dumps(value)
            self.machine.saved(job)
        return [each for each in self.machine.actions() if not isinstance(each, Noticed)]

    def state(self, job: str = JOB) -> State:
        return self.machine.jobs[job].state

    def killed(self) -> None:
        self.settle()
        self.machine = self.new()
        for value in self.disk.values():
            self.machine.restore(json.loads(value), self.now)


def at(state: State, **options: Any) -> Alice:
    """Alice with a job in this state."""
    alice = Alice(**options)
    alice.offered()
    if state is State.OFFERED:
        return alice
    alice.decide({State.WAITING: ASK, State.REFUSED: REFUSE}.get(state, ACCEPT))
    if state in (State.STARTING, State.RUNNING, State.FINISHED, State.FAILED):
        alice.told(State.ACCEPTED)
    if state in (State.RUNNING, State.FINISHED, State.FAILED):
        alice.machine.progress(JOB, alice.now, step=1, text="reveal")
    if state is State.FINISHED:
        alice.machine.finished(JOB, alice.now, ("weights", "secret"))
    elif state is State.FAILED:
        alice.machine.failed(JOB, alice.now, "division by zero")
    elif state is State.CANCELLED:
        alice.machine.cancel(JOB, "changed our mind", alice.now)
    elif state is State.EXPIRED:
        alice.now = float(OFFER.expires)
        alice.machine.tick(alice.now)
    assert alice.state() is state
    return alice


OPEN = [state for state in State if not state.has_ended]
HAS_PROCESS = (State.STARTING, State.RUNNING)
ENDS: dict[str, Callable[[Alice], Any]] = {
    "cancelled": lambda alice: alice.offered(cancelled=True),
    "cancelled here": lambda alice: alice.machine.cancel(JOB, "no", alice.now),
    "refused": lambda alice: alice.told(State.REFUSED, version=9, by="bob", reason="never"),
    "expired": lambda alice: alice.told(State.EXPIRED, version=9, by="bob"),
    "failed": lambda alice: alice.told(State.FAILED, version=9, by="bob", reason="broken"),
}


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("how", ENDS)
def test_each_state_is_ended_by_whoever_may(state: State, how: str) -> None:
    alice = at(state)
    alice.settle()
    ENDS[how](alice)
    assert str(alice.state()) == how.split()[0]
    whom = {"cancelled": DRIVER, "cancelled here": "alice"}.get(how, "bob")
    assert alice.machine.jobs[JOB].status.by == whom
    stops = [action.job for action in alice.settle() if isinstance(action, Stop)]
    assert stops == ([JOB] if state in HAS_PROCESS else [])


@pytest.mark.parametrize("state", [state for state in State if state.has_ended])
@pytest.mark.parametrize("how", ENDS)
def test_what_has_ended_stays_as_it_is(state: State, how: str) -> None:
    alice = at(state)
    alice.settle()
    ENDS[how](alice)
    alice.told(State.ACCEPTED, version=9)
    alice.decide()
    alice.machine.approve(JOB, "ann", alice.now)
    alice.machine.progress(JOB, alice.now, step=4)
    alice.machine.finished(JOB, alice.now)
    assert alice.state() is state
    assert alice.settle() == []


@pytest.mark.parametrize("state", State)
def test_an_agent_that_was_killed_goes_on_where_it_was(state: State) -> None:
    alice = at(state)
    before = alice.machine.jobs[JOB]
    alice.killed()
    assert alice.machine.jobs[JOB] == before
    expected = {State.OFFERED: [Decide(OFFER)]} | {state: [Start(JOB)] for state in HAS_PROCESS}
    assert alice.settle() == expected.get(state, [])
    told = {letter.dst for letter in alice.machine.letters(alice.now)}
    assert told == {DRIVER, "bob"}


@pytest.mark.parametrize("state", State)
def test_nothing_is_told_before_it_is_on_disk(state: State) -> None:
    alice = at(state)
    assert alice.machine.letters(alice.now) == []
    alice.settle()
    assert {letter.dst for letter in alice.machine.letters(alice.now)} == {DRIVER, "bob"}


@pytest.mark.parametrize("state", [State.OFFERED, State.WAITING, State.ACCEPTED, State.STARTING])
def test_what_has_not_started_expires(state: State) -> None:
    alice = at(state)
    assert alice.machine.next_time() <= OFFER.expires
    alice.now = float(OFFER.expires)
    alice.machine.tick(alice.now)
    assert alice.state() is State.EXPIRED


def test_what_runs_does_not_expire() -> None:
    alice = at(State.RUNNING)
    alice.now = OFFER.expires + 1e6
    alice.machine.tick(alice.now)
    assert alice.state() is State.RUNNING


def test_a_person_decides_where_the_policy_asks() -> None:
    alice = at(State.WAITING)
    assert alice.machine.approve(JOB, "ann", alice.now)
    assert not alice.machine.approve(JOB, "ann", alice.now)
    assert alice.state() is State.ACCEPTED
    assert alice.machine.jobs[JOB].approved_by == "ann"
    alice = at(State.WAITING)
    assert alice.machine.refuse(JOB, "not today\x1b[2J", alice.now)
    assert alice.machine.jobs[JOB].status.reason == "not today\N{REPLACEMENT CHARACTER}[2J"
    for state in State:
        if state is not State.WAITING:
            assert not at(state).machine.approve(JOB, "ann", NOW)
            assert not at(state).machine.refuse(JOB, "no", NOW)
    assert not alice.machine.approve("j" + "z" * 12, "ann", alice.now)


@pytest.mark.parametrize(
    ("state", "starts"),
    [(state, state.has_accepted) for state in State if not state.ends_others],
)
def test_it_starts_once_all_have_accepted(state: State, starts: bool) -> None:
    alice = at(State.ACCEPTED)
    alice.settle()
    alice.told(state)
    assert alice.settle() == ([Start(JOB)] if starts else [])


def test_three_agents_all_have_to_accept() -> None:
    offer = an_offer(parties=("alice", "bob", "carol"))
    alice = Alice()
    alice.offered(offer)
    alice.decide()
    alice.told(State.ACCEPTED, "bob", offer)
    assert alice.state() is State.ACCEPTED
    alice.told(State.RUNNING, "carol", offer)
    assert alice.state() is State.STARTING


def test_two_stories_of_one_job_start_nothing() -> None:
    """A driver that offers alice one program and bob another one."""
    alice = at(State.ACCEPTED)
    alice.told(State.ACCEPTED, offer=an_offer(program="sha256:" + "cd" * 32))
    assert alice.state() is State.REFUSED
    assert "offered another job under this id" in alice.machine.jobs[JOB].status.reason


@pytest.mark.parametrize(
    "hostile",
    [
        lambda alice: alice.offered(src="eve"),
        lambda alice: alice.offered(an_offer(driver="eve"), src="eve", cancelled=True),
        lambda alice: alice.offered(src="bob", cancelled=True),
        lambda alice: alice.offered(an_offer(arguments={"epochs": 9})),
        lambda alice: alice.offered(cancelled="yes"),
        lambda alice: alice.told(State.CANCELLED, "carol"),
        lambda alice: alice.told(State.CANCELLED, "eve"),
        lambda alice: alice.told(State.CANCELLED, "alice"),
        lambda alice: alice.told(State.CANCELLED, DRIVER),
        lambda alice: alice.machine.heard("bob", OFFERS_TAG, {"kind": "note"}, alice.now),
        lambda alice: alice.machine.heard("bob", ANSWERS_TAG, {"kind": "note"}, alice.now),
        lambda alice: alice.machine.heard("bob", JOBS_TAG, [1], alice.now),
        lambda alice: alice.machine.heard("bob", JOBS_TAG, {"kind": [2]}, alice.now),
    ],
)
@pytest.mark.parametrize("state", [State.ACCEPTED, State.RUNNING])
def test_nobody_else_changes_a_job(state: State, hostile: Callable[[Alice], None]) -> None:
    alice = at(state)
    alice.settle()
    before = alice.machine.jobs[JOB].status
    hostile(alice)
    assert alice.machine.jobs[JOB].status == before
    assert alice.settle() == []
    assert sum(alice.machine.ignored.values()) == 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"parties": ("bob", "carol")}, "does not take part"),
        ({"issued": NOW - 7200, "expires": NOW}, "has expired"),
        ({"driver": "eve"}, "somebody else"),
    ],
)
def test_offers_that_leave_nothing_behind(fields: dict[str, Any], why: str) -> None:
    alice = Alice()
    alice.offered(an_offer(data={}, **fields))
    assert alice.machine.jobs == {}
    assert alice.settle() == []
    (said,) = alice.machine.ignored
    assert why in said


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parties": ("alice", "mallory")}, "mallory is not in the cluster"),
        ({"issued": NOW + 301}, "it was issued 301 s ahead of the clock here: set the clocks"),
    ],
)
def test_offers_that_are_refused_without_the_policy(fields: dict[str, Any], reason: str) -> None:
    alice = Alice()
    alice.offered(an_offer(**fields))
    assert alice.machine.jobs[JOB].status.reason == reason
    assert alice.settle() == []


def test_a_replay_does_nothing_not_even_when_the_job_is_forgotten() -> None:
    alice = at(State.FINISHED)
    alice.settle()
    alice.killed()
    alice.offered()
    assert alice.state() is State.FINISHED
    alice.now = NOW + m.KEEP + 7200
    alice.machine.tick(alice.now)
    assert alice.settle() == [Forget(JOB)]
    assert alice.machine.jobs == {}
    alice.offered()
    assert alice.machine.jobs == {}
    assert alice.machine.letters(alice.now) == []
    assert alice.machine.next_time() is None


def test_a_cancel_that_overtakes_its_offer_holds() -> None:
    alice = Alice()
    alice.offered(cancelled=True)
    alice.offered()
    assert alice.state() is State.CANCELLED
    assert alice.settle() == []


def test_the_driver_is_told_only_what_the_policy_lets_out() -> None:
    alice = at(State.FINISHED)
    assert alice.machine.jobs[JOB].status.results == ("weights",)


@pytest.mark.parametrize(
    ("state", "ask", "given"),
    [
        (State.FINISHED, Ask(NONCE, About.RESULT, JOB, "weights"), True),
        (State.FINISHED, Ask(NONCE, About.RESULT, JOB, "secret"), False),
        (State.RUNNING, Ask(NONCE, About.RESULT, JOB, "weights"), False),
        (State.FAILED, Ask(NONCE, About.RESULT, JOB, "weights"), False),
        (State.RUNNING, Ask(NONCE, About.LOG, JOB), True),
        (State.ACCEPTED, Ask(NONCE, About.LOG, JOB), False),
        (State.REFUSED, Ask(NONCE, About.LOG, JOB), False),
        (State.FINISHED, Ask(NONCE, About.LOG, "j" + "z" * 12), False),
    ],
)
def test_what_a_driver_asks_for(state: State, ask: Ask, given: bool) -> None:
    alice = at(state)
    alice.settle()
    alice.machine.letters(alice.now)
    alice.machine.heard(DRIVER, OFFERS_TAG, ask.to_value(), alice.now)
    assert alice.settle() == ([Give(DRIVER, ask)] if given else [])
    letters = alice.machine.letters(alice.now)
    if not given:
        assert Answer.from_value_untrusted(letters[0].body).problem
    alice.machine.heard("eve", OFFERS_TAG, ask.to_value(), alice.now)
    (letter,) = alice.machine.letters(alice.now)
    assert letter.dst == "eve"
    assert "knows of no such job of eve" in Answer.from_value_untrusted(letter.body).problem


def test_a_driver_lists_its_own_jobs_and_not_too_often() -> None:
    alice = at(State.RUNNING)
    alice.settle()
    for driver, count in ((DRIVER, 1), ("eve", 0)):
        alice.machine.letters(alice.now)
        for _ in range(1000):
            ask = Ask(NONCE, About.JOBS).to_value()
            alice.machine.heard(driver, OFFERS_TAG, ask, alice.now)
        letters = alice.machine.letters(alice.now)
        assert len(letters) == 64
        assert len(Answer.from_value_untrusted(letters[0].body).jobs) == count
    assert alice.machine.ignored["more requests of a driver than an agent answers"] == 2 * 936
    alice.now += 60
    alice.machine.heard(DRIVER, OFFERS_TAG, Ask(NONCE, About.JOBS).to_value(), alice.now)
    assert [letter.tag for letter in alice.machine.letters(alice.now)].count(ANSWERS_TAG) >= 1


def test_one_driver_cannot_fill_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MOST_JOBS", 20)
    alice = Alice()
    for number in range(m.MOST_JOBS + 5):
        alice.offered(an_offer(job=f"j{number:012d}"))
    assert len(alice.machine.jobs) == m.MOST_JOBS
    alice.offered(an_offer(job="j" + "e" * 12, driver="eve"), src="eve")
    assert len(alice.machine.jobs) == m.MOST_JOBS + 1


# -- room for jobs -------------------------------------------------------------------------------


def two_jobs(slots: int) -> tuple[Alice, Offer, Offer]:
    """Both accepted by alice; none by bob."""
    early = an_offer(job="j" + "e" * 12, issued=NOW - 60)
    late = an_offer(job="j" + "l" * 12)
    alice = Alice(slots=slots)
    for offer in (late, early):
        alice.offered(offer)
        alice.decide(job=offer.job)
    alice.settle()
    return alice, early, late


def test_a_job_that_waits_for_others_makes_room_for_an_earlier_one() -> None:
    alice, early, late = two_jobs(1)
    alice.told(State.ACCEPTED, offer=late)
    assert alice.settle() == [Start(late.job)]
    alice.told(State.ACCEPTED, offer=early)
    (stop,) = alice.settle()
    assert isinstance(stop, Stop)
    assert stop.job == late.job
    assert alice.state(late.job) is State.ACCEPTED
    assert alice.state(early.job) is State.ACCEPTED
    alice.machine.stopped(late.job, alice.now)
    assert alice.settle() == [Start(early.job)]
    alice.machine.progress(early.job, alice.now, step=1)
    alice.machine.finished(early.job, alice.now)
    assert alice.settle() == [Start(late.job)]


def test_a_job_that_runs_makes_no_room() -> None:
    alice, early, late = two_jobs(1)
    alice.told(State.ACCEPTED, offer=late)
    alice.machine.progress(late.job, alice.now, step=1)
    alice.settle()
    alice.told(State.ACCEPTED, offer=early)
    assert alice.settle() == []
    alice.machine.failed(late.job, alice.now, "broken")
    assert alice.settle() == [Start(early.job)]


def test_a_job_that_finishes_while_it_makes_room_has_finished() -> None:
    alice, early, late = two_jobs(1)
    alice.told(State.ACCEPTED, offer=late)
    alice.told(State.ACCEPTED, offer=early)
    alice.settle()
    alice.machine.finished(late.job, alice.now)
    assert alice.state(late.job) is State.FINISHED
    assert alice.settle() == [Start(early.job)]


def test_a_process_that_has_ended_meanwhile_is_not_stopped() -> None:
    alice, early, late = two_jobs(1)
    alice.told(State.ACCEPTED, offer=late)
    alice.settle()
    alice.told(State.ACCEPTED, offer=early)  # late has to make room
    alice.machine.failed(late.job, alice.now, "broken")
    assert alice.settle() == [Start(early.job)]
    assert alice.state(late.job) is State.ACCEPTED


def test_a_process_that_ends_stays_in_the_way_until_it_has_ended() -> None:
    alice, early, late = two_jobs(1)
    alice.told(State.ACCEPTED, offer=late)
    alice.machine.cancel(late.job, "no", alice.now)
    alice.settle()
    alice.told(State.ACCEPTED, offer=early)
    assert alice.settle() == []
    alice.machine.stopped(late.job, alice.now)
    assert alice.settle() == [Start(early.job)]


def test_a_process_that_can_meet_nobody_any_more_fails() -> None:
    alice = at(State.RUNNING)
    alice.told(State.FINISHED, version=8)
    alice.now += 2 * m.STRANDED
    alice.machine.tick(alice.now)
    assert alice.state() is State.RUNNING  # it is in the middle of its own end
    alice.killed()
    alice.machine.progress(JOB, alice.now, step=0, text="joining")
    alice.machine.tick(alice.now)
    assert alice.machine.next_time() <= alice.now + m.STRANDED
    alice.now += m.STRANDED
    alice.machine.tick(alice.now)
    assert alice.state() is State.FAILED
    assert "others had finished" in alice.machine.jobs[JOB].status.reason


# -- what is written and what arrives ------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_a_job_on_disk_is_the_same_job(state: State) -> None:
    alice = at(state)
    job = alice.machine.jobs[JOB]
    assert m.AgentJob.from_value(json.loads(json.dumps(job.to_value()))) == job


@pytest.mark.parametrize("field", at(State.RUNNING).machine.jobs[JOB].to_value())
def test_a_file_that_was_damaged_is_told_from_a_job(field: str) -> None:
    value = at(State.RUNNING).machine.jobs[JOB].to_value()
    del value[field]
    with pytest.raises(ConfigError):
        Alice().machine.restore(value, NOW)
    with pytest.raises(ConfigError):
        Alice().machine.restore([1], NOW)


def test_an_attached_program_survives_the_disk() -> None:
    import hashlib

    source = bytes(range(256))
    offer = an_offer(source=source, program=f"sha256:{hashlib.sha256(source).hexdigest()}")
    assert m.offer_from_json(json.loads(json.dumps(m.offer_to_json(offer)))) == offer
    job = DriverJob(offer)
    assert DriverJob.from_value(json.loads(json.dumps(job.to_value()))) == job
    job.cancel(NOW)
    status = job.note("bob").status
    assert status is not None
    assert status["offer"]["source"] is None
    alice = Alice()
    alice.offered(offer)
    note = job.note("alice")
    alice.machine.heard(DRIVER, OFFERS_TAG, note.to_value(), alice.now)
    assert alice.state() is State.CANCELLED


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(JOB),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([State.ACCEPTED, State.RUNNING]),
    st.sampled_from(["kind", "job", "version", "status", "seen", "wants"]),
    ANY,
)
def test_no_letter_breaks_a_machine(state: State, field: str, value: Any) -> None:
    alice = at(state)
    status = Status(9, State.ACCEPTED, OFFER.digest()).to_value()
    for src, tag in ((DRIVER, OFFERS_TAG), ("bob", JOBS_TAG), ("bob", OFFERS_TAG)):
        note = Note(JOB, 9, status, 1, wants=True).to_value()
        alice.machine.heard(src, tag, note | {field: value}, alice.now)
        note["status"] = status | {"state": value}
        alice.machine.heard(src, tag, note, alice.now)
        alice.machine.heard(src, tag, value, alice.now)
    assert alice.state() in (state, State.STARTING)
