"""Objects of SecretFlow's ``fed`` and of RayFed, over an endpoint of a session of their own.

A party whose program cannot import redislink sends them through the sidecar; both kinds meet in the
same session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redislink.interop.parties import Parties
from redislink.settings import LONGEST_SECONDS

TAG: Final = "o."
"""Begins the tags of objects."""


def named(name: str, ports: str, parties: Sequence[str], made_before: int) -> list[str]:
    """What names a link of the sidecar, for `Parties.cluster`.

    Args:
        name: the link's id.
        ports: what tells it from others of the same id.
        parties: its parties.
        made_before: how many of that name the same process has made.
    """
    return ["sidecar", name, ports, *sorted(parties), str(made_before)]


class Objects:
    """The line for the objects of one job. Several threads may use it at once."""

    def __init__(self, kind: str, job: str, parties: Sequence[str], party: str) -> None:
        """Join the session. Returns once all parties have come.

        Args:
            kind: whose objects they are.
            job: the name of the job, the same at all parties.
            parties: the names of all parties.
            party: this one's.

        Raises:
            ConfigError: the cluster file has not these parties, or this process is another one.
            RedisLinkError: as `redislink.connect`.
        """
        may = Parties()
        names = sorted(parties)
        what = f"{kind} {job}"
        found = may.named(names, what)
        me = may.at(names.index(party), found, what)
        self._called = dict(zip(names, found, strict=True))
        cluster = may.cluster(found, named(what, "", found, 0))
        self._endpoint = may.connect(cluster, me, may.settings)

    def send(self, peer: str, tag: str, message: bytes) -> None:
        """Send a message. Never waits.

        Raises:
            RedisLinkError: as `Endpoint.send`.
        """
        self._endpoint.send(self._called[peer], TAG + tag, message)

    def recv(self, peer: str, tag: str) -> bytes:
        """Wait for the message with a tag, for as long as it may come.

        Raises:
            RedisLinkError: as `Endpoint.recv`.
        """
        return self._endpoint.recv(self._called[peer], TAG + tag, LONGEST_SECONDS)

    def close(self) -> None:
        """Deliver what was sent, and leave."""
        self._endpoint.close()
