"""SPU without IChannel, SecretFlow 1.14 and RayFed: their programs beside sidecars, unchanged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from redislink.broker import EmbeddedBroker
from redislink.cli.parties import SocketWatch
from redislink.cluster.trial import write_trial
from tests.acceptance.jobs import Job, NotHad, Outcome, Source, make_venv

PARTIES = ("alice", "bob")
PROGRAMS = Path(__file__).parent / "programs"
RAYFED = Source(
    "rayfed", "https://github.com/secretflow/rayfed", "3a7c5928cd89a48a3c6e5eb5d60fd65154eb4154"
)
_LARGE = 1 << 30
_SPU_09 = "spu==0.9.5"
_PEER = 4
"""The code with which a program ends that SPU has waiting on a link that failed."""


@dataclass(frozen=True)
class Ran:
    """What both parties' processes did.

    Attributes:
        codes, outputs: of alice and bob.
        seconds: until both had ended.
        listening: the most sockets that the programs' processes listened on at once.
    """

    codes: list[int]
    outputs: list[str]
    seconds: float
    listening: int

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What each party's program said of itself."""
        said = []
        for output in self.outputs:
            lines = [line for line in output.splitlines() if line.startswith('{"passed"')]
            said.append(json.loads(lines[-1]) if lines else {"passed": 0, "total": 1})
        return said

    @property
    def passed(self) -> int:
        """Checks of both parties that passed; none of a party that failed."""
        return sum(
            f["passed"] for f, code in zip(self.figures, self.codes, strict=True) if not code
        )

    @property
    def total(self) -> int:
        """Checks of both parties."""
        return sum(figures["total"] for figures in self.figures)


