"""Checks of the way to the broker: name, TCP, TLS and its certificates, login.

The sockets here are the doctor's own, as it wants to tell apart what a connection of redislink's
does in one go. They are set up alike, say nothing but PING, and are closed at once.
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
"""A certificate that ends sooner is worth a warning."""
_MOST_ADDRESSES: Final = 4
_SNIFF_SECONDS: Final = 1.0
_HTTP: Final = b"H"
"""How HTTP answers whatever it does not understand; no reply of Redis begins so."""
_BY_PROXY: Final = ()
"""Stands for the socket address of a server that is dialled through a proxy."""


class _ClosedAfterHandshake(ConnectionError):
    """How the refusal of our certificate also shows: in TLS 1.3 it comes late, or gets lost."""


class _HttpInside(ConnectionError):
    """What answers after the handshake speaks HTTP."""


# -- the proxy, name resolution and TCP -----------------------------------------------------------


def proxy(exam: Examination) -> Verdict | None:
    """This machine reaches the proxy through which the broker is to be dialled.

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
    """Every host in the URL that is dialled from here has an address."""
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
        "check the host's spelling in the URL, and the name servers of this machine "
        f"(/etc/resolv.conf, a VPN){_or_a_proxy()}"
    )
    if not exam.seen.resolved:
        return failed(lost, remedy)
    return warned(f"{found}; {lost}", remedy) if missing else passed(found)


def _resolve(address: Address, seconds: float) -> list[tuple[Any, ...]]:
    """Socket addresses of a host; getaddrinfo alone would take as long as it likes.

    Raises:
        OSError, UnicodeError: there is none, or the name servers do not answer.
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
    """Something listens there, and this machine may dial out to it, or its proxy does.

    Raises:
        BrokerError: the proxy does not.
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
        "'no answer' is mostly a firewall, 'refused' a server that does not run or listens on "
        "another port or address: check host and port, and that this machine may dial out to it"
        + _or_a_proxy()
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
    """This party's own certificate, if it has one: it can be read, is valid, fits its key.

    Raises:
        ConfigError: it cannot be read, or does not fit.
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
    """The broker speaks TLS, its certificate is trusted, and it takes ours.

    Raises:
        ConfigError: a file of this party's cannot be used.
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
            "take ssl_cert_reqs out of the URL, and set REDISLINK_BROKER_TLS_CA",
        )
    return passed(f"{', '.join(versions)}; the certificate is trusted")


def without_tls(reached: list[tuple[Any, ...]]) -> Verdict:
    """Whether it is right that connections to these socket addresses are not TLS."""
    if all(info != _BY_PROXY and loopback(info) for info in reached):
        return passed("not used, and not needed: the broker is on this machine")
    return warned(
        "not used: whoever is on the way to the broker can learn its password, and cut "
        "connections; messages of sealed sessions are secret all the same",
        "let the broker speak TLS (tls-port, tls-cert-file and tls-key-file in its configuration), "
        "and write rediss:// in the URL",
    )


def server_certificate(exam: Examination) -> Verdict | None:
    """The broker's certificate goes on being valid for a while."""
    if not exam.seen.certificates:
        return None
    found = [
        _dates(certificate, f"{address}'s", exam.case.clock(), Blame.BROKER)
        for address, certificate in exam.seen.certificates.items()
    ]
    return next((verdict for verdict in found if verdict.remedy), found[0])


def _dates(certificate: x509.Certificate, whose: str, now: float, blame: Blame) -> Verdict:
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    today = datetime.datetime.fromtimestamp(now, datetime.UTC)
    days = (ends - today).total_seconds() / 86400
    if begins > today:
        return failed(
            f"{whose} is valid from {begins:%Y-%m-%d %H:%M} UTC on, which is yet to come",
            "set the clock of this machine right (see the check clock), or make a new certificate",
            blame,
        )
    if days < 0:
        return failed(
            f"{whose} ended on {ends:%Y-%m-%d}, {-days:.0f} days ago", "make a new one", blame
        )
    if days < SOON_DAYS:
        return warned(
            f"{whose} ends on {ends:%Y-%m-%d}, in {days:.0f} days", "make a new one before that"
        )
    return passed(f"{whose} is valid until {ends:%Y-%m-%d}, for {days:.0f} days")


