"""What redislink does with MPLang's own names; with a stand-in for MPLang."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from redislink.errors import ConfigError, JobError
from redislink.interop.mplang import make_driver, serve
from redislink.interop.mplang.messages import Request
from redislink.interop.mplang.policy import EVERYTHING, Grant, Policy
from redislink.interop.mplang.worker import Refused
from redislink.transport.endpoint import Endpoint
from tests.conftest import in_thread, join, make_cluster
from tests.interop.mplang import fake_mplang
from tests.interop.mplang.fake_mplang import Graph, Operation, dumps_binary, loads_binary

Mesh = Callable[..., list[Endpoint]]
REQUEST = Request(1, context="#1")
ALL = Grant("all", ("*",))
STORE = Grant("all", ("*",), store=True)


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our binding, over the stand-in."""
    with fake_mplang.installed(monkeypatch) as module:
        yield module


@pytest.fixture
def engine(binding: Any, mesh: Mesh, tmp_path: Path) -> Any:
    """An engine of alice's, with bob and the driver, carol."""
    return binding.MplangEngine(mesh("fakeredis://binding")[0], tmp_path)


def result(engine: Any, grant: Grant, *operations: Operation, inputs: Any = ()) -> Any:
    """What a graph of these operations gives."""
    graph = engine.read(dumps_binary(Graph(*operations)))
    uris = engine.run(graph, Request(1, inputs=tuple(inputs), context="#1"), grant)
    return loads_binary(engine.value(uris[0]))


def constant(value: Any) -> Operation:
    return Operation("tensor.constant", {"value": value})


