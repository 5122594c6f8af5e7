"""Brokers that end the connection at one large element: it is cut smaller, or they are blamed."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import pytest

from redislink.broker import EmbeddedBroker
from redislink.errors import BrokerRefused
from tests.conftest import in_thread, join, make_cluster

LIMITS = {
    "query": {"client-query-buffer-limit": "1mb"},
    "bulk": {"proto-max-bulk-len": "1mb"},
    "clients": {"maxmemory-clients": "1mb"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIMITS)
def test_a_message_arrives_in_spite_of_the_limit(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("redislink.transport.core.NEAR", float("inf"))  # full chunks from the start
    caplog.set_level(logging.WARNING)
    body = bytes(range(256)) * 12_000
    with EmbeddedBroker(options=LIMITS[kind]) as server:
        alice, bob = join(make_cluster(server.url, 2), chunk_bytes=1 << 20)
        alice.send("bob", "large", body)
        alice.send("bob", "large", body[:100])
        assert bob.recv("alice", "large", 30) == body
        assert bob.recv("alice", "large", 30) == body[:100]
        alice.send("bob", "again", body)
        reconnects = alice.stats().reconnects
        assert bob.recv("alice", "again", 30) == body
        assert alice.stats().reconnects == reconnects
        for endpoint in (alice, bob):
            endpoint.abort("done")
    said = [r.getMessage() for r in caplog.records if "cut smaller" in r.getMessage()]
    assert len(said) == 1
    assert "proto-max-bulk-len" in said[0]


class _Cutting:
    """A proxy that ends each connection once so many bytes have come from the party."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most = port, most
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        self._ends: list[socket.socket] = [self._socket]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, server]
                for src, dst, most in ((client, server, self._most), (server, client, 1 << 60)):
                    thread = threading.Thread(target=self._pass_on, args=(src, dst, most))
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, src: socket.socket, dst: socket.socket, most: int) -> None:
        with contextlib.suppress(OSError):
            while (data := src.recv(65536)) and len(data) < most:
                dst.sendall(data)
        for end in (src, dst):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Cutting:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000_000, 10_000])
def test_what_does_not_pass_in_any_size_ends_with_the_settings_names(
    valkey: EmbeddedBroker, size: int
):
    with _Cutting(valkey.port, 8000) as proxy:
        alice, bob = join(make_cluster(proxy.url, 2), broker_timeout=8, close_timeout=0.5)
        _, received = in_thread(lambda: bob.recv("alice", "t"))
        alice.send("bob", "t", bytes(size))
        with pytest.raises(BrokerRefused, match=r"client-query-buffer-limit.*maxmemory-clients"):
            alice.recv("bob", "never")
        assert not received
        for endpoint in (alice, bob):
            endpoint.abort("done")
