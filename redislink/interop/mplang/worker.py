"""A worker: runs what its policy allows of what one driver sends, until the driver leaves.

Rules:
- Nothing of a graph runs before the policy has accepted it, and only what the rule allows runs.
- Each request has one reply. What an error says stays here, unless the rule lets it out: it may
  quote data.
- A value leaves for the driver only if the graph that gave it was allowed to give results.
- When the driver leaves or is lost, its values are forgotten.
- Nothing here knows MPLang: an `Engine` runs graphs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Final, Protocol

from redislink.errors import (
    EndpointClosed,
    HandshakeTimeout,
    JobError,
    PeerClosed,
    PeerError,
    RecvTimeout,
    RedisLinkError,
    ValueDecodeError,
    may_pass,
    reason_for_peers,
)
from redislink.forking import dies_in_child
from redislink.interop.mplang.messages import (
    MOST_TEXT,
    REPLIES,
    REQUESTS,
    Reply,
    Request,
    read_request_untrusted,
    written,
)
from redislink.interop.mplang.policy import (
    Grant,
    Graph,
    Policy,
    Refusal,
    look_at,
)
from redislink.logs import PartyLogger
from redislink.text import one_line
from redislink.transport.endpoint import Endpoint
from redislink.units import show_duration

LOGGER: Final = "redislink.mplang"
"""What a worker does and why; each record is one line."""
_AT_ONCE: Final = 8
"""Requests that run at the same time; a driver's next one may depend on one that still runs."""
_LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at how long requests have run, if any has a limit."""
_GRACE: Final = 10.0
"""Seconds that requests have to end when their session has."""
_LONGEST_WAIT: Final = 3600.0


class Refused(Exception):
    """Raised while a graph runs: it does what its rule does not allow. One line for the driver."""


class Engine(Protocol):
    """What a worker needs of MPLang."""

    def read(self, data: bytes) -> Graph:
        """The graph of a request; raises whatever it likes if it is none."""
        ...

    def digest(self, graph: Graph) -> str:
        """``sha256:…`` of all that a graph says."""
        ...

    def text(self, graph: Graph) -> str:
        """A graph as people read it."""
        ...

    def run(self, graph: Graph, request: Request, grant: Grant) -> tuple[str | None, ...] | None:
        """Run a graph; return the URIs of what it gives."""
        ...

    def value(self, uri: str) -> bytes:
        """A value in MPLang's binary form."""
        ...


