"""`Examination`: the state that all checks share.

Rules:
- Commands go through `ask` and `ask_all`, which limit every wait to the time that is left.
- Each command names the party that owns the inbox with its key, so it goes to the right server.
- `key` returns the only lists that a check may write or remove: they have the doctor's tag, and an
  epoch that belongs to this examination and to no session. Notes are the exception, see
  `docs/broker.md`.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.x509 import Certificate

from redislink.broker import Broker, EgressProxy
from redislink.broker.connection import BrokerConnection
from redislink.broker.url import BrokerUrl, join, parse_url, split_urls
from redislink.broker.users import owner_of_user
from redislink.cluster import ClusterSpec, PartySpec
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
)
from redislink.protocol import list_names
from redislink.settings import RedisLinkSettings

REPLY_SECONDS: Final = 3.0
"""The longest wait for a connection, and for a reply."""
LEFTOVER_MS: Final = 5000
"""A list that the doctor could not remove expires after so many milliseconds."""
_LEAST_SECONDS: Final = 0.05

Argument = bytes | int | str
Ask = tuple[str, tuple[Argument, ...]]
"""The party that owns the inbox with the key, and a command."""


class NotTried(Exception):
    """This check cannot tell anything; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """What to examine, and for which party.

    Attributes:
        settings: this party's settings.
        spec: the cluster file's content.
        party: this party.
        clock: returns the time of day, in seconds since 1970.
        is_of_broker: True examines only the broker, without a session; ``spec`` and ``party`` are
            then stand-ins.
        broker_index: which of several brokers to examine.
    """

    settings: RedisLinkSettings
    spec: ClusterSpec
    party: str
    clock: Callable[[], float] = time.time
    is_of_broker: bool = False
    broker_index: int = 0

    @property
    def urls(self) -> list[str]:
        """The URL of each broker; empty if there is none.

        Raises:
            ConfigError: they cannot be used together.
        """
        own = self.settings.broker_url
        text = own.get_secret_value() if own else self.spec.broker
        return split_urls(text) if text else []

    @classmethod
    def of_broker(cls, settings: RedisLinkSettings) -> Case:
        """Return the case that examines only the broker in these settings."""
        me, peer = PartySpec(name="doctor"), PartySpec(name="peer")
        spec = ClusterSpec(session="doctor", security="none", parties=(me, peer))
        return cls(settings, spec, me.name, is_of_broker=True)

    @property
    def peers(self) -> tuple[str, ...]:
        """The other parties, in rank order."""
        return tuple(name for name in self.spec.party_names if name != self.party)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one of the broker's servers listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return join((self.host, self.port))


@dataclass(frozen=True, slots=True)
class Place:
    """A server with inboxes of this session. Without a Cluster there is only one.

    Attributes:
        label: on a Cluster, the server's host and port; otherwise empty.
        parties: the parties that have their inbox there, this party first.
    """

    label: str
    parties: tuple[str, ...]

    @property
    def inbox(self) -> str:
        """One of these parties, which stands for the server in `Examination.ask`."""
        return self.parties[0]


@dataclass(slots=True)
class Seen:
    """What earlier checks found out and later ones need.

    Attributes:
        resolved: the socket addresses for each address in the URL.
        reached: the addresses that accepted a TCP connection, with the socket address; that is
            empty for one behind a proxy.
        certificates: the certificate that each server showed in TLS, by address.
        round_trip: the shortest round trip to the broker, in seconds.
        rate: bytes per second to the broker; 0 if not measured.
    """

    resolved: dict[Address, list[tuple[Any, ...]]] = field(default_factory=dict)
    reached: dict[Address, tuple[Any, ...]] = field(default_factory=dict)
    certificates: dict[Address, Certificate] = field(default_factory=dict)
    round_trip: float = 0.0
    rate: float = 0.0


