"""`Moves`: which of several brokers the session is on, as one party sees it.

Sans-IO. The caller passes in all times, as monotonic seconds, and

- calls `answered` and `lost` with what it finds at each broker, and `heard` with what peers say;
- calls `consider` about once a second, and `due` whenever it can push to a broker.

Rules:
- The session has a generation, which only grows. Generation g is on broker g mod n. So parties with
  the same generation are on the same broker, and of two moves at once the higher one wins.
- A party that cannot use the present broker for ``move_after`` seconds goes to the next generation
  whose broker answers it, and says so on every broker that it reaches.
- It says so again until each peer has said this generation or a higher one. Who is asked answers.
- Nobody goes back to a broker because it is first in the list: a move costs a pause.

What the parties have not acknowledged, `Delivery` pushes again on the new broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from redislink.protocol.conversation import LONG_AGO
from redislink.protocol.frame import MAX_GENERATION, Move

SAY_INTERVAL: Final = 1.0
"""Seconds after which a peer that has not answered is told again."""
LISTEN_SECONDS: Final = 1.0
"""How long a party listens at a broker before it asks there again whether it is alive."""
_FRESH: Final = 2.5
_TWICE: Final = 2
"""A broker that has answered so often while the present one was silent is better than that."""


class Moves:
    """One party's view of where the session is. Not thread-safe.

    Attributes:
        generation: the session's, as far as this party knows.
    """

    def __init__(self, peers: Iterable[str], brokers: int, move_after: float) -> None:
        """Args:
        peers: the names of the other parties.
        brokers: how many brokers there are.
        move_after: seconds that the present broker may be away.
        """
        self.generation = 0
        self._brokers = brokers
        self._move_after = move_after
        self._fresh = max(_FRESH, move_after)
        self._moved_at = LONG_AGO
        self._answered_at = [LONG_AGO] * brokers
        self._lost = [False] * brokers
        """Whether the last try to reach each has failed."""
        self._answers = [0] * brokers
        """How often each has answered since the present one last did."""
        self._heard = dict.fromkeys(peers, -1)
        """The highest generation that each peer has said."""
        self._say_at: list[dict[str, float]] = []
        self._owed: list[set[str]] = [set() for _ in range(brokers)]
        self._tell_all()

    @property
    def current(self) -> int:
        """The index of the broker that the session is on."""
        return self.generation % self._brokers

    @property
    def unheard(self) -> list[str]:
        """The peers that have not yet said this generation or a higher one."""
        return [peer for peer, heard in self._heard.items() if heard < self.generation]

    def begin(self, broker: int, now: float) -> None:
        """Begin on this broker: the first in the list that this party reaches."""
        self._go(broker, now)

    def answered(self, broker: int, now: float) -> None:
        """Note that a broker has answered."""
        self._answered_at[broker], self._lost[broker] = now, False
        if broker == self.current:
            self._answers = [0] * self._brokers
        else:
            self._answers[broker] += 1

    def lost(self, broker: int) -> None:
        """Note that a broker cannot be reached."""
        self._lost[broker] = True

    def reaches(self, broker: int, now: float) -> bool:
        """Return whether a broker has answered just now."""
        return not self._lost[broker] and now - self._answered_at[broker] <= self._fresh

    def consider(self, now: float, away: float, round_trip: float) -> bool:
        """Go to another broker if this party cannot use the present one.

        Args:
            now: monotonic seconds.
            away: for how many seconds no message could be pushed or popped.
            round_trip: seconds to the present broker and back, when it last answered.

        Returns:
            Whether this party moves.
        """
        if now - self._moved_at < self._move_after:
            return False  # so that parties that reach no common broker do not race
        silent = now - max(self._answered_at[self.current], self._moved_at)
        is_away = away >= self._move_after
        if not is_away and silent < self._move_after + LISTEN_SECONDS + 2 * round_trip:
            return False
        for generation in range(self.generation + 1, self.generation + self._brokers):
            broker = generation % self._brokers
            # A slow line makes all brokers slow: only one that does better is worth a move.
            better = is_away or self._answers[broker] >= _TWICE
            if better and self.reaches(broker, now) and generation <= MAX_GENERATION:
                self._go(generation, now)
                return True
        return False

    def heard(self, peer: str, said: Move, now: float) -> bool:
        """Take what a peer said.

        Returns:
            Whether this party moves.
        """
        self._heard[peer] = max(self._heard[peer], said.generation)
        if not said.answer:
            self._owed[said.at].add(peer)
        if said.generation <= self.generation:
            return False
        self._go(said.generation, now)
        return True

    def misfit(self, peer: str, said: Move, at: int) -> str:
        """Say how a peer's list of brokers differs from ours; "" if it does not.

        Args:
            peer: the peer.
            said: what it said.
            at: the index, in our list, of the broker at which it was popped.
        """
        if said.brokers != self._brokers:
            return f"{peer} lists {said.brokers} brokers, this party {self._brokers}"
        if said.at != at:
            return (
                f"{peer} lists as number {said.at + 1} the broker that is this party's number "
                f"{at + 1}"
            )
        return ""

    def due(self, broker: int, now: float) -> list[tuple[str, Move]]:
        """Return what to push to whom on this broker now. Each is returned once."""
        owed, self._owed[broker] = self._owed[broker], set()
        due = []
        for peer, say_at in self._say_at[broker].items():
            asks = self._heard[peer] < self.generation and say_at <= now
            if asks:
                self._say_at[broker][peer] = now + SAY_INTERVAL
            if asks or peer in owed:
                due.append((peer, Move(self.generation, broker, self._brokers, answer=not asks)))
        return due

    def _go(self, generation: int, now: float) -> None:
        self.generation, self._moved_at = generation, now
        self._answers = [0] * self._brokers
        self._tell_all()

    def _tell_all(self) -> None:
        self._say_at = [dict.fromkeys(self._heard, LONG_AGO) for _ in range(self._brokers)]