def free_ports(count: int) -> str:
    """Ports that nobody listens on, with commas between them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return ",".join(str(each.getsockname()[1]) for each in sockets)


def python310() -> str:
    """An interpreter for SecretFlow 1.14.

    Raises:
        NotHad: there is none.
    """
    others = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"))
    for found in (*map(str, others), shutil.which("python3.10")):
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise NotHad("there is no Python 3.10, the only one for which SecretFlow 1.14 has wheels")


def run_both(
    commands: Sequence[Sequence[str]],
    *,
    beside_sidecars: bool,
    timeout: float = 600.0,
    environment: dict[str, str] | None = None,
) -> Ran:
    """Run both parties' programs, each beside its sidecar, or as they are.

    Args:
        commands: alice's and bob's.
        beside_sidecars: whether they use sidecars, sealed, over a broker of their own.
        timeout: seconds after which both are ended.
        environment: variables to add.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acceptance-")))
        variables = {**os.environ, **(environment or {})}
        prefixes: list[list[str]] = [[], []]
        if beside_sidecars:
            broker = stack.enter_context(EmbeddedBroker())
            keys = {party: directory / party / "identity.key" for party in PARTIES}
            cluster = directory / "cluster.yaml"
            content = {"session": "acceptance", "parties": list(PARTIES)}
            write_trial(content, cluster, keys, "of an acceptance run")
            variables["REDISLINK_BROKER_URL"] = broker.url
            options = ["-m", "redislink", "sidecar", "--cluster", str(cluster), "--party"]
            prefixes = [
                [sys.executable, *options, party, "--identity", str(keys[party]), "--"]
                for party in PARTIES
            ]
        processes, outputs = [], [directory / f"{party}.log" for party in PARTIES]
        began = time.monotonic()
        for prefix, command, output in zip(prefixes, commands, outputs, strict=True):
            processes.append(
                subprocess.Popen(
                    [*prefix, *command],
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=stack.enter_context(output.open("wb")),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            stack.callback(_end, processes[-1])
        watches: dict[int, SocketWatch] = {}
        while any(process.poll() is None for process in processes):
            _look(processes, watches, within=beside_sidecars)
            if time.monotonic() - began > timeout:
                break
            time.sleep(0.1)
        for process in processes:
            _end(process)
        return Ran(
            [process.returncode for process in processes],
            [output.read_text(errors="replace") for output in outputs],
            time.monotonic() - began,
            max((watch.listening for watch in watches.values()), default=0),
        )


def _look(
    processes: Sequence[subprocess.Popen[bytes]], watches: dict[int, SocketWatch], *, within: bool
) -> None:
    """Look at the sockets of the programs: of the sidecars' children, if there are sidecars."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in processes:
            program = psutil.Process(process.pid)
            for each in program.children() if within else [program]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    watches.setdefault(each.pid, SocketWatch(each.pid)).look()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _of_links(pythons: Sequence[Path | str], ports: str, large: int = 0) -> list[list[str]]:
    program = str(PROGRAMS / "spu_links.py")
    return [
        [str(python), program, party, ports, *([str(large)] if large else [])]
        for python, party in zip(pythons, PARTIES, strict=True)
    ]


def _slower(ran: Ran, name: str) -> float:
    return max(figures.get(name, 0.0) for figures in ran.figures)


def _times(ran: Ran) -> str:
    gathers, block = _slower(ran, "20 all_gathers"), _slower(ran, "3 MiB")
    return f"20 all_gathers {gathers:.3f} s, 3 MiB {block:.3f} s"


def _why(ran: Ran) -> str:
    """The end of the output of a party that failed."""
    for code, output in zip(ran.codes, ran.outputs, strict=True):
        if code:
            return f"; ended with {code}: {output.strip()[-300:]}"
    return ""


def run_sidecar(_: Path | None, build: Path) -> Sequence[Outcome]:
    """SPU 0.9.5 beside sidecars: alone and with 0.10, 1 GiB, libpsi, and a peer that dies."""
    old = make_venv(build / "spu09", [_SPU_09], python310())
    new = sys.executable
    outcomes = []
    for name, pythons, large in (
        ("spu 0.9.5, Python 3.10", (old, old), 0),
        ("spu 0.9.5 and 0.10 in one session", (old, new), 0),
        ("spu 0.9.5, 1 GiB", (old, old), _LARGE),
    ):
        ours = run_both(_of_links(pythons, free_ports(4), large), beside_sidecars=True)
        theirs = run_both(_of_links(pythons, free_ports(4), large), beside_sidecars=False)
        is_large = f"1 GiB {_slower(ours, 'large'):.1f} s"
        beside = f"{theirs.passed} of {theirs.total}, "
        beside += f"1 GiB {_slower(theirs, 'large'):.1f} s" if large else _times(theirs)
        outcomes.append(
            Outcome(
                name,
                ours.passed,
                ours.total,
                ours.seconds,
                beside=f"{beside}, listening {theirs.listening}",
                note=(is_large if large else _times(ours)) + _why(ours),
                listening=ours.listening,
            )
        )
    return [*outcomes, _intersection(old), _peer_dies(old)]


def _intersection(python: Path) -> Outcome:
    """libpsi over the link, too."""
    runs = {}
    for sidecars in (True, False):
        ports = free_ports(2)
        commands = [[str(python), str(PROGRAMS / "spu_psi.py"), party, ports] for party in PARTIES]
        runs[sidecars] = run_both(commands, beside_sidecars=sidecars)
    ours, theirs = runs[True], runs[False]
    return Outcome(
        "spu 0.9.5, PSI (ECDH, 1000 rows each)", ours.passed, ours.total, ours.seconds,
        beside=f"{theirs.passed} of {theirs.total}, {_slower(theirs, 'psi'):.1f} s, "
        f"listening {theirs.listening}",
        note=f"{_slower(ours, 'psi'):.1f} s" + _why(ours), listening=ours.listening,
    )  # fmt: skip


def _peer_dies(python: Path) -> Outcome:
    """alice is killed while bob waits for her inside SPU."""
    ports = free_ports(2)
    commands = [
        [str(python), str(PROGRAMS / "spu_peer_dies.py"), party, ports] for party in PARTIES
    ]
    ran = run_both(commands, beside_sidecars=True, timeout=120)
    waited = [line for line in ran.outputs[1].splitlines() if "ended without a word" in line]
    passed = ran.codes == [128 + signal.SIGKILL, _PEER] and bool(waited)
    note = "bob is told, and ends with code 4"
    return Outcome(
        "spu 0.9.5, alice is killed", int(passed), 1, ran.seconds,
        beside="bob waits for his receive timeout", note=note if passed else f"codes {ran.codes}",
        listening=ran.listening,
    )  # fmt: skip


def run_secretflow(_: Path | None, build: Path) -> Sequence[Outcome]:
    """A job with PYU objects and an SPU device, for both of SecretFlow's own transports."""
    python = make_venv(build / "secretflow114", ["secretflow==1.14.0b0"], python310())
    outcomes = []
    for backend in ("grpc", "brpc_link"):
        runs = {}
        for sidecars in (True, False):
            ports = free_ports(4)
            commands = [
                [str(python), str(PROGRAMS / "secretflow_job.py"), party, ports, backend]
                for party in PARTIES
            ]
            runs[sidecars] = run_both(commands, beside_sidecars=sidecars)
        ours, theirs = runs[True], runs[False]
        outcomes.append(
            Outcome(
                f"SecretFlow 1.14 job written for {backend}",
                ours.passed,
                ours.total,
                ours.seconds,
                beside=f"{theirs.passed} of {theirs.total}, job {_slower(theirs, 'job'):.1f} s, "
                f"listening {theirs.listening}",
                note=f"job {_slower(ours, 'job'):.1f} s" + _why(ours),
                listening=ours.listening,
            )
        )
    return outcomes


def run_rayfed(sources: Path | None, build: Path) -> Sequence[Outcome]:
    """RayFed's smallest program, ``fed/tests/simple_example.py``."""
    tests = RAYFED.path(sources, build) / "fed" / "tests"
    python = make_venv(
        build / "rayfed", ["secretflow-rayfed==0.2.1a2", "ray==2.42.0", "setuptools<81"],
        python310(),
    )  # fmt: skip
    call = "import runpy; runpy.run_path({file!r})['run']({party!r})"
    runs = {}
    for sidecars in (True, False):
        commands = [
            [str(python), "-c", call.format(file=str(tests / "simple_example.py"), party=party)]
            for party in PARTIES
        ]
        runs[sidecars] = run_both(
            commands, beside_sidecars=sidecars, environment={"RAY_USAGE_STATS_ENABLED": "0"}
        )

    def count(ran: Ran) -> int:
        results = [f"The result in party {party} is :agg-" in out for party, out in
                   zip(PARTIES, ran.outputs, strict=True)]  # fmt: skip
        return sum(ok and not code for ok, code in zip(results, ran.codes, strict=True))

    ours, theirs = runs[True], runs[False]
    return [
        Outcome(
            "RayFed's simple_example.py",
            count(ours),
            2,
            ours.seconds,
            beside=f"{count(theirs)} of 2, {theirs.seconds:.1f} s",
            note="Ray's own processes listen, and are not counted" + _why(ours),
        )
    ]


JOBS = [
    Job("sidecar", "SPU 0.9 beside redislink sidecar", run_sidecar),
    Job("secretflow", "SecretFlow 1.14 on Python 3.10 beside redislink sidecar", run_secretflow),
    Job("rayfed", "RayFed beside redislink sidecar", run_rayfed),
]
