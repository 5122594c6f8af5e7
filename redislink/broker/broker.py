"""`Broker`: knows where the broker is and how to log in, and explains failed connections.

Rules (each avoids a trap that we have met, see docs/broker.md):
- redis-py only opens the socket and speaks TLS. It gets host, port and files as arguments, and no
  URL, because the options in a URL would override them.
- redis-py's conveniences are off. No retries: by default it sends one RPUSH up to 11 times, and
  resending is delivery's job. RESP2 only. No CLIENT SETINFO and no maintenance notifications. No
  health-check PING, which would steal the reply to a pipelined command.
- Every wait is finite.
- Each new connection looks up which of several servers has a list: see `topology`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable
from functools import partial
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
"""Seconds that one BLPOP may wait on fakeredis, which cannot interrupt it."""
_fake_servers: Final[dict[str, Any]] = {}
_fake_servers_lock: Final = threading.Lock()
renew_in_child(_fake_servers_lock)
# A child does not have the threads that exchange messages through these servers.
os.register_at_fork(after_in_child=_fake_servers.clear)


class Broker:
    """Knows where the broker is and how to connect to it. `open` opens a connection.

    A broker may consist of several servers (a master with sentinels, or a Redis Cluster). Each
    `open` then looks up which server has the lists.
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
        url: the broker's URL, with user and password unless they come from elsewhere.
        timeout: seconds for each connect, and for each reply.
        tls_ca, tls_cert, tls_key: PEM files; options in the URL override them.
        tls_key_password_file: a file with the key's pass phrase in its first line.
        password_file: a file with the password in its first line; read for each connection.
        credentials: called for each connection; returns a password, or user and password, and
            overrides all other sources.

        Raises:
            ConfigError: the URL is not valid; the message does not contain its password.
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
        self._pick_server: Callable[[], Address]
        """Says to which of several servers `open` connects: any that has keys, unless `at` or `on`
        made this broker. A broker with one server has none."""
        self._options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "health_check_interval": 0,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
        }
        if self._in_process:
            _fake_server(self._url.path)  # raises if fakeredis is not installed
        elif self._url.kind == "sentinel":
            self._topology = SentinelTopology(self._url, self._ask_sentinel)
        elif self._url.kind == "cluster":
            self._topology = ClusterTopology(self._url, self._ask_slots)
        if self._topology is not None:
            self._pick_server = self._topology.any_master

    @classmethod
    def from_settings(
        cls,
        settings: RedisLinkSettings,
        cluster_url: str | None,
        *,
        credentials: CredentialsCallable | None = None,
    ) -> Self:
        """Return the broker that the settings name, or else the cluster file's.

        Args:
            settings: this party's settings.
            cluster_url: the broker's URL in the cluster file; None if it has none.
            credentials: as for `Broker`.

        Raises:
            ConfigError: neither names a broker; or the settings name a password file while the
                URL comes from the cluster file, which other parties may write.
        """
        url = settings.broker_url.get_secret_value() if settings.broker_url else cluster_url
        if not url:
            raise ConfigError(
                "no broker: set REDISLINK_BROKER_URL, or broker in the cluster file, "
                "to redis://HOST:PORT or, with TLS, rediss://HOST:PORT"
            )
        if settings.broker_password_file is not None and settings.broker_url is None:
            raise ConfigError(
                f"REDISLINK_BROKER_PASSWORD_FILE: the cluster file names the broker "
                f"{parse_url(url).label}, and a password goes only to one that you name: set "
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
        """The Redis user of its connections, as far as it is known so far."""
        return self._credentials.user

    @property
    def tls_files(self) -> TlsFiles | None:
        """The TLS files of its connections; None if they do not use TLS."""
        return self._tls if self._url.tls else None

    @property
    def in_process(self) -> bool:
        """True for fakeredis: a BLPOP there cannot be interrupted."""
        return self._in_process

    @property
    def may_be_quiet(self) -> bool:
        """Whether we may ask the server not to answer pushes.

        Not with several servers: we need the error reply that says that a list has moved.
        """
        return self._topology is None and not self._in_process

    @property
    def is_cluster(self) -> bool:
        """True for a Redis Cluster: different parties' lists may be on different servers."""
        return self._url.kind == "cluster"

    def at(self, name: bytes) -> Self:
        """Return the broker for the Cluster slot of this list; without a Cluster, itself."""
        return self._with(partial(self.address, name)) if self.is_cluster else self

    def address(self, name: bytes) -> Address:
        """Return host and port of the server that has this list now: a Cluster node or the master.

        Raises: see `open`.
        """
        if self._topology is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._topology.address(name)

    def on(self, address: Address) -> Self:
        """Return this broker, restricted to the server at ``address``."""
        return self._with(lambda: address)

    def addresses(self) -> list[Address]:
        """Return the address of every server that is up, replicas too; [] for a single server.

        Raises: see `open`.
        """
        return [] if self._topology is None else self._topology.every()

    def masters(self) -> list[Address]:
        """Return the addresses of the servers that own keys (a Cluster's masters), for `on`.

        Raises: see `open`.
        """
        if self._topology is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._topology.masters()

    def blpop_slice(self, wanted: float) -> float:
        """Return how many seconds one BLPOP may wait on this broker, at most ``wanted``."""
        return min(wanted, _FAKE_SLICE) if self._in_process else wanted

    def open(self) -> BrokerConnection:
        """Open a new connection and log in.

        Raises:
            BrokerUnreachable: the broker cannot be reached.
            BrokerAuthError: it does not accept our user and password.
            BrokerRefused: it refuses us for another reason.
        """
        topology = self._topology
        if topology is None:
            return self._connect(None, self.label)
        address = self._pick_server()
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
        """Like `open`, but wait for an answer: a proxy may accept connections for a dead server.

        Raises:
            BrokerBusy: the broker is loading or failing over.
            BrokerError: see `open`.
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
        """Connect to one server and log in.

        Args:
            address: the server's address; None means the URL's only server.
            label: the server's name for messages.
            credentials, database: replace the broker's own.
            on_elsewhere: see `BrokerConnection`.
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
            # A password is rotated on the server and here, one after the other.
            error.retryable = credentials.may_change and credentials.were_accepted
            raise
        credentials.were_accepted = True
        return connection

    def _dial(self, address: Address | None) -> Any:
        """Return an unopened redis-py connection; it gets host and port as arguments."""
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
        except ConfigError as error:  # the files were right when we first connected
            raise BrokerUnreachable(str(error)) from None

    def _explain(
        self, address: Address | None, label: str, error: BaseException
    ) -> BrokerError | None:
        """Return a more telling error for a broken connection; None if we know nothing more."""
        if address is None:
            return None
        find = self._why_no_tls if self._url.tls else self._why_no_plain
        why = find(address, error)
        if why is None:
            return None
        known = BrokerUnreachable(f"broker {label}: {why}")
        known.retryable = self._seen.answered  # at the start, trying again would not help
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
                f"it wants a client certificate, or a different one ({one_line(str(error))}): set "
                "REDISLINK_BROKER_TLS_CERT to a certificate that its CA signed, and "
                "REDISLINK_BROKER_TLS_KEY to the certificate's key"
            )
        if not isinstance(error, redis.RedisError):
            return None  # it broke after the handshake, so TLS is not to blame
        try:
            self._tls.context()
        except ConfigError as wrong:
            return str(wrong)
        refused = tls.verification_error(error)
        if refused is not None:
            return tls.why_not_trusted(refused)
        if not answered and not tls.never_connected(error) and tls.speaks_plain(address):
            return (
                "it does not speak TLS on this port: write its TLS port; or, if it has none and is "
                "on this machine or inside a tunnel, write redis://"
            )
        return None

    def _with(self, pick_server: Callable[[], Address]) -> Self:
        other = copy.copy(self)
        other._pick_server = pick_server
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
                    f"{error}; for a server that is not a Redis Cluster node, write redis://… or, "
                    "with TLS, rediss://…"
                ) from None


def _fake_server(name: str) -> Any:
    try:
        import fakeredis
    except ImportError:
        raise ConfigError(
            "broker URL fakeredis://: fakeredis is not installed: "
            "run pip install 'redislink[testing]'"
        ) from None
    # fakeredis' own sharing by host gives two servers to two threads that connect at once.
    with _fake_servers_lock:
        return _fake_servers.setdefault(name, fakeredis.FakeServer())


def _closed_after_handshake(error: BaseException) -> bool:
    """Return whether the server hung up after the handshake.

    It may so refuse our certificate: in TLS 1.3 its alert comes late, or gets lost.
    """
    if isinstance(error, NotRespError | UnaskedError):
        return False
    return isinstance(error, WireError | ConnectionError)
