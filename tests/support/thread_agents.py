"""Agents as threads of a test: machines and mailboxes; their processes only seem to run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from redislink.broker import Broker
from redislink.cluster import ClusterSpec
from redislink.identity import Identity, format_public_key
from redislink.jobs.client import Client
from redislink.jobs.machine import AgentMachine, Decide, Give, Start, Stop
from redislink.jobs.mailbox import agent_sources, open_mailbox
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.policy import Action, Decision
from redislink.jobs.requests import MOST_PART, About, Answer
from redislink.settings import RedisLinkSettings
from redislink.values import encode_value

PARTIES = ("alice", "bob")
KEYS = {name: Identity.generate() for name in (*PARTIES, "dora", "eve")}
LOG = b"line one\n\x1b[31mred\n" * 80_000
RESULT = {"weights": list(range(400_000))}


class ThreadAgent:
    """A machine with a mailbox; its processes end when the test says so."""

    def __init__(self, name: str, spec: ClusterSpec, url: str, verdict: Action) -> None:
        self.verdict = verdict
        self.logs = True
        self.may_end = threading.Event()
        self.machine = AgentMachine(name, parties=PARTIES, drivers=("dora", "eve"))
        sources = agent_sources(name, PARTIES, ("dora", "eve"))
        settings = RedisLinkSettings.load()
        self.mailbox = open_mailbox(
            spec, name, KEYS[name], settings, sources=sources, brokers=[Broker(url)]
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        running: set[str] = set()
        while not self._ended.is_set():
            for each in self.mailbox.take(0.02):
                self.machine.heard(each.src, each.tag, each.body, time.time())
            if self.may_end.is_set():
                for job in running:
                    self.machine.finished(job, time.time(), ("weights", "secret"))
                running.clear()
            self.machine.tick(time.time())
            for job, _ in self.machine.unsaved():
                self.machine.saved(job)
            for action in self.machine.actions():
                now = time.time()
                if isinstance(action, Decide):
                    decision = Decision(
                        self.verdict, "rule", "because", results=("weights",), logs=self.logs
                    )
                    self.machine.decided(action.offer.job, decision, now)
                elif isinstance(action, Start):
                    running.add(action.job)
                    self.machine.progress(action.job, now, step=3, text="reveal")
                elif isinstance(action, Stop):
                    running.discard(action.job)
                    self.machine.stopped(action.job, now)
                elif isinstance(action, Give):
                    ask = action.ask
                    whole = LOG if ask.about is About.LOG else encode_value(RESULT)
                    part = whole[ask.offset : ask.offset + MOST_PART]
                    answer = Answer(ask.nonce, total=len(whole), offset=ask.offset, data=part)
                    self.machine.give(action.driver, answer, now)
            for job, _ in self.machine.unsaved():
                self.machine.saved(job)
            for letter in self.machine.letters(time.time()):
                self.mailbox.send(letter, time.time())

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.mailbox.close()


class Stage:
    """Two agents, and whatever clients the test makes."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.spec = ClusterSpec.parse(
            {
                "session": f"s-{new_job_id()}",
                "parties": [
                    {"name": p, "public_key": format_public_key(KEYS[p].public_key)}
                    for p in PARTIES
                ],
                "drivers": [
                    {"name": d, "public_key": format_public_key(KEYS[d].public_key)}
                    for d in ("dora", "eve")
                ],
            }
        )
        self.agents: dict[str, ThreadAgent] = {}

    def start(self, **verdicts: Action) -> None:
        for name, verdict in verdicts.items():
            self.agents[name] = ThreadAgent(name, self.spec, self.url, verdict)

    def client(self, driver: str = "dora", directory: str = "jobs") -> Client:
        return Client(
            self.spec, driver, identity=KEYS[driver], jobs_dir=self.directory / directory,
            brokers=[Broker(self.url)],
        )  # fmt: skip

    def offer(self, driver: str = "dora", **fields: object) -> Offer:
        now = int(time.time())
        usual: dict[str, object] = {
            "job": new_job_id(), "driver": driver, "issued": now, "expires": now + 600,
            "program": "sha256:" + "ab" * 32, "parties": PARTIES,
            "results": ("weights", "secret"),
        }  # fmt: skip
        return Offer(**(usual | fields))  # type: ignore[arg-type]

    def let_jobs_end(self) -> None:
        for agent in self.agents.values():
            agent.may_end.set()
