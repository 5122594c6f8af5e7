"""`BusyPoll`: polls for a reply for a moment, before the thread sleeps until it comes.

A thread that sleeps is woken late: its processor may have halted, and on a virtual machine it takes
the hypervisor to start it again. Where the broker is near, that is most of a small message's time.

Rules:
- Polling yields the processor to whoever else can use it, such as the broker or the peer.
- One thread of a process polls at a time.
- It is left off where it brings nothing: after each time in vain, twice as many receives as before
  go without.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from redislink.broker.connection import BrokerConnection
from redislink.forking import renew_in_child

_MOST_IN_VAIN: Final = 8
_FEWEST_PROCESSORS: Final = 2
_MOUNTED: Final = Path("/sys/fs/cgroup")
_polling: Final = threading.Lock()
renew_in_child(_polling)


class BusyPoll:
    """Polls on one connection at a time."""

    __slots__ = ("_in_vain", "_seconds", "_without")

    def __init__(self, seconds: float) -> None:
        """Args:
        seconds: how long to poll at most.
        """
        self._seconds = seconds
        self._in_vain = 0
        """How often in a row nothing came."""
        self._without = 0
        """How many receives are to go without."""

    def wait(self, connection: BrokerConnection) -> None:
        """Poll until a reply begins to arrive on the connection, if that is worth it.

        Never raises: whoever reads the reply learns what is wrong.
        """
        if self._without:
            self._without -= 1
            return
        if not _polling.acquire(blocking=False):
            return
        try:
            came = connection.poll_busily(self._seconds)
        finally:
            _polling.release()
        if came:
            self._in_vain = 0
        else:
            self._in_vain = min(self._in_vain + 1, _MOST_IN_VAIN)
            self._without = (1 << self._in_vain) - 1


def has_spare_processors(mounted: Path = _MOUNTED) -> bool:
    """Return whether this process may use enough processors for one thread to keep one busy.

    Args:
        mounted: where control groups are mounted: a container has the limits of its own there.
    """
    try:
        usable = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        usable = float(os.cpu_count() or 1)
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((mounted / file).read_text() for file in files).split()
            if float(quota) > 0:
                usable = min(usable, float(quota) / float(period))
        except (OSError, ValueError):  # another version of control groups, or no limit ("max")
            continue
    return usable >= _FEWEST_PROCESSORS
