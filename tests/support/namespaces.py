"""Network namespaces of a test's own: hosts on one small internet, each behind its own firewall.

Rules:
- A namespace has no name: descriptors and processes hold it, nothing else. It goes, with its
  interfaces and firewall, when they have gone, also when the tests are killed with SIGKILL.
- Only threads made here are ever inside one; the thread that calls stays where it is.
- Nothing routes to or from the machine's own network; the addresses are of RFC 5737, and nobody's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_CLONE_NEWNET: Final = 0x40000000
_CAP_SYS_ADMIN: Final = 21
_COMMAND_TIMEOUT: Final = 10.0
_SMALLEST_FIREWALL: Final = """
table inet smallest {
    counter dropped {}
    chain incoming {
        type filter hook input priority filter; policy drop;
        ct state established accept
        counter name dropped drop
    }
}
"""


def missing() -> str:
    """Why firewalled namespaces cannot be had on this machine; empty if they can."""
    tools = [tool for tool in ("ip", "nft", "ss") if shutil.which(tool) is None]
    if tools:
        return f"no {', '.join(tools)} on this machine: .ci/install-nftables installs them"
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective >> _CAP_SYS_ADMIN & 1:
        return "no right to make network namespaces (CAP_SYS_ADMIN): run as root"
    try:
        with contextlib.closing(Namespace("probe")) as namespace:
            namespace.firewall(_SMALLEST_FIREWALL)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"this kernel makes no namespace with a firewall: {said}"
    return ""


class Namespace:
    """One network namespace, with no interface but a loopback that is down."""

    def __init__(self, name: str) -> None:
        """Make it.

        Args:
            name: for whoever reads a failure; the kernel does not know it.

        Raises:
            OSError: this process may not.
        """
        self.name = name
        self._descriptor = _in_new_thread(_new_namespace)

    @property
    def path(self) -> str:
        """Where ``ip`` finds it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def __call__(self, work: Callable[[], _T]) -> _T:
        """Do ``work`` inside; the sockets and processes that it makes stay there."""

        def enter_and_work() -> _T:
            _check(_libc.setns(self._descriptor, _CLONE_NEWNET))
            return work()

        return _in_new_thread(enter_and_work)

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a command inside; its output.

        Raises:
            subprocess.CalledProcessError: it failed; ``stderr`` says why.
        """
        done = self(
            lambda: subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                check=True,
                timeout=_COMMAND_TIMEOUT,
            )
        )
        return done.stdout

    def firewall(self, rules: str) -> None:
        """Load nftables rules."""
        self.run("nft", "-f", "-", stdin=rules)

    def drop_firewall(self) -> None:
        """Remove all rules: everything passes again."""
        self.run("nft", "flush", "ruleset")

    def counters(self) -> dict[str, int]:
        """Packets that each named counter of the firewall has seen."""
        listed = json.loads(self.run("nft", "-j", "list", "counters"))["nftables"]
        found = (entry["counter"] for entry in listed if "counter" in entry)
        return {counter["name"]: int(counter["packets"]) for counter in found}

    def sockets(self, *filters: str) -> list[tuple[str, str]]:
        """Local and remote address of each socket that ``ss`` shows inside, of any process."""
        shown = self.run("ss", "-H", "-n", *filters).splitlines()
        return [(words[-2], words[-1]) for words in map(str.split, shown)]

    def close(self) -> None:
        """Let go of it; it ends once its processes have ended."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class Host:
    """One host of an `Internet`.

    Attributes:
        namespace: where its processes run.
        address: under which the others would reach it.
    """

    namespace: Namespace
    address: str


class Internet:
    """Hosts, each on a network of its own, and a router between them that lets all pass.

    Attributes:
        router: the router's namespace: the outside world.
        hosts: by name.
    """

    INTERFACE: Final = "uplink"

    def __init__(self, names: Sequence[str]) -> None:
        """Make it; `close` ends it.

        Args:
            names: of the hosts, at most 60.
        """
        self._stack = contextlib.ExitStack()
        self.hosts: dict[str, Host] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._stack.close)
            self.router = self._namespace("router")
            _set(self.router, "net.ipv4.ip_forward", "1")
            for number, name in enumerate(names):
                self.hosts[name] = self._attach(name, number)
            undo.pop_all()

    def close(self) -> None:
        """Let go of all namespaces."""
        self._stack.close()

    def __enter__(self) -> Internet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self._stack.callback(namespace.close)
        # What the kernel itself sends over IPv6 would be counted as if a party had sent it.
        _set(namespace, "net.ipv6.conf.all.disable_ipv6", "1")
        _set(namespace, "net.ipv6.conf.default.disable_ipv6", "1")
        return namespace

    def _attach(self, name: str, number: int) -> Host:
        namespace = self._namespace(name)
        gateway, address = (f"192.0.2.{4 * number + last}" for last in (1, 2))
        end = f"to{number}"
        uplink = ("peer", "name", self.INTERFACE, "netns", namespace.path)
        self.router.run("ip", "link", "add", "name", end, "type", "veth", *uplink)
        for where, interface, own in (
            (self.router, end, gateway),
            (namespace, self.INTERFACE, address),
        ):
            where.run("ip", "address", "add", f"{own}/30", "dev", interface)
            where.run("ip", "link", "set", interface, "up")
        namespace.run("ip", "route", "add", "default", "via", gateway)
        return Host(namespace, address)


@contextlib.contextmanager
def listener(host: Host, port: int) -> Iterator[socket.socket]:
    """A socket that listens on all addresses of a host."""
    with host.namespace(lambda: socket.create_server(("0.0.0.0", port), backlog=16)) as server:
        yield server


def dial(source: Namespace, address: str, port: int, timeout: float) -> bool:
    """Whether a TCP connection comes about within so many seconds.

    Raises:
        ConnectionRefusedError: nobody listens there: then nothing is known of a firewall.
    """

    def attempt() -> bool:
        try:
            connection = socket.create_connection((address, port), timeout)
        except TimeoutError:
            return False
        with connection:
            # Ended by a reset, to which nobody answers: a firewall put up now sees nothing of it.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True

    return source(attempt)


def _new_namespace() -> int:
    _check(_libc.unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set(namespace: Namespace, name: str, value: str) -> None:
    path = Path("/proc/sys", *name.split("."))
    if path.exists():  # a kernel without IPv6 has nothing to turn off
        namespace(lambda: path.write_text(value))


def _in_new_thread(work: Callable[[], _T]) -> _T:
    """In a thread of its own, which ends with it: no other work ever finds itself inside."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


_libc: Final[Any] = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
