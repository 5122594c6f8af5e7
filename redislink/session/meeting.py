"""`meet`: all parties with journals agree, when they join, where the session resumes.

Messages, in a namespace of their own:

- ``where``: how far the sender's journal goes.
- ``reach``: how far the sender knows each party to reach, if the journals end at different steps.
- ``ready``: the sender has written where it resumes. Nobody goes on before all are ready: otherwise
  one party could make a step anew of which another, which dies now, still has the old record.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from redislink.communicator import Communicator
from redislink.errors import JournalError, PeerError
from redislink.session.agreement import (
    History,
    Position,
    Positions,
    chains_of,
    first_difference,
    last_of,
    reaches,
    resume_points,
)
from redislink.session.records import START_ANEW, EndedRecord, named

FORMAT: Final = 1
"""The version of what parties tell each other here."""
WHERE_TAG: Final = "where"
_REACH_TAG: Final = "reach"
_READY_TAG: Final = "ready"
_READY: Final = "written"
_RUN_BYTES: Final = 16
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Standing:
    """How far a party's journal goes.

    Attributes:
        run: what all journals of one run have in common; empty if it has no run yet.
        positions: by chain.
        ended: why the run cannot be resumed; None if it can.
        generation: how often the parties have gone back to steps before, as far as this one knows.
        made_in: the generation in which this party made its last step.
        nonce: random bytes of this joining, of which a new run's name is made.
    """

    run: bytes
    positions: Positions
    ended: EndedRecord | None = None
    generation: int = 0
    made_in: int = 0
    nonce: bytes = field(default_factory=lambda: os.urandom(_RUN_BYTES))

    def encode(self) -> list[Any]:
        """The message ``where``."""
        packed = [
            [chain, at.last, at.digest, [list(rise) for rise in at.rises]]
            for chain, at in self.positions.items()
        ]
        ended = [] if self.ended is None else [self.ended.party, self.ended.why]
        return [FORMAT, self.run, self.nonce, ended, [self.generation, self.made_in], packed]

    @classmethod
    def parse_untrusted(cls, told: Any) -> Standing | None:
        """What `encode` made; None if it did not make this."""
        match told:
            case [int(version), bytes(run), bytes(nonce), list(ended), [int(generation),
                  int(made_in)], list(packed)] if version == FORMAT:  # fmt: skip
                positions = {}
                for entry in packed:
                    match entry:
                        case [str(chain), int(last), bytes(digest), list(rises)] if (
                            last >= 0 and all(map(_is_pair, rises))
                        ):
                            pairs = tuple((number, needs) for number, needs in rises)
                            positions[chain] = Position(last, digest, pairs)
                        case _:
                            return None
                match ended:
                    case []:
                        return cls(run, positions, None, generation, made_in, nonce)
                    case [str(party), str(why)]:
                        why_ended = EndedRecord.of(party, why)
                        return cls(run, positions, why_ended, generation, made_in, nonce)
        return None


@dataclass(frozen=True)
class Journaled:
    """What one party's journal holds, for `meet`.

    Attributes:
        histories: by chain.
        reached: by chain, the step that every party reached when something was revealed.
        begin: writes that a new run begins, which has no step yet.
        go_back: writes after which step each chain resumes, and in which generation.
        generation, made_in: see `Standing`.
    """

    histories: Mapping[str, History]
    reached: Mapping[str, int]
    begin: Callable[[bytes], None]
    go_back: Callable[[Mapping[str, int], int], None]
    generation: int = 0
    made_in: int = 0


def meet(
    communicator: Communicator, run: bytes, ended: EndedRecord | None, mine: Journaled
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Agree with all other parties where the session resumes. All call it at once.

    Args:
        communicator: in a namespace of this call only.
        run: see `Standing.run`.
        ended: see `Standing.ended`.
        mine: this party's journal.

    Returns:
        By chain, the step after which it goes on; and by chain and party, up to where that party's
        records of these steps are on disk.

    Raises:
        JournalError: the journals cannot meet; the message says why and what to do.
        PeerError: a party does not say how far its journal goes.
    """
    me = communicator.party
    positions = {chain: Position.of(history) for chain, history in mine.histories.items()}
    standing = Standing(run, positions, ended, mine.generation, mine.made_in)
    others = _exchange(communicator, WHERE_TAG, standing.encode(), Standing.parse_untrusted)
    standings = {party: others.get(party, standing) for party in communicator.party_names}
    told = {party: each.positions for party, each in standings.items()}
    _check_ended(me, standings)
    if not run or any(each.run != run for each in standings.values()):
        _check_nothing_begun(me, standings)
        nonces = b"".join(sorted(each.nonce for each in standings.values()))
        mine.begin(hashlib.sha256(nonces).digest()[:_RUN_BYTES])
        _exchange(communicator, _READY_TAG, _READY, _parse_ready)
        return {}, {}
    _check_generations(me, standings)
    _check_reached(me, mine, told)
    _check_digests(me, mine, told)
    lasts = {
        chain: {party: last_of(told[party], chain) for party in told} for chain in chains_of(told)
    }
    points = resume_points(told, [lasts])
    generations = {each.generation for each in standings.values()}
    if len(generations) > 1 or any(
        last != points[chain] for chain, by_party in lasts.items() for last in by_party.values()
    ):
        known = reaches(mine.histories, told)
        answers = _exchange(communicator, _REACH_TAG, known, _parser_of_reach(known))
        points = resume_points(told, [known, *answers.values()])
        mine.go_back(points, max(generations) + 1)
        _exchange(communicator, _READY_TAG, _READY, _parse_ready)
    on_disk = {
        chain: {party: min(last, points[chain]) for party, last in by_party.items()}
        for chain, by_party in lasts.items()
    }
    return points, on_disk


