"""Hundreds of seeded sessions over a broker that attacks: the right result, or a named error."""

import random
from collections import Counter
from functools import lru_cache

import pytest

from redislink.errors import BrokerTampered, PeerAborted
from redislink.protocol import list_names
from tests.security import hostile_broker as hostile
from tests.security.hostile_session import Session, is_named, make_programme, older_session

older = lru_cache(older_session)


def play(seed, kinds, rate, **options):
    """One session; returns it and what became of its parties."""
    rng = random.Random(f"{seed} {kinds}")
    size = options.pop("size", None) or rng.choice([2, 2, 3])
    attacker = hostile.Attacker(rng, kinds, rate, older(size))
    session = Session(rng, attacker, make_programme(rng, size), **options)
    return session, session.run()


@pytest.mark.parametrize("size", [2, 3])
def test_without_an_attack_all_goes_well(size):
    session, outcome = play(0, (), 0.0, size=size)
    assert set(outcome.values()) == {"done"}
    assert session.now < 5
    assert not any(party.not_opened for party in session.parties.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", hostile.EVERY_KIND)
def test_when_an_attack_passes_the_result_is_right(kind, seed):
    session, outcome = play(seed, (kind,), 0.4, attack_ends=8.0)
    assert set(outcome.values()) == {"done"}, (outcome, session.attacker.done)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", hostile.ADDS_ONLY)
def test_what_the_broker_only_adds_never_stops_a_session(kind, seed):
    session, outcome = play(1000 + seed, (kind,), 0.5)
    assert set(outcome.values()) == {"done"}, (outcome, session.attacker.done)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", hostile.EVERY_KIND)
def test_an_attack_that_goes_on_gives_the_right_result_or_a_named_error(kind, seed):
    _, outcome = play(2000 + seed, (kind,), 0.9, tamper_limit=random.Random(seed).choice([5, 100]))
    for name, end in outcome.items():
        assert end == "done" or is_named(end), f"{name}: {end!r}"


@pytest.mark.parametrize("seed", range(25))
def test_everything_at_once(seed):
    rng = random.Random(seed)
    kinds = tuple(rng.sample(hostile.EVERY_KIND, rng.randint(2, len(hostile.EVERY_KIND))))
    passes = rng.random() < 0.6
    session, outcome = play(
        3000 + seed,
        kinds,
        rng.choice([0.1, 0.3, 0.7]),
        attack_ends=8.0 if passes else float("inf"),
        tamper_limit=1 << 30 if passes else rng.choice([20, 100, 1 << 30]),
    )
    if passes:
        assert set(outcome.values()) == {"done"}, (outcome, session.attacker.done)
    for name, end in outcome.items():
        assert end == "done" or is_named(end), f"{name}: {end!r}"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["flip", "truncate", "extend", "splice"])
def test_tampering_without_end_ends_the_session_at_all_parties(kind, seed):
    session, outcome = play(4000 + seed, (kind,), 1.0, tamper_limit=10, size=3)
    assert session.now < 130
    for end in outcome.values():
        assert is_named(end), outcome


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["flip each", "forge control", "forge data", "junk"])
def test_the_limit_ends_it_for_one_and_its_abort_for_the_others(kind, seed):
    session, outcome = play(5000 + seed, (kind,), 1.0, tamper_limit=3, size=3)
    assert session.now < 60
    kinds = Counter(type(end) for end in outcome.values() if end != "done")
    assert set(kinds) <= {BrokerTampered, PeerAborted}, outcome
    if kinds:
        assert kinds[BrokerTampered] >= 1


def test_every_attack_was_really_made():
    struck, rests = Counter(), 0
    for seed in range(2):
        for kind in hostile.EVERY_KIND:
            session, _ = play(seed, (kind,), 0.5, attack_ends=8.0)
            struck.update(session.attacker.done)
            rests += any(
                name.endswith(list_names.REST_TAG.encode()) for name, _ in session.attacker.seen
            )
    assert sorted(struck) == sorted(hostile.EVERY_KIND)
    assert min(struck.values()) > 0, struck
    assert rests, "no message's rest travelled apart"
