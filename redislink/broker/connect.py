"""Connections to the broker, through redis-py with its conveniences switched off.

Rules (each is a trap that was seen, see docs/broker.md):
- no retries: redis-py's default sends one RPUSH up to 11 times; resending is for delivery;
- RESP2, no CLIENT SETINFO, no maintenance notifications, no health-check PING (it would steal
  the reply of a pipelined command);
- every wait is finite, and a connection on which anything went wrong is closed, never reused.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redislink.broker.finding import ClusterFinder, Finder, SentinelFinder
from redislink.broker.url import WRITE_SO, Address, parse_url
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
    error_text,
    pack,
)
from redislink.errors import (
    BrokerAuthError,
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    UsageError,
)
from redislink.settings import RedisLinkSettings
from redislink.text import one_line

_FAKE_SLICE: Final = 0.05
# Error replies of a server that is not, or no longer, the one that has our lists: asking it again
# is of no use, so the connection ends.
_ELSEWHERE_CODES: Final = ("MOVED", "READONLY", "UNBLOCKED")
# Error replies of a server that starts, fails over or saves: they pass by themselves.
_PASSING_CODES: Final = (
    "LOADING",
    "MASTERDOWN",
    "ASK ",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
)
# Error replies to AUTH, or to a command before it; the last ones are those of Redis 6 and earlier.
_LOGIN_CODES: Final = (
    "WRONGPASS",
    "NOAUTH",
    "ERR AUTH",
    "Authentication required",
    "ERR invalid password",
    "ERR Client sent AUTH",
)
_FAILURES: Final = (redis.RedisError, OSError, ValueError)
_fake_servers: Final[dict[str, Any]] = {}
_fake_servers_lock: Final = threading.Lock()


class BrokerConnection:
    """One connection; used by one thread at a time, but `interrupt` may come from any."""

    def __init__(
        self,
        label: str,
        connection: Any,
        *,
        in_process: bool,
        timeout: float,
        on_elsewhere: Callable[[str], None] | None = None,
    ) -> None:
        """Args:
        label: the broker's name for messages.
        connection: redis-py's, not connected yet.
        in_process: it has no socket.
        timeout: seconds to write.
        on_elsewhere: called with the error reply that says that the lists are elsewhere.
        """
        self._label = label
        self._on_elsewhere = on_elsewhere
        self.usable = True
        self._wire: Wire = LibraryWire(connection)
        self._timeout = timeout
        if not in_process:
            # redis-py would read the answers to this with neither a deadline nor a limit.
            connection.redis_connect_func = self._log_in
        try:
            connection.connect()
        except _FAILURES as error:
            self.close()
            raise _translate(label, error, "connecting") from None
        except BaseException:
            self.close()
            raise

    def _log_in(self, connection: Any) -> None:
        """What follows on the socket's connecting: AUTH and SELECT, where they are needed.

        Args:
            connection: redis-py's, which calls this.

        Raises:
            BrokerError: as `read`.
        """
        self._wire = SocketWire(connection, self._timeout)
        provider = connection.credential_provider
        if provider is None and (connection.username or connection.password):
            provider = redis.UsernamePasswordCredentialProvider(
                connection.username, connection.password
            )
        if provider is not None:
            self.execute(b"AUTH", *provider.get_credentials(), timeout=self._timeout)
        if connection.db:
            self.execute(b"SELECT", connection.db, timeout=self._timeout)

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
        return self.read(timeout, most)

    def interrupt(self) -> None:
        """Make a `read` in another thread end with an error, now.

        An in-process broker cannot be interrupted; there, waits are cut in short slices.
        """
        self._wire.interrupt()

    def close(self) -> None:
        """Close; never raises."""
        self.usable = False
        self._wire.close()

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
        return _translate_failure(self._label, error, doing)

    def _refused(self, text: str) -> BrokerError:
        error = translate_error_reply(self._label, text)
        if text.startswith(_ELSEWHERE_CODES):
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
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        """Args: URL with credentials, seconds per connect and per reply, PEM file paths.

        Raises:
            ConfigError: the URL cannot be used; the message does not hold its password.
        """
        self.timeout = timeout
        self._url = parse_url(url)
        self.label = one_line(self._url.label)
        """The URL without user and password, for messages."""
        self._in_process = self._url.kind == "fakeredis"
        self._finder: Finder[Any] | None = None
        self._place: bytes | Address | None = None
        """The list, or the server, that `open` opens a connection for; None is any."""
        self._options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "health_check_interval": 0,
            # The pool only makes connections and never gets one back: it must not count them.
            "max_connections": 1 << 31,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
        }
        if self._in_process:
            self._pool = _fake_pool(urlsplit(url).netloc, self._options)
            return
        if self._url.tls:
            self._options |= {
                key: value
                for key, value in {
                    "ssl_ca_certs": tls_ca,
                    "ssl_certfile": tls_cert,
                    "ssl_keyfile": tls_key,
                }.items()
                if value is not None
            }
        if self._url.kind == "sentinel":
            self._finder = SentinelFinder(self._url, self._ask_sentinel)
        elif self._url.kind == "cluster":
            self._finder = ClusterFinder(self._url, self._ask_slots)
        if self._finder is not None:
            url = self._url.at(self._url.addresses[0])
        self._pool = self._make_pool(url)

    @classmethod
    def from_settings(cls, settings: RedisLinkSettings, cluster_url: str | None) -> Broker:
        """The broker that the settings name, else the cluster file's.

        Raises:
            ConfigError: neither names one.
        """
        url = settings.broker_url.get_secret_value() if settings.broker_url else cluster_url
        if not url:
            raise ConfigError(
                "no broker: set REDISLINK_BROKER_URL, or broker in the cluster file, "
                "to redis://HOST:PORT"
            )

        def path(value: Any) -> str | None:
            return None if value is None else str(value)

        return cls(
            url,
            timeout=settings.reply_timeout,
            tls_ca=path(settings.broker_tls_ca),
            tls_cert=path(settings.broker_tls_cert),
            tls_key=path(settings.broker_tls_key),
        )

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
            return self._connect(self._pool, self.label, None)
        place = self._place
        address = place if isinstance(place, tuple) else finder.address(place)
        try:
            return self._connect(
                self._make_pool(self._url.at(address)),
                self._url.label_at(address),
                lambda text: finder.moved(address, text),
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
        self, pool: Any, label: str, on_elsewhere: Callable[[str], None] | None
    ) -> BrokerConnection:
        try:
            connection = pool.make_connection()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"broker URL {self.label}: {error}: mend the URL") from None
        return BrokerConnection(
            label,
            connection,
            in_process=self._in_process,
            timeout=self.timeout,
            on_elsewhere=on_elsewhere,
        )

    def _for(self, place: bytes | Address) -> Self:
        other = copy.copy(self)
        other._place = place
        return other

    def _make_pool(self, url: str) -> Any:
        try:
            return redis.ConnectionPool.from_url(url, **self._options)
        except (ValueError, TypeError, redis.RedisError):
            raise ConfigError(f"broker URL {self.label}: cannot be parsed: {WRITE_SO}") from None

    def _ask_sentinel(self, address: Address, *command: bytes | str) -> Any:
        label = f"{self.label} (a sentinel)"
        pool = self._make_pool(self._url.sentinel_at(address))
        with contextlib.closing(self._connect(pool, label, None)) as connection:
            return connection.execute(*command, timeout=self.timeout, most=LISTING)

    def _ask_slots(self, address: Address) -> Any:
        with contextlib.closing(self.on(address).open()) as connection:
            try:
                return connection.execute(b"CLUSTER", b"SLOTS", timeout=self.timeout, most=LISTING)
            except BrokerRefused as error:
                raise BrokerRefused(
                    f"{error}: a server that is no node of a Redis Cluster has a URL redis://…"
                ) from None


def _fake_pool(name: str, options: dict[str, Any]) -> Any:
    try:
        import fakeredis
    except ImportError:
        raise ConfigError(
            "broker URL fakeredis://: fakeredis is not installed: "
            "run pip install 'redislink[testing]'"
        ) from None
    # Not fakeredis' own sharing by host: two threads that connect at once get two servers there.
    with _fake_servers_lock:
        server = _fake_servers.setdefault(name, fakeredis.FakeServer())
    return redis.ConnectionPool(
        connection_class=fakeredis.FakeRedisConnection, server=server, **options
    )


def translate_error_reply(label: str, text: str) -> BrokerError:
    """The `BrokerError` for an error reply; its text is the broker's, without our data."""
    text = one_line(text, 200)
    if text.startswith("NOPERM"):
        return BrokerPermissionError(
            f"broker {label}: permission denied ({text}): "
            "give this party's user the rules that redislink acl prints"
        )
    if text.startswith(_LOGIN_CODES):
        return _auth_error(label, text)
    if text.startswith("OOM"):
        return BrokerBusy(f"broker {label}: out of memory ({text}): raise its maxmemory")
    if text.startswith("MOVED"):
        return BrokerRefused(
            f"broker {label}: another node of its Redis Cluster has this list ({text}): "
            "write redis+cluster://HOST:PORT,HOST:PORT"
        )
    if text.startswith(_ELSEWHERE_CODES):
        return BrokerUnreachable(
            f"broker {label}: is a replica now ({text}): its URL must lead to the master"
        )
    if text.startswith(_PASSING_CODES):
        return BrokerBusy(f"broker {label}: cannot serve just now ({text}): wait, or see its log")
    return BrokerRefused(
        f"broker {label}: refused a command ({text}): see its log, and whether "
        "this service has the command"
    )


