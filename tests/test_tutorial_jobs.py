"""The tutorial on jobs, typed as it stands: every file and every command of docs/tutorial-jobs.md.

Each command is a process of its own, in the directory of who types it. The broker is one of the
test's, so its address in the cluster file is the only thing that differs.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode
from tests.support.forking import ForkedCommand
from tests.support.waiting import wait_until
from tests.test_tutorial import sections

PAGE: Final = "docs/tutorial-jobs.md"
PARTIES: Final = ("alice", "bob")
_PATIENCE: Final = 60.0


def blocks(where: str) -> list[str]:
    """What is typed there, in order."""
    return [text for found in sections(PAGE).values() for place, text in found if place == where]


class People:
    """Everybody's directories, below one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        self.environment["REDISLINK_JOBS_DIR"] = str(root / "state")
        self.agents: list[subprocess.Popen[str]] = []
        self.where = dict.fromkeys((*PARTIES, "coordinator"), root)
        """The directory of each one's terminal."""
        self.job = ""

    def run(self, words: list[str], who: str) -> subprocess.CompletedProcess[str]:
        process = ForkedCommand(words, cwd=self.where[who], env=self.environment)
        out, err = process.communicate(timeout=_PATIENCE)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def type(self, who: str, block: str, code: int = 0) -> str:
        """Type the commands of a block; what they printed, on stdout and stderr."""
        said = ""
        lines = block.replace("NAME", who).replace("JOB", self.job).splitlines()
        for is_ours, some in itertools.groupby(lines, lambda line: line.startswith("redislink ")):
            if not is_ours:
                self.shell(who, "\n".join(some))
                continue
            for line in some:
                done = self.run(shlex.split(line)[1:], who)
                assert done.returncode == code, (line, done.stdout, done.stderr)
                said += done.stdout + done.stderr
        return said

    def shell(self, who: str, script: str) -> None:
        """Type what is no command of ours."""
        script += "\npwd"
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.where[who],
            capture_output=True,
            text=True,
            check=True,
        )
        self.where[who] = Path(done.stdout.splitlines()[-1])

    def start_agent(self, who: str, block: str) -> None:
        _, *words = shlex.split(block.replace("NAME", who))
        log = self.root / who / "agent.log"
        with log.open("wb") as output:
            agent = ForkedCommand(
                words,
                cwd=self.root / who,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.agents.append(agent)

        def waits() -> bool:
            assert agent.poll() is None, log.read_text()
            return "waits for jobs" in log.read_text()

        wait_until(waits, _PATIENCE)


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    made = People(tmp_path)
    yield made
    for agent in made.agents:
        agent.terminate()
        assert agent.wait(_PATIENCE) == ExitCode.OK


@pytest.mark.slow
def test_the_tutorial_on_jobs(people: People) -> None:
    assert blocks("broker") == ["redislink broker\n"]
    with EmbeddedBroker() as broker:
        play(people, broker.url)


def play(people: People, url: str) -> None:
    everybody = (*PARTIES, "coordinator")
    keys, cluster = blocks("everybody")
    for block in (keys, cluster.replace("redis://127.0.0.1:6379/0", url)):
        for who in everybody:
            people.type(who, block)
    for found in sections(PAGE).values():
        for place, text in found:
            if place.startswith("file: "):
                (people.root / place.removeprefix("file: ")).write_text(text)
    (approve_program,) = blocks("each party")
    (agent,) = blocks("agents")
    digests = {people.type(who, approve_program).splitlines()[0] for who in PARTIES}
    assert len(digests) == 1
    for who in PARTIES:
        people.start_agent(who, agent)
    submit, fetch = blocks("coordinator")
    said = people.type("coordinator", submit)
    people.job = said.split()[0]
    assert people.job.startswith("j")

    alices = people.root / "alice" / "agent.log"
    wait_until(lambda: f"{people.job}: waiting" in alices.read_text(), _PATIENCE)
    (decide,) = blocks("alice decides")
    said = people.type("alice", decide)
    assert "from redislink import Session" in said
    said = people.type("coordinator", fetch)
    assert "finished" in said
    assert re.search(r"^6$", said, re.MULTILINE), said
    assert "bob has 3 patients, both have 6" in said
    (refused,) = blocks("coordinator is refused")
    said = people.type("coordinator", refused, code=ExitCode.PEER)
    assert "alice's policy does not let logs of this job out" in said
    (look,) = blocks("alice looks")
    said = people.type("alice", look)
    assert people.job in said
    assert (people.where["alice"] / people.job / "report.html").is_file()
