"""The model of a broker's load: its limits are known exactly, and its numbers hang together."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from redislink.errors import UsageError
from redislink.operate.sizing import (
    BUSIEST,
    MEASURED,
    Broker,
    Costs,
    Load,
    connections_of_a_party,
    flow,
    size,
)

COSTS = Costs(
    source="made up",
    message=20e-6,
    byte=1e-9,
    idle=0.0,
    io_threads=0.8,
    cluster=1.5,
    party_message=60e-6,
    party_byte=1e-9,
    way=100e-6,
    base_bytes=1e6,
    node_bytes=3e6,
    connection_bytes=10e3,
)
SMALL = Load(parties=2, sessions=1, message_bytes=1)


def test_one_message_alone_waits_for_nobody() -> None:
    """Two go round in a session of two; with one of them nothing ever waits."""
    found = flow(replace(SMALL, rtt=0.02, rate=1.0), costs=COSTS)
    assert found.way == pytest.approx(0.01 + 100e-6, rel=1e-3)
    assert found.rate == pytest.approx(1.0)
    assert found.cores == pytest.approx(20e-6, rel=1e-3)


def test_many_sessions_fill_a_server_and_no_more() -> None:
    found = flow(replace(SMALL, sessions=5000, rtt=0.02), costs=COSTS)
    assert found.cores == pytest.approx(1.0, rel=1e-3)
    assert found.rate == pytest.approx(1 / 20e-6, rel=1e-3)
    assert found.way == pytest.approx(10_000 * 20e-6, rel=1e-2)


def test_few_sessions_are_limited_by_the_way_alone() -> None:
    found = flow(replace(SMALL, sessions=10, rtt=0.02), costs=COSTS)
    assert found.rate == pytest.approx(20 / 0.0101, rel=0.01)


def test_a_thin_line_is_full_and_no_more() -> None:
    load = Load(parties=3, sessions=200, rtt=0.02, bandwidth=10e6, message_bytes=10_000)
    found = size(load, COSTS)
    assert found.line_use == pytest.approx(1.0, rel=0.01)
    assert found.broker_bandwidth == pytest.approx(30e6, rel=0.01)
    assert found.broker == Broker()


def test_parties_on_the_brokers_machine_take_its_cores() -> None:
    load = replace(SMALL, sessions=200)
    shared = flow(load, costs=COSTS, shared_cores=2)
    assert shared.rate == pytest.approx(2 / 80e-6, rel=0.02)
    assert shared.rate < flow(load, costs=COSTS).rate


@pytest.mark.parametrize(
    ("sessions", "broker"),
    [
        (1, Broker()),
        (190, Broker(io_threads=True)),
        (1000, Broker(servers=9, cluster=True)),
    ],
)
def test_the_least_broker_that_is_not_too_busy(sessions: int, broker: Broker) -> None:
    found = size(replace(SMALL, sessions=sessions, rtt=0.02), COSTS)
    assert found.broker == broker
    most = BUSIEST * broker.servers
    assert found.flow.cores <= most
    assert (found.cores <= BUSIEST) == (broker == Broker())


def test_idle_parties_cost_too() -> None:
    costs = replace(COSTS, idle=0.001)
    found = size(replace(SMALL, sessions=100, rate=0.001), costs)
    assert found.cores == pytest.approx(0.2, rel=0.01)
    assert flow(replace(SMALL, sessions=600, rate=0.001), costs=costs).way == math.inf


def test_memory_and_connections() -> None:
    load = Load(parties=3, sessions=10, rate=1.0, message_bytes=1000)
    found = size(load, COSTS)
    assert connections_of_a_party(3, Broker()) == 10
    assert found.connections == 300
    assert found.likely_bytes == pytest.approx(1.25 * (1e6 + 300 * 10e3 + 30_000))
    assert found.most_bytes == pytest.approx(1.25 * (4e6 + 10 * 384 * (1 << 20)))
    assert connections_of_a_party(3, Broker(5, cluster=True)) == 12


def test_it_says_which_settings_to_raise() -> None:
    def settings(load: Load) -> dict[str, str]:
        return {setting: value for setting, value, _ in size(load, COSTS).advice}

    few = settings(replace(SMALL, rate=1.0))
    assert few == {"maxmemory": "170mb"}
    many = settings(Load(parties=3, sessions=400, rate=1.0))
    assert many["maxclients"] == "15000"
    assert many["LimitNOFILE"] == "16000"
    fast = settings(replace(SMALL, rtt=0.1, bandwidth=10e9, rate=1.0))
    assert fast["REDISLINK_WINDOW_BYTES"] == str(256 << 20)
    busy = settings(replace(SMALL, sessions=1000, rtt=0.02))
    assert busy["REDISLINK_BROKER_URL"] == "redis+cluster://…"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"parties": 1}, "parties must be from 2 to 64, not 1"),
        ({"sessions": 0}, "sessions"),
        ({"rtt": math.nan}, "the round trip in seconds"),
        ({"bandwidth": -1.0}, "the bandwidth in bit/s"),
        ({"message_bytes": 0}, "the bytes of a message"),
        ({"rate": 0.0}, "messages per second"),
        ({"window_bytes": 1}, "the bytes of the window"),
    ],
)
def test_what_no_load_can_be(changed: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        replace(SMALL, **changed)


def test_the_constants_are_of_a_measurement() -> None:
    assert "20" in MEASURED.source
    numbers = [getattr(MEASURED, each.name) for each in fields(MEASURED)][1:]
    assert all(number > 0 for number in numbers)
    assert MEASURED.io_threads <= 1
