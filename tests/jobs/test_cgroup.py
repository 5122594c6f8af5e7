"""Control groups: when an agent may divide its own, and what a job's says.

The kernel's part is played by plain files: which memory controller a machine has is not the test's
to choose. What they are named, and when the kernel takes them, is the kernel's documentation.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redislink.jobs.cgroup import ControlGroups


class Machine:
    """A control group as the kernel shows it."""

    def __init__(self, directory: Path, name: str = "system.slice/agent.service") -> None:
        self.mounted = directory / "cgroup"
        self.path = self.mounted / name
        self.path.mkdir(parents=True)
        self.own = directory / "own"
        self.own.write_text(f"4:memory:/elsewhere\n0::/{name}\n")
        self.set("cgroup.controllers", "cpu memory pids\n")
        self.set("cgroup.procs", f"{os.getpid()}\n")
        self.set("cgroup.subtree_control", "")

    def set(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def get(self, name: str) -> str:
        return (self.path / name).read_text()

    def find(self) -> ControlGroups | None:
        return ControlGroups.find(self.mounted, self.own)


def test_an_agent_divides_a_group_of_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    groups = machine.find()
    assert groups is not None
    assert machine.get("agent/cgroup.procs") == str(os.getpid())
    assert machine.get("cgroup.subtree_control") == "+memory"
    group = groups.make("j0123456789ab", 8 << 30)
    assert group is not None
    assert group.path == machine.path / "j0123456789ab"
    assert machine.get("j0123456789ab/memory.max") == str(8 << 30)
    assert machine.get("j0123456789ab/memory.oom.group") == "1"
    assert not group.ran_out_of_memory()
    (group.path / "memory.events").write_text("low 0\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert group.ran_out_of_memory()
    group.kill()
    assert machine.get("j0123456789ab/cgroup.kill") == "1"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cgroup.controllers", "cpu pids\n"),
        ("cgroup.procs", f"1\n{os.getpid()}\n"),
        ("cgroup.procs", ""),
    ],
    ids=["no memory", "others", "nobody"],
)
def test_one_that_is_not_its_own_stays_as_it_is(tmp_path: Path, name: str, text: str) -> None:
    machine = Machine(tmp_path)
    machine.set(name, text)
    assert machine.find() is None
    assert not (machine.path / "agent").exists()
    assert machine.get("cgroup.subtree_control") == ""


def test_without_any_the_agent_watches(tmp_path: Path) -> None:
    assert ControlGroups.find(tmp_path, tmp_path / "none") is None
    machine = Machine(tmp_path)
    machine.own.write_text("4:memory:/x\n")
    assert machine.find() is None
    machine.own.write_text("0::/elsewhere\n")
    assert machine.find() is None