class Worker:
    """One worker's part of one session with its driver.

    Attributes:
        counts: graphs that ``ran``, and were ``refused`` or ``failed``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        driver: str,
        engine: Engine,
        policy: Policy,
        on_refused: Callable[[str, str], None] | None = None,
    ) -> None:
        """Args:
        endpoint: this party's endpoint, of a cluster with the driver.
        driver: the driver's name.
        engine: runs graphs.
        policy: what it may run.
        on_refused: is given digest and text of each refused graph, for people to read.
        """
        self._endpoint = endpoint
        self._driver = driver
        self._engine = engine
        self._policy = policy
        self._on_refused = on_refused
        self._log = PartyLogger(endpoint.session, endpoint.party, LOGGER)
        self._lock = threading.Lock()
        self._running: dict[int, tuple[Request, float, Grant]] = {}
        """Each request that runs, since when, in monotonic seconds, and what it may. By identity:
        the driver may give two the same number."""
        self._grants: dict[str, Grant] = {}
        """By which rule each value came into being."""
        self.counts: Counter[str] = Counter(ran=0, refused=0, failed=0)
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: the threads that run requests do not exist."""
        self._lock = threading.Lock()
        self._running.clear()

    def serve(self) -> None:
        """Run requests until the driver leaves in good order.

        Raises:
            PeerError: the driver, or another worker, is lost or has failed.
            BrokerError: the broker has been away for too long.
            JobError: a request took longer than its rule allows.
        """
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="redislink-mplang")
        futures: set[Future[None]] = set()
        try:
            for request in self._requests():
                futures = {future for future in futures if not future.done()}
                futures.add(pool.submit(self._answer, request))
        except BaseException as error:
            if not isinstance(error, PeerClosed) or error.peer != self._driver:
                # Some may hear of it from us first, or from nobody else.
                self._endpoint.abort(reason_for_peers(error), retryable=may_pass(error))
                raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._end(futures)

    def _end(self, futures: set[Future[None]]) -> None:
        """Requests that wait for other workers end with the endpoint."""
        if not futures:
            return
        if any(not future.done() for future in futures):
            self._endpoint.abort(f"its session with {self._driver} has ended", retryable=True)
        _, computing = wait_for(futures, _GRACE)
        if computing:
            raise StillComputing(
                f"{self._endpoint.party}: a request of {self._driver} still computes {_GRACE:g} s "
                "after its session ended, and cannot be stopped: start the worker again"
            )

    def _requests(self) -> Iterator[Request]:
        driver = self._driver
        while True:
            wait = _LOOK_INTERVAL if self._policy.has_limits else _LONGEST_WAIT
            with contextlib.suppress(RecvTimeout):
                yield read_request_untrusted(self._endpoint.recv(driver, REQUESTS, wait))
            self._check_times()

    def _check_times(self) -> None:
        now = time.monotonic()
        with self._lock:
            running = list(self._running.values())
        for request, began, grant in running:
            if grant.wall is not None and now - began > grant.wall:
                reason = (
                    f"a request took longer than {show_duration(grant.wall)}, the limit of rule "
                    f"{grant.rule!r}"
                )
                self._send(Reply(request.number, error=reason, refused=True))
                with contextlib.suppress(RedisLinkError):
                    self._endpoint.flush()
                self._endpoint.abort(reason)
                raise JobError(f"{self._endpoint.party}: {reason}: {self._driver} is told")

    # -- in threads of the pool --------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        reply = self._reply(request)
        with contextlib.suppress(RedisLinkError):  # the session has ended: nobody waits for it
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        self._endpoint.send(self._driver, REPLIES, written(reply))

    def _reply(self, request: Request) -> Reply:
        try:
            if request.graph is None:
                return self._give(request)
            return self._run(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver waits for a reply
            self._log.warning(
                "%s: request %d: %s", self._endpoint.party, request.number, _said(error)
            )
            return Reply(request.number, error=_type(error))

    def _give(self, request: Request) -> Reply:
        with self._lock:
            grant = self._grants.get(request.uri)
        if not self._policy.is_unrestricted and (grant is None or not grant.results):
            why = (
                "it is not a value of this session"
                if grant is None
                else f"rule {grant.rule!r} gives no results to the driver"
            )
            self._log.warning("%s: a value was not given: %s", self._endpoint.party, why)
            return Reply(request.number, error=why, refused=True)
        return Reply(request.number, value=self._engine.value(request.uri))

    def _run(self, request: Request) -> Reply:
        number, party = request.number, self._endpoint.party
        try:
            graph = self._engine.read(request.graph or b"")
            digest = self._engine.digest(graph)
            asked = look_at(self._driver, digest, graph, request.inputs)
        except Exception as error:
            raise ValueDecodeError(f"it is no graph of MPLang ({_type(error)})") from error
        verdict = self._policy.decide(asked)
        if isinstance(verdict, Refusal):
            for detail in (verdict.reason, *verdict.details):
                self._log.warning("%s: %s refused: %s", party, digest, detail)
            if self._on_refused is not None:
                self._on_refused(digest, self._engine.text(graph))
            self._count(refused=1)
            reason = f"{verdict.reason} ({digest}, {_shown(asked.operations)})"
            return Reply(number, error=reason, refused=True)
        self._log.debug(
            "%s: %s runs (%s): rule %r", party, digest, _shown(asked.operations), verdict.rule
        )
        with self._lock:
            self._running[id(request)] = request, time.monotonic(), verdict
        try:
            outputs = self._engine.run(graph, request, verdict)
        except Refused as refused:
            self._count(refused=1)
            self._log.warning("%s: %s refused: %s", party, digest, refused)
            return Reply(number, error=str(refused), refused=True)
        except Exception as error:  # noqa: BLE001 - whatever the graph makes MPLang raise
            self._count(failed=1)
            ours = isinstance(error, RedisLinkError)
            trace = None if ours else error
            self._log.warning("%s: %s failed: %s", party, digest, _said(error), exc_info=trace)
            tell = verdict.logs or ours
            return Reply(number, error=_said(error) if tell else _type(error))
        finally:
            with self._lock:
                del self._running[id(request)]
        self._count(ran=1)
        with self._lock:
            self._grants.update((uri, verdict) for uri in outputs or () if uri is not None)
        return Reply(number, outputs=outputs)

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)


class StillComputing(JobError):
    """A request goes on although its session has ended; only the end of the process stops it."""


def serve_for_ever(
    connect: Callable[[], Endpoint],
    make_engine: Callable[[Endpoint], Any],
    driver: str,
    policy: Policy,
    *,
    on_refused: Callable[[str, str], None] | None = None,
    log: PartyLogger,
    once: bool = False,
) -> None:
    """Join, serve, and join again when the driver has left.

    Args:
        connect: joins the session.
        make_engine: a context manager that gives the engine of one session.
        driver, policy, on_refused: as for `Worker`.
        log: says who comes and goes.
        once: return when the driver has left in good order, and raise if it has not.

    Raises:
        RedisLinkError: something that a new session does not mend.
    """
    while True:
        log.info("waits for %s", driver)
        try:
            endpoint = connect()
        except HandshakeTimeout as late:
            if once:
                raise
            log.info("%s", late)
            continue
        log.info("%s is here", driver)
        try:
            with endpoint, make_engine(endpoint) as engine:
                worker = Worker(endpoint, driver, engine, policy, on_refused)
                worker.serve()
        except StillComputing:
            raise
        except (PeerError, EndpointClosed, JobError) as error:
            if once:
                raise
            log.warning("%s", error)
        else:
            counts = ", ".join(f"{count} {what}" for what, count in worker.counts.items())
            log.info("%s has left; graphs: %s", driver, counts)
            if once:
                return


def _shown(operations: frozenset[str]) -> str:
    return one_line(", ".join(sorted(operations)), 300)


def _type(error: BaseException) -> str:
    return f"{type(error).__name__}; the worker's log says more"


def _said(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}", MOST_TEXT)
