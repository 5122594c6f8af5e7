"""What stays on the broker: a window at most, nothing after a close, nothing for ever."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from redislink.broker import Broker
from redislink.broker.wire import LISTING
from tests.broker_real.conftest import MakeServer
from tests.conftest import join, make_cluster, run_parties
from tests.support.bulk import MB, transfer
from tests.support.servers import Admin
from tests.support.spreading import PARTIES, trio


@pytest.mark.slow
def test_a_slow_reader_fills_no_more_than_the_windows(own_server: MakeServer) -> None:
    outcome = transfer(own_server("valkey"), 200 * MB, slow=True)
    assert outcome.comparison.clean
    assert outcome.comparison.sent == 100
    assert outcome.peak_bytes - outcome.base_bytes > outcome.window_bytes / 2, "it was filled"
    assert outcome.peak_bytes - outcome.base_bytes < 2 * outcome.window_bytes
    assert outcome.keys_left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "policy", "total"),
    [("valkey", "noeviction", 200 * MB), ("redis-server", "volatile-lru", 60 * MB)],
)
def test_a_broker_that_is_smaller_than_a_window(
    own_server: MakeServer, kind: str, policy: str, total: int
) -> None:
    server = own_server(kind, {"maxmemory": "8mb", "maxmemory-policy": policy})
    refuses = policy == "noeviction"
    outcome = transfer(server, total, slow=not refuses, from_refusal=refuses)
    assert outcome.comparison.clean
    assert outcome.comparison.sent == total // (2 * MB)
    if refuses:
        assert outcome.alice.frames_refused > 0, "it was full"
    else:
        assert outcome.evicted > 0, "it was full"


def test_after_a_clean_close_no_key_is_left(broker_url: str) -> None:
    endpoints = join(make_cluster(broker_url, 3))
    for number in range(20):
        for me in endpoints:
            for peer in endpoints:
                if peer is not me:
                    me.send(peer.party, f"t{number % 3}", bytes(number * 100))
    for number in range(20):
        for me in endpoints:
            for peer in endpoints:
                if peer is not me:
                    assert me.recv(peer.party, f"t{number % 3}") == bytes(number * 100)
    connection = Broker(broker_url).open()
    pattern = b"rl:{%s:*" % endpoints[0].session.encode()
    assert connection.execute(b"KEYS", pattern, timeout=5, most=LISTING) != []
    run_parties(*(endpoint.close for endpoint in endpoints))
    assert connection.execute(b"KEYS", pattern, timeout=5, most=LISTING) == []
    connection.close()


@pytest.mark.slow
def test_after_a_crash_every_key_expires(own_server: MakeServer, tmp_path: Path) -> None:
    server = own_server("valkey")
    admin = Admin(server)
    with trio(server.url, tmp_path, dict.fromkeys(PARTIES, "litter")) as three:
        for party in PARTIES:
            three.signal(party, signal.SIGKILL)
        keys = admin(b"KEYS", b"*")
        assert len(keys) >= 3 * 2 * 5, "messages that nobody had taken"
        for key in keys:
            assert 0 < admin(b"PTTL", key) <= 3_600_000, key
    admin.close()
