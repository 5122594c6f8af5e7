"""Three parties that talk all the while something is done to their broker; nothing may get lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redislink import Endpoint, EndpointStats
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.ledger import Comparison, Ledger, compare

PARTIES = ("alice", "bob", "carol")
_BEFORE_AND_AFTER = 30
_PATIENCE = 60.0


@dataclass
class Talk:
    """How it went.

    Attributes:
        comparison: of everything sent with everything received.
        stats: of each party.
        rounds: in each of which every party sends to every other.
        longest_gap: seconds between two rounds, at most.
    """

    comparison: Comparison
    stats: list[EndpointStats] = field(repr=False)
    rounds: int
    longest_gap: float


class _Rounds:
    """How far the talk is, and whether it shall end."""

    def __init__(self) -> None:
        self.done = 0
        self.longest_gap = 0.0
        self._noted_at = time.monotonic()
        self.end = False
        self._changed = threading.Condition()

    def note(self, number: int) -> None:
        now = time.monotonic()
        with self._changed:
            self.longest_gap = max(self.longest_gap, now - self._noted_at)
            self._noted_at = now
            self.done = number
            self._changed.notify_all()

    def wait_for_more(self) -> None:
        """Return after so many further rounds."""
        with self._changed:
            enough = self.done + _BEFORE_AND_AFTER
            came = self._changed.wait_for(lambda: self.end or self.done >= enough, _PATIENCE)
        assert came, f"no round after the {self.done}th in {_PATIENCE:g} s"


def talk(
    url: str | Mapping[str, str],
    *harms: Callable[[], Any],
    session: str | None = None,
    **changes: Any,
) -> Talk:
    """Let three parties talk while each harm is done, with rounds before and after each.

    Args:
        url: of the broker, or of several; by party if each has its own way there.
        harms: called one after the other; may raise.
        session: its name.
        changes: of settings.
    """
    own = dict.fromkeys(PARTIES, url) if isinstance(url, str) else url
    cluster = make_cluster(own[PARTIES[0]], **({} if session is None else {"session": session}))
    settings = {"recv_timeout": _PATIENCE} | changes
    endpoints = run_parties(
        *(
            partial(connect_as, cluster, name, quick_settings(broker_url=own[name], **settings))
            for name in PARTIES
        )
    )
    books = {endpoint.party: Ledger(endpoint) for endpoint in endpoints}
    rounds = _Rounds()
    with ThreadPoolExecutor(len(endpoints)) as pool:
        talking = [pool.submit(_talk, endpoint, rounds) for endpoint in endpoints]
        try:
            rounds.wait_for_more()
            for harm in harms:
                harm()
                rounds.wait_for_more()
        finally:
            rounds.end = True
        for one in talking:
            one.result()
        for closing in [pool.submit(endpoint.close) for endpoint in endpoints]:
            closing.result()
    return Talk(
        compare({name: book.as_json() for name, book in books.items()}),
        [endpoint.stats() for endpoint in endpoints],
        rounds.done,
        rounds.longest_gap,
    )


def _talk(me: Endpoint, rounds: _Rounds) -> None:
    """Rank 0 says which round is the last."""
    others = [peer for peer in me.cluster.party_names if peer != me.party]
    chance, number, last = random.Random(me.rank), 0, False
    try:
        while not last:
            last = me.rank == 0 and rounds.end
            body = bytes([last]) + chance.randbytes(int(4 ** chance.uniform(0, 8)))
            for peer in others:
                me.send(peer, f"round {number}", body)
            for peer in others:
                got = me.recv(peer, f"round {number}")
                last = last or (me.cluster.rank(peer) == 0 and bool(got[0]))
            number += 1
            if me.rank == 0:
                rounds.note(number)
    except BaseException:
        rounds.end = True  # else who waits for rounds would wait on
        rounds.note(rounds.done)
        raise
