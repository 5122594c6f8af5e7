"""Real egress proxies and real brokers: logins, refusals, proxies that die, idle tunnels."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
import trustme

from redislink import Endpoint
from redislink.broker import Broker, EgressProxy, EmbeddedBroker
from redislink.broker import dial as dialling
from redislink.broker.url import Address
from redislink.errors import BrokerUnreachable, ProxyRefused
from redislink.operate.doctor import Blame, Case, Level, examine
from redislink.settings import RedisLinkSettings
from tests.conftest import EVERY_BROKER, in_thread, join, make_cluster, run_parties, url_of
from tests.support.egress import HOST, KINDS, PASSWORD, USER, RealProxy, missing
from tests.support.tls_terminator import TlsTerminator

pytestmark = pytest.mark.slow

WITH_LOGIN = ("tinyproxy", "microsocks")
WITH_RULES = ("tinyproxy", "dante", "squid")


@pytest.fixture(autouse=True)
def proxies_are_there() -> None:
    why = missing()
    if why and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"egress proxies must be tried in CI: {why}")
    if why:
        pytest.skip(f"NOT TRIED: egress proxies: {why}")


@pytest.fixture
def only_by_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dials a server directly fails."""

    def refuse(address: object, _: float) -> None:
        raise AssertionError(f"{address} was dialled directly")

    monkeypatch.setattr(dialling, "dial", refuse)


def close(*endpoints: Endpoint) -> None:
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_lets_through_what_it_is_to(
    kind: str, valkey: EmbeddedBroker, tmp_path: Path, only_by_proxy: None
) -> None:
    login = kind in WITH_LOGIN
    nobody = 1
    with (
        TlsTerminator(valkey.port, tmp_path, names=["localhost"]) as tls,
        RealProxy(kind, tmp_path / "p", [valkey.port, tls.port, nobody], login=login) as proxy,
    ):

        def opened(url: str, through: str) -> None:
            broker = Broker(url, timeout=5, tls_ca=tls.ca_file, proxy=EgressProxy(through))
            broker.open_answering().close()

        opened(valkey.url, proxy.url())
        opened(f"rediss://localhost:{tls.port}", proxy.url())
        with pytest.raises(BrokerUnreachable, match="certificate is for another host"):
            opened(f"rediss://{HOST}:{tls.port}", proxy.url())
        with pytest.raises(BrokerUnreachable, match=rf"proxy {proxy.label}: does not reach"):
            opened(f"redis://{HOST}:{nobody}", proxy.url())
        with pytest.raises(BrokerUnreachable, match=r"does not reach broker\.invalid:1 "):
            opened("redis://broker.invalid:1", proxy.url())
        if login:
            for user in ("hospital:wrong@", ""):
                wrong = proxy.url().replace(f"{USER}:{PASSWORD}@", user)
                with pytest.raises(ProxyRefused, match="user or password not accepted") as caught:
                    opened(valkey.url, wrong)
                assert "wrong" not in str(caught.value)
                assert not caught.value.retryable
        if kind in WITH_RULES:
            with pytest.raises(ProxyRefused, match=rf"refused to connect to {HOST}:2 ") as caught:
                opened(f"redis://{HOST}:2", proxy.url())
            assert not caught.value.retryable


@pytest.mark.parametrize("kind", WITH_LOGIN)
def test_a_session_outlives_a_proxy_that_dies(
    kind: str, valkey: EmbeddedBroker, tmp_path: Path, only_by_proxy: None
) -> None:
    proxy = RealProxy(kind, tmp_path / "proxy", [valkey.port], login=True)
    with proxy:
        alice, bob = join(make_cluster(valkey.url, 2), broker_proxy=proxy.url())
        for round_number in range(3):
            tag = f"t{round_number}"
            alice.send("bob", tag, b"before")
            assert bob.recv("alice", tag) == b"before"
            proxy.stop()
            thread, outcome = in_thread(lambda tag=tag: bob.recv("alice", tag))
            alice.send("bob", tag, b"while it is away" * 50_000)
            proxy.start()
            thread.join(20)
            assert outcome == [b"while it is away" * 50_000]
        close(alice, bob)


def test_tls_to_the_proxy_and_tls_inside(
    valkey: EmbeddedBroker, tmp_path: Path, only_by_proxy: None
) -> None:
    """More than the lines take at once goes both ways at the same time."""
    ca = trustme.CA()
    own, trusted = tmp_path / "own.pem", tmp_path / "trusted.pem"
    certificate = ca.issue_cert(HOST)
    own.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    trusted.write_bytes(ca.cert_pem.bytes())
    with (
        TlsTerminator(valkey.port, tmp_path, names=["localhost"]) as tls,
        RealProxy("squid", tmp_path / "proxy", [tls.port], tls=own) as proxy,
    ):
        assert proxy.url().startswith("https://")
        alice, bob = join(
            make_cluster(f"rediss://localhost:{tls.port}", 2),
            broker_tls_ca=tls.ca_file,
            broker_proxy=proxy.url(),
            broker_proxy_tls_ca=trusted,
            recv_timeout=60,
        )
        messages = [os.urandom(1 << 20) for _ in range(2)]

        def party(me: Endpoint, peer: str) -> None:
            for number, message in enumerate(messages):
                me.send(peer, "large", message)
                me.send(peer, "small", b"%d" % number)
            for number, message in enumerate(messages):
                assert me.recv(peer, "large") == message
                assert me.recv(peer, "small") == b"%d" % number

        run_parties(lambda: party(alice, "bob"), lambda: party(bob, "alice"))
        assert alice.stats().reconnects == bob.stats().reconnects == 0
        close(alice, bob)


