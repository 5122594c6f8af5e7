"""Who is there: every pair of parties says hello and learns which run the other is.

`Handshake` is sans-IO. Each pair exchanges HELLO frames; each names the sender's *instance*
(8 random bytes, new in every run) and echoes the peer's. A pair is done when a HELLO comes
that echoes this run: only a living peer can have sent it, so what a dead run left behind
completes nothing. HELLOs may be lost, doubled or stale; they are sent again until answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from redislink.errors import ClusterMismatch, FrameError
from redislink.protocol.frame import Frame, Hello

INSTANCE_BYTES = 8


def derive_epoch(session: str, runs: Iterable[tuple[str, bytes]]) -> str:
    """The epoch of a pair: 16 hex digits that both sides derive from both instances.

    Args:
        session: the session's name.
        runs: (party name, instance) of both, in any order.
    """
    digest = hashlib.sha256(b"redislink epoch 1\0" + session.encode())
    for name, instance in sorted(runs):
        digest.update(b"\0" + name.encode() + b"\0" + instance)
    return digest.hexdigest()[:16]


class Handshake:
    """The hellos of one party with all its peers. Not thread-safe; the caller serialises."""

    def __init__(
        self, session: str, party: str, peers: Iterable[str], digest: bytes, instance: bytes
    ) -> None:
        """Args: digest of the cluster file (32 bytes), instance of this run (8 bytes)."""
        self._session = session
        self._party = party
        self._digest = digest
        self._instance = instance
        self._instances: dict[str, bytes] = dict.fromkeys(peers, b"")
        self._done: set[str] = set()

    @property
    def missing(self) -> list[str]:
        """Peers whose hello has not come yet, in rank order."""
        return [peer for peer in self._instances if peer not in self._done]

    def hello_for(self, peer: str) -> Hello:
        """The HELLO to push for ``peer`` now; push it again until it is no longer missing."""
        return Hello(self._digest, self._instance, self._instances[peer])

    def receive(self, peer: str, frame: Frame) -> Hello | None:
        """Take in what came from ``peer``; returns a HELLO to push at once, or None.

        Raises:
            ClusterMismatch: the peer runs with another cluster file.
            FrameError: not a HELLO; nothing has changed.
        """
        if not isinstance(frame, Hello):
            raise FrameError(f"a {frame.kind.name} frame where a HELLO belongs")
        if frame.digest != self._digest:
            raise ClusterMismatch(
                f"{self._party}: party {peer!r} runs with a different cluster file for session "
                f"{self._session!r} (digest {frame.digest.hex()[:12]}, ours "
                f"{self._digest.hex()[:12]}): give every party the same file"
            )
        news = frame.instance != self._instances[peer]
        self._instances[peer] = frame.instance
        if frame.echo == self._instance:
            self._done.add(peer)
        return self.hello_for(peer) if news else None

    def epoch(self, peer: str) -> str:
        """The epoch of the lists between this party and ``peer``, once it said hello."""
        return derive_epoch(
            self._session,
            [(self._party, self._instance), (peer, self._instances[peer])],
        )
