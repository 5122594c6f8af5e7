"""`BrokerUrl`: what a broker's URL says, of whichever kind the broker is.

Rules: a label never holds user, password or query; what is wrong with a URL is a `ConfigError`
whose text does not hold the URL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redislink.errors import ConfigError

Kind = Literal["server", "sentinel", "cluster", "fakeredis"]
Address = tuple[str, int]
"""Host and port."""

WRITE_SO: Final = (
    "write redis://[USER:PASSWORD@]HOST:PORT/DB, rediss://… with TLS, unix:///PATH, "
    "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB or redis+cluster://HOST:PORT,HOST:PORT"
)
_SCHEMES: Final[dict[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "fakeredis": "fakeredis",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_OF_SENTINELS: Final = "sentinel_"
"""How the query's parameters begin that are for the sentinels and not for the master."""


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker's URL, taken apart by `parse_url`.

    Attributes:
        kind: one server, servers that sentinels watch, a Redis Cluster, or none (fakeredis).
        tls: True if all of them are spoken to over TLS.
        addresses: of the sentinels, or of some nodes of the Cluster; else empty.
        master: the name that the sentinels have for the master.
        database: its number.
        label: the URL without user, password and query, for messages.
    """

    kind: Kind
    tls: bool
    addresses: tuple[Address, ...]
    master: str
    database: int
    label: str
    _credentials: str = field(repr=False)
    _query: str = field(repr=False)

    def at(self, address: Address) -> str:
        """The URL of one server of this broker, with user and password."""
        query = [(k, v) for k, v in self._parameters() if not k.startswith(_OF_SENTINELS)]
        return self._plain(address, self._credentials, query, self.database)

    def sentinel_at(self, address: Address) -> str:
        """The URL of one of its sentinels, with their user and password if they have any."""
        query = [
            (name.removeprefix(_OF_SENTINELS), value)
            for name, value in self._parameters()
            if name.startswith((_OF_SENTINELS, "ssl_"))
        ]
        return self._plain(address, "", query, 0)

    def label_at(self, address: Address) -> str:
        """One server of this broker, for messages."""
        what = "master" if self.kind == "sentinel" else "node"
        return f"{self._plain(address, '', [], 0)} ({what} of {self.label})"

    def _parameters(self) -> list[tuple[str, str]]:
        return parse_qsl(self._query, keep_blank_values=True)

    def _plain(
        self, address: Address, credentials: str, query: list[tuple[str, str]], database: int
    ) -> str:
        scheme = "rediss" if self.tls else "redis"
        number = f"/{database}" if database else ""
        options = f"?{urlencode(query)}" if query else ""
        return f"{scheme}://{credentials}{_join(address)}{number}{options}"


def parse_url(url: str) -> BrokerUrl:
    """Take a broker's URL apart.

    Raises:
        ConfigError: unknown scheme, or no host, port, name or path where one belongs.
    """
    try:
        parts = urlsplit(url)
        kind = _SCHEMES.get(parts.scheme)
        if kind in ("sentinel", "cluster"):
            return _parse_several(url, kind)
        port = parts.port
    except ValueError:
        raise ConfigError(f"broker URL: its host or port is not valid: {WRITE_SO}") from None
    scheme = parts.scheme
    if kind is None:
        raise ConfigError(
            f"broker URL: unknown scheme {scheme!r:.40}: {WRITE_SO}"
            if scheme
            else f"broker URL: no scheme: {WRITE_SO}"
        )
    if scheme == "unix":
        if not parts.path:
            raise ConfigError(f"broker URL: unix:// without a path: {WRITE_SO}")
        label, number = f"unix://{unquote(parts.path)}", ""
    else:
        if not parts.hostname:
            raise ConfigError(f"broker URL: {scheme}:// without a host: {WRITE_SO}")
        label, number = f"{scheme}://{_join((parts.hostname, port or _PORT))}{parts.path}", ""
        number = parts.path.strip("/")
    if kind == "fakeredis":
        label = f"fakeredis://{parts.hostname}"
    database = int(number) if number.isdecimal() else 0
    return BrokerUrl(kind, scheme == "rediss", (), "", database, label, "", "")


def _parse_several(url: str, kind: Kind) -> BrokerUrl:
    """Of a scheme that has several hosts; raises ValueError for hosts and ports not valid."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest, _, query = rest.partition("#")[0].partition("?")
    place, _, path = rest.partition("/")
    credentials, at, hosts = place.rpartition("@")
    default = _SENTINEL_PORT if kind == "sentinel" else _PORT
    addresses = tuple(_address(host, default) for host in hosts.split(",") if host)
    if not addresses:
        raise ConfigError(f"broker URL: {scheme}:// without a host: {WRITE_SO}")
    name, _, number = ("", "", path) if kind == "cluster" else path.partition("/")
    number = number.rstrip("/")
    if kind == "sentinel" and not name:
        raise ConfigError(
            f"broker URL: {scheme}:// without the name that the sentinels have for the master: "
            f"{WRITE_SO}"
        )
    if number and not number.isdecimal():
        raise ConfigError(f"broker URL: {scheme}:// with a database that is no number: {WRITE_SO}")
    if kind == "cluster" and number and int(number):
        raise ConfigError(f"broker URL: a Redis Cluster has database 0 alone: {WRITE_SO}")
    master = unquote(name)
    label = f"{scheme}://{','.join(map(_join, addresses))}{'/' * bool(path)}{path.rstrip('/')}"
    return BrokerUrl(
        *(kind, scheme.startswith("rediss"), addresses, master, int(number or 0), label),
        *(credentials + at, query),
    )


def _address(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return parts.hostname, default_port if parts.port is None else parts.port


def _join(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
