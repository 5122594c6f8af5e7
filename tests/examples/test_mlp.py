"""The network judges shares as it judges the patients themselves."""

from __future__ import annotations

from pathlib import Path

import jax
import mlp
import numpy as np
import pytest

from tests.examples.conftest import DATA, Place

ESTIMATE_ERROR = 0.01
"""Fixed point and the sigmoid's approximation; 4e-3 was measured."""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["simulated", "valkey"])
def test_the_estimates_are_those_in_plaintext(where: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(where)
    place = found if isinstance(found, Place) else Place(found.url)
    at_alice, at_bob, at_carol = place.play(mlp.main)
    assert at_alice is None
    assert at_carol is None
    estimates, accuracy = at_bob
    alice, bob = mlp.read_shared(DATA)
    plain = mlp.predict(mlp.load_model(DATA / "carol.json"), alice["x_test"], bob["x_test"])
    assert estimates.shape == plain.shape == (140,)
    assert np.abs(estimates - plain).max() < ESTIMATE_ERROR
    assert accuracy > 0.95


@pytest.mark.slow
def test_the_committed_model_is_the_trained_one() -> None:
    trained, committed = mlp.train_plaintext(DATA), mlp.load_model(Path(DATA, "carol.json"))
    assert jax.tree_util.tree_all(
        jax.tree_util.tree_map(lambda a, b: np.allclose(a, b, atol=1e-3), trained, committed)
    )
