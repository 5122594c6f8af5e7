"""`Request`: the handle of a message under way."""

from __future__ import annotations

from typing import Protocol


class Request(Protocol):
    """The handle of a message under way, like a request in MPI. `send` returns it at once.

    You need not do anything with it: the message arrives all the same.
    """

    def test(self) -> bool:
        """Return whether the peer has received the message. Never waits, and never raises."""
        ...

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the peer has received the message.

        Args:
            timeout: seconds; None means the setting ``recv_timeout``.

        Raises:
            SendTimeout: the peer has not received it in time. It may still do so later.
            PeerClosed: the peer has left the session without receiving it.
            PeerError: the peer is gone, or its run has failed.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: this party has closed or aborted.
            UsageError: the timeout is not a number of seconds.
        """
        ...