class Examination:
    """One run of the doctor; `close` at the end."""

    def __init__(self, case: Case, seconds: float) -> None:
        """Args:
        case: what to examine.
        seconds: how long the examination may take.
        """
        self.case = case
        self.seen = Seen()
        self.epoch = secrets.token_hex(8)
        self.longest_wait = min(case.settings.reply_timeout, REPLY_SECONDS)
        self._ends_at = time.monotonic() + seconds
        self._check_ends_at = self._ends_at
        self._broker: Broker | None = None
        self._lines: dict[str, BrokerConnection] = {}
        self._info: dict[tuple[str, str], dict[str, str] | None] = {}
        self._places: tuple[Place, ...] = ()

    # -- the broker ------------------------------------------------------------------------------

    @property
    def broker(self) -> Broker:
        """The broker, with the doctor's shorter timeouts.

        Raises:
            ConfigError: there is no URL, or it cannot be used.
        """
        if self._broker is None:
            patient = self.case.settings.model_copy(update={"reply_timeout": self.longest_wait})
            found = Broker.all_from_settings(patient, self.case.spec.broker)
            self._broker = found[self.case.broker_index]
        return self._broker

    @property
    def url(self) -> BrokerUrl:
        """The broker's URL, taken apart.

        Raises:
            ConfigError: there is none, or it cannot be used.
        """
        urls = self.case.urls
        return parse_url(urls[self.case.broker_index] if urls else "")

    @property
    def scheme(self) -> str:
        """The URL's scheme, such as ``rediss``."""
        return self.url.scheme

    @property
    def uses_tls(self) -> bool:
        """True if connections use TLS."""
        return self.url.tls

    @property
    def user(self) -> str:
        """The Redis user that this party logs in as."""
        return self.broker.user

    def owner_of_user(self) -> str | None:
        """Return the other party that owns the user we log in as; None if no other party does."""
        spec = self.case.spec
        return owner_of_user(self.user, spec.session, self.case.peers)

    @property
    def addresses(self) -> list[Address]:
        """The hosts and ports in the URL; empty for a broker without a network address."""
        return [Address(*address) for address in self.url.addresses]

    def proxy_to(self, address: Address) -> EgressProxy | None:
        """Return the proxy through which a server is dialled; None for none."""
        return self.broker.proxy_to((address.host, address.port))

    @property
    def has_several(self) -> bool:
        """True if the broker's servers replace each other, or share its lists."""
        return self.url.kind in ("sentinel", "cluster")

    def places(self) -> tuple[Place, ...]:
        """Return each server with inboxes of this session, the one with our own inbox first.

        Raises: see `Broker.open`.
        """
        if not self._places:
            names = (self.case.party, *self.case.peers)
            by_label: dict[str, list[str]] = {}
            for name in names:
                prefix = list_names.party_prefix(self.case.spec.session, name)
                at = str(Address(*self.broker.address(prefix))) if self.broker.is_cluster else ""
                by_label.setdefault(at, []).append(name)
            self._places = tuple(Place(at, tuple(found)) for at, found in by_label.items())
        return self._places

    def far_ends(self) -> list[tuple[Place, str]]:
        """Return each server to which this party sends, with one peer that has its inbox there.

        Raises: see `places`.
        """
        me = self.case.party
        return [
            (place, next(name for name in place.parties if name != me))
            for place in self.places()
            if place.parties != (me,)
        ]

    # -- time ------------------------------------------------------------------------------------

    def begin_check(self, seconds: float) -> None:
        """Begin a check that may take so many seconds; `left` counts them down.

        Raises:
            NotTried: the examination's time is up.
        """
        now = time.monotonic()
        self._check_ends_at = min(self._ends_at, now + seconds)
        if now >= self._ends_at:
            raise NotTried("the time is up")

    @property
    def left(self) -> float:
        """Seconds that the check may still take."""
        return max(0.0, self._check_ends_at - time.monotonic())

    def patience(self, parts: int = 1) -> float:
        """Return how many seconds to wait for the next thing.

        Args:
            parts: how many things share one longest wait.

        Raises:
            NotTried: the time is up.
        """
        if self.left < _LEAST_SECONDS:
            raise NotTried("the time is up")
        return min(self.longest_wait / parts, self.left)

    # -- commands --------------------------------------------------------------------------------

    def key(self, dst: str, src: str) -> bytes:
        """Return the name of a list that belongs to this examination only."""
        return list_names.doctor_list(self.case.spec.session, dst, src, self.epoch)

    def connection(self, inbox: str) -> BrokerConnection:
        """Return the connection to the server with the inbox of the party ``inbox``.

        Raises: see `Broker.open`.
        """
        place = inbox if self.broker.is_cluster else ""
        line = self._lines.get(place)
        if line is None or not line.usable:
            name = list_names.party_prefix(self.case.spec.session, inbox)
            line = self._lines[place] = self.broker.at(name).open()
        return line

    def ask_all(self, asks: Sequence[Ask]) -> list[Any]:
        """Send the commands, and return the reply to each; for a refused command, the error.

        Raises:
            BrokerUnreachable: the broker cannot be reached.
            BrokerAuthError: the broker does not accept our user and password.
            NotTried: the time is up.
        """
        self.patience()
        lines = [self.connection(inbox) for inbox, _ in asks]
        with contextlib.ExitStack() as stack:
            for line in dict.fromkeys(lines):
                pairs = zip(asks, lines, strict=True)
                commands = [command for (_, command), at in pairs if at is line]
                stack.enter_context(line.pipeline(commands))
            return self._read_all(lines)

    def ask(self, inbox: str, *command: Argument) -> Any:
        """Send one command, and return the reply.

        Raises:
            BrokerError: the broker refused the command, or is out of reach.
            NotTried: the time is up.
        """
        (reply,) = self.ask_all([(inbox, command)])
        if isinstance(reply, BrokerError):
            raise reply
        return reply

    def _read_all(self, lines: Sequence[BrokerConnection]) -> list[Any]:
        """Read a reply from each; where one ended its connection, it stands for the rest too."""
        ended: dict[BrokerConnection, BrokerError] = {}
        replies = []
        for line in lines:
            reply = ended.get(line) or self._read(line)
            if isinstance(reply, BrokerError) and not line.usable:
                ended[line] = reply
            replies.append(reply)
        return replies

    def _read(self, line: BrokerConnection) -> Any:
        try:
            reply = line.read(self.patience())
        except (BrokerPermissionError, BrokerRefused, BrokerBusy) as error:
            return error
        return bytes(reply) if isinstance(reply, memoryview) else reply

    def info(self, place: Place, section: str) -> dict[str, str] | None:
        """Return a server's reply to ``INFO section``; None if this user may not run INFO."""
        asked = place.label, section
        if asked not in self._info:
            try:
                text = bytes(self.ask(place.inbox, b"INFO", section)).decode(errors="replace")
            except (BrokerPermissionError, BrokerRefused, TypeError):
                self._info[asked] = None
            else:
                pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
                self._info[asked] = {name: value.strip() for name, _, value in pairs}
        return self._info[asked]

    def config(self, place: Place, name: str) -> str | None:
        """Return a server's setting; None if this user may not look, or the setting is unknown."""
        try:
            reply = self.ask(place.inbox, b"CONFIG", b"GET", name)
        except (BrokerPermissionError, BrokerRefused):
            return None
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
            return None
        return reply[1].decode(errors="replace")

    def close(self) -> None:
        """Close all connections; never raises."""
        for line in self._lines.values():
            line.close()


def loopback(sockaddr: tuple[Any, ...]) -> bool:
    """Return whether this socket address belongs to this machine."""
    host = str(sockaddr[0])
    return host == "::1" or (host.startswith("127.") and _is_ipv4(host))


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True
