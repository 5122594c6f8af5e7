"""The tutorial, typed as it stands, on the broker that the guide in deploy/ sets up.

Everybody has a terminal: three parties, the administrator, the operator. What is typed is what the
two pages show, block by block, but for what a reader replaces too: ``NAME``, the address of the
broker, and ``/etc`` for one who is not root. The broker is Debian's redis-server, with the
configuration, certificates and users of the guide, started by what its unit says.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from redislink import Simulator
from redislink.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.operate import acl
from tests.conftest import quick_settings
from tests.deploy.test_broker_files import free_port, server_binary
from tests.support import systemd
from tests.support.printing import print_line
from tests.support.terminal import Terminal, terminals

ROOT: Final = Path(__file__).parent.parent
PARTIES: Final = ("alice", "bob", "carol")
UNIT: Final = "redislink-broker"
_BLOCK = re.compile(r"^(?:<!-- ([^>]*) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{2,} (.*)$", re.MULTILINE)


def sections(page: str) -> dict[str, list[tuple[str, str]]]:
    """By heading, the blocks that say where they belong: that, and their text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: dict[str, list[tuple[str, str]]] = {}
    # A comment in a block looks like a heading: headings count only between blocks.
    blocks = list(_BLOCK.finditer(text))
    inside = [block.span() for block in blocks]
    headings = [
        heading
        for heading in _HEADING.finditer(text)
        if not any(start <= heading.start() < end for start, end in inside)
    ]
    for heading, after in zip(headings, [*headings[1:], None], strict=True):
        end = after.start() if after else len(text)
        found[heading[1]] = [
            (block[1], block[3])
            for block in blocks
            if heading.end() < block.start() < end and block[1]
        ]
    return found


TUTORIAL: Final = sections("docs/tutorial.md")
GUIDE: Final = sections("deploy/README.md")
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


def blocks(section: str, where: str) -> list[str]:
    """What somebody types in a section of the tutorial."""
    (name,) = (name for name in TUTORIAL if name.endswith(section))
    return [text for place, text in TUTORIAL[name] if place == where]


def file(name: str) -> str:
    """A file that the tutorial shows."""
    (text,) = (t for found in TUTORIAL.values() for place, t in found if place == f"file: {name}")
    return text


