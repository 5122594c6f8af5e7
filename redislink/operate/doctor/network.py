"""Checks of the way to the broker: name resolution, TCP, TLS, certificates and login.

The doctor opens sockets of its own, to check separately the steps that a redislink connection takes
in one go. It sets them up in the same way, sends nothing but PING, and closes them at once.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from redislink.broker.dial import Dial
from redislink.broker.proxy import or_the_proxy
from redislink.broker.tls import (
    EXPIRED,
    NOT_YET_VALID,
    WRONG_NAME,
    Secured,
    about_our_certificate,
    secure,
    speaks_plain,
    speaks_tls,
)
from redislink.broker.wire import pack
from redislink.errors import (
    BrokerAuthError,
    BrokerError,
    BrokerPermissionError,
    BrokerUnreachable,
)
from redislink.operate.doctor.examination import Address, Examination, loopback
from redislink.operate.doctor.finding import Blame, Verdict, failed, failed_with, passed, warned
from redislink.settings import PROXY_SETTING, proxy_of_environment
from redislink.text import one_line

SOON_DAYS: Final = 30
"""A certificate that expires in fewer days is worth a warning."""
_MOST_ADDRESSES: Final = 4
_SNIFF_SECONDS: Final = 1.0
_HTTP: Final = b"H"
"""How HTTP answers whatever it does not understand; no reply of Redis begins so."""
_BY_PROXY: Final = ()
"""Stands for the socket address of a server that is dialled through a proxy."""


class _ClosedAfterHandshake(ConnectionError):
    """The server closed the connection: in TLS 1.3, it may refuse our certificate in this way."""


class _HttpInside(ConnectionError):
    """What answers after the handshake speaks HTTP."""


# -- the proxy, name resolution and TCP -----------------------------------------------------------


def proxy(exam: Examination) -> Verdict | None:
    """Check that this machine reaches the proxy through which it is to dial the broker.

    Raises:
        ConfigError: the proxy's CA file cannot be used.
    """
    used = next(filter(None, map(exam.proxy_to, exam.addresses)), None)
    if used is None:
        return None
    host = Address(*used.address)
    try:
        _resolve(host, exam.patience())
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return failed(
            f"{used.label}: its name does not resolve here: {one_line(why)}",
            f"check the host's spelling in {used.named_by}, and the name servers of this machine",
            Blame.OURS,
        )
    try:
        used.reach(exam.patience()).close()
    except BrokerError as error:
        return failed_with(error, Blame.OURS)
    return passed(f"{used.label}, from {used.named_by}, reached; it resolves the broker's name")


def name_resolution(exam: Examination) -> Verdict | None:
    """Check that every host in the URL that is dialled from here has an address."""
    direct = [address for address in exam.addresses if exam.proxy_to(address) is None]
    if not direct:
        return None
    missing: dict[Address, str] = {}
    for address in direct:
        try:
            exam.seen.resolved[address] = _resolve(address, exam.patience())
        except (OSError, UnicodeError) as error:
            missing[address] = getattr(error, "strerror", None) or str(error)
    found = "; ".join(
        f"{address.host} is {', '.join(dict.fromkeys(str(info[0]) for info in infos))}"
        for address, infos in exam.seen.resolved.items()
    )
    lost = "; ".join(f"{address.host}: {one_line(why)}" for address, why in missing.items())
    remedy = (
        "check the spelling of the host in the URL, and this machine's name servers "
        f"(/etc/resolv.conf, a VPN){_or_a_proxy()}"
    )
    if not exam.seen.resolved:
        return failed(lost, remedy)
    return warned(f"{found}; {lost}", remedy) if missing else passed(found)


def _resolve(address: Address, seconds: float) -> list[tuple[Any, ...]]:
    """Return the socket addresses of a host; getaddrinfo has no timeout of its own.

    Raises:
        OSError, UnicodeError: it has none, or no name server answers in time.
    """
    outcome: list[Any] = []

    def look_up() -> None:
        try:
            outcome.append(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            outcome.append(error)

    thread = threading.Thread(target=look_up, name="redislink-resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no name server answered within {seconds:.1f} s")
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    return [info[4] for info in found][:_MOST_ADDRESSES]


def tcp(exam: Examination) -> Verdict | None:
    """Check that a server listens there, and that this machine or its proxy can connect to it.

    Raises:
        BrokerError: the proxy cannot.
    """
    if not exam.addresses:
        return None
    refused: dict[Address, str] = {}
    for address in exam.addresses:
        through = exam.proxy_to(address)
        infos = exam.seen.resolved.get(address, []) if through is None else [_BY_PROXY]
        for info in infos:
            try:
                with _dial(exam, address, info, exam.patience(len(infos))):
                    exam.seen.reached[address] = info
                    break
            except OSError as error:
                refused[address] = "no answer" if isinstance(error, TimeoutError) else str(error)
            except BrokerError as error:
                if len(exam.addresses) == 1:
                    raise
                refused[address] = str(error)
    lost = "; ".join(
        f"{address}: {one_line(why)}"
        for address, why in refused.items()
        if address not in exam.seen.reached
    )
    remedy = (
        "'no answer' usually means a firewall, 'refused' a server that is not running or listens "
        "elsewhere: check host and port, and that this machine may connect to them" + _or_a_proxy()
    )
    found = ", ".join(map(str, exam.seen.reached))
    if not exam.seen.reached:
        return failed(lost, remedy)
    return warned(f"{found} reached; {lost}", remedy) if lost else passed(f"{found} reached")


def _or_a_proxy() -> str:
    """A hint to the proxy of the environment, which counts for nothing unless it is asked for."""
    choice = proxy_of_environment()
    if choice is None:
        return ""
    return (
        f"; {choice.named_by} is set here: if this machine reaches others by that proxy alone, set "
        f"{PROXY_SETTING}=env"
    )


def _dial(
    exam: Examination, address: Address, info: tuple[Any, ...], seconds: float
) -> socket.socket:
    """A connection to one of the broker's servers, at this socket address or by the proxy.

    Raises:
        OSError: there is none.
        BrokerError: there is none by the proxy.
    """
    if info == _BY_PROXY:
        return exam.broker.dial((address.host, address.port), seconds)
    family = socket.AF_INET6 if len(info) == 4 else socket.AF_INET
    dialled = socket.socket(family, socket.SOCK_STREAM)
    try:
        dialled.settimeout(seconds)
        dialled.connect(info)
    except BaseException:
        dialled.close()
        raise
    return dialled


# -- TLS ------------------------------------------------------------------------------------------


def client_certificate(exam: Examination) -> Verdict | None:
    """Check this party's certificate, if it has one: it is readable, valid, and matches its key.

    Raises:
        ConfigError: it cannot be read, or does not match its key.
    """
    if not exam.uses_tls:
        return None
    files = exam.broker.tls_files
    if files is None or files.certificate is None:
        return passed(
            "none set (REDISLINK_BROKER_TLS_CERT); needed only if the broker asks for one"
        )
    replace(files, ca=None).context()  # says what is wrong with file, key or pass phrase
    certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    who = f"this party's ({one_line(certificate.subject.rfc4514_string())})"
    return _dates(certificate, who, exam.case.clock(), Blame.OURS)


def tls(exam: Examination) -> Verdict | None:
    """Check that the broker speaks TLS, that we trust its certificate, and that it accepts ours.

    Raises:
        ConfigError: one of this party's files cannot be used.
    """
    if exam.scheme == "fakeredis":
        return None
    files = exam.broker.tls_files
    if files is None:
        return without_tls(list(exam.seen.reached.values()))
    versions = []
    for address, info in exam.seen.reached.items():
        context = files.context()
        try:
            with _handshake(exam, context, address, info) as (secured, certificate):
                versions.append(f"{address}: {secured.version()}")
                exam.seen.certificates[address] = certificate
        except ssl.SSLCertVerificationError as error:
            return _not_trusted(exam, address, info, error)
        except (OSError, ValueError) as error:
            return _no_tls(exam, address, error)
    if not files.check_certificate:
        return warned(
            f"{', '.join(versions)}; the URL has ssl_cert_reqs, so the broker's certificate is "
            "not checked: anybody on the way can pose as the broker and learn the password",
            "remove ssl_cert_reqs from the URL, and set REDISLINK_BROKER_TLS_CA",
        )
    return passed(f"{', '.join(versions)}; the certificate is trusted")


def without_tls(reached: list[tuple[Any, ...]]) -> Verdict:
    """Judge connections without TLS to these socket addresses."""
    if all(info != _BY_PROXY and loopback(info) for info in reached):
        return passed("not used, and not needed: the broker is on this machine")
    return warned(
        "not used: anybody on the way to the broker can learn its password and cut connections; "
        "messages of sealed sessions stay secret",
        "turn on TLS at the broker (tls-port, tls-cert-file and tls-key-file in its "
        "configuration), and write rediss:// in the URL",
    )


def server_certificate(exam: Examination) -> Verdict | None:
    """Check that the broker's certificate stays valid for a while."""
    if not exam.seen.certificates:
        return None
    found = [
        _dates(certificate, f"{address}'s", exam.case.clock(), Blame.BROKER)
        for address, certificate in exam.seen.certificates.items()
    ]
    return next((verdict for verdict in found if verdict.remedy), found[0])


