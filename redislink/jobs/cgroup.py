"""Control groups, version 2: where the kernel itself holds a job to its memory.

An agent uses them if its own control group is its alone to divide: as a systemd service with
``Delegate=memory``, or in a container that may write to ``/sys/fs/cgroup``. Elsewhere the agent
watches its jobs (`redislink.jobs.usage`), which a job that allocates fast can outrun for a moment.

Rule: what cannot be set up leaves everything as it was, and the agent watches instead.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Self

_MOUNTED: Final = Path("/sys/fs/cgroup")
_OURS: Final = "agent"
_NEEDED: Final = "memory"


class ControlGroups:
    """The control group of this agent, divided into one for itself and one for each job."""

    def __init__(self, path: Path) -> None:
        """Not for users: call `find`."""
        self._path = path

    @classmethod
    def find(cls, mounted: Path = _MOUNTED, own: Path = Path("/proc/self/cgroup")) -> Self | None:
        """Divide this process's control group, if nobody else is in it and it can be divided.

        Args:
            mounted: where control groups are mounted.
            own: names the control group of this process.
        """
        with contextlib.suppress(OSError):
            for line in own.read_text().splitlines():
                number, _, name = line.partition("::")
                path = mounted / name.removeprefix("/")
                if number == "0" and cls._divide(path):
                    return cls(path)
        return None

    @staticmethod
    def _divide(path: Path) -> bool:
        if path.name == _OURS and _NEEDED in _words(path.parent / "cgroup.subtree_control"):
            return False  # another agent divided it
        if _NEEDED not in _words(path / "cgroup.controllers"):
            return False
        pid = str(os.getpid())
        if _words(path / "cgroup.procs") != [pid]:
            return False  # processes and parts do not go together
        ours = path / _OURS
        ours.mkdir(exist_ok=True)
        (ours / "cgroup.procs").write_text(pid)
        try:
            (path / "cgroup.subtree_control").write_text(f"+{_NEEDED}")
        except OSError:
            (path / "cgroup.procs").write_text(pid)
            ours.rmdir()
            raise
        return True

    def make(self, job: str, memory: int | None) -> ControlGroup | None:
        """Make the control group of a job, empty; None if that is not possible.

        Args:
            job: the job's id.
            memory: bytes that its processes may use together.
        """
        group = ControlGroup(self._path / job)
        group.kill()  # of an earlier run
        group.remove()
        with contextlib.suppress(OSError):
            group.path.mkdir()
            (group.path / "memory.max").write_text("max" if memory is None else str(memory))
            (group.path / "memory.oom.group").write_text("1")
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                (group.path / "memory.swap.max").write_text("0")
            return group
        group.remove()
        return None


class ControlGroup:
    """The control group of one job.

    Attributes:
        path: its directory; a process that writes its number to ``cgroup.procs`` there joins it.
    """

    def __init__(self, path: Path) -> None:
        """Args:
        path: its directory.
        """
        self.path = path

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended its processes because they used too much memory."""
        with contextlib.suppress(OSError):
            words = _words(self.path / "memory.events")
            return int(words[words.index("oom_kill") + 1]) > 0
        return False

    def kill(self) -> None:
        """End all processes in it, wherever they have moved themselves below it."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Remove it, if no process is left in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _words(path: Path) -> list[str]:
    return path.read_text().split()
