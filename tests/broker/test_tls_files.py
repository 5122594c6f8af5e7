"""TLS: this party's own files, and what a broker's certificate or port is said to lack."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.tls import TlsFiles
from redislink.errors import BrokerUnreachable, ConfigError
from tests.conftest import connect_as, make_cluster, quick_settings
from tests.support.tls_terminator import TlsTerminator

HOST = "127.0.0.1"
PHRASE = "a pass phrase"
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


class Files:
    """PEM files of a party's, right ones and wrong ones, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self["ca"]))
        for name in ("own", "other"):
            issued = ca.issue_cert(f"{name}@example.org")
            issued.cert_chain_pems[0].write_to_path(str(self[f"{name}-cert"]))
            issued.private_key_pem.write_to_path(str(self[f"{name}-key"]))
        key = load_pem_private_key(self["own-key"].read_bytes(), None)
        self["locked-key"].write_bytes(lock(key))
        self["both"].write_bytes(self["own-cert"].read_bytes() + self["own-key"].read_bytes())
        self["text"].write_text("no certificate, no key")
        self["empty"].touch()
        self["directory"].mkdir()
        for name, phrase in (("phrase", PHRASE), ("wrong-phrase", "wrong")):
            self[name].touch(0o600)
            self[name].write_text(f"{phrase}\n")

    def __getitem__(self, name: str) -> Path:
        return self._directory / name


def lock(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PHRASE.encode())
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as started:
        yield started