def ca_certificate(exam: Examination) -> Verdict | None:
    """The CA that signed the broker's certificate goes on being valid for a while.

    Only this party's own file is looked at. While a CA is replaced it holds two, of which only the
    one that signed counts.
    """
    files = exam.broker.tls_files
    if files is None or files.ca is None or not exam.seen.certificates:
        return None
    known = x509.load_pem_x509_certificates(Path(files.ca).read_bytes())
    found = []
    for address, certificate in exam.seen.certificates.items():
        signers = [ca for ca in known if ca.subject == certificate.issuer] or known
        ca = max(signers, key=lambda ca: ca.not_valid_after_utc)
        who = f"that of {address} ({one_line(ca.subject.rfc4514_string())})"
        remedy = f"add the next CA's certificate to {files.ca}"
        found.append(_dates(ca, who, exam.case.clock(), Blame.OURS, remedy))
    return next((verdict for verdict in found if verdict.remedy), found[0])


def _dates(
    certificate: x509.Certificate,
    whose: str,
    now: float,
    blame: Blame,
    renew: str = "make a new one",
) -> Verdict:
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    today = datetime.datetime.fromtimestamp(now, datetime.UTC)
    days = (ends - today).total_seconds() / 86400
    if begins > today:
        return failed(
            f"{whose} is not valid before {begins:%Y-%m-%d %H:%M} UTC",
            "correct this machine's clock (see the check clock), or make a new certificate",
            blame,
        )
    if days < 0:
        return failed(f"{whose} expired on {ends:%Y-%m-%d}, {-days:.0f} days ago", renew, blame)
    if days < SOON_DAYS:
        return warned(
            f"{whose} expires on {ends:%Y-%m-%d}, in {days:.0f} days", f"{renew} before that"
        )
    return passed(f"{whose} is valid until {ends:%Y-%m-%d}, for {days:.0f} days")


