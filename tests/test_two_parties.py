"""The page for two parties, typed as it stands, with a broker of the test's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from redislink.broker import EmbeddedBroker
from tests.support.forking import ForkedCommand
from tests.test_tutorial import sections

FOUND: Final = sections("docs/two-parties.md")
ROTATE: Final = sections("docs/how-to/rotate.md")
PARTIES: Final = ("alice", "bob")


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
    with EmbeddedBroker() as broker:
        yield env | {"REDISLINK_BROKER_URL": broker.url}


def blocks(heading: str, where: str) -> list[str]:
    return [text for place, text in FOUND[heading] if place == where]


def start(block: str, directory: Path, env: dict[str, str]) -> ForkedCommand:
    command, *words = shlex.split(block)
    assert command == "redislink"
    directory.mkdir(exist_ok=True)
    return ForkedCommand(words, cwd=directory, env=env)


def end(process: ForkedCommand, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


@pytest.mark.slow
def test_two_compute_on_one_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    (program,) = blocks("Try it on one machine", "file: two.py")
    (printed,) = blocks("Try it on one machine", "printed")
    (tmp_path / "two.py").write_text(program)
    make, _simulate = blocks("Try it on one machine", "first terminal")
    assert "CHEETAH, because two parties compute" in end(start(make, tmp_path, environment))[1]
    assert blocks("Try it on one machine", "broker") == ["redislink broker\n"]
    running = [
        start(*blocks("Try it on one machine", party), tmp_path, environment) for party in PARTIES
    ]
    for process in running:
        assert end(process)[0] == printed, "nothing else, such as what SPU logs"


@pytest.mark.slow
def test_each_organisation_makes_its_own(tmp_path: Path, environment: dict[str, str]) -> None:
    heading = "Between two organisations"
    for party in PARTIES:
        (introduce,) = blocks(heading, f"{party}'s organisation")
        end(start(introduce, tmp_path / party, environment))
    (again,) = blocks(heading, "both organisations")
    _, err = end(start(again, tmp_path / "alice", environment), code=4)
    assert "the introduction of bob is missing" in err
    for one, other in (PARTIES, PARTIES[::-1]):
        path = Path("redislink-session", "introductions", f"{other}.yaml")
        (tmp_path / one / path).write_bytes((tmp_path / other / path).read_bytes())
    for party in PARTIES:
        assert "redislink doctor" in end(start(again, tmp_path / party, environment))[1]
    (alice, bob) = (tmp_path / party / "redislink-session" / "cluster.yaml" for party in PARTIES)
    assert alice.read_bytes() == bob.read_bytes()
    _alice_changes_her_key(tmp_path, environment)
    assert alice.read_bytes() == bob.read_bytes()
    _both_compute(tmp_path, environment)


def _alice_changes_her_key(tmp_path: Path, environment: dict[str, str]) -> None:
    (steps,) = [rest for heading, rest in ROTATE.items() if "identity key" in heading]
    (rekey,) = (text for place, text in steps if place == "alice changes her key")
    (others,) = (text for place, text in steps if place == "every other party")
    _, err = end(start(rekey, tmp_path / "alice", environment))
    assert "moved redislink-session/alice.key to alice.key." in err
    path = Path("redislink-session", "introductions", "alice.yaml")
    (tmp_path / "bob" / path).write_bytes((tmp_path / "alice" / path).read_bytes())
    end(start(others, tmp_path / "bob", environment))


def _both_compute(tmp_path: Path, environment: dict[str, str]) -> None:
    """Alice and bob, each in its own directory, as the page says."""
    (program,) = blocks("Try it on one machine", "file: two.py")
    (printed,) = blocks("Try it on one machine", "printed")
    running = []
    for party in PARTIES:
        (tmp_path / party / "two.py").write_text(program)
        doctor, run = blocks("Between two organisations", f"{party} computes")[0].splitlines()
        end(start(doctor, tmp_path / party, environment))
        running.append(start(run, tmp_path / party, environment))
    for process in running:
        assert end(process)[0] == printed
