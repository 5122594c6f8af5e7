"""What the steps of a release share: where things are, and how commands are run and reported."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
RELEASE = BUILD / "release"
REQUIREMENTS = Path("deploy/requirements.txt")
"""What a party needs in production, with the hash of each file."""
REQUIREMENTS_DEMO = Path("deploy/requirements-demo.txt")
"""What the demo needs besides."""


class ReleaseError(Exception):
    """A release that is not fit to be one. The message says what to do."""


def version() -> str:
    """The version that redislink/_version.py names."""
    text = (ROOT / "redislink" / "_version.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


def normal(name: str) -> str:
    """The name of a package as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(
    words: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; return what it printed on stdout.

    Raises:
        ReleaseError: it failed; the message has the end of its output.
    """
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        shown = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        command = " ".join(str(word) for word in words[:6])
        raise ReleaseError(f"{command} … ended with {done.returncode}:\n{shown}")
    return done.stdout


def tool(name: str) -> Path:
    """A program of the environment that runs this."""
    return Path(sys.executable).with_name(name)


def fresh(directory: Path) -> Path:
    """The directory, empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def outside() -> dict[str, str]:
    """The environment without what would lead Python or redislink back into the checkout."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "REDISLINK_", "VIRTUAL_ENV"))
    }


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print what is done, and how long it took."""
    began = time.monotonic()
    print(f"-- {title}", flush=True)
    yield
    print(f"   {time.monotonic() - began:.0f} s", flush=True)


def clone(target: Path, source: Path = ROOT) -> None:
    """A clean clone of the commit that is checked out."""
    run(["git", "clone", "--quiet", "--no-hardlinks", source, target])


def is_dirty() -> bool:
    """Whether there is work that no commit has."""
    return bool(run(["git", "status", "--porcelain"], cwd=ROOT).strip())


@functools.cache  # whatever is committed meanwhile
def commit_time() -> str:
    """Seconds since 1970, for SOURCE_DATE_EPOCH."""
    return run(["git", "log", "-1", "--format=%ct"], cwd=ROOT).strip()
