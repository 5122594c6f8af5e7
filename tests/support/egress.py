"""Egress proxies for the tests: Debian's tinyproxy, microsocks, dante and squid, on loopback.

`.ci/install-proxies` installs them. Each runs in the foreground as a child of the tests, listens on
127.0.0.1 only unless it is told another address, and ends with its ``with`` block.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.waiting import wait_until

HOST: Final = "127.0.0.1"
USER: Final = "hospital"
PASSWORD: Final = "s3cret-of-the-proxy"
_SBIN: Final = "/usr/sbin:/usr/bin:/bin"
_BINARIES: Final = {
    "tinyproxy": "tinyproxy",
    "microsocks": "microsocks",
    "dante": "danted",
    "squid": "squid",
}
KINDS: Final = tuple(_BINARIES)


def missing() -> str:
    """Which of them are not on this machine, and what installs them; empty if all are."""
    absent = [kind for kind, name in _BINARIES.items() if shutil.which(name, path=_SBIN) is None]
    return f"no {', '.join(absent)} on this machine: .ci/install-proxies installs them" * bool(
        absent
    )


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class RealProxy:
    """A proxy of one of `KINDS`. It allows CONNECT to the ports that it is told, and no other.

    Attributes:
        kind: which.
        directory: for its configuration and log; its own.
        allowed: the ports; microsocks allows all.
        login: whether it wants `USER` and `PASSWORD`; dante and squid do not know them.
        idle: seconds after which it cuts a tunnel on which nothing moves; tinyproxy alone.
        address: where it listens.
        hosts: a file that it reads instead of ``/etc/hosts``; needs root.
        tls: a PEM file of a certificate and its key, if squid itself is to speak TLS.
        port_options: of the port where squid listens.
        extra: further lines of its configuration.
    """

    kind: str
    directory: Path
    allowed: Sequence[int] = ()
    login: bool = False
    idle: int = 600
    address: str = HOST
    hosts: Path | None = None
    tls: Path | None = None
    port_options: str = ""
    extra: str = ""
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.directory.mkdir(exist_ok=True)
        self._log = self.directory / "log"

    def url(self, user: str = USER, password: str = PASSWORD) -> str:
        """The proxy's URL, with this user, if it wants one."""
        scheme = "socks5h" if self.kind in ("microsocks", "dante") else "http"
        scheme = "https" if self.tls else scheme
        return f"{scheme}://{f'{user}:{password}@' if self.login else ''}{self.address}:{self.port}"

    @property
    def label(self) -> str:
        """The proxy in messages."""
        return self.url().replace(f"{USER}:{PASSWORD}@", "")

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start it; returns once it listens."""
        binary = shutil.which(_BINARIES[self.kind], path=_SBIN)
        if binary is None:
            raise FileNotFoundError(missing())
        command = [binary, *getattr(self, f"_{self.kind}")()]
        if self.hosts is not None:
            bind = f'mount --bind "{self.hosts}" /etc/hosts && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", bind, "sh", *command]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        try:
            wait_until(self._listens, 20)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, with all its tunnels."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            socket.create_connection((self.address, self.port), 1).close()
        except OSError:
            return False
        return True

    def _write(self, text: str) -> str:
        path = self.directory / "configuration"
        path.write_text(text)
        return str(path)

    def _tinyproxy(self) -> list[str]:
        login = f"BasicAuth {USER} {PASSWORD}\n" if self.login else ""
        allowed = "".join(f"ConnectPort {port}\n" for port in self.allowed)
        return [
            *("-d", "-c"),
            self._write(
                f"Port {self.port}\nListen {self.address}\nTimeout {self.idle}\nMaxClients 100\n"
                f"LogLevel Connect\n{login}{allowed}{self.extra}"
            ),
        ]

    def _microsocks(self) -> list[str]:
        login = ["-u", USER, "-P", PASSWORD] if self.login else []
        return ["-i", self.address, "-p", str(self.port), *login]

    def _dante(self) -> list[str]:
        everywhere = "from: 0.0.0.0/0 to: 0.0.0.0/0"
        allowed = "".join(f"socks pass {{ {everywhere} port = {port} }}\n" for port in self.allowed)
        return [
            "-f",
            self._write(
                f"logoutput: stderr\ninternal: {self.address} port = {self.port}\n"
                f"external: {self.address}\nsocksmethod: none\nclientmethod: none\n"
                f"client pass {{ {everywhere} }}\n{allowed}socks block {{ {everywhere} }}\n"
            ),
        ]

    def _squid(self) -> list[str]:
        ports = " ".join(map(str, self.allowed))
        secured, certificate = ("s", f"tls-cert={self.tls}") if self.tls else ("", "")
        return [
            *("-N", "-f"),
            self._write(
                f"http{secured}_port {self.address}:{self.port} {certificate} {self.port_options}\n"
                "pid_filename none\n"
                "cache deny all\naccess_log none\ncache_log /dev/stderr\nshutdown_lifetime 0\n"
                f"pinger_enable off\nacl allowed port {ports}\nhttp_access allow CONNECT allowed\n"
                f"http_access deny all\n{self.extra}"
            ),
        ]