def test_without_mplang_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mplang", None)
    for name in [name for name in sys.modules if name.startswith("mplang.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, fake_mplang.OURS, raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'redislink\[mplang\]'"):
        __import__(fake_mplang.OURS)


def test_another_mplang_is_an_error_that_names_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, module in fake_mplang.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    del sys.modules["mplang.backends.spu_state"].SPUState
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9")
    monkeypatch.delitem(sys.modules, fake_mplang.OURS, raising=False)
    with pytest.raises(
        ConfigError, match=r"mplang-nightly 9.9 has no mplang.backends.spu_state.SPU"
    ):
        __import__(fake_mplang.OURS)


def test_what_a_rule_does_not_allow_does_not_run_even_if_nobody_looked(engine: Any) -> None:
    some = Grant("some", ("tensor.*",))
    assert result(engine, some, constant(1), Operation("tensor.add", {"more": 2})) == 3
    with pytest.raises(Refused, match=r"func\.func: rule 'some' does not allow it"):
        result(engine, some, Operation("func.func", {}, [Graph(constant(1))]))
    for operation in ("store.save", "store.load", "table.write"):
        with pytest.raises(Refused, match=operation):
            result(engine, ALL, constant("x"), Operation(operation, {"uri_base": "k", "path": "p"}))


def test_tables_are_those_of_the_rule(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("rows")
    grant = Grant("one", ("table.*",), {"patients": tmp_path / "open"})
    assert result(engine, grant, Operation("table.read", {"path": "patients"})) == "rows"
    with pytest.raises(Refused, match="no table that rule 'one' opens"):
        result(engine, grant, Operation("table.read", {"path": str(tmp_path / "open")}))
    path = {"path": str(tmp_path / "open")}
    assert result(engine, EVERYTHING, Operation("table.read", path)) == "rows"


def test_what_is_saved_stays_within_the_workers_directory(engine: Any, tmp_path: Path) -> None:
    result(engine, STORE, constant("rows"), Operation("table.write", {"path": "a/b.csv"}))
    assert (tmp_path / "tables" / "a" / "b.csv").read_text() == "rows"
    result(engine, STORE, constant(5), Operation("store.save", {"uri_base": "fs://kept"}))
    assert result(engine, STORE, Operation("store.load", {"uri_base": "fs://kept"})) == 5
    for key in ("../x", "/etc/x", "a/../../x", "mem://0", "s3://x"):
        for operation in (
            Operation("table.write", {"path": key}),
            Operation("store.save", {"uri_base": key}),
            Operation("store.load", {"uri_base": key}),
        ):
            with pytest.raises(Refused, match="relative and has no"):
                result(engine, STORE, constant("x"), operation)
    with pytest.raises(Refused, match="relative"):
        result(engine, STORE, constant(1), Operation("store.save", {"uri_base": "fs://../x"}))


def test_only_functions_of_accepted_graphs_are_called(engine: Any) -> None:
    body = Graph(Operation("tensor.add", {"more": 41}))
    assert result(engine, ALL, Operation("func.func", {}, [body]), Operation("func.call")) == 42
    foreign = engine._store.put(type("Function", (), {"graph": body})())
    with pytest.raises(Refused, match="no graph that was accepted"):
        result(engine, ALL, Operation("func.call"), inputs=(foreign,))
    with pytest.raises(Refused, match="no graph that was accepted"):
        result(engine, ALL, constant(1), Operation("func.call"))


@pytest.mark.parametrize("grant", [ALL, EVERYTHING])
def test_a_graph_ends_when_jax_has_computed_it(engine: Any, grant: Grant) -> None:
    graph = Graph(Operation("tensor.run_jax", {"values": [1, 2]}))
    (uri,) = engine.run(graph, REQUEST, grant)
    assert [(array.value, array.waits) for array in engine._store.get(uri)] == [(1, 1), (2, 1)]


def test_a_digest_covers_everything_and_the_text_is_for_people(engine: Any) -> None:
    inner = Graph(Operation("a.b", {"x": 1}))
    graphs = [
        Graph(Operation("a.b", {"x": 1})),
        Graph(Operation("a.b", {"x": 2})),
        Graph(Operation("a.c", {"x": 1})),
        Graph(Operation("a.b", {"x": 1}, [inner])),
    ]
    digests = [engine.digest(graph) for graph in graphs]
    assert len(set(digests)) == 4
    assert engine.digest(loads_binary(dumps_binary(graphs[3]))) == digests[3]
    assert engine.text(Graph(Operation("a.b"), Operation("a.c"))) == "a.b a.c"
    with pytest.raises(TypeError):
        engine.read(dumps_binary(5))


def test_each_set_of_members_has_a_link_of_its_own(
    engine: Any, binding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def link(name: str, members: list[str], endpoint: Endpoint) -> Any:
        made.append((name, members))
        return type("Link", (), {"context": f"context {len(made)}"})()

    monkeypatch.setattr(binding, "link_members", link)
    state = binding._SpuState(engine, "#7")
    first = [state.get_or_create(0, 2, "FM64", parties=[0, 1]) for _ in range(2)]
    assert first == ["context 1", "context 1"]
    assert state.get_or_create(0, 2, "FM128", parties=[0, 1]) == "context 2"
    assert state.get_or_create(0, 2, "FM64", parties=[0, 2]) == "context 3"
    assert [members for _, members in made] == [["alice", "bob"]] * 2 + [["alice", "carol"]]
    assert len({name for name, _ in made}) == 3
    assert all(name.startswith("mplang/#7/") for name, _ in made)
    state.shutdown()
    assert state.get_or_create(0, 2, "FM64", parties=[0, 1]) == "context 4"


def test_a_graph_has_the_same_number_at_all_workers(binding: Any) -> None:
    driver = binding.RelayDriver(client=None)
    first, second = Graph(), Graph()
    numbers = [
        driver._context(rank, graph, None)
        for rank, graph in (
            (0, first),
            (0, second),
            (1, second),
            (1, first),
            (0, first),
            (1, first),
        )
    ]
    assert numbers == ["#1", "#2", "#2", "#1", "#3", "#3"]
    assert driver._context(0, Graph(), "job") == "job#4"


def test_a_program_of_ones_own_drives_what_the_others_serve(
    binding: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    device = {"kind": "SPU", "config": {"protocol": "CHEETAH"}}
    devices = {
        "SP0": {**device, "members": ["bob", "alice"]},
        "SP1": {**device, "members": ["bob", "carol"]},
    }
    endpoints = join(make_cluster("fakeredis://binding-api", devices=devices))
    policy = Policy.parse(
        'rules: [{name: all, action: accept, driver: carol, graph: "*", operations: tensor.*, '
        "results: to_driver}]",
        "policy",
        tmp_path,
    )
    served = [in_thread(lambda e=endpoint: serve(e, policy)) for endpoint in endpoints[:2]]
    interpreter = make_driver(endpoints[2])
    driver = interpreter.states["simp"]
    assert driver.world_size == 2
    assert [*interpreter._cluster_spec.nodes] == ["alice", "bob"]
    assert interpreter._cluster_spec.devices["P1"] == {"kind": "PPU", "members": ["bob"]}
    assert interpreter._cluster_spec.devices["SP0"]["members"] == ["alice", "bob"]
    assert "SP1" not in interpreter._cluster_spec.devices
    graph = Graph(constant({"a": 1}))
    uris = driver.collect([driver.submit(rank, graph, []) for rank in (0, 1)])
    assert driver.fetch(1, uris[1][0]).result(30) == {"a": 1}
    with pytest.raises(JobError, match="bob refused"):
        driver.collect([driver.submit(1, Graph(Operation("table.read", {"path": "/x"})), [])])
    driver.shutdown()
    for thread, outcome in served:
        thread.join(30)
        assert outcome == [None]
    for endpoint in endpoints[:2]:
        endpoint.close()


def test_values_that_cannot_be_read_are_an_error_of_the_future(binding: Any) -> None:
    asked: Future[Any] = Future()
    given = binding._then(asked, binding._value)
    asked.set_result(binding.Reply(1, value=b"{"))
    with pytest.raises(JobError, match="cannot read"):
        given.result(1)