class People:
    """Everybody's terminal; all began in one directory, each goes to its own."""

    def __init__(self, root: Path, port: int, opened: dict[str, Terminal]) -> None:
        self.root = root
        self._port = port
        self._opened = opened

    def _as_typed(self, who: str, block: str) -> str:
        return (
            block.replace("NAME", who)
            .replace("broker.example:6379", f"localhost:{self._port}")
            .replace("/etc/", f"{self.root}/etc/")
        )

    def type(self, who: str, block: str) -> str:
        """What it printed."""
        self.start(who, block)
        return self.wait(who)

    def all_type(self, block: str) -> dict[str, str]:
        """The three parties at the same time; what each printed."""
        return self.each_types(dict.fromkeys(PARTIES, block))

    def each_types(self, block_of: dict[str, str]) -> dict[str, str]:
        """At the same time, each its own block."""
        for who, block in block_of.items():
            self.start(who, block)
        return {who: self.wait(who) for who in block_of}

    def start(self, who: str, block: str) -> None:
        """Type it, and do not wait."""
        self._opened[who].start(self._as_typed(who, block))

    def read_until(self, who: str, text: str) -> str:
        """What it printed until it printed this."""
        return self._opened[who].read_until(text)

    def wait(self, who: str) -> str:
        """What it printed to its end."""
        return self._opened[who].wait()

    def administer(self, *headings: str) -> str:
        """The administrator types sections of the guide, for systemd on Debian 12."""
        said = ""
        for heading in headings:
            for place, block in GUIDE[heading]:
                assert place.startswith("admin")
                said += self.type("admin", block)
        return said

    def files(self) -> set[str]:
        """What lies in the parties' directories and programs, without compiled Python."""
        found = (path for party in PARTIES for path in self.root.glob(f"{party}/**/*"))
        names = {path.relative_to(self.root).as_posix() for path in found}
        return {n for n in names if "__pycache__" not in n and "/out/" not in n}

    def log_in(self, user: str) -> BrokerConnection:
        """A connection to the broker as a party's user, with what the party has got."""
        party = self.root / user.partition("~")[2] / "redislink-session"
        password = (party / "broker.password").read_text().strip()
        settings = quick_settings(
            broker_url=acl.party_url(f"rediss://localhost:{self._port}/0", user, password),
            broker_tls_ca=party / "ca.crt",
            broker_tls_cert=party / "client.crt",
            broker_tls_key=party / "client.key",
        )
        return Broker.from_settings(settings, None).open()


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    """Everybody in front of an empty directory, with a clone of the repository in it."""
    server_binary("redis-server")
    root = tmp_path
    port = free_port()
    # A checkout after `make demo`, without what is in no clone.
    ignored = shutil.ignore_patterns("__pycache__", "tls", "passwords", "users.acl")
    for part in ("deploy", "examples"):
        shutil.copytree(ROOT / part, root / "redislink" / part, ignore=ignored)
    (root / "redislink" / ".venv").symlink_to(sys.prefix)
    systemd.install_commands(
        root / "commands", root, "--tls-port", str(port), "--bind", "127.0.0.1"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
    env |= {"PATH": f"{root / 'commands'}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with terminals(root, (*PARTIES, "admin", "operator"), env) as opened:
        try:
            yield People(root, port, opened)
        finally:
            systemd.stop(root, UNIT)


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(people: People) -> None:
    set_up(people)
    train(people)
    watch(people)
    add_a_session(people)
    kill_bob(people)


def set_up(people: People) -> None:
    """Steps 1 to 4 of the tutorial, and those of the guide."""
    root = people.root
    (install,) = blocks("try it alone", "everybody")
    *not_typed, activate = install.splitlines()
    assert not_typed == ["git clone REPOSITORY redislink", "make -C redislink demo"]
    for who in (*PARTIES, "admin", "operator"):
        people.type(who, activate)
        assert people.type(who, "command -v redislink").startswith(sys.prefix)

    (init,) = blocks("Make the keys", "each party")
    for party, said in people.all_type(init).items():
        assert f"redislink-session/introductions/{party}.yaml" in said
        assert "ABY3, because three parties compute" in said
    give, make, fingerprint = blocks("Make the cluster file", "each party")
    people.all_type(give)
    assert all("compare by telephone" in said for said in people.all_type(make).values())
    assert re.search(r"^alice .* own$", people.type("alice", fingerprint), re.MULTILINE)
    (copy,) = blocks("Set up the broker", "administrator")
    people.type("admin", copy)

    people.administer(
        "1. Make the broker's files", "2. Collect what each party gets", "Start it with systemd"
    )
    people.administer("4. Check it")
    for who in (*PARTIES, "operator"):
        given = root / "broker" / "hand-out" / who
        assert {path.name for path in given.iterdir()} == {
            *("broker.password", "ca.crt", "client.crt", "client.key")
        }
    copy, settings, doctor = blocks("Set up the broker", "each party")
    people.all_type(copy + settings)
    for party in PARTIES:
        assert (root / party / "redislink-session" / ".env").stat().st_mode & 0o777 == 0o600
    said = people.type("alice", doctor)
    assert "FAIL" not in said
    assert re.search(r"client certificate.*PASS", said)
    assert re.search(r"login.*PASS.*hospitals~alice", said)


ARGUMENTS: Final = {
    "logistic_regression.py": dict.fromkeys(PARTIES, "--data ."),
    "millionaire.py": {"alice": "--wealth 3", "bob": "--wealth 5", "carol": "--wealth 4"},
    "psi.py": dict.fromkeys(("alice", "bob"), "--input NAME.csv --output out") | {"carol": ""},
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


def check(program: str, printed: dict[str, str]) -> None:
    for party in PARTIES:
        said = SAID[program].get(party)
        if said is None:
            assert "told rightly" not in printed[party]
            assert "groups of" not in printed[party]
        else:
            assert re.search(said, printed[party]), printed[party]


def train(people: People) -> None:
    """Steps 5 and 7: the programs, one after the other in the same processes."""
    for block in blocks("Train", "each party"):
        people.all_type(block)
    (command,) = blocks("Train", "each party, at once")
    assert SHOWN in command
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for program in SAID:
        assert f"`programs/{program}`" in page or program in SHOWN
    before = people.files()
    assert not {"bob/alice.csv", "carol/alice.csv"} & before
    for party in PARTIES:
        (people.root / party / "programs" / "all.py").write_text(ALL)
    printed = people.each_types(
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
        check(program, {party: parts[party][number] for party in PARTIES})
    assert people.files() - before == {
        *(f"{party}/programs/all.py" for party in PARTIES),
        *("alice/out", "bob/out"),
    }


def watch(people: People) -> None:
    """Step 6."""
    go_there, top = blocks("Watch", "operator")
    people.type("operator", go_there)
    said = people.type("operator", top)
    assert "session hospitals" in said
    assert "not known" not in said, "it may see all that is shown"
    assert all(party in said for party in PARTIES)


def add_a_session(people: People) -> None:
    """Step 8: it is there at once, and after a restart of the broker."""
    (cluster,) = blocks("Add a second session", "administrator")
    people.type("admin", cluster)
    (copy,) = blocks("Add a second session", "each party")
    people.all_type(copy)
    before = people.log_in("hospitals~alice")
    people.administer("Add a session")
    people.log_in("night~alice").close()
    assert before.execute(b"PING", timeout=5) == b"PONG", "the first session was not disturbed"
    before.close()

    (restart,) = blocks("Add a second session", "administrator, with systemd")
    people.type("admin", restart)
    (bench,) = blocks("Add a second session", "each party, at once")
    for party, said in people.all_type(bench.replace("--seconds 1", "--seconds 0.1")).items():
        for peer in PARTIES:
            assert peer == party or re.search(rf"{peer}\W.*\d", said), said
    people.log_in("hospitals~alice").close()


def kill_bob(people: People) -> None:
    """Step 9: alice loads a second time only the days that bob had not on disk when he died."""
    step = "Kill bob, and start bob again"
    for party in PARTIES:
        program = file("days.py").replace("sleep(1)", "sleep(0.05)")
        (people.root / party / "days.py").write_text(program)
    (others,) = blocks(step, "alice and carol, at once")
    for party in ("alice", "carol"):
        people.start(party, others)
    (first,) = blocks(step, "bob, at once")
    people.type("bob", first)
    said = people.read_until("alice", "loading day 3\n")
    for place in ("bob kills it", "bob again"):
        (block,) = blocks(step, place)
        people.type("bob", block)
    said += people.wait("alice")
    people.wait("carol")
    days = re.findall(r"^loading day (\d+)$", said, re.MULTILINE)
    assert set(days) == {str(day) for day in range(1, 13)}
    assert len(days) <= 16, days
    assert "attempt 2 begins" in said
    assert re.search(r"^223\.\d", said, re.MULTILINE), said


def test_every_block_of_the_tutorial_belongs_to_somebody() -> None:
    """A block that says nothing would be typed by nobody."""
    for page in ("docs/tutorial.md", "deploy/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        bare = [
            block[3].strip().splitlines()[0]
            for block in _BLOCK.finditer(text)
            if block[2] == "sh" and not block[1]
        ]
        if page == "docs/tutorial.md":
            assert not bare
        else:  # compose, other distributions, units, Kubernetes, chart, alerts
            assert len(bare) == 11, bare


@pytest.mark.slow
def test_the_first_program(capsys: pytest.CaptureFixture[str], simulator: Simulator) -> None:
    code = compile(file("first.py"), "first.py", "exec")
    simulator.run(lambda _: exec(code, {"print": print_line}))
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "32.0",
        "<Withheld f32[], revealed to carol>",
        "<Withheld f32[], revealed to carol>",
    ]
