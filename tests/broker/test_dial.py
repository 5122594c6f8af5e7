"""Every TCP connection to a broker is dialled in one place."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

import redislink
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.dial import dial
from tests.support.tls_terminator import TlsTerminator

PACKAGE = Path(redislink.__file__).parent
CALLS = {"socket.create_connection", "socket.socket.connect", "dialled.connect"}
DIALS = {"broker/dial.py", "operate/doctor/network.py"}
"""The doctor tells apart what dialling does in one go."""


def test_nothing_else_dials() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS
    }
    assert found == DIALS


def test_small_writes_are_sent_at_once_and_the_timeout_stays(valkey: EmbeddedBroker) -> None:
    with dial(("127.0.0.1", valkey.port), 3.0) as dialled:
        assert dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert dialled.gettimeout() == 3.0


@pytest.mark.parametrize("tls", [False, True])
def test_a_broker_s_connections_are_dialled_here(
    valkey: EmbeddedBroker, tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(self: Broker, address: tuple[str, int], seconds: float) -> socket.socket:
        asked.append(address)
        return dial(address, seconds)

    monkeypatch.setattr(Broker, "dial", noted)
    with TlsTerminator(valkey.port, tmp_path) as terminator:
        url, port = (terminator.url(), terminator.port) if tls else (valkey.url, valkey.port)
        Broker(url, tls_ca=terminator.ca_file).open_answering().close()
    assert asked == [("127.0.0.1", port)]
