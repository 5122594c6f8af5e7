"""One party's process: ``python -m benchmarks.party JOB.json INDEX``.

Runs the works of a job one after the other and writes what came out, with the CPU time and the
peak memory of each, beside the job's file. Ends with whoever started it, and when time is up.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import transports, workloads

_PR_SET_PDEATHSIG: Final = 1
_HERTZ: Final = os.sysconf("SC_CLK_TCK")


class Meter:
    """CPU seconds and peak resident bytes of a process of this user, while it is entered."""

    def __init__(self, pid: int | None = None) -> None:
        """Args: None for this process."""
        self._proc = Path(f"/proc/{pid or 'self'}")
        self._own = pid is None

    def __enter__(self) -> Meter:
        (self._proc / "clear_refs").write_text("5")  # the peak starts anew
        self._before = self._cpu()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = round(self._cpu() - self._before, 4)
        status = (self._proc / "status").read_text()
        self.peak = int(status.partition("VmHWM:")[2].split()[0]) << 10

    def _cpu(self) -> float:
        if self._own:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            return usage.ru_utime + usage.ru_stime
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _HERTZ


def measured(call: Callable[[], workloads.Values], broker_pid: int | None) -> dict[str, Any]:
    """Values of a work, with what it cost this process and the broker."""
    gc.collect()
    own, broker = Meter(), Meter(broker_pid)
    with broker, own:
        values = call()
    return {
        "values": values,
        "cpu": own.cpu,
        "peak": own.peak,
        "broker_cpu": None if broker_pid is None else broker.cpu,
        "broker_peak": None if broker_pid is None else broker.peak,
    }


def run(job: dict[str, Any], index: int) -> dict[str, Any]:
    """The works of a job as one process; results by the works' names."""
    broker_pid = job["broker_pid"] if index == 0 else None
    first = job["works"][0]
    if first["kind"] == "sessions":  # these join by themselves, and many times
        call = functools.partial(workloads.sessions, job, index, first)
        return {first["name"]: measured(call, broker_pid)}
    results = {}
    joined = transports.join(job, index)
    try:
        with joined.turns or contextlib.nullcontext():
            for work in job["works"]:
                call = functools.partial(workloads.KINDS[work["kind"]], joined, work)
                results[work["name"]] = measured(call, broker_pid)
    except BaseException:  # noqa: BLE001 - whatever it is ends this process, and says so
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # closing might wait for peers that will never come
    joined.close()
    return results


def run_in_threads(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Every party of a job as a thread of this process."""
    world_size = len(job["parties"])
    results: list[dict[str, Any]] = [{} for _ in range(world_size)]

    def party(rank: int) -> None:
        results[rank] = run(job, rank)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def main() -> None:
    """See the module."""
    atexit.register(gc.freeze)  # it spares the end of this process a look for garbage
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    path, index = Path(sys.argv[1]), int(sys.argv[2])
    job = json.loads(path.read_text())
    faulthandler.dump_traceback_later(job["timeout"], exit=True)
    if job["transport"] == transports.MEM:
        for rank, results in enumerate(run_in_threads(job)):
            path.with_name(f"out{rank}.json").write_text(json.dumps(results))
    else:
        path.with_name(f"out{index}.json").write_text(json.dumps(run(job, index)))


if __name__ == "__main__":
    main()