@contextlib.contextmanager
def _handshake(
    exam: Examination, context: ssl.SSLContext, address: Address, info: tuple[Any, ...]
) -> Iterator[tuple[Secured, x509.Certificate]]:
    """Open a TLS connection, wait for an answer, and yield both it and the server's certificate.

    In TLS 1.3, a server refuses our certificate only after the handshake.

    Raises:
        OSError, ValueError: the connection failed.
    """
    with (
        _dial(exam, address, info, exam.patience()) as dialled,
        secure(dialled, context, address.host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True) or b""
        try:
            secured.sendall(pack((b"PING",)))
            answered = secured.recv(1)
        except ConnectionError:
            answered = b""
        if not answered:
            raise _ClosedAfterHandshake
        if answered == _HTTP:
            raise _HttpInside
        yield secured, x509.load_der_x509_certificate(shown)


def _not_trusted(
    exam: Examination, address: Address, info: tuple[Any, ...], error: ssl.SSLCertVerificationError
) -> Verdict:
    """Name the certificate's issuer, to distinguish a wrong CA file from a wrong server."""
    shown = _certificate_shown(exam, address, info)
    name = "" if shown is None else f" of {one_line(shown.issuer.rfc4514_string())}"
    why = one_line(error.verify_message)
    through = exam.proxy_to(address)
    if through is not None and _wants_http(exam, address, info):
        return _opened(exam, address, f": it shows a certificate{name}, which is not the broker's")
    if error.verify_code in (EXPIRED, NOT_YET_VALID) and shown is not None:
        return _dates(shown, f"{address}'s certificate", exam.case.clock(), Blame.BROKER)
    if error.verify_code in WRONG_NAME:
        return failed(
            f"{address}: its certificate is for another name ({why})",
            "use the certificate's host name in the URL, or have a certificate made for this host",
        )
    remedy = (
        "set REDISLINK_BROKER_TLS_CA to the PEM file of the CA that signed it; if it is set, the "
        "file is another CA's, or this is another server"
    )
    return failed(
        f"{address}: its certificate{name} is not trusted ({why})",
        remedy + _or_the_proxy(exam, address, "opens TLS with a certificate of its own"),
    )


def _or_the_proxy(exam: Examination, address: Address, does: str) -> str:
    return or_the_proxy(exam.proxy_to(address), does, (address.host, address.port))


def _wants_http(exam: Examination, address: Address, info: tuple[Any, ...]) -> bool:
    """Return True if HTTP answers inside TLS, whatever the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _handshake(exam, context, address, info):
            return False
    except _HttpInside:
        return True
    except (OSError, ValueError, BrokerError):
        return False


def _opened(exam: Examination, address: Address, how: str = "") -> Verdict:
    """Return the verdict on HTTP inside TLS."""
    through = exam.proxy_to(address)
    if through is None:
        return failed(
            f"{address}: a web server answers inside TLS", "check host and port in the URL"
        )
    return failed(
        f"{address}: proxy {through.label} opens TLS, and wants HTTP inside{how}",
        through.remedy((address.host, address.port)),
        Blame.OURS,
    )


def _certificate_shown(
    exam: Examination, address: Address, info: tuple[Any, ...]
) -> x509.Certificate | None:
    """Return the certificate that the server shows, trusted or not; send nothing else there."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            _dial(exam, address, info, exam.patience()) as dialled,
            secure(dialled, context, address.host) as secured,
        ):
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError, BrokerError):
        return None


