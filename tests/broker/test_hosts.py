"""Hosts that servers name: an IP address or a host name, which goes on as it is and checked."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from redislink.broker import Broker
from redislink.broker.topology import _moved_untrusted, _slots_untrusted
from redislink.broker.url import check_host
from redislink.errors import BrokerError, BrokerRefused, BrokerUnreachable
from tests.support.resp_server import HOST, OK, RespServer, encode

THIEF = "127.0.0.2"
NO_HOSTS = [
    "127.0.0.2?ssl_cert_reqs=none&port={port}&client_name=",
    "127.0.0.2:{port}/?ssl_check_hostname=no&x=",
    "evil:{port}#",
    "user:pw@127.0.0.2",
    "127.0.0.2/",
    "a b",
    "a\nb",
    "a\x00b",
    "\x1b[31mred",
    "a,b",
    "[::1]",
    "::1%lo/x",
    "1::2::3",
    "-rf",
    "a" * 254,
    "höst",
    "a%41",
    "unix:///run/x",
]
HOSTS = ["h", "127.0.0.2", "broker-1.example.", "under_score", "::1", "fe80::1%eth0", "2001:db8::7"]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_is_taken_from_nobody(host: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        check_host(host)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        list(_slots_untrusted([[0, 1, [host.encode(), 1]]], "asked"))
    assert _moved_untrusted(f"MOVED 7 {host}:1", "asked") in ({}, {7: ("::1", 1)})


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(host: str) -> None:
    assert check_host(host) == host
    assert list(_slots_untrusted([[0, 1, [host.encode(), 1]]], "asked")) == [(0, 1, [(host, 1)])]
    assert _moved_untrusted(f"MOVED 7 {host}:1", "asked") == {7: (host, 1)}


@pytest.mark.parametrize("none", [b"", None, b"?"])
def test_a_node_without_a_name_of_its_own_is_the_one_that_was_asked(none: bytes | None) -> None:
    assert list(_slots_untrusted([[0, 1, [none, 7]]], "asked")) == [(0, 1, [("asked", 7)])]
    text = (none or b"").decode()
    assert _moved_untrusted(f"MOVED 7 {text}:6380", "asked") == {7: ("asked", 6380)}


class Attack:
    """Servers with a good certificate, that name a host; and a thief with one of its own."""

    def __init__(self, ca: trustme.CA, ca_file: Path, thief: RespServer) -> None:
        self.context = _context(ca, HOST)
        self.ca_file, self.thief = ca_file, thief
        self.host = ""
        self.port = 0
        """Of the server that names it."""

    def named(self) -> str:
        return self.host.format(port=self.thief.port)

    def masters(self, command: list[bytes]) -> bytes:
        said = {"name": "relay", "ip": self.named(), "port": str(self.thief.port)}
        state = said | {"flags": "master", "num-other-sentinels": "0"}
        flat = [word for pair in state.items() for word in pair]
        return encode([flat]) if command[0] == b"SENTINEL" else OK

    def slots(self, command: list[bytes]) -> bytes:
        slots = [[0, 16383, [self.named(), self.thief.port, "0" * 40]]]
        return encode(slots) if command[0] == b"CLUSTER" else OK

    def moved(self, command: list[bytes]) -> bytes:
        if command[0] == b"RPUSH":
            return f"-MOVED 7 {self.named()}:{self.thief.port}\r\n".encode()
        if command[0] == b"CLUSTER":
            return encode([[0, 16383, [None, self.port, "0" * 40]]])
        return OK


def _context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    good, evil = trustme.CA(), trustme.CA()
    ca_file = tmp_path_factory.mktemp("attack") / "ca.pem"
    good.cert_pem.write_to_path(str(ca_file))
    with RespServer(lambda _: OK, host=THIEF, context=_context(evil, "evil.example")) as thief:
        yield Attack(good, ca_file, thief)


def push(broker: Broker) -> Any:
    for _ in range(3):  # MOVED is learnt by the first
        connection = broker.at(b"x").open_answering()
        connection.execute(b"RPUSH", b"x", b"y", timeout=5)
    return "pushed"


@pytest.mark.parametrize("host", [THIEF, *NO_HOSTS[:4:3], NO_HOSTS[1]])
@pytest.mark.parametrize(
    ("handler", "url"),
    [
        (Attack.masters, "rediss+sentinel://{}@{}/relay"),
        (Attack.slots, "rediss+cluster://{}@{}"),
        (Attack.moved, "rediss+cluster://{}@{}"),
    ],
)
def test_a_server_cannot_have_the_password_sent_to_whom_nobody_vouches_for(
    attack: Attack, host: str, url: str, handler: Callable[[Attack, list[bytes]], bytes]
) -> None:
    attack.host = host
    with RespServer(lambda c: handler(attack, c), context=attack.context) as server:
        attack.port = server.port
        address = url.format("s~alice:S3CRET", f"{HOST}:{server.port}")
        broker = Broker(address, tls_ca=attack.ca_file, timeout=5)
        for _ in range(2):
            with pytest.raises((BrokerRefused, BrokerUnreachable)) as caught:
                push(broker)
            assert "S3CRET" not in str(caught.value)
            assert str(caught.value).isprintable()
    assert attack.thief.commands == []


def test_a_sentinels_replicas_are_checked_too() -> None:
    def answer(command: list[bytes]) -> bytes:
        flat = ["name", "relay", "port", "7", "flags"]
        if command[1:2] == [b"MASTERS"]:
            return encode([[*flat, "master", "ip", "h"]])
        good, down = [*flat, "slave", "ip", "i"], [*flat, "slave,s_down", "ip", "j"]
        return encode([good, down, [*flat, "slave", "ip", "k?x"]])

    with RespServer(answer) as server:
        broker = Broker(f"redis+sentinel://{HOST}:{server.port}/relay", timeout=5)
        assert broker.addresses() == [("h", 7), ("i", 7)]


@pytest.mark.parametrize(
    "reply",
    [7, "x", [7], [["name"]], [["name", "relay", "flags", "master", "port", "x"]], [[7, 7]]],
)
def test_nonsense_of_a_sentinel(reply: Any) -> None:
    with RespServer(lambda _: encode(reply)) as server:
        broker = Broker(f"redis+sentinel://{HOST}:{server.port}/relay", timeout=5)
        with pytest.raises(BrokerError, match="check that it is a sentinel"):
            broker.open()
