"""The doctor on the way to the broker: each way in which it can be closed, with what is said."""

from __future__ import annotations

import datetime
import socket
import threading
import time

import pytest
import trustme

from redislink import RedisLinkSettings
from redislink.broker import EmbeddedBroker
from redislink.operate.doctor import Blame, Case, Level, network
from redislink.operate.doctor.examination import Examination
from redislink.operate.doctor.network import without_tls
from redislink.testing.proxy import Proxy
from tests.conftest import make_cluster
from tests.operate.doctor.conftest import Ask
from tests.support.tls_terminator import TlsTerminator

HOST = "127.0.0.1"
NOW = datetime.datetime.now(datetime.UTC)


def in_days(days: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=days)


class TestReach:
    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid"])
    def test_a_name_that_does_not_resolve(self, doctor: Ask, host: str) -> None:
        told = doctor(f"redis://:s3cret@{host}:6379/0")
        finding = told.check("name resolution", Level.FAIL, host, "check the spelling of the host")
        assert finding.blame is Blame.BROKER
        assert told.not_tried["TCP"] == "name resolution failed"
        assert told.not_tried["login"] == "name resolution failed"

    def test_a_closed_port(self, doctor: Ask) -> None:
        with socket.socket() as taken:
            taken.bind((HOST, 0))  # bound and not listening: refuses
            port = taken.getsockname()[1]
            told = doctor(f"redis://{HOST}:{port}")
        told.check("name resolution", Level.PASS)
        told.check("TCP", Level.FAIL, f"{HOST}:{port}", "refused", "check host and port")
        assert told.not_tried["commands"] == "TCP failed"

    def test_one_host_of_several(self, one_server: EmbeddedBroker, doctor: Ask) -> None:
        # No broker of such a URL can be had here: only what does not log in is looked at.
        hosts = f"{HOST}:{one_server.port},no-such-host.invalid:1,{HOST}:1"
        settings = RedisLinkSettings(_env_file=None, broker_url=f"redis+sentinel://:pw@{hosts}/x")
        exam = Examination(Case(settings, make_cluster(""), "alice"), 5)
        names = network.name_resolution(exam)
        reached = network.tcp(exam)
        assert names is not None
        assert names.level is Level.WARN
        assert "no-such-host.invalid" in names.text
        assert reached is not None
        assert reached.level is Level.WARN
        assert f"{HOST}:{one_server.port} reached; {HOST}:1: " in reached.text

    def test_nobody_answers(self, doctor: Ask) -> None:
        with socket.create_server((HOST, 0)) as mute:
            started = time.monotonic()
            told = doctor(f"redis://{HOST}:{mute.getsockname()[1]}", reply_timeout=0.3)
            assert time.monotonic() - started < 5
        told.check("TCP", Level.PASS)
        told.check("login", Level.FAIL, "timed out", "check that a Redis or Valkey server")
        assert told.not_tried["eviction"] == "login failed"

    def test_a_line_that_stalls_in_the_middle(
        self, one_server: EmbeddedBroker, doctor: Ask
    ) -> None:
        with Proxy(one_server.port) as proxy:

            def clock_that_stalls() -> float:
                for connection in proxy.connections:
                    connection.stall()
                return NOW.timestamp()

            started = time.monotonic()
            told = doctor(proxy.url(), reply_timeout=0.3, clock=clock_that_stalls)
            assert time.monotonic() - started < 8
        told.check("clock", Level.FAIL, "timed out")


