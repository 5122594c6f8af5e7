"""Which links a sidecar makes, and how they end with the process that made them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from redislink.errors import ConfigError, PartyTaken, UsageError
from redislink.interop.parties import Parties
from redislink.interop.sidecar import links as module
from redislink.interop.sidecar.links import Links, Wanted
from tests.support.waiting import wait_until

ADDRESSES = ("10.0.0.1:9001", "0.0.0.0:9002")


def wanted(
    name: str = "root",
    rank: int = 0,
    parties: tuple[str, ...] = ("alice", "bob"),
    addresses: tuple[str, ...] = ADDRESSES,
) -> Wanted:
    return Wanted(name, tuple(zip(parties, addresses, strict=True)), rank)


class Joined:
    """Stands in for an endpoint, of a link that nobody else is in."""

    def __init__(self, cluster: Any, party: str, settings: Any) -> None:
        self.cluster, self.party, self.settings = cluster, party, settings
        self.ended: str | None = None

    def recv(self, *_: Any) -> bytes:
        raise UsageError("nothing comes here")

    def close(self) -> None:
        self.ended = "closed"

    def abort(self, reason: str, *, retryable: bool) -> None:
        assert retryable
        self.ended = reason


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Joined]:
    made: list[Joined] = []

    def connect(_: Parties, *args: Any) -> Joined:
        made.append(Joined(*args))
        return made[-1]

    monkeypatch.setattr(Parties, "connect", connect)
    return made


@pytest.fixture
def alice(make_parties: Callable[..., Parties], said: list[str]) -> Links:
    return Links(make_parties("alice"), said.append)


def sessions(joined: list[Joined]) -> list[str]:
    return [each.cluster.session for each in joined]


def test_links_of_one_name_are_told_apart_by_their_order_in_a_process(
    alice: Links, joined: list[Joined]
) -> None:
    first, second = alice.enter("one", lasting=False), alice.enter("another", lasting=False)
    for name in ("root", "root", "other"):
        alice.make(first, wanted(name))
    assert len(set(sessions(joined))) == 3
    with pytest.raises(PartyTaken, match="another process of the program has link 'root'"):
        alice.make(second, wanted("root"))
    alice.leave(first)
    alice.make(second, wanted("root"))
    assert sessions(joined)[3] == sessions(joined)[0], "a program that starts again begins anew"


def test_links_of_one_name_are_told_apart_by_their_ports(
    alice: Links, joined: list[Joined]
) -> None:
    client = alice.enter("one", lasting=False)
    alice.make(client, wanted())
    alice.make(client, wanted(addresses=("10.0.0.1:9001", "0.0.0.0:9003")))
    alice.make(client, wanted(addresses=("alice.example:9001", "bob.example:9003")))
    assert len(set(sessions(joined))) == 3, "the last two: their order"


def test_all_parties_find_the_same_session(
    make_parties: Callable[..., Parties], joined: list[Joined], said: list[str]
) -> None:
    for rank, party in enumerate(["alice", "bob"]):
        own = [*ADDRESSES]
        own[rank] = own[rank].replace("10.0.0.1", "0.0.0.0")  # where it listens without us
        links = Links(make_parties(party), said.append)
        link = links.make(links.enter("x", lasting=False), wanted(rank=rank, addresses=tuple(own)))
        assert link.parties == ("alice", "bob")
    assert len(set(sessions(joined))) == 1
    assert joined[0].cluster.digest() == joined[1].cluster.digest()


def test_ports_are_ignored_if_the_user_says_so(
    make_parties: Callable[..., Parties], joined: list[Joined], said: list[str]
) -> None:
    for addresses in (ADDRESSES, ("a:1", "b:2")):
        links = Links(make_parties("alice"), said.append, by_ports=False)
        links.make(links.enter("x", lasting=False), wanted(addresses=addresses))
    assert len(set(sessions(joined))) == 1


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"parties": ("alice", "dave")}, "dave is not in session 'sidecars', which has alice, bob"),
        ({"rank": 1}, "rank 1 is bob, and this process runs as alice"),
        ({"rank": 2}, "rank 2 of 2 parties"),
        ({"parties": ("alice", "alice")}, "alice takes part twice"),
        ({"parties": ("carol", "bob")}, "who takes no part"),
    ],
)
def test_a_link_that_cannot_be(
    alice: Links, joined: list[Joined], changed: dict[str, Any], what: str
) -> None:
    client = alice.enter("one", lasting=False)
    with pytest.raises(ConfigError, match=what):
        alice.make(client, wanted(**changed))
    assert joined == []
    alice.make(client, wanted())


def test_parties_that_do_not_meet_leave_the_name_free(
    alice: Links, joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = alice.enter("one", lasting=False)
    with monkeypatch.context() as patch:
        patch.setattr(Parties, "connect", lambda *_: joined.append(None) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            alice.make(client, wanted())
    alice.make(client, wanted())
    assert client.made["root", "9001,9002", "alice", "bob"] == 1


def test_a_process_that_ends_while_its_link_is_made_has_none(
    alice: Links, joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = alice.enter("process 17", lasting=False)
    connect = Parties.connect
    with monkeypatch.context() as patch:
        patch.setattr(Parties, "connect", lambda *args: alice.leave(client) or connect(*args))
        with pytest.raises(UsageError, match="process 17 ended while link 'root' was made"):
            alice.make(client, wanted())
    assert [each.ended for each in joined] == ["its program ended without a word"]


def test_a_sidecar_ends_once_all_its_links_have(
    alice: Links, joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a process that has just ended, whose last words are under way."""
    client = alice.enter("one", lasting=False)
    alice.make(client, wanted())
    client.ended = ""
    may_end, closed = threading.Event(), threading.Event()
    monkeypatch.setattr(Joined, "close", lambda _: may_end.wait(10) and closed.set())
    leaving = threading.Thread(target=alice.leave, args=(client,))
    leaving.start()
    wait_until(lambda: not client.links)
    threading.Timer(0.05, may_end.set).start()
    alice.close()
    assert closed.is_set()
    leaving.join()


