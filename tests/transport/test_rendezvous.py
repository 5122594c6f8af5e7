"""What both sides of a pair that cannot agree are told, and when."""

import contextlib
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from redislink import (
    BrokerBusy,
    BrokerPermissionError,
    BrokerTampered,
    ClusterMismatch,
    SecurityMismatch,
)
from redislink.broker import Broker, EmbeddedBroker
from redislink.identity.keypair import write_secret
from redislink.operate import acl
from redislink.protocol import list_names, sealed_handshake
from redislink.protocol.frame import Hello, encode, encode_header
from redislink.protocol.handshake import INSTANCE_BYTES, MismatchGrace
from redislink.protocol.noise_kk import KkInitiator
from redislink.transport import rendezvous
from redislink.transport.claim import PartyClaim
from redislink.transport.security import make_handshake
from tests.conftest import (
    IDENTITIES,
    connect_as,
    in_thread,
    join,
    make_cluster,
    quick_settings,
)
from tests.support.waiting import wait_until


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
def test_differing_pre_shared_keys_do_not_wait_for_the_timeout(broker_url, tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_handshake, "_UNOPENED_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "_LINGER", 2.0)  # a loaded machine is late by more than brisk
    write_secret(tmp_path / "bob.psk", b"k" * 32, "", "it")
    cluster = make_cluster(broker_url, 2)
    started = time.monotonic()
    sides = [
        in_thread(lambda n=n, d=d: connect_as(cluster, n, quick_settings(psk_dir=d)))
        for n, d in (("alice", tmp_path), ("bob", None))
    ]
    for thread, _ in sides:
        thread.join(20)
    assert time.monotonic() - started < 10
    for (_, (error,)), name, has in zip(sides, ("alice", "bob"), ("one", "none"), strict=True):
        assert isinstance(error, SecurityMismatch)
        assert str(error).startswith(f"{name}: ")
        assert f"same pre-shared key for each other, or none (this party has {has}" in str(error)


@pytest.mark.slow
def test_the_first_to_see_a_mismatch_says_hello_until_the_other_has_surely_seen_it(
    broker_url, monkeypatch
):
    """The broker loses what she says, three times after she has noticed that bob's file differs."""
    monkeypatch.setattr(rendezvous, "_HELLO_INTERVAL", 0.02)
    monkeypatch.setattr(rendezvous, "_LINGER", 2.0)
    monkeypatch.setattr(MismatchGrace, "SECONDS", 0.05)
    noticed, receive = threading.Event(), rendezvous.Rendezvous.receive

    def notice(self, *args):
        try:
            return receive(self, *args)
        except ClusterMismatch:
            noticed.set()
            raise

    monkeypatch.setattr(rendezvous.Rendezvous, "receive", notice)
    cluster = make_cluster(broker_url, 2)
    other = make_cluster(broker_url, 3, session=cluster.session)
    thread, outcome = in_thread(lambda: connect_as(cluster, "alice"))
    connection = Broker.from_settings(quick_settings(), broker_url).open()
    bob = make_handshake(other, "bob", quick_settings(), IDENTITIES["bob"], b"i" * INSTANCE_BYTES)
    to_alice = list_names.hello_list(cluster.session, "alice", "bob")
    to_bob = list_names.hello_list(cluster.session, "bob", "alice")

    def lose() -> bool:
        return connection.execute(b"LPOP", to_bob, timeout=5) is not None

    def say_hello_until_she_notices() -> bool:
        frame, body = bob.hello_for("alice")
        connection.execute(b"RPUSH", to_alice, encode_header(frame) + body, timeout=5)
        lose()
        return noticed.is_set()

    wait_until(say_hello_until_she_notices)
    lose()
    for _ in range(3):
        wait_until(lose)
    assert not outcome
    thread.join(20)
    assert isinstance(outcome[0], ClusterMismatch)
    connection.close()


AS_WRITTEN = rendezvous._HELLO_INTERVAL, rendezvous._LINGER  # tests may hasten them


def test_how_often_and_how_long_hellos_are_said_is_what_the_page_says():
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert "HELLO to every peer, and repeats it every second" in text
    assert "goes on saying hello for 2 s" in text
    assert AS_WRITTEN == (1.0, 2.0)


def test_a_peer_that_goes_on_saying_hello_is_answered_again(monkeypatch):
    """The broker lost our hello; but a peer that has it is not flooded."""
    now, answers = [0.0], []
    hello = Hello(b"d" * 32, b"i" * INSTANCE_BYTES)
    monkeypatch.setattr(rendezvous, "_HELLO_INTERVAL", 1.0)
    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(monotonic=lambda: now[0]))
    handshake = SimpleNamespace(
        receive_untrusted=lambda *_: None,
        hello_for=lambda peer: (hello, b""),
        missing=["bob"],
    )
    outbox = SimpleNamespace(push=lambda *_, **__: answers.append(now[0]), error=None)
    meeting = rendezvous.Rendezvous(
        make_cluster("fakeredis://x", 2), "alice", handshake, outbox, None
    )
    for now[0] in (10.0, 10.5, 10.8, 11.0, 11.5, 12.0):
        meeting.receive("bob", encode(hello))
    assert answers == [10.0, 11.0, 12.0]


