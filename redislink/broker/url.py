"""`BrokerUrl` and `ProxyUrl`: the contents of a broker's URL, and of a proxy's.

Rules:
- Only this module takes URLs apart, and none is ever put together again: the parts are passed on
  as arguments. So no host, name or password can turn into another part of a URL.
- A label never contains user, password or query. A `ConfigError` about a URL quotes nothing from
  it that might be a password.
- `check_host` checks every host, also those that servers name: an IP address or a host name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from redis.connection import URL_QUERY_ARGUMENT_PARSERS

from redislink.errors import ConfigError
from redislink.protocol.frame import MAX_BROKERS
from redislink.text import one_line

BrokerKind = Literal["server", "sentinel", "cluster", "fakeredis"]
Address = tuple[str, int]
"""Host and port."""

WRITE_SO: Final = (
    "write redis://[USER:PASSWORD@]HOST:PORT/DB, rediss://… with TLS, unix:///PATH, "
    "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB or redis+cluster://HOST:PORT,HOST:PORT"
)
WRITE_PROXY_SO: Final = (
    "write http://[USER:PASSWORD@]HOST:PORT, https://… if the proxy itself speaks TLS, or "
    "socks5h://…"
)
_ENCODE: Final = (
    "percent-encode / ? # @ % and spaces in user and password (%2F %3F %23 %40 %25 %20), as "
    "urllib.parse.quote(password, safe='') does, or leave the password out of the URL and set "
)
_SCHEMES: Final[dict[str, BrokerKind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "fakeredis": "fakeredis",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
ProxyScheme = Literal["http", "https", "socks5h"]
_PROXY_SCHEMES: Final[dict[str, ProxyScheme]] = {
    "http": "http",
    "https": "https",
    "socks5h": "socks5h",
    "socks5": "socks5h",  # the proxy resolves the broker's name in any case
}
_BETWEEN_URLS: Final = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)").split
"""A comma within a URL stands between the hosts of sentinels or of a Cluster."""
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MOST_HOST: Final = 253
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?").fullmatch
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}").fullmatch
_NUMBER: Final = re.compile(r"[0-9]{1,9}").fullmatch
_BAD_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})").search
_TRUTH: Final = {
    **dict.fromkeys(("1", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "f", "false", "n", "no"), False),
}
_REQUIREMENTS: Final = {"required": True, "none": False}
_CREDENTIALS: Final = frozenset({"username", "password"})
_OF_SENTINELS: Final = frozenset({"sentinel_username", "sentinel_password"})
_FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_OF_TLS: Final = _FILES | {"ssl_cert_reqs", "ssl_check_hostname"}
_OPTIONS: Final = _OF_SENTINELS | _OF_TLS | {"db"}


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of URL.

    Attributes:
        called: what messages call it.
        password_file: the setting that keeps its password out of it.
    """

    called: str
    password_file: str

    def not_encoded(self) -> ConfigError:
        """Return the error for a URL with a character that means something else in a URL."""
        return ConfigError(
            f"{self.called}: it has a character that must be encoded: {_ENCODE}{self.password_file}"
        )

    def check_encoded(self, url: str, *parts: str) -> None:
        """Raise if a password may contain a ``/``, ``?``, ``#`` or ``@`` that is not encoded.

        Args:
            url: the whole URL.
            parts: its parts, but for the host.
        """
        if "#" in url or " " in url or not url.isprintable() or _BAD_ESCAPE(url):
            raise self.not_encoded()
        if any("@" in part for part in parts):
            raise self.not_encoded()

    def decode(self, text: str) -> str:
        """Return the text without its percent-encoding."""
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            raise self.not_encoded() from None


_OF_BROKER: Final = _Kind("broker URL", "REDISLINK_BROKER_PASSWORD_FILE")


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker's URL, taken apart by `parse_url`.

    Attributes:
        kind: one server, servers with sentinels, a Redis Cluster, or no server (fakeredis).
        scheme: the URL's scheme, in lower case.
        tls: True if every connection uses TLS.
        addresses: the address of the server, of each sentinel, or of some Cluster nodes; empty if
            there is no network.
        path: the path of a Unix socket, or the name of a fakeredis; otherwise empty.
        master: the master's name, as the sentinels know it.
        database: the database's number.
        label: the URL without user, password and query, for messages.
        user, password: the login for the servers; empty if there is none.
        sentinel_user, sentinel_password: the login for the sentinels.
        tls_files: the paths in the query, by option.
        checks_certificate: False if the query says not to check the servers' certificates.
        checks_name: False if the query says not to check the host names in them.
    """

    kind: BrokerKind
    scheme: str
    tls: bool
    addresses: tuple[Address, ...]
    path: str
    master: str
    database: int
    label: str
    user: str = field(repr=False)
    password: str = field(repr=False)
    sentinel_user: str = field(repr=False)
    sentinel_password: str = field(repr=False)
    tls_files: Mapping[str, str]
    checks_certificate: bool
    checks_name: bool

    def label_at(self, address: Address) -> str:
        """Return the name of one of this broker's servers, for messages."""
        if self.kind == "server":
            return self.label
        what = "master" if self.kind == "sentinel" else "node"
        return f"{'rediss' if self.tls else 'redis'}://{join(address)} ({what} of {self.label})"

    def label_of_sentinel(self, address: Address) -> str:
        """Return the name of one of its sentinels, for messages."""
        return f"{self.label} (a sentinel, {join(address)})"


