"""A vendor's neural network judges the patients of two hospitals; nobody shows anything.

Carol has a trained model and wants to keep it. Alice and bob hold different measurements of the
patients that they share (found by PSI). The model is evaluated on secret shares: a perceptron
with one hidden layer, three-party ABY3.

What is revealed:
- to bob: for each shared patient of the held-out third, the model's estimate that it is malignant;
- to alice and bob: which of their own patients the other has too, and the other's number of rows;
- to all: the shapes, so also the size of the hidden layer.

Every party: ``redislink run --cluster cluster.yaml --party NAME mlp.py --data DIR``. Alice and bob
need ``DIR/NAME.csv``, carol ``DIR/carol.json``. All at once on one machine: ``redislink simulate
mlp.py``. ``python mlp.py --train`` made ``data/carol.json``, in plaintext, from both files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from logistic_regression import DATA, FEATURE_OWNERS, LABEL_OWNER, align, prepare, read_rows
from numpy.typing import NDArray

from redislink import Session

MODEL_OWNER = "carol"
LEARNS = LABEL_OWNER
HIDDEN = 8
TRAINING_STEPS = 400

Array = NDArray[Any]
Model = dict[str, dict[str, Any]]
"""``{"hidden": {"w": (features, hidden), "b": (hidden,)}, "out": {"w": (hidden,), "b": ()}}``"""


def predict(model: Any, x_alice: Any, x_bob: Any) -> Any:
    """The estimate for each of n patients that it is malignant, 0 to 1: (n,).

    Args:
        model: as `Model`.
        x_alice, x_bob: (n, features of each), standardised.
    """
    x = jnp.concatenate([x_alice, x_bob], axis=1)
    hidden = jax.nn.relu(x @ model["hidden"]["w"] + model["hidden"]["b"])
    return jax.nn.sigmoid(hidden @ model["out"]["w"] + model["out"]["b"])


def load_model(path: Path) -> Model:
    """The model in a JSON file, as float32."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        layer: {name: np.asarray(content[layer][name], np.float32) for name in ("w", "b")}
        for layer in ("hidden", "out")
    }


def read_shared(data_dir: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """What alice and bob have of their shared patients: from both files, as no party has it."""
    rows = [read_rows(data_dir / f"{owner}.csv") for owner in FEATURE_OWNERS]
    shared = set(rows[0]) & set(rows[1])
    alice, bob = (prepare({id_: own[id_] for id_ in shared}) for own in rows)
    return alice, bob


def train_plaintext(data_dir: Path) -> Model:
    """What carol did, elsewhere and before: gradient descent on all but the held-out patients."""
    alice, bob = read_shared(data_dir)
    data = alice["x_train"], bob["x_train"]
    columns = data[0].shape[1] + data[1].shape[1]
    chance = np.random.default_rng(1)
    model: Model = {
        "hidden": {
            "w": jnp.asarray(chance.normal(0, columns**-0.5, (columns, HIDDEN)), jnp.float32),
            "b": jnp.zeros(HIDDEN),
        },
        "out": {
            "w": jnp.asarray(chance.normal(0, HIDDEN**-0.5, HIDDEN), jnp.float32),
            "b": jnp.zeros(()),
        },
    }

    def loss(model: Model) -> Any:
        estimate = jnp.clip(predict(model, *data), 1e-6, 1 - 1e-6)
        y = bob["y_train"]
        size = sum(jnp.sum(layer["w"] ** 2) for layer in model.values())
        return -jnp.mean(y * jnp.log(estimate) + (1 - y) * jnp.log(1 - estimate)) + 1e-3 * size

    slope = jax.jit(jax.grad(loss))
    for _ in range(TRAINING_STEPS):
        model = jax.tree_util.tree_map(lambda at, by: at - 0.3 * by, model, slope(model))
    return model


def main(
    session: Session, data_dir: Path = DATA, device: str = "SP0"
) -> tuple[Array, float] | None:
    """Align the patients, evaluate, and compare.

    Args:
        session: of all parties.
        data_dir: with this party's file.
        device: the SPU device that evaluates.

    Returns:
        At bob, the estimates for the held-out patients in the order of their ids, and how many of
        their diagnoses they tell rightly, 0 to 1; None elsewhere.
    """
    own = align(session, data_dir)
    sp = session.spu(device)
    model = sp.private(lambda: load_model(data_dir / f"{MODEL_OWNER}.json"), owner=MODEL_OWNER)
    x = [sp.private(lambda: own["x_test"], owner=owner) for owner in FEATURE_OWNERS]
    estimates = sp.reveal(sp.run(predict)(model, *x), to=[LEARNS])
    if session.party != LEARNS:
        return None
    return estimates, float(np.mean((estimates > 0.5) == (own["y_test"] > 0.5)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A vendor's model judges two hospitals' patients")
    parser.add_argument("--data", type=Path, default=DATA, help="directory of your file")
    parser.add_argument(
        "--train", action="store_true", help="write carol.json from both CSV files, in plaintext"
    )
    options = parser.parse_args()
    if options.train:
        trained = jax.tree_util.tree_map(
            lambda part: np.round(np.asarray(part, float), 5).tolist(),
            train_plaintext(options.data),
        )
        text = json.dumps(trained)
        (options.data / f"{MODEL_OWNER}.json").write_text(text + "\n", encoding="utf-8")
    else:
        with Session.join() as own_session:
            found = main(own_session, options.data)
            if found is not None:
                print(f"{found[1]:.4f} of {len(found[0])} held-out patients told rightly")
