"""What a program of MPLang gets in place of MPLang's own; with a stand-in for MPLang."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from redislink.broker import EmbeddedBroker
from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.interop.mplang import programs
from redislink.interop.mplang.meeting import joins, workers_of
from redislink.interop.parties import Parties
from redislink.interop.startup import sitecustomize
from tests.conftest import IDENTITIES, in_thread, make_cluster
from tests.interop.mplang import fake_mplang
from tests.interop.mplang.fake_mplang import ClusterSpec as MplangCluster
from tests.interop.mplang.fake_mplang import Graph, Operation

CONSTANT = Graph(Operation("tensor.constant", {"value": 7}))


@pytest.fixture
def mplang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The stand-in, with redislink's names put in."""
    monkeypatch.chdir(tmp_path)
    with fake_mplang.installed(monkeypatch):
        for name in programs.STAND_INS:
            module, ours = sitecustomize.STAND_INS[name]
            assert ours == programs.__name__
            programs.install(sys.modules[module])
        yield sys.modules
    programs._open.clear()
    programs.end_workers()


def nodes(*names: str) -> Any:
    """MPLang's cluster of these nodes."""
    listed = [{"name": name, "endpoint": f"{name}:1"} for name in names]
    return MplangCluster.from_dict({"nodes": listed, "devices": {}})


def in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, party: str) -> ClusterSpec:
    """A cluster file of alice, bob and carol, and this process as one of them."""
    cluster = make_cluster("fakeredis://mplang-programs")
    content = cluster.model_dump(mode="json", exclude_none=True)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    for name in ("alice", "bob", "carol"):
        if not (tmp_path / f"{name}.key").exists():
            IDENTITIES[name].save(tmp_path / f"{name}.key", "of a test")
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("REDISLINK_PARTY", party)
    monkeypatch.setenv("REDISLINK_IDENTITY_FILE", str(tmp_path / "{party}.key"))
    return cluster


def test_who_the_workers_of_a_driver_are() -> None:
    cluster = make_cluster("fakeredis://workers")
    assert workers_of(cluster, "bob") == ["alice", "carol"]
    assert workers_of(cluster, "bob", ["carol"]) == ["carol"]
    with pytest.raises(
        ConfigError, match=r"driver 'dora' is not in session .* use one of alice, bob"
    ):
        workers_of(cluster, "dora")
    with pytest.raises(ConfigError, match="'dora' is not in session"):
        workers_of(cluster, "bob", ["dora"])
    for wrong in (["bob"], ["alice", "alice"], []):
        with pytest.raises(ConfigError, match="list each worker once, without the driver, bob"):
            workers_of(cluster, "bob", wrong)


