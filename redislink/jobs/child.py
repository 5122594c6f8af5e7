"""The first program of a job's process: it applies the limits, then becomes ``redislink run``.

Rules:
- It is started by its file's path, and imports the standard library only, so that it takes
  milliseconds and nothing of a program or of redislink runs before the limits are there.
- A job ends with its agent: an agent that starts again finds none running. On Linux the kernel sees
  to that (``PR_SET_PDEATHSIG``), elsewhere a guard does, which waits for the end of a pipe.
- What cannot be applied ends it: no job runs without its limits.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CPU_GRACE = 10
"""Seconds of CPU between SIGXCPU, which ends Python, and SIGKILL."""


def main() -> None:
    """Apply the limits in the first argument (JSON), then run the command in the others."""
    limits = json.loads(sys.argv[1])
    if limits["guard"] is None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        _start_guard(limits["guard"])
    if os.getppid() != limits["parent"]:  # it has ended before that
        raise SystemExit(1)
    if limits["cgroup"] is not None:
        Path(limits["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds secrets
    _limit(resource.RLIMIT_CPU, limits["cpu"], _CPU_GRACE)
    _limit(resource.RLIMIT_FSIZE, limits["file"])
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - our own command


def _start_guard(pipe: int) -> None:
    """Start a process that ends this one and its group when the agent has ended.

    It is nobody's child, so that a program that waits for its own children never waits for it.

    Args:
        pipe: ends when the agent does; the agent writes a byte when the job has ended.
    """
    job = os.getpid()
    first = os.fork()
    if first:
        os.close(pipe)
        os.waitpid(first, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0 and not os.read(pipe, 1):
            os.killpg(job, signal.SIGKILL)
    finally:
        os._exit(0)


def _limit(which: int, most: int | None, grace: int = 0) -> None:
    if most is None:
        return
    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY:
        hard = most + grace
    resource.setrlimit(which, (min(most, hard), min(most + grace, hard)))


if __name__ == "__main__":
    main()
