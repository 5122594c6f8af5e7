"""MPLang's communicator over an endpoint: what workers send each other.

Rules: a key is a tag with a prefix of its own; equal keys keep their order, because equal tags do.
Values travel in MPLang's own binary form, which holds data only. What arrives is untrusted: what
cannot be read is a `ValueDecodeError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from redislink.errors import UsageError, ValueDecodeError
from redislink.protocol.frame import Encoding
from redislink.text import one_line
from redislink.transport.endpoint import Endpoint

_PREFIX: Final = "mplang/"
_LONGEST_KEY: Final = 400
"""In bytes of UTF-8; a tag has at most 512."""


class RelayCommunicator:
    """Sends and receives for one worker, as MPLang's communicators do.

    Attributes:
        rank: this worker's rank.
        world_size: the number of workers; the driver is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        world_size: int,
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        handle: Callable[[Future[None], int, str], Any],
    ) -> None:
        """Args:
        endpoint: this party's endpoint; its rank is the worker's.
        world_size: the number of workers, who have the first ranks of the endpoint's cluster.
        dumps, loads: MPLang's ``dumps_binary`` and ``loads_binary``.
        handle: makes MPLang's handle of a send.
        """
        self.rank = endpoint.rank
        self.world_size = world_size
        self._endpoint = endpoint
        self._dumps, self._loads, self._handle = dumps, loads, handle

    def send(self, to: int, key: str, data: Any, *, is_raw_bytes: bool = False) -> Any:
        """Send a value, or bytes as they are. Never waits.

        Args:
            to: the receiver's rank.
            key: the receiver names the same.
            data: a value that MPLang can encode, or bytes.
            is_raw_bytes: ``data`` is bytes; bytes are sent as they are in any case.

        Returns:
            MPLang's handle, which is done: from here on redislink cares for the message.

        Raises: as `Endpoint.send`.
        """
        self._post(to, key, data, is_raw_bytes=is_raw_bytes)
        done: Future[None] = Future()
        done.set_result(None)
        return self._handle(done, to, key)

    isend = send

    def send_sync(
        self,
        to: int,
        key: str,
        data: Any,
        *,
        is_raw_bytes: bool = False,
        timeout: float | None = None,  # noqa: ARG002 - MPLang's signature; settings bound it
    ) -> None:
        """Send, and wait until the broker has it; see `send`."""
        self._post(to, key, data, is_raw_bytes=is_raw_bytes)
        self._endpoint.flush()

    def recv(self, frm: int, key: str, *, timeout: float | None = None) -> Any:
        """Wait for the next message with a key, and return its value.

        Args:
            frm: the sender's rank.
            key: what the sender named.
            timeout: seconds; None means the setting ``recv_timeout``.

        Raises:
            ValueDecodeError: the value cannot be read.
            RecvTimeout, PeerError, BrokerError, EndpointClosed: as `Endpoint.recv`.
        """
        self._check(frm)
        receiving = self._endpoint.parts.receiving
        data, encoding = receiving.recv(frm, _tag(key), timeout)
        if encoding is Encoding.RAW:
            return data
        try:
            return self._loads(data)
        except Exception as error:
            name = self._endpoint.cluster.party_names[frm]
            raise ValueDecodeError(
                f"{self._endpoint.party}: {name} sent a value under {one_line(key, 80)!r} that "
                f"MPLang cannot read ({type(error).__name__}): run the same MPLang at both"
            ) from error

    def wait_pending_sends(self, timeout: float | None = None) -> None:  # noqa: ARG002 - theirs
        """Wait until the broker has everything sent so far that fits into the send window."""
        self._endpoint.flush()

    def shutdown(self) -> None:
        """Nothing is to be done: the endpoint is closed by its owner."""

    def _post(self, to: int, key: str, data: Any, *, is_raw_bytes: bool) -> None:
        self._check(to)
        sending = self._endpoint.parts.sending
        if is_raw_bytes or isinstance(data, bytes):
            sending.post(to, _tag(key), data)
        else:
            sending.post(to, _tag(key), self._dumps(data), Encoding.VALUE)

    def _check(self, rank: int) -> None:
        if not 0 <= rank < self.world_size or rank == self.rank:
            raise UsageError(
                f"{self._endpoint.party}: rank {rank!r:.20} is none of the other workers: they "
                f"are those from 0 to {self.world_size - 1}, without {self.rank}"
            )


def _tag(key: str) -> str:
    """The tag of a key; one for any length, because keys of nested graphs grow."""
    encoded = key.encode()
    if len(encoded) > _LONGEST_KEY:
        return f"{_PREFIX}sha256:{hashlib.sha256(encoded).hexdigest()}"
    return _PREFIX + key
