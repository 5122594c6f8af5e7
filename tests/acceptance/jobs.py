"""What a job of the acceptance run is, what it needs, and what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class NotHad(Exception):
    """What a job needs cannot be had here; says what. The job counts as not run, not as passed."""


@dataclass(frozen=True)
class Source:
    """A public repository at one revision."""

    name: str
    url: str
    revision: str

    def path(self, sources: Path | None, build: Path) -> Path:
        """Its files: a checkout in ``sources`` if there is one, else a clone in ``build``.

        Raises:
            NotHad: it is not there and cannot be fetched.
        """
        if sources is not None and (sources / self.name).is_dir():
            return sources / self.name
        here = build / "sources" / self.name
        if not here.is_dir():
            here.parent.mkdir(parents=True, exist_ok=True)
            partial = here.with_suffix(".partial")
            for command in (
                ["git", "init", "-q", str(partial)],
                ["git", "-C", str(partial), "fetch", "-q", "--depth=1", self.url, self.revision],
                ["git", "-C", str(partial), "checkout", "-q", "FETCH_HEAD"],
            ):
                if subprocess.run(command, capture_output=True, timeout=600).returncode:
                    raise NotHad(f"{self.name}: not in --sources, and {self.url} is not had")
            partial.rename(here)
        return here


SPU = Source("spu", "https://github.com/secretflow/spu", "02ac612de3084dc53eddab91b720c6b80bc48779")
MPLANG = Source(
    "mplang", "https://github.com/secretflow/mplang", "db490458a88e5365edc7ef7c31c78bc87bba11e2"
)


@dataclass(frozen=True)
class Outcome:
    """What one program or suite did.

    Attributes:
        name: of the program or suite.
        passed, total: tests, or runs of a program.
        seconds: it took.
        beside: the same on its own links, in the same run, such as "5 of 5, 12.1 s"; empty if
            that was not run.
        note: what a reader must know, such as why some fail on both.
        listening: sockets that its processes listened on, where that was counted.
    """

    name: str
    passed: int
    total: int
    seconds: float
    beside: str = ""
    note: str = ""
    listening: int | None = None


@dataclass(frozen=True)
class Job:
    """One part of the acceptance run.

    Attributes:
        name: for the command line.
        about: one line for a reader.
        run: does it, given the directory of checkouts (None: there is none) and one to build in.
    """

    name: str
    about: str
    run: Callable[[Path | None, Path], Sequence[Outcome]]


def make_venv(directory: Path, requirements: Sequence[str], python: str = sys.executable) -> Path:
    """A virtual environment with these packages, made once.

    Returns:
        The path of its interpreter.

    Raises:
        NotHad: the interpreter or a package cannot be had.
    """
    interpreter = directory / "bin" / "python"
    done = directory / ".installed"
    wanted = "\n".join([python, *requirements])
    if done.is_file() and done.read_text() == wanted:
        return interpreter
    for command in (
        [python, "-m", "venv", "--clear", str(directory)],
        [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q",
         "--retries", "1", *requirements],
    ):  # fmt: skip
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        except FileNotFoundError as error:
            raise NotHad(f"{python} is not on this machine") from error
        if ran.returncode:
            raise NotHad(f"{' '.join(command[:6])}: {ran.stderr.strip()[-400:]}")
    done.write_text(wanted)
    return interpreter
