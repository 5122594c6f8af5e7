"""All that redislink knows of MPLang: an engine for workers, and a state for drivers.

Importing this module imports MPLang, and raises a `ConfigError` if it is missing or is not the one
that this module is written for. Rules:
- MPLang's names are used as they are; nothing of it is changed here.
- SPU's links are channels over the endpoint, one link for each graph, so that a graph that failed
  at one worker leaves nothing behind for the next one.
- While a graph runs, each operation is looked up among those that its rule allows.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.metadata
import json
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError, JobError
from redislink.interop.mplang.comm import RelayCommunicator
from redislink.interop.mplang.driver import Client
from redislink.interop.mplang.messages import Reply, Request
from redislink.interop.mplang.policy import READ, STORE, Grant
from redislink.interop.mplang.worker import Refused
from redislink.spu.link import SpuLink, link_members
from redislink.transport.endpoint import Endpoint

_NAMES: Final = {
    "mplang.backends": ("load_builtins",),
    "mplang.backends.simp_driver.ops": ("DRIVER_HANDLERS",),
    "mplang.backends.simp_driver.state": ("SimpDriver",),
    "mplang.backends.simp_worker.base": ("SendRequest",),
    "mplang.backends.simp_worker.infra": ("DEFAULT_ASYNC_OPS", "WorkerInfra"),
    "mplang.backends.simp_worker.ops": ("WORKER_HANDLERS",),
    "mplang.backends.simp_worker.request": ("create_request_interpreter",),
    "mplang.backends.spu_state": ("SPUState",),
    "mplang.edsl": ("format_graph",),
    "mplang.edsl.registry": ("get_impl",),
    "mplang.edsl.serde": ("dumps_binary", "loads_binary", "to_json"),
    "mplang.libs.device": ("ClusterSpec",),
    "mplang.runtime.interpreter": ("Interpreter",),
    "mplang.runtime.object_store": ("FileSystemBackend", "ObjectStore"),
}
"""What is used of MPLang."""
_RUN_JAX: Final = "tensor.run_jax"
WRITTEN_FOR: Final = "mplang-nightly 0.1.dev343"


def _found() -> dict[str, Any]:
    found = {}
    for module, names in _NAMES.items():
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("mplang"):
                raise
            raise ConfigError(_remedy(module)) from None
        for name in names:
            if not hasattr(loaded, name):
                raise ConfigError(_remedy(f"{module}.{name}"))
            found[name] = getattr(loaded, name)
    return found


def _remedy(missing: str) -> str:
    for package in ("mplang-nightly", "mplang"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            return (
                f"the installed {package} {version} has no {missing}: install {WRITTEN_FOR}, "
                "with pip install 'redislink[mplang]'"
            )
    return "MPLang is not installed here: run pip install 'redislink[mplang]'"


_mp: Final = _found()
_SPUState: Any = _mp["SPUState"]
_SimpDriver: Any = _mp["SimpDriver"]
_mp["load_builtins"]()


# -- workers ---------------------------------------------------------------------------------


class MplangEngine:
    """Runs graphs at one worker, in one session."""

    def __init__(self, endpoint: Endpoint, directory: Path) -> None:
        """Args:
        endpoint: the worker's, of a cluster whose last party is the driver.
        directory: for what is saved, and for what JAX has compiled; only this user's.
        """
        self.endpoint = endpoint
        self._tables = directory / "tables"
        world_size = endpoint.world_size - 1
        self.communicator = RelayCommunicator(
            endpoint, world_size, _mp["dumps_binary"], _mp["loads_binary"], _mp["SendRequest"]
        )
        self._store = _mp["ObjectStore"](
            persistent=_mp["FileSystemBackend"](root_path=str(directory / "objects"))
        )
        self._infra = _mp["WorkerInfra"](
            rank=endpoint.rank,
            world_size=world_size,
            communicator=self.communicator,
            store=self._store,
            handlers={},
            root_dir=directory,
            async_ops=_mp["DEFAULT_ASYNC_OPS"],
        )
        self._functions: weakref.WeakSet[Any] = weakref.WeakSet()
        """Graphs that are functions in graphs that were accepted: only these may be called."""
        self._lock = threading.Lock()

    def read(self, data: bytes) -> Any:
        """The graph of a request."""
        graph = _mp["loads_binary"](data)
        if not hasattr(graph, "operations"):
            raise TypeError("no graph")
        return graph

    def digest(self, graph: Any) -> str:
        """``sha256:…`` of all that a graph says."""
        said = json.dumps(_mp["to_json"](graph), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"

    def text(self, graph: Any) -> str:
        """A graph as people read it."""
        return str(_mp["format_graph"](graph))

    def run(self, graph: Any, request: Request, grant: Grant) -> tuple[str | None, ...] | None:
        """Run a graph; return the URIs of what it gives.

        Raises:
            Refused: it does what its rule does not allow.
        """
        with self._lock:
            self._functions.update(_functions(graph))
        interpreter = _mp["create_request_interpreter"](self._infra, request.context)
        interpreter.handlers = _Handlers(self._overrides(grant), grant)
        interpreter.set_dialect_state("spu", _SpuState(self, request.context))
        try:
            values = [None if uri is None else self._store.get(uri) for uri in request.inputs]
            results = interpreter.evaluate_graph(graph, values, request.job)
            if not graph.outputs:
                return None
            return tuple(None if each is None else self._store.put(each) for each in results)
        finally:
            interpreter.shutdown()

    def value(self, uri: str) -> bytes:
        """A value in MPLang's binary form."""
        return bytes(_mp["dumps_binary"](self._store.get(uri)))

    def _overrides(self, grant: Grant) -> Mapping[str, Callable[..., Any]]:
        """What runs in place of MPLang's own: operations that touch files, or call functions."""
        if grant.unrestricted:
            return {_RUN_JAX: _run_jax}
        return {
            _RUN_JAX: _run_jax,
            READ: lambda *given: self._read_table(grant, *given),
            "table.run_sql": _run_sql,
            "table.write": self._write_table,
            "store.save": _within_store,
            "store.load": _within_store,
            "func.call": self._call,
        }

    def _read_table(self, grant: Grant, interpreter: Any, operation: Any, *given: Any) -> Any:
        path = grant.data.get(operation.attrs["path"])
        if path is None:
            raise Refused(f"{READ}: it is no table that rule {grant.rule!r} opens")
        return _at(READ, interpreter, operation, path, *given)

    def _write_table(self, interpreter: Any, operation: Any, *given: Any) -> Any:
        path = self._tables / _inside(operation.attrs["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        return _at("table.write", interpreter, operation, path, *given)

    def _call(self, interpreter: Any, operation: Any, function: Any, *given: Any) -> Any:
        with self._lock:
            known = getattr(function, "graph", None) in self._functions
        if not known:
            raise Refused("func.call: the function is of no graph that was accepted here")
        return _mp["get_impl"]("func.call")(interpreter, operation, function, *given)


@contextlib.contextmanager
def engine(endpoint: Endpoint, directory: Path | None = None) -> Iterator[MplangEngine]:
    """An engine for one session; values that are not saved end with it.

    Args:
        endpoint: the worker's.
        directory: for what is saved; None: nothing outlives the session.
    """
    with tempfile.TemporaryDirectory(prefix="redislink-mplang-") as scratch:
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield MplangEngine(endpoint, directory or Path(scratch))


class _Handlers(dict[str, Callable[..., Any]]):
    """What an interpreter looks up: only operations that a grant allows."""

    def __init__(self, overrides: Mapping[str, Callable[..., Any]], grant: Grant) -> None:
        super().__init__({**_mp["WORKER_HANDLERS"], **overrides})
        self._grant = grant

    def get(self, operation: str, default: Any = None) -> Any:
        grant = self._grant
        if not grant.allows(operation) or (operation in STORE and not grant.store):
            raise Refused(f"{operation}: rule {grant.rule!r} does not allow it")
        return super().get(operation, default)


def _functions(graph: Any) -> Iterator[Any]:
    waiting = [graph]
    while waiting:
        for operation in waiting.pop().operations:
            if operation.opcode == "func.func":
                yield from operation.regions
            waiting.extend(operation.regions)


def _at(name: str, interpreter: Any, operation: Any, path: Path, *given: Any) -> Any:
    """Run MPLang's own implementation, but with this path."""
    moved = copy.copy(operation)
    moved.attrs = {**operation.attrs, "path": str(path)}
    return _mp["get_impl"](name)(interpreter, moved, *given)


def _run_jax(*given: Any) -> Any:
    """Run MPLang's own implementation, and wait until it is done.

    JAX computes in threads of its own. A graph that has ended would go on, after its time limit and
    its session, too.
    """
    found = _mp["get_impl"](_RUN_JAX)(*given)
    for value in found if isinstance(found, list | tuple) else [found]:
        array = value.unwrap() if hasattr(value, "unwrap") else value
        if hasattr(array, "block_until_ready"):
            array.block_until_ready()
    return found


def _inside(key: str) -> str:
    """A relative path below a directory."""
    if "://" in key or Path(key).is_absolute() or ".." in Path(key).parts:
        raise Refused("a path of the worker's store is relative and has no ..")
    return key


def _within_store(interpreter: Any, operation: Any, *given: Any) -> Any:
    _inside(str(operation.attrs["uri_base"]).removeprefix("fs://"))
    return _mp["get_impl"](operation.opcode)(interpreter, operation, *given)


def _run_sql(_interpreter: Any, operation: Any, *tables: Any) -> Any:
    """SQL on the tables that are given, in a DuckDB that opens no file and no connection."""
    import duckdb
    from mplang.backends.table_impl import TableValue

    attrs = operation.attrs
    if attrs.get("dialect", "duckdb") != "duckdb":
        raise ValueError("the dialect is not duckdb")
    shut = {
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "lock_configuration": "true",
    }
    with duckdb.connect(config=shut) as connection:
        for name, table in zip(attrs["table_names"], tables, strict=True):
            connection.register(name, table.data if hasattr(table, "data") else table)
        found = connection.execute(attrs["query"])
        # DuckDB 2 has renamed it, and MPLang calls it as it was.
        as_arrow = getattr(found, "to_arrow_table", None) or found.fetch_arrow_table
        return TableValue(as_arrow())


class _SpuState(_SPUState):  # type: ignore[misc]
    """SPU's runtimes for one graph: one for each set of members.

    MPLang's own has one for each number of members, and so would give two devices that share a
    party the same link.
    """

    def __init__(self, engine: MplangEngine, context: str) -> None:
        super().__init__()
        self._engine, self._context = engine, context
        self._members: dict[tuple[int, ...], _SpuStateOfMembers] = {}

    def get_or_create(self, *given: Any, parties: list[int], **more: Any) -> Any:
        """As MPLang's, for these members; see `_SpuStateOfMembers`."""
        members = tuple(parties)
        if members not in self._members:
            self._members[members] = _SpuStateOfMembers(self._engine, self._context, members)
        return self._members[members].get_or_create(*given, parties=parties, **more)

    def shutdown(self) -> None:
        """Forget all."""
        for state in self._members.values():
            state.shutdown()
        self._members.clear()
        super().shutdown()


class _SpuStateOfMembers(_SPUState):  # type: ignore[misc]
    """SPU's runtimes for one graph and one set of members."""

    def __init__(self, engine: MplangEngine, context: str, members: tuple[int, ...]) -> None:
        super().__init__()
        self._engine, self._context, self._ranks = engine, context, members
        self._links: list[SpuLink] = []  # libspu does not keep their channels alive

    def _get_template_link(self, cache_key: tuple[Any, ...], *_: Any) -> Any:
        if cache_key not in self._template_links:
            endpoint = self._engine.endpoint
            # Members make links of several configurations in any order: so each has a name.
            kind = hashlib.sha256(repr(cache_key[1:]).encode()).hexdigest()[:8]
            ranks = ".".join(map(str, self._ranks))
            names = [endpoint.cluster.party_names[rank] for rank in self._ranks]
            link = link_members(f"mplang/{self._context}/{ranks}/{kind}", names, endpoint)
            self._template_links[cache_key] = link.context
            self._links.append(link)
        return self._template_links[cache_key]


# -- drivers ---------------------------------------------------------------------------------


class RelayDriver(_SimpDriver):  # type: ignore[misc]
    """MPLang's driver over redislink.

    Attributes:
        client: asks the workers.
    """

    dialect_name = "simp"

    def __init__(self, client: Client) -> None:
        """Args:
        client: of a session whose workers have MPLang's ranks.
        """
        self.client = client
        self._lock = threading.Lock()
        self._contexts: weakref.WeakKeyDictionary[Any, tuple[int, set[int]]] = (
            weakref.WeakKeyDictionary()
        )
        """For each graph: its number, and the workers that have it under this number."""
        self._number = 0

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return len(self.client.workers)

    def submit(
        self, rank: int, graph: Any, inputs: list[Any], job_id: str | None = None
    ) -> Future[Any]:
        """Have a worker run a graph; the future gives the URIs of its outputs, or None."""
        data = _mp["dumps_binary"](graph)
        asked = self.client.run(
            rank, data, inputs, job=job_id, context=self._context(rank, graph, job_id)
        )
        return _then(asked, lambda reply: None if reply.outputs is None else [*reply.outputs])

    def fetch(self, rank: int, uri: str) -> Future[Any]:
        """Ask a worker for a value."""
        return _then(self.client.fetch(rank, uri), _value)

    def collect(self, futures: list[Future[Any]]) -> list[Any]:
        """Wait for all results, or for the first failure, which is raised."""
        return self.client.collect(futures)

    @property
    def is_closed(self) -> bool:
        """Whether the session is over."""
        return self.client.is_closed

    def shutdown(self) -> None:
        """Leave the session; the workers wait for the next driver. Safe to call twice."""
        self.client.close()

    def _context(self, rank: int, graph: Any, job_id: str | None) -> str:
        """The same for one graph at all workers, also if several threads submit."""
        with self._lock:
            number, ranks = self._contexts.get(graph, (0, set()))
            if not number or rank in ranks:
                self._number += 1
                number, ranks = self._number, set()
            self._contexts[graph] = number, ranks | {rank}
        return f"{job_id or ''}#{number}"


def _then(asked: Future[Reply], read: Callable[[Reply], Any]) -> Future[Any]:
    given: Future[Any] = Future()

    def pass_on(asked: Future[Reply]) -> None:
        try:
            given.set_result(read(asked.result()))
        except BaseException as error:  # noqa: BLE001 - whoever waits for the value gets it
            given.set_exception(error)

    asked.add_done_callback(pass_on)
    return given


def _value(reply: Reply) -> Any:
    try:
        return _mp["loads_binary"](reply.value or b"")
    except Exception as error:
        raise JobError(
            f"a worker gave a value that MPLang cannot read ({type(error).__name__}): run the "
            "same MPLang at both"
        ) from error


def interpreter_of(driver: RelayDriver, cluster: Any) -> Any:
    """MPLang's interpreter for a program, whose graphs run at the driver's workers.

    Args:
        driver: the driver.
        cluster: MPLang's ``ClusterSpec``.
    """
    interpreter = _mp["Interpreter"](name="DriverInterpreter", handlers={**_mp["DRIVER_HANDLERS"]})
    # Where MPLang's own driver keeps what it saves, on this machine.
    interpreter.root_dir = interpreter.root_dir / cluster.cluster_id / "__driver__"
    backend = _mp["FileSystemBackend"](root_path=str(interpreter.root_dir))
    interpreter.store = _mp["ObjectStore"](persistent=backend)
    interpreter.set_dialect_state("simp", driver)
    interpreter._cluster_spec = cluster  # where MPLang's device API looks
    return interpreter


def mplang_cluster(cluster: ClusterSpec, workers: Sequence[str]) -> Any:
    """MPLang's ``ClusterSpec`` of a cluster file.

    Each worker is a node, and a PPU with the name ``P`` and its rank; each SPU device whose members
    are workers is one, with its protocol and field.

    Args:
        cluster: the cluster file's.
        workers: the workers, in the order of their ranks.
    """
    devices: dict[str, Any] = {
        f"P{rank}": {"kind": "PPU", "members": [name]} for rank, name in enumerate(workers)
    }
    for name, device in cluster.devices.items():
        if set(device.members) <= set(workers):
            config = {"protocol": device.config.protocol, "field": device.config.field}
            members = [worker for worker in workers if worker in device.members]
            devices[name] = {"kind": "SPU", "members": members, "config": config}
    nodes = [{"name": name, "endpoint": f"relay:{name}"} for name in workers]
    return _mp["ClusterSpec"].from_dict(
        {"cluster_id": cluster.session, "nodes": nodes, "devices": devices}
    )


def simple_cluster(endpoints: Sequence[str]) -> Any:
    """MPLang's simplest ``ClusterSpec`` for as many workers as there are endpoints."""
    return _mp["ClusterSpec"].simple(world_size=len(endpoints), endpoints=list(endpoints))


def node_names(cluster: Any) -> list[str]:
    """The names of the nodes of MPLang's ``ClusterSpec``, in the order of their ranks."""
    return [node.name for node in sorted(cluster.nodes.values(), key=lambda node: node.rank)]
