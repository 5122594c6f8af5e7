"""`RedisCommunicator`: a communicator over an `Endpoint`."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Final, Self

from redislink.communicator.base import (
    DEFAULT_NAMESPACE,
    TAG_SIGN,
    Communicator,
    Message,
    namespace_prefix,
)
from redislink.errors import (
    RecvCancelled,
)
from redislink.forking import dies_in_child
from redislink.protocol.frame import Encoding
from redislink.transport.endpoint import Endpoint
from redislink.transport.peer import Party
from redislink.transport.request import Request
from redislink.transport.stats import EndpointStats

_CANCEL_INTERVAL: Final = 0.02


class RedisCommunicator(Communicator):
    """A communicator over an `Endpoint`. Closing or aborting it does the same to the endpoint."""

    def __init__(self, endpoint: Endpoint, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Args:
            endpoint: this party's endpoint.
            namespace: one or more names of ``A-Z a-z 0-9 _ . -``, joined by ``/``.

        Raises:
            UsageError: the namespace is not valid.
        """
        super().__init__(namespace)
        self._endpoint = endpoint
        self._receiving = 0
        self._changed = threading.Condition()
        dies_in_child(self)
        self.session, self.party, self.rank = endpoint.session, endpoint.party, endpoint.rank
        self.party_names = tuple(endpoint.cluster.party_names)

    def die_in_child(self) -> None:
        """In the child of a fork: the threads that receive here do not exist; see `Endpoint`."""
        self._receiving = 0
        self._changed = threading.Condition()

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint underneath."""
        return self._endpoint

    def trouble(self, peer: Party) -> str:
        return self._endpoint.trouble(peer)

    def stats(self) -> EndpointStats:
        return self._endpoint.stats()

    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:
        return self._endpoint.announce_silence(seconds)

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        self._endpoint.abort(reason, retryable=retryable)

    def _close(self) -> None:
        self._endpoint.close()

    def _make_sub(self, namespace: str) -> Self:
        child = type(self)(self._endpoint, namespace)
        child._changed = self._changed
        return child

    def _wake_sub(self) -> None:
        # The first cancel may miss a receive that has only just begun.
        while self._receiving:
            for peer in self.party_names:
                if peer != self.party:
                    for end in (TAG_SIGN, "/"):
                        self._endpoint.cancel_recv(peer, f"{namespace_prefix(self.namespace)}{end}")
            with self._changed:
                if self._receiving:
                    self._changed.wait(_CANCEL_INTERVAL)

    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request:
        sending = self._endpoint.parts.sending
        return sending.request(dst, tag, sending.post(dst, tag, data, encoding))

    def _recv(self, src: Party, tag: str, timeout: float | None) -> Message:
        if timeout == 0:
            self._endpoint.peek_message(src, tag)  # fetches what the broker has
        limit = self._endpoint.settings.recv_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        self._count_receiving(1)
        try:
            while True:
                self._check_open()
                try:
                    return self._endpoint.parts.receiving.recv(src, tag, limit)
                except RecvCancelled:
                    # Of this sub, or of another with the same namespace, which is not ours.
                    limit = max(0.0, deadline - time.monotonic())
        finally:
            self._count_receiving(-1)

    def _count_receiving(self, change: int) -> None:
        with self._changed:
            link: Communicator | None = self
            while isinstance(link, RedisCommunicator):
                link._receiving += change
                link = link._parent
            self._changed.notify_all()

    def _peek(self, src: Party, tag: str) -> Message | None:
        return self._endpoint.parts.receiving.peek(src, tag)
