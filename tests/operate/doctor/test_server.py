"""The doctor on the server's settings, each set wrongly on a real one."""

from __future__ import annotations

import pytest

from redislink.broker import EmbeddedBroker
from redislink.operate.doctor import Level
from redislink.operate.doctor.server import judge_version
from tests.operate.doctor.conftest import Ask, Configure
from tests.support.servers import Admin


def test_the_settings_of_the_examples_pass(server: EmbeddedBroker, doctor: Ask) -> None:
    told = doctor(server.url)
    told.check("version", Level.PASS)
    assert told["version"].text.split()[0] in ("Valkey", "Redis")
    told.check("eviction", Level.PASS, "noeviction")
    told.check("memory", Level.PASS, "this session stores up to 160 MiB on the broker")
    told.check("idle cut-off", Level.PASS, "timeout is 0")


@pytest.mark.parametrize(
    ("info", "level", "words"),
    [
        ({"redis_version": "5.0.14"}, Level.FAIL, "Redis 5.0.14: its BLPOP does not accept"),
        ({"redis_version": "6.2.7"}, Level.WARN, "Redis 6.2.7: works, but has no permissions per"),
        ({"redis_version": "7.0.15"}, Level.PASS, "Redis 7.0.15"),
        ({"redis_version": "7"}, Level.PASS, "Redis 7"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, Level.PASS, "Valkey 9.1.0"),
        (
            {"redis_version": "7.x-cloud\x1b[1m"},
            Level.PASS,
            "Redis 7.x-cloud\N{REPLACEMENT CHARACTER}[1m",
        ),
        ({}, Level.WARN, "does not say its version"),
    ],
)
def test_versions(info: dict[str, str], level: Level, words: str) -> None:
    verdict = judge_version(info)
    assert verdict.level is level
    assert words in verdict.text
    assert verdict.text.isprintable()
    assert bool(verdict.remedy) == (level is not Level.PASS)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
def test_a_policy_that_evicts(
    server: EmbeddedBroker, doctor: Ask, configure: Configure, policy: str
) -> None:
    configure(maxmemory_policy=policy)
    told = doctor(server.url)
    told.check(
        *("eviction", Level.WARN, f"maxmemory-policy is {policy}", "the broker removes messages"),
        "CONFIG SET maxmemory-policy noeviction",
    )


def test_little_memory(server: EmbeddedBroker, doctor: Ask, configure: Configure) -> None:
    configure(maxmemory="100mb")
    told = doctor(server.url)
    told.check(
        *("memory", Level.WARN, "of maxmemory (100 MiB) are free", "up to 160 MiB"),
        *("raise maxmemory to 16", "REDISLINK_WINDOW_BYTES"),
    )
    told.check("largest element", Level.PASS)
    doctor(server.url, window_bytes=4 << 20).check("memory", Level.PASS, "up to 20 MiB")


def test_no_memory(server: EmbeddedBroker, doctor: Ask, configure: Configure) -> None:
    configure(maxmemory="512kb")
    told = doctor(server.url)
    told.check("memory", Level.WARN, "0.0 MiB of maxmemory")
    told.check("commands", Level.FAIL, "out of memory (OOM", "raise its maxmemory")
    told.check("largest element", Level.FAIL, "out of memory (OOM", "raise its maxmemory")
    told.check("round trip", Level.PASS)


def test_a_cut_off(server: EmbeddedBroker, doctor: Ask, configure: Configure) -> None:
    configure(timeout=10)
    told = doctor(server.url)
    told.check(
        *("idle cut-off", Level.WARN, "timeout is 10: the server closes connections that are idle"),
        "CONFIG SET timeout 0",
    )


def test_a_replica(server: EmbeddedBroker, doctor: Ask, admin: Admin) -> None:
    admin(b"REPLICAOF", b"127.0.0.1", b"1")
    try:
        told = doctor(server.url)
    finally:
        admin(b"REPLICAOF", b"NO", b"ONE")
    told.check("commands", Level.FAIL, "READONLY")
    told.check("version", Level.PASS)
