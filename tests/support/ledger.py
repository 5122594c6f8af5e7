"""`Ledger`: what was sent and what arrived, as checksums, to be compared afterwards.

Rules: nothing is assumed to have arrived, or to have arrived once: every message is hashed at
the sender when it is sent and at the receiver when it is handed out.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redislink import Endpoint
from redislink.protocol.frame import Encoding

Book = dict[str, list[str]]
"""Checksums by ``peer tag``, in order."""


def checksum(data: bytes | bytearray | memoryview) -> str:
    """Of a whole message."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


# How far a party of a `redislink.Session` is: told when a step lasts, and looked at only by those
# whose own step lasts. The others leave it unread, so that it says nothing about losses.
_MAY_STAY_UNREAD = ":status"


class Ledger:
    """Writes down what passes through an endpoint, from now on; all threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.sent: Book = defaultdict(list)
        self.received: Book = defaultdict(list)
        self._lock = threading.Lock()
        post, recv = endpoint.parts.sending.post, endpoint.parts.receiving.recv

        def post_noted(dst: Any, tag: str, data: Any, *encoding: Encoding) -> int:
            # The order in which it is sent must be the order in which it is noted.
            with self._lock:
                number = post(dst, tag, data, *encoding)  # every send comes through it
                if not tag.endswith(_MAY_STAY_UNREAD):
                    self.sent[f"{_name(endpoint, dst)} {tag}"].append(checksum(data))
            return number

        def recv_noted(src: Any, tag: str, timeout: float | None = None) -> tuple[bytes, Encoding]:
            message = recv(src, tag, timeout)  # every receive comes through it
            with self._lock:
                if not tag.endswith(_MAY_STAY_UNREAD):
                    self.received[f"{_name(endpoint, src)} {tag}"].append(checksum(message[0]))
            return message

        endpoint.parts.sending.post = post_noted  # type: ignore[method-assign]
        endpoint.parts.receiving.recv = recv_noted  # type: ignore[method-assign]

    def as_json(self) -> dict[str, Book]:
        """For `compare`, through a file if need be."""
        with self._lock:
            return {"sent": dict(self.sent), "received": dict(self.received)}


@dataclass(frozen=True)
class Comparison:
    """How what arrived differs from what was sent; all are numbers of messages.

    Attributes:
        sent: by all parties to all.
        lost: sent, and not handed out.
        doubled: handed out more often than they were sent; altered ones count here and as lost.
        misordered: tags whose messages came in another order than they were sent in.
    """

    sent: int
    lost: int
    doubled: int
    misordered: int

    @property
    def clean(self) -> bool:
        """True if everything came once, intact, in order."""
        return not (self.lost or self.doubled or self.misordered)


def compare(ledgers: Mapping[str, Mapping[str, Book]]) -> Comparison:
    """Hold what every party sent against what its peers received; ledgers by party."""
    sent: dict[tuple[str, str, str], list[str]] = {}
    received: dict[tuple[str, str, str], list[str]] = {}
    for party, ledger in ledgers.items():
        for where, sums in ledger["sent"].items():
            peer, _, tag = where.partition(" ")
            sent[party, peer, tag] = sums
        for where, sums in ledger["received"].items():
            peer, _, tag = where.partition(" ")
            received[peer, party, tag] = sums
    lost = doubled = misordered = 0
    for route in sent.keys() | received.keys():
        out, come = sent.get(route, []), received.get(route, [])
        lost += (Counter(out) - Counter(come)).total()
        doubled += (Counter(come) - Counter(out)).total()
        misordered += Counter(out) == Counter(come) and out != come
    return Comparison(sum(map(len, sent.values())), lost, doubled, misordered)


def _name(endpoint: Endpoint, party: Any) -> str:
    return endpoint.cluster.party_names[party] if isinstance(party, int) else str(party)
