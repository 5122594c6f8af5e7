"""A stand-in for MPLang: graphs are JSON, and what they do is a function of the test's."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redislink.interop.mplang.comm import RelayCommunicator
from redislink.interop.mplang.messages import Request
from redislink.interop.mplang.policy import Grant
from redislink.transport.endpoint import Endpoint


@dataclass
class Operation:
    """As MPLang's."""

    opcode: str
    attrs: dict[str, Any] = field(default_factory=dict)
    regions: list[Graph] = field(default_factory=list)


@dataclass
class Graph:
    """As MPLang's."""

    operations: list[Operation]


def graph(*opcodes: str, **attrs: Any) -> bytes:
    """A graph of these operations, in its binary form; all have the attributes."""
    return json.dumps([[opcode, attrs] for opcode in opcodes]).encode()


def dumps(value: Any) -> bytes:
    """As MPLang's ``dumps_binary``."""
    return json.dumps(value).encode()


def loads(data: bytes) -> Any:
    """As MPLang's ``loads_binary``."""
    return json.loads(data)


def communicator(endpoint: Endpoint, world_size: int) -> RelayCommunicator:
    """With the stand-in's encoding; the handle of a send is a tuple."""

    def handle(done: Future[None], to: int, key: str) -> Any:
        return done, to, key

    return RelayCommunicator(endpoint, world_size, dumps, loads, handle)


class Engine:
    """Runs graphs of one operation each, whose name is a method of the test's.

    Attributes:
        communicator: between the workers.
        ran: the operations that were run.
        values: what they gave, by URI.
    """

    def __init__(self, endpoint: Endpoint, work: dict[str, Callable[..., Any]]) -> None:
        self.communicator = communicator(endpoint, endpoint.world_size - 1)
        self.ran: list[str] = []
        self.values: dict[str, Any] = {}
        self._work = work
        self._lock = threading.Lock()

    def read(self, data: bytes) -> Graph:
        """See `redislink.interop.mplang.worker.Engine`."""
        return Graph([Operation(opcode, attrs) for opcode, attrs in json.loads(data)])

    def digest(self, graph: Any) -> str:
        """See `redislink.interop.mplang.worker.Engine`."""
        return f"sha256:{hashlib.sha256(self.text(graph).encode()).hexdigest()}"

    def text(self, graph: Any) -> str:
        """See `redislink.interop.mplang.worker.Engine`."""
        return " ".join(operation.opcode for operation in graph.operations)

    def run(self, graph: Any, request: Request, grant: Grant) -> tuple[str | None, ...] | None:
        """See `redislink.interop.mplang.worker.Engine`."""
        given = [None if uri is None else self.values[uri] for uri in request.inputs]
        outputs: list[str | None] = []
        for operation in graph.operations:
            value = self._work[operation.opcode](self, request, *given)
            with self._lock:
                self.ran.append(operation.opcode)
                uri = f"mem://{len(self.values)}"
                self.values[uri] = value
            outputs.append(None if value is None else uri)
        return tuple(outputs) or None

    def value(self, uri: str) -> bytes:
        """See `redislink.interop.mplang.worker.Engine`."""
        return dumps(self.values[uri])


def engines(work: dict[str, Callable[..., Any]], made: list[Engine]) -> Callable[[Endpoint], Any]:
    """What `serve_for_ever` needs to make engines; they are put into ``made``."""

    @contextmanager
    def make(endpoint: Endpoint) -> Iterator[Engine]:
        made.append(Engine(endpoint, work))
        yield made[-1]

    return make