def _no_tls(exam: Examination, address: Address, error: Exception) -> Verdict:
    text = one_line(getattr(error, "reason", None) or str(error))
    if isinstance(error, _HttpInside):
        return _opened(exam, address)
    if isinstance(error, _ClosedAfterHandshake) or about_our_certificate(error):
        return failed(
            f"{address}: the broker wants a client certificate, or a different one "
            f"({text or 'it closed the connection after the handshake'})",
            "set REDISLINK_BROKER_TLS_CERT and REDISLINK_BROKER_TLS_KEY to a certificate that the "
            "broker's CA signed, and to its key"
            + _or_the_proxy(exam, address, "opens TLS and ends what is not HTTP"),
            Blame.OURS,
        )
    if speaks_plain(*_to_sniff(exam, address)):
        text = "a Redis server answers there without TLS"
    return failed(
        f"{address}: no TLS connection ({text})",
        "check that the broker speaks TLS on this port; for a port without TLS, write redis://",
    )


def _to_sniff(exam: Examination, address: Address) -> tuple[Dial, tuple[str, int], float]:
    seconds = min(_SNIFF_SECONDS, exam.longest_wait)
    return exam.broker.dial, (address.host, address.port), seconds


# -- login ----------------------------------------------------------------------------------------


def login(exam: Examination) -> Verdict:
    """Check that a Redis server accepts our user and password; on a Cluster, each node in use.

    Raises: see `Examination.ask`.
    """
    where = ""
    try:
        places = exam.places()
        for place in places:
            with contextlib.suppress(BrokerPermissionError):  # refused, but logged in
                exam.ask(place.inbox, b"PING")
        if len(places) > 1:
            where = f", on each of {len(places)} nodes: {', '.join(at.label for at in places)}"
    except BrokerPermissionError:
        pass  # CLUSTER SLOTS: the check of the commands says what to do
    except BrokerAuthError as error:
        return failed_with(error, Blame.BROKER)
    except BrokerUnreachable as error:
        return _no_server(exam, failed_with(error, Blame.BROKER))
    if owner := exam.owner_of_user():
        return failed(
            f"as user {exam.user}{where}, which is {owner}'s, but this is {exam.case.party}",
            f"set REDISLINK_BROKER_URL, and REDISLINK_BROKER_PASSWORD_FILE if it is used, to "
            f"{exam.case.party}'s user and password",
        )
    return passed(f"as user {exam.user}{where}")


