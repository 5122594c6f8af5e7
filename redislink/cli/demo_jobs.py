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
from typing import Final, NoReturn

import typer

from redislink.broker import Broker, EmbeddedBroker
from redislink.cli import decide, errors
from redislink.cli.errors import ExitCode, show
from redislink.cli.examples import PROGRAM, find_examples
from redislink.cli.parties import WatchedProcess, broker_addresses
from redislink.cluster import ClusterSpec
from redislink.cluster.trial import trial_devices, write_trial
from redislink.errors import JobError
from redislink.identity.keypair import Identity, format_public_key
from redislink.jobs.client import Client, Job
from redislink.jobs.program import Program
from redislink.jobs.runner import LOG
from redislink.jobs.status import State
from redislink.jobs.store import ProgramStore
from redislink.jobs.work import REPORT, WorkDirectory
from redislink.operate import acl
from redislink.settings import RedisLinkSettings

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
_LAST_WORDS: Final = 10.0
_LOOK_INTERVAL: Final = 0.2
_JOB: Final = """\
program: {program}
name: {name}
arguments: {{job: true}}
data: {{alice: [patients], bob: [patients]}}
results: [accuracy, model]
expires: 10m
"""
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
        self._urls: dict[str, str] = {}
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
        self._make_users(spec)
        with contextlib.ExitStack() as stack:
            parties = {}
            for name in PARTIES:
                place = self._directory / name
                parties[name] = Organisation(name, place, cluster, keys[name], self._urls[name])
                stack.enter_context(parties[name].agent)
            self._play(parties, spec, driver_key, program)

    def _make_users(self, spec: ClusterSpec) -> None:
        """Give each party, and the driver, its own Redis user."""
        users = acl.party_users(spec.session, PARTIES, drivers=spec.driver_names)
        passwords = {user.party: acl.make_password() for user in users}
        acl.apply_users(Broker(self._url), users, passwords)
        for user in users:
            url = acl.party_url(self._url, user.name, passwords[user.party])
            self._urls[user.party] = url

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
        job_file = self._directory / "job.yaml"
        job_file.write_text(_JOB.format(program=program.digest, name=NAME))
        with Client(
            spec,
            DRIVER,
            identity=key,
            jobs_dir=self._directory / DRIVER,
            brokers=[Broker(self._urls[DRIVER])],
            settings=RedisLinkSettings(_env_file=None, broker_proxy="none"),
        ) as client:
            job = client.submit(job_file)
            show(f"{DRIVER}: submits job {job.id}: program {NAME}, {job.offer.program}")
            give_up = time.monotonic() + _PATIENCE
            while not job.has_ended:
                if time.monotonic() > give_up:
                    self.problems.append(f"the job has not ended after {_PATIENCE:.0f} s")
                if self.problems or self._has_lost_an_agent(parties):
                    return
                job = client.wait(job.id, _LOOK_INTERVAL)
                self._say_states(job)
                self._decide_if_asked(parties[ASKS], job.id)
            self._judge(client.wait(job.id, _LAST_WORDS), client)
            self._judge_sockets(parties)
            self._say_where(parties, job.id)

    def _has_lost_an_agent(self, parties: Mapping[str, Organisation]) -> bool:
        for party in parties.values():
            party.agent.sockets.look()
            if party.agent.exit_code() is not None:
                line = errors.without_advice(party.agent.last_line().removeprefix("redislink: "))
                self.problems.append(errors.with_party(line, party.name))
        return bool(self.problems)

    def _say_states(self, job: Job) -> None:
        """Say what has changed at each party."""
        for party, status in sorted(job.statuses.items()):
            said = str(status.state)
            if status.state is State.WAITING or (status.by and status.state.has_ended):
                said += f" ({status.reason})"
            elif status.text and not status.state.has_ended:
                step = f"step {status.step}, " if status.step else ""
                said += f": {step}{status.text}"
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

    def _judge(self, job: Job, client: Client) -> None:
        """Fetch what the driver may have, and see whether that is as it should be."""
        self._say_states(job)
        if job.state is not State.FINISHED:
            whole = job.whole
            self.problems.append(f"the job is {whole.state} by {whole.by}: {whole.reason}")
            return
        for name in (LET_OUT, KEPT):
            try:
                show(f"{DRIVER}: {name} = {client.result(job.id, name, LEARNS)}")
                has_it = True
            except JobError as error:
                show(f"{DRIVER}: {error}")
                has_it = False
            if has_it != (name == LET_OUT):
                self.problems.append(f"the result {name} is not where the policies want it")

    def _judge_sockets(self, parties: Mapping[str, Organisation]) -> None:
        for party in parties.values():
            sockets = party.agent.sockets
            if sockets.listening:
                self.problems.append(f"{party.name}: held {sockets.listening} listening sockets")
            for host, port in sorted(sockets.remotes - broker_addresses(self._url)):
                self.problems.append(
                    f"{party.name}: was connected to {host}:{port}, not the broker"
                )
        looks = min(party.agent.sockets.looks for party in parties.values())
        if not self.problems:
            show(
                f"Sockets of agents and jobs were read {looks} times or more: none listened, and "
                "each connection went to the broker. Each party, and the driver, had its own Redis "
                "user."
            )

    def _say_where(self, parties: Mapping[str, Organisation], job: str) -> None:
        for party in parties.values():
            work = WorkDirectory(party.work)
            found = [work.of(job) / LOG, work.of(job) / REPORT, work.record, work.record_of(job)]
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
