"""How two parties meet: each says hello, and learns that the other is alive.

`PlainHandshake` learns which run the peer is. `SealedHandshake` also authenticates the peer and
agrees on keys. Neither does any I/O. Hellos may be lost, doubled, stale or forged, so they are sent
again until answered. A forged hello cannot change what a sealed handshake has agreed on.
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
    """One party's handshakes with all its peers. Not thread-safe."""

    @property
    def missing(self) -> list[str]:
        """The peers with which the handshake is not complete, in rank order."""
        ...

    def runs(self) -> dict[str, bytes]:
        """The instance of this run, and those of the peers that are done, by party."""
        ...

    @property
    def not_opened(self) -> int:
        """How many sealed hellos have not opened so far, for all peers together."""
        ...

    def settle(self) -> None:
        """Fix what was agreed. Call it when no peer is missing and the session begins."""
        ...

    def hello_for(self, peer: str) -> Message:
        """Return the hello to push now; push it again until the peer is no longer missing."""
        ...

    def receive_untrusted(self, peer: str, frame: Frame, body: bytes, now: float) -> Message | None:
        """Process what arrived from ``peer``.

        Call it for every hello, even after `settle`: the peer may still need an answer.

        Returns:
            A hello to push at once, or None.

        Raises:
            ClusterMismatch: the peer runs with another cluster file, or other security.
            FrameError: this is not a hello from the peer.
        """
        ...

    def has_restarted(self, peer: str) -> bool:
        """Return True once it is certain that the peer, after `settle`, is another run."""
        ...

    def epoch(self, peer: str) -> str:
        """Return the epoch of the lists to and from ``peer``, 16 hex digits, after `settle`."""
        ...

    def codec(self, peer: str) -> Codec:
        """Return the codec for frames to and from ``peer``. Call it after `settle`."""
        ...

    def trouble(self, peer: str) -> str:
        """Return what is wrong with a missing peer's hellos, for an error; empty if unknown."""
        ...


class MismatchGrace:
    """Compares a peer's headers with ours, and decides when a mismatch becomes an error.

    It does so once the headers have disagreed in the same way for `SECONDS` and none between
    agreed. So a stale or forged hello ends nothing, nor does any number of randomly damaged ones,
    and the peer hears us long enough to see the mismatch too.
    """

    SECONDS: Final = 1.5

    def __init__(self, session: str, party: str, peer: str) -> None:
        self._session = session
        self._party = party
        self._peer = peer
        self._since: float | None = None
        self._seen = (b"", False)
        self.text = ""
        """The mismatch at present; empty if there is none."""

    def check(self, theirs: Hello, ours: Hello, now: float) -> None:
        """Compare two headers.

        Raises:
            ClusterMismatch, SecurityMismatch: they have disagreed for `SECONDS`.
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
    """A handshake without keys.

    Each HELLO contains the sender's instance and echoes the peer's. A handshake is complete when a
    HELLO arrives that echoes this run: unless somebody forges it, only a living peer sends it.
    """

    def __init__(
        self, session: str, party: str, peers: Iterable[str], digest: bytes, instance: bytes
    ) -> None:
        """Args:
        session: the session's name.
        party: this party's name.
        peers: the other parties' names, in rank order.
        digest: digest of the cluster file, 32 bytes.
        instance: this run, 8 random bytes.
        """
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

    def runs(self) -> dict[str, bytes]:
        return {self._party: self._instance} | {p: self._instances[p] for p in self._done}

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
        # A peer that keeps saying hello has not received our answer: the broker lost it.
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
    """Return the epoch of two parties without keys; both derive the same from both instances.

    Args:
        session: the session's name.
        runs: (party name, instance) of both parties, in any order.
    """
    digest = hashlib.sha256(b"redislink epoch 1\0" + session.encode())
    for name, instance in sorted(runs):
        digest.update(b"\0" + name.encode() + b"\0" + instance)
    return digest.hexdigest()[:16]
