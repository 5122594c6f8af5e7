"""`FaultyBroker`: each fault happens, none costs or doubles a message, and a seed replays."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from redislink import Endpoint
from redislink.broker import Broker
from redislink.errors import BrokerBusy, BrokerUnreachable, ConfigError
from redislink.protocol import list_names
from redislink.testing import Faults, FaultyBroker
from tests.conftest import join, make_cluster, run_parties

# Rare enough that resends, which are pushes too, do not set off the next flush.
CHANCES = {
    "drop": 0.05,
    "duplicate": 0.2,
    "reorder": 0.2,
    "delay": 0.1,
    "cut": 0.03,
    "flush": 0.005,
    "refuse": 0.1,
}
TAGS = ["a", "b", "c", "d"]
ROUNDS = 12


def exchange(endpoints: list[Endpoint], seed: int) -> None:
    """Every pair, both ways, a thread per tag: each message once, in order, intact."""

    def payload(src: str, dst: str, tag: str, number: int) -> bytes:
        chance = random.Random(f"{seed} {src} {dst} {tag} {number}")
        return chance.randbytes(chance.choice([0, 10, 3000]))

    def receive(me: Endpoint, src: str, tag: str) -> None:
        for number in range(ROUNDS):
            assert me.recv(src, tag) == payload(src, me.party, tag, number), (src, tag, number)

    def send(me: Endpoint, dst: str) -> None:
        for number in range(ROUNDS):
            for tag in TAGS:
                me.send(dst, tag, payload(me.party, dst, tag, number))

    works = []
    for me in endpoints:
        for peer in (e.party for e in endpoints if e is not me):
            works += [lambda me=me, tag=tag, peer=peer: receive(me, peer, tag) for tag in TAGS]
            works.append(lambda me=me, peer=peer: send(me, peer))
    run_parties(*works)
    for endpoint in endpoints:
        total = len(TAGS) * ROUNDS * (len(endpoints) - 1)
        assert endpoint.stats().messages_received == total


def play(url: str, faults: Faults, seed: int, parties: int = 2) -> FaultyBroker:
    """One whole session; faults end when everything has come."""
    broker = FaultyBroker(url, seed=seed, faults=faults, timeout=2)
    endpoints = join(make_cluster(url, parties), broker=broker)
    try:
        exchange(endpoints, seed)
    finally:
        broker.faults = Faults()
        run_parties(*(endpoint.close for endpoint in endpoints))
    return broker


@pytest.mark.slow
@pytest.mark.parametrize("fault", CHANCES)
def test_each_fault_happens_and_every_message_comes_once(broker_url: str, fault: str) -> None:
    chance = 0.02 if fault == "flush" else CHANCES[fault]
    broker = play(broker_url, Faults(**{fault: chance}), seed=12)
    assert set(broker.injected) == {fault}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3])
def test_all_faults_together(broker_url: str, seed: int) -> None:
    broker = play(broker_url, Faults(**CHANCES), seed, parties=3)
    assert set(broker.injected) >= set(CHANCES) - {"flush"}


def pushed(broker: FaultyBroker, name: bytes, count: int) -> list[object]:
    """What the outbox would see of so many pushes, on a connection that is renewed when cut."""
    seen: list[object] = []
    connection = broker.open()
    for number in range(count):
        try:
            seen.append(connection.execute(b"RPUSH", name, b"%d" % number, timeout=5) > 0)
        except (BrokerBusy, BrokerUnreachable) as error:
            seen.append(type(error))
            if not connection.usable:
                connection = broker.open()
    connection.close()
    return seen


class TestSeeds:
    def test_a_seed_replays_in_another_session_and_another_order(self) -> None:
        faults = Faults.all(0.1)
        one, two, other = (
            FaultyBroker(f"fakeredis://replay-{n}", seed=seed, faults=faults)
            for n, seed in enumerate((5, 5, 6))
        )
        for broker, session, order in ((one, "s1", "ab"), (two, "s2", "ba"), (other, "s3", "ab")):
            for tag in order:
                name = list_names.data_list(session, "bob", "alice", "0" * 16, tag)
                pushed(broker, name, 50)
        assert one.injected
        assert sorted(one.history) == sorted(two.history)
        assert sorted(one.history) != sorted(other.history)

    def test_the_chances_are_about_right(self) -> None:
        broker = FaultyBroker("fakeredis://chances", faults=Faults(drop=0.2, refuse=0.1))
        name = list_names.data_list("s", "bob", "alice", "0" * 16, "t")
        outcomes = Counter(broker.decide("push", name)[0] for _ in range(5000))
        assert 800 < outcomes["drop"] < 1200
        assert 400 < outcomes["refuse"] < 600

    @pytest.mark.parametrize("wrong", [{"drop": -0.1}, {"cut": 1.1}, {"drop": 0.6, "cut": 0.6}])
    def test_chances_that_cannot_be_meant(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="from 0 to 1"):
            Faults(**wrong)


class TestOneFault:
    """What the server holds, and what the caller sees, when a fault is certain."""

    NAME = list_names.data_list("certain", "bob", "alice", "0" * 16, "t")

    def outcome(self, url: str, fault: str, count: int = 1) -> tuple[list[object], list[bytes]]:
        plain = Broker(url).open()
        plain.execute(b"DEL", self.NAME, timeout=5)
        seen = pushed(FaultyBroker(url, faults=Faults(**{fault: 1.0})), self.NAME, count)
        held = plain.execute(b"LRANGE", self.NAME, 0, -1, timeout=5)
        plain.close()
        return seen, held

    def test_drop(self, broker_url: str) -> None:
        assert self.outcome(broker_url, "drop") == ([True], [])

    def test_duplicate(self, broker_url: str) -> None:
        assert self.outcome(broker_url, "duplicate", 2) == ([True] * 2, [b"0", b"0", b"1", b"1"])

    def test_refuse(self, broker_url: str) -> None:
        assert self.outcome(broker_url, "refuse") == ([BrokerBusy], [])

    def test_flush(self, broker_url: str) -> None:
        assert self.outcome(broker_url, "flush") == ([True], [])

    def test_cut_before_and_after_the_effect(self, broker_url: str) -> None:
        seen, held = self.outcome(broker_url, "cut", 20)
        assert seen == [BrokerUnreachable] * 20
        assert 0 < len(held) < 20

    @pytest.mark.parametrize("fault", ["reorder", "delay"])
    def test_late_pushes_come_and_expire(self, broker_url: str, fault: str) -> None:
        plain = Broker(broker_url).open()
        plain.execute(b"DEL", self.NAME, timeout=5)
        pushed(FaultyBroker(broker_url, faults=Faults(**{fault: 1.0})), self.NAME, 1)
        assert plain.execute(b"BLPOP", self.NAME, 5, timeout=8) == [self.NAME, b"0"]
        plain.close()

    def test_reorder_goes_behind_the_next_push(self, broker_url: str) -> None:
        plain = Broker(broker_url).open()
        plain.execute(b"DEL", self.NAME, timeout=5)
        broker = FaultyBroker(broker_url, faults=Faults(reorder=1.0))
        connection = broker.open()
        connection.send([(b"RPUSH", self.NAME, b"first"), (b"PEXPIRE", self.NAME, 9000)])
        broker.faults = Faults()
        connection.send([(b"RPUSH", self.NAME, b"second"), (b"PEXPIRE", self.NAME, 9000)])
        assert [connection.read(5) for _ in range(4)][2:] == [1, 1]
        assert plain.execute(b"LRANGE", self.NAME, 0, -1, timeout=5) == [b"second", b"first"]
        for each in (connection, plain):
            each.close()

    def test_a_pop_that_is_cut_has_lost_its_element(self, broker_url: str) -> None:
        plain = Broker(broker_url).open()
        plain.execute(b"DEL", self.NAME, timeout=5)
        plain.execute(b"RPUSH", self.NAME, b"x", timeout=5)
        connection = FaultyBroker(broker_url, faults=Faults(cut=1.0)).open()
        with pytest.raises(BrokerUnreachable):
            connection.execute(b"BLPOP", self.NAME, 1, timeout=5)
        assert not connection.usable
        assert plain.execute(b"LLEN", self.NAME, timeout=5) == 0
        plain.close()

    def test_replies_stay_in_step(self, broker_url: str) -> None:
        broker = FaultyBroker(broker_url, seed=3, faults=Faults(drop=0.3, duplicate=0.3))
        connection = broker.open()
        connection.execute(b"DEL", self.NAME, timeout=5)
        for number in range(30):
            connection.send(
                [(b"ECHO", b"%d" % number), (b"RPUSH", self.NAME, b"x"), (b"ECHO", b"end")]
            )
        for number in range(30):
            assert connection.read(5) == b"%d" % number
            assert connection.read(5) > 0
            assert connection.read(5) == b"end"
        assert not connection.readable()
        connection.execute(b"DEL", self.NAME, timeout=5)
        connection.close()

    def test_foreign_keys_are_left_alone(self, broker_url: str) -> None:
        connection = FaultyBroker(broker_url, faults=Faults(drop=1.0)).open()
        assert connection.execute(b"RPUSH", b"somebody-elses", b"x", timeout=5) == 1
        assert connection.execute(b"DEL", b"somebody-elses", timeout=5) == 1
        connection.close()


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_hellos_that_are_lost_are_said_again(seed: int) -> None:
    url = f"fakeredis://hello-{seed}"
    broker = FaultyBroker(url, seed=seed, faults=Faults(drop=0.25, cut=0.1))
    endpoints = join(make_cluster(url, 3), broker=broker)
    broker.faults = Faults()
    exchange(endpoints, seed)
    run_parties(*(endpoint.close for endpoint in endpoints))