def _no_server(exam: Examination, verdict: Verdict) -> Verdict:
    """Add what the doctor knows about why a connection to the broker broke."""
    tls = [at for at in exam.seen.reached if not exam.uses_tls and speaks_tls(*_to_sniff(exam, at))]
    if tls:
        at = tls[0]
        if exam.proxy_to(at) is not None and _wants_http(exam, at, exam.seen.reached[at]):
            return _opened(exam, at)
        return failed(
            f"broker {exam.broker.label}: it speaks TLS on this port",
            "write rediss:// in the URL, and set REDISLINK_BROKER_TLS_CA",
        )
    if exam.has_several:
        return failed(
            verdict.text,
            "check that this server is running, and that this party reaches it at the address that "
            "the broker's servers announce, which need not be in the URL (cluster-announce-ip, "
            "replica-announce-ip, firewall)",
        )
    return failed(
        verdict.text,
        "check that a Redis or Valkey server is behind this host and port: something accepted the "
        "connection, but did not answer as one",
    )


def replicas(exam: Examination) -> Verdict | None:
    """Check that the servers that may take over accept this party's user.

    Raises: see `Broker.addresses`.
    """
    if not exam.has_several:
        return None
    used = {place.label for place in exam.places()}
    if not exam.broker.is_cluster:
        used = {str(Address(*exam.broker.address(b"")))}  # the master that sentinels name
    lost: list[str] = []
    knowing = 0
    for address in exam.broker.addresses():
        if str(Address(*address)) in used:
            continue
        exam.patience()
        try:
            exam.broker.on(address).open_answering().close()
        except BrokerPermissionError:
            knowing += 1  # it refuses PING, but knows the user
        except BrokerError as error:
            lost.append(failed_with(error, Blame.BROKER).text)
        else:
            knowing += 1
    if not lost:
        return passed(f"{knowing} other servers that may take over know user {exam.user}")
    return warned(
        f"{'; '.join(lost)}: if this server takes over, sessions cannot go on",
        "make sure that all parties reach every server of the broker, and make the users on those "
        f"that joined later: redislink acl --cluster {exam.case.settings.cluster_file or 'FILE'} "
        f"--apply {exam.broker.label_of_user('ADMIN')} --passwords DIR",
    )
