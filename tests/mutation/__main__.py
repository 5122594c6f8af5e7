"""Which changes of the code do the tests not notice?

One place of a module is changed at a time, and the tests that belong to the module are run, up to
the first that fails. Slow tests are left out; what runs in memory is not run on a real server too.
A change that none notices survives: a test is missing, or the change makes no difference.
`survivors.md` beside this file has those that were looked at, and why they may stay.

Tests are collected once per module; each mutant is a fork in which one function gets other code. So
what a test module calls while it is collected (in `parametrize`, say) does not see the change.
What a module does at its import needs a fork that has not imported it yet. (mutmut 3 leaves out
decorated functions and whatever is outside functions; cosmic-ray starts an interpreter and
collects for each mutant.)
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import Phase, settings

from tests.mutation.mutants import Mutant, function_codes, mutants

ROOT: Final = Path(__file__).parents[2]
KNOWN: Final = Path(__file__).with_name("survivors.md")
REPORT: Final = ROOT / "build" / "mutation.md"
_ONE_RUN: Final = "protocol/test_delivery_simulation.py::test_every_run_ends_as_it_should[0]"
_SILENCE: Final = (
    "transport/test_trouble.py::test_a_peer_that_is_not_heard_is_named_before_it_counts_as_lost"
)
_CALLS: Final = [
    f"transport/test_endpoint.py::{name}"
    for name in ("TestHandles", "TestPeek", "TestWaiting", "TestWrongUse", "TestMessages")
]
TESTS: Final = {
    "protocol/received": ["protocol/test_received.py"],
    "protocol/chunking": ["protocol/test_chunking.py"],
    "protocol/lookahead": ["protocol/test_lookahead.py"],
    "protocol/list_names": ["protocol/test_list_names.py"],
    "protocol/fragments": ["protocol/test_fragments.py"],
    "protocol/element_size": ["protocol/test_element_size.py"],
    "protocol/states": ["protocol/test_states_doc.py"],
    "protocol/handshake": ["protocol/test_handshake.py"],
    "session/steps": ["session/test_steps.py"],
    "transport/rendezvous": ["transport/test_rendezvous.py", "transport/test_endpoint.py"],
    "protocol/sending": [
        "protocol/test_sending.py", "protocol/test_delivery.py", "protocol/test_receiving.py",
        "protocol/test_short_ways.py", _ONE_RUN,
    ],
    "protocol/receiving": [
        "protocol/test_receiving.py", "protocol/test_delivery.py", "protocol/test_short_ways.py",
        _ONE_RUN,
    ],
    "protocol/delivery": [
        "protocol/test_delivery.py", "protocol/test_sending.py", "protocol/test_receiving.py",
        "protocol/test_short_ways.py", _ONE_RUN, _SILENCE,
    ],
    "protocol/conversation": [
        "protocol/test_delivery.py", "protocol/test_sending.py", "protocol/test_receiving.py",
    ],
    "protocol/pushes": [
        "protocol/test_sending.py", "protocol/test_delivery.py", "protocol/test_short_ways.py",
    ],
    "protocol/frame": ["protocol/test_frame.py", "protocol/test_short_ways.py"],
    "protocol/seal": ["protocol/test_seal.py", "protocol/test_short_ways.py"],
    "protocol/noise_kk": ["protocol/test_noise_kk.py"],
    "protocol/sealed_handshake": [
        "protocol/test_sealed_handshake.py", "protocol/test_unopened_hellos.py",
    ],
    "protocol/status": ["protocol/test_status.py", "transport/test_party_status.py"],
    "transport/peer": ["transport/test_cut_elements.py", "transport/test_endpoint.py"],
    "transport/claim": ["transport/test_claim.py"],
    "transport/closing": [
        "transport/test_closing.py", "test_logs.py", "transport/test_core_lock.py",
    ],
    "transport/control": [
        "transport/test_control.py", "transport/test_core_lock.py", "transport/test_receiving.py",
        "transport/test_trouble.py",
    ],
    "transport/lanes": ["transport/test_lanes_in_memory.py", "transport/test_lanes.py"],
    "transport/core": [
        "transport/test_core.py", "transport/test_cut_elements.py", "transport/test_core_lock.py",
        "transport/test_closing.py", "transport/test_trouble.py",
    ],
    "transport/receiving": [
        "transport/test_receiving.py", "transport/test_cut_elements.py",
        "transport/test_core_lock.py", "transport/test_lanes.py", *_CALLS,
    ],
    "transport/sending": [
        "transport/test_sending.py", "transport/test_core.py", *_CALLS, "transport/test_trouble.py",
    ],
    "transport/endpoint": [
        "transport/test_stats.py", "transport/test_endpoint.py", "transport/test_delivery_lock.py",
    ],
    "transport/stats": ["transport/test_stats.py", "transport/test_trouble.py"],
    "transport/party_status": ["transport/test_party_status.py", "transport/test_trouble.py"],
}  # fmt: skip
"""Module: the tests that are to notice each change of it, the quickest first."""
_CHOSEN: Final = ["-m", "not slow", "-k", "not valkey"]
_TIMES: Final = 3
"""A mutant may take as many times as long as the module itself, in wall and in CPU seconds."""
_AT_LEAST: Final = 8
_MEMORY: Final = 2 << 30
"""Bytes; a loop that a change made endless must not take the machine's."""
_RE_IMPORT: Final = 100
"""Exit status of a fork in which the function could not be replaced."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of the tests ended, and how long it took (seconds)."""

    status: int | None
    wall: float
    cpu: float

    @property
    def name(self) -> str:
        return {0: "survived", None: "timed out"}.get(self.status, "killed")


