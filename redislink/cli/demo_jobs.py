"""``redislink demo --jobs``: agents wait, a driver submits a training, a person approves it.

Rules: as for the demo. The demo is ok only if the driver got the result that the policies let it
have, and was refused the others, and no agent and no job of one ever listened.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import typer

from redislink.broker import Broker, EmbeddedBroker
from redislink.cli import decide, errors
from redislink.cli.errors import ExitCode, show
from redislink.cli.examples import PROGRAM, find_examples
from redislink.cli.parties import WatchedProcess, broker_addresses
from redislink.cluster import ClusterSpec
from redislink.cluster.trial import trial_devices, write_trial
from redislink.identity.keypair import Identity, format_public_key
from redislink.jobs.driver import DriverJob
from redislink.jobs.letters import Sealer
from redislink.jobs.machine import Letter
from redislink.jobs.mailbox import Mailbox, driver_sources
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.program import Program
from redislink.jobs.replication import Note
from redislink.jobs.requests import About, Answer, Ask
from redislink.jobs.runner import LOG
from redislink.jobs.status import State
from redislink.jobs.store import ProgramStore
from redislink.jobs.work import REPORT, WorkDirectory
from redislink.logs import PartyLogger
from redislink.protocol.list_names import OFFERS_TAG
from redislink.values import decode_value_untrusted

PARTIES: Final = ("alice", "bob", "carol")
DATA_OWNERS: Final = ("alice", "bob")
ASKS: Final = "alice"
"""At this party a person decides."""
DRIVER: Final = "coordinator"
LEARNS: Final = "alice"
NAME: Final = "lr-train"
LET_OUT: Final = "accuracy"
KEPT: Final = "model"
_PATIENCE: Final = 300.0
_LOOK_INTERVAL: Final = 0.1
_POLICY: Final = """\
# What {party} lets run. The first rule that matches decides; if none does, the offer is refused.
rules:
  - name: training for the coordinator
    driver: {driver}
    program: {program}
    arguments:
      type: object
      properties: {{job: {{const: true}}}}
      required: [job]
      additionalProperties: false
    data: [{data}]
    action: {action}
    results: {{to_driver: [{results}]}}
    limits: {{wall: 10m, cpu: 20m, memory: 4GiB, disk: 1GiB}}
data: {{{paths}}}
limits: {{jobs: 1}}
"""


class Organisation:
    """One party: its directory, its policy, and its agent's process."""

    def __init__(self, name: str, directory: Path, cluster: Path, key: Path, url: str) -> None:
        self.name = name
        self.directory = directory
        self.work = directory / "work"
        self.is_decided = False
        """Whether its person has decided."""
        words = [
            *("agent", "--cluster", str(cluster), "--party", name, "--identity", str(key)),
            *("--policy", str(directory / "policy.yaml")),
            *("--programs", str(directory / "programs"), "--work", str(self.work)),
        ]
        environment = {"REDISLINK_BROKER_URL": url, "REDISLINK_BROKER_PROXY": "none"}
        self.agent = WatchedProcess(name, words, directory / "agent.log", environment)


