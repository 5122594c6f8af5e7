"""SPU's own tests and examples of links, unchanged, over the relay and beside it over brpc."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from redislink.broker import EmbeddedBroker
from redislink.cluster.trial import write_trial
from tests.acceptance.jobs import ROOT, SPU, Job, Outcome, make_venv

SUITES = ("link_test", "psi_test", "ub_psi_test", "legacy_psi_test")
LEARNING = ("test_jax_lr", "test_jax_svm", "test_jax_kmeans")
PARTIES = ("alice", "bob", "carol")
PROGRAM = Path(__file__).parent / "programs" / "brpc_program.py"
_SUM = [0, 111, 222, 333]
_LIMIT = 3600.0
_LOOK = 1.0
_GRACE = 15.0
"""Seconds that a process of unittest has to end after it has said its result."""
_ATTEMPTS = 3
"""Of the examples on their own links: they give their nodes 2 s to start."""


class Watched:
    """Processes, and the sockets on which they and their children listen.

    The broker is no party: its sockets do not count.
    """

    def __init__(self) -> None:
        self.listening = 0
        """The most at one time."""
        self._processes: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self, words: Sequence[str | Path], log: Path, **how: object) -> subprocess.Popen[str]:
        """Start a process whose output goes to a file."""
        with log.open("w") as file:
            process = subprocess.Popen(
                [*map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                **how,
            )
        self._processes.append(process)
        return process

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            self.listening = max(self.listening, sum(map(_listening, self._everybody())))

    def _everybody(self) -> Iterator[psutil.Process]:
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                whole = psutil.Process(process.pid)
                yield from (whole, *whole.children(recursive=True))


def _listening(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        if not process.name().startswith("valkey"):
            sockets = process.net_connections("inet")
            return sum(each.status == psutil.CONN_LISTEN for each in sockets)
    return 0


@dataclass(frozen=True)
class Ran:
    """What a run did.

    Attributes:
        passed, total: tests, or processes of a program.
        seconds: it took.
        listening: sockets on which its processes listened.
        figures: seconds of its parts, if it says so.
    """

    passed: int
    total: int
    seconds: float
    listening: int
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = "".join(f", {name} {value:.2f} s" for name, value in self.figures.items())
        return (
            f"{self.passed} of {self.total}, {self.seconds:.1f} s{parts}, "
            f"{self.listening} listening"
        )


class Place:
    """Where the programs run: a directory with SPU's files, its tests and its examples."""

    def __init__(self, job: str, sources: Path | None, build: Path) -> None:
        checkout = SPU.path(sources, build)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.python = make_venv(
            build / "spu-links",
            [
                *("-c", str(ROOT / "constraints.txt"), *project["dependencies"]),
                *("grpcio", "multiprocess", "pandas", "protobuf", "scikit-learn", "termcolor"),
            ],
        )
        self.directory = build / f"{job}-files"
        self.logs = build / f"{job}-logs"
        for made in (self.directory, self.logs):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
        (installed,) = self.python.parent.parent.glob("lib/python3*/site-packages/spu")
        here = self.directory / "spu"
        here.mkdir()
        for path in installed.iterdir():
            if path.name not in ("tests", "__pycache__"):
                (here / path.name).symlink_to(path)
        (here / "tests").symlink_to(checkout / "spu" / "tests")
        (self.directory / "examples").symlink_to(checkout / "examples")
        (self.directory / "redislink").symlink_to(ROOT / "redislink")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        self.how = {
            "cwd": self.directory,
            "env": inherited
            | {
                "PYTHONPATH": str(self.directory),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(self.logs),
            },
        }

    def redislink(self, *words: str | Path) -> list[str | Path]:
        """The command."""
        return [self.python, "-m", "redislink", *words]

    def unittest(self, name: str, links: Sequence[str], tests: Sequence[str]) -> Ran:
        """Run tests in a process.

        Args:
            name: for the log.
            links: the command of redislink; none: the tests' own links.
            tests: names for unittest.
        """
        began = time.monotonic()
        first = self.redislink(*links, "-m") if links else [self.python, "-m"]
        log = self.logs / f"{name}.{'relay' if links else 'own'}.log"
        with Watched() as watched:
            process = watched.start([*first, "unittest", "-v", *tests], log, **self.how)
            deadline = time.monotonic() + _LIMIT
            while process.poll() is None and time.monotonic() < deadline:
                # It may wait for ever for nodes that it has started.
                if re.search(r"^(OK|FAILED)", log.read_text(errors="replace"), re.MULTILINE):
                    deadline = min(deadline, time.monotonic() + _GRACE)
                time.sleep(_LOOK)
        passed, total = _counted(log.read_text(errors="replace"))
        return Ran(passed, total, time.monotonic() - began, watched.listening)


def _counted(said: str) -> tuple[int, int]:
    """How many tests passed, of how many, by what unittest says."""
    ran = re.search(r"^Ran (\d+) test", said, re.MULTILINE)
    if ran is None:
        return 0, 1
    bad = re.search(r"^FAILED \((.*)\)$", said, re.MULTILINE)
    # A class that cannot be set up counts as an error of no test.
    failed = sum(map(int, re.findall(r"(?:failures|errors)=(\d+)", bad[1]))) if bad else 0
    total = max(int(ran[1]), failed, 1)
    return total - failed, total


