"""Who is there: every pair of parties says hello, and learns that the other is alive.

`PlainHandshake` finds out which run the other is, `SealedHandshake` also proves who it is and
agrees on keys. Both are sans-IO: hellos may be lost, doubled, stale or forged; they are sent
again until answered. What the sealed one agrees on, no hello that is not genuine changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Protocol

from redislink.errors import ClusterMismatch, FrameError, SecurityMismatch
from redislink.protocol.frame import Frame, Hello
from redislink.protocol.seal import Codec, PlainCodec

INSTANCE_BYTES: Final = 8
_ANSWER_AGAIN: Final = 0.9
Message = tuple[Hello, bytes]


class Handshake(Protocol):
    """The hellos of one party with all its peers. Not thread-safe."""

    @property
    def missing(self) -> list[str]:
        """Peers that are not done, in rank order."""
        ...

    @property
    def not_opened(self) -> int:
        """Hellos that were sealed and did not open, so far, of all peers."""
        ...

    def settle(self) -> None:
        """Nobody is missing, and the session begins: from now on, what was agreed holds."""
        ...

    def hello_for(self, peer: str) -> Message:
        """What to push for ``peer`` now; push it again until the peer is no longer missing."""
        ...

    def receive_untrusted(self, peer: str, frame: Frame, body: bytes, now: float) -> Message | None:
        """Take in what came from ``peer``; returns a hello to push at once, or None.

        Call it for later hellos too, also after `settle`: a peer may still need an answer.

        Raises:
            ClusterMismatch: the peer runs with another cluster file, or security.
            FrameError: not a hello of the peer's.
        """
        ...

    def has_restarted(self, peer: str) -> bool:
        """True once it is certain that a peer with which we settled is another run now."""
        ...

    def epoch(self, peer: str) -> str:
        """Of the lists between this party and ``peer``, once settled: 16 hex digits."""
        ...

    def codec(self, peer: str) -> Codec:
        """How frames to and from ``peer`` stand on the broker, once settled."""
        ...

    def trouble(self, peer: str) -> str:
        """What is wrong with a missing peer's hellos, for an error; empty if nothing is known."""
        ...


class MismatchGrace:
    """Whether what a peer's headers say agrees with ours, and from when on that is an error.

    It is once they have disagreed for `SECONDS`, always alike, and none between agreed: so one
    stale or forged hello ends nothing, neither do any number of randomly damaged ones, and the
    peer hears us long enough to see the mismatch too.
    """

    SECONDS: Final = 1.5

    def __init__(self, session: str, party: str, peer: str) -> None:
        self._session = session
        self._party = party
        self._peer = peer
        self._since: float | None = None
        self._seen = (b"", False)
        self.text = ""
        """What is wrong now; empty while nothing is."""

    def check(self, theirs: Hello, ours: Hello, now: float) -> None:
        """Compare two headers.

        Raises:
            ClusterMismatch, SecurityMismatch: they disagree, and have for long.
            FrameError: they disagree; ignore this hello.
        """
        mismatch = self._compare(theirs, ours)
        if mismatch is None:
            self._since, self.text = None, ""
            return
        self.text = str(mismatch)
        seen = (theirs.digest, theirs.sealed)
        if self._since is None or seen != self._seen:
            self._since, self._seen = now, seen
        if now - self._since >= self.SECONDS:
            raise mismatch
        raise FrameError(self.text)

    def _compare(self, theirs: Hello, ours: Hello) -> ClusterMismatch | None:
        who = f"{self._party}: party {self._peer!r}"
        if theirs.sealed != ours.sealed:
            names = {True: "sealed", False: "none"}
            return SecurityMismatch(
                f"{who} runs session {self._session!r} with security {names[theirs.sealed]}, "
                f"this party with {names[ours.sealed]}: give both the same cluster file"
            )
        if theirs.digest != ours.digest:
            return ClusterMismatch(
                f"{who} runs with a different cluster file for session {self._session!r} "
                f"(digest {theirs.digest.hex()[:12]}, ours {ours.digest.hex()[:12]}): "
                "give every party the same file (redislink fingerprint --cluster FILE shows its "
                "digest, and whose key is in it)"
            )
        return None


class PlainHandshake:
    """Without keys. Each HELLO names the sender's instance and echoes the peer's. A pair is
    done when a HELLO comes that echoes this run: among honest ones, only a living peer's does."""

    def __init__(
        self, session: str, party: str, peers: Iterable[str], digest: bytes, instance: bytes
    ) -> None:
        """Args: digest of the cluster file (32 bytes), instance of this run (8 bytes)."""
        peers = list(peers)
        self._session = session
        self._party = party
        self._digest = digest
        self._instance = instance
        self._instances: dict[str, bytes] = dict.fromkeys(peers, b"")
        self._mismatches = {peer: MismatchGrace(session, party, peer) for peer in peers}
        self._answered_at = dict.fromkeys(peers, float("-inf"))
        self._done: set[str] = set()
        self._restarted: set[str] = set()
        self._settled = False

    @property
    def missing(self) -> list[str]:
        return [peer for peer in self._instances if peer not in self._done]

    @property
    def not_opened(self) -> int:
        return 0  # none is sealed

    def settle(self) -> None:
        self._settled = True

    def hello_for(self, peer: str) -> Message:
        return Hello(self._digest, self._instance, self._instances[peer]), b""

    def receive_untrusted(self, peer: str, frame: Frame, body: bytes, now: float) -> Message | None:
        if not isinstance(frame, Hello):
            raise FrameError(f"a {frame.kind.name} frame where a HELLO belongs")
        if peer not in self._done:
            self._mismatches[peer].check(frame, self.hello_for(peer)[0], now)
        news = frame.instance != self._instances[peer]
        if news and self._settled:
            self._restarted.add(peer)
            return None
        if news:
            self._instances[peer] = frame.instance
            self._done.discard(peer)
        if frame.echo == self._instance:
            self._done.add(peer)
        # A peer that goes on saying hello has not had our answer: the broker lost it.
        unanswered = now - self._answered_at[peer] > _ANSWER_AGAIN
        if not (news or unanswered or frame.echo != self._instance):
            return None
        self._answered_at[peer] = now
        return self.hello_for(peer)

    def has_restarted(self, peer: str) -> bool:
        return peer in self._restarted

    def epoch(self, peer: str) -> str:
        return derive_epoch(
            self._session, [(self._party, self._instance), (peer, self._instances[peer])]
        )

    def codec(self, peer: str) -> Codec:
        return PlainCodec()

    def trouble(self, peer: str) -> str:
        return self._mismatches[peer].text


def derive_epoch(session: str, runs: Iterable[tuple[str, bytes]]) -> str:
    """The epoch of a pair without keys, which both sides derive from both instances.

    Args:
        session: the session's name.
        runs: (party name, instance) of both, in any order.
    """
    digest = hashlib.sha256(b"redislink epoch 1\0" + session.encode())
    for name, instance in sorted(runs):
        digest.update(b"\0" + name.encode() + b"\0" + instance)
    return digest.hexdigest()[:16]