@pytest.mark.parametrize(
    ("lasting", "ended", "told"),
    [
        (False, "", "closed"),
        (False, "ValueError in its program", "ValueError in its program"),
        (False, None, "its program ended without a word"),
        (True, None, "closed"),
        (True, "ValueError in its program", "ValueError in its program"),
    ],
)
def test_links_end_as_their_process_did(
    alice: Links, joined: list[Joined], lasting: bool, ended: str | None, told: str
) -> None:
    client = alice.enter("process 17", lasting=lasting)
    number = alice.make(client, wanted()).number
    alice.make(client, wanted())
    client.ended = ended
    alice.leave(client)
    assert [each.ended for each in joined] == [told, told]
    with pytest.raises(UsageError, match=f"knows no link {number}"):
        alice.link(number)
    with pytest.raises(UsageError, match="knows no process"):
        alice.client(client.number)


def test_a_link_that_the_program_dropped_is_left_once_spu_has_let_go(
    alice: Links, joined: list[Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = alice.enter("one", lasting=False)
    used, dropped = alice.make(client, wanted()), alice.make(client, wanted())
    dropped.released = True
    dropped.pop("bob", 0)
    alice.sweep()
    assert [each.ended for each in joined] == [None, None], "SPU may hold it still"
    monkeypatch.setattr(module, "IDLE", -1.0)
    alice.sweep()
    assert [each.ended for each in joined] == [None, "closed"]
    assert alice.link(used.number) is used


def test_the_end_of_a_sidecar_ends_all_links_each_in_its_own_way(
    alice: Links, joined: list[Joined]
) -> None:
    clients = [alice.enter(name, lasting=False) for name in ("one", "another")]
    for name, client in zip("ab", clients, strict=True):
        alice.make(client, wanted(name))
    clients[0].ended = "ValueError in its program"
    alice.close("its program ended with exit code 1")
    assert sorted(str(each.ended) for each in joined) == [
        "ValueError in its program",
        "its program ended with exit code 1",
    ]


def test_two_parties_meet_and_one_fails(
    make_parties: Callable[..., Parties], said: list[str]
) -> None:
    sidecars = {name: Links(make_parties(name), said.append) for name in ("alice", "bob")}
    clients = {name: links.enter(name, lasting=False) for name, links in sidecars.items()}
    with ThreadPoolExecutor() as pool:
        made = list(
            pool.map(
                lambda rank, name: sidecars[name].make(clients[name], wanted(rank=rank)),
                range(2),
                sidecars,
            )
        )
    made[0].push("bob", b"hello")
    assert made[1].pop("alice", 10) == b"hello"
    sidecars["alice"].leave(clients["alice"])
    told = wait_until(lambda: not clients["bob"].told.empty() and clients["bob"].told.get())
    assert told.failed
    assert told.link == made[1].number
    assert "its program ended without a word" in told.text
    assert told.text in said
    sidecars["bob"].close()
