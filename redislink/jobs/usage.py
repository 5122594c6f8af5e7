"""What a job's processes use, as the operating system counts it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

_BLOCK: Final = 512
_PROC: Final = Path("/proc")  # Linux only
_GONE: Final = (psutil.NoSuchProcess, psutil.AccessDenied, OSError)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; none if it has ended."""
    with contextlib.suppress(*_GONE):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Seconds of CPU of these processes, and of their children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(*_GONE):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(processes: list[psutil.Process], most: int) -> int:
    """Bytes of memory of these processes together.

    Args:
        processes: the processes.
        most: the limit. Pages that several share are counted once only where that decides about
            it, because the kernel takes its time to tell them apart.
    """
    total = _sum(processes, lambda process: int(process.memory_info().rss))
    if total > most and len(processes) > 1:
        total = _sum(processes, _own_part)
    return total


def disk_bytes(directory: Path) -> int:
    """Bytes that the files below a directory take on the disk."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += Path(place, name).lstat().st_blocks * _BLOCK
    return total


def marked(variable: str) -> list[psutil.Process]:
    """The processes of this user whose environment has this variable, given as ``NAME=value``.

    Whatever process a job starts inherits its environment, wherever it moves itself.
    """
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(*_GONE):
            if _has_variable(pid, variable):
                found.append(psutil.Process(pid))
    return found


def _has_variable(pid: int, variable: str) -> bool:
    if _PROC.is_dir():
        # As it is: psutil keeps one value of a name that is there twice.
        return variable.encode() in (_PROC / f"{pid}/environ").read_bytes().split(b"\0")
    name, _, value = variable.partition("=")
    return psutil.Process(pid).environ().get(name) == value


def _sum(processes: list[psutil.Process], count: Callable[[psutil.Process], int]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(*_GONE):
            total += count(process)
    return total


def _own_part(process: psutil.Process) -> int:
    """Its own pages, and its part of those that several share where that is known."""
    if not _PROC.is_dir():
        return int(process.memory_full_info().uss)
    for line in (_PROC / f"{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0
