"""SPU's operator and machine-learning suites over redislink, and beside it as they are.

Each suite runs in a process of pytest's, unchanged; `plugins/spu_over_redislink.py` replaces the
simulator that the tests use.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from tests.acceptance.jobs import ROOT, SPU, Job, Outcome, Source, make_venv

SML = Source("sml", "https://github.com/secretflow/sml", "1cb0573bf79abe479cbd39fdac30733aef24f86a")
_NO_INFINITY = "shares have no infinity"
"""What `SpuDevice.private` says; SPU's own simulator takes an infinity for some large number."""


@dataclass(frozen=True)
class Suite:
    """Some tests, and how to run them.

    Attributes:
        path: of the file, below the checkout.
        every: 1: all of its tests; n: the first of each n.
        limit: seconds after which a run is ended.
    """

    path: str
    every: int = 1
    limit: float = 1800.0

    @property
    def name(self) -> str:
        """For the table."""
        return Path(self.path).stem.removesuffix("_test") + self.sample

    @property
    def sample(self) -> str:
        """Which part of it is run."""
        return f", 1 test in {self.every}" if self.every > 1 else ""


@dataclass(frozen=True)
class Ran:
    """What a run of pytest did.

    Attributes:
        passed, total: tests, without those in ``refused``.
        refused: tests that put an infinity on a device.
        seconds: it took.
        listening: sockets that the parties' processes listened on.
        ended: whether it took too long, and was ended.
    """

    passed: int
    total: int
    refused: int
    seconds: float
    listening: int
    ended: bool = False

    def __str__(self) -> str:
        if self.ended:
            return f"ended after {self.seconds:.0f} s"
        return f"{self.passed} of {self.total}, {self.seconds:.1f} s"


OPERATORS = (
    ("relay", Suite("spu/tests/jnp_aby3_r64_test.py")),
    ("relay", Suite("spu/tests/jnp_semi2k_r64_test.py", every=8)),
    ("relay", Suite("spu/tests/jnp_cheetah_r64_test.py", every=28)),
    ("relay", Suite("spu/tests/jnp_ref2k_r64_test.py", every=8)),
    ("relay", Suite("spu/tests/jnp_semi2k_r128_test.py", every=16)),
    ("relay", Suite("spu/tests/jnp_aby3_r128_test.py", every=8)),
    ("device", Suite("spu/tests/jnp_aby3_r64_test.py")),
    ("device", Suite("spu/tests/jnp_semi2k_r64_test.py", every=8)),
    ("device", Suite("spu/tests/jnp_cheetah_r64_test.py", every=28)),
)
_EVERY_OWN = 8
"""SPU's own links take as long: one test in so many is enough to compare."""
LEARNING = tuple(
    Suite(f"tests/{name}_test.py", limit=1200.0)
    for name in (
        "feature_selection/chi2",
        "linear_model/ridge",
        "metrics/regression",
        "preprocessing/encoding/mean_encoder",
        "stats/pearsonr",
        "stats/psi",
        "stats/vif",
        "utils/reveal",
    )
)
"""A selection that is short; the others, such as kmeans and svm, take many minutes each."""
_NAMES = {"relay": "over the relay", "device": "on an SpuDevice"}


def operators(sources: Path | None, build: Path) -> list[Outcome]:
    """``spu/tests/jnp_*_test.py``."""
    python = _venv(build)
    spu = SPU.path(sources, build)
    beside: dict[str, str] = {}
    outcomes = []
    for links, suite in OPERATORS:
        if suite.path not in beside:
            own = replace(suite, every=max(suite.every, _EVERY_OWN))
            beside[suite.path] = f"{_run(python, build, spu, 'own', own, spu)}{own.sample}"
        ran = _run(python, build, spu, links, suite, spu)
        outcomes.append(_outcome(links, suite, ran, beside[suite.path]))
    return outcomes


def sml(sources: Path | None, build: Path) -> list[Outcome]:
    """``tests/`` of SecretFlow's machine-learning library."""
    python = _venv(build)
    spu, here = SPU.path(sources, build), SML.path(sources, build)
    outcomes = []
    for suite in LEARNING:
        own = str(_run(python, build, spu, "own", suite, here))
        ran = _run(python, build, spu, "relay", suite, here)
        outcomes.append(_outcome("relay", suite, ran, own))
    return outcomes


def _outcome(links: str, suite: Suite, ran: Ran, own: str) -> Outcome:
    notes = []
    if ran.refused:
        notes.append(f"{ran.refused} more put an infinity on the device, which it refuses")
    if ran.ended:
        notes.append(f"took more than {suite.limit:.0f} s")
    return Outcome(
        name=f"{suite.name}, {_NAMES[links]}",
        passed=ran.passed,
        total=ran.total,
        seconds=ran.seconds,
        beside=own,
        note="; ".join(notes),
        listening=ran.listening if links == "relay" else None,
    )


def _venv(build: Path) -> Path:
    """The interpreter that runs the suites: redislink's own packages, and what the tests import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return make_venv(
        build / "spu-suites",
        [
            *("-c", str(ROOT / "constraints.txt"), *project["dependencies"]),
            *("pytest", "absl-py", "pandas", "scikit-learn>=1.5.2,<1.7", "statsmodels"),
        ],
    )


def _run(python: Path, build: Path, spu: Path, links: str, suite: Suite, checkout: Path) -> Ran:
    """Run a suite in a process.

    Args:
        python: the interpreter.
        build: the directory to build in.
        spu: SPU's checkout.
        links: for the plug-in.
        suite: what to run.
        checkout: the directory that its path is below.
    """
    on_path = build / "on-path"  # not ROOT: sml has a package `tests`, too
    on_path.mkdir(exist_ok=True)
    link = on_path / "redislink"
    if not link.is_symlink():
        link.symlink_to(ROOT / "redislink")
    place = build / f"{links}-{Path(suite.path).stem}"
    report, listening = place.with_suffix(".xml"), place.with_suffix(".listening")
    for old in (report, listening):
        old.unlink(missing_ok=True)
    began = time.monotonic()
    with place.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(python), "-P", "-m", "pytest", "-p", "spu_over_redislink"),
                *("-p", "no:cacheprovider", "-q", "--tb=short", "-o", "addopts="),
                *("--import-mode=append", f"--junitxml={report}", suite.path),
            ],
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(
                    [str(on_path), str(Path(__file__).parent / "plugins")]
                ),
                "PYTHONDONTWRITEBYTECODE": "1",
                "ACCEPTANCE_LINKS": links,
                "ACCEPTANCE_SPU": str(spu),
                "ACCEPTANCE_EVERY": str(suite.every),
                "ACCEPTANCE_LISTENING": str(listening),
            },
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(suite.limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _read(report, listening, time.monotonic() - began)


def _read(report: Path, listening: Path, seconds: float) -> Ran:
    """What pytest has written; nothing if it did not come to its end."""
    if not report.is_file():
        return Ran(0, 1, 0, seconds, 0, ended=True)
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    bad = [[*case.findall("failure"), *case.findall("error")] for case in cases]
    refused = sum(any(_NO_INFINITY in (e.get("message") or "") for e in each) for each in bad)
    skipped = sum(case.find("skipped") is not None for case in cases)
    total = len(cases) - skipped - refused
    failed = sum(bool(each) for each in bad) - refused
    return Ran(total - failed, total, refused, seconds, int(listening.read_text()))


JOBS = [
    Job("operators", "SPU's tests of JAX's functions, over the relay and on a device", operators),
    Job("sml", "the tests of SecretFlow's machine-learning library", sml),
]
