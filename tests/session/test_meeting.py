"""Journals that meet when parties join, and those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from redislink import PeerError, ThreadCommunicator
from redislink.errors import JournalError
from redislink.session.agreement import MAIN, History
from redislink.session.meeting import WHERE_TAG, Journaled, Standing, meet
from redislink.session.records import EndedRecord
from tests.conftest import run_parties

NAMES = ("alice", "bob", "carol")
RUN = b"r" * 16
ALL = NAMES


class Party:
    """A party's journal without a disk, and what `meet` had it write."""

    def __init__(
        self, steps: Sequence[Sequence[str]] = (), run: bytes = RUN, program: str = "one"
    ) -> None:
        self.run = run
        self.ended: EndedRecord | None = None
        self.histories = {MAIN: History()} if steps else {}
        for number, touches in enumerate(steps, 1):
            self.histories[MAIN].add(f"{program} {number}".encode().ljust(16), touches, 0)
        self.reached: dict[str, int] = {}
        self.generation = self.made_in = 0
        self.wrote: list[Any] = []
        self.went_back: list[int] = []

    def meet(self, communicator: ThreadCommunicator) -> Any:
        def go_back(points: Any, generation: int) -> None:
            self.wrote.append(points)
            self.went_back.append(generation)

        at = self.generation, self.made_in
        mine = Journaled(self.histories, self.reached, self.wrote.append, go_back, *at)
        return meet(communicator, self.run, self.ended, mine)


def _meet(*parties: Party, leaving: bool = False) -> list[Any]:
    """What `meet` returned or raised at each; with ``leaving``, who raises leaves the others."""

    def play(party: Party, communicator: ThreadCommunicator) -> Any:
        try:
            return party.meet(communicator)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            if leaving:
                communicator.abort(str(error))
            return error

    made = ThreadCommunicator.make(NAMES, recv_timeout=10)
    return run_parties(
        *(lambda p=party, c=c: play(p, c) for party, c in zip(parties, made, strict=True))
    )


def _messages(results: Sequence[Any]) -> list[str]:
    assert all(isinstance(result, JournalError) for result in results), results
    assert all(result.told_to_peers == str(result) for result in results)
    return [str(result) for result in results]


def test_new_journals_begin_one_run_together() -> None:
    parties = [Party(run=b"") for _ in NAMES]
    assert _meet(*parties) == [({}, {})] * 3
    (run,) = {run for party in parties for run in party.wrote}
    assert len(run) == 16
    again = [Party(run=b"") for _ in NAMES]
    _meet(*again)
    assert again[0].wrote != parties[0].wrote


def test_whoever_died_while_a_run_began_begins_another_with_the_others() -> None:
    parties = [Party(run=RUN), Party(run=b""), Party(run=RUN)]
    assert _meet(*parties) == [({}, {})] * 3
    assert all(party.wrote == parties[0].wrote for party in parties)
    assert parties[0].wrote != [RUN]


def test_journals_that_end_at_one_step_resume_there_and_write_nothing() -> None:
    parties = [Party([ALL, ("alice", "bob"), ALL]) for _ in NAMES]
    at = {MAIN: dict.fromkeys(NAMES, 3)}
    assert _meet(*parties) == [({MAIN: 3}, at)] * 3
    assert not any(party.wrote for party in parties)


def test_who_is_behind_where_it_took_no_part_does_not_hold_the_others_back() -> None:
    steps = [ALL, ("alice", "bob"), ("alice", "bob"), ALL]
    parties = [Party(steps[:4]), Party(steps[:3]), Party(steps[:1])]
    points, at = {MAIN: 3}, {MAIN: {"alice": 3, "bob": 3, "carol": 1}}
    assert _meet(*parties) == [(points, at)] * 3
    assert all(party.wrote == [points] for party in parties)


def test_a_journal_that_is_not_there_is_named_at_all_parties() -> None:
    for without in (Party(run=b""), Party(run=b"x" * 16)):
        has_none = not without.run
        told = _messages(_meet(Party([ALL]), without, Party([ALL])))
        for message in told:
            if has_none:
                assert "bob has no journal of the run that alice and carol would resume" in message
            else:
                assert "the journals of alice and bob are of different runs" in message
            assert message.endswith(
                "start all parties anew with --fresh, which keeps the old journals aside"
            )


def test_an_older_copy_of_a_journal_is_named_by_who_knows_of_the_newer() -> None:
    steps = [ALL, ("alice", "bob"), ALL]
    parties = [Party(steps), Party(steps), Party(steps[:1])]
    parties[0].reached = {MAIN: 2}
    # What took place without carol need not be in its journal.
    assert all(points == {MAIN: 2} for points, _ in _meet(*parties))
    parties[0].reached = {MAIN: 3}
    (told, *_) = _meet(*parties, leaving=True)
    assert "carol's journal ends at step 1, but it went to step 3 or further before" in str(told)
    assert "it is an older copy: put carol's newest journal back" in str(told)


def test_a_copy_from_before_the_others_went_back_is_refused() -> None:
    alice, bob, carol = parties = [Party([ALL, ALL]) for _ in NAMES]
    alice.generation = alice.made_in = bob.generation = bob.made_in = carol.generation = 3
    _meet(*parties)
    assert not any(party.went_back for party in parties)
    carol.generation = 2
    for told in _messages(_meet(*parties)):
        assert "carol's journal does not know of steps that were made anew since" in told
        assert "it is an older copy: put carol's newest journal back" in told
    # Whoever died while all went back has made nothing since, and neither has anybody else.
    alice.made_in = bob.made_in = 2
    _meet(*parties)
    assert [party.went_back for party in parties] == [[4]] * 3


def test_journals_of_different_programs_are_told_apart() -> None:
    parties = [Party([ALL, ALL]), Party([ALL], program="other"), Party([ALL, ALL])]
    results = _meet(*parties, leaving=True)
    (found, *_) = [result for result in results if isinstance(result, JournalError)]
    assert " and bob differ at step 1 or before" in str(found)


def test_a_run_that_went_on_without_journals_cannot_be_resumed() -> None:
    parties = [Party([ALL]), Party([ALL]), Party([ALL])]
    parties[1].ended = EndedRecord.of("carol", "disk full\x1b[2J")
    for message in _messages(_meet(*parties)):
        assert "because carol's failed (disk full" in message
        assert "\x1b" not in message


def test_whatever_a_peer_tells_is_refused_unless_it_makes_sense() -> None:
    good = Standing(RUN, {}).encode()
    bad = [
        None,
        [*good, 1],
        [good[0] + 1, *good[1:]],
        [*good[:3], ["bob"], *good[4:]],
        [*good[:4], [1], good[5]],
        [*good[:4], [1, "x"], good[5]],
        [*good[:5], [["", -1, b"", []]]],
        [*good[:5], [["", 1, b"", [[1]]]]],
        [*good[:5], [["", 1, b"", [[1, "x"]]]]],
    ]
    assert Standing.parse_untrusted(good) == Standing(RUN, {}, None, 0, 0, good[2])
    assert [Standing.parse_untrusted(told) for told in bad] == [None] * len(bad)
    alice, bob, _ = ThreadCommunicator.make(NAMES, recv_timeout=5)
    bob.send("alice", WHERE_TAG, bad[2])
    with pytest.raises(PeerError, match="bob told of its journal in a way that makes no sense"):
        Party().meet(alice)
