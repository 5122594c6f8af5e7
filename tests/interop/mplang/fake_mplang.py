"""The names of MPLang that redislink uses, written from its public interface: small and in memory.

Graphs are lists of operations; an operation's implementation is a function of the interpreter, the
operation and the inputs, and a graph hands the result of each operation to the next one.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Graph:
    """Operations, one after the other."""

    def __init__(self, *operations: Operation) -> None:
        self.operations = list(operations)
        self.outputs = ["result"]


@dataclass(eq=False)
class Operation:
    """One step."""

    opcode: str
    attrs: dict[str, Any] = field(default_factory=dict)
    regions: list[Graph] = field(default_factory=list)


def to_json(value: Any) -> Any:
    """A graph, or a value, as JSON."""
    if isinstance(value, Graph):
        return {
            "ops": [[o.opcode, o.attrs, [to_json(r) for r in o.regions]] for o in value.operations]
        }
    return {"value": value}


def _from_json(said: Any) -> Any:
    if "ops" in said:
        return Graph(*(Operation(o, a, [_from_json(r) for r in rs]) for o, a, rs in said["ops"]))
    return said["value"]


def dumps_binary(value: Any) -> bytes:
    """Bytes of a graph or a value."""
    return json.dumps(to_json(value)).encode()


def loads_binary(data: bytes) -> Any:
    """What `dumps_binary` wrote."""
    return _from_json(json.loads(data))


class FileSystemBackend:
    """Values in files."""

    def __init__(self, root_path: str) -> None:
        self.root = Path(root_path)
        self.root.mkdir(parents=True, exist_ok=True)


class ObjectStore:
    """Values by URI."""

    def __init__(self, persistent: Any = None) -> None:
        self.persistent = persistent
        self.values: dict[str, Any] = {}

    def put(self, value: Any, uri: str | None = None) -> str:
        """Keep a value."""
        uri = uri or f"mem://{len(self.values)}"
        self.values[uri] = value
        return uri

    def get(self, uri: str) -> Any:
        """A value that was kept."""
        return self.values[uri]


class Array:
    """As JAX's: it is there before it has been computed."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.waits = 0

    def unwrap(self) -> Array:
        """As of MPLang's ``TensorValue``."""
        return self

    def block_until_ready(self) -> None:
        """As JAX's."""
        self.waits += 1


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "tensor.constant": lambda _i, op, *_: op.attrs["value"],
    "tensor.add": lambda _i, op, x, *_: x + op.attrs["more"],
    "tensor.run_jax": lambda _i, op, *_: [Array(value) for value in op.attrs["values"]],
    "table.read": lambda _i, op, *_: Path(op.attrs["path"]).read_text(),
    "table.write": lambda _i, op, x, *_: Path(op.attrs["path"]).write_text(x),
    "store.save": lambda i, op, x, *_: i.store.put(x, op.attrs["uri_base"]),
    "store.load": lambda i, op, *_: i.store.get(op.attrs["uri_base"]),
    "func.func": lambda _i, op, *_: SimpleNamespace(graph=op.regions[0]),
    "func.call": lambda i, _op, function, *_: i.evaluate_graph(function.graph, [1])[0],
}


class Interpreter:
    """Runs graphs."""

    def __init__(self, name: str = "", handlers: Any = None) -> None:
        self.name, self.handlers = name, handlers or {}
        self.root_dir = Path(".mpl")
        self.store: Any = None
        self.states: dict[str, Any] = {}

    def set_dialect_state(self, name: str, state: Any) -> None:
        """As MPLang's."""
        self.states[name] = state

    def evaluate_graph(self, graph: Graph, inputs: list[Any], job: str | None = None) -> list[Any]:
        """As MPLang's: handlers first, then the registry."""
        values = inputs
        for operation in graph.operations:
            handler = self.handlers.get(operation.opcode) or IMPLEMENTATIONS[operation.opcode]
            values = [handler(self, operation, *values)]
        return values

    def shutdown(self) -> None:
        """As MPLang's."""


