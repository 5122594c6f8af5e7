"""The image of a party: what Docker reads of a checkout full of secrets, and what it keeps.

There is no Docker here. `context` reads `.dockerignore` as Docker does, by both of its builders;
the wheel is built from what that leaves.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PLANTED: Final = "7b1d-planted"
SECRETS: Final = (
    ".env",
    "alice.key",
    "bob.psk",
    "broker.pem",
    "users.acl",
    "alice.password",
    "admin",
    "patients.csv",
    "cluster.yaml.bak",
    "s.alice.trace.jsonl",
    "dump.rdb",
    "party.env",
    "id_ed25519",
    ".netrc",
    "secrets.yaml",
    "__pycache__/x.cpython-311.pyc",
    "tls/ca.key",
    "passwords/alice.password",
    "new/deep/er.py",
)
"""Names that guides of ours give, and others that people give."""
REQUIREMENTS: Final = "deploy/requirements.txt"
"""The one file of deploy/ that an image is made with."""


# -- .dockerignore, as Docker reads it (moby/patternmatcher) ---------------------------------------


def patterns(text: str) -> list[tuple[str, bool]]:
    """(pattern, whether it takes an exclusion back), in order."""
    found = []
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            found.append((line.removeprefix("!").strip("/"), line.startswith("!")))
    return found


def matches(pattern: str, path: str) -> bool:
    """True if it fits the path or a directory above it."""
    parts = re.split(r"(\*\*/?|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))
    names = path.split("/")
    return any(regex.fullmatch("/".join(names[:n])) for n in range(1, len(names) + 1))


def is_left_out(path: str, rules: Iterable[tuple[str, bool]]) -> bool:
    left_out = False
    for pattern, takes_back in rules:
        if matches(pattern, path):
            left_out = not takes_back
    return left_out


def context(root: Path, *, skips_directories: bool) -> set[str]:
    """The files that ``docker build`` sends from here.

    Args:
        skips_directories: as Docker's older builder, and Podman: a directory that is left out is
            looked into only if an exception begins with its name.
    """
    rules = patterns((root / ".dockerignore").read_text())
    found: set[str] = set()
    ahead = [root]
    while ahead:
        for path in ahead.pop().iterdir():
            name = path.relative_to(root).as_posix()
            if path.is_dir() and not path.is_symlink():
                skipped = is_left_out(name, rules) and not any(
                    takes_back and f"{pattern}/".startswith(f"{name}/")
                    for pattern, takes_back in rules
                )
                if not (skips_directories and skipped):
                    ahead.append(path)
            elif not is_left_out(name, rules):
                found.add(name)
    return found


def test_the_reading_is_dockers() -> None:
    rules = patterns("# x\n*\n!a\n!/b/*.py\n  !c/**/*.md \na/**/key\n*.log\n**/*.pem\nd?\n")
    assert rules[0] == ("*", False)
    kept = {"a/x", "a/b/y", "b/z.py", "c/q.md", "c/d/q.md"}
    left = {"x", "a/key", "a/b/key", "b/x/z.py", "c/q", "x.log", "a/x.pem", "x.pem", "d1"}
    assert {path for path in kept | left if not is_left_out(path, rules)} == kept
    assert is_left_out("a.log", rules)
    assert not is_left_out("a/a.log", rules)


# -- a checkout in use -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def used_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that is in the project, with secrets in every directory."""
    root = tmp_path_factory.mktemp("image") / "checkout"
    left_out = (".git", ".*_cache", ".hypothesis", ".venv", "build", "__pycache__")
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*left_out), symlinks=True)
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for directory in directories:
        for name in SECRETS:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(PLANTED)
    return root


def wheel_sources() -> set[str]:
    """What a wheel is built from, without what is in nobody's repository."""
    found = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".gitignore"}
    found |= {REQUIREMENTS, "hatch_build.py", "redislink/_native.c", "redislink/_native.pyi"}
    found |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "redislink").rglob("*.py")}
    found |= {"redislink/py.typed", "redislink/report/page.css", "redislink/report/page.html.jinja"}
    wanted = re.findall(r"\S+", "cluster.yaml README.md data/README.md data/carol.json")
    found |= {f"examples/{name}" for name in (*wanted, "data/alice.csv", "data/bob.csv")}
    return found | {p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("skips_directories", [False, True])
def test_docker_sees_what_a_wheel_is_made_of_and_no_secret(
    used_checkout: Path, skips_directories: bool
) -> None:
    seen = context(used_checkout, skips_directories=skips_directories)
    assert seen == wheel_sources(), "name each directory of the package in .dockerignore"
    assert not any(PLANTED in (used_checkout / name).read_text() for name in seen)


@pytest.mark.slow
def test_what_it_sees_builds_the_same_wheel(used_checkout: Path, tmp_path: Path) -> None:
    for name in context(used_checkout, skips_directories=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(used_checkout / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if built := {name for name in held if name.endswith(".so")}:
        held = held - built | {"redislink/_native.c"}  # compiled
    assert held == {
        name.replace("examples/", "redislink/_examples/", 1)
        for name in wheel_sources() - {REQUIREMENTS}
        if "/" in name
    }


# -- the Dockerfile --------------------------------------------------------------------------------


def stages() -> list[list[str]]:
    """Instructions of each stage, its FROM first; continued lines are one."""
    text = (ROOT / "deploy" / "party.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def copies(stage: list[str]) -> list[list[str]]:
    return [line.split()[1:] for line in stage if line.startswith(("COPY ", "ADD "))]


def test_the_image_has_nothing_of_the_checkout_but_the_wheel() -> None:
    build, image = stages()
    assert build[0].endswith(" AS build")
    assert copies(image) == [["--from=build", "/opt/redislink", "/opt/redislink"]]
    assert any(re.match(r"USER [1-9]\d*:[1-9]\d*$", line) for line in image)
    needed, installed = (line for line in build if line.startswith("RUN "))
    assert "gcc libc6-dev libssl-dev" in needed, "for native leaves"
    assert "pip wheel" in installed
    assert "--require-hashes -r requirements.txt" in installed
    assert "install --no-deps --no-index /dist/*.whl" in installed


def test_no_stage_copies_the_whole_checkout() -> None:
    build, _ = stages()
    sources = [source for *found, _ in copies(build) for source in found]
    assert sources
    assert not {".", "./", "*", "deploy"} & set(sources)
    named = {name.partition("/")[0] for name in wheel_sources() - {REQUIREMENTS}}
    assert set(sources) == named | {REQUIREMENTS}, (
        "what .dockerignore lets in is what the Dockerfile takes"
    )
