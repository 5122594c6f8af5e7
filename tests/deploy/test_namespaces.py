"""The promise, as a network sees it: behind firewalls that let nothing in, the demo runs.

Each party is in a network namespace of its own, behind a firewall that drops all that comes in and
is no answer, and lets nothing out but one way: alice's to the broker, bob's to a proxy that takes
CONNECT, carol's to one that takes SOCKS. Only the proxies know the broker's name. Broker and
proxies are in other namespaces, and a router that passes everything is between them. On every party
a socket listens, and is dialled before, during and after the run: so it is the firewall, and
nothing else, that stands in the way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.parties import PartyProcess
from redislink.cluster.trial import trial_devices, write_trial
from tests.support.egress import RealProxy
from tests.support.egress import missing as missing_proxies
from tests.support.namespaces import Host, Internet, dial, listener, missing
from tests.support.waiting import wait_until

PARTIES: Final = ("alice", "bob", "carol")
PROGRAM: Final = Path(__file__).parents[2] / "examples" / "logistic_regression.py"
BROKER_PORT: Final = 6379
CONNECT_PORT: Final = 3128
SOCKS_PORT: Final = 1080
PROBE_PORT: Final = 7777
_DIAL_TIMEOUT: Final = 5.0
_DROPPED_AFTER: Final = 0.2
"""Seconds without an answer after which the firewall's counter is asked whether it was dropped."""
_RUN_TIMEOUT: Final = 120.0

# Nothing on the loopback device either: in a party's namespace there is nothing but the party.
FIREWALL: Final = """
table inet party {{
    counter probes {{}}
    counter dialled {{}}
    counter strayed {{}}
    chain incoming {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        tcp dport {probe_port} tcp flags & (fin|syn|rst|ack) == syn counter name probes drop
        tcp flags & (fin|syn|rst|ack) == syn counter name dialled drop
    }}
    chain outgoing {{
        type filter hook output priority filter; policy drop;
        ip daddr {allowed} tcp dport {allowed_port} accept
        counter name strayed drop
    }}
}}
"""


@pytest.fixture
def internet() -> Iterator[Internet]:
    """A broker's and three parties' hosts; nothing of them is left afterwards."""
    why = missing() or missing_proxies()
    if why and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"the product's promise must be tried in CI: {why}")
    if why:
        pytest.skip(f"NOT TRIED: that parties run behind closed firewalls: {why}")
    with Internet(["broker", "proxies", *PARTIES]) as network:
        yield network


@dataclass(frozen=True)
class Way:
    """How a party reaches the broker.

    Attributes:
        server: the one host, and
        port: the one port that its firewall lets it dial.
        settings: what it needs for that.
    """

    server: Host
    port: int
    settings: dict[str, str]


@contextlib.contextmanager
def proxies(host: Host, broker: Host, directory: Path) -> Iterator[list[RealProxy]]:
    """One that takes CONNECT and one that takes SOCKS, each with a login."""
    hosts = directory / "hosts"
    hosts.write_text(f"{broker.address} broker.example\n")
    host.namespace.run("ip", "link", "set", "lo", "up")  # their start is watched from there
    with ExitStack() as stack:
        made = []
        for kind, port in (("tinyproxy", CONNECT_PORT), ("microsocks", SOCKS_PORT)):
            made.append(
                RealProxy(
                    kind,
                    directory / kind,
                    [BROKER_PORT],
                    login=True,
                    address=host.address,
                    hosts=hosts,
                    port=port,
                )
            )
            stack.callback(made[-1].stop)
            host.namespace(made[-1].start)
        yield made


@pytest.mark.slow
def test_the_demo_runs_behind_firewalls_that_let_nothing_in(
    internet: Internet, tmp_path: Path
) -> None:
    parties = {name: internet.hosts[name] for name in PARTIES}
    broker, between = internet.hosts["broker"], internet.hosts["proxies"]
    with ExitStack() as stack:
        url = stack.enter_context(serving(broker))
        ways = {"alice": Way(broker, BROKER_PORT, {"REDISLINK_BROKER_URL": url})}
        named = url.replace(broker.address, "broker.example")
        made = stack.enter_context(proxies(between, broker, tmp_path))
        for name, proxy in zip(PARTIES[1:], made, strict=True):
            settings = {"REDISLINK_BROKER_URL": named, "REDISLINK_BROKER_PROXY": proxy.url()}
            ways[name] = Way(between, proxy.port, settings)
        for name, host in parties.items():
            stack.enter_context(listener(host, PROBE_PORT))
            assert dial(broker.namespace, host.address, PROBE_PORT, _DIAL_TIMEOUT), "no firewall"
            host.namespace.firewall(
                FIREWALL.format(
                    probe_port=PROBE_PORT,
                    allowed=ways[name].server.address,
                    allowed_port=ways[name].port,
                )
            )
        check_that_nothing_gets_in(internet, parties)

        results = train(internet, parties, ways, tmp_path)

        check_that_nothing_gets_in(internet, parties)
        assert results["alice"]["accuracy"] == pytest.approx(
            results["alice"]["plaintext_accuracy"], abs=0.02
        )
        assert results["alice"]["plaintext_accuracy"] > 0.9
        assert all(result["bytes_sent"] > 100_000 for result in results.values())
        for name, host in parties.items():
            counted = host.namespace.counters()
            assert counted["probes"] >= 6, name  # three times from two places
            assert counted["dialled"] == 0, f"somebody needed to dial {name}"
            assert counted["strayed"] == 0, f"{name} sent to others than it is to"
            host.namespace.drop_firewall()
            assert dial(broker.namespace, host.address, PROBE_PORT, _DIAL_TIMEOUT), "no firewall"


