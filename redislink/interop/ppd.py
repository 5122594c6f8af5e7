"""The control plane of SPU's examples, which import it as ``ppd``, over the relay.

For trials only: a node runs whatever functions the driver sends it, pickled, and so does each node
for the others. Whoever has the key of one of them can do anything that the user can who runs the
others. So nothing here acts unless ``REDISLINK_TRUSTED_DRIVER`` names the driver.

Rules:
- A driver and all nodes are one session, for one run of a driver. When it has left, the nodes wait
  for the next one. What they hold stays, as it does over gRPC.
- A call is one message, and so is its answer. Calls of one process to another run at the same time.
- The module's own code makes the calls and serves them; only what carries them is ours.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from redislink.errors import (
    ConfigError,
    EndpointClosed,
    HandshakeTimeout,
    PeerClosed,
    PeerError,
    RedisLinkError,
    UsageError,
)
from redislink.forking import dies_in_child
from redislink.interop.parties import Parties
from redislink.interop.startup import sitecustomize
from redislink.logs import PartyLogger
from redislink.settings import LONGEST_SECONDS
from redislink.text import one_line
from redislink.transport.endpoint import Endpoint

WHAT: Final = "ppd"
_MODULE: Final = sitecustomize.STAND_INS["ppd"][0]
_CALLS: Final = "ppd/calls"
_ANSWER: Final = "ppd/answer/"
_METHODS: Final = {b"0": "Run", b"1": "RunReturn"}
_RETURNED: Final = b"+"
_FAILED: Final = b"-"
_AT_ONCE: Final = 10
"""Calls that a node serves at the same time, as over gRPC."""


def install(module: ModuleType) -> None:
    """Put stand-ins in place of what carries the calls.

    Args:
        module: ``examples.python.utils.distributed_impl``.
    """
    own_init = module.HostContext.__init__

    @wraps(own_init)
    def join_and_init(self: Any, nodes_def: Mapping[str, str], *more: Any, **named: Any) -> None:
        _line.drive(nodes_def)
        own_init(self, nodes_def, *more, **named)

    module.HostContext.__init__ = join_and_init
    module.RPC.makeStub = Stub
    module.RPC.serve = serve


class Stub:
    """Stands for a ``NodeServiceStub``: calls the node at an address."""

    def __init__(self, address: str) -> None:
        """Args:
        address: as the program says it; nobody listens there.
        """
        self._address = address

    def Run(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Call a function whose result stays at the node."""
        return self._call(b"0", requests)

    def RunReturn(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Call a function whose result comes back."""
        return self._call(b"1", requests)

    def _call(self, method: bytes, requests: Iterable[Any]) -> Iterator[Any]:
        yield SimpleNamespace(data=_line.call(self._address, method, _joined(requests)))


class _Line:
    """This process's place among the driver and the nodes."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._nodes: dict[str, str] = {}
        """The party at each address."""
        self._numbers = itertools.count()
        dies_in_child(self)

    def die_in_child(self) -> None:
        """The child of a fork is nobody yet."""
        self._endpoint = None

    def drive(self, nodes_def: Mapping[str, str]) -> None:
        """Join the nodes as their driver.

        Args:
            nodes_def: the address of each node.

        Raises: as `redislink.connect`.
        """
        members = Members(nodes_def)
        me = members.parties.at(len(nodes_def), members.names, WHAT)
        cluster = members.parties.cluster(members.names, [WHAT, *sorted(members.names)])
        endpoint = self._endpoint
        if endpoint is not None:
            core = endpoint.parts.core
            if endpoint.cluster == cluster and core.failure is None and not core.closing:
                return
            endpoint.close()
        self.use(members.parties.connect(cluster, me, members.parties.settings), members.at)

    def use(self, endpoint: Endpoint, nodes: dict[str, str]) -> None:
        """Make calls through this endpoint from now on.

        Args:
            endpoint: of the driver and all nodes; it may be open when the program ends.
            nodes: the party at each address.
        """
        endpoint.parts.closing.left_open_is_said = False
        self._nodes, self._endpoint = nodes, endpoint

    def call(self, address: str, method: bytes, payload: bytes) -> bytes:
        """Call the node at an address, and wait for its answer.

        Raises:
            UsageError: this process has not joined, or there is no such node.
            PeerError: the node could not serve the call, or its answer will never come.
            BrokerError: the broker has been away for too long, or refuses us.
        """
        endpoint = self._endpoint
        if endpoint is None or address not in self._nodes:
            raise UsageError(
                f"ppd: no node at {address}: call ppd.init with its address in this process first"
            )
        node = self._nodes[address]
        number = str(next(self._numbers))
        endpoint.send(node, _CALLS, b" ".join([method, number.encode(), payload]))
        answer = endpoint.recv(node, f"{_ANSWER}{number}", LONGEST_SECONDS)
        if answer[:1] == _FAILED:
            text = one_line(answer[1:].decode(errors="replace"))
            raise PeerError(f"ppd: {node} could not serve a call ({text}): see its output")
        return answer[1:]


_line: Final = _Line()


class Members:
    """Who the nodes and the driver are."""

    def __init__(self, nodes_def: Mapping[str, str]) -> None:
        """Args:
        nodes_def: the address of each node.

        Raises:
            ConfigError: nobody said that the driver is trusted, or a node is not in the cluster
                file.
        """
        self.parties = Parties()
        driver = self.parties.settings.trusted_driver
        if driver is None:
            raise ConfigError(
                "ppd: a node runs any function that its driver sends: start it with redislink ppd, "
                "which asks whether you trust the driver (REDISLINK_TRUSTED_DRIVER)"
            )
        self.names = self.parties.named([*nodes_def, driver], WHAT)
        """The parties: the nodes in their order, then the driver."""
        self.driver = self.names[-1]
        self.at = dict(zip(nodes_def.values(), self.names, strict=False))
        """The party at each address."""


def serve(node_id: str, nodes_def: Mapping[str, str]) -> None:
    """Be a node, for one driver after the other; stands for ``RPC.serve``, and never returns.

    Args:
        node_id: which node.
        nodes_def: the address of each node.

    Raises:
        ConfigError: nobody said that the driver is trusted, or the cluster file does not fit.
        BrokerError: the broker has been away for too long, or refuses us.
    """
    module: Any = importlib.import_module(_MODULE)  # a new process may not have it yet
    members = Members(nodes_def)
    if node_id not in nodes_def:
        raise ConfigError(f"ppd: there is no node {node_id}: use one of {', '.join(nodes_def)}")
    me = members.parties.at(list(nodes_def).index(node_id), members.names, WHAT)
    cluster = members.parties.cluster(members.names, [WHAT, *sorted(members.names)])
    log = PartyLogger(cluster.session, me)
    # Its records need this name.
    corrected = {"processNameCorrected": multiprocessing.current_process().name}
    module.logger = logging.LoggerAdapter(module.logger, corrected)
    servicer = module.NodeServicer(node_id, nodes_def)
    settings = members.parties.settings.model_copy(update={"connect_timeout": LONGEST_SECONDS})
    while True:
        module.logger.info(f"node {node_id} waits for the driver, {members.driver}")
        try:
            endpoint = members.parties.connect(cluster, me, settings)
        except HandshakeTimeout:
            continue
        _line.use(endpoint, members.at)
        _serve_one(endpoint, members.driver, servicer, log)


def _serve_one(endpoint: Endpoint, driver: str, servicer: Any, log: PartyLogger) -> None:
    """Serve until the driver has left, or somebody is lost."""
    over = threading.Event()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="redislink-ppd") as pool:

        def read(peer: str) -> None:
            try:
                while True:
                    call = endpoint.recv(peer, _CALLS, LONGEST_SECONDS)
                    pool.submit(_answer, endpoint, peer, servicer, call)
            except (PeerClosed, EndpointClosed):
                if peer != driver:
                    return
            except RedisLinkError as error:  # of the broker too: joining again says more
                log.warning("%s: this run of the driver is over: %s", endpoint.party, error)
            over.set()

        readers = [
            threading.Thread(target=read, args=(peer,), name="redislink-ppd-calls", daemon=True)
            for peer in endpoint.cluster.party_names
            if peer != endpoint.party
        ]
        for reader in readers:
            reader.start()
        over.wait()
        endpoint.close()
        for reader in readers:
            reader.join()


def _answer(endpoint: Endpoint, peer: str, servicer: Any, call: bytes) -> None:
    method, number, payload = call.split(b" ", 2)
    try:
        serve_call: Callable[..., Iterable[Any]] = getattr(servicer, _METHODS[method])
        answer = _RETURNED + _joined(serve_call(iter([SimpleNamespace(data=payload)]), None))
    except Exception as error:  # noqa: BLE001 - of what was sent; the caller gets it
        answer = _FAILED + f"{type(error).__name__}: {error}".encode(errors="replace")
    with contextlib.suppress(RedisLinkError):  # nobody waits any more
        endpoint.send(peer, f"{_ANSWER}{number.decode()}", answer)


def _joined(messages: Iterable[Any]) -> bytes:
    return b"".join(message.data for message in messages)
