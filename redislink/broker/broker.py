"""`Broker`: knows where the broker is and how to log in, and explains failed connections.

Rules (each avoids a trap that we have met, see docs/broker.md):
- redis-py only keeps the socket, which is opened here. It gets no URL, because the options in a
  URL would override arguments.
- redis-py's conveniences are off. No retries: by default it sends one RPUSH up to 11 times, and
  resending is delivery's job. RESP2 only. No CLIENT SETINFO and no maintenance notifications. No
  health-check PING, which would steal the reply to a pipelined command.
- Every wait is finite.
- Each new connection looks up which of several servers has a list: see `topology`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redislink.broker import dial, tcp, tls
from redislink.broker.connection import BrokerConnection, Login, Seen
from redislink.broker.credentials import Credentials, CredentialsCallable
from redislink.broker.proxy import EgressProxy, or_the_proxy
from redislink.broker.tls import Secured, TlsFiles
from redislink.broker.topology import ClusterTopology, SentinelTopology, Topology
from redislink.broker.url import Address, BrokerUrl, labels, parse_url, split_urls
from redislink.broker.wire import LISTING, HttpError, NotRespError, UnaskedError, WireError
from redislink.errors import (
    BrokerAuthError,
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    ProxyRefused,
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
        line_timeout: float = 30.0,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        tls_key_password_file: str | Path | None = None,
        password_file: str | Path | None = None,
        password_line: int | None = None,
        credentials: CredentialsCallable | None = None,
        proxy: EgressProxy | None = None,
    ) -> None:
        """Args:
        url: the broker's URL, with user and password unless they come from elsewhere.
        timeout: seconds for each connect, and for each reply.
        line_timeout: seconds after which the kernel gives up a connection on which nothing is
            acknowledged; four round trips, if they take longer.
        tls_ca, tls_cert, tls_key: PEM files; options in the URL override them.
        tls_key_password_file: a file with the key's pass phrase in its first line.
        password_file: a file with the password in its first line; read for each connection.
        password_line: the line, from 0, if the file has one for each of several brokers.
        credentials: called for each connection; returns a password, or user and password, and
            overrides all other sources.
        proxy: through which its servers are dialled; None dials them directly.

        Raises:
            ConfigError: the URL is not valid; the message does not contain its password.
            UsageError: a timeout is not a number of seconds.
        """
        self.timeout = check_seconds("timeout", timeout)
        self._line_timeout = check_seconds("line_timeout", line_timeout)
        self._url = parse_url(url)
        self.label = one_line(self._url.label)
        """The URL without user and password, for messages."""
        self._in_process = self._url.kind == "fakeredis"
        self._proxy = proxy
        self._seen = Seen()
        self._credentials = Credentials(
            self._url.user,
            self._url.password,
            password_file=password_file,
            line=password_line,
            ask=credentials,
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
            _fake_server(self._url)  # raises if fakeredis is not installed
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
            ConfigError: neither names a broker, or they name several; or the settings name a
                password file while the URL comes from the cluster file, which other parties may
                write.
        """
        found = cls.all_from_settings(settings, cluster_url, credentials=credentials)
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} brokers ({', '.join(broker.label for broker in found)}) where only "
                "one can be used: name one"
            )
        return found[0]

    @classmethod
    def all_from_settings(
        cls,
        settings: RedisLinkSettings,
        cluster_url: str | None,
        *,
        credentials: CredentialsCallable | None = None,
    ) -> list[Self]:
        """Return each of the brokers that the settings name, or else the cluster file's, in order.

        Args:
            settings, cluster_url, credentials: as for `from_settings`, but they may name several.

        Raises:
            ConfigError: as `from_settings`; or ``credentials`` would go to several brokers.
        """
        text = settings.broker_url.get_secret_value() if settings.broker_url else cluster_url
        if not text or not text.strip():
            raise ConfigError(
                "no broker: set REDISLINK_BROKER_URL (after redislink init, in "
                "redislink-session/.env), or broker in the cluster file, to redis://HOST:PORT or, "
                "with TLS, rediss://HOST:PORT"
            )
        if settings.broker_password_file is not None and settings.broker_url is None:
            raise ConfigError(
                f"REDISLINK_BROKER_PASSWORD_FILE: the cluster file names the broker "
                f"{labels(text)}, and a password goes only to one that you name: set "
                "REDISLINK_BROKER_URL, with your user in it"
            )
        urls, proxy = split_urls(text), EgressProxy.from_settings(settings)
        if credentials is not None and len(urls) > 1:
            raise ConfigError(
                "credentials for several brokers: one broker would get another one's password: "
                "pass broker=SeveralBrokers([Broker(URL, credentials=...), ...])"
            )
        return [
            cls(
                url,
                timeout=settings.reply_timeout,
                line_timeout=settings.line_timeout,
                tls_ca=settings.broker_tls_ca,
                tls_cert=settings.broker_tls_cert,
                tls_key=settings.broker_tls_key,
                tls_key_password_file=settings.broker_tls_key_password_file,
                password_file=settings.broker_password_file,
                password_line=place if len(urls) > 1 else None,
                credentials=credentials,
                proxy=proxy,
            )
            for place, url in enumerate(urls)
        ]

    @property
    def labels(self) -> str:
        """The labels of all brokers that it stands for, for messages."""
        return self.label

    def label_of_user(self, user: str) -> str:
        """The label with a user's name in it: what one types who is to log in as that user."""
        return self.label.replace("://", f"://{quote(user, safe='')}@", 1)

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

    def why_none(self, error: BrokerError) -> BrokerError:
        """Return the error to raise when none of the brokers that it stands for can be used."""
        return error

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

    def dial(self, address: Address, seconds: float) -> socket.socket:
        """Return a bare connection to one of the servers, made as `open` makes it.

        Raises:
            OSError: the server cannot be reached directly.
            BrokerError: it cannot be reached through the proxy.
        """
        proxy = self.proxy_to(address)
        dialled = dial.dial(address, seconds) if proxy is None else proxy.dial(address, seconds)
        tcp.watch(dialled, self._line_timeout)
        tcp.send_unpaced(dialled)
        return dialled

    def proxy_to(self, address: Address) -> EgressProxy | None:
        """Return the proxy through which a server is dialled; None for none."""
        proxy = self._proxy
        return proxy if proxy is not None and proxy.serves(address) else None

    def memory(self) -> tuple[int, int] | None:
        """Return the bytes of memory that the broker uses and may use, of its fullest server.

        Returns:
            None if it has no limit, is out of reach, or does not let this user see.
        """
        with contextlib.suppress(BrokerError):
            servers = [self.on(at) for at in self.masters()] if self.is_cluster else [self]
            found = [memory for server in servers if (memory := server._memory_here())]
            return max(found, key=lambda memory: memory[0] / memory[1], default=None)
        return None

    def _memory_here(self) -> tuple[int, int] | None:
        with contextlib.closing(self.open()) as connection:
            reply = connection.execute(b"INFO", b"memory", timeout=self.timeout, most=LISTING)
        pairs = (line.partition(b":") for line in bytes(reply or b"").splitlines())
        found = {name: value.strip() for name, _, value in pairs}
        used, limit = (found.get(name, b"") for name in (b"used_memory", b"maxmemory"))
        if not (used.isdigit() and limit.isdigit() and int(limit)):
            return None
        return int(used), int(limit)

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
        if address is not None and (proxy := self.proxy_to(address)) is not None:
            label = f"{label} through proxy {proxy.label}"
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
                self._undialled(address),
                in_process=self._in_process,
                timeout=self.timeout,
                login=login,
                on_elsewhere=on_elsewhere,
                explain=lambda error: self._explain(address, label, error),
                seen=self._seen,
            )
        except BrokerAuthError as error:
            # A password is rotated on the server and here, one after the other.
            error.retryable = credentials.were_accepted
            raise
        credentials.were_accepted = True
        return connection

    def _undialled(self, address: Address | None) -> Any:
        """Return an unopened redis-py connection."""
        if self._in_process:
            import fakeredis

            server = _fake_server(self._url)  # of this process
            return fakeredis.FakeRedisConnection(server=server, **self._options)
        kind: Any
        where: dict[str, Any]
        if address is None:
            kind, where = redis.UnixDomainSocketConnection, {"path": self._url.path}
        else:
            kind = dial.Connection
            opened = functools.partial(self._open_socket, address)
            where = {"host": address[0], "port": address[1], "open_socket": opened}
        return kind(**where, **self._options)

    def _open_socket(self, address: Address) -> socket.socket | Secured:
        if not self._url.tls:
            return self.dial(address, self.timeout)
        try:
            context = self._tls.context()  # read anew, as certificates are renewed
        except ConfigError as error:  # the files were right when we first connected
            raise BrokerUnreachable(str(error)) from None
        return tls.secure(self.dial(address, self.timeout), context, address[0])

    def _explain(
        self, address: Address | None, label: str, error: BaseException
    ) -> BrokerError | None:
        """Return a more telling error for a broken connection; None if we know nothing more."""
        if address is None:
            return None
        if isinstance(error, HttpError):
            known = self._answered_in_http(address, label)
        else:
            find = self._why_no_tls if self._url.tls else self._why_no_plain
            why = find(address, error)
            if why is None:
                return None
            known = BrokerUnreachable(f"broker {label}: {why}")
        known.retryable = self._seen.answered  # at the start, trying again would not help
        return known

    def _answered_in_http(self, address: Address, label: str) -> BrokerError:
        proxy = self.proxy_to(address)
        if proxy is None:
            return BrokerRefused(
                f"broker {label}: a web server answers on this port: check host and port in the URL"
            )
        opens = "opens TLS and " if self._url.tls else ""
        return ProxyRefused(
            f"broker {label}: an answer in HTTP came, not the broker's, as the proxy {opens}wants "
            f"HTTP inside the tunnel: {proxy.remedy(address)}"
        )

    def _or_the_proxy(self, address: Address, does: str) -> str:
        return or_the_proxy(self.proxy_to(address), does, address)

    def _why_no_plain(self, address: Address, error: BaseException) -> str | None:
        never_connected = isinstance(error, redis.RedisError)
        if never_connected or self._seen.answered or not tls.speaks_tls(self.dial, address):
            return None
        return (
            "it speaks TLS on this port: write rediss:// in the URL, and set "
            "REDISLINK_BROKER_TLS_CA" + self._or_the_proxy(address, "wants TLS that it can open")
        )

    def _why_no_tls(self, address: Address, error: BaseException) -> str | None:
        answered = self._seen.answered
        if tls.about_our_certificate(error) or (not answered and _closed_after_handshake(error)):
            return (
                f"it wants a client certificate, or a different one ({one_line(str(error))}): set "
                "REDISLINK_BROKER_TLS_CERT to a certificate that its CA signed, and "
                "REDISLINK_BROKER_TLS_KEY to the certificate's key"
                + self._or_the_proxy(address, "opens TLS and ends what is not HTTP")
            )
        if not isinstance(error, redis.RedisError):
            return None  # it broke after the handshake, so TLS is not to blame
        refused = tls.verification_error(error)
        if refused is not None:
            why = tls.why_not_trusted(refused)
            if refused.verify_code in tls.OTHERWISE_TRUSTED:
                return why
            return why + self._or_the_proxy(address, "opens TLS with a certificate of its own")
        if answered or tls.never_connected(error):
            return None
        if tls.speaks_plain(self.dial, address):
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


def _fake_server(url: BrokerUrl) -> Any:
    try:
        import fakeredis
    except ImportError:
        raise ConfigError(
            "broker URL fakeredis://: fakeredis is not installed: "
            "run pip install 'redislink[testing]'"
        ) from None
    # To two threads that connect at once, fakeredis' own sharing by host may give two servers, and
    # one server two databases of the same number.
    with _fake_servers_lock:
        server = _fake_servers.setdefault(url.path, fakeredis.FakeServer())
        for number in (0, url.database):
            server.dbs[number]  # makes it
    return server


def _closed_after_handshake(error: BaseException) -> bool:
    """Return whether the server hung up after the handshake.

    It may so refuse our certificate: in TLS 1.3 its alert comes late, or gets lost.
    """
    if isinstance(error, NotRespError | UnaskedError):
        return False
    return isinstance(error, WireError | ConnectionError)
