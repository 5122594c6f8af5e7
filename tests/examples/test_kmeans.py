"""The groups of shared patients are those in plaintext, and each learns its own columns."""

from __future__ import annotations

import kmeans
import numpy as np
import pytest
from mlp import read_shared

from tests.examples.conftest import DATA, Place

CENTRE_ERROR = 5e-3
"""Fixed point, over all rounds."""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["simulated", "valkey"])
def test_the_groups_are_those_in_plaintext(where: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(where)
    place = found if isinstance(found, Place) else Place(found.url)
    at_alice, at_bob, at_carol = place.play(kmeans.main)
    assert at_carol is None
    alice, bob = read_shared(DATA)
    plain = kmeans.group_plaintext(alice["x_train"], bob["x_train"])
    assert np.abs(at_alice.centres - plain[0]).max() < CENTRE_ERROR
    assert np.abs(at_bob.centres - plain[1]).max() < CENTRE_ERROR
    assert np.array_equal(at_alice.member_of, at_bob.member_of)
    assert np.mean(at_alice.member_of == plain[2]) > 0.99
    agree = np.mean((at_bob.member_of == 1) == (bob["y_train"] > 0.5))
    assert max(agree, 1 - agree) > 0.85, "the two kinds are malignant and benign, more or less"


def test_a_centre_without_patients_stays() -> None:
    x = np.zeros((4, 1), np.float32)
    centres = np.array([[0, 0], [9, 9]], np.float32)
    assert kmeans.improve(x, x, centres, np).tolist() == [[0, 0], [9, 9]]
