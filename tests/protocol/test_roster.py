"""Nobody begins before all have met the present run of all: parties that start again meanwhile."""

import random
from dataclasses import replace

import pytest

from redislink.protocol.handshake import PlainHandshake
from redislink.protocol.roster import Roster

NAMES = ("alice", "bob", "carol")
DIGEST = b"d" * 32


class Party:
    """One run of a party, in the waiting room."""

    def __init__(self, name: str, instance: bytes, hellos: dict) -> None:
        peers = [other for other in NAMES if other != name]
        self.name, self.instance, self.peers = name, instance, peers
        self.handshake = PlainHandshake("s", name, peers, DIGEST, instance)
        self.roster = Roster("s", peers, self.handshake)
        self._hellos = hellos
        """The newest hello from one party to another: what stands on a hello list."""
        self.said = b""

    def say(self) -> None:
        for peer in self.peers:
            hello, _ = self.handshake.hello_for(peer)
            self.said = self.roster.mine
            self._hellos[self.name, peer] = replace(hello, roster=self.said)

    def hear(self, peer: str) -> None:
        hello = self._hellos.pop((peer, self.name), None)
        if hello is not None:
            self.handshake.receive_untrusted(peer, hello, b"", 0.0)
            self.roster.heard(peer, hello)


def room(*names: str) -> dict[str, Party]:
    hellos: dict = {}
    return {name: Party(name, name[:1].encode() * 8, hellos) for name in names}


def talk(parties: dict[str, Party], rounds: int = 6) -> None:
    for _ in range(rounds):
        for party in parties.values():
            party.say()
        for party in parties.values():
            for peer in party.peers:
                party.hear(peer)


def test_all_begin_once_all_have_met():
    parties = room(*NAMES)
    talk(parties)
    assert [party.roster.absent for party in parties.values()] == [[], [], []]
    assert len({party.roster.mine for party in parties.values()}) == 1


def test_nobody_begins_while_one_is_missing():
    parties = room("alice", "bob")
    talk(parties)
    assert [party.roster.absent for party in parties.values()] == [["carol"], ["carol"]]
    assert {party.roster.mine for party in parties.values()} == {b""}


def test_a_party_that_died_in_the_waiting_room_is_waited_for():
    """bob has met alice, and dies before carol comes: alice and carol have met, but not begun."""
    parties = room("alice", "bob")
    talk(parties)
    hellos, dead = parties["alice"]._hellos, parties.pop("bob")
    parties["carol"] = Party("carol", b"c" * 8, hellos)
    talk(parties)
    assert not parties["alice"].handshake.missing
    assert parties["alice"].roster.absent == ["bob", "carol"]
    parties["bob"] = Party("bob", b"B" * 8, hellos)
    talk(parties)
    assert [party.roster.absent for party in parties.values()] == [[], [], []]
    assert parties["carol"].handshake.runs()["bob"] != dead.instance


@pytest.mark.parametrize("seed", range(20))
def test_who_begins_has_met_the_present_run_of_all(seed):
    """Any party may start again, until it has said that all that it has met are all that there are.

    One that ends between that and the beginning cannot be told from one that ends right after it.
    """
    rng = random.Random(seed)
    parties = room(*NAMES)
    hellos = parties["alice"]._hellos
    while not (begun := [party for party in parties.values() if not party.roster.absent]):
        party = parties[rng.choice(NAMES)]
        has_said = party.said != b"" and party.said == party.roster.mine
        if rng.random() < 0.05 and not has_said:
            parties[party.name] = Party(party.name, rng.randbytes(8), hellos)
        elif rng.random() < 0.5:
            party.say()
        else:
            party.hear(rng.choice(party.peers))
    present = {party.name: party.instance for party in parties.values()}
    assert begun[0].handshake.runs() == present
