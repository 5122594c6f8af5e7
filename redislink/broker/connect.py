"""Connections to the broker, through redis-py with its conveniences switched off.

Rules (each is a trap that was seen, see docs/broker.md):
- no retries: redis-py's default sends one RPUSH up to 11 times; resending is for delivery;
- RESP2, no CLIENT SETINFO, no maintenance notifications, no health-check PING (it would steal
  the reply of a pipelined command);
- every wait is finite, and a connection on which anything went wrong is closed, never reused;
- redis-py opens the socket and speaks TLS, and no more: it gets host, port and files as arguments,
  no URL, and the login goes over our own wire, so that every error reply is the server's.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redislink.broker import tls
from redislink.broker.credentials import Credentials, CredentialsCallable
from redislink.broker.error_map import classify, translate_error_reply
from redislink.broker.tls import TlsFiles
from redislink.broker.topology import ClusterFinder, Finder, SentinelFinder
from redislink.broker.url import Address, parse_url
from redislink.broker.wire import (
    LISTING,
    NOT_YET,
    SHORT,
    Bound,
    Buffer,
    ErrorReply,
    LibraryWire,
    NotRespError,
    SocketWire,
    UnaskedError,
    Wire,
    WireError,
    pack,
)
from redislink.errors import (
    BrokerAuthError,
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    UsageError,
)
from redislink.forking import Dead, dies_in_child, let_go, renew_in_child, used_after_fork
from redislink.settings import RedisLinkSettings, check_seconds
from redislink.text import one_line

_FAKE_SLICE: Final = 0.05
_FAILURES: Final = (redis.RedisError, OSError, ValueError)
_fake_servers: Final[dict[str, Any]] = {}
_fake_servers_lock: Final = threading.Lock()
renew_in_child(_fake_servers_lock)
# The threads between which they pass messages are not there.
os.register_at_fork(after_in_child=_fake_servers.clear)


@dataclass(frozen=True, slots=True)
class Login:
    """What is said on a new connection before anything else.

    Attributes:
        auth: arguments of AUTH; none to log in without.
        database: its number.
        hide: cuts out of a server's words what they must not hold.
    """

    auth: tuple[str, ...] = field(default=(), repr=False)
    database: int = 0
    hide: Callable[[str], str] = str


_NO_LOGIN: Final = Login()


@dataclass(slots=True)
class _Seen:
    """What became known of a broker by connecting; shared by `Broker.at` and `on`."""

    answered: bool = False
    """A server of it has answered: what we speak is what it speaks."""
    tls_files_were_right: bool = False


class BrokerConnection:
    """One connection; used by one thread at a time, but `interrupt` may come from any."""

    _seen: _Seen | None = None

    def __init__(
        self,
        label: str,
        connection: Any,
        *,
        in_process: bool,
        timeout: float,
        login: Login = _NO_LOGIN,
        on_elsewhere: Callable[[str], None] | None = None,
        explain: Callable[[BaseException], BrokerError | None] | None = None,
        seen: _Seen | None = None,
    ) -> None:
        """Args:
        label: the broker's name for messages.
        connection: redis-py's, not connected yet, that says nothing by itself.
        in_process: it has no socket.
        timeout: seconds to write, and for each reply to the login.
        login: as whom, and to which database.
        on_elsewhere: called with the error reply that says that the lists are elsewhere.
        explain: given why the connection broke, says more of it, if it knows more.
        seen: where to note that the server has answered.
        """
        self._label = label
        self._hide = login.hide
        self._on_elsewhere = on_elsewhere
        self._explain = explain
        self._seen = seen
        self.usable = True
        self._wire: Wire = LibraryWire(connection)
        self._connection = connection
        dies_in_child(self)
        try:
            connection.connect()
            if not in_process:
                self._wire = SocketWire(connection, timeout)
            self._log_in(login, timeout)
        except _FAILURES as error:
            raise self._broken(error, "connecting") from None
        except BaseException:
            self.close()
            raise

    def _log_in(self, login: Login, timeout: float) -> None:
        commands: list[tuple[bytes | int | str, ...]] = []
        if login.auth:
            commands.append((b"AUTH", *login.auth))
        if login.database:
            commands.append((b"SELECT", login.database))
        for command in commands:
            self._wire.write((pack(command),))
            reply = self._wire.read(timeout)
            if type(reply) is ErrorReply:
                raise self._refused(reply.text, to_auth=command[0] == b"AUTH")
            if reply not in (b"OK", "OK"):
                raise BrokerRefused(
                    f"broker {self._label}: answered the login with something else than OK: check "
                    "that it is a Redis or Valkey server"
                )
            if self._seen is not None:
                self._seen.answered = True

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write packed commands (see `wire.pack`); each owes one `read`.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            self._wire.write(pieces)
        except _FAILURES as error:
            raise self._broken(error, "sending") from None
        except BaseException:
            self.close()
            raise

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        """As `write`, but leaves what the connection does not take soon.

        Args:
            wait: for room, as long as `be_patient` said; False does not wait at all.

        Returns:
            What is left: it must be the next that is written.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.write_some(pieces, wait=wait)
        except _FAILURES as error:
            raise self._broken(error, "sending") from None
        except BaseException:
            self.close()
            raise

    def be_patient(self, seconds: float) -> None:
        """How long `write_some` may wait; `write` is not to be used from now on."""
        self._wire.be_patient(seconds)

    def keep_unsent_low(self, low: bool) -> None:
        """While True, little is written ahead of what the network takes."""
        self._wire.keep_unsent_low(low)

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Return when there is something to read or, if ``writes``, room to write, or it broke.

        May be called while another thread uses the connection.
        """
        with contextlib.suppress(*_FAILURES):  # whoever uses it next is told
            self._wire.wait_movable(seconds, writes=writes)

    def read(self, timeout: float, most: Bound = SHORT) -> Any:
        """The next reply, waiting at most ``timeout`` seconds; error replies are raised.

        Args:
            most: what the reply may have; one that has more breaks the connection.

        Returns:
            bytes, or a memoryview where they are many; int; None; or a list of these.

        Raises:
            BrokerUnreachable: no reply in time, the connection broke, or the server says that
                another one has our lists; it is closed now.
            BrokerError: the broker's own error reply; the connection stays usable.
        """
        return self._reply("a reply", self._wire.read, timeout, most)

    def pop(self, name: bytes, timeout: float, margin: float) -> Any:
        """BLPOP of one list: the element, or None if none came in ``timeout`` seconds.

        Args:
            margin: seconds by which the reply may be late.

        Raises: as `write` and `read`. A reply that is no answer to this is returned.
        """
        # As `_reply`, which would cost this, every message's way, a tenth more.
        try:
            reply = self._wire.pop(name, timeout, timeout + margin)
        except _FAILURES as error:
            raise self._broken(error, "waiting for a message") from None
        except BaseException:
            self.close()
            raise
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_popped(self, name: bytes, timeout: float) -> Any:
        """As `pop`, for a BLPOP that was written before; ``timeout`` in seconds for the reply."""
        try:  # as `pop`
            reply = self._wire.read_popped(name, timeout)
        except _FAILURES as error:
            raise self._broken(error, "waiting for a message") from None
        except BaseException:
            self.close()
            raise
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def read_integers(self) -> int:
        """Take the integer replies that have arrived whole; returns how many they were."""
        return self._wire.read_integers()

    def read_now(self) -> bool:
        """Take the next reply, a line, if all of it has arrived; error replies are raised.

        Returns:
            False if it has not.

        Raises: as `read`.
        """
        return self._reply("a reply", self._wire.read_now) is not NOT_YET

    def readable(self) -> bool:
        """True if a reply can be read without waiting for it to begin.

        Raises:
            BrokerUnreachable: the connection broke; it is closed now.
        """
        try:
            return self._wire.readable()
        except _FAILURES as error:
            raise self._broken(error, "reading") from None

    def wait_readable(self, seconds: float) -> bool:
        """As `readable`, but waits for so long."""
        return self._wire.wait_readable(seconds)

    def send(self, commands: Sequence[Sequence[bytes | int | str]]) -> None:
        """Write commands in one go; each owes one `read`."""
        self.write((b"".join(map(pack, commands)),))

    def execute(self, *command: bytes | int | str, timeout: float, most: Bound = SHORT) -> Any:
        """Send one command and read its reply."""
        self.write((pack(command),))
        reply = self.read(timeout, most)
        if self._seen is not None:
            self._seen.answered = True
        return reply

    def interrupt(self) -> None:
        """Make a `read` in another thread end with an error, now.

        An in-process broker cannot be interrupted; there, waits are cut in short slices.
        """
        self._wire.interrupt()

    def close(self) -> None:
        """Close; never raises."""
        self.usable = False
        self._wire.close()

    def die_in_child(self) -> None:
        """Let go of the socket; neither QUIT nor TLS's good-bye is said."""
        self.usable = False
        self._wire = cast("Wire", Dead(used_after_fork(f"the connection to broker {self._label}")))
        held = getattr(self._connection, "_sock", None)
        if isinstance(held, socket.socket):
            let_go(held.fileno())

    def _reply(self, what: str, read: Callable[..., Any], *arguments: Any) -> Any:
        """What a way of reading gives; after any failure the connection is closed."""
        try:
            reply = read(*arguments)
        except _FAILURES as error:
            raise self._broken(error, f"waiting for {what}") from None
        except BaseException:
            self.close()
            raise
        if type(reply) is ErrorReply:
            raise self._refused(reply.text)
        return reply

    def _broken(self, error: Exception, doing: str) -> BrokerError:
        """What to raise for a failure of the connection, which is closed now."""
        self.close()
        known = None if self._explain is None else self._explain(error)
        if known is not None:
            return known
        text = one_line(self._hide(str(error)), 200) or type(error).__name__
        if isinstance(error, NotRespError | UnaskedError):
            kind = BrokerRefused if isinstance(error, UnaskedError) else BrokerUnreachable
            return kind(
                f"broker {self._label}: no answer to what was asked, while {doing} ({text}): check "
                "that it is a Redis or Valkey server, and what stands between it and this party"
            )
        return BrokerUnreachable(
            f"broker {self._label}: no connection while {doing} ({text}): check that it runs, and "
            "that host, port, TLS and firewall let this party dial out to it"
        )

    def _refused(self, text: str, *, to_auth: bool = False) -> BrokerError:
        error = translate_error_reply(self._label, text, self._hide, to_auth=to_auth)
        if classify(text).is_elsewhere:
            self.close()
            if self._on_elsewhere is not None:
                self._on_elsewhere(text)
                # The remedy for MOVED is to name the Cluster, which the URL does.
                remedy = "it is found anew; if this lasts, see the broker's log"
                return BrokerUnreachable(f"{str(error).rpartition(': ')[0]}: {remedy}")
        return error


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
        self._seen = _Seen()
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
        self._finder: Finder[Any] | None = None
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
            self._finder = SentinelFinder(self._url, self._ask_sentinel)
        elif self._url.kind == "cluster":
            self._finder = ClusterFinder(self._url, self._ask_slots)

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
        return self._finder is None and not self._in_process

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
        if self._finder is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._finder.address(name)

    def on(self, address: Address) -> Self:
        """The broker as this one of its servers."""
        return self._for(address)

    def addresses(self) -> list[Address]:
        """Of every server that is up, replicas too; none for a broker that is one server.

        Raises: as `open`.
        """
        return [] if self._finder is None else self._finder.every()

    def servers(self) -> list[Self]:
        """Every server of the broker that is up, replicas too, as a broker of its own.

        Raises: as `open`.
        """
        return [self] if self._finder is None else list(map(self.on, self._finder.every()))

    def masters(self) -> list[Address]:
        """Of a Redis Cluster the nodes that have keys of their own, for `on`.

        Raises: as `open`.
        """
        if self._finder is None:
            raise UsageError(f"broker {self.label}: has one server, which is in its URL")
        return self._finder.masters()

    def blpop_slice(self, wanted: float) -> float:
        """How long one BLPOP may wait on this broker, given what the settings want (s)."""
        return min(wanted, _FAKE_SLICE) if self._in_process else wanted

    def open(self) -> BrokerConnection:
        """A new connection, authenticated.

        Raises:
            BrokerUnreachable, BrokerAuthError, BrokerRefused: as their names say.
        """
        finder = self._finder
        if finder is None:
            return self._connect(None, self.label)
        place = self._place
        address = place if isinstance(place, tuple) else finder.address(place)
        try:
            return self._connect(
                address,
                self._url.label_at(address),
                on_elsewhere=lambda text: finder.moved(address, text),
            )
        except BrokerError:
            finder.forget()
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
