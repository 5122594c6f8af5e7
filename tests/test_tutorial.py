"""The tutorial's commands, as written: three processes in three directories, each with only its own
data and key, over a broker with one generated user per party."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from redislink import Simulator
from redislink.broker import EmbeddedBroker

ROOT: Final = Path(__file__).parent.parent
TUTORIAL: Final = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PARTIES: Final = ("alice", "bob", "carol")
TIMEOUT: Final = 120.0
_BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS: Final = [match.groups() for match in _BLOCK.finditer(TUTORIAL)]
pytestmark = pytest.mark.slow


def _commands(place: str) -> list[str]:
    return [text for where, _, text in BLOCKS if where == place]


def _block(language: str) -> str:
    return next(text for _, kind, text in BLOCKS if kind == language)


class Place:
    """A directory for each party, and one for the broker's admin."""

    ALL: Final = """
import runpy, sys
from pathlib import Path
for words in sys.argv[1:]:
    program, *arguments = words.split()
    sys.argv = [program, *arguments]
    print("==", program, flush=True)
    runpy.run_path(str(Path(__file__).with_name(program)), run_name="__main__")
"""
    """Runs several programs in one process: to start one each takes most of the time."""

    def __init__(self, root: Path, broker: EmbeddedBroker) -> None:
        self.root = root
        self.broker = broker
        for name in (*PARTIES, "admin"):
            (root / name).mkdir()
        for name in PARTIES:
            shutil.copytree(
                ROOT / "examples", root / name / "programs", ignore=shutil.ignore_patterns("data")
            )
            (root / name / "programs" / "all.py").write_text(self.ALL)
        for party, file in (("alice", "alice.csv"), ("bob", "bob.csv"), ("carol", "carol.json")):
            shutil.copy(ROOT / "examples" / "data" / file, root / party)

    def start(self, who: str, command: str) -> subprocess.Popen[str]:
        """Start a block of commands in somebody's directory."""
        text = command.replace("PARTY", who).replace(
            "broker.example:6379", f"127.0.0.1:{self.broker.port}"
        )
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", "-euc", text],
            cwd=self.root / who,
            env=inherited | {"PATH": path, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def files(self) -> set[str]:
        """What lies in the parties' directories, by path; without compiled Python."""
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))
        return {path for path in found if "__pycache__" not in path}

    def together(self, commands: dict[str, str]) -> dict[str, str]:
        """Run blocks of commands at the same time."""
        started = {who: self.start(who, command) for who, command in commands.items()}
        try:
            return {who: self._end(who, process) for who, process in started.items()}
        finally:
            for process in started.values():
                process.kill()
                process.wait()

    def _end(self, who: str, process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, f"{who}: {out}{err}"
        return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """All that the tutorial says before training."""
    password = secrets.token_urlsafe(16)
    with EmbeddedBroker(password=password) as broker:
        place = Place(tmp_path_factory.mktemp("tutorial"), broker)
        keygen, fingerprint = _commands("each party")
        cluster = _block("yaml")
        for party, line in place.together(dict.fromkeys(PARTIES, keygen)).items():
            cluster = re.sub(
                rf'^ *- {{name: {party}, public_key: "x25519:…"}}$', "  " + line.strip(), cluster,
                flags=re.MULTILINE,
            )  # fmt: skip
        assert "…" not in cluster
        for who in (*PARTIES, "admin"):
            (place.root / who / "cluster.yaml").write_text(cluster)
        (place.root / "admin" / "admin.password").write_text(password)
        place.together({"alice": fingerprint, "admin": _commands("admin")[0]})
        for party in PARTIES:
            given = place.root / "admin" / "passwords" / f"{party}.password"
            shutil.copy(given, place.root / party / "broker.password")
        yield place


ARGUMENTS: Final = {
    "logistic_regression.py": dict.fromkeys(PARTIES, "--data ."),
    "millionaire.py": {"alice": "--wealth 3", "bob": "--wealth 5", "carol": "--wealth 4"},
    "psi.py": dict.fromkeys(("alice", "bob"), "--input PARTY.csv --output out") | {"carol": ""},
    "mlp.py": dict.fromkeys(PARTIES, "--data ."),
    "kmeans.py": dict.fromkeys(PARTIES, "--data ."),
}
SAID: Final = {
    "logistic_regression.py": {"alice": r"0\.9\d+ of 140 held-out patients told rightly"},
    "millionaire.py": dict.fromkeys(PARTIES, "bob is the richest"),
    "psi.py": dict.fromkeys(("alice", "bob"), "RR22: 420 ids in common"),
    "mlp.py": {"bob": r"0\.9\d+ of 140 held-out patients told rightly"},
    "kmeans.py": dict.fromkeys(("alice", "bob"), r"groups of \d+, \d+ patients"),
}


SHOWN: Final = "programs/logistic_regression.py --data ."


def _check(program: str, printed: dict[str, str]) -> None:
    for party in PARTIES:
        said = SAID[program].get(party)
        if said is None:
            assert "told rightly" not in printed[party]
            assert "groups of" not in printed[party]
        else:
            assert re.search(said, printed[party]), printed[party]


def test_the_examples_as_three_processes_apart(place: Place) -> None:
    (command,) = _commands("each party, at once")
    assert SHOWN in command
    for program in SAID:
        assert f"`programs/{program}`" in TUTORIAL or program in SHOWN
    before = place.files()
    printed = place.together(
        {
            party: command.replace(
                SHOWN,
                "programs/all.py "
                + " ".join(f"'{program} {ARGUMENTS[program][party]}'" for program in SAID),
            )
            for party in PARTIES
        }
    )
    parts = {party: re.split(r"^== .*$", text, flags=re.M)[1:] for party, text in printed.items()}
    for number, program in enumerate(SAID):
        _check(program, {party: parts[party][number] for party in PARTIES})
    assert {path for path in place.files() - before if path.count("/") == 1} == {
        "alice/out",
        "bob/out",
    }


def test_the_first_program(capsys: pytest.CaptureFixture[str], simulator: Simulator) -> None:
    code = compile(_block("python"), "first.py", "exec")
    simulator.run(lambda _: exec(code, {}))
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "32.0",
        "<Withheld f32[], revealed to carol>",
        "<Withheld f32[], revealed to carol>",
    ]
