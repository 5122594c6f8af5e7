"""Egress proxies: what one is asked, what each of its answers means, and that no secret shows."""

from __future__ import annotations

import base64
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from redislink import settings
from redislink.broker import (
    Broker,
    EgressProxy,
    EmbeddedBroker,
    SeveralBrokers,
    make_broker,
)
from redislink.broker.nested_tls import NestedTls
from redislink.broker.tls import secure
from redislink.errors import BrokerBusy, BrokerError, BrokerUnreachable, ConfigError, ProxyRefused
from redislink.settings import RedisLinkSettings
from tests.support.scripted_proxy import HOST, ScriptedProxy, answering, tunnel_to
from tests.support.tls_terminator import TlsTerminator

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
SERVER = ("broker.invalid", 6379)
"""A name that only a proxy can know."""


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("proxy.example:3128", "no proxy of a scheme"),
            ("user:s3cret@proxy:3128", "no proxy of a scheme"),
            ("ftp://user:s3cret@proxy:3128", "no proxy of a scheme"),
            ("socks4://proxy:1080", "no proxy of a scheme"),
            ("http://user:s3cret@:3128", "host or port is not valid"),
            ("http://user:s3cret@proxy", "no port"),
            ("http://user:s3cret@proxy:0", "host or port is not valid"),
            ("http://proxy:port", "host or port is not valid"),
            ("http://user:s3cret@proxy:3128/path", "something stands after"),
            ("http://user:s3cret@proxy:3128?x=1", "host or port is not valid"),
            ("http://user:s3/cret@proxy:3128", "must be encoded"),
            ("http://user:s3@cret@proxy:3128", "must be encoded"),
            ("http://user:s3#cret@proxy:3128", "must be encoded"),
            ("http://user:s3%cret@proxy:3128", "must be encoded"),
            ("http://user:s3cret%FF@proxy:3128", "must be encoded"),
        ],
    )
    def test_those_that_cannot_be_used(self, url: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            EgressProxy(url, named_by="https_proxy")
        assert str(caught.value).startswith("https_proxy: ")
        assert "cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "label"),
        [
            ("http://user:s3cret@Proxy.Example:3128/", "http://proxy.example:3128"),
            ("HTTPS://:s3cret@[2001:db8::1]:443", "https://[2001:db8::1]:443"),
            ("socks5h://proxy:1080", "socks5h://proxy:1080"),
            ("socks5://user:s3cret@proxy:1080", "socks5h://proxy:1080"),
        ],
    )
    def test_the_label_holds_no_secret_and_says_who_resolves(self, url: str, label: str) -> None:
        proxy = EgressProxy(url)
        assert proxy.label == label
        assert "s3cret" not in repr(proxy._url)


