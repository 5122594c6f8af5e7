"""MPLang's own tests and tutorials over redislink, unchanged, and beside it as they are.

``test_http.py`` starts its workers as processes; so does each tutorial's simulator here.
``test_channel.py`` and ``test_collectives.py`` join threads of one process: a plug-in gives each
party an endpoint of its own. Then a deployment between a cluster file's parties, with a policy:
what a driver gets and what it must not, and what everybody is told when somebody dies.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from redislink.broker import EmbeddedBroker
from tests.acceptance.jobs import MPLANG, ROOT, Job, Outcome, make_venv
from tests.support.groups import free_ports
from tests.support.waiting import wait_until

VERSION = "0.1.dev343"
HERE = Path(__file__).parent
TUTORIALS = ("00_device_basics", "01_function_decorator", "03_run_jax", "06_pipeline")
_LIMIT = 600.0
_SERVERS = ("valkey-server", "redis-server")


@dataclass(frozen=True)
class Ran:
    """What a command did.

    Attributes:
        code: its exit code; None: it took too long.
        text: what it printed.
        seconds: it took.
        listening: TCP sockets on which it, or what it started, listened, without the broker's.
    """

    code: int | None
    text: str
    seconds: float
    listening: int

    @property
    def tests(self) -> tuple[int, int]:
        """How many of pytest's tests passed, of how many."""
        found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", self.text)}
        return found.get("passed", 0), max(1, sum(found.values()))

    def __str__(self) -> str:
        passed, total = self.tests
        return f"{passed} of {total}, {self.seconds:.1f} s, {self.listening} listening"


