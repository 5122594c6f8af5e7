"""`EgressProxy`: an egress proxy, through which a party dials that can reach nothing else.

Rules:
- The proxy gets the server's name and resolves it; nobody here does.
- Until the tunnel stands, all that the proxy is waited for has one deadline, and its answer a
  bound. Not a byte behind its answer is read: that is the server's.
- The proxy's password is a secret like the broker's: no label, log line or error holds it.
- An error names the proxy as the proxy. It counts as the broker's being away, unless waiting cannot
  mend it: then it is a `ProxyRefused`.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Final, Self, cast

from redislink.broker.credentials import Credentials
from redislink.broker.dial import dial
from redislink.broker.tls import TlsFiles, secure, verification_error, why_not_trusted
from redislink.broker.url import Address, join, parse_proxy_url
from redislink.errors import BrokerError, BrokerUnreachable, ConfigError, ProxyRefused
from redislink.settings import PROXY_SETTING, RedisLinkSettings, say_once
from redislink.text import one_line

_MOST_HEAD: Final = 16 << 10
"""Bytes of an answer to CONNECT, without the body."""
_MOST_SHOWN: Final = 120
_STATUS: Final = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: ([^\r\n]*))?\r?\n").match
_SCHEME: Final = re.compile(rb"(?im)^proxy-authenticate:[ \t]*([A-Za-z0-9-]+)").findall
_PASSING: Final = frozenset({408, 425, 429})
_LASTING: Final = frozenset({501, 505, 511})
"""Statuses that do not mean what their first digit does: that waiting mends nothing, or may."""
_SOCKS_REFUSALS: Final = frozenset({2, 7, 8})
"""Reply codes of RFC 1928: not allowed, or not understood. The others are the network's."""