class TestSettings:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(settings, "_said", set())

    def proxy(self, setting: str | None) -> EgressProxy | None:
        return EgressProxy.from_settings(RedisLinkSettings(_env_file=None, broker_proxy=setting))

    @pytest.mark.parametrize("setting", [None, "none", "NONE"])
    def test_without_the_setting_the_environment_counts_for_nothing(
        self,
        setting: str | None,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@proxy:3128")
        monkeypatch.setenv("ALL_PROXY", "socks5h://proxy:1080")
        assert self.proxy(setting) is None
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("variables", "label", "named_by"),
        [
            ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "http://a:1", "HTTPS_PROXY"),
            ({"ALL_PROXY": "socks5h://b:2"}, "socks5h://b:2", "ALL_PROXY"),
            (
                {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://c:3"},
                "http://c:3",
                "https_proxy",
            ),
            ({"https_proxy": "", "all_proxy": "b:2"}, "http://b:2", "all_proxy"),
        ],
    )
    def test_env_takes_what_the_environment_names_and_says_so_once(
        self,
        variables: dict[str, str],
        label: str,
        named_by: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            proxy = self.proxy("env")
            assert proxy is not None
            assert proxy.label == label
            assert proxy.serves(SERVER)
        assert caplog.messages == [f"the broker is dialled through proxy {label}, from {named_by}"]
        assert caplog.records[0].levelno == logging.WARNING

    def test_env_without_a_proxy_is_said_too(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.proxy("env") is None
        assert "neither HTTPS_PROXY nor ALL_PROXY is set" in caplog.text

    def test_a_password_from_the_environment_is_said_nowhere(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@proxy:3128")
        found = self.proxy("env")
        assert found is not None
        assert found.serves(SERVER)
        assert "s3cret" not in caplog.text
        assert "s3cret" not in repr(
            RedisLinkSettings(_env_file=None, broker_proxy="http://u:s3cret@p:1")
        )

    @pytest.mark.parametrize(
        ("no_proxy", "host", "direct"),
        [
            ("", "broker.example", False),
            ("*", "broker.example", True),
            ("broker.example", "broker.example", True),
            ("BROKER.example, other", "broker.example", True),
            ("other  broker.example", "broker.example", True),
            ("example", "broker.example", True),
            (".example", "broker.example", True),
            ("*.example", "broker.example", True),
            ("ample", "broker.example", False),
            ("broker.example:6379", "broker.example", True),
            ("broker.example:6380", "broker.example", False),
            ("10.0.0.0/8", "10.1.2.3", True),
            ("10.0.0.0/8", "11.1.2.3", False),
            ("10.0.0.0/8", "broker.example", False),
            ("10.1.2.3", "10.1.2.3", True),
            ("10.1.2.3:6379", "10.1.2.3", True),
            ("2001:db8::/32", "2001:db8::1", True),
            ("[2001:db8::1]:6379", "2001:db8::1", True),
            ("[2001:db8::1]:1", "2001:db8::1", False),
            ("", "localhost", True),
            ("", "127.0.0.1", True),
            ("", "::1", True),
        ],
    )
    def test_no_proxy(
        self, no_proxy: str, host: str, direct: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy = EgressProxy("http://proxy:3128", no_proxy=no_proxy, named_by="HTTPS_PROXY")
        assert proxy.serves((host, 6379)) is not direct
        if direct and no_proxy:
            assert "dialled directly, as NO_PROXY covers it" in caplog.text

    def test_a_proxy_that_is_named_here_serves_all(self) -> None:
        """A broker of this machine's address may be the one behind a tunnel."""
        assert EgressProxy("http://proxy:3128").serves(("127.0.0.1", 6379))

    @pytest.mark.parametrize("name", ["broker_proxy_password_file", "broker_proxy_tls_ca"])
    def test_files_are_looked_for_at_once(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=rf"REDISLINK_{name.upper()}: there is no file"):
            RedisLinkSettings.load(_env_file=None, **{name: tmp_path / "missing"})


class TestConnect:
    """The request, and what each answer means."""

    def dial(self, proxy: ScriptedProxy, credentials: str = "", seconds: float = 5.0) -> None:
        EgressProxy(proxy.url(credentials)).dial(SERVER, seconds).close()

    @pytest.mark.parametrize(
        ("address", "where"),
        [(SERVER, b"broker.invalid:6379"), (("2001:db8::1", 1), b"[2001:db8::1]:1")],
    )
    def test_the_proxy_gets_the_name_and_the_login(
        self, address: tuple[str, int], where: bytes
    ) -> None:
        with ScriptedProxy(answering(OK)) as proxy:
            EgressProxy(proxy.url("h%C3%B6spital:s%3Acret@")).dial(address, 5).close()
        (head,) = proxy.heads
        login = base64.b64encode("höspital:s:cret".encode())
        assert head.split(b"\r\n") == [
            b"CONNECT " + where + b" HTTP/1.1",
            b"Host: " + where,
            b"User-Agent: redislink",
            b"Proxy-Authorization: Basic " + login,
            b"",
            b"",
        ]

    @pytest.mark.parametrize(
        "answer",
        [
            OK,
            b"HTTP/1.0 200\r\n\r\n",
            b"HTTP/1.1 200 OK\n\n",
            b"HTTP/1.1 204 Fine\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + OK,
        ],
    )
    def test_answers_that_let_through(self, answer: bytes) -> None:
        with ScriptedProxy(answering(answer)) as proxy:
            self.dial(proxy)

    @pytest.mark.parametrize(
        ("answer", "kind", "words"),
        [
            (b"HTTP/1.1 407 Who?\r\n\r\n", ProxyRefused, ("user or password", "407 Who?")),
            (b"HTTP/1.0 401 Unauthorized\r\n\r\n", ProxyRefused, ("user or password", "401")),
            (b"HTTP/1.1 403 Filtered\r\n\r\n", ProxyRefused, ("refused to connect", "403")),
            (b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", ProxyRefused, ("refused", "302")),
            (b"HTTP/1.1 405 Not Allowed\r\n\r\n", ProxyRefused, ("refused to connect", "405")),
            (b"HTTP/1.1 501 No CONNECT\r\n\r\n", ProxyRefused, ("refused to connect", "501")),
            (b"HTTP/1.1 511 Log in\r\n\r\n", ProxyRefused, ("refused to connect", "511")),
            (b"HTTP/1.1 429 Slow down\r\n\r\n", BrokerUnreachable, ("does not reach", "429")),
            (b"HTTP/1.1 500 Oops\r\n\r\n", BrokerUnreachable, ("does not reach", "500 Oops")),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", BrokerUnreachable, ("does not reach", "502")),
            (b"HTTP/1.1 503\r\n\r\n", BrokerUnreachable, ("does not reach", "(503)")),
            (b"HTTP/1.1 504 Late\r\n\r\n", BrokerUnreachable, ("does not reach", "504 Late")),
            (b"-ERR wrong number\r\n\r\n", ProxyRefused, ("is not HTTP: -ERR wrong", "scheme")),
            (b"HTTP/1.1 999 What\r\n\r\n", ProxyRefused, ("is not HTTP",)),
            (b"HTTP/1.1 2000 OK\r\n\r\n", ProxyRefused, ("is not HTTP",)),
            (b"\x05\xff\r\n\r\n", ProxyRefused, ("is not HTTP",)),
        ],
    )
    def test_answers_that_do_not(
        self, answer: bytes, kind: type[BrokerError], words: tuple[str, ...]
    ) -> None:
        with (
            ScriptedProxy(answering(answer)) as proxy,
            pytest.raises(BrokerError) as caught,
        ):
            self.dial(proxy, "hospital:s3cret@")
        said = str(caught.value)
        assert type(caught.value) is kind
        assert caught.value.retryable is (kind is BrokerUnreachable)
        assert said.startswith(f"proxy http://{HOST}:{proxy.port}: ")
        for word in words:
            assert word in said
        assert said.isprintable()
        if "refused" in words[0] or "reach" in words[0]:
            assert "broker.invalid:6379" in said

    def test_a_proxy_that_wants_another_way_of_logging_in(self) -> None:
        answer = (
            b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Negotiate\r\n"
            b"proxy-authenticate:NTLM\r\n\r\n"
        )
        with (
            ScriptedProxy(answering(answer)) as proxy,
            pytest.raises(
                ProxyRefused, match=r"wants Negotiate, NTLM, and redislink .* Basic alone"
            ),
        ):
            self.dial(proxy, "hospital:s3cret@")

    def test_what_the_proxy_says_is_made_safe_and_holds_no_password(self) -> None:
        token = base64.b64encode(b"hospital:s3cret-word")
        quoted = b"no \x1b[31m s3cret-word for hospital (" + token + b") " + b"x" * 500
        for answer in (b"HTTP/1.1 403 " + quoted, quoted):
            with (
                ScriptedProxy(answering(answer + b"\r\n\r\n")) as proxy,
                pytest.raises(ProxyRefused) as caught,
            ):
                self.dial(proxy, "hospital:s3cret-word@")
            said = str(caught.value)
            assert "no " in said
            assert "s3cret-word" not in said
            assert token.decode() not in said
            assert "\x1b" not in said
            assert "xxxx" * 40 not in said

    def test_an_answer_without_end_is_given_up(self) -> None:
        def endless(line: socket.socket) -> None:
            while True:
                line.sendall(b"HTTP/1.1 200 OK\r\n" * 1000)

        with (
            ScriptedProxy(endless) as proxy,
            pytest.raises(BrokerUnreachable, match="an answer without end"),
        ):
            self.dial(proxy, seconds=60)

    def test_an_answer_that_drips_is_given_up(self) -> None:
        stopped = threading.Event()

        def drip(line: socket.socket) -> None:
            while not stopped.wait(0.02):
                line.sendall(b"H")

        with (
            ScriptedProxy(drip) as proxy,
            pytest.raises(BrokerUnreachable, match=r"did not answer within 0\.3 s"),
        ):
            self.dial(proxy, seconds=0.3)
        stopped.set()

    def test_a_proxy_that_hangs_up_and_one_that_is_not_there(self) -> None:
        with (
            ScriptedProxy(lambda line: None) as proxy,
            pytest.raises(BrokerUnreachable, match=r"ended the connection \(no answer\)"),
        ):
            self.dial(proxy)
        with pytest.raises(
            BrokerUnreachable, match=rf"proxy {proxy.url()}: no connection .*refused"
        ):
            self.dial(proxy)

    def test_what_comes_right_behind_the_answer_is_the_server_s(self) -> None:
        full = b"-ERR max number of clients reached\r\n"
        with (
            ScriptedProxy(lambda line: line.sendall(OK + full)) as proxy,
            pytest.raises(BrokerError) as caught,
        ):
            Broker(
                "redis://broker.invalid", timeout=5, proxy=EgressProxy(proxy.url())
            ).open_answering()
        assert isinstance(caught.value, BrokerBusy | BrokerUnreachable)
        assert "as many connections as it takes" in str(caught.value)
        assert f"redis://broker.invalid:6379 through proxy {proxy.url()}: " in str(caught.value)

    def test_a_password_file_is_read_for_each_connection(self, tmp_path: Path) -> None:
        file = tmp_path / "password"
        file.touch(0o600)
        file.write_text("first\n")
        answers = iter([OK, b"HTTP/1.1 407 No\r\n\r\n"])
        with ScriptedProxy(lambda line: answering(next(answers))(line)) as scripted:
            proxy = EgressProxy(scripted.url("hospital@"), password_file=file)
            proxy.dial(SERVER, 5).close()
            file.write_text("second\n")
            with pytest.raises(ProxyRefused) as caught:
                proxy.dial(SERVER, 5)
        assert caught.value.retryable, (
            "it may be changed on the proxy and here, one after the other"
        )
        for head, password in zip(scripted.heads, (b"first", b"second"), strict=True):
            assert base64.b64encode(b"hospital:" + password) in head

    def test_a_login_that_is_refused_later_is_not_tried_for_ever(self) -> None:
        """Trying the same password again may lock the user out."""
        answers = iter([OK, b"HTTP/1.1 407 No\r\n\r\n", b"HTTP/1.1 403 No\r\n\r\n"])
        with ScriptedProxy(lambda line: answering(next(answers))(line)) as scripted:
            proxy = EgressProxy(scripted.url("hospital:s3cret@"))
            proxy.dial(SERVER, 5).close()
            for retryable in (False, True):
                with pytest.raises(ProxyRefused) as caught:
                    proxy.dial(SERVER, 5)
                assert caught.value.retryable is retryable


class TestBroker:
    """A broker behind a proxy: its name is resolved there, TLS reaches through to it."""

    def test_a_broker_without_tls(self, valkey: EmbeddedBroker) -> None:
        with ScriptedProxy(tunnel_to(valkey.port)) as proxy:
            broker = Broker("redis://broker.invalid", proxy=EgressProxy(proxy.url()))
            broker.open_answering().close()
        assert broker.label == "redis://broker.invalid:6379"

    @pytest.mark.parametrize("names", [("broker.invalid",), ("other.invalid",)])
    def test_the_name_is_checked_inside(
        self, valkey: EmbeddedBroker, tmp_path: Path, names: tuple[str]
    ) -> None:
        with (
            TlsTerminator(valkey.port, tmp_path, names=names) as tls,
            ScriptedProxy(tunnel_to(tls.port)) as proxy,
        ):
            broker = Broker(
                "rediss://broker.invalid", tls_ca=tls.ca_file, proxy=EgressProxy(proxy.url())
            )
            if names == ("broker.invalid",):
                broker.open_answering().close()
                return
            with pytest.raises(BrokerUnreachable, match="certificate is for another host"):
                broker.open()

    def test_a_server_that_breaks_is_named_with_the_proxy_in_between(self) -> None:
        with (
            ScriptedProxy(lambda line: line.sendall(OK)) as proxy,
            pytest.raises(BrokerUnreachable) as caught,
        ):
            Broker("redis://broker.invalid", proxy=EgressProxy(proxy.url())).open_answering()
        assert (
            f"broker redis://broker.invalid:6379 through proxy {proxy.url()}: no connection"
            in str(caught.value)
        )

    def test_several_brokers_are_dialled_through_it(self, valkey: EmbeddedBroker) -> None:
        with ScriptedProxy(tunnel_to(valkey.port)) as proxy:
            settings = RedisLinkSettings(
                _env_file=None,
                broker_url="redis://a.invalid, redis://b.invalid",
                broker_proxy=proxy.url(),
            )
            brokers = make_broker(settings, None)
            assert isinstance(brokers, SeveralBrokers)
            brokers.open().close()
            brokers.move(1)
            brokers.open().close()
        dialled = [head.partition(b"\r\n")[0].split()[1] for head in proxy.heads]
        assert dialled == [b"a.invalid:6379", b"b.invalid:6379"]

    def test_a_unix_socket_needs_no_proxy(self, valkey: EmbeddedBroker) -> None:
        Broker(
            valkey.unix_url, proxy=EgressProxy("http://proxy.invalid:1")
        ).open_answering().close()


class TestTlsToTheProxy:
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_broker_behind_it(self, valkey: EmbeddedBroker, tmp_path: Path, inside: bool) -> None:
        (tmp_path / "outer").mkdir()
        content = bytes(range(256)) * 20_000
        with (
            TlsTerminator(valkey.port, tmp_path, names=["broker.invalid"]) as tls,
            ScriptedProxy(tunnel_to(tls.port if inside else valkey.port)) as scripted,
            TlsTerminator(scripted.port, tmp_path / "outer") as outer,
        ):
            broker = Broker(
                f"redis{'s' * inside}://broker.invalid",
                tls_ca=tls.ca_file,
                proxy=EgressProxy(f"https://{HOST}:{outer.port}", tls_ca=outer.ca_file),
            )
            connection = broker.open_answering()
            connection.execute(b"SET", b"through-two", content, timeout=10)
            most = (1, len(content))
            assert connection.execute(b"GET", b"through-two", timeout=10, most=most) == content
            connection.execute(b"DEL", b"through-two", timeout=10)
            connection.close()

    @pytest.mark.parametrize(
        ("names", "trusted", "words"),
        [
            (["other.invalid"], True, "its certificate is for another host"),
            ([HOST], False, "not trusted .*REDISLINK_BROKER_PROXY_TLS_CA"),
        ],
    )
    def test_its_certificate_is_checked(
        self, valkey: EmbeddedBroker, tmp_path: Path, names: list[str], trusted: bool, words: str
    ) -> None:
        with TlsTerminator(valkey.port, tmp_path, names=names) as outer:
            ca = outer.ca_file if trusted else None
            proxy = EgressProxy(f"https://u:s3cret@{HOST}:{outer.port}", tls_ca=ca)
            with pytest.raises(ProxyRefused, match=words) as caught:
                proxy.dial(SERVER, 5)
        assert str(caught.value).startswith(f"proxy https://{HOST}:{outer.port}: ")
        assert outer.connections == 0, "no password was sent"

    def test_a_proxy_that_does_not_speak_tls(self) -> None:
        with socket.create_server((HOST, 0)) as server:

            def answer() -> None:
                taken, _ = server.accept()
                with taken:
                    taken.recv(1 << 16)
                    taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(ProxyRefused, match=r"no TLS connection.*check scheme"):
                EgressProxy(f"https://{HOST}:{server.getsockname()[1]}").dial(SERVER, 5)
            thread.join()

    def test_a_ca_file_that_is_none(self, tmp_path: Path) -> None:
        wrong = tmp_path / "ca.pem"
        wrong.write_text("no certificate")
        with pytest.raises(ConfigError, match=r"REDISLINK_BROKER_PROXY_TLS_CA .*no certificate"):
            EgressProxy("https://proxy.invalid:1", tls_ca=wrong).dial(SERVER, 5)


Pair = tuple[NestedTls | ssl.SSLSocket, ssl.SSLSocket | NestedTls]


class TestNestedTls:
    """TLS in TLS behaves as TLS on a socket does."""

    @pytest.fixture(params=[False, True], ids=["tls", "tls in tls"])
    def ends(self, request: pytest.FixtureRequest) -> Callable[[], tuple[object, ...]]:
        """Both ends of a connection; the far one is TLS's server, in a thread of its own."""
        ca = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        ca.issue_cert("host").configure_cert(server)
        ca.configure_trust(client)

        def make() -> tuple[object, ...]:
            near, far = socket.socketpair()
            near.settimeout(10)
            far.settimeout(10)
            got: list[Far] = []

            def take() -> None:
                outer = server.wrap_socket(far, server_side=True)
                got.append(Far(outer, server if request.param else None))

            thread = threading.Thread(target=take)
            thread.start()
            connection = secure(near, client, "host")
            if request.param:
                connection = secure(connection, client, "host")  # type: ignore[arg-type]
            thread.join()
            return connection, got[0]

        return make

    def test_bytes_go_both_ways(self, ends: Callable[[], tuple[object, ...]]) -> None:
        near, far = ends()
        near.sendall(b"there")
        assert far.recv_exactly(5) == b"there"
        far.sendall(b"and back")
        assert near.recv(3) == b"and"
        assert near.pending() == 5
        buffer = bytearray(10)
        assert near.recv_into(buffer) == 5
        assert buffer[:5] == b" back"
        assert near.version() == "TLSv1.3"
        assert near.getpeercert(binary_form=True)
        far.close()
        assert near.recv(1) == b""
        near.close()

    def test_without_room_the_same_bytes_are_sent_again(
        self, ends: Callable[[], tuple[object, ...]]
    ) -> None:
        near, far = ends()
        near.settimeout(0)
        pieces: list[bytes] = []
        blocked = 0
        read = bytearray()
        while len(pieces) < 100 or blocked < 4:  # how much the kernel takes is up to it
            piece = bytes([len(pieces) % 256]) * 50_000
            try:
                assert near.send(piece) == 50_000
                pieces.append(piece)
            except (ssl.SSLWantWriteError, BlockingIOError):
                blocked += 1
                read += far.recv()
        read += far.recv_exactly(sum(map(len, pieces)) - len(read))
        assert read == b"".join(pieces)
        near.close()
        far.close()

    def test_what_is_sent_again_may_have_grown(
        self, ends: Callable[[], tuple[object, ...]]
    ) -> None:
        near, far = ends()
        near.settimeout(0)
        sent, read = bytearray(), bytearray()
        grown = 0
        while grown < 5:
            piece = os.urandom(60_000)
            while piece:
                try:
                    assert near.send(piece) == len(piece)
                    sent += piece
                    piece = b""
                except (ssl.SSLWantWriteError, BlockingIOError):
                    piece += os.urandom(1000)
                    grown += 1
                    read += far.recv()
        read += far.recv_exactly(len(sent) - len(read))
        assert read == sent
        near.close()
        far.close()

    def test_a_read_without_anything_there(self, ends: Callable[[], tuple[object, ...]]) -> None:
        near, far = ends()
        near.settimeout(0)
        with pytest.raises((ssl.SSLWantReadError, BlockingIOError)):
            near.recv(10)
        assert near.pending() == 0
        near.settimeout(0.05)
        with pytest.raises(TimeoutError):
            near.recv(10)
        far.sendall(b"late")
        near.settimeout(10)
        assert near.recv(10) == b"late"
        near.close()
        far.close()


class Far:
    """A TLS server's end, perhaps with TLS inside it, by `ssl.SSLObject` and nothing of ours."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext | None) -> None:
        self._outer = outer
        self._inner: ssl.SSLObject | None = None
        if context is not None:
            self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._inner = context.wrap_bio(self._came, self._goes, server_side=True)
            self._do(self._inner.do_handshake)

    def _do(self, work: Callable[[], object]) -> object:
        while True:
            try:
                done = work()
            except ssl.SSLWantReadError:
                self._outer.sendall(self._goes.read())
                self._came.write(self._outer.recv(1 << 16))
            else:
                self._outer.sendall(self._goes.read())
                return done

    def recv(self) -> bytes:
        inner = self._inner
        if inner is None:
            return self._outer.recv(1 << 16)
        return self._do(lambda: inner.read(1 << 16))  # type: ignore[return-value]

    def recv_exactly(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            got += self.recv()
        return got

    def sendall(self, content: bytes) -> None:
        inner = self._inner
        if inner is None:
            self._outer.sendall(content)
        else:
            self._do(lambda: inner.write(content))

    def close(self) -> None:
        self._outer.close()
