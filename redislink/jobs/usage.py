"""What a job's processes use, as the operating system counts it.

Linux says it in ``/proc``. Elsewhere psutil knows: redislink depends on it there, and only there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

_BLOCK: Final = 512
_PROC: Final = Path("/proc")  # Linux only
_T = TypeVar("_T")


def family(pid: int) -> list[int]:
    """The numbers of a process and of all that descend from it; none if it has ended."""
    machine = _machine()
    children: dict[int, list[int]] = {}
    for each in machine.pids():
        for parent in machine.of_those_there([each], machine.parent):
            children.setdefault(parent, []).append(each)
    found = [pid] if any(pid in several for several in children.values()) else []
    for each in found:  # which grows
        found += children.get(each, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of CPU of these processes, and of their children that have ended."""
    machine = _machine()
    return sum(machine.of_those_there(pids, machine.cpu_seconds))


def memory_bytes(pids: list[int], most: int) -> int:
    """Bytes of memory of these processes together.

    Args:
        pids: the numbers of the processes.
        most: the limit. Pages that several share are counted once only where that decides about
            it, because the kernel takes its time to tell them apart.
    """
    machine = _machine()
    total = sum(machine.of_those_there(pids, machine.resident_bytes))
    if total > most and len(pids) > 1:
        total = sum(machine.of_those_there(pids, machine.own_bytes))
    return total


def disk_bytes(directory: Path) -> int:
    """Bytes that the files below a directory take on the disk."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += Path(place, name).lstat().st_blocks * _BLOCK
    return total


def marked(variable: str) -> list[int]:
    """The processes of this user whose environment has this variable, given as ``NAME=value``.

    Whatever process a job starts inherits its environment, wherever it moves itself.
    """
    machine = _machine()
    return [
        pid
        for pid in machine.pids()
        if any(machine.of_those_there([pid], lambda each: machine.has_variable(each, variable)))
    ]


def has_exited(pid: int) -> bool:
    """Whether a child of this process has exited, if nobody has waited for it yet."""
    machine = _machine()
    return all(machine.of_those_there([pid], machine.is_zombie))


class _Proc:
    """Processes as ``/proc`` shows them."""

    gone: tuple[type[Exception], ...] = (OSError,)
    """What is raised about a process that has ended, or is somebody else's."""
    _page: Final = os.sysconf("SC_PAGE_SIZE")
    _ticks: Final = os.sysconf("SC_CLK_TCK")

    def of_those_there(self, pids: Iterable[int], ask: Callable[[int], _T]) -> Iterator[_T]:
        """What is answered about each process that has not ended."""
        for pid in pids:
            with contextlib.suppress(*self.gone):
                yield ask(pid)

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208

    def parent(self, pid: int) -> int:
        return int(self._stat(pid)[1])

    def cpu_seconds(self, pid: int) -> float:
        return sum(int(ticks) for ticks in self._stat(pid)[11:15]) / self._ticks

    def resident_bytes(self, pid: int) -> int:
        return int((_PROC / f"{pid}/statm").read_text().split()[1]) * self._page

    def own_bytes(self, pid: int) -> int:
        """Its own pages, and its part of those that several share."""
        for line in (_PROC / f"{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
        return 0

    def has_variable(self, pid: int, variable: str) -> bool:
        # Of a name that is there twice, each value counts.
        return variable.encode() in (_PROC / f"{pid}/environ").read_bytes().split(b"\0")

    def is_zombie(self, pid: int) -> bool:
        return self._stat(pid)[0] == b"Z"

    def _stat(self, pid: int) -> list[bytes]:
        """The fields from the third on, the state; the second may hold blanks and brackets."""
        return (_PROC / f"{pid}/stat").read_bytes().rpartition(b") ")[2].split()


class _Psutil(_Proc):
    """Processes as psutil shows them, where there is no ``/proc``."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self.gone = (psutil.NoSuchProcess, psutil.AccessDenied, OSError)

    def pids(self) -> list[int]:
        return self._psutil.pids()

    def parent(self, pid: int) -> int:
        return self._psutil.Process(pid).ppid()

    def cpu_seconds(self, pid: int) -> float:
        times = self._psutil.Process(pid).cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    def resident_bytes(self, pid: int) -> int:
        return int(self._psutil.Process(pid).memory_info().rss)

    def own_bytes(self, pid: int) -> int:
        """Its own pages."""
        return int(self._psutil.Process(pid).memory_full_info().uss)

    def has_variable(self, pid: int, variable: str) -> bool:
        name, _, value = variable.partition("=")
        return self._psutil.Process(pid).environ().get(name) == value

    def is_zombie(self, pid: int) -> bool:
        # psutil also says of some zombies that there is no such process.
        return bool(self._psutil.Process(pid).status() == self._psutil.STATUS_ZOMBIE)


def _machine() -> _Proc:
    return _Proc() if _PROC.is_dir() else _Psutil()