class TestTls:
    def test_it_is_right(self, one_server: EmbeddedBroker, doctor: Ask, tmp_path) -> None:
        with TlsTerminator(one_server.port, tmp_path, client_cert_required=True) as tls:
            told = doctor(
                tls.url(),
                broker_tls_ca=tls.ca_file,
                broker_tls_cert=tls.client_cert_file,
                broker_tls_key=tls.client_key_file,
            )
        told.check("TLS", Level.PASS, "TLSv1.3; the certificate is trusted")
        told.check("server certificate", Level.PASS, "is valid until")
        told.check("client certificate", Level.PASS, "this party's", "is valid until")
        told.check("login", Level.PASS)
        told.check("bandwidth", Level.PASS)
        assert told.not_tried == {}

    def test_another_ca(self, one_server: EmbeddedBroker, doctor: Ask, tmp_path) -> None:
        (tmp_path / "other").mkdir()
        other = TlsTerminator(1, tmp_path / "other")
        with TlsTerminator(one_server.port, tmp_path) as tls:
            told = doctor(tls.url(), broker_tls_ca=other.ca_file)
            none = doctor(tls.url())
        for seen in (told, none):
            seen.check(
                *("TLS", Level.FAIL, "is not trusted", "trustme"),
                "set REDISLINK_BROKER_TLS_CA to the PEM file of the CA that signed it",
            )
            assert seen.not_tried["login"] == "TLS failed"

    def test_a_ca_file_that_is_none(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        path = tmp_path / "ca.pem"
        with TlsTerminator(one_server.port, tmp_path) as tls:
            path.write_text("no certificate")
            told = doctor(tls.url(), broker_tls_ca=path)
        finding = told.check("TLS", Level.FAIL, f"TLS_CA {path}: contains no certificate")
        assert finding.blame is Blame.OURS

    def test_a_certificate_that_has_ended(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        with TlsTerminator(one_server.port, tmp_path, not_after=in_days(-3.01)) as tls:
            told = doctor(tls.url(), broker_tls_ca=tls.ca_file)
        date = f"{in_days(-3.01):%Y-%m-%d}"
        told.check(
            "TLS", Level.FAIL, f"certificate expired on {date}, 3 days ago", "make a new one"
        )

    def test_a_certificate_that_ends_soon(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        with TlsTerminator(one_server.port, tmp_path, not_after=in_days(10.01)) as tls:
            told = doctor(tls.url(), broker_tls_ca=tls.ca_file)
            later = doctor(tls.url(), broker_tls_ca=tls.ca_file, clock=in_days(11).timestamp)
            before = doctor(tls.url(), broker_tls_ca=tls.ca_file, clock=lambda: 0.0)
        date = f"{in_days(10.01):%Y-%m-%d}"
        told.check("TLS", Level.PASS)
        told.check(
            "server certificate", Level.WARN, f"expires on {date}, in 10 days", "make a new one"
        )
        told.check("login", Level.PASS)
        later.check("server certificate", Level.FAIL, f"expired on {date}, 1 days ago")
        before.check("server certificate", Level.FAIL, "not valid before", "correct this machine's")

    def test_a_ca_that_ends_soon(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path, monkeypatch
    ) -> None:
        ends = datetime.datetime(2037, 6, 1, tzinfo=datetime.UTC)
        monkeypatch.setattr(trustme, "DEFAULT_EXPIRY", ends)  # of the CA
        late = ends + datetime.timedelta(days=3650)
        with TlsTerminator(one_server.port, tmp_path, not_after=late) as tls:
            for days, level in ((31, Level.PASS), (29, Level.WARN), (-1, Level.FAIL)):
                clock = (ends - datetime.timedelta(days=days)).timestamp
                told = doctor(tls.url(), broker_tls_ca=tls.ca_file, clock=clock)
                finding = told.check("CA certificate", level, f"that of 127.0.0.1:{tls.port} (")
                assert (str(tls.ca_file) in finding.remedy) == (level is not Level.PASS)
                told.check("server certificate", Level.PASS)
            # Its successor is there already, and signs nothing yet.
            (tmp_path / "next").mkdir()
            following = TlsTerminator(1, tmp_path / "next").ca_file.read_text()
            tls.ca_file.write_text(following + tls.ca_file.read_text())
            told = doctor(tls.url(), broker_tls_ca=tls.ca_file, clock=clock)
            told.check("CA certificate", Level.FAIL, "1 days ago")

    def test_a_certificate_for_another_name(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        with TlsTerminator(one_server.port, tmp_path, names=["broker.example"]) as tls:
            told = doctor(tls.url(), broker_tls_ca=tls.ca_file)
        told.check("TLS", Level.FAIL, "is for another name", "use the certificate's host name")

    def test_a_broker_that_wants_a_certificate(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = TlsTerminator(1, tmp_path / "other")
        with TlsTerminator(one_server.port, tmp_path, client_cert_required=True) as tls:
            told = doctor(tls.url(), broker_tls_ca=tls.ca_file)
            strange = doctor(
                tls.url(),
                broker_tls_ca=tls.ca_file,
                broker_tls_cert=other.client_cert_file,
                broker_tls_key=other.client_key_file,
            )
        told.check("client certificate", Level.PASS, "none set")
        for seen in (told, strange):
            finding = seen.check(
                "TLS", Level.FAIL, "wants a client certificate, or a different one"
            )
            assert "REDISLINK_BROKER_TLS_CERT" in finding.remedy

    @pytest.mark.parametrize(
        ("days", "level", "words"),
        [(-1.01, Level.FAIL, "1 days ago"), (20.01, Level.WARN, "in 20 days")],
    )
    def test_the_own_certificate_ends(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path, days, level, words
    ) -> None:
        with TlsTerminator(
            one_server.port, tmp_path, client_cert_required=True, client_not_after=in_days(days)
        ) as tls:
            told = doctor(
                tls.url(),
                broker_tls_ca=tls.ca_file,
                broker_tls_cert=tls.client_cert_file,
                broker_tls_key=tls.client_key_file,
            )
        finding = told.check("client certificate", level, "this party's", words, "make a new one")
        assert finding.blame is (Blame.OURS if level is Level.FAIL else Blame.BROKER)
        assert (told["TLS"].level is Level.FAIL) == (level is Level.FAIL)

    def test_own_files_that_do_not_fit(self, doctor: Ask, tmp_path) -> None:
        tls = TlsTerminator(1, tmp_path)
        (tmp_path / "other").mkdir()
        other = TlsTerminator(1, tmp_path / "other")
        for key, words in (
            (other.client_key_file, "do not match"),
            (tls.ca_file, "contains no private key"),
        ):
            told = doctor(
                "rediss://127.0.0.1:1",
                broker_tls_cert=tls.client_cert_file,
                broker_tls_key=key,
            )
            finding = told.check(
                "client certificate", Level.FAIL, words, "set ", "_TLS_KEY", str(key)
            )
            assert finding.blame is Blame.OURS

    def test_tls_asked_of_a_plain_port(self, one_server: EmbeddedBroker, doctor: Ask) -> None:
        told = doctor(f"rediss://{HOST}:{one_server.port}", reply_timeout=0.5)
        told.check("TLS", Level.FAIL, "no TLS connection", "without TLS, write redis://")

    def test_a_tls_port_asked_without(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        for required in (False, True):
            with TlsTerminator(one_server.port, tmp_path, client_cert_required=required) as tls:
                told = doctor(f"redis://{HOST}:{tls.port}", reply_timeout=0.5)
            told.check("login", Level.FAIL, "it speaks TLS on this port", "write rediss://")

    def test_certificates_that_are_not_checked(
        self, one_server: EmbeddedBroker, doctor: Ask, tmp_path
    ) -> None:
        with TlsTerminator(one_server.port, tmp_path) as tls:
            told = doctor(f"{tls.url()}?ssl_cert_reqs=none")
        told.check("TLS", Level.WARN, "is not checked", "remove ssl_cert_reqs from the URL")
        told.check("login", Level.PASS)

    def test_no_tls_over_a_network(self) -> None:
        verdict = without_tls([("127.0.0.1", 1), ("192.0.2.1", 1)])
        assert verdict.level is Level.WARN
        assert "learn its password" in verdict.text
        assert "rediss://" in verdict.remedy
        assert without_tls([("127.9.9.9", 1), ("::1", 1, 0, 0)]).level is Level.PASS


class TestLogin:
    def test_a_wrong_password(self, doctor: Ask) -> None:
        with EmbeddedBroker(password="right") as server:
            for credentials in (":wr0ng@", "nobody:wr0ng@", ""):
                told = doctor(f"redis://{credentials}{HOST}:{server.port}")
                told.check(
                    *("login", Level.FAIL, "user or password not accepted"),
                    "check the user and password in REDISLINK_BROKER_URL",
                )
                assert told.not_tried["commands"] == "login failed"
            told = doctor(server.url)
        told.check("login", Level.PASS, "as user default")

    def test_something_that_is_no_redis(self, doctor: Ask) -> None:
        with socket.create_server((HOST, 0)) as web:

            def answer() -> None:
                for _ in range(2):
                    taken, _address = web.accept()
                    with taken:
                        taken.recv(1000)
                        taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            told = doctor(f"redis://{HOST}:{web.getsockname()[1]}", reply_timeout=0.5)
        told.check("login", Level.FAIL, "a web server answers on this port", "check host and port")