def create_request_interpreter(infra: Any, job_id: str) -> Interpreter:
    """As MPLang's."""
    interpreter = Interpreter(job_id)
    interpreter.store = infra.store
    return interpreter


class SimpDriver:
    """As MPLang's."""


class SPUState:
    """As MPLang's, with a text for a runtime."""

    def __init__(self) -> None:
        self._template_links: dict[Any, Any] = {}

    def get_or_create(self, rank: int, world_size: int, config: str, *, parties: list[int]) -> Any:
        """A runtime over the template's link."""
        return self._get_template_link((rank, world_size, config), rank, world_size, None, parties)

    def shutdown(self) -> None:
        """Forget the links."""
        self._template_links.clear()


class ClusterSpec(SimpleNamespace):
    """As MPLang's."""

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ClusterSpec:
        """As MPLang's."""
        nodes = {
            each["name"]: SimpleNamespace(name=each["name"], rank=rank, endpoint=each["endpoint"])
            for rank, each in enumerate(config["nodes"])
        }
        found = config.get("cluster_id", "cluster")
        return cls(cluster_id=found, nodes=nodes, devices=config["devices"])

    @classmethod
    def simple(cls, world_size: int, *, endpoints: list[str]) -> ClusterSpec:
        """As MPLang's."""
        nodes = [{"name": f"node{i}", "endpoint": endpoints[i]} for i in range(world_size)]
        return cls.from_dict({"nodes": nodes, "devices": {}})


_MODULES: dict[str, dict[str, Any]] = {
    "mplang": {},
    "mplang.backends": {"load_builtins": lambda: None},
    "mplang.backends.simp_driver": {},
    "mplang.backends.simp_driver.ops": {"DRIVER_HANDLERS": {}},
    "mplang.backends.simp_driver.state": {"SimpDriver": SimpDriver},
    "mplang.backends.simp_driver.http": {"make_driver": None},
    "mplang.backends.simp_driver.mem": {"make_simulator": None},
    "mplang.backends.simp_worker": {},
    "mplang.backends.simp_worker.base": {"SendRequest": lambda *given: given},
    "mplang.backends.simp_worker.http": {"create_worker_app": None},
    "mplang.backends.simp_worker.infra": {
        "DEFAULT_ASYNC_OPS": frozenset(),
        "WorkerInfra": SimpleNamespace,
    },
    "mplang.backends.simp_worker.ops": {"WORKER_HANDLERS": {}},
    "mplang.backends.simp_worker.request": {
        "create_request_interpreter": create_request_interpreter
    },
    "mplang.backends.spu_state": {"SPUState": SPUState},
    "mplang.edsl": {"format_graph": lambda g: " ".join(o.opcode for o in g.operations)},
    "mplang.edsl.registry": {"get_impl": IMPLEMENTATIONS.get},
    "mplang.edsl.serde": {
        "dumps_binary": dumps_binary,
        "loads_binary": loads_binary,
        "to_json": to_json,
    },
    "mplang.libs": {},
    "mplang.libs.device": {"ClusterSpec": ClusterSpec},
    "mplang.runtime": {},
    "mplang.runtime.interpreter": {"Interpreter": Interpreter},
    "mplang.runtime.object_store": {
        "FileSystemBackend": FileSystemBackend,
        "ObjectStore": ObjectStore,
    },
}
OURS = "redislink.interop.mplang.binding"


def modules() -> dict[str, ModuleType]:
    """All of MPLang's modules, new."""
    made = {}
    for name, content in _MODULES.items():
        made[name] = ModuleType(name)
        made[name].__path__ = []
        vars(made[name]).update(content)
    return made


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Within this block, this is MPLang; gives a new `redislink.interop.mplang.binding`."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    try:
        yield importlib.import_module(OURS)
    finally:
        sys.modules.pop(OURS, None)
        package = sys.modules.get("redislink.interop.mplang")
        if package is not None and hasattr(package, "binding"):
            del package.binding
