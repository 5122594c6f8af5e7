"""`Roster`: whether all parties have met all others, and mean the same run of each.

A party may start again while others are still missing: those that had met its first run meet the
second. So a party that has met everybody must not begin yet. It says so, with a name for the runs
that it has met (the roster), and begins once all others have said the same name. Had one of them
started again meanwhile, theirs or ours would differ.

Hellos carry the roster in the clear, as a hint: who forges one makes a party begin too early, with
peers that have proved who they are; it then ends with PeerRestarted or PeerLost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from redislink.protocol.frame import Hello
from redislink.protocol.handshake import Handshake


class Roster:
    """What each party has said about the runs that it has met. Not thread-safe."""

    def __init__(self, session: str, peers: Iterable[str], handshake: Handshake) -> None:
        """Args:
        session: the session's name.
        peers: all parties but this one.
        handshake: this party's; only asked.
        """
        self._session = session
        self._handshake = handshake
        self._said: dict[str, tuple[bytes, bytes]] = dict.fromkeys(peers, (b"", b""))
        """By peer: the run that spoke last, and its roster."""

    @property
    def mine(self) -> bytes:
        """What to say about the runs that we have met; empty while a party is missing."""
        if self._handshake.missing:
            return b""
        digest = hashlib.sha256(b"redislink roster 1\0" + self._session.encode())
        for name, instance in sorted(self._handshake.runs().items()):
            digest.update(b"\0" + name.encode() + b"\0" + instance)
        return digest.digest()[:16]

    def heard(self, peer: str, hello: Hello) -> None:
        """Note a hello that the handshake has taken. Older ones may come later, by other ways."""
        if hello.roster or hello.instance != self._said[peer][0]:
            self._said[peer] = hello.instance, hello.roster

    @property
    def absent(self) -> list[str]:
        """Parties that are missing, or else those that have not said what we say."""
        if missing := self._handshake.missing:
            return missing
        runs, mine = self._handshake.runs(), self.mine
        return [peer for peer, said in self._said.items() if said != (runs[peer], mine)]
