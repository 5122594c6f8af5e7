"""A driver's end: requests to the workers, and their replies as futures.

Rules: a request never waits, its future does. When a worker is lost, every future fails, because a
graph runs at all workers. Nothing here knows MPLang.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, InvalidStateError
from concurrent.futures import wait as wait_for
from typing import Any, Final

from redislink.errors import (
    EndpointClosed,
    JobError,
    RecvTimeout,
    RedisLinkError,
    may_pass,
    reason_for_peers,
)
from redislink.forking import dies_in_child
from redislink.interop.mplang.messages import (
    REPLIES,
    REQUESTS,
    Reply,
    Request,
    read_reply_untrusted,
    written,
)
from redislink.settings import LONGEST_SECONDS, check_seconds
from redislink.transport.endpoint import Endpoint

_LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks at requests that have a time limit."""


class Client:
    """Asks the workers of one session.

    Attributes:
        workers: their names, in the order of their ranks.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float | None = None) -> None:
        """Args:
        endpoint: the driver's, of a cluster in which it comes last.
        timeout: seconds that a worker may take for one request; None: any.
        """
        self._endpoint = endpoint
        self.workers = endpoint.cluster.party_names[: endpoint.rank]
        self._timeout = None if timeout is None else check_seconds("request timeout", timeout)
        self._lock = threading.Lock()
        self._number = 0
        self._pending: dict[int, tuple[int, float, Future[Reply]]] = {}
        """Rank, time of sending and future of each request without a reply."""
        self._failure: RedisLinkError | None = None
        dies_in_child(self)
        for rank, name in enumerate(self.workers):
            threading.Thread(
                target=self._listen, args=(rank,), name=f"redislink-replies-{name}", daemon=True
            ).start()

    def die_in_child(self) -> None:
        """In the child of a fork: nobody listens, and the endpoint raises."""
        self._lock = threading.Lock()
        self._pending.clear()

    def run(
        self,
        rank: int,
        graph: bytes,
        inputs: Sequence[str | None],
        *,
        job: str | None,
        context: str,
    ) -> Future[Reply]:
        """Have a worker run a graph.

        Args:
            rank: the worker's.
            graph: in MPLang's binary form.
            inputs, job, context: as in `Request`.
        """
        return self._ask(
            rank,
            lambda number: Request(number, graph, tuple(inputs), job=job, context=context),
        )

    def fetch(self, rank: int, uri: str) -> Future[Reply]:
        """Ask a worker for a value.

        Args:
            rank: the worker's.
            uri: of the value.
        """
        return self._ask(rank, lambda number: Request(number, uri=uri))

    def collect(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """Wait for all results, or for the first failure, which is raised.

        Args:
            futures: what `run` or `fetch` gave, or what waits for these.
        """
        done, _ = wait_for(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future in done and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]

    @property
    def is_closed(self) -> bool:
        """Whether the session is over: this driver has left, or a worker is lost."""
        with self._lock:
            return self._failure is not None

    def close(self) -> None:
        """Leave the session; the workers wait for the next driver. Safe to call twice."""
        self._endpoint.close()

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Leave the session, because the program failed.

        Args:
            reason: one line, for the workers.
            retryable: whether the cause may pass.
        """
        self._endpoint.abort(reason, retryable=retryable)

    def _ask(self, rank: int, make: Any) -> Future[Reply]:
        future: Future[Reply] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure.afresh()
            self._number += 1
            number = self._number
            self._pending[number] = rank, time.monotonic(), future
        try:
            self._endpoint.send(rank, REQUESTS, written(make(number)))
        except BaseException:
            with self._lock:
                self._pending.pop(number, None)
            raise
        return future

    # -- in a thread for each worker ---------------------------------------------------------

    def _listen(self, rank: int) -> None:
        wait = LONGEST_SECONDS if self._timeout is None else _LOOK_INTERVAL
        while True:
            try:
                reply = read_reply_untrusted(self._endpoint.recv(rank, REPLIES, wait))
            except RecvTimeout:
                self._check_times(rank)
            except RedisLinkError as error:
                self._fail(error)
                return
            else:
                self._take(rank, reply)

    def _take(self, rank: int, reply: Reply) -> None:
        with self._lock:
            asked, _, future = self._pending.get(reply.number, (-1, 0.0, None))
            if asked == rank:
                del self._pending[reply.number]
        if asked != rank or future is None:
            return  # given up meanwhile, or of another worker's request: not this one's to answer
        if reply.error:
            who = f"{self._endpoint.party}: worker {self.workers[rank]}"
            what = "refused" if reply.refused else "failed at"
            _finish(future, JobError(f"{who} {what} request {reply.number}: {reply.error}"))
        else:
            _finish(future, reply)

    def _check_times(self, rank: int) -> None:
        now, limit = time.monotonic(), self._timeout or 0.0
        with self._lock:
            late = [
                number
                for number, (asked, since, _) in self._pending.items()
                if asked == rank and now - since > limit
            ]
            futures = {number: self._pending.pop(number)[2] for number in late}
        for number, future in futures.items():
            trouble = self._endpoint.trouble(rank)
            _finish(
                future,
                JobError(
                    f"{self._endpoint.party}: worker {self.workers[rank]} has not answered request "
                    f"{number} for {limit:g} s{trouble and f' ({trouble})'}: check what it "
                    "computes or waits for, or give it more time"
                ),
            )

    def _fail(self, error: RedisLinkError) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
            if self._failure is None:
                self._failure = error
        ours = isinstance(error, EndpointClosed)
        if not ours:  # the others wait for what cannot come
            with contextlib.suppress(RedisLinkError):
                self._endpoint.abort(reason_for_peers(error), retryable=may_pass(error))
        for _, _, future in pending.values():
            _finish(future, error.afresh())


def _finish(future: Future[Reply], outcome: Reply | Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # the program has cancelled it
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