def _auth_error(label: str, text: str) -> BrokerAuthError:
    return BrokerAuthError(
        f"broker {label}: user or password not accepted ({text}): "
        "check the user and password in REDISLINK_BROKER_URL"
    )


def _translate(label: str, error: Exception, doing: str) -> BrokerError:
    """The `BrokerError` for what redis-py raised."""
    if isinstance(error, redis.ResponseError):
        return translate_error_reply(label, error_text(error))
    return _translate_failure(label, error, doing)


def _translate_failure(label: str, error: Exception, doing: str) -> BrokerError:
    text = one_line(str(error), 200) or type(error).__name__
    if isinstance(error, redis.AuthenticationError):
        return _auth_error(label, text)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BrokerUnreachable(
            f"broker {label}: its certificate is not trusted ({text}): set REDISLINK_BROKER_TLS_CA "
            "to the PEM file of the CA that signed it"
        )
    if isinstance(error, NotRespError | UnaskedError):
        kind = BrokerRefused if isinstance(error, UnaskedError) else BrokerUnreachable
        return kind(
            f"broker {label}: no answer to what was asked, while {doing} ({text}): check that it "
            "is a Redis or Valkey server, and what stands between it and this party"
        )
    return BrokerUnreachable(
        f"broker {label}: no connection while {doing} ({text}): "
        "check that it runs, and that host, port, TLS and firewall let this party dial out to it"
    )