class EgressProxy:
    """A proxy that takes CONNECT (``http://``, ``https://``) or SOCKS5 (``socks5h://``).

    Thread-safe. Pass it to `Broker`.
    """

    def __init__(
        self,
        url: str,
        *,
        password_file: str | Path | None = None,
        tls_ca: str | Path | None = None,
        no_proxy: str | None = None,
        named_by: str = PROXY_SETTING,
    ) -> None:
        """Args:
        url: the proxy's URL, with user and password if it wants any.
        password_file: a file with the password in its first line; read for each connection.
        tls_ca: a PEM file of the CA that signed the certificate of an ``https://`` proxy; None
            means the system's.
        no_proxy: hosts to dial directly, as the variable ``NO_PROXY`` lists them; this machine's
            own addresses are then dialled directly too. None dials all through the proxy.
        named_by: the variable that holds the URL, for messages.

        Raises:
            ConfigError: the URL is not valid.
        """
        self._url = parse_proxy_url(url, named_by)
        self.label = one_line(self._url.label)
        """The URL without user and password, for messages."""
        self.named_by = named_by
        """The variable that holds the URL."""
        self._no_proxy = None if no_proxy is None else re.split(r"[,\s]+", no_proxy.lower().strip())
        self._credentials = Credentials(
            self._url.user, self._url.password, password_file=password_file
        )
        self._tls = TlsFiles(tls_ca, ca_setting=f"{PROXY_SETTING}_TLS_CA")
        self._let_through: set[Address] = set()
        self._token = ""
        """The login as it was last sent, which an answer may quote."""

    @classmethod
    def from_settings(cls, settings: RedisLinkSettings) -> Self | None:
        """Return the proxy that the settings name; None if they name none.

        Raises:
            ConfigError: as `EgressProxy`.
        """
        choice = settings.proxy_choice()
        if choice is None:
            return None
        return cls(
            choice.url.get_secret_value(),
            password_file=settings.broker_proxy_password_file,
            tls_ca=settings.broker_proxy_tls_ca,
            no_proxy=choice.no_proxy,
            named_by=choice.named_by,
        )

    @property
    def address(self) -> Address:
        """The proxy's own host and port."""
        return self._url.address

    def remedy(self, address: Address) -> str:
        """Return what to do about a proxy that looks into its tunnels."""
        return (
            f"ask whoever runs the proxy to let CONNECT to {join(address)} through untouched, "
            "without TLS inspection"
        )

    def serves(self, address: Address) -> bool:
        """Return whether a server is dialled through the proxy: not if ``no_proxy`` covers it.

        Where there is such a list, nobody has named the broker's way in so many words; so what is
        dialled how is said, once.
        """
        if self._no_proxy is None:
            return True
        if _is_loopback(address[0]):
            return False
        if any(_covers(entry, *address) for entry in self._no_proxy):
            say_once(f"broker {join(address)}: dialled directly, as NO_PROXY covers it")
            return False
        say_once(f"the broker is dialled through proxy {self.label}, from {self.named_by}")
        return True

    def dial(self, address: Address, seconds: float) -> socket.socket:
        """Return a connection to a server, through the proxy.

        Args:
            address: the server's; the proxy resolves the host.
            seconds: how long to wait for the connection to the proxy, and then for its answer;
                also the socket's timeout.

        Raises:
            BrokerUnreachable: the proxy cannot be reached, or does not reach the server.
            ProxyRefused: the proxy does not let us through.
            ConfigError: the password file or the CA's file cannot be used.
        """
        login = self._credentials.current()
        opened = self.reach(seconds)
        line = _Line(opened, seconds)
        try:
            if self._url.scheme == "socks5h":
                self._ask_socks(line, address, login)
            else:
                self._ask_http(line, address, login)
        except TimeoutError:
            opened.close()
            raise BrokerUnreachable(
                f"proxy {self.label}: did not answer within {seconds:g} s when asked for "
                f"{join(address)}: check the scheme in {self.named_by}, host and port in the "
                "broker's URL, as the proxy dials them, and the proxy's log"
            ) from None
        except OSError as error:
            opened.close()
            raise self._not_there(f"ended the connection ({self._shown(error)})") from None
        except BaseException:
            opened.close()
            raise
        opened.settimeout(seconds)
        self._credentials.were_accepted = True
        self._let_through.add(address)
        return opened

    def reach(self, seconds: float) -> socket.socket:
        """Return a connection to the proxy itself, with TLS if its URL says so.

        Raises:
            BrokerUnreachable: it cannot be reached.
            ProxyRefused: there is no TLS connection, or its certificate is not trusted.
            ConfigError: the CA's file cannot be used.
        """
        secured = self._url.scheme == "https"
        context = self._context() if secured else None
        try:
            opened = dial(self.address, seconds)
            if context is not None:
                opened = cast("ssl.SSLSocket", secure(opened, context, self.address[0]))
        except (OSError, ValueError) as error:
            refused = verification_error(error)
            if refused is not None:
                why = why_not_trusted(refused, self._tls.ca_setting)
                raise self._refused(f"proxy {self.label}: {why}") from None
            if isinstance(error, ssl.SSLError):
                raise self._no_proxy_there(f"no TLS connection: {error}") from None
            raise self._not_there(f"no connection ({self._shown(error)})") from None
        return opened

    def _context(self) -> ssl.SSLContext:
        try:
            return self._tls.context()
        except ConfigError as error:
            if not self._let_through:
                raise
            raise BrokerUnreachable(str(error)) from None  # it is being replaced

    # -- HTTP (RFC 9110, 9.3.6) ------------------------------------------------------------------

    def _ask_http(self, line: _Line, address: Address, login: tuple[str, ...]) -> None:
        where = join(address)
        request = [f"CONNECT {where} HTTP/1.1", f"Host: {where}", "User-Agent: redislink"]
        if login:
            self._token = base64.b64encode(":".join(_pair(login)).encode()).decode()
            request.append(f"Proxy-Authorization: Basic {self._token}")
        line.sendall("".join(f"{each}\r\n" for each in [*request, ""]).encode())
        head = line.read_head()
        while head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):
            head = line.read_head()
        found = _STATUS(head)
        if found is None:
            begins = head.partition(b"\n")[0].decode("ascii", "backslashreplace")
            raise self._no_proxy_there(f"its answer to CONNECT is not HTTP: {begins}")
        status = int(found[1])
        if status // 100 == 2:
            return
        said = self._shown(f"{status} {(found[2] or b'').decode(errors='replace')}".strip())
        if status in (401, 407):  # tinyproxy's for a wrong password
            offered = [name.decode() for name in _SCHEME(head)]
            raise self._not_logged_in(said, login, offered)
        if status in _PASSING or (status >= 500 and status not in _LASTING):
            raise self._not_reached(address, said)
        raise self._not_allowed(address, said)

    # -- SOCKS (RFC 1928, 1929) ------------------------------------------------------------------

    def _ask_socks(self, line: _Line, address: Address, login: tuple[str, ...]) -> None:
        from python_socks import ProxyError, ProxyType
        from python_socks.sync import Proxy as SocksProxy

        user, password = _pair(login)
        if not (user + password).isascii() or max(len(user), len(password)) > 255:
            raise ConfigError(
                f"{self.named_by}: SOCKS takes a user and a password of at most 255 ASCII "
                "characters: have others made, or use an http:// proxy"
            )
        forward: Any = _Forward(line)
        socks = SocksProxy(
            ProxyType.SOCKS5, *self.address, user or None, password or None, rdns=True,
            forward=forward,
        )  # fmt: skip
        try:
            socks.connect(*address)
        except ProxyError as error:
            said = self._shown(error)
            if error.error_code in _SOCKS_REFUSALS:
                raise self._not_allowed(address, said) from None
            if error.error_code is not None:
                raise self._not_reached(address, said) from None
            if "authentication" in said.lower():
                raise self._not_logged_in(said, login) from None
            raise self._no_proxy_there(said) from None

    # -- errors ----------------------------------------------------------------------------------

    def _not_logged_in(
        self, said: str, login: tuple[str, ...], offered: list[str] | None = None
    ) -> BrokerError:
        if offered and not any(name.lower() == "basic" for name in offered):
            return self._refused(
                f"proxy {self.label}: wants {one_line(', '.join(offered), _MOST_SHOWN)}, and "
                f"redislink logs in with Basic alone ({said}): ask whoever runs the proxy for a "
                "user with Basic, or to let this machine through without"
            )
        none_given = "" if login else ", as none was given"
        error = self._refused(
            f"proxy {self.label}: user or password not accepted{none_given} ({said}): check the "
            f"user and password in {self.named_by}, or {PROXY_SETTING}_PASSWORD_FILE"
        )
        # Trying the same password again may lock the user out.
        error.retryable = self._credentials.may_change and self._credentials.were_accepted
        return error

    def _not_allowed(self, address: Address, said: str) -> BrokerError:
        error = self._refused(
            f"proxy {self.label}: refused to connect to {join(address)} ({said}): ask whoever runs "
            "the proxy to allow that host and port, or check them in the broker's URL"
        )
        error.retryable = address in self._let_through
        return error

    def _not_reached(self, address: Address, said: str) -> BrokerError:
        return BrokerUnreachable(
            f"proxy {self.label}: does not reach {join(address)} ({said}): check that the broker "
            "runs, and host and port in its URL, as the proxy resolves and dials them; or see the "
            "proxy's log"
        )

    def _not_there(self, what: str) -> BrokerError:
        return BrokerUnreachable(
            f"proxy {self.label}: {what}: check that it runs, scheme, host and port in "
            f"{self.named_by}, and that this party may dial out to it"
        )

    def _no_proxy_there(self, why: str) -> BrokerError:
        return self._refused(
            f"proxy {self.label}: does not answer as such a proxy ({self._shown(why)}): check "
            f"scheme, host and port in {self.named_by}"
        )

    def _refused(self, message: str) -> BrokerError:
        error = ProxyRefused(message)
        error.retryable = bool(self._let_through)  # it has been right before
        return error

    def _shown(self, said: object) -> str:
        text = self._credentials.hide(str(said))
        return one_line(text.replace(self._token, "***") if self._token else text, _MOST_SHOWN)