def test_a_proxy_that_stays_away_is_named_as_the_proxy(
    valkey: EmbeddedBroker, tmp_path: Path, only_by_proxy: None
) -> None:
    with RealProxy("tinyproxy", tmp_path / "proxy", [valkey.port], login=True) as proxy:
        alice, bob = join(
            make_cluster(valkey.url, 2),
            broker_proxy=proxy.url(),
            broker_timeout=0.5,
            close_timeout=0.5,
        )
        proxy.stop()
        with pytest.raises(BrokerUnreachable) as caught:
            bob.recv("alice", "never")
        said = str(caught.value)
        assert f"proxy {proxy.label}: no connection" in said
        assert "REDISLINK_BROKER_TIMEOUT" in said
        assert PASSWORD not in said
        close(alice, bob)


def test_a_proxy_that_cuts_idle_tunnels(
    valkey: EmbeddedBroker, tmp_path: Path, only_by_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session needs at any time is never idle for longer than a BLPOP lasts.

    Here each time is a tenth of its default, so a proxy that cuts after 30 s would do no harm.
    """
    dials = []
    dial = EgressProxy.dial

    def counted(proxy: EgressProxy, address: Address, seconds: float) -> socket.socket:
        dials.append(threading.current_thread().name)
        return dial(proxy, address, seconds)

    monkeypatch.setattr(EgressProxy, "dial", counted)
    with RealProxy("tinyproxy", tmp_path / "proxy", [valkey.port], idle=3) as proxy:
        alice, bob = join(
            make_cluster(valkey.url, 2), broker_proxy=proxy.url(), blpop_timeout=0.5, peer_timeout=3
        )
        alice.send("bob", "t", b"1")
        assert bob.recv("alice", "t") == b"1"
        for _ in range(2):  # the second time, whatever the proxy may cut is cut
            with EgressProxy(proxy.url()).dial((HOST, valkey.port), 30) as idle:
                dials.clear()
                assert idle.recv(1) == b"", "the proxy cuts what is idle"
            assert dials == []
        for _ in range(3):
            alice.send("bob", "t", b"2")
            bob.send("alice", "t", b"3")
            assert (bob.recv("alice", "t"), alice.recv("bob", "t")) == (b"2", b"3")
        assert len(dials) <= 2, "each party's line for receives, which nobody had used"
        close(alice, bob)


@pytest.mark.parametrize("kind", [kind for kind in EVERY_BROKER if kind != "fakeredis"])
def test_every_server_of_a_broker_is_dialled_through_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(kind, request)

    def refuse(address: object, _: float) -> None:
        raise AssertionError(f"{address} was dialled directly")

    with RealProxy("microsocks", tmp_path / "proxy", login=True) as proxy:
        monkeypatch.setattr(dialling, "dial", refuse)
        parties = join(make_cluster(url), broker_proxy=proxy.url())
        for sender in parties:
            for receiver in parties:
                if sender is not receiver:
                    sender.send(receiver.party, "t", sender.party.encode())
        for receiver in parties:
            for sender in parties:
                if sender is not receiver:
                    assert receiver.recv(sender.party, "t") == sender.party.encode()
        close(*parties)


def test_a_proxy_that_opens_tls_is_recognised(valkey: EmbeddedBroker, tmp_path: Path) -> None:
    """Squid, as companies set it up that look into TLS."""
    ca = trustme.CA(organization_name="A company's TLS inspection")
    shown = tmp_path / "shown.pem"
    shown.write_bytes(ca.private_key_pem.bytes() + ca.cert_pem.bytes())
    opens = f"ssl-bump cert={shown} generate-host-certificates=off"
    with (
        TlsTerminator(valkey.port, tmp_path) as tls,
        RealProxy(
            "squid",
            tmp_path / "proxy",
            [tls.port],
            port_options=opens,
            extra="ssl_bump bump all\nsslproxy_cert_error allow all\n"
            "tls_outgoing_options flags=DONT_VERIFY_PEER\n",
        ) as proxy,
    ):
        settings = RedisLinkSettings(
            _env_file=None,
            broker_url=tls.url(),
            broker_tls_ca=tls.ca_file,
            broker_proxy=proxy.url(),
        )
        with pytest.raises(
            BrokerUnreachable, match="or the proxy opens TLS with a certificate"
        ) as caught:
            Broker.from_settings(settings, None).open_answering()
        assert not caught.value.retryable
        report = examine(lambda: Case.of_broker(settings))
    (found,) = (finding for finding in report.findings if finding.level is Level.FAIL)
    assert (found.name, found.blame) == ("TLS", Blame.OURS)
    assert f"proxy {proxy.label} opens TLS, and wants HTTP inside" in found.text
    assert "A company's TLS inspection" in found.text
    assert f"let CONNECT to {HOST}:{tls.port} through untouched" in found.remedy