class Killed(Exception):
    """What ends a party in the waiting room."""


@pytest.mark.usefixtures("brisk_hellos")
def test_a_party_that_starts_again_in_the_waiting_room_ends_no_run(broker_url):
    """bob has met alice and dies; carol comes; then bob comes again."""
    cluster = make_cluster(broker_url, 3)
    absent = {}

    def note(name, die_if=None):
        def on_progress(missing, seconds):
            absent[name] = missing
            if missing == die_if:
                raise Killed

        return on_progress

    def start(name, **options):
        return in_thread(lambda: connect_as(cluster, name, on_progress=note(name, **options)))

    alice = start("alice")
    killed, outcome = start("bob", die_if=["carol"])
    killed.join(20)
    assert isinstance(outcome[0], Killed)
    wait_until(lambda: absent["alice"] == ["carol"])
    carol = start("carol")
    wait_until(lambda: absent.get("carol") == ["bob"])
    # alice has met both, and not begun.
    wait_until(lambda: absent["alice"] == ["bob", "carol"])
    assert not alice[1]
    parties = [alice, start("bob"), carol]
    for thread, _ in parties:
        thread.join(20)
    ends = [outcome[0] for _, outcome in parties]
    assert [end.party for end in ends] == ["alice", "bob", "carol"], ends
    ends[0].send("bob", "t", b"x")
    assert ends[1].recv("alice", "t") == b"x"
    for end in ends:
        end.abort("the test is over")


@pytest.mark.usefixtures("brisk_hellos")
def test_a_peer_of_another_version_is_named(broker_url, monkeypatch):
    monkeypatch.setattr(MismatchGrace, "SECONDS", 0.1)
    cluster = make_cluster(broker_url, 2)
    thread, outcome = in_thread(lambda: connect_as(cluster, "alice"))
    connection = Broker.from_settings(quick_settings(), broker_url).open()
    to_alice = list_names.hello_list(cluster.session, "alice", "bob")
    hello = bytearray(encode(Hello(cluster.digest(), b"i" * INSTANCE_BYTES)))
    hello[0] -= 1

    def say_hello_until_she_gives_up() -> bool:
        connection.execute(b"RPUSH", to_alice, bytes(hello), timeout=5)
        return bool(outcome)

    wait_until(say_hello_until_she_gives_up)
    thread.join(20)
    assert isinstance(outcome[0], ClusterMismatch)
    assert "party 'bob' runs another version of redislink (protocol 4, here 5)" in str(outcome[0])
    connection.close()


HELLOS = 10_000