def test_a_closed_firewall_is_told_from_a_port_where_nobody_listens(internet: Internet) -> None:
    """Else the checks of the other test would pass on a network that is merely broken."""
    alice, broker = internet.hosts["alice"], internet.hosts["broker"]
    with pytest.raises(ConnectionRefusedError):
        dial(broker.namespace, alice.address, PROBE_PORT, _DIAL_TIMEOUT)


def train(
    internet: Internet, parties: dict[str, Host], ways: dict[str, Way], directory: Path
) -> dict[str, dict[str, Any]]:
    """The demo's processes, each in its namespace; what each reported at its end, by party."""
    cluster = directory / "cluster.yaml"
    keys = {name: directory / f"keys-{name}" / "identity.key" for name in PARTIES}
    content = {
        "session": "namespaces",
        "parties": list(PARTIES),
        "devices": trial_devices(list(PARTIES)),
    }
    write_trial(content, cluster, keys, "of a test")
    results: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    with ExitStack() as stack:
        processes = {}
        for name, host in parties.items():
            environment = {
                **ways[name].settings,
                "REDISLINK_LINK_MODE": "channels",
                "REDISLINK_IDENTITY_FILE": str(keys[name]),
                "REDISLINK_PSK_DIR": str(keys[name].parent),
            }
            processes[name] = stack.enter_context(
                host.namespace(
                    lambda name=name, environment=environment: PartyProcess(  # type: ignore[misc]
                        name,
                        cluster=cluster,
                        program=PROGRAM,
                        arguments=["--plaintext"] if name == "alice" else [],
                        directory=directory,
                        environment=environment,
                    )
                )
            )

        def ended() -> bool:
            over = all(process.exit_code() is not None for process in processes.values())
            for name, process in processes.items():
                for event in process.events():
                    seen.add(name)
                    if event["event"] == "result":
                        results[name] = event
            return over

        wait_until(lambda: ended() or seen == set(PARTIES), _RUN_TIMEOUT)
        output = {name: process.output() for name, process in processes.items()}
        assert seen == set(PARTIES), output
        assert not results, "the run was over before it could be looked at"
        check_sockets(parties, ways)
        check_that_nothing_gets_in(internet, parties)
        wait_until(ended, _RUN_TIMEOUT)
        for process in processes.values():
            assert process.exit_code() == 0, process.output()
    return results


def check_that_nothing_gets_in(internet: Internet, parties: dict[str, Host]) -> None:
    """Dial each party, from outside and from the broker: dropped, as its firewall has counted."""
    for host in parties.values():
        for source in (internet.router, internet.hosts["broker"].namespace):
            before = host.namespace.counters()["probes"]
            assert not dial(source, host.address, PROBE_PORT, _DROPPED_AFTER)
            assert host.namespace.counters()["probes"] > before, f"{source.name}: came nowhere"


def check_sockets(parties: dict[str, Host], ways: dict[str, Way]) -> None:
    """In a party's whole namespace only the probe listens, and all connections go one way."""
    for name, host in parties.items():
        assert host.namespace.sockets("-l", "-t", "-u") == [
            (f"0.0.0.0:{PROBE_PORT}", "0.0.0.0:*")
        ], name
        remotes = {remote for _, remote in host.namespace.sockets("-t", "state", "established")}
        assert remotes == {f"{ways[name].server.address}:{ways[name].port}"}, name


@contextlib.contextmanager
def serving(host: Host) -> Iterator[str]:
    """A server with a password on this host; its URL, for the others."""
    password = "of a test"
    host.namespace.run("ip", "link", "set", "lo", "up")  # its start is watched from there
    server = EmbeddedBroker(
        BROKER_PORT, password=password, options={"bind": f"127.0.0.1 {host.address}"}
    )
    host.namespace(server.start)
    try:
        yield server.url.replace("127.0.0.1", host.address)
    finally:
        server.stop()
