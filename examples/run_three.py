"""Run an example as all parties at once on this machine: a broker, and a process per party.

::

    python run_three.py logistic_regression.py
    python run_three.py psi.py --input data/{party}.csv --output out
    python run_three.py --for alice "--wealth 3" --for bob "--wealth 5" --for carol "--wealth 4" \\
        millionaire.py

``{party}`` in an argument stands for the party's name. Each party gets a new key, for this run
alone, and only its own. Exit code: the worst of the parties'; 128 + n for one ended by signal n,
124 when time was up.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from redislink import load_cluster
from redislink.broker import EmbeddedBroker
from redislink.trial import write_trial

CLUSTER: Final = Path(__file__).resolve().parent / "cluster.yaml"
TIME_IS_UP: Final = 124
GRACE: Final = 5.0
"""Seconds that the others get to end by themselves once one party has failed."""
_POLL: Final = 0.05


def run_parties(
    cluster: Path,
    key_files: dict[str, Path],
    commands: dict[str, list[str]],
    url: str,
    timeout: float,
) -> int:
    """Run ``redislink run`` for each party, with its output prefixed.

    Args:
        cluster: the cluster file.
        key_files: private keys, by party.
        commands: program and arguments, by party.
        url: of the broker.
        timeout: seconds until those that still run are ended.

    Returns:
        The worst exit code.
    """
    width = max(map(len, commands))
    environment = {**os.environ, "REDISLINK_BROKER_URL": url, "PYTHONUNBUFFERED": "1"}
    processes: list[subprocess.Popen[str]] = []
    printers: list[threading.Thread] = []
    with ExitStack() as stack:
        for party, command in commands.items():
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "redislink", "run"),
                    *("--cluster", str(cluster), "--party", party),
                    *("--identity", str(key_files[party]), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
            )
            stack.callback(_end, process)
            processes.append(process)
            printer = threading.Thread(
                target=_print_lines, args=(process, f"{party:<{width}} | "), daemon=True
            )
            printer.start()
            printers.append(printer)
        in_time = _wait(processes, timeout)
    for printer in printers:
        printer.join(GRACE)
    codes = [code if code >= 0 else 128 - code for code in (p.wait() for p in processes)]
    if in_time:
        return max(codes)
    print(f"time is up after {timeout:g} s", file=sys.stderr)
    return TIME_IS_UP


def _wait(processes: list[subprocess.Popen[str]], timeout: float) -> bool:
    """Return once all have ended, or `GRACE` after one failed; False if time was up first."""
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


def _print_lines(process: subprocess.Popen[str], prefix: str) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            print(prefix + line, end="", flush=True)


def main() -> int:
    """Parse the command line, start the broker, run; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run an example as all parties at once.")
    parser.add_argument("--cluster", type=Path, default=CLUSTER, metavar="FILE")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument(
        "--for",
        dest="own",
        nargs=2,
        action="append",
        default=[],
        metavar=("PARTY", "ARGS"),
        help="further arguments of one party, in one word",
    )
    parser.add_argument("program", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    spec = load_cluster(options.cluster)
    parties = spec.party_names
    for party, _ in options.own:
        if party not in parties:
            parser.error(f"--for {party}: the parties are {', '.join(parties)}")
    commands = {
        party: [
            str(options.program),
            *(argument.replace("{party}", party) for argument in options.arguments),
            *(word for name, words in options.own if name == party for word in shlex.split(words)),
        ]
        for party in parties
    }
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="redislink-keys-") as keys:
        key_files = {party: Path(keys, party, "identity.key") for party in parties}
        cluster = Path(keys, "cluster.yaml")
        content = spec.model_dump(mode="json", exclude_none=True)
        write_trial(content, cluster, key_files, "of run_three.py")
        return run_parties(cluster, key_files, commands, broker.url, options.timeout)


if __name__ == "__main__":
    sys.exit(main())