class NoShrinking:
    """What hypothesis need not do here: make a failing example small, and remember it."""

    def pytest_configure(self) -> None:
        settings.register_profile(
            "mutation", settings(), derandomize=True, database=None,
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        settings.load_profile("mutation")


class ForkPerMutant:
    """Runs the collected tests once in a fork for each mutant, and once unchanged."""

    def __init__(self, path: Path, chosen: Sequence[tuple[int, Mutant]], results: Path) -> None:
        self._path, self._chosen, self._results = path, chosen, results

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> bool | None:
        gc.collect()
        functions: dict[tuple[str, int], list[types.FunctionType]] = {}
        path = str(self._path)
        for each in gc.get_objects():  # also those of a module that was imported twice
            if isinstance(each, types.FunctionType) and each.__code__.co_filename == path:
                key = each.__code__.co_qualname, each.__code__.co_firstlineno
                functions.setdefault(key, []).append(each)
        base = None
        for number, mutant in [(-1, None), *self._chosen]:
            pid = _fork(base)
            if not pid:
                if mutant is not None and not _replace(functions, mutant):
                    os._exit(_RE_IMPORT)
                return None  # pytest goes on, with the tests
            outcome = _wait(pid, base)
            with self._results.open("a") as file:
                print(json.dumps([number, outcome.status, outcome.wall, outcome.cpu]), file=file)
            if base is None:
                if outcome.status != 0:
                    break
                base = outcome
        return True


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module other code when it is imported."""

    def __init__(self, name: str, path: Path, code: types.CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self._name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self._path))

    def exec_module(self, module: types.ModuleType) -> None:
        module.__file__ = str(self._path)
        exec(self._code, module.__dict__)


def _replace(functions: dict[tuple[str, int], list[types.FunctionType]], mutant: Mutant) -> bool:
    for code in function_codes(mutant.code):
        if (code.co_qualname, code.co_firstlineno) == mutant.function:
            try:
                for function in functions[mutant.function]:
                    function.__code__ = code
            except (KeyError, ValueError):
                return False
            return True
    return False


def _fork(base: Outcome | None) -> int:
    """As `os.fork`; the child has limits of a few times what the unchanged module took."""
    pid = os.fork()
    if not pid:
        os.setsid()
        if base is not None:
            seconds = int(_TIMES * base.cpu) + _AT_LEAST
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    return pid


def _wait(pid: int, base: Outcome | None) -> Outcome:
    began = time.monotonic()
    descriptor = os.pidfd_open(pid)
    limit = None if base is None else _TIMES * base.wall + _AT_LEAST
    ended = bool(select.select([descriptor], [], [], limit)[0])
    os.close(descriptor)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - began
    code: int | None = os.waitstatus_to_exitcode(status)
    if not ended or code in (-signal.SIGXCPU, -signal.SIGKILL):
        code = None
    return Outcome(code, wall, usage.ru_utime + usage.ru_stime)


def _run_tests(files: Sequence[str], *plugins: object) -> int:
    return int(
        pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "--no-header", *_CHOSEN, *files],
            plugins=[NoShrinking(), *plugins],
        )
    )


def _in_fork(work: Callable[[], int], log: Path, base: Outcome | None = None) -> Outcome:
    """Run in a process of its own, whose output goes to a file."""
    pid = _fork(base)
    if not pid:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 3
        try:
            status = work()
        finally:
            os._exit(status)
    return _wait(pid, base)


def measure(module: str, most: int, seed: int, directory: Path) -> tuple[int, dict[Mutant, str]]:
    """How many mutants a module has, and how each of those chosen ended."""
    path = ROOT / "redislink" / f"{module}.py"
    files = [f"tests/{name}" for name in TESTS[module]]
    all_of_it = mutants(path.read_text(), str(path))
    numbers = range(len(all_of_it))
    if len(all_of_it) > most:
        numbers = sorted(random.Random(f"{seed} {module}").sample(numbers, most))
    results, log = directory / "results", directory / "log"
    results.write_text("")
    inside = [(number, all_of_it[number]) for number in numbers if all_of_it[number].function]
    _in_fork(lambda: _run_tests(files, ForkPerMutant(path, inside, results)), log)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    if not rows or rows[0][1] != 0:
        raise SystemExit(f"{module}: tests fail on the module as it is:\n{log.read_text()[-3000:]}")
    base = Outcome(*rows[0][1:])
    outcomes = {row[0]: Outcome(*row[1:]) for row in rows[1:]}
    name = f"redislink.{module.replace('/', '.')}"
    for number in numbers:
        if number not in outcomes or outcomes[number].status == _RE_IMPORT:
            importer = _Importer(name, path, all_of_it[number].code)

            def work(importer: _Importer = importer) -> int:
                sys.meta_path.insert(0, importer)
                return _run_tests(files)

            outcomes[number] = _in_fork(work, log, base)
    return len(all_of_it), {all_of_it[number]: outcomes[number].name for number in numbers}


def _preload() -> None:
    """Import what redislink imports, so that no fork has to; but nothing of ours."""
    for name in ("redislink.testing.fixtures", "tests.conftest"):
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.partition(".")[0] == "redislink" or name == "tests.conftest":
            del sys.modules[name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="such as protocol/states")
    parser.add_argument("--most", type=int, default=60, help="mutants per module (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice (%(default)s)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    os.nice(19 - os.nice(0))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _preload()
    known = KNOWN.read_text()
    lines = [
        "| module | mutants | tried | killed | timed out | survived | score |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    new: list[str] = []
    for module in options.modules:
        with tempfile.TemporaryDirectory() as directory:
            total, ends = measure(module, options.most, options.seed, Path(directory))
        counts = [list(ends.values()).count(n) for n in ("killed", "timed out", "survived")]
        score = 1 - counts[2] / max(1, len(ends))
        cells = (module, total, len(ends), *counts, f"{score:.0%}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
        for mutant, end in ends.items():
            source = (ROOT / f"redislink/{module}.py").read_text().splitlines()
            line = source[mutant.line - 1].strip()
            if end == "survived" and f"{module}: `{line}`: {mutant.change}" not in known:
                new.append(f"- {module}: `{line}`: {mutant.change} (line {mutant.line})")
                print(new[-1], flush=True)
    REPORT.parent.mkdir(exist_ok=True)
    text = "\n".join([*lines, "", f"Survivors that are not in {KNOWN.name}:", "", *new, ""])
    REPORT.write_text(text)
    print(f"{len(new)} survivors that are not in {KNOWN.name}; see {REPORT.relative_to(ROOT)}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
