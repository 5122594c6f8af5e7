"""The commands for operators, and the doctor, at a Redis Cluster and behind sentinels."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from redislink import ClusterSpec
from redislink.broker import Broker
from redislink.errors import BrokerBusy
from redislink.operate import acl
from redislink.operate.survey import Survey
from redislink.operate.watch import Watch
from redislink.protocol import list_names
from redislink.protocol.frame import Data, encode
from redislink.transport import claim
from tests.cli.conftest import Call, key_file
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.groups import SLOTS, ClusterGroup, SentinelGroup, slot_of, wait_for
from tests.support.keyspace import add_foreign_keys, content_of, run

pytestmark = pytest.mark.slow

PARTIES = ("alice", "bob", "carol")
EPOCH = "0123456789abcdef"
Group = ClusterGroup | SentinelGroup


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterGroup]:
    with ClusterGroup() as started:
        yield started


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelGroup]:
    with SentinelGroup() as started:
        yield started


@pytest.fixture(params=["cluster", "sentinels"])
def group(request: pytest.FixtureRequest) -> Group:
    """Both kinds, one after the other, empty."""
    found: Group = request.getfixturevalue(request.param)
    for port in masters(found):
        found.ask(port, "FLUSHALL")
    return found


def masters(group: Group) -> list[int]:
    return group.masters if isinstance(group, ClusterGroup) else [group.master]


def servers(group: Group) -> list[int]:
    return group.masters if isinstance(group, ClusterGroup) else [group.master, group.replica]


def new_session(group: Group) -> str:
    """In a Cluster, one whose parties have their inboxes on different nodes."""
    if isinstance(group, ClusterGroup):
        return group.spread_session(PARTIES)
    return "behind-sentinels"


def leave(url: str, session: str) -> list[bytes]:
    """What a session of three leaves when it dies: for each inbox a list and a hello."""
    names = []
    for dst, src in (("alice", "bob"), ("bob", "carol"), ("carol", "alice")):
        data, hello = (
            list_names.data_list(session, dst, src, EPOCH, "t"),
            list_names.hello_list(session, dst, src),
        )
        run(url, "RPUSH", data, encode(Data(1), b"x"), encode(Data(2), b"y"))
        run(url, "RPUSH", hello, b"hello")
        names += [data, hello]
    for name in names:
        run(url, "PEXPIRE", name, 600_000)
    return names


def test_sessions_and_inspect_see_every_node(call: Call, group: Group) -> None:
    session = new_session(group)
    names = leave(group.url, session)
    holding = [len(group.ask(port, "KEYS", f"rl:{{{session}:*")) for port in masters(group)]
    assert holding == [len(names) // len(holding)] * len(holding)
    code, out, err = call("sessions", "--broker", group.url, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    (seen,) = told["sessions"]
    assert (seen["name"], seen["parties"], seen["up"]) == (session, list(PARTIES), [])
    assert (seen["lists"], seen["messages"]) == (3, 6)
    assert told["broker"] == Broker(group.url).label
    assert group.password not in out
    code, out, err = call("inspect", session, "--frames", "--broker", group.url, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["keys"]
    assert [key["name"].encode() for key in found] == sorted(names)
    assert [e["number"] for e in found[0]["elements"]] == [1, 2]
    code, out, err = call("inspect", session, "--pair", "bob:alice", "--broker", group.url)
    assert (code, err) == (0, "")
    assert "bob → alice" in out
    assert "carol" not in out


def test_purge_takes_one_session_from_every_node(
    call: Call, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session(group)
    add_foreign_keys(group.url, session, "inbox")
    leave(group.url, "another")
    before = content_of(group.url)
    names = leave(group.url, session)
    everything = content_of(group.url)
    assert set(everything) == {*before, *names}
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, out, err = call("purge", session, "--broker", group.url)
    assert code == 130
    assert "to remove from redis+" in out
    assert "nothing removed" in err
    assert content_of(group.url) == everything
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    code, _, err = call("purge", session, "--broker", group.url)
    assert code == 0, err
    assert f"session {session}: removed {len(names)} keys" in err
    assert content_of(group.url) == before


def test_the_operators_user_is_enough(call: Call, group: Group) -> None:
    session = new_session(group)
    names = leave(group.url, session)
    operator = acl.operator_user(
        session, PARTIES, "watcher", cluster=isinstance(group, ClusterGroup)
    )
    acl.apply_users(Broker(group.url), [operator], {"watcher": "pw"})
    mine = acl.party_url(group.url, operator.name, "pw")
    assert call("inspect", session, "--broker", mine)[::2] == (0, "")
    code, _, err = call("purge", session, "--yes", "--broker", mine)
    assert code == 0, err
    assert f"removed {len(names)} keys" in err
    assert not content_of(group.url)
    # One server does not know the user, as if it had joined later.
    group.ask(masters(group)[0], "ACL", "DELUSER", operator.name)
    code, _, err = call("sessions", "--broker", mine)
    assert code == 3
    assert f"127.0.0.1:{masters(group)[0]} (" in err
    assert "user or password not accepted" in err


def test_top_sees_every_party(call: Call, group: Group, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim, "_RENEW_SECONDS", 0.05)
        spec = make_cluster(group.url, session=new_session(group))
        alice, bob, carol = endpoints = join(spec)
        thread, _ = in_thread(lambda: bob.recv("carol", "awaited"))
        for sender, receiver in ((alice, "bob"), (bob, "carol"), (carol, "alice")):
            sender.send(receiver, "unread", b"payload")
            sender.flush()
        watching = Survey(Broker(group.url))
        watch = Watch(watching, spec.session, PARTIES)
        reading = watch.read()
        give_up = time.monotonic() + 10
        while not (
            reading.parties[1].waits
            and all(p.running_seconds for p in reading.parties)
            and all(p.messages_per_second is not None for p in reading.pairs)
        ):
            assert time.monotonic() < give_up, reading
            reading = watch.read()
        watching.close()
        assert [(p.name, p.up, p.state) for p in reading.parties] == [
            (name, True, "open") for name in PARTIES
        ]
        (wait,) = reading.parties[1].waits
        assert (wait.peer, wait.tag) == ("carol", "awaited")
        lies = {(p.src, p.dst): p.messages for p in reading.pairs}
        ring = {("alice", "bob"), ("bob", "carol"), ("carol", "alice")}
        assert lies == {pair: int(pair in ring) for pair in lies}
        path = write(tmp_path, spec)
        code, out, err = call("top", "--cluster", path, "--once")
        assert (code, err) == (0, "")
        assert "3 of 3 parties up" in out
        code, _, err = call("purge", spec.session, "--yes", "--broker", group.url)
        assert code == 4
        assert "is run by alice, bob, carol" in err
        bob.cancel_recv("carol", "")
        thread.join()
        run_parties(*(lambda e=e: e.abort("over") for e in endpoints))


def write(directory: Path, spec: ClusterSpec) -> Path:
    path = directory / "cluster.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude={"devices"})))
    return path


def test_a_slot_that_moves_between_looking_and_removing(
    cluster: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redislink.broker.topology._GOOD_FOR", 60.0)
    session = cluster.spread_session(PARTIES)
    names = leave(cluster.url, session)
    watching = Survey(Broker(cluster.url))
    found = watching.keys(session)
    assert len(watching.keys(session)) == len(found)  # the map of slots is not asked for anew
    slot = slot_of(session, "alice")
    others = [port for port in cluster.masters if port != cluster.node_of(slot)]
    assert cluster.move_slot(slot, others[0]) == 2
    assert watching.remove(session, found) == len(names)
    assert watching.keys(session) == []
    watching.close()


def test_a_node_that_cannot_serve_just_now_is_in_step_again_later(cluster: ClusterGroup) -> None:
    session = cluster.spread_session(PARTIES)
    names = leave(cluster.url, session)
    port = cluster.masters[0]
    used = {slot_of(session, name) for name in PARTIES}
    slot = next(s for s in range(SLOTS) if s not in used and cluster.node_of(s) == port)
    watching = Survey(Broker(cluster.url))
    try:
        cluster.ask(port, "CLUSTER", "DELSLOTS", slot)  # SCAN goes on, and TYPE does not
        wait_for(lambda: b"state:fail" in bytes(cluster.ask(port, "CLUSTER", "INFO")), "a gap")
        with pytest.raises(BrokerBusy, match="CLUSTERDOWN"):
            watching.keys(session)
    finally:
        cluster.ask(port, "CLUSTER", "ADDSLOTS", slot)
        wait_for(lambda: b"state:ok" in bytes(cluster.ask(port, "CLUSTER", "INFO")), "its end")
    found = watching.keys(session)
    assert {key.name for key in found} == set(names)
    assert all(key.is_ours for key in found)
    assert watching.remove(session, found) == len(names)
    watching.close()


# -- the doctor -----------------------------------------------------------------------------------


class Patient:
    """Alice of a session, with users per party on every server; ``examine`` runs her doctor."""

    def __init__(self, group: Group, call: Call, directory: Path) -> None:
        self.group = group
        self.session = new_session(group)
        self._call = call
        self._directory = directory
        names = list(PARTIES)
        is_cluster = isinstance(group, ClusterGroup)
        users = acl.party_users(self.session, names, cluster=is_cluster)
        acl.apply_users(Broker(group.url), users, dict.fromkeys(names, "pw"))
        self.user = users[0].name
        self._users = [user.name for user in users]
        self._url = acl.party_url(group.url, self.user, "pw")

    def port_of(self, party: str) -> int:
        assert isinstance(self.group, ClusterGroup)
        return self.group.node_of(slot_of(self.session, party))

    def port_of_a_peer(self) -> int:
        """Of bob's or carol's node: of one that the URL does not name."""
        ports = map(self.port_of, ("bob", "carol"))
        return next(port for port in ports if port != masters(self.group)[-1])

    def examine(self, code: int = 0, admin: bool = False) -> dict[str, Any]:
        """What the doctor says by check; the exit code is as given."""
        url = self.group.url if admin else self._url
        spec = make_cluster(url, session=self.session)
        words = ("--party", "alice", "--identity", key_file(self._directory, "alice"), "--json")
        found, out, err = self._call("doctor", "--cluster", write(self._directory, spec), *words)
        assert (found, err) == (code, ""), out
        assert self.group.password not in out
        told = json.loads(out)
        assert not told["not_tried"] or code, told["not_tried"]
        return {finding["name"]: finding for finding in told["findings"]}

    def forget(self) -> None:
        for port in servers(self.group):
            self.group.ask(port, "ACL", "DELUSER", *self._users)


@pytest.fixture
def patient(group: Group, call: Call, tmp_path: Path) -> Iterator[Patient]:
    found = Patient(group, call, tmp_path)
    yield found
    found.forget()


@pytest.fixture
def spread(cluster: ClusterGroup, call: Call, tmp_path: Path) -> Iterator[Patient]:
    found = Patient(cluster, call, tmp_path)
    yield found
    found.forget()


def test_the_doctor_at_a_sound_broker(patient: Patient) -> None:
    before = content_of(patient.group.url)
    found = patient.examine()
    levels = {name: finding["level"] for name, finding in found.items()}
    # Nobody listens at the URL's first address; and the password stands in the cluster file.
    warned = {"TCP", "broker URL"}
    assert {name for name, level in levels.items() if level in ("WARN", "FAIL")} == warned, found
    assert "127.0.0.1:1: " in found["TCP"]["text"]
    assert re.search("not allowed to look", found["version"]["text"])
    several = isinstance(patient.group, ClusterGroup)
    text = found["login"]["text"]
    assert text.startswith(f"as user {patient.user}")
    assert [str(port) in text for port in masters(patient.group)] == [several] * len(
        masters(patient.group)
    )
    assert ("CLUSTER SLOTS" in found["commands"]["text"]) == several
    further = 0 if several else 1
    assert found["replicas"]["text"].startswith(f"{further} other servers that may take over")
    assert "cannot push as another party" in found["other parties' lists"]["text"]
    # What stays are the notes for the peers' doctors.
    left = set(content_of(patient.group.url)) - set(before)
    assert left == {list_names.doctor_list(patient.session, to, "alice") for to in ("bob", "carol")}
    found = patient.examine(admin=True)
    everywhere = "on each of 3 nodes: " if several else ""
    assert found["version"]["text"].startswith(f"{everywhere}Valkey 9.")
    assert found["eviction"]["text"] == f"{everywhere}maxmemory-policy is noeviction"
    assert found["idle cut-off"]["text"].startswith(f"{everywhere}timeout is 0")
    assert ("the slowest of 3 nodes" in found["round trip"]["text"]) == several
    assert found["other parties' lists"]["level"] == "WARN"


def test_the_doctor_finds_a_command_that_one_node_refuses(spread: Patient) -> None:
    group, port = spread.group, spread.port_of_a_peer()
    for rule in ("-pexpire", "-cluster|slots"):
        group.ask(port, "ACL", "SETUSER", spread.user, rule)
    found = spread.examine(code=3)
    assert found["login"]["level"] == "PASS"
    told = found["commands"]
    assert told["level"] == "FAIL"
    for what in ("CLUSTER SLOTS on no key", "PEXPIRE on lists to peers"):
        assert f"{what} at 127.0.0.1:{port} (permission missing" in told["text"]
    assert not any(str(other) in told["text"] for other in masters(group) if other != port)
    assert "on every server of the broker, ACL SETUSER" in told["remedy"]
    assert "+cluster|slots" in told["remedy"]


def test_the_doctor_finds_that_no_node_says_where_the_lists_are(spread: Patient) -> None:
    for port in servers(spread.group):
        spread.group.ask(port, "ACL", "SETUSER", spread.user, "-cluster|slots")
    told = spread.examine(code=3)["commands"]
    assert told["level"] == "FAIL"
    assert f"ACL SETUSER {spread.user} +cluster|slots" in told["remedy"]


def test_the_doctor_finds_a_node_without_the_user(spread: Patient) -> None:
    port = spread.port_of("bob")
    spread.group.ask(port, "ACL", "DELUSER", spread.user)
    told = spread.examine(code=3)["login"]
    assert told["level"] == "FAIL"
    assert f"127.0.0.1:{port} (node of redis+cluster://" in told["text"]
    assert "user or password not accepted" in told["text"]


def test_the_doctor_finds_a_node_of_other_settings(spread: Patient) -> None:
    port = spread.port_of("carol")
    settings = {"maxmemory-policy": "allkeys-lru", "maxmemory": "50mb", "timeout": "60"}
    before = {name: spread.group.ask(port, "CONFIG", "GET", name)[1] for name in settings}
    try:
        for name, value in settings.items():
            spread.group.ask(port, "CONFIG", "SET", name, value)
        found = spread.examine(admin=True)
    finally:
        for name, value in before.items():
            spread.group.ask(port, "CONFIG", "SET", name, value)
    for name, said in (
        ("eviction", "maxmemory-policy is allkeys-lru"),
        ("memory", "of maxmemory (50 MiB) are free; this session stores up to 160 MiB"),
        ("idle cut-off", "timeout is 60"),
    ):
        assert found[name]["level"] == "WARN", name
        assert re.search(
            rf"127\.0\.0\.1:{port}: [^;]*{re.escape(said.split(';')[0])}", found[name]["text"]
        )
        assert said in found[name]["text"]
        assert found[name]["remedy"].startswith(f"at 127.0.0.1:{port}: ")
        assert found[name]["remedy"].count("127.0.0.1:") == 1


def test_the_doctor_and_sessions_name_a_node_that_is_away(spread: Patient, call: Call) -> None:
    group = spread.group
    assert isinstance(group, ClusterGroup)
    port = spread.port_of_a_peer()
    with group.away(port):
        told = spread.examine(code=3)["login"]
        code, out, err = call("sessions", "--broker", group.url)
    assert told["level"] == "FAIL"
    assert f"127.0.0.1:{port} (node of redis+cluster://" in told["text"]
    assert "which need not be in the URL" in told["remedy"]
    assert (code, out) == (3, "")
    assert f"127.0.0.1:{port} (node of redis+cluster://" in err


def test_the_doctor_finds_a_replica_without_the_user(
    sentinels: SentinelGroup, call: Call, tmp_path: Path
) -> None:
    patient = Patient(sentinels, call, tmp_path)
    sentinels.ask(sentinels.replica, "ACL", "DELUSER", patient.user)
    told = patient.examine()["replicas"]
    patient.forget()
    assert told["level"] == "WARN"
    assert f"127.0.0.1:{sentinels.replica} (" in told["text"]
    assert "user or password not accepted" in told["text"]
    assert "redislink acl" in told["remedy"]


def test_the_doctor_names_a_master_that_sentinels_have_and_we_do_not_reach(
    sentinels: SentinelGroup, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall, or when it announces an address of its own network."""
    patient = Patient(sentinels, call, tmp_path)
    monkeypatch.setattr(
        "redislink.broker.topology.SentinelTopology._ask", lambda _: ("127.0.0.1", 1)
    )
    told = patient.examine(code=3)["login"]
    patient.forget()
    assert told["level"] == "FAIL"
    assert "127.0.0.1:1 (master of redis+sentinel://" in told["text"]
    assert "announce-ip" in told["remedy"]
