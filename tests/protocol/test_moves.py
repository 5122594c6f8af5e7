"""`Moves`: when a party moves to another broker, what it says, and that all agree; no real time."""

import random

import pytest

from redislink.protocol.frame import MAX_GENERATION, Move
from redislink.protocol.moves import SAY_INTERVAL, Moves

AFTER = 3.0


def make(brokers=2, peers=("bob",), at=0.0):
    moves = Moves(peers, brokers, AFTER)
    moves.begin(0, at)
    return moves


def alive(moves, now, *brokers):
    for broker in brokers:
        moves.answered(broker, now)


def test_it_begins_on_the_broker_whose_index_is_the_generation():
    moves = Moves(["bob"], 3, AFTER)
    moves.begin(2, 0.0)
    assert (moves.generation, moves.current) == (2, 2)


def test_it_stays_while_the_present_broker_serves():
    moves = make()
    for second in range(100):
        alive(moves, float(second), 0, 1)
        assert not moves.consider(float(second), away=0.0, round_trip=0.01)


def test_it_moves_when_nothing_could_be_pushed_for_long_although_the_broker_answers():
    moves = make()
    alive(moves, 10.0, 0, 1)
    assert not moves.consider(10.0, away=2.9, round_trip=0.01)
    assert moves.consider(10.1, away=3.0, round_trip=0.01)
    assert (moves.generation, moves.current) == (1, 1)


def test_it_does_not_move_to_a_broker_that_does_not_answer():
    moves = make(brokers=3)
    alive(moves, 10.0, 0, 1, 2)
    moves.lost(1)
    assert moves.consider(10.0, away=3.0, round_trip=0.01)
    assert moves.current == 2
    stuck = make()
    alive(stuck, 1.0, 1)
    assert not stuck.consider(10.0, away=9.0, round_trip=0.01)  # heard too long ago
    alive(stuck, 10.5, 1)
    assert stuck.consider(10.5, away=9.5, round_trip=0.01)


def test_a_broker_that_falls_silent_is_left_only_for_one_that_does_better():
    moves = make()
    alive(moves, 9.9, 1)
    alive(moves, 10.0, 0)
    assert not moves.consider(14.5, away=0.0, round_trip=0.01)  # all are silent: a slow line
    alive(moves, 14.5, 1)
    assert not moves.consider(14.5, away=0.0, round_trip=0.01)  # perhaps the answer was on its way
    alive(moves, 15.0, 1)
    assert moves.consider(15.0, away=0.0, round_trip=0.01)


def test_a_round_trip_of_five_seconds_is_no_silence():
    moves = make()
    alive(moves, 100.0, 0)
    for now in (101.0, 106.0, 111.0, 113.9):
        alive(moves, now, 1)
        assert not moves.consider(now, away=0.0, round_trip=5.0)
    alive(moves, 114.1, 1)
    assert moves.consider(114.1, away=0.0, round_trip=5.0)


def test_it_moves_at_most_once_in_move_after():
    moves = make()
    alive(moves, 10.0, 1)
    assert moves.consider(10.0, away=5.0, round_trip=0.0)
    alive(moves, 12.0, 0)
    assert not moves.consider(12.0, away=7.0, round_trip=0.0)
    alive(moves, 13.0, 0)
    assert moves.consider(13.0, away=8.0, round_trip=0.0)
    assert moves.current == 0


def test_what_a_peer_says_is_followed_at_once_if_it_is_higher():
    moves = make(brokers=3)
    assert moves.heard("bob", Move(5, 1, 3), 0.1)
    assert (moves.generation, moves.current) == (5, 2)
    assert not moves.heard("bob", Move(4, 1, 3), 0.2)
    assert moves.generation == 5


def test_it_says_its_generation_on_every_broker_until_the_peer_has_said_it():
    moves = make(brokers=2, peers=("bob", "carol"))
    ask = Move(0, 1, 2)
    assert moves.due(1, 1.0) == [("bob", ask), ("carol", ask)]
    assert moves.due(1, 1.5) == []
    assert moves.due(0, 1.5) == [("bob", Move(0, 0, 2)), ("carol", Move(0, 0, 2))]
    moves.heard("bob", Move(0, 1, 2, answer=True), 1.6)
    assert moves.due(1, 1.0 + SAY_INTERVAL) == [("carol", ask)]
    assert moves.unheard == ["carol"]
    moves.heard("carol", Move(0, 1, 2, answer=True), 1.7)
    assert moves.due(0, 99.0) == moves.due(1, 99.0) == moves.unheard == []


def test_who_is_asked_answers_where_it_was_asked():
    moves = make()
    moves.heard("bob", Move(0, 1, 2), 0.1)
    assert moves.due(0, 0.2) == []
    assert moves.due(1, 0.2) == [("bob", Move(0, 1, 2, answer=True))]
    assert moves.due(1, 0.3) == []


def test_who_is_behind_is_told():
    moves = make()
    moves.heard("bob", Move(7, 1, 2, answer=True), 0.1)
    moves.heard("bob", Move(6, 0, 2), 0.2)  # what was said before came later
    assert moves.due(0, 0.3) == [("bob", Move(7, 0, 2, answer=True))]


@pytest.mark.parametrize(
    ("said", "at", "what"),
    [
        (Move(0, 1, 3), 1, "bob lists 3 brokers, this party 2"),
        (Move(0, 0, 2), 1, "bob lists as number 1 the broker that is this party's number 2"),
        (Move(9, 1, 2), 1, ""),
    ],
)
def test_a_list_that_is_not_ours_is_seen(said, at, what):
    assert make().misfit("bob", said, at) == what


def test_it_does_not_go_beyond_the_highest_generation():
    moves = make()
    moves.heard("bob", Move(MAX_GENERATION, 0, 2), 0.0)
    alive(moves, 10.0, 1, 0)
    assert not moves.consider(10.0, away=9.0, round_trip=0.0)


@pytest.mark.parametrize("seed", range(50))
def test_parties_with_a_broker_in_common_end_on_one_that_all_reach(seed):
    """Each reaches some brokers, all of them one at least; what is said gets lost half the time."""
    rng = random.Random(seed)
    names = ["alice", "bob", "carol", "dave"][: rng.choice([2, 3, 4])]
    count = rng.choice([2, 3, 5])
    common = rng.randrange(count)
    reach = {
        name: {common} | {broker for broker in range(count) if rng.random() < 0.5} for name in names
    }
    parties = {name: Moves([n for n in names if n != name], count, AFTER) for name in names}
    since = dict.fromkeys(names, 0.0)
    for name, moves in parties.items():
        moves.begin(min(reach[name]), 0.0)
    now = 0.0
    while now < 300:
        now += 0.5
        for name in rng.sample(names, len(names)):
            moves = parties[name]
            usable = moves.current in reach[name]
            since[name] = now if usable else since[name]
            for broker in reach[name]:
                moves.answered(broker, now)
            for broker in set(range(count)) - reach[name]:
                moves.lost(broker)
            moves.consider(now, now - since[name], 0.01)
            for broker in reach[name]:
                for peer, said in moves.due(broker, now):
                    if broker in reach[peer] and rng.random() < 0.5:
                        parties[peer].heard(name, said, now)
    (generation,) = {moves.generation for moves in parties.values()}
    assert all(generation % count in reach[name] for name in names)
    assert generation < 20 * count
    assert all(not moves.unheard for moves in parties.values())
