"""Starts the party processes of a demo, watches them from outside, and ends them.

Rules: reports on a party's sockets come from the operating system, which is asked about the process
and all its children while they run; no process outlives its `PartyProcess`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from redislink.broker import EgressProxy
from redislink.broker.url import Address, parse_url
from redislink.errors import BrokerUnreachable, ConfigError

_END_TIMEOUT: Final = 5.0


class SocketWatch:
    """The sockets that a process and its children had open at any look so far."""

    def __init__(self, pid: int) -> None:
        import psutil  # not there at a party in production: see need_psutil

        self._psutil = psutil
        self._process = psutil.Process(pid)
        self.looks = 0
        """How many times the sockets could be read."""
        self.listening = 0
        """The most sockets seen at once that accept connections or datagrams from anybody."""
        self.remotes: set[Address] = set()
        """The other ends of its TCP connections."""

    def look(self) -> None:
        """Read the sockets now. A process that has ended has none and is not counted."""
        listening = 0
        try:
            processes = [self._process, *self._process.children(recursive=True)]
            if self._process.status() == self._psutil.STATUS_ZOMBIE:
                return
        except self._psutil.NoSuchProcess:
            return
        for process in processes:
            with contextlib.suppress(self._psutil.NoSuchProcess):
                for connection in process.net_connections(kind="inet"):
                    if connection.status == self._psutil.CONN_LISTEN or (
                        connection.type == socket.SOCK_DGRAM and not connection.raddr
                    ):
                        listening += 1
                    elif connection.type == socket.SOCK_STREAM and connection.raddr:
                        self.remotes.add(_normal(connection.raddr.ip, connection.raddr.port))
        self.looks += 1
        self.listening = max(self.listening, listening)


def need_psutil() -> None:
    """Say at once that nobody could look at sockets.

    Raises:
        ConfigError: psutil is not installed.
    """
    try:
        import psutil  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the demo watches its parties' sockets with psutil, which is not installed: "
            "pip install 'redislink[demo]'"
        ) from None


class WatchedProcess:
    """A command ``redislink`` in a process of its own, with its sockets."""

    def __init__(
        self, name: str, words: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> None:
        """Start the process.

        Args:
            name: the name of the party.
            words: what follows ``redislink``.
            output: the file for its output.
            environment: variables to add to those of this process.
        """
        self.name = name
        self._output = output
        with output.open("wb") as file:
            self._process = self._start(list(words), {**os.environ, **environment}, file)
        self.sockets = SocketWatch(self._process.pid)

    def _start(
        self, words: list[str], environment: dict[str, str], output: IO[bytes]
    ) -> subprocess.Popen[Any]:
        return subprocess.Popen(
            [sys.executable, "-m", "redislink", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """The output so far."""
        return self._output.read_text(errors="replace")

    def last_line(self) -> str:
        """The last line of output; if the command failed, that is the error."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        return lines[-1] if lines else "(it printed nothing)"

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class PartyProcess(WatchedProcess):
    """``redislink run`` of one party in a process of its own."""

    def __init__(
        self,
        name: str,
        *,
        cluster: Path,
        program: Path,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> None:
        """Start the process.

        Args:
            name: the name of the party.
            cluster: the cluster file.
            program: the program that it runs.
            arguments: the program's arguments; ``--report FILE`` is added.
            directory: where to put the report and the output.
            environment: variables to add to those of this process.
            options: further options of ``redislink run``.
        """
        self._report = directory / f"{name}.jsonl"
        self._report.touch()
        self._read_to = 0
        words = [
            *("run", "--cluster", str(cluster), "--party", name, *options),
            *(str(program), *arguments, "--report", str(self._report)),
        ]
        super().__init__(name, words, directory / f"{name}.log", environment)

    def events(self) -> list[dict[str, Any]]:
        """The program's reports since the last call."""
        with self._report.open("rb") as report:
            report.seek(self._read_to)
            whole, newline, _ = report.read().rpartition(b"\n")
        self._read_to += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines() if line]


def broker_addresses(
    url: str,
    servers: Iterable[Address] = (),
    proxy_to: Callable[[Address], EgressProxy | None] = lambda _: None,
) -> set[Address]:
    """The addresses to which connections to a broker may go; none for a unix socket.

    Args:
        url: the broker's URL.
        servers: further servers, which the URL does not name (`Broker.addresses`).
        proxy_to: the proxy through which a server is dialled (`Broker.proxy_to`).

    Raises:
        BrokerUnreachable: no host name can be resolved here.
    """
    named = parse_url(url).addresses
    if not named:
        return set()
    found: set[Address] = set()
    failure: BrokerUnreachable | None = None
    for address in dict.fromkeys([*named, *servers]):
        proxy = proxy_to(address)
        try:
            found |= _resolve(*(address if proxy is None else proxy.address))
        except BrokerUnreachable as error:  # the parties skip it too
            failure = error
    if not found and failure is not None:
        raise failure
    return found


def _resolve(host: str, port: int) -> set[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BrokerUnreachable(
            f"broker {host}:{port}: its name cannot be resolved ({error.strerror or error}): "
            "check the host in the URL"
        ) from None
    return {_normal(str(address[0]), int(address[1])) for *_, address in found}


def _normal(host: str, port: int) -> Address:
    """An address with IPv4 as IPv4, even if a dual-stack socket shows it as IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), port
