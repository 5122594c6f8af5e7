"""`Broker`: where the broker is, who logs in there, and why a connection could not be opened.

Rules (each is a trap that was seen, see docs/broker.md):
- redis-py opens the socket and speaks TLS, and no more: it gets host, port and files as arguments,
  and no URL, whose query would win over them.
- Its conveniences are off. No retries: its default sends one RPUSH up to 11 times; resending is for
  delivery. RESP2, no CLIENT SETINFO, no maintenance notifications, no health-check PING, which
  would steal the reply of a pipelined command.
- Every wait is finite.
- Which of several servers has a list is found out for each connection: see `topology`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redislink.broker import tls
from redislink.broker.connection import BrokerConnection, Login, Seen
from redislink.broker.credentials import Credentials, CredentialsCallable
from redislink.broker.tls import TlsFiles
from redislink.broker.topology import ClusterTopology, SentinelTopology, Topology
from redislink.broker.url import Address, parse_url
from redislink.broker.wire import LISTING, NotRespError, UnaskedError, WireError
from redislink.errors import (
    BrokerAuthError,
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    UsageError,
)
from redislink.forking import renew_in_child
from redislink.settings import RedisLinkSettings, check_seconds
from redislink.text import one_line

_FAKE_SLICE: Final = 0.05
"""Seconds that one BLPOP may wait on fakeredis, where nothing can interrupt it."""
_fake_servers: Final[dict[str, Any]] = {}
_fake_servers_lock: Final = threading.Lock()
renew_in_child(_fake_servers_lock)
# The threads between which they pass messages are not there.
os.register_at_fork(after_in_child=_fake_servers.clear)


class Broker:
    """Where the broker is and how to connect to it; opening is up to `open`.

    A broker may be several servers (sentinels' master, a Redis Cluster): where the lists are is
    found out whenever a connection is opened.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        tls_key_password_file: str | Path | None = None,
        password_file: str | Path | None = None,
        credentials: CredentialsCallable | None = None,
    ) -> None:
        """Args:
        url: with user and password, if they stand nowhere else.
        timeout: seconds per connect and per reply.
        tls_ca, tls_cert, tls_key: PEM files; options in the URL win.
        tls_key_password_file: its first line is the key's pass phrase.
        password_file: its first line is the password, read for each connection.
        credentials: gives a password, or user and password, for each connection; wins over all.

        Raises:
            ConfigError: the URL cannot be used; the message does not hold its password.
            UsageError: the timeout is not a number of seconds.
        """
        self.timeout = check_seconds("timeout", timeout)
        self._url = parse_url(url)
        self.label = one_line(self._url.label)
        """The URL without user and password, for messages."""
        self._in_process = self._url.kind == "fakeredis"
        self._seen = Seen()
        self._credentials = Credentials(
            self._url.user, self._url.password, password_file=password_file, ask=credentials
        )
        self._sentinel_credentials = Credentials(
            self._url.sentinel_user, self._url.sentinel_password
        )
        files = self._url.tls_files
        self._tls = TlsFiles(
            files.get("ssl_ca_certs", tls_ca),
            files.get("ssl_certfile", tls_cert),
            files.get("ssl_keyfile", tls_key),
            tls_key_password_file,
            check_certificate=self._url.checks_certificate,
            check_name=self._url.checks_name,
        )
        self._topology: Topology[Any] | None = None
        self._place: bytes | Address | None = None
        """The list, or the server, that `open` opens a connection for; None is any."""
        self._options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "health_check_interval": 0,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
        }
        if self._in_process:
            _fake_server(self._url.path)  # raises where there is no fakeredis
        elif self._url.kind == "sentinel":
            self._topology = SentinelTopology(self._url, self._ask_sentinel)
        elif self._url.kind == "cluster":
            self._topology = ClusterTopology(self._url, self._ask_slots)

    @classmethod
    def from_settings(
        cls,
        settings: RedisLinkSettings,
        cluster_url: str | None,
        *,
        credentials: CredentialsCallable | None = None,
    ) -> Self:
        """The broker that the settings name, else the cluster file's.

        Args:
            credentials: as of `Broker`.

        Raises:
            ConfigError: neither names one; or the settings have a password file, and the URL is
                the cluster file's, which others write.
        """
        url = settings.broker_url.get_secret_value() if settings.broker_url else cluster_url
        if not url:
            raise ConfigError(
                "no broker: set REDISLINK_BROKER_URL, or broker in the cluster file, "
                "to redis://HOST:PORT"
            )
        if settings.broker_password_file is not None and settings.broker_url is None:
            raise ConfigError(
                f"REDISLINK_BROKER_PASSWORD_FILE: the broker {parse_url(url).label} is named by "
                "the cluster file, and a password goes only to one that you name: set "
                "REDISLINK_BROKER_URL, with your user in it"
            )
        return cls(
            url,
            timeout=settings.reply_timeout,
            tls_ca=settings.broker_tls_ca,
            tls_cert=settings.broker_tls_cert,
            tls_key=settings.broker_tls_key,
            tls_key_password_file=settings.broker_tls_key_password_file,
            password_file=settings.broker_password_file,
            credentials=credentials,
        )

    @property
    def user(self) -> str:
        """The Redis user of its connections, as far as it is known yet."""
        return self._credentials.user

    @property
    def tls_files(self) -> TlsFiles | None:
        """What its connections use for TLS; None where they are not TLS."""
        return self._tls if self._url.tls else None

    @property
    def in_process(self) -> bool:
        """True for fakeredis: a BLPOP there cannot be interrupted."""
        return self._in_process

    @property
    def may_be_quiet(self) -> bool:
        """Whether pushes may go unanswered where the server allows that.

        Not with several servers: their error replies say that a list is on another one now.
        """
        return self._topology is None and not self._in_process

    @property
    def is_cluster(self) -> bool:
        """True for a Redis Cluster: lists of different parties may be on different servers."""
        return self._url.kind == "cluster"

    def at(self, name: bytes) -> Self:
        """The broker for the lists in one Cluster slot, that of ``name``; for others itself."""
        return self._for(name) if self.is_cluster else self

    def address(self, name: bytes) -> Address:
        """Host and port of the server that has this list just now: a Cluster's node, or master.

        Raises: as `open`.
        """
        if self._topology is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._topology.address(name)

    def on(self, address: Address) -> Self:
        """The broker as this one of its servers."""
        return self._for(address)

    def addresses(self) -> list[Address]:
        """Of every server that is up, replicas too; none for a broker that is one server.

        Raises: as `open`.
        """
        return [] if self._topology is None else self._topology.every()

    def masters(self) -> list[Address]:
        """Of a Redis Cluster the nodes that have keys of their own, for `on`.

        Raises: as `open`.
        """
        if self._topology is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._topology.masters()

    def blpop_slice(self, wanted: float) -> float:
        """How long one BLPOP may wait on this broker, given what the settings want (s)."""
        return min(wanted, _FAKE_SLICE) if self._in_process else wanted

    def open(self) -> BrokerConnection:
        """A new connection, authenticated.

        Raises:
            BrokerUnreachable, BrokerAuthError, BrokerRefused: as their names say.
        """
        topology = self._topology
        if topology is None:
            return self._connect(None, self.label)
        place = self._place
        address = place if isinstance(place, tuple) else topology.address(place)
        try:
            return self._connect(
                address,
                self._url.label_at(address),
                on_elsewhere=lambda text: topology.moved(address, text),
            )
        except BrokerError:
            topology.forget()
            raise

    def open_answering(self) -> BrokerConnection:
        """As `open`, and the broker has answered on it: a proxy may accept for a dead server.

        Raises:
            BrokerBusy: it loads or fails over; otherwise as `open`.
        """
        connection = self.open()
        try:
            connection.execute(b"PING", timeout=self.timeout)
        except BrokerError:
            connection.close()
            raise
        return connection

    def _connect(
        self,
        address: Address | None,
        label: str,
        *,
        credentials: Credentials | None = None,
        database: int | None = None,
        on_elsewhere: Callable[[str], None] | None = None,
    ) -> BrokerConnection:
        """A connection to one server, logged in.

        Args:
            address: None is the one server of the URL.
            credentials, database: if they are not the broker's own.
        """
        if address is None and self._url.addresses:
            address = self._url.addresses[0]
        credentials = self._credentials if credentials is None else credentials
        login = Login(
            credentials.current(),
            self._url.database if database is None else database,
            credentials.hide,
        )
        if self._url.tls and not self._seen.tls_files_were_right:
            self._tls.context()
            self._seen.tls_files_were_right = True
        try:
            connection = BrokerConnection(
                label,
                self._dial(address),
                in_process=self._in_process,
                timeout=self.timeout,
                login=login,
                on_elsewhere=on_elsewhere,
                explain=lambda error: self._explain(address, label, error),
                seen=self._seen,
            )
        except BrokerAuthError as error:
            # Who rotates a password changes it here and there, one after the other.
            error.retryable = credentials.may_change and credentials.were_accepted
            raise
        credentials.were_accepted = True
        return connection

    def _dial(self, address: Address | None) -> Any:
        """redis-py's connection, not open yet; the server's host and port are arguments."""
        if self._in_process:
            import fakeredis

            server = _fake_server(self._url.path)  # of this process
            return fakeredis.FakeRedisConnection(server=server, **self._options)
        kind: Any
        where: dict[str, Any]
        if address is None:
            kind, where = redis.UnixDomainSocketConnection, {"path": self._url.path}
        else:
            kind, where = redis.Connection, {"host": address[0], "port": address[1]}
            if self._url.tls:
                kind, where = redis.SSLConnection, where | self._tls_arguments()
        return kind(**where, **self._options)

    def _tls_arguments(self) -> dict[str, Any]:
        try:
            return self._tls.arguments()
        except ConfigError as error:  # the files were right when we connected first
            raise BrokerUnreachable(str(error)) from None

    def _explain(
        self, address: Address | None, label: str, error: BaseException
    ) -> BrokerError | None:
        """What to raise if more is known of why a connection broke; None if nothing is."""
        if address is None:
            return None
        find = self._why_no_tls if self._url.tls else self._why_no_plain
        why = find(address, error)
        if why is None:
            return None
        known = BrokerUnreachable(f"broker {label}: {why}")
        known.retryable = self._seen.answered  # at the start nothing comes of trying again
        return known

    def _why_no_plain(self, address: Address, error: BaseException) -> str | None:
        never_connected = isinstance(error, redis.RedisError)
        if never_connected or self._seen.answered or not tls.speaks_tls(address):
            return None
        return (
            "it speaks TLS on this port: write rediss:// in the URL, and set "
            "REDISLINK_BROKER_TLS_CA"
        )

    def _why_no_tls(self, address: Address, error: BaseException) -> str | None:
        answered = self._seen.answered
        if tls.about_our_certificate(error) or (not answered and _closed_after_handshake(error)):
            return (
                f"it wants another certificate of this party, or one at all ({one_line(str(error))}"
                "): set REDISLINK_BROKER_TLS_CERT and REDISLINK_BROKER_TLS_KEY to one that its CA "
                "signed, and its key"
            )
        if not isinstance(error, redis.RedisError):
            return None  # it broke after the handshake, of which nothing is to blame
        try:
            self._tls.context()
        except ConfigError as wrong:
            return str(wrong)
        refused = tls.verification_error(error)
        if refused is not None:
            return tls.why_not_trusted(refused)
        if not answered and not tls.never_connected(error) and tls.speaks_plain(address):
            return (
                "it speaks no TLS on this port: write the port where it does, or redis:// if it "
                "has none and is on this machine or within a tunnel"
            )
        return None

    def _for(self, place: bytes | Address) -> Self:
        other = copy.copy(self)
        other._place = place
        return other

    def _ask_sentinel(self, address: Address, *command: bytes | int | str) -> Any:
        connection = self._connect(
            address,
            self._url.label_of_sentinel(address),
            credentials=self._sentinel_credentials,
            database=0,
        )
        with contextlib.closing(connection):
            return connection.execute(*command, timeout=self.timeout, most=LISTING)

    def _ask_slots(self, address: Address) -> Any:
        with contextlib.closing(self.on(address).open()) as connection:
            try:
                return connection.execute(b"CLUSTER", b"SLOTS", timeout=self.timeout, most=LISTING)
            except BrokerRefused as error:
                raise BrokerRefused(
                    f"{error}: a server that is no node of a Redis Cluster has a URL redis://…"
                ) from None


def _fake_server(name: str) -> Any:
    try:
        import fakeredis
    except ImportError:
        raise ConfigError(
            "broker URL fakeredis://: fakeredis is not installed: "
            "run pip install 'redislink[testing]'"
        ) from None
    # Not fakeredis' own sharing by host: two threads that connect at once get two servers there.
    with _fake_servers_lock:
        return _fake_servers.setdefault(name, fakeredis.FakeServer())


def _closed_after_handshake(error: BaseException) -> bool:
    """True for how the refusal of our certificate also shows: in TLS 1.3 it comes late, or not."""
    if isinstance(error, NotRespError | UnaskedError):
        return False
    return isinstance(error, WireError | ConnectionError)
