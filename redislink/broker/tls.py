"""TLS to the broker: this party's own files, and what a failed handshake means.

Rules:
- A fault in one of this party's files is a `ConfigError` that names the file and its setting. It is
  on this machine, so retrying cannot help.
- Nothing here asks at the terminal for a pass phrase.
- To find out what a port speaks, this module sends a TLS hello or PING, and no credentials.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redislink.broker.credentials import read_password
from redislink.broker.dial import Dial
from redislink.broker.nested_tls import NestedTls
from redislink.broker.url import Address
from redislink.errors import BrokerError, ConfigError
from redislink.files import open_regular
from redislink.text import one_line

CA_SETTING: Final = "REDISLINK_BROKER_TLS_CA"
EXPIRED: Final = 10
NOT_YET_VALID: Final = 9
WRONG_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR_… for a host name and for an IP address that is not in the certificate."""
OTHERWISE_TRUSTED: Final = (EXPIRED, NOT_YET_VALID, *WRONG_NAME)
"""The certificate is of the CA that we know."""
Secured = ssl.SSLSocket | NestedTls
"""A connection with TLS."""
_SNIFF_SECONDS: Final = 1.0
_PLAIN: Final = b"PING\r\n"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, and what to check; None stands for no file.

    Attributes:
        ca: the CA that signed the broker's certificate; None uses the system's CAs.
        certificate: this party's certificate.
        key: its private key; None looks for the key in the certificate's file.
        password_file: a file whose first line is the key's pass phrase.
        check_certificate: False accepts any certificate from the broker.
        check_name: False accepts a certificate for another host.
        ca_setting: the setting that names the CA, for messages.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    password_file: str | Path | None = None
    check_certificate: bool = True
    check_name: bool = True
    ca_setting: str = CA_SETTING

    def pass_phrase(self) -> str:
        """Return the key's pass phrase; empty if it has none.

        Raises:
            ConfigError: the pass phrase's file cannot be read.
        """
        return "" if self.password_file is None else read_password(self.password_file)

    def context(self) -> ssl.SSLContext:
        """Return an SSL context made from these files.

        Raises:
            ConfigError: a file cannot be used; the message names it.
        """
        context = self._trusting()
        context.check_hostname = self.check_certificate and self.check_name
        if not self.check_certificate:
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is None and self.key is not None:
            raise ConfigError(
                f"REDISLINK_BROKER_TLS_KEY {self.key}: set without a certificate: set "
                "REDISLINK_BROKER_TLS_CERT too"
            )
        if self.certificate is not None:
            self._load_own(context, self.certificate)
        return context

    def _trusting(self) -> ssl.SSLContext:
        """Return a context that trusts this CA, or else the system's.

        Not both: the CA of a company that looks into TLS is often among the system's.
        """
        if self.ca is None:
            return ssl.create_default_context()
        _check_readable(self.ca_setting, self.ca)
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
        except (OSError, ValueError):
            raise ConfigError(
                f"{self.ca_setting} {self.ca}: contains no certificate in PEM form: set it to the "
                "PEM file of the CA that signed the server's certificate"
            ) from None
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root
        return context

    def _load_own(self, context: ssl.SSLContext, certificate: str | Path) -> None:
        key = certificate if self.key is None else self.key
        _check_readable("REDISLINK_BROKER_TLS_CERT", certificate)
        _check_readable("REDISLINK_BROKER_TLS_KEY", key)
        was_asked: list[bool] = []
        phrase = self.pass_phrase()

        def answer() -> str:
            was_asked.append(True)
            return phrase

        try:
            context.load_cert_chain(str(certificate), str(key), password=answer)
        except (OSError, ValueError) as error:
            raise ConfigError(
                self._why_not(certificate, key, error, encrypted=bool(was_asked))
            ) from None

    def _why_not(
        self, certificate: str | Path, key: str | Path, error: Exception, *, encrypted: bool
    ) -> str:
        reason = str(getattr(error, "reason", None) or "")
        if "KEY_VALUES_MISMATCH" in reason:
            return (
                f"REDISLINK_BROKER_TLS_CERT {certificate} and REDISLINK_BROKER_TLS_KEY {key}: do "
                "not match: set both to PEM files that belong together"
            )
        if encrypted and self.password_file is None:
            return (
                f"REDISLINK_BROKER_TLS_KEY {key}: has a pass phrase: set "
                "REDISLINK_BROKER_TLS_KEY_PASSWORD_FILE to a file that contains it, or remove it "
                "with openssl pkey"
            )
        if encrypted:
            return (
                f"REDISLINK_BROKER_TLS_KEY {key}: the pass phrase in {self.password_file} does not "
                "open it: check REDISLINK_BROKER_TLS_KEY_PASSWORD_FILE"
            )
        if not _has_certificate(certificate):
            return (
                f"REDISLINK_BROKER_TLS_CERT {certificate}: contains no certificate in PEM form: "
                "set it to this party's certificate"
            )
        return (
            f"REDISLINK_BROKER_TLS_KEY {key}: contains no private key in PEM form: set it to the "
            "key of this party's certificate"
        )


