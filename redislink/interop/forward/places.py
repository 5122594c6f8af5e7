"""Where a forwarder listens and what it may connect to, as words of a command line.

Rules:
- It listens on this machine alone: on a loopback address or a unix socket. The rest of a network
  would else reach the other party through it, with nobody asked.
- It connects to nothing but what this party allows, and the other party knows of that a name only.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.protocol.list_names import check_name
from redislink.text import one_line

UNIX: Final = "unix:"
_MOST_PATH_BYTES: Final = 103
"""Of a unix socket's path: macOS allows 103, Linux 107."""
_MOST_PORT: Final = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """A TCP port. Where one listens, port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixPlace:
    """A unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"{UNIX}{self.path}"


Place = TcpPlace | UnixPlace


@dataclass(frozen=True, slots=True)
class Forward:
    """``-L``: what connects here reaches what the peer allows under this name."""

    listen: Place
    peer: str
    name: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """``--allow``: this name leads to this target.

    Attributes:
        party: the only party for which it does; None: for every other party.
        name: the name.
        target: what is connected to.
    """

    party: str | None
    name: str
    target: Place


class Targets:
    """What each of the other parties may reach here."""

    def __init__(self, allowed: Iterable[Allowed], others: Sequence[str]) -> None:
        """Args:
        allowed: the entries.
        others: the names of all other parties.

        Raises:
            ConfigError: a name has two targets for one party.
        """
        self._targets: dict[tuple[str, str], Place] = {}
        for entry in allowed:
            for party in others if entry.party is None else [entry.party]:
                if self._targets.setdefault((party, entry.name), entry.target) != entry.target:
                    raise ConfigError(
                        f"--allow gives {entry.name!r} two targets for {party}: give each a name "
                        "of its own"
                    )

    @property
    def parties(self) -> set[str]:
        """The parties that may reach anything."""
        return {party for party, _ in self._targets}

    def find(self, party: str, name: str) -> Place | None:
        """The target of a name for a party; None if it may not reach any under it."""
        return self._targets.get((party, name))


def parse_forward(text: str, cluster: ClusterSpec, me: str) -> Forward:
    """Parse ``[HOST:]PORT:PARTY:NAME`` or ``unix:PATH:PARTY:NAME``.

    Raises:
        ConfigError: it is neither, the place is not on this machine alone, or the party is not
            another one of the cluster.
    """
    what = f"-L {one_line(text, 120)}"
    place, *rest = text.rsplit(":", 2)
    if len(rest) != 2:
        raise ConfigError(f"{what}: is not [HOST:]PORT:PARTY:NAME or unix:PATH:PARTY:NAME")
    peer, name = rest
    _check_other(peer, cluster, me, what)
    check_name(name, "name")
    return Forward(_parse_listen(place, what), peer, name)


def parse_allowed(text: str, cluster: ClusterSpec, me: str) -> Allowed:
    """Parse ``[PARTY:]NAME=HOST:PORT`` or ``[PARTY:]NAME=unix:PATH``.

    Raises:
        ConfigError: it is neither, or the party is not another one of the cluster.
    """
    what = f"--allow {one_line(text, 120)}"
    label, equals, target = text.partition("=")
    if not equals:
        raise ConfigError(f"{what}: is not [PARTY:]NAME=HOST:PORT or [PARTY:]NAME=unix:PATH")
    party, colon, name = label.rpartition(":")
    if colon:
        _check_other(party, cluster, me, what)
    check_name(name, "name")
    return Allowed(party if colon else None, name, _parse_target(target, what))


def _check_other(party: str, cluster: ClusterSpec, me: str, what: str) -> None:
    others = [name for name in cluster.party_names if name != me]
    if party not in others:
        wrong = "this party itself" if party == me else "no party of the cluster file"
        raise ConfigError(
            f"{what}: {one_line(party, 64)!r} is {wrong}: the others are {', '.join(others)}"
        )


def _parse_listen(text: str, what: str) -> Place:
    if text.startswith(UNIX):
        return _parse_unix(text, what)
    host, port = _host_and_port(text if ":" in text else f"127.0.0.1:{text}", what, least=0)
    if host == "localhost":
        host = "127.0.0.1"
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ConfigError(
            f"{what}: {one_line(host, 64)!r} is not an address of this machine alone: listen on "
            "127.0.0.1, [::1] or unix:PATH, and let programs elsewhere come through what checks "
            "who they are"
        )
    return TcpPlace(host, port)


def _parse_target(text: str, what: str) -> Place:
    if text.startswith(UNIX):
        return _parse_unix(text, what)
    return TcpPlace(*_host_and_port(text, what, least=1))


def _parse_unix(text: str, what: str) -> UnixPlace:
    path = Path(text.removeprefix(UNIX)).expanduser().absolute()
    size = len(os.fsencode(path))
    if not text.removeprefix(UNIX) or size > _MOST_PATH_BYTES:
        raise ConfigError(
            f"{what}: the path of a unix socket has 1 to {_MOST_PATH_BYTES} bytes, with its "
            f"directory, not {size}: take a shorter one"
        )
    return UnixPlace(path)


def _host_and_port(text: str, what: str, least: int) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{what}: write an IPv6 address in brackets, such as [::1]:8000")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ConfigError(f"{what}: {one_line(text, 80)!r} is not HOST:PORT")
    if not least <= int(port) <= _MOST_PORT:
        raise ConfigError(f"{what}: {port} is not a port: take one from {least} to {_MOST_PORT}")
    return host, int(port)
