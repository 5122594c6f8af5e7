"""Runs the sessions of a plan, round by round, within a limit of time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks import processes, programs
from benchmarks.plan import needed_programs
from benchmarks.processes import ROOT
from benchmarks.runner import Record, Runner, Session
from benchmarks.transports import MPLANG

MPLANG_PACKAGE: Final = "mplang-nightly"
_CODE: Final = ("redislink", "benchmarks")
_BUILDER: Final = "hatch_build.py"
"""Builds what is compiled, for the checkout that it is in."""


class Bench:
    """Everything that one run of the benchmarks needs.

    Attributes:
        prepared: directory with what the programs need.
        mplang: version of `MPLANG_PACKAGE` in its interpreter; None if it is not there.
        skipped: sessions for which there was no time.
    """

    def __init__(self, scratch: Path, minutes: float, mplang: str | None = None) -> None:
        """Args: a directory for temporary files, when to stop, MPLang's interpreter."""
        self._scratch = scratch
        self.prepared = scratch / "prepared"
        self.prepared.mkdir()
        self._deadline = time.monotonic() + 60 * minutes
        # A copy, so that an edit during the run does not change what is measured.
        code = scratch / "code"
        for part in _CODE:
            shutil.copytree(
                ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__", "results")
            )
        self.mplang = mplang_version(mplang) if mplang else None
        self._runner = Runner(scratch, code, mplang if self.mplang else None)
        self.skipped = 0

    def check_out(self, revisions: Iterable[str]) -> dict[str, Path]:
        """Directories with the ``redislink`` of other revisions, by short name."""
        found = {}
        for number, revision in enumerate(revisions):
            directory = self._scratch / f"revision{number}"
            found[check_out(revision, directory)] = directory
        return found

    def run(self, sessions: list[Session]) -> list[Record]:
        """Run all sessions in all their rounds; on Ctrl-C, what there is by then."""
        sessions = [s for s in sessions if self.mplang or s.transport != MPLANG]
        for name, world_size in sorted(needed_programs(sessions)):
            programs.prepare(name, world_size, self.prepared / f"{name}-{world_size}")
        turns = [
            (number, [session for session in together if number < session.runs])
            for number in range(max((session.runs for session in sessions), default=0))
            for together in _together(sessions)
        ]
        turns = [(number, together) for number, together in turns if together]
        records: list[Record] = []
        took: dict[str, float] = {}
        started = time.monotonic()
        try:
            for turn, (number, together) in enumerate(turns, 1):
                label = together[0].label
                if time.monotonic() + took.get(label, 0.0) > self._deadline:
                    self.skipped += len(together)
                    continue
                if together[0].in_turns:
                    found = self._runner.run_in_turns(together)
                else:
                    found = [self._runner.run(together[0])]
                records += [record | {"round": number} for record in found]
                took[label] = found[0]["took"]
                minutes = (time.monotonic() - started) / 60
                for session, record in zip(together, found, strict=True):
                    end = f"FAILED: {record['error']}" if record["error"] else f"{record['took']} s"
                    say(
                        f"[{turn}/{len(turns)}, {minutes:.1f} min] round {number + 1}: "
                        f"{session.label}: {end}"
                    )
        except KeyboardInterrupt:
            self.skipped = sum(len(together) for _, together in turns) - len(records)
            say("interrupted: what there is by now is all there will be")
        return records


def _together(sessions: list[Session]) -> list[list[Session]]:
    """Those that run at once, and the others each alone."""
    found: list[list[Session]] = []
    for session in sessions:
        if session.in_turns and found and found[-1][0].group == session.group:
            found[-1].append(session)
        else:
            found.append([session])
    return found


def check_out(revision: str, directory: Path) -> str:
    """Write the ``redislink`` of a revision below a directory; its short name."""
    name = _git("rev-parse", "--short=10", "--verify", f"{revision}^{{commit}}").decode().strip()
    directory.mkdir(exist_ok=True)
    builder = _git("ls-tree", "--name-only", name, _BUILDER).decode().split()
    archive = _git("archive", name, "redislink", *builder)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    if builder:  # else it has no native leaves
        subprocess.run([sys.executable, directory / _BUILDER], check=True, capture_output=True)
    return name


def mplang_version(interpreter: str) -> str | None:
    """The version of MPLang in another interpreter, if it works there with the same SPU."""
    look = (
        "import importlib.metadata as m, mplang.backends.simp_worker.http, mplang.backends.channel;"
        f"print(m.version({MPLANG_PACKAGE!r}), m.version('spu'))"
    )
    try:
        done = subprocess.run(
            [interpreter, "-P", "-c", look],
            capture_output=True,
            text=True,
            timeout=120,
            env=processes.environment(),
        )
    except OSError:
        return None
    if done.returncode:
        return None
    version, spu = done.stdout.split()[-2:]
    return f"{MPLANG_PACKAGE} {version} with spu {spu}"


def say(message: str) -> None:
    """One line of progress."""
    print(message, file=sys.stderr, flush=True)


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, timeout=60)
    if done.returncode:
        raise SystemExit(f"git {words[0]}: {done.stderr.decode().strip()}")
    return done.stdout