WRONG = {
    "CA": ({"ca": "text"}, "TLS_CA", "text", "contains no certificate"),
    "CA that is empty": ({"ca": "empty"}, "TLS_CA", "empty", "contains no certificate"),
    "CA that is a key": ({"ca": "own-key"}, "TLS_CA", "own-key", "contains no certificate"),
    "CA that is not there": ({"ca": "none"}, "TLS_CA", "none", "check the path"),
    "CA that is a directory": ({"ca": "directory"}, "TLS_CA", "directory", "is a directory"),
    "certificate": (
        {"certificate": "text", "key": "own-key"},
        *("TLS_CERT", "text", "contains no certificate"),
    ),
    "certificate that is not there": (
        {"certificate": "none", "key": "own-key"},
        *("TLS_CERT", "none", "check the path"),
    ),
    "key": ({"certificate": "own-cert", "key": "text"}, "TLS_KEY", "text", "no private key"),
    "no key": ({"certificate": "own-cert"}, "TLS_KEY", "own-cert", "no private key"),
    "no certificate": ({"key": "own-key"}, "TLS_KEY", "own-key", "TLS_CERT too"),
    "key that is a certificate": (
        {"certificate": "own-cert", "key": "ca"},
        *("TLS_KEY", "ca", "no private key"),
    ),
    "key of another certificate": (
        {"certificate": "own-cert", "key": "other-key"},
        *("TLS_KEY", "other-key", "do not match"),
    ),
    "key with a pass phrase": (
        {"certificate": "own-cert", "key": "locked-key"},
        *("TLS_KEY", "locked-key", "set REDISLINK_BROKER_TLS_KEY_PASSWORD_FILE"),
    ),
    "key with another pass phrase": (
        {"certificate": "own-cert", "key": "locked-key", "password_file": "wrong-phrase"},
        *("TLS_KEY", "locked-key", "does not open it"),
    ),
}
RIGHT = {
    "none": {},
    "CA": {"ca": "ca"},
    "certificate and key": {"certificate": "own-cert", "key": "own-key"},
    "both in one file": {"certificate": "both"},
    "with a pass phrase": {
        "certificate": "own-cert",
        "key": "locked-key",
        "password_file": "phrase",
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_used_is_named_with_its_setting(files: Files, case: str) -> None:
    """And nothing is asked at the terminal, nor dialled."""
    given, setting, name, words = WRONG[case]
    wrong = TlsFiles(**{field: files[value] for field, value in given.items()})
    with pytest.raises(ConfigError, match=words) as caught:
        wrong.context()
    assert f"REDISLINK_BROKER_{setting}" in str(caught.value)
    assert str(files[name]) in str(caught.value)
    names = {"ca": "tls_ca", "certificate": "tls_cert", "key": "tls_key"}
    options = {names.get(k, "tls_key_password_file"): files[v] for k, v in given.items()}
    with pytest.raises(ConfigError, match=words):
        Broker("rediss://127.0.0.1:1", **options).open()


@pytest.mark.parametrize("case", RIGHT)
def test_files_that_can_be_used(files: Files, case: str) -> None:
    TlsFiles(**{field: files[value] for field, value in RIGHT[case].items()}).context()


def test_a_session_with_a_wrong_file_is_a_mistake_in_the_settings(
    files: Files, server: EmbeddedBroker, tmp_path: Path
) -> None:
    with TlsTerminator(server.port, tmp_path) as tls:
        settings = quick_settings(broker_url=tls.url(), broker_tls_ca=files["text"])
        with pytest.raises(ConfigError, match="contains no certificate"):
            connect_as(make_cluster("", 2, broker=None), "alice", settings)
        assert tls.connections == 0


def test_a_key_with_a_pass_phrase(server: EmbeddedBroker, tmp_path: Path) -> None:
    phrase = tmp_path / "phrase"
    phrase.touch(0o600)
    phrase.write_text(f"{PHRASE}\n")
    with TlsTerminator(server.port, tmp_path, client_cert_required=True) as tls:
        key = load_pem_private_key(tls.client_key_file.read_bytes(), None)
        tls.client_key_file.write_bytes(lock(key))
        broker = Broker(
            tls.url(),
            timeout=5,
            tls_ca=tls.ca_file,
            tls_cert=tls.client_cert_file,
            tls_key=tls.client_key_file,
            tls_key_password_file=phrase,
        )
        broker.open_answering().close()
        # Later it is no mistake any more, but something that may be mended meanwhile.
        phrase.write_text("wrong\n")
        with pytest.raises(BrokerUnreachable, match="does not open it") as caught:
            broker.open_answering()
        assert str(phrase) in str(caught.value)
        phrase.unlink()
        with pytest.raises(BrokerUnreachable, match=f"password file {phrase}"):
            broker.open_answering()
        phrase.touch(0o600)
        phrase.write_text(f"{PHRASE}\n")
        broker.open_answering().close()


def why(broker: Broker) -> str:
    with pytest.raises(BrokerUnreachable) as caught:
        broker.open_answering()
    assert not caught.value.retryable, "trying again would only take time"
    return str(caught.value)


class TestTheBrokersCertificate:
    def test_of_another_ca(self, server: EmbeddedBroker, files: Files, tmp_path: Path) -> None:
        with TlsTerminator(server.port, tmp_path) as tls:
            said = why(Broker(tls.url(), timeout=5, tls_ca=files["ca"]))
        assert "its certificate is not trusted" in said
        assert "set REDISLINK_BROKER_TLS_CA" in said

    def test_that_has_ended(self, server: EmbeddedBroker, tmp_path: Path) -> None:
        with TlsTerminator(server.port, tmp_path, not_after=YESTERDAY) as tls:
            said = why(Broker(tls.url(), timeout=5, tls_ca=tls.ca_file))
        assert "its certificate has expired" in said
        assert "have it renewed on the server" in said
        assert "TLS_CA" not in said

    @pytest.mark.parametrize("host", [HOST, "localhost"])
    def test_for_another_host(self, server: EmbeddedBroker, tmp_path: Path, host: str) -> None:
        with TlsTerminator(server.port, tmp_path, names=["broker.example"]) as tls:
            url = tls.url().replace(HOST, host)
            said = why(Broker(url, timeout=5, tls_ca=tls.ca_file))
            assert "its certificate is for another host" in said
            assert "use the certificate's host name in the URL" in said
            assert "TLS_CA" not in said
            unchecked = Broker(f"{url}?ssl_check_hostname=no", timeout=5, tls_ca=tls.ca_file)
            unchecked.open_answering().close()

    def test_ours_is_wanted(self, server: EmbeddedBroker, tmp_path: Path) -> None:
        with TlsTerminator(server.port, tmp_path, client_cert_required=True) as tls:
            said = why(Broker(tls.url(), timeout=5, tls_ca=tls.ca_file))
        assert "it wants a client certificate, or a different one" in said
        assert "set REDISLINK_BROKER_TLS_CERT" in said


@pytest.mark.parametrize("credentials", ["", ":some-password@"])
class TestTheWrongKindOfPort:
    def test_a_tls_port_asked_without(
        self, server: EmbeddedBroker, tmp_path: Path, credentials: str
    ) -> None:
        for wanted in (False, True):
            with TlsTerminator(server.port, tmp_path, client_cert_required=wanted) as tls:
                said = why(Broker(f"redis://{credentials}{HOST}:{tls.port}", timeout=2))
            assert "it speaks TLS on this port: write rediss:// in the URL" in said

    def test_a_plain_port_asked_for_tls(self, server: EmbeddedBroker, credentials: str) -> None:
        said = why(Broker(f"rediss://{credentials}{HOST}:{server.port}", timeout=0.5))
        assert "it does not speak TLS on this port" in said
        assert "redis://" in said


def test_a_session_at_a_tls_port_without_tls(server: EmbeddedBroker, tmp_path: Path) -> None:
    with TlsTerminator(server.port, tmp_path) as tls:
        settings = quick_settings(broker_url=f"redis://{HOST}:{tls.port}", reply_timeout=2)
        with pytest.raises(BrokerUnreachable, match="it speaks TLS on this port"):
            connect_as(make_cluster("", 2, broker=None), "alice", settings)


class TestWhoIsTrusted:
    """The CA that is named and no other: a company that looks into TLS is a CA of the system's."""

    @pytest.fixture
    def other_ca(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
        """A CA of the system's."""
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(tmp_path / "system.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
        return ca

    def test_the_system_s_only_if_none_is_named(self, other_ca: trustme.CA, files: Files) -> None:
        shake_hands(TlsFiles(), other_ca)
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(TlsFiles(ca=files["ca"]), other_ca)

    def test_an_intermediate_one_will_do(self, other_ca: trustme.CA, tmp_path: Path) -> None:
        child = other_ca.create_child_ca()
        child.cert_pem.write_to_path(str(tmp_path / "child.pem"))
        shake_hands(TlsFiles(ca=tmp_path / "child.pem"), child)
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(TlsFiles(ca=tmp_path / "child.pem"), other_ca.create_child_ca())


def shake_hands(files: TlsFiles, ca: trustme.CA) -> None:
    """Do a handshake with a server whose certificate this CA has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("host").configure_cert(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(there, back, server_side=True)
    client = files.context().wrap_bio(back, there, server_hostname="host")
    for end in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert client.version()
