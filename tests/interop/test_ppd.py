"""Calls of a driver and of nodes, with a stand-in for the module of SPU's examples."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from redislink import ConfigError, PeerError, UsageError
from redislink.interop import ppd

NODES = {"node:0": "127.0.0.1:61", "node:1": "127.0.0.1:62"}
FIRST, SECOND = NODES.values()


class NodeServicer:
    """Runs ``(name, arguments)``, and has a stub for every node, as the real one."""

    def __init__(self, node_id: str, nodes_def: dict[str, str]) -> None:
        self.node_id = node_id
        self.stubs = {address: ppd.Stub(address) for address in nodes_def.values()}
        self.kept: list[Any] = []

    def Run(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:  # noqa: N802
        self.kept.append(b"".join(request.data for request in requests))
        yield SimpleNamespace(data=str(len(self.kept)).encode())

    def RunReturn(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:  # noqa: N802
        name, argument = pickle.loads(b"".join(request.data for request in requests))
        answer = getattr(self, name)(argument)
        yield from (SimpleNamespace(data=part) for part in (answer[:2], answer[2:]))

    def echo(self, argument: bytes) -> bytes:
        return argument

    def who(self, _: bytes) -> bytes:
        return f"{self.node_id} in {os.getpid()}".encode()

    def ask(self, address: str) -> bytes:
        return called(address, "who")

    def fail(self, _: bytes) -> bytes:
        raise KeyError("age")


def called(address: str, name: str, argument: Any = b"") -> bytes:
    """What a node answers to a call."""
    payload = pickle.dumps((name, argument))
    requests = (SimpleNamespace(data=part) for part in (payload[:5], payload[5:]))
    return b"".join(answer.data for answer in ppd.Stub(address).RunReturn(requests))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    class HostContext:
        def __init__(self, nodes_def: Any, devices_def: Any) -> None:
            self.nodes_def, self.devices_def = nodes_def, devices_def

    made: Any = ModuleType(ppd._MODULE)
    made.NodeServicer, made.HostContext, made.RPC = NodeServicer, HostContext, SimpleNamespace()
    made.logger = logging.getLogger("of the examples")
    parent = ""
    for name in ppd._MODULE.split(".")[:-1]:
        parent = f"{parent}.{name}".strip(".")
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, ppd._MODULE, made)
    monkeypatch.setenv("REDISLINK_TRUSTED_DRIVER", "driver")
    ppd.install(made)
    return made


@pytest.fixture
def nodes(trial: Path, module: Any) -> Iterator[Callable[[], None]]:
    """Starts the nodes as processes; they end with the test."""
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=module.RPC.serve, args=(node, NODES), daemon=True) for node in NODES
    ]
    for process in processes:
        process.start()
    yield
    if ppd._line._endpoint is not None:
        ppd._line._endpoint.close()
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.usefixtures("nodes")
def test_a_driver_calls_nodes_which_call_each_other(module: Any) -> None:
    context = module.HostContext(NODES, devices_def={})
    assert context.nodes_def is NODES
    first, second = (called(address, "who").decode() for address in NODES.values())
    assert first.startswith("node:0 in ")
    assert second.startswith("node:1 in ")
    assert len({first.split()[-1], second.split()[-1], str(os.getpid())}) == 3
    assert called(FIRST, "ask", SECOND).decode() == second
    large = os.urandom(3 << 20)
    assert called(SECOND, "echo", large) == large
    with pytest.raises(PeerError, match=r"node-0\S* could not serve a call \(KeyError: 'age'\)"):
        called(FIRST, "fail")
    with pytest.raises(UsageError, match=r"no node at 127\.0\.0\.1:63: call ppd\.init"):
        called("127.0.0.1:63", "who")


@pytest.mark.usefixtures("nodes")
def test_what_a_node_holds_stays_for_the_next_driver(module: Any) -> None:
    counted = []
    for _ in range(2):
        module.HostContext(NODES, {})
        module.HostContext(NODES, {})  # the same nodes: nothing new
        counted += [answer.data for answer in ppd.Stub(FIRST).Run([SimpleNamespace(data=b"x")])]
        assert ppd._line._endpoint is not None
        ppd._line._endpoint.close()
    assert counted == [b"1", b"2"]


@pytest.mark.usefixtures("trial")
def test_nothing_is_run_for_a_driver_that_nobody_said_is_trusted(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDISLINK_TRUSTED_DRIVER")
    for act in (lambda: module.RPC.serve("node:0", NODES), lambda: module.HostContext(NODES, {})):
        with pytest.raises(ConfigError, match="redislink ppd, which asks whether you trust"):
            act()


@pytest.mark.usefixtures("trial")
def test_a_node_that_there_is_not_is_an_error(module: Any) -> None:
    with pytest.raises(ConfigError, match="there is no node node:7: use one of node:0, node:1"):
        module.RPC.serve("node:7", NODES)