class DemoOfJobs:
    """The whole demo, below one directory that stays."""

    def __init__(self, directory: Path, url: str, *, yes: bool) -> None:
        self._directory = directory
        self._yes = yes
        self._url = url
        self._said: dict[str, str] = {}
        self.problems: list[str] = []
        """Why the demo is not ok, one line each."""

    def run(self) -> None:
        """Play it, and say what happens."""
        program = Program.read(find_examples() / PROGRAM)
        driver_key = Identity.generate()
        cluster, keys = self._directory / "cluster.yaml", {}
        for name in PARTIES:
            self._prepare(name, program)
            keys[name] = self._directory / name / "identity.key"
        content = {
            "session": f"demo-{secrets.token_hex(4)}",
            "parties": list(PARTIES),
            "devices": trial_devices(list(PARTIES)),
            "drivers": [{"name": DRIVER, "public_key": format_public_key(driver_key.public_key)}],
        }
        spec = write_trial(content, cluster, keys, "of redislink demo --jobs")
        with contextlib.ExitStack() as stack:
            parties = {}
            for name in PARTIES:
                place = self._directory / name
                parties[name] = Organisation(name, place, cluster, keys[name], self._url)
                stack.enter_context(parties[name].agent)
            self._play(parties, spec, driver_key, program)

    def _prepare(self, name: str, program: Program) -> None:
        """What an organisation sets up for itself: its data, its policy, the approved program."""
        place = self._directory / name
        place.mkdir(parents=True)
        owns = name in DATA_OWNERS
        if owns:
            shutil.copy(find_examples() / "data" / f"{name}.csv", place / "patients.csv")
        (place / "policy.yaml").write_text(
            _POLICY.format(
                party=name,
                driver=DRIVER,
                program=NAME,
                data="patients" if owns else "",
                paths="patients: patients.csv" if owns else "",
                action="ask" if name == ASKS else "accept",
                results=LET_OUT if name == LEARNS else "",
            )
        )
        store = ProgramStore(place / "programs")
        store.add(program, NAME, by=decide.who_decides(), now=time.time(), approved=True)

    def _play(
        self,
        parties: Mapping[str, Organisation],
        spec: ClusterSpec,
        key: Identity,
        program: Program,
    ) -> None:
        now = int(time.time())
        offer = Offer(
            job=new_job_id(),
            driver=DRIVER,
            issued=now,
            expires=now + int(_PATIENCE),
            program=program.digest,
            program_name=NAME,
            arguments={"job": True},
            data=dict.fromkeys(DATA_OWNERS, ("patients",)),
            parties=PARTIES,
            devices=tuple(spec.devices),
            results=(LET_OUT, KEPT),
        )
        job = DriverJob(offer)
        with _mailbox(spec, key, self._url) as mailbox:
            show(f"{DRIVER}: submits job {offer.job}: program {NAME}, {offer.program}")
            give_up = time.monotonic() + _PATIENCE
            while not job.whole(time.time()).state.has_ended:
                if time.monotonic() > give_up:
                    self.problems.append(f"the job has not ended after {_PATIENCE:.0f} s")
                    return
                if self._has_lost_an_agent(parties):
                    return
                for party in job.unseen(time.time()):
                    mailbox.send(job.letter(party, time.time()), time.time())
                for received in mailbox.take(_LOOK_INTERVAL):
                    note = Note.from_value_untrusted(received.body)
                    if note.job == offer.job:
                        job.heard_untrusted(received.src, note)
                self._say_states(job)
                self._decide_if_asked(parties[ASKS], offer.job)
            self._judge(job, parties, mailbox)

    def _has_lost_an_agent(self, parties: Mapping[str, Organisation]) -> bool:
        for party in parties.values():
            party.agent.sockets.look()
            if party.agent.exit_code() is not None:
                line = errors.without_advice(party.agent.last_line().removeprefix("redislink: "))
                self.problems.append(errors.with_party(line, party.name))
        return bool(self.problems)

    def _say_states(self, job: DriverJob) -> None:
        """Say what has changed at each party."""
        for party, status in sorted(job.statuses.items()):
            said = str(status.state)
            if status.state is State.WAITING or (status.by and status.state.has_ended):
                said += f" ({status.reason})"
            elif status.text and not status.state.has_ended:
                said += f": step {status.step}, {status.text}"
            if self._said.get(party) != said:
                self._said[party] = said
                show(f"  {party}: {said}")

    def _decide_if_asked(self, party: Organisation, job: str) -> None:
        """Have a person decide at the party that asks one."""
        if not self._said.get(party.name, "").startswith(State.WAITING) or party.is_decided:
            return
        party.is_decided = True
        command = f"redislink jobs approve {job} --work {party.work}"
        agreed = self._yes or not sys.stdin.isatty()
        if agreed:
            show(f"{party.name}: a person types: {command}")
        else:
            agreed = typer.confirm(f"{party.name}: approve it ({command})?", default=True)
        decide.decide(party.work, job, "approve" if agreed else "refuse")

    def _judge(self, job: DriverJob, parties: Mapping[str, Organisation], mailbox: Mailbox) -> None:
        """Fetch what the driver may have, and see whether all is as it should be."""
        whole = job.whole(time.time())
        if whole.state is not State.FINISHED:
            self.problems.append(f"the job is {whole.state} by {whole.by}: {whole.reason}")
            return
        for name in (LET_OUT, KEPT):
            answer = _ask(mailbox, job.offer.job, name)
            if answer is None:
                self.problems.append(f"{LEARNS} does not answer about the result {name}")
            elif answer.problem:
                show(f"{DRIVER}: {name}: {answer.problem}")
            else:
                show(f"{DRIVER}: {name} = {decode_value_untrusted(answer.data)}")
            if answer is not None and bool(answer.problem) != (name == KEPT):
                self.problems.append(f"the result {name} is not where the policies want it")
        for party in parties.values():
            sockets = party.agent.sockets
            if sockets.listening:
                self.problems.append(f"{party.name}: held {sockets.listening} listening sockets")
            elsewhere = sorted(sockets.remotes - broker_addresses(self._url))
            if elsewhere:
                self.problems.append(
                    f"{party.name}: was connected to {elsewhere[0]}, not the broker"
                )
        looks = min(party.agent.sockets.looks for party in parties.values())
        show(
            f"Sockets of agents and jobs were read {looks} times or more: none listened, and each "
            "connection went to the broker."
        )
        show("")
        for party in parties.values():
            work = WorkDirectory(party.work)
            of_job = work.of(job.offer.job)
            found = [of_job / LOG, of_job / REPORT, work.record, work.record_of(job.offer.job)]
            show(f"{party.name}'s log, report, and audit records of agent and job:")
            for path in found:
                if path.exists():
                    show(f"  {path}")


def demo_jobs(directory: Path, *, yes: bool) -> NoReturn:
    """Play the demo below a directory that is new, and exit with its code.

    Args:
        directory: where everything is put, and stays.
        yes: whether nobody is asked.
    """
    password = secrets.token_urlsafe(32)
    with EmbeddedBroker(password=password) as broker:
        played = DemoOfJobs(directory, broker.url, yes=yes)
        played.run()
    for problem in played.problems:
        errors.say(problem)
    raise SystemExit(int(ExitCode.PROGRAM if played.problems else ExitCode.OK))


def _mailbox(spec: ClusterSpec, key: Identity, url: str) -> Mailbox:
    sealer = Sealer(
        DRIVER,
        session=spec.session,
        digest=spec.digest(),
        private_key=key.private_key,
        public_keys=spec.keys_for_jobs(),
        random_bytes=secrets.token_bytes,
    )
    return Mailbox(
        [Broker(url)],
        sealer,
        session=spec.session,
        me=DRIVER,
        sources=driver_sources(spec.party_names),
        log=PartyLogger(spec.session, DRIVER),
    )


def _ask(mailbox: Mailbox, job: str, name: str) -> Answer | None:
    """Ask alice's agent for a result; None if it does not answer."""
    ask = Ask(secrets.token_hex(16), About.RESULT, job, name)
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        now = time.time()
        mailbox.send(Letter(LEARNS, OFFERS_TAG, ask.to_value(), now + 60), now)
        for received in mailbox.take(1.0):
            body: Any = received.body
            if isinstance(body, dict) and body.get("nonce") == ask.nonce:
                return Answer.from_value_untrusted(body)
    return None