# -- what makes it impossible ----------------------------------------------------------------


def _check_ended(me: str, standings: Mapping[str, Standing]) -> None:
    for standing in standings.values():
        if standing.ended is not None:
            raise _cannot_meet(
                f"{me}: the run went on without journals, because {standing.ended.party}'s failed "
                f"({standing.ended.why}), so it cannot be resumed: {START_ANEW}"
            )


def _check_nothing_begun(me: str, standings: Mapping[str, Standing]) -> None:
    """Refuse journals of different runs, or none at some parties, unless nobody has a step."""
    begun = [p for p, s in standings.items() if any(at.last for at in s.positions.values())]
    if not begun:
        return
    without = [party for party, standing in standings.items() if not standing.run]
    if without:
        raise _cannot_meet(
            f"{me}: {named(without)} {_has(without)} no journal of the run that {named(begun)} "
            f"would resume: put it back, or {START_ANEW}"
        )
    (first, *_) = begun
    others = [p for p, s in standings.items() if s.run != standings[first].run]
    raise _cannot_meet(
        f"{me}: the journals of {first} and {named(others)} are of different runs: put those of "
        f"one run back, or {START_ANEW}"
    )


def _check_generations(me: str, standings: Mapping[str, Standing]) -> None:
    """Refuse a journal that was copied before others went back, and made steps anew.

    Its steps have the same digests as the new ones, but shares that do not fit to theirs.
    """
    newest = max(standing.made_in for standing in standings.values())
    for party, standing in standings.items():
        if standing.generation < newest:
            raise _cannot_meet(
                f"{me}: {party}'s journal does not know of steps that were made anew since: it is "
                f"an older copy: put {party}'s newest journal back, or {START_ANEW}"
            )


def _check_reached(me: str, mine: Journaled, told: Mapping[str, Positions]) -> None:
    """Refuse to go back behind a reveal: no journal that is the newest one leads there."""
    for chain, number in mine.reached.items():
        for party, positions in told.items():
            last = last_of(positions, chain)
            if mine.histories[chain].reach(party, last) < number:
                raise _cannot_meet(
                    f"{me}: {party}'s journal ends at step {last}{_of(chain)}, but it went to step "
                    f"{number} or further before a value was revealed: it is an older copy: put "
                    f"{party}'s newest journal back, or {START_ANEW}"
                )


def _check_digests(me: str, mine: Journaled, told: Mapping[str, Positions]) -> None:
    found = first_difference(mine.histories, told)
    if found is not None:
        party, chain, number = found
        raise _cannot_meet(
            f"{me}: the journals of {me} and {party} differ at step {number}{_of(chain)} or "
            f"before, so their programs or arguments did: {START_ANEW}"
        )


def _cannot_meet(text: str) -> JournalError:
    """An error that the peers may be told whole: it names no path."""
    error = JournalError(text)
    error.told_to_peers = text
    return error


def _of(chain: str) -> str:
    return f" of {chain}" if chain else ""


def _has(parties: Collection[str]) -> str:
    return "has" if len(parties) == 1 else "have"


# -- messages --------------------------------------------------------------------------------


def _exchange(
    communicator: Communicator, tag: str, body: Any, parse: Callable[[Any], _Answer | None]
) -> dict[str, _Answer]:
    """Send ``body`` to all others, and return what each of them sent, by party."""
    peers = [party for party in communicator.party_names if party != communicator.party]
    for peer in peers:
        communicator.send(peer, tag, body)
    found = {}
    for peer in peers:
        answer = parse(communicator.recv(peer, tag))
        if answer is None:
            raise PeerError(
                f"{communicator.party}: {peer} told of its journal in a way that makes no sense "
                "here: check that all parties run the same version of redislink"
            )
        found[peer] = answer
    return found


def _is_pair(told: Any) -> bool:
    return isinstance(told, list) and len(told) == 2 and all(type(n) is int for n in told)


def _parse_ready(told: Any) -> bool | None:
    return True if told == _READY else None


def _parser_of_reach(
    known: Mapping[str, Mapping[str, int]],
) -> Callable[[Any], dict[str, dict[str, int]] | None]:
    """Parses a message that is like ``known`` but for the numbers."""

    def parse(told: Any) -> dict[str, dict[str, int]] | None:
        if type(told) is dict and told.keys() == known.keys():
            for chain, by_party in told.items():
                if type(by_party) is not dict or by_party.keys() != known[chain].keys():
                    return None
                if not all(type(number) is int for number in by_party.values()):
                    return None
            return told
        return None

    return parse