def unopened_hellos(sender, receiver):
    """Hellos of a peer's run that do not open, in one push."""
    peer = receiver.parts.core.peers[sender.party]
    name = next(n for n, who in receiver.parts.core.rendezvous.lists.items() if who == peer.name)
    digest, mine = receiver.cluster.digest(), receiver.parts.closing._claim.instance
    step = 1 if sender.rank < receiver.rank else 2
    hello = Hello(
        digest, bytes.fromhex(sender.parts.closing._claim.instance), bytes.fromhex(mine), True, step
    )
    body = b"x" * 100
    if step == 2:
        pair = receiver.parts.core.rendezvous.handshake._pairs[
            peer.name
        ]  # an answer is to something
        begun = pair.begun[b"another"] = KkInitiator(pair.config, bytes(32), b"payload")
        body = begun.name + body
    return name, encode(hello, body)


@pytest.mark.parametrize("receiver", ["alice", "bob"])
def test_hellos_that_do_not_open_are_counted_and_not_all_logged(valkey, receiver, caplog):
    caplog.set_level(logging.INFO)
    endpoints = join(make_cluster(valkey.url, 2), close_timeout=0.5, tamper_limit=100)
    mine = next(e for e in endpoints if e.party == receiver)
    other = next(e for e in endpoints if e is not mine)
    name, element = unopened_hellos(other, mine)
    with contextlib.closing(mine.parts.core.broker.open()) as connection:
        connection.execute(b"RPUSH", name, *[element] * 99, timeout=5)
        wait_until(lambda: connection.execute(b"LLEN", name, timeout=5) == 0)
        other.send(receiver, "t", b"still well")
        assert mine.recv(other.party, "t") == b"still well"
        connection.execute(b"RPUSH", name, *[element] * HELLOS, timeout=5)
    with pytest.raises(BrokerTampered, match=r"100 frames did not open.*hello"):
        mine.recv(other.party, "never")
    lines = [r for r in caplog.records if "ignored" in r.getMessage()]
    assert len(lines) <= 2 * (HELLOS + 99).bit_length()
    for endpoint in endpoints:
        endpoint.abort("done")


def test_hellos_that_are_none_are_not_all_logged_while_parties_meet(valkey, caplog):
    caplog.set_level(logging.INFO)
    cluster = make_cluster(valkey.url, 2)
    name = list_names.hello_list(cluster.session, "alice", "bob")
    with contextlib.closing(Broker(valkey.url).open()) as connection:
        connection.execute(b"RPUSH", name, *[b"junk"] * 1000, timeout=5)
        meeting, met = in_thread(lambda: connect_as(cluster, "alice"))
        wait_until(lambda: connection.execute(b"LLEN", name, timeout=5) == 0)
    bob = connect_as(cluster, "bob")
    meeting.join()
    lines = [r for r in caplog.records if "ignored a hello" in r.getMessage()]
    assert 1 <= len(lines) <= 12
    for endpoint in (met[0], bob):
        endpoint.abort("done")


REFUSALS = {
    "not allowed": (BrokerPermissionError, "permission denied"),
    "no memory": (BrokerBusy, "out of memory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSALS)
def test_a_broker_that_takes_no_hello_is_named_and_not_the_others(what, monkeypatch):
    kind, words = REFUSALS[what]
    acquire = PartyClaim.acquire
    with EmbeddedBroker() as server, contextlib.closing(Broker(server.url).open()) as admin:
        cluster = make_cluster(server.url, 2)
        mine = f"~{list_names.PREFIX}:{{{cluster.session}:alice}}:*"
        admin.execute("ACL", "SETUSER", "u", "on", ">pw", "+@all", mine, timeout=5)

        def acquire_and_refuse(claim, *given, **more):
            acquire(claim, *given, **more)
            if what == "no memory":
                admin.execute("ACL", "SETUSER", "u", "allkeys", timeout=5)
                admin.execute("CONFIG", "SET", "maxmemory", "1", timeout=5)

        monkeypatch.setattr(PartyClaim, "acquire", acquire_and_refuse)
        settings = quick_settings(
            broker_url=acl.party_url(server.url, "u", "pw"), broker_timeout=1.5, connect_timeout=60
        )
        with pytest.raises(kind, match="alice: the broker has taken no hello.*" + words) as caught:
            connect_as(cluster, "alice", settings)
        assert "bob" not in str(caught.value)