@contextlib.contextmanager
def _handshake(
    exam: Examination, context: ssl.SSLContext, address: Address, info: tuple[Any, ...]
) -> Iterator[tuple[Secured, x509.Certificate]]:
    """A TLS connection on which the server has answered; and its certificate.

    In TLS 1.3 a server's refusal of our certificate comes only after the handshake.

    Raises:
        OSError, ValueError: it cannot be had.
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
    """Says whose certificate it is, so that a wrong CA file is told from a wrong server."""
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
            "write the host in the URL as it stands in the certificate, or have one made for it",
        )
    remedy = (
        "set REDISLINK_BROKER_TLS_CA to the PEM file of the CA that signed it; if it is set, that "
        "file is of another CA, or this is another server"
    )
    if through is None:
        return failed(f"{address}: its certificate{name} is not trusted ({why})", remedy)
    return failed(
        f"{address}: its certificate{name} is not trusted ({why}); it may be the proxy's own",
        f"{remedy}; or the proxy opens TLS, and then "
        + through.remedy((address.host, address.port)),
    )


def _wants_http(exam: Examination, address: Address, info: tuple[Any, ...]) -> bool:
    """Whether HTTP answers inside TLS, whatever certificate is shown."""
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
    """For HTTP inside TLS."""
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
    """Whatever certificate is shown there, trusted or not; nothing is sent to who has it."""
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
            "broker's CA signed, and its key",
            Blame.OURS,
        )
    if speaks_plain(*_to_sniff(exam, address)):
        text = "a Redis server answers there without TLS"
    return failed(
        f"{address}: no TLS connection ({text})",
        "check that this is the port where the broker speaks TLS; without TLS, write redis://",
    )


def _to_sniff(exam: Examination, address: Address) -> tuple[Dial, tuple[str, int], float]:
    seconds = min(_SNIFF_SECONDS, exam.longest_wait)
    return exam.broker.dial, (address.host, address.port), seconds


# -- login ----------------------------------------------------------------------------------------


def login(exam: Examination) -> Verdict:
    """A Redis server answers, and takes our user and password: on a Cluster each that we use.

    Raises: as `Examination.ask`.
    """
    where = ""
    try:
        places = exam.places()
        for place in places:
            with contextlib.suppress(BrokerPermissionError):  # it knows us
                exam.ask(place.inbox, b"PING")
        if len(places) > 1:
            where = f", on each of {len(places)} nodes: {', '.join(at.label for at in places)}"
    except BrokerPermissionError:
        pass  # CLUSTER SLOTS: the check commands says what to do
    except BrokerAuthError as error:
        return failed_with(error, Blame.BROKER)
    except BrokerUnreachable as error:
        return _no_server(exam, failed_with(error, Blame.BROKER))
    if owner := exam.owner_of_user():
        return warned(
            f"as user {exam.user}{where}, which is {owner}'s, and this is {exam.case.party}",
            f"set REDISLINK_BROKER_URL to the one with {exam.case.party}'s user and password",
        )
    return passed(f"as user {exam.user}{where}")


def _no_server(exam: Examination, verdict: Verdict) -> Verdict:
    """Adds what the doctor knows of why a connection to the broker broke."""
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
            "check that this server runs, and that this party reaches it under the address that "
            "the broker's servers tell, which need not be one of the URL's (cluster-announce-ip, "
            "replica-announce-ip, firewall)",
        )
    return failed(
        verdict.text,
        "check that a Redis or Valkey server is behind this host and port: something took the "
        "connection, and did not answer as one",
    )


def replicas(exam: Examination) -> Verdict | None:
    """Servers that may take over would let this party in.

    Raises: as `Broker.addresses`.
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
            knowing += 1  # its PING is refused, not the user
        except BrokerError as error:
            lost.append(failed_with(error, Blame.BROKER).text)
        else:
            knowing += 1
    if not lost:
        return passed(f"{knowing} further servers know user {exam.user}, should one take over")
    return warned(
        f"{'; '.join(lost)}: a session that has to go there cannot",
        "see to it that all parties reach every server of the broker, and make the users on those "
        "that joined later (redislink acl --cluster FILE --apply URL)",
    )