def split_urls(text: str) -> list[str]:
    """Return the URLs in a setting that may name several brokers, in their order.

    Args:
        text: one URL, or several with commas or white space between them.

    Raises:
        ConfigError: two of them name the same broker, or the list holds a broker of a kind that
            cannot be one of several.
    """
    urls = _BETWEEN_URLS(text.strip())
    if len(urls) == 1:
        return urls
    if len(urls) > MAX_BROKERS:
        raise ConfigError(f"broker URL: {len(urls)} brokers: list at most {MAX_BROKERS}")
    seen: dict[tuple[str, int], str] = {}
    for url in urls:
        parsed = parse_url(url.rstrip(","))
        if parsed.kind in ("cluster", "fakeredis"):
            raise ConfigError(
                f"broker URL: {parsed.label} cannot be one of several brokers: list single "
                "servers, or masters with sentinels"
            )
        if (parsed.label, parsed.database) in seen:
            raise ConfigError(f"broker URL: {parsed.label} stands in the list twice: leave one out")
        seen[parsed.label, parsed.database] = url.rstrip(",")
    return list(seen.values())


def labels(text: str) -> str:
    """Return the labels of the brokers in such a setting, for messages.

    Raises: as `split_urls` and `parse_url`.
    """
    return ", ".join(parse_url(url).label for url in split_urls(text))


def parse_url(url: str) -> BrokerUrl:
    """Take a broker's URL apart.

    Raises:
        ConfigError: the scheme or an option is unknown; a required host, port, name or path is
            missing; or the user or password is not percent-encoded.
    """
    scheme, divider, rest = url.partition("://")
    scheme = scheme.lower()
    kind = _SCHEMES.get(scheme)
    if not divider:
        raise ConfigError(f"broker URL: no scheme: {WRITE_SO}")
    if kind is None:
        raise ConfigError(f"broker URL: unknown scheme {one_line(scheme, 40)!r}: {WRITE_SO}")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    credentials, _, place = authority.rpartition("@")
    if kind != "fakeredis":
        _OF_BROKER.check_encoded(url, credentials, path, query)
    user, _, password = credentials.partition(":")
    options = _options(scheme, kind, query)
    addresses: tuple[Address, ...] = ()
    master = ""
    if scheme == "unix":
        if place:
            raise ConfigError(f"broker URL: unix:// with a host: {WRITE_SO}")
        if not path:
            raise ConfigError(f"broker URL: unix:// without a path: {WRITE_SO}")
        path = _OF_BROKER.decode(f"/{path}")
        label, number = f"unix://{one_line(path)}", ""
    elif kind == "fakeredis":
        if not place:
            raise ConfigError(f"broker URL: {scheme}:// without a host: {WRITE_SO}")
        label, number, path = f"fakeredis://{one_line(place.lower())}", "", place
    else:
        addresses = _addresses(kind, scheme, place)
        number = path.rstrip("/")
        if kind == "sentinel":
            name, _, number = number.partition("/")
            master = _OF_BROKER.decode(name)
            if not master:
                raise ConfigError(
                    f"broker URL: {scheme}:// without the name that the sentinels give the master: "
                    f"{WRITE_SO}"
                )
        label = f"{scheme}://{','.join(map(join, addresses))}{slash}{path.rstrip('/')}"
        path = ""
    database = _database(kind, scheme, number, options.pop("db", None))
    return BrokerUrl(
        kind,
        scheme,
        scheme.startswith("rediss"),
        addresses,
        path,
        master,
        database,
        label,
        user=_OF_BROKER.decode(user),
        password=_OF_BROKER.decode(password),
        sentinel_user=options.pop("sentinel_username", ""),
        sentinel_password=options.pop("sentinel_password", ""),
        tls_files={name: value for name, value in options.items() if name in _FILES},
        checks_certificate=_choice(options, "ssl_cert_reqs", _REQUIREMENTS),
        checks_name=_choice(options, "ssl_check_hostname", _TRUTH),
    )


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """A proxy's URL, taken apart by `parse_proxy_url`.

    Attributes:
        scheme: how the proxy is spoken to; ``https`` is HTTP over TLS.
        address: the proxy's.
        label: the URL without user and password, for messages.
        user, password: the login for the proxy; empty if there is none.
    """

    scheme: ProxyScheme
    address: Address
    label: str
    user: str = field(repr=False)
    password: str = field(repr=False)


