"""The model trained on shares is the one that the same training gives in plaintext."""

from __future__ import annotations

from typing import Any

import logistic_regression as lr
import numpy as np
import pytest

from redislink import Session
from tests.examples.conftest import DATA, Place

WEIGHT_ERROR = 5e-3
"""Fixed point and the sigmoid's approximation, over all steps; 6e-4 was measured."""


@pytest.mark.slow
def test_the_model_is_as_good_as_in_plaintext(place: Place) -> None:
    events: dict[str, list[dict[str, Any]]] = {"alice": [], "bob": [], "carol": []}

    def main(session: Session) -> lr.Model | None:
        return lr.main(session, DATA, events[session.party].append)

    model, at_bob, at_carol = place.play(main)
    plain = lr.train_plaintext(DATA)
    assert at_bob is None
    assert at_carol is None, "only alice learns the model"
    assert model.held_out == plain.held_out == 140
    assert model.accuracy > 0.95
    assert abs(model.accuracy - plain.accuracy) < 2.5 / plain.held_out
    assert model.weights.shape == (30,)
    assert np.abs(model.weights - plain.weights).max() < WEIGHT_ERROR
    assert abs(model.bias - plain.bias) < WEIGHT_ERROR
    for reported in events.values():
        assert [event["step"] for event in reported] == list(range(1, lr.STEPS + 4))
        assert {event["of"] for event in reported} == {lr.STEPS + 3}
        assert reported[0]["what"] == "patients aligned"
        assert reported[-1]["what"] == "model judged"


def test_plaintext_accuracy() -> None:
    assert lr.plaintext_accuracy(DATA) == pytest.approx(0.9643, abs=1e-4)


def test_a_step_follows_the_gradient_of_the_loss() -> None:
    chance = np.random.default_rng(0)
    x_alice, x_bob = chance.normal(size=(20, 2)), chance.normal(size=(20, 3))
    y = chance.integers(0, 2, 20)
    at = chance.normal(size=6)

    def loss(parameters: Any) -> Any:
        z = np.hstack([x_alice, x_bob]) @ parameters[:5] + parameters[5]
        return np.mean(np.logaddexp(0, z) - y * z)

    weights, bias = lr.step(x_alice, x_bob, y, at[:5], at[5], xp=np)
    tiny = 1e-6 * np.eye(6)
    slope = np.array([(loss(at + d) - loss(at - d)) / 2e-6 for d in tiny])
    assert np.allclose(np.append(weights, bias), at - lr.LEARNING_RATE * slope, atol=1e-8)
    in_jax = lr.step(*(np.float32(v) for v in (x_alice, x_bob, y, at[:5], at[5])))
    assert np.allclose(in_jax[0], weights, atol=1e-5)
    assert np.allclose(in_jax[1], bias, atol=1e-5)


def test_patients_are_split_by_id_and_scaled_by_those_in_training() -> None:
    rows = {
        f"P{i}": {"a": float(i), "same": 7.0, lr.LABEL: float(i % 2)} for i in (5, 0, 3, 1, 4, 2)
    }
    parts = lr.prepare(rows)
    assert sorted(parts) == ["x_test", "x_train", "y_test", "y_train"]
    assert parts["y_train"].tolist() == [0, 1, 1, 0]
    assert parts["y_test"].tolist() == [0, 1], "P2 and P5"
    assert parts["x_train"].shape == (4, 2)
    assert np.allclose(parts["x_train"].mean(axis=0), 0, atol=1e-6)
    assert np.allclose(parts["x_train"].std(axis=0), [1, 0]), "a constant column stays finite"
    assert np.allclose(parts["x_test"][:, 0], (np.array([2, 5]) - 2) / np.std([0, 1, 3, 4]))
    assert all(part.dtype == np.float32 for part in parts.values())


def test_the_committed_data_is_what_its_readme_says() -> None:
    alice, bob = (lr.read_rows(DATA / f"{owner}.csv") for owner in lr.FEATURE_OWNERS)
    assert (len(alice), len(bob), len(set(alice) & set(bob))) == (500, 480, 420)
    columns = [list(next(iter(rows.values()))) for rows in (alice, bob)]
    assert (len(columns[0]), len(columns[1])) == (15, 16)
    assert not set(columns[0]) & set(columns[1])
    assert columns[1][-1] == lr.LABEL
    assert {row[lr.LABEL] for row in bob.values()} == {0.0, 1.0}
    assert list(alice) != sorted(alice), "each has its own order"
