"""``redislink simulate``: run one program as every party, on this machine.

Rules: each party is its own process (``redislink run``), so the program is the same, unchanged, as
between organisations; each party has its own key, made for this run; they meet, sealed, at an
embedded broker. No process outlives the command.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from redislink.cli import errors
from redislink.cli.errors import ExitCode, Verbose, check_finite, say
from redislink.cli.exchange import DataOption, ResultsOption, exchanged
from redislink.cli.termination import sigterm_interrupts
from redislink.cluster import ClusterSpec
from redislink.cluster.trial import write_trial
from redislink.errors import ConfigError
from redislink.settings import (
    SESSION_DIR,
    LinkMode,
    RedisLinkSettings,
    environment_of_simulation,
)
from redislink.text import printable

TIME_IS_UP: Final = 124
GRACE: Final = 5.0
"""Seconds that the others have to end by themselves once one party has failed."""
_POLL: Final = 0.05
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")


def simulate(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", help="Python file that every party runs.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="Arguments of the program; {party} in them stands for the party's name.",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cluster file, whose keys and broker are ignored; otherwise "
            "REDISLINK_CLUSTER_FILE.",
            show_default=False,
        ),
    ] = None,
    parties: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Instead of a cluster file: N parties (alice, bob, carol, …) with the devices SP0 "
            "of the first three and PSI0 of the first two. 3 without a file.",
            show_default=False,
        ),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="'PARTY ARGS'",
            help="More arguments for one party, quoted as one; you may repeat this option.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1,
            callback=check_finite,
            help="Seconds after which parties that still run are ended.",
        ),
    ] = 600.0,
    data: DataOption = None,
    results: ResultsOption = None,
    verbose: Verbose = False,
) -> None:
    """Run PROGRAM as all parties at once on this machine, and merge their output.

    The program is the one for `redislink run`, unchanged. Keys and an embedded broker are made for
    this run; there is nothing to set up.

        redislink simulate --for "alice --wealth 3" \\
            --for "bob --wealth 5" millionaire.py
    """
    settings = RedisLinkSettings.load()
    spec, source = _cluster(settings, cluster, parties)
    if not Path(program).is_file():
        raise ConfigError(f"program {program}: there is no such file: check the path")
    commands = _commands(spec, source, program, arguments or [], own or [])
    if results is not None and "{party}" not in str(results):
        results /= "{party}"  # else each would replace the others'
    more = environment_of_simulation(settings)
    more |= exchanged(settings, data, results) | errors.spu_log(settings)
    with sigterm_interrupts():
        code = _run(spec, commands, timeout, more)
    raise SystemExit(code)


def _cluster(
    settings: RedisLinkSettings, path: Path | None, parties: int | None
) -> tuple[ClusterSpec, str]:
    """The cluster, and who says so, for errors."""
    from redislink.session.simulator import simulated_cluster  # loads numpy

    if path is not None and parties is not None:
        raise ConfigError("give --cluster or --parties, not both")
    if path is not None:
        return simulated_cluster(path), str(path)
    found = settings.cluster_file
    if parties is None and found is not None:
        if found.exists() or found.parent != SESSION_DIR:
            say(f"parties and devices are those of {found}; --parties N takes others")
            by = "redislink init made here" if found.parent == SESSION_DIR else "the settings name"
            return simulated_cluster(found), f"{found}, which {by} (--parties N takes others)"
        say(f"{found} is not there yet (redislink init says what is missing): three parties")
    count = parties or 3
    return simulated_cluster(count), f"{count} parties (--parties N, --cluster FILE for others)"


def _commands(
    spec: ClusterSpec, source: str, program: str, arguments: list[str], own: list[str]
) -> dict[str, list[str]]:
    """The program and its arguments for each party.

    Args:
        source: who says which parties there are, for errors.
    """
    commands = {
        party: [program, *(argument.replace("{party}", party) for argument in arguments)]
        for party in spec.party_names
    }
    for words in own:
        try:
            party, *more = shlex.split(words)
        except ValueError as error:
            raise ConfigError(f"--for {words!r}: {error}: fix the quotes") from None
        if party not in commands:
            raise ConfigError(
                f"--for {words!r}: does not begin with a party: use one of {', '.join(commands)}, "
                f"of {source}"
            )
        commands[party] += more
    return commands


def _run(
    spec: ClusterSpec, commands: dict[str, list[str]], timeout: float, more: dict[str, str]
) -> int:
    """Start the broker and the parties, wait for them, and return the exit code.

    Args:
        spec: the cluster.
        commands: the program and its arguments for each party.
        timeout: seconds.
        more: the parties' environment, but for what each of them is.
    """
    from redislink.broker import EmbeddedBroker  # loads the server binary's package

    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(password=secrets.token_urlsafe(32)))
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="redislink-simulate-"))
        keys = {party: Path(directory, party, "identity.key") for party in commands}
        cluster = Path(directory, "cluster.yaml")
        content = spec.model_dump(mode="json", exclude={"broker"}, exclude_none=True)
        write_trial(content | {"security": "sealed"}, cluster, keys, "of redislink simulate")
        output = _Output(commands)
        processes: dict[str, subprocess.Popen[str]] = {}
        for party, command in commands.items():
            processes[party] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "redislink", "run"),
                    *("--cluster", str(cluster), "--party", party),
                    *("--identity", str(keys[party]), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={
                    **more,
                    "PYTHONUNBUFFERED": "1",
                    "REDISLINK_BROKER_URL": broker.unix_url,
                    "REDISLINK_LINK_MODE": LinkMode.CHANNELS.value,
                    "REDISLINK_PSK_DIR": str(keys[party].parent),  # holds none
                },
            )
            stack.callback(_end, processes[party])
            output.follow(party, processes[party])
        in_time = _wait(list(processes.values()), timeout)
        by_themselves = [code for p in processes.values() if (code := p.poll()) is not None]
        for process in processes.values():
            _end(process)
        output.finish()
    if not in_time:
        say(f"time is up after {timeout:g} s")
        return TIME_IS_UP
    return _worst(by_themselves)


def _worst(codes: list[int]) -> int:
    """The code of a party that failed by itself, rather than because of a peer."""
    shell = [code if code >= 0 else 128 - code for code in codes]
    return max((code for code in shell if code != ExitCode.PEER), default=0) or max(shell)


class _Output:
    """Prints the parties' lines, each after the name of its party."""

    def __init__(self, parties: dict[str, list[str]]) -> None:
        self._console = Console(soft_wrap=True, highlight=False, emoji=False)
        self._width = max(map(len, parties))
        self._styles = {
            party: _COLOURS[number % len(_COLOURS)] for number, party in enumerate(parties)
        }
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def follow(self, party: str, process: subprocess.Popen[str]) -> None:
        """Print a process's output, line by line, until it ends."""
        thread = threading.Thread(target=self._print_lines, args=(party, process), daemon=True)
        thread.start()
        self._threads.append(thread)

    def finish(self) -> None:
        """Wait until all is printed; a child that a party left behind may keep the output open."""
        for thread in self._threads:
            thread.join(GRACE)

    def _print_lines(self, party: str, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            return
        prefix = (f"{party:<{self._width}} | ", self._styles[party])
        with process.stdout as lines:
            for line in lines:
                text = Text.from_ansi(line.rstrip("\n"))  # colours stay
                text.plain = printable(text.plain, keep="\t")
                with self._lock:
                    self._console.print(Text.assemble(prefix, text))


def _wait(processes: list[subprocess.Popen[str]], timeout: float) -> bool:
    """Wait until all have ended, or `GRACE` after one failed; False if time was up first."""
    deadline = time.monotonic() + timeout
    give_up: float | None = None
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if give_up is None and any(process.poll() for process in processes):
            give_up = now + GRACE
        if give_up is not None and now > give_up:
            return True
        if now > deadline:
            return False
        time.sleep(_POLL)
    return True


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