def _check_readable(setting: str, path: str | Path) -> None:
    try:
        open_regular(path).close()
    except OSError as error:
        raise ConfigError(
            f"{setting} {path}: {error.strerror or error}: check the path and its mode"
        ) from None


def _has_certificate(path: str | Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=str(path))
    except (OSError, ValueError):
        return False
    return True


def secure(dialled: socket.socket, context: ssl.SSLContext, host: str) -> Secured:
    """Put TLS on a connection, which is closed if that fails; it may have TLS already.

    Args:
        dialled: the connection; its timeout holds for each wait of the handshake.
        context: as `TlsFiles.context` makes it.
        host: the server's name, for which its certificate must be.

    Raises:
        OSError, ValueError: there was no handshake, or the certificate is not trusted.
    """
    try:
        if isinstance(dialled, ssl.SSLSocket):
            return NestedTls(dialled, context, host)
        return context.wrap_socket(dialled, server_hostname=host)
    except BaseException:
        dialled.close()
        raise


def verification_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return why the server's certificate was not accepted, from an error or its causes."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def about_our_certificate(error: BaseException | None) -> bool:
    """Return True for alerts of a server that got no certificate of ours, or distrusts it."""
    while error is not None:
        reason = str(getattr(error, "reason", None) or "").upper()
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return True
        error = error.__cause__ or error.__context__
    return False


def why_not_trusted(error: ssl.SSLCertVerificationError, ca_setting: str = CA_SETTING) -> str:
    """Return what is wrong with a server's certificate, and what to do."""
    why = one_line(error.verify_message, 200)
    if error.verify_code == EXPIRED:
        return (
            f"its certificate has expired ({why}): have it renewed on the server, or check the "
            "clock of this machine"
        )
    if error.verify_code == NOT_YET_VALID:
        return (
            f"its certificate is not valid yet ({why}): check the clock of this machine, and the "
            "certificate's start date"
        )
    if error.verify_code in WRONG_NAME:
        return (
            f"its certificate is for another host ({why}): use the certificate's host name in the "
            "URL, or have a certificate made for this host"
        )
    return (
        f"its certificate is not trusted ({why}): set {ca_setting} to the PEM file of the CA that "
        "signed it; if it is set, the file is another CA's, or this is another server"
    )


def never_connected(error: BaseException) -> bool:
    """Return True if the error shows that there was no TCP connection at all."""
    first = error.__cause__ or error.__context__
    return isinstance(first, socket.gaierror | ConnectionRefusedError)


def speaks_tls(dial: Dial, address: Address, seconds: float = _SNIFF_SECONDS) -> bool:
    """Return True if the server begins a TLS handshake, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            dial(address, seconds) as dialled,
            secure(dialled, context, address[0]),
        ):
            return True
    except (OSError, ValueError, BrokerError) as error:
        return about_our_certificate(error)  # such an alert is TLS


def speaks_plain(dial: Dial, address: Address, seconds: float = _SNIFF_SECONDS) -> bool:
    """Return True if a Redis server answers there without TLS."""
    with contextlib.suppress(OSError, BrokerError), dial(address, seconds) as dialled:
        dialled.sendall(_PLAIN)
        return dialled.recv(1) in (b"+", b"-")
    return False