def parse_proxy_url(url: str, named_by: str) -> ProxyUrl:
    """Take a proxy's URL apart.

    Args:
        url: the URL.
        named_by: the variable that holds it, for messages.

    Raises:
        ConfigError: the scheme is unknown, host or port are missing, or the user or password is
            not percent-encoded.
    """
    kind = _Kind(named_by, "REDISLINK_BROKER_PROXY_PASSWORD_FILE")
    given, divider, rest = url.partition("://")
    scheme = _PROXY_SCHEMES.get(given.lower())
    if not divider or scheme is None:
        raise ConfigError(f"{named_by}: no proxy of a scheme that is known: {WRITE_PROXY_SO}")
    authority, _, path = rest.partition("/")
    credentials, _, place = authority.rpartition("@")
    kind.check_encoded(url, credentials, path)
    try:
        address = _address(place, 0)
    except ValueError:
        raise ConfigError(f"{named_by}: its host or port is not valid: {WRITE_PROXY_SO}") from None
    if not address[1]:
        raise ConfigError(f"{named_by}: no port: {WRITE_PROXY_SO}")
    if path:
        raise ConfigError(f"{named_by}: something stands after host and port: {WRITE_PROXY_SO}")
    user, _, password = credentials.partition(":")
    label = f"{scheme}://{join(address)}"
    return ProxyUrl(scheme, address, label, kind.decode(user), kind.decode(password))


def check_host(text: str) -> str:
    """Return the host, if it is an IP address or a host name and nothing else.

    Raises:
        ValueError: it is something else, such as a host with a port or a path.
    """
    if ":" in text:
        zone = ipaddress.IPv6Address(text).scope_id
        if zone is not None and not _ZONE(zone):
            raise ValueError("not a host")
        return text
    if len(text) > _MOST_HOST or not _HOST_NAME(text):
        raise ValueError("not a host")
    return text


def check_port(number: int) -> int:
    """Return the number, if it is a port.

    Raises:
        ValueError: it is not.
    """
    if not 0 < number < 1 << 16:
        raise ValueError(number)
    return number


def join(address: Address) -> str:
    """Return host and port as a URL writes them."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(kind: BrokerKind, scheme: str, place: str) -> tuple[Address, ...]:
    default = _SENTINEL_PORT if kind == "sentinel" else _PORT
    places = [place] if kind == "server" else place.split(",")
    try:
        found = tuple(_address(one, default) for one in places if one)
    except ValueError:
        raise ConfigError(f"broker URL: its host or port is not valid: {WRITE_SO}") from None
    if not found:
        raise ConfigError(f"broker URL: {scheme}:// without a host: {WRITE_SO}")
    return found


def _address(text: str, default_port: int) -> Address:
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        if not closed or ":" not in host or (port and not port.startswith(":")):
            raise ValueError("not an IPv6 address")
        host, port = host.replace("%25", "%"), port[1:]
    else:
        host, _, port = text.partition(":")
        if not host.isascii():
            host = host.encode("idna").decode()
    if port and not _NUMBER(port):
        raise ValueError("not a port")
    return check_host(host.lower()), check_port(int(port)) if port else default_port


def _options(scheme: str, kind: BrokerKind, query: str) -> dict[str, str]:
    """Return the options after the ``?``. Only known ones: in redis-py they would override ours."""
    options: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise _OF_BROKER.not_encoded() from None
    for name, value in pairs:
        if name in _CREDENTIALS:
            raise ConfigError(
                f"broker URL: {name} after the ?: write redis://USER:PASSWORD@HOST:PORT"
            )
        if name not in _OPTIONS:
            # An unknown name may be the end of a password with a ? in it.
            shown = f" {name}" if name in URL_QUERY_ARGUMENT_PARSERS else ""
            raise ConfigError(
                f"broker URL: an option{shown} after the ? that redislink does not take: leave it "
                f"out (timeouts are settings), or use one of {', '.join(sorted(_OPTIONS))}. If it "
                f"is part of a password, {_ENCODE}{_OF_BROKER.password_file}"
            )
        if name in options:
            raise ConfigError(f"broker URL: {name} appears twice: leave one out")
        if name in _OF_SENTINELS and kind != "sentinel":
            raise ConfigError(f"broker URL: {name} with {scheme}://: leave it out")
        if name in _OF_TLS and not scheme.startswith("rediss"):
            raise ConfigError(f"broker URL: {name} with {scheme}://: TLS has rediss://")
        options[name] = value
    return options


def _choice(options: Mapping[str, str], name: str, choices: Mapping[str, bool]) -> bool:
    """Return the option's value; True if the option is missing."""
    value = options.get(name)
    if value is None:
        return True
    if value.lower() not in choices:
        raise ConfigError(
            f"broker URL: the value of {name} is not known: leave it out, or write one of "
            + ", ".join(choices)
        )
    return choices[value.lower()]


def _database(kind: BrokerKind, scheme: str, number: str, option: str | None) -> int:
    given = [text for text in (number, option) if text]
    if any(not _NUMBER(text) for text in given):
        raise ConfigError(f"broker URL: {scheme}:// with a database that is no number: {WRITE_SO}")
    numbers = {int(text) for text in given}
    if len(numbers) > 1:
        raise ConfigError("broker URL: two databases, at its end and as db=: leave one out")
    if kind == "cluster" and numbers - {0}:
        raise ConfigError(f"broker URL: a Redis Cluster has only database 0: {WRITE_SO}")
    return next(iter(numbers), 0)