class Bench:
    """Where the programs run: an interpreter with MPLang, and copies of its files."""

    def __init__(self, sources: Path | None, build: Path, job: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.python = make_venv(
            build / "mplang",
            [
                *("-c", str(ROOT / "constraints.txt"), *project["dependencies"]),
                *(f"mplang-nightly=={VERSION}", "pytest"),
            ],
        )
        self.work = build / f"{job}-work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        checkout = MPLANG.path(sources, build)
        for name in ("tests", "tutorials"):
            shutil.copytree(checkout / name, self.work / name)
        (self.work / "pytest.ini").write_text("[pytest]\n")  # otherwise it takes redislink's own
        self.path = build / "on-path"  # not ROOT: MPLang has a package `tests`, too
        self.path.mkdir(exist_ok=True)
        if not (self.path / "redislink").is_symlink():
            (self.path / "redislink").symlink_to(ROOT / "redislink")

    def environment(self, **more: str) -> dict[str, str]:
        """Of all processes."""
        found = {name: value for name, value in os.environ.items() if "REDISLINK" not in name}
        path = os.pathsep.join(map(str, (self.path, HERE / "plugins", self.work)))
        data = str(self.work / "data")
        return (
            found | {"PYTHONPATH": path, "MPLANG_DATA_ROOT": data, "PYTHONUNBUFFERED": "1"} | more
        )

    def start(self, words: Sequence[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
        """Start ``python WORDS``."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [str(self.python), *words],
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=self.environment(**more),
            )

    def run(self, *words: str, **more: str) -> Ran:
        """Run ``python WORDS`` to its end, and count its sockets meanwhile."""
        log = self.work / "ran.log"
        began = time.monotonic()
        process = self.start(words, log, **more)
        with counting([process]) as most:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LIMIT)
                code = process.poll()
            finally:
                end(process)
        return Ran(code, log.read_text(errors="replace"), time.monotonic() - began, most())

    def over_redislink(self, *words: str, **more: str) -> Ran:
        """`run` under ``redislink mplang run --trial``."""
        return self.run("-m", "redislink", "mplang", "run", "--trial", *words, **more)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def counting(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[Callable[[], int]]:
    """The most sockets on which they, and what they start, listen at a time in the block."""
    over, most = threading.Event(), [0]

    def count() -> None:
        while not over.wait(0.3):
            now = 0
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    parent = psutil.Process(process.pid)
                    for each in (parent, *parent.children(recursive=True)):
                        with contextlib.suppress(psutil.Error):
                            if each.name() not in _SERVERS:
                                sockets = each.net_connections("inet")
                                now += sum(one.status == psutil.CONN_LISTEN for one in sockets)
            most[0] = max(most[0], now)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        over.set()
        thread.join()


def run(sources: Path | None, build: Path) -> list[Outcome]:
    """MPLang's own programs."""
    bench = Bench(sources, build, "mplang")
    return [*suites(bench), *tutorials(bench), times(bench)]


# -- their own programs ----------------------------------------------------------------------


def suites(bench: Bench) -> list[Outcome]:
    """MPLang's tests."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    outcomes = []
    for name, plugin in (
        ("tests/backends/simp_driver/test_http.py", False),
        ("tests/backends/test_channel.py", True),
        ("tests/backends/simp_worker/test_collectives.py", True),
    ):
        own = bench.run(*pytest, name)
        more = ("-p", "mplang_over_redislink") if plugin else ()
        ran = bench.over_redislink(*pytest, *more, name)
        sent = re.search(r"(\d+) messages over the relay", ran.text)
        outcomes.append(
            Outcome(
                Path(name).name,
                *ran.tests,
                ran.seconds,
                str(own),
                "threads of one process, each with an endpoint"
                + (f"; {sent[1]} messages" if sent else "")
                if plugin
                else "workers and driver as processes",
                ran.listening,
            )
        )
    return outcomes


def tutorials(bench: Bench) -> list[Outcome]:
    """MPLang's tutorials; each worker of their simulators is a process."""
    outcomes = []
    for name in TUTORIALS:
        own = bench.run(f"tutorials/{name}.py")
        ran = bench.over_redislink(f"tutorials/{name}.py")
        same = _are_alike(_results(own.text), _results(ran.text))
        passed = ran.code == 0 and own.code == 0 and same
        beside = f"{'ran' if own.code == 0 else 'FAILED'}, {own.seconds:.1f} s (one process)"
        note = "" if passed else ran.text[-300:]
        outcomes.append(
            Outcome(f"tutorial {name}", int(passed), 1, ran.seconds, beside, note, ran.listening)
        )
    return outcomes


def _results(text: str) -> list[tuple[str, list[float]]]:
    """What a tutorial computes: the lines that say it, and the numbers in them.

    A value that was fetched over a wire is an array of NumPy's, in one process it is one of JAX's.
    """
    keep = re.compile(r"^(Sum|Secure|Pipeline|SPU|Final|Result|weights|train|Direct|JIT)")
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    return [
        (
            number.sub("", line).lower().split("array")[0],
            [float(each) for each in number.findall(line)],
        )
        for line in text.splitlines()
        if keep.match(line)
    ]


def _are_alike(one: list[Any], other: list[Any]) -> bool:
    """Whether two runs computed the same. SPU truncates fixed-point numbers at random."""
    return [label for label, _ in one] == [label for label, _ in other] and all(
        len(ours) == len(theirs)
        and all(math.isclose(a, b, abs_tol=0.02) for a, b in zip(ours, theirs, strict=True))
        for (_, ours), (_, theirs) in zip(one, other, strict=True)
    )


def times(bench: Bench) -> Outcome:
    """The same program and the same ``mplang.cli up``, by HTTP and over redislink."""
    program = str(HERE / "programs" / "mplang_timed.py")
    own, _ = _timed(bench, program, ())
    trial = ("-m", "redislink", "mplang", "run", "--trial-dir", str(bench.work / "trial"))
    ran, listening = _timed(bench, program, trial)
    note = "; ".join(
        f"{name}: {1000 * each['median']:.0f} ms "
        f"({1000 * each['seconds'][0]:.0f} to {1000 * each['seconds'][-1]:.0f}), "
        f"HTTP {1000 * own[name]['median']:.0f} ms "
        f"({1000 * own[name]['seconds'][0]:.0f} to {1000 * own[name]['seconds'][-1]:.0f})"
        for name, each in ran.items()
    )
    seconds = sum(each["median"] for each in ran.values())
    beside = f"1 of 1, {sum(each['median'] for each in own.values()):.1f} s"
    return Outcome("mplang.cli up, timed", 1, 1, seconds, beside, note, listening)


def _timed(bench: Bench, program: str, over: Sequence[str]) -> tuple[dict[str, Any], int]:
    """What the program says, and on how many sockets workers and driver listened."""
    port = min(free_ports(2))
    log = bench.work / "up.log"
    # With three workers' names given by ports, in the same order as the program's nodes.
    workers = bench.start([*over, "-m", "mplang.cli", "up", "-w", "2", "-p", str(port)], log)
    try:
        wait_until(lambda: "Workers started" in log.read_text(), 120, "MPLang's workers")
        if not over:
            wait_until(lambda: _answers(bench, port), 120, "MPLang's workers")
        with counting([workers]) as most:
            ran = bench.run(*over, program, str(port))
        said = re.search(r"^TIMES (.*)$", ran.text, re.MULTILINE)
        if said is None:
            raise RuntimeError(f"the timed program failed: {ran.text[-2000:]}")
        return json.loads(said[1]), most() + ran.listening
    finally:
        workers.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            workers.wait(10)
        end(workers)


def _answers(bench: Bench, port: int) -> bool:
    words = (
        f"import httpx; [httpx.get(f'http://127.0.0.1:{{p}}/health') for p in ({port}, {port + 1})]"
    )
    return bench.run("-c", words).code == 0


# -- a deployment ----------------------------------------------------------------------------

POLICY = """
data: {patients: open.csv}
rules:
  - name: study
    action: accept
    driver: dana
    graph: "*"
    operations: ["simp.*", "tensor.*", "table.*", "spu.*", "store.*"]
    data: patients
    results: to_driver
"""
_EXPECTED = {
    "product": "GOT .*11",
    "open table by path": r"GOT .*5.*6",
    "open table by name": r"GOT .*5.*6",
    "secret table": "NOT .*JobError.*(alice|bob) refused.*no rule",
    "sql on a table": "GOT .*3",
    "sql on a file": r"NOT .*JobError.*failed.*PermissionException; the worker's log",
    "save": "NOT .*JobError.*refused.*store.save",
    "product again": "GOT .*11",
}


class Deployment:
    """Workers of alice and bob, and a driver, dana, whom the cluster file lists as one."""

    def __init__(self, bench: Bench, broker: EmbeddedBroker) -> None:
        self.bench = bench
        self.place = bench.work / "deployed"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.variables = {"REDISLINK_BROKER_URL": broker.unix_url, "REDISLINK_PEER_TIMEOUT": "4"}
        lines = {name: self._key(name) for name in ("alice", "bob")}
        driver = self._key("dana", "--driver")
        (self.place / "cluster.yaml").write_text(
            "session: study\nparties:\n"
            + "".join(f"  {line}\n" for line in lines.values())
            + f"drivers:\n  {driver}\n"
        )
        (self.place / "policy.yaml").write_text(POLICY)
        (self.place / "open.csv").write_text("a\n5\n6\n")
        (self.place / "secret.csv").write_text("a\n7\n8\n")
        self.workers = {name: self.worker(name) for name in lines}

    def _key(self, name: str, *more: str) -> str:
        file = str(self.place / f"{name}.key")
        ran = self.bench.run("-m", "redislink", "keygen", name, *more, "--out", file)
        return next(line for line in ran.text.splitlines() if line.startswith("- {"))

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start a party's worker."""
        words = (
            *("-m", "redislink", "mplang", "worker", *self._who(name), "--driver", "dana"),
            *("--policy", str(self.place / "policy.yaml")),
            *("--refused", str(self.place / f"refused-{name}")),
        )
        return self.bench.start(words, self.log(name), **self.variables)

    def log(self, name: str) -> Path:
        """Where a party's process writes."""
        return self.place / f"{name}.log"

    def drive(self, program: str, *arguments: str, limit: float | None = None) -> list[str]:
        """The words that run a driver's program."""
        more = () if limit is None else ("--request-timeout", str(limit))
        file = str(HERE / "programs" / program)
        return [
            *("-m", "redislink", "mplang", "run", *self._who("dana"), *more, file, *arguments),
        ]

    def start_driver(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a driver's program, and return once it says READY."""
        log = self.log("dana")
        driver = self.bench.start(self.drive(*words, **more), log, **self.variables)
        wait_until(lambda: "READY" in log.read_text(), 120, "the driver")
        return driver

    def says(self, name: str, pattern: str, seconds: float = 60) -> bool:
        """Whether a party's process says something in time."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: re.search(pattern, self.log(name).read_text()), seconds)
            return True
        return False

    def end(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            end(worker)

    def _who(self, name: str) -> tuple[str, ...]:
        files = {"--cluster": "cluster.yaml", "--identity": f"{name}.key"}
        paths = [word for option, file in files.items() for word in (option, self.place / file)]
        return ("--party", name, *map(str, paths))


def deployed(sources: Path | None, build: Path) -> list[Outcome]:
    """What a driver gets and what not, and what happens when somebody dies."""
    bench = Bench(sources, build, "mplang-policy")
    with EmbeddedBroker(password="for acceptance") as broker:
        place = Deployment(bench, broker)
        try:
            return [asks(place), deaths(place)]
        finally:
            place.end()


def asks(place: Deployment) -> Outcome:
    """Each of `_EXPECTED`, twice: for two drivers, one after the other."""
    began = time.monotonic()
    wrong: list[str] = []
    with counting(list(place.workers.values())) as most:
        listening = 0
        for _ in range(2):
            words = place.drive("mplang_asks.py", str(place.place))
            ran = place.bench.run(*words, **place.variables)
            listening = max(listening, ran.listening)
            lines = dict(line.split(" | ", 1) for line in ran.text.splitlines() if " | " in line)
            wrong += [
                f"{name}: {lines.get(name, 'nothing')[:200]}"
                for name, expected in _EXPECTED.items()
                if not re.match(expected, lines.get(name, "").replace(" | ", " "))
            ]
        listening += most()
    refused = list((place.place / "refused-alice").glob("sha256-*.txt"))
    if len(refused) != 2:
        wrong.append(f"{len(refused)} graphs written down for people, not 2")
    total = 2 * len(_EXPECTED) + 1
    return Outcome(
        "a policy: what a driver gets, and what not",
        total - len(wrong),
        total,
        time.monotonic() - began,
        note="; ".join(wrong) or "SQL on files, other tables, saved values: refused",
        listening=listening,
    )


def deaths(place: Deployment) -> Outcome:
    """A driver that dies, a request that never ends, a worker that dies: all are told."""
    began = time.monotonic()
    found: dict[str, bool] = {}

    driver = place.start_driver("mplang_ends.py", "sleeps")
    end(driver)
    found["workers of a dead driver say so"] = all(
        place.says(
            name, "dana (has been silent|restarted|.*not been heard|.*lost).*(.|\n)*waits for"
        )
        for name in place.workers
    )
    words = place.drive("mplang_asks.py", str(place.place))
    again = place.bench.run(*words, **place.variables)
    found["and serve the next one"] = "product again | GOT" in again.text

    driver = place.start_driver("mplang_ends.py", "computes", limit=3.0)
    found["a request that never ends is an error"] = place.says(
        "dana", "worker bob has not answered request [0-9]+ for 3 s"
    )
    end(driver)
    found["its worker ends its process"] = place.says(
        "bob", "still computes 10 s after its session"
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        place.workers["bob"].wait(60)
    found["with an exit code"] = place.workers["bob"].poll() == 4
    end(place.workers["bob"])
    place.workers["bob"] = place.worker("bob")

    driver = place.start_driver("mplang_ends.py", "computes")
    end(place.workers["bob"])
    found["a driver of a dead worker is told whose"] = place.says(
        "dana", "bob.*(silent|heard|lost)"
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(60)
    found["and ends"] = driver.poll() is not None
    end(driver)

    wrong = [name for name, holds in found.items() if not holds]
    return Outcome(
        "deaths: a driver, a worker, a request without end",
        len(found) - len(wrong),
        len(found),
        time.monotonic() - began,
        note="; ".join(wrong),
    )


JOBS = [
    Job("mplang", "MPLang's tests and tutorials", run),
    Job("mplang-policy", "workers of MPLang with a policy, and what ends them", deployed),
]