def test_a_program_in_a_trial_serves_its_workers_and_drives_them(
    mplang: dict[str, ModuleType], trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setitem(sys.modules, "uvicorn", ModuleType("uvicorn"))
    uvicorn: Any = sys.modules["uvicorn"]
    uvicorn.run = lambda app, **_: served.append(app)
    places = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    worker: Any = mplang["mplang.backends.simp_worker.http"]
    apps = [worker.create_worker_app(rank, 2, places) for rank in (0, 1)]
    once = partial(programs.serve_for_ever, once=True)
    monkeypatch.setattr(programs, "serve_for_ever", once)

    def serve_twice(app: Any) -> list[Any]:
        return [uvicorn.run(app, port=1) for _ in range(2)]

    threads = [in_thread(partial(serve_twice, app)) for app in apps]
    uvicorn.run("another app")
    assert served == ["another app"]
    driver: Any = mplang["mplang.backends.simp_driver.http"]
    for spec in (nodes("node_0", "node_1"), None):  # workers serve one driver after the other
        interpreter = driver.make_driver([f"{place}/" for place in places], cluster_spec=spec)
        state = interpreter.states["simp"]
        uris = state.collect([state.submit(rank, CONSTANT, []) for rank in (0, 1)])
        assert state.fetch(1, uris[1][0]).result(30) == 7
        assert not state.is_closed
        state.shutdown()
    for thread, outcome in threads:
        thread.join(30)
        assert outcome == [[None, None]]


def test_a_simulator_of_the_same_size_has_other_workers_while_the_first_is_used() -> None:
    class Client:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    class Driver:
        pass

    first = programs._free(2)
    assert programs._free(2) == first
    driver, client = Driver(), Client()
    session = ("worker-0", "worker-1", *first)
    programs._open[session] = programs.weakref.ref(driver), client  # type: ignore[assignment]
    assert programs._free(2) not in (first, programs._free(3))
    assert programs.open_drivers() == [client]
    client.is_closed = True
    assert programs._free(2) == first
    client.is_closed = False
    del driver
    assert programs._free(2) == first
    assert client.is_closed
    programs._open.clear()


def test_between_parties_the_nodes_are_parties(
    mplang: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cluster(tmp_path, monkeypatch, "carol")
    made: list[Any] = []
    monkeypatch.setattr(programs, "_drive", lambda *given: made.append(given[1:]))
    driver: Any = mplang["mplang.backends.simp_driver.http"]
    simulator: Any = mplang["mplang.backends.simp_driver.mem"]
    spec = nodes("bob", "alice")
    driver.make_driver(["x:1", "y:1"], cluster_spec=spec)
    driver.make_driver(["http://alice:8000", "bob"])
    simulator.make_simulator(2, cluster_spec=spec)
    simulator.make_simulator(2)
    assert [workers for workers, *_ in made] == [["bob", "alice"], ["alice", "bob"]] * 2
    with pytest.raises(
        ConfigError, match="a simulator of 3 parties, but the workers are alice, bob"
    ):
        simulator.make_simulator(3)
    with pytest.raises(ConfigError, match="the program's nodes: node_0, node_1 are not in session"):
        driver.make_driver(["x:1", "y:1"], cluster_spec=nodes("node_0", "node_1"))
    monkeypatch.setenv("REDISLINK_ALIASES", '{"node_0": "alice", "node_1": "bob"}')
    driver.make_driver(["x:1", "y:1"], cluster_spec=nodes("node_0", "node_1"))
    assert made[-1][0] == ["alice", "bob"]
    worker: Any = mplang["mplang.backends.simp_worker.http"]
    with pytest.raises(ConfigError, match="start redislink mplang worker in its place"):
        worker.create_worker_app(0, 2, ["x:1", "y:1"])


def test_a_driver_is_none_of_its_workers(
    mplang: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cluster(tmp_path, monkeypatch, "alice")
    driver: Any = mplang["mplang.backends.simp_driver.http"]
    with pytest.raises(ConfigError, match="runs as alice, and a node of the program is alice"):
        driver.make_driver(["x:1", "y:1"], cluster_spec=nodes("alice", "bob"))
    monkeypatch.delenv("REDISLINK_PARTY")
    with pytest.raises(ConfigError, match="no driver: give --party"):
        driver.make_driver(["x:1", "y:1"], cluster_spec=nodes("alice", "bob"))


def test_a_driver_may_be_one_of_the_cluster_files_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = in_cluster(tmp_path, monkeypatch, "carol")
    content = cluster.model_dump(mode="json", exclude_none=True)
    carol = content["parties"].pop()
    content |= {"drivers": [carol], "devices": {}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="party 'carol' is not in session"):
        Parties()
    parties = Parties(drives=True)
    assert parties.others() == ["alice", "bob"]
    joined: list[Any] = []
    monkeypatch.setattr(Parties, "connect", lambda _self, spec, me, _: joined.append((spec, me)))
    for me in ("carol", "alice"):
        monkeypatch.setenv("REDISLINK_PARTY", me)
        joins(Parties(drives=True), ["alice", "bob"], "carol", me)()
    (spec, _), (same, _) = joined
    assert spec == same
    assert spec.party_names == ("alice", "bob", "carol")
    assert spec.parties[2].public_key == carol["public_key"]
    assert spec.session.startswith(f"{cluster.session}.j")
    joins(Parties(drives=True), ["bob", "alice"], "carol", "alice")()
    assert joined[-1][0].session != spec.session


def test_the_trial_is_at_the_tests_own_server(trial: Path, valkey: EmbeddedBroker) -> None:
    assert Parties().is_trial
    assert Parties().others() == []
