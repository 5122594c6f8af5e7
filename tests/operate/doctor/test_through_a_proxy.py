"""The doctor on the way through an egress proxy: each way in which it can be closed."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trustme

from redislink.broker import EmbeddedBroker
from redislink.operate.doctor import Blame, Level
from tests.operate.doctor.conftest import Ask
from tests.support.scripted_proxy import HOST, ScriptedProxy, answering, tunnel_to
from tests.support.tls_terminator import TlsTerminator

URL = "redis://:s3cret@broker.invalid:6379/0"
OK = b"HTTP/1.1 200 OK\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Inspection:
    """A proxy that opens TLS with a certificate of its own, and speaks HTTP inside, or hangs up."""

    def __init__(self, directory: Path, answers: bool = True) -> None:
        self._answers = answers
        ca = trustme.CA(organization_name="Corporate TLS inspection")
        self.ca_file = directory / "inspection.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("broker.invalid").configure_cert(self._context)

    def __call__(self, line: socket.socket) -> None:
        line.sendall(OK)
        with self._context.wrap_socket(line, server_side=True) as secured:
            if secured.recv(1 << 16) and self._answers:
                secured.sendall(BAD_REQUEST)
                secured.recv(1)


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_way_that_is_open(one_server: EmbeddedBroker, doctor: Ask) -> None:
    with ScriptedProxy(tunnel_to(one_server.port)) as proxy:
        told = doctor("redis://broker.invalid:6379", broker_proxy=proxy.url("hospital:s3cret@"))
    told.check("proxy", Level.PASS, proxy.url(), "from REDISLINK_BROKER_PROXY", "resolves")
    told.check("TCP", Level.PASS, "broker.invalid:6379 reached")
    told.check("TLS", Level.WARN, "anybody on the way")
    told.check("login", Level.PASS)
    told.check("largest element", Level.PASS)
    assert "name resolution" not in str(told.report.findings)
    assert "s3cret" not in str(told.report)


def test_without_one_nothing_is_said(one_server: EmbeddedBroker, doctor: Ask) -> None:
    assert "proxy" not in str(doctor(one_server.url).report)


def test_tls_inside(one_server: EmbeddedBroker, doctor: Ask, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    with (
        TlsTerminator(one_server.port, tmp_path, names=["broker.invalid"]) as tls,
        ScriptedProxy(tunnel_to(tls.port)) as scripted,
        TlsTerminator(scripted.port, tmp_path / "outer") as outer,
    ):
        told = doctor(
            "rediss://broker.invalid:6379",
            broker_proxy=f"https://{HOST}:{outer.port}",
            broker_proxy_tls_ca=outer.ca_file,
            broker_tls_ca=tls.ca_file,
        )
    told.check("proxy", Level.PASS, f"https://{HOST}:{outer.port}")
    told.check("TLS", Level.PASS, "broker.invalid:6379: TLSv1.3", "trusted")
    told.check("server certificate", Level.PASS)
    told.check("login", Level.PASS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Authenticate\r\n\r\n", ("user or password not accepted", "check the user")),
        (
            b"HTTP/1.1 403 Filtered\r\n\r\n",
            ("refused to connect to broker.invalid:6379", "ask who"),
        ),
    ],
)
def test_a_proxy_that_does_not_let_us_through(
    doctor: Ask, answer: bytes, words: tuple[str, ...]
) -> None:
    with ScriptedProxy(answering(answer)) as proxy:
        told = doctor(URL, broker_proxy=proxy.url("hospital:s3cret@"))
    told.check("proxy", Level.PASS)
    finding = told.check("TCP", Level.FAIL, f"proxy {proxy.url()}", *words)
    assert finding.blame is Blame.OURS
    assert told.not_tried["login"] == "TCP failed"


def test_a_proxy_that_does_not_reach_the_broker(doctor: Ask) -> None:
    with ScriptedProxy(answering(b"HTTP/1.1 504 Timed out\r\n\r\n")) as proxy:
        told = doctor(URL, broker_proxy=proxy.url())
    finding = told.check("TCP", Level.FAIL, "does not reach broker.invalid:6379 (504 Timed out)")
    assert finding.blame is Blame.BROKER


def test_a_proxy_that_is_not_there(doctor: Ask) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        told = doctor(URL, broker_proxy=f"http://{HOST}:{port}")
    finding = told.check("proxy", Level.FAIL, f"http://{HOST}:{port}", "refused", "check that it")
    assert finding.blame is Blame.OURS
    assert told.not_tried["TCP"] == "proxy failed"
    told = doctor(URL, broker_proxy="http://proxy.invalid:3128")
    told.check("proxy", Level.FAIL, "its name does not resolve", "REDISLINK_BROKER_PROXY")


def test_one_of_the_environment_counts_only_if_it_is_asked_for(
    one_server: EmbeddedBroker, doctor: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedProxy(tunnel_to(one_server.port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("hospital:s3cret@"))
        told = doctor(URL)
        told.check("name resolution", Level.FAIL, "HTTPS_PROXY is set here", "BROKER_PROXY=env")
        assert proxy.heads == []
        told = doctor("redis://broker.invalid:6379", broker_proxy="env")
        told.check("proxy", Level.PASS, f"{proxy.url()}, from HTTPS_PROXY")
        told.check("login", Level.PASS)
        monkeypatch.setenv("NO_PROXY", ".invalid")
        told = doctor(URL, broker_proxy="env")
        told.check("name resolution", Level.FAIL, "broker.invalid")


@pytest.mark.parametrize("trusted", [False, True])
def test_a_proxy_that_opens_tls(doctor: Ask, tmp_path: Path, trusted: bool) -> None:
    inspection = Inspection(tmp_path)
    ca = {"broker_tls_ca": inspection.ca_file} if trusted else {}
    with ScriptedProxy(inspection) as proxy:
        told = doctor(URL.replace("redis:", "rediss:"), broker_proxy=proxy.url(), **ca)
    finding = told.check(
        "TLS", Level.FAIL, f"proxy {proxy.url()} opens TLS, and wants HTTP inside",
        "let CONNECT to broker.invalid:6379 through untouched",
    )  # fmt: skip
    assert finding.blame is Blame.OURS
    assert trusted or "Corporate TLS inspection" in finding.text


def test_a_proxy_that_wants_http_or_tls_inside(doctor: Ask, tmp_path: Path) -> None:
    def http(line: socket.socket) -> None:
        line.sendall(OK)
        line.recv(1 << 16)
        line.sendall(BAD_REQUEST)
        line.recv(1)

    with ScriptedProxy(http) as proxy:
        told = doctor(URL, broker_proxy=proxy.url())
    finding = told.check("login", Level.FAIL, "proxy wants HTTP inside", "through untouched")
    assert finding.blame is Blame.OURS
    with ScriptedProxy(Inspection(tmp_path)) as proxy:
        told = doctor(URL, broker_proxy=proxy.url())
    told.check("login", Level.FAIL, "opens TLS, and wants HTTP inside", "through untouched")


def test_a_proxy_that_may_be_what_ends_the_connection(doctor: Ask, tmp_path: Path) -> None:
    """As a server does that wants a client certificate: which of the two cannot be told."""
    inspection = Inspection(tmp_path, answers=False)
    with ScriptedProxy(inspection) as proxy:
        told = doctor(
            URL.replace("redis:", "rediss:"),
            broker_proxy=proxy.url(),
            broker_tls_ca=inspection.ca_file,
        )
        other = doctor(URL.replace("redis:", "rediss:"), broker_proxy=proxy.url())
    told.check("TLS", Level.FAIL, "wants a client certificate", "or the proxy opens TLS and ends")
    other.check("TLS", Level.FAIL, "is not trusted", "or the proxy opens TLS with a certificate")