def brpc(sources: Path | None, build: Path) -> list[Outcome]:
    """``link_test``, ``psi_test``, ``ub_psi_test``, ``legacy_psi_test``, and a program apart."""
    place = Place("brpc", sources, build)
    outcomes = []
    for suite in SUITES:
        tests = [f"spu.tests.{suite}"]
        own = place.unittest(suite, [], tests)
        ran = place.unittest(suite, ["run", "--brpc-programs", "--trial"], tests)
        outcomes.append(_outcome(suite, ran, own))
    own, ran = _apart(place, relay=False), _apart(place, relay=True)
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in ran.figures.items())
    outcomes.append(_outcome("three parties with keys, one process each", ran, own, parts))
    return outcomes


def _outcome(name: str, ran: Ran, own: Ran, note: str = "") -> Outcome:
    return Outcome(name, ran.passed, ran.total, ran.seconds, str(own), note, ran.listening)


def _apart(place: Place, *, relay: bool) -> Ran:
    """A process for each party, with its own key; they share nothing but the cluster file."""
    kind = "relay" if relay else "own"
    logs = [place.logs / f"apart.{kind}.{party}.log" for party in PARTIES]
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(PARTIES))]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(password="of the acceptance run"))
        cluster, keys = place.logs / "cluster.yaml", place.logs / "keys"
        if relay:
            files = {party: keys / f"{party}.key" for party in PARTIES}
            write_trial({"session": "apart", "parties": list(PARTIES)}, cluster, files, "a test's")
        watched = stack.enter_context(Watched())
        processes = []
        for rank, (party, log) in enumerate(zip(PARTIES, logs, strict=True)):
            words = [PROGRAM, str(rank), *addresses]
            how = place.how
            if relay:
                options = (
                    "--cluster",
                    cluster,
                    "--party",
                    party,
                    "--identity",
                    keys / f"{party}.key",
                )
                words = place.redislink("run", "--brpc-programs", *options, *words)
                how = how | {"env": how["env"] | {"REDISLINK_BROKER_URL": broker.unix_url}}
            else:
                words = [place.python, *words]
            processes.append(watched.start(words, log, **how))
        deadline = time.monotonic() + _LIMIT
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    seconds = time.monotonic() - began
    told = [_last_json(log) for log in logs]
    good = [each for each in told if each.get("sum") == _SUM]
    figures = {
        name: statistics.median(each[key] for each in good)
        for name, key in (("20 all_gathers", "gathers"), ("3 MiB from each", "large"))
        if good
    }
    return Ran(len(good), len(PARTIES), seconds, watched.listening, figures)


def _last_json(log: Path) -> dict[str, object]:
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def ppd(sources: Path | None, build: Path) -> list[Outcome]:
    """``nodectl.py up`` with ``millionaire.py``, and LR, SVM and k-means of ``ml_test.py``."""
    place = Place("ppd", sources, build)
    own, ran = _millionaire(place, relay=False), _millionaire(place, relay=True)
    outcomes = [_outcome("nodectl.py up, millionaire.py twice", ran, own)]
    for name in LEARNING:
        tests = [f"examples.python.ml.ml_test.UnitTests.{name}"]
        for _ in range(_ATTEMPTS):
            own = place.unittest(name, [], tests)
            if own.passed:
                break
        ran = place.unittest(name, ["ppd", "--trial", "--i-trust-the-driver"], tests)
        outcomes.append(_outcome(f"ml_test.py, {name}", ran, own))
    return outcomes


def _millionaire(place: Place, *, relay: bool) -> Ran:
    kind = "relay" if relay else "own"
    nodes_log = place.logs / f"nodectl.{kind}.log"
    trial = ("ppd", "--i-trust-the-driver", "--trial-dir", place.logs / "trial")
    first = place.redislink(*trial) if relay else [place.python]
    utils = "examples.python.utils.nodectl"
    passed, began = 0, time.monotonic()
    with Watched() as watched:
        nodes = watched.start([*first, "-m", utils, "up"], nodes_log, **place.how)
        said = "waits for the driver" if relay else "Starting grpc server"
        while nodes.poll() is None and nodes_log.read_text(errors="replace").count(said) < 5:
            if time.monotonic() > began + _LIMIT:
                break
            time.sleep(_LOOK)
        for number in range(2):
            log = place.logs / f"millionaire.{kind}.{number}.log"
            words = [*first, "-m", "examples.python.millionaire"]
            driver = watched.start(words, log, **place.how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                passed += driver.wait(_LIMIT) == 0 and _is_maximum(log.read_text(errors="replace"))
    return Ran(passed, 2, time.monotonic() - began, watched.listening)


def _is_maximum(said: str) -> bool:
    found = dict(re.findall(r"^([xyz]) = \[([\d ]+)\]$", said, re.MULTILINE))
    x, y, z = ([int(each) for each in found.get(name, "").split()] for name in "xyz")
    return bool(z) and z == [max(pair) for pair in zip(x, y, strict=True)]


JOBS = [
    Job("brpc", "SPU's tests of links and intersections, over the relay", brpc),
    Job("ppd", "SPU's examples with a driver and nodes, over the relay", ppd),
]