def or_the_proxy(proxy: EgressProxy | None, does: str, address: Address) -> str:
    """Return the end of a remedy, for what the proxy may do instead; "" if there is none.

    Args:
        proxy: the proxy through which the server is dialled.
        does: what it may do.
        address: the server's.
    """
    return "" if proxy is None else f"; or the proxy {does}, and then {proxy.remedy(address)}"


class _Line:
    """A connection to the proxy, for as long as the proxy is spoken to: all has one deadline."""

    def __init__(self, opened: socket.socket, seconds: float) -> None:
        self._opened = opened
        self._give_up = time.monotonic() + seconds
        self.close = opened.close

    def sendall(self, content: bytes) -> None:
        """As a socket's.

        Raises:
            OSError: TimeoutError, if the deadline has passed.
        """
        self._set_timeout()
        self._opened.sendall(content)

    def recv(self, size: int) -> bytes:
        """As a socket's.

        Raises:
            OSError: TimeoutError, if the deadline has passed.
        """
        self._set_timeout()
        return self._opened.recv(size)

    def read_head(self) -> bytes:
        """Return an answer's status line and headers, or what came until the proxy hung up.

        Raises:
            OSError: TimeoutError, if the deadline has passed; ConnectionError, if there was no
                answer, or one without end.
        """
        head = bytearray()
        # Byte by byte, as what comes after the empty line is for whoever uses the tunnel.
        while not head.endswith((b"\r\n\r\n", b"\n\n")):
            if len(head) > _MOST_HEAD:
                raise ConnectionError("an answer without end")
            byte = self.recv(1)
            if not byte:
                if head:
                    break
                raise ConnectionError("no answer")
            head += byte
        return bytes(head)

    def _set_timeout(self) -> None:
        left = self._give_up - time.monotonic()
        if left <= 0:
            raise TimeoutError("the proxy took too long")
        self._opened.settimeout(left)


class _Forward:
    """What python-socks takes for a proxy before its own: gives it the connection that is there."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def connect(self, **_: Any) -> _Line:
        """Return the connection."""
        return self._line


def _pair(login: tuple[str, ...]) -> tuple[str, str]:
    """Return user and password; empty if there is none."""
    user, password = ("", "", *login)[-2:]
    return user, password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _covers(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of ``NO_PROXY`` covers this server.

    An entry is ``*``, an address, a network as ``10.0.0.0/8``, or a host, which stands for those
    below it too; a port may follow.
    """
    if entry in ("", "*"):
        return entry == "*"
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        if int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").removeprefix(".")
    return host.rstrip(".") == entry or host.rstrip(".").endswith(f".{entry}")
