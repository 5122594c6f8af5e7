"""Two hospitals train one model on patients they share, and show their data to nobody.

Alice and bob hold different measurements of overlapping sets of patients; bob also has the
diagnosis. They find the shared patients by PSI. Then alice, bob and carol, who has no data,
train a logistic regression on secret shares: full-batch gradient descent, three-party ABY3.

What is revealed:
- to alice: the weights and the bias of the model, and on how many of the held-out patients it is
  right (computed on shares);
- to alice and bob: which of their own patients the other has too, and the other's number of rows;
- to alice, bob and carol: how many patients and columns take part;
- to the broker: names, tags, sizes and times of messages.

Every party: ``redislink run --cluster cluster.yaml --party NAME logistic_regression.py --data
DIR``. Each needs only its own file, ``DIR/NAME.csv``; carol needs none. All at once on one machine:
``redislink simulate logistic_regression.py``. As a job of agents: ``redislink demo --jobs``.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from redislink import Session

Array = NDArray[Any]

DATA = Path(__file__).resolve().parent / "data"
FEATURE_OWNERS = ("alice", "bob")
LABEL_OWNER = "bob"
LABEL = "diagnosis"
LEARNS_MODEL = "alice"
STEPS = 10
LEARNING_RATE = 1.0
HELD_OUT_EVERY = 3
"""Every third shared patient, in order of id, is kept for judging the model."""

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Model:
    """What alice learns.

    Attributes:
        weights: (features,), of alice's columns and then bob's, for standardised features.
        bias: for the intercept.
        accuracy: share of the held-out patients whose diagnosis it tells rightly, 0 to 1.
        held_out: number of those patients.
    """

    weights: Array
    bias: float
    accuracy: float
    held_out: int


# ---- the training, for SPU (JAX) and in plaintext (numpy): one logic for both ----


def step(
    x_alice: Any, x_bob: Any, y: Any, weights: Any, bias: Any, xp: Any = jnp
) -> tuple[Any, Any]:
    """One step of gradient descent over all n patients.

    Args:
        x_alice, x_bob: (n, features of each), standardised.
        y: (n,), 1 or 0.
        weights: (features of both,).
        bias: ().
        xp: ``jax.numpy`` or ``numpy``.

    Returns:
        The new weights and bias.
    """
    x = xp.concatenate([x_alice, x_bob], axis=1)
    z = xp.matmul(x, weights) + bias
    # SPU has an approximation of its own for JAX's sigmoid; 1 / (1 + exp(-z)) would overflow.
    predicted = jax.nn.sigmoid(z) if xp is jnp else 1 / (1 + np.exp(-z))
    rate = LEARNING_RATE / y.shape[0]
    error = predicted - y
    return weights - rate * xp.matmul(error, x), bias - rate * xp.sum(error)


def start(x_alice: Any, x_bob: Any) -> tuple[Any, Any]:
    """Weights and bias before the first step: zero."""
    return jnp.zeros(x_alice.shape[1] + x_bob.shape[1]), jnp.zeros(())


def count_right(x_alice: Any, x_bob: Any, y: Any, weights: Any, bias: Any, xp: Any = jnp) -> Any:
    """How many of n patients the model tells rightly; arguments as those of `step`."""
    x = xp.concatenate([x_alice, x_bob], axis=1)
    z = xp.matmul(x, weights) + bias
    return xp.sum((z > 0) == (y > 0.5))


# ---- each owner's own data ----


def read_rows(path: Path) -> dict[str, dict[str, float]]:
    """The rows of a CSV file by ``id``: column name to value."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return as_rows(dict(zip(header, zip(*rows, strict=True), strict=True)))


def as_rows(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Rows by ``id``: column name to value, of columns of text."""
    names = [name for name in columns if name != "id"]
    values = zip(*(columns[name] for name in names), strict=True)
    return {
        id_: dict(zip(names, map(float, row), strict=True))
        for id_, row in zip(columns["id"], values, strict=True)
    }


def prepare(rows: dict[str, dict[str, float]]) -> dict[str, Array]:
    """Split one party's patients and standardise its features.

    Args:
        rows: of the shared patients, by id.

    Returns:
        ``x_train``, ``x_test``: (patients, features), float32, scaled by mean and standard
        deviation of the training patients; where the file has a diagnosis, ``y_train`` and
        ``y_test``: (patients,) too.
    """
    ordered = [rows[id_] for id_ in sorted(rows)]
    held_out = np.arange(len(ordered)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    x = np.array([[v for name, v in row.items() if name != LABEL] for row in ordered])
    spread = x[~held_out].std(axis=0)
    x = (x - x[~held_out].mean(axis=0)) / np.where(spread == 0, 1, spread)
    parts = {"x": x}
    if LABEL in ordered[0]:
        parts["y"] = np.array([row[LABEL] for row in ordered])
    return {
        f"{name}_{which}": part[chosen].astype(np.float32)
        for name, part in parts.items()
        for which, chosen in (("train", ~held_out), ("test", held_out))
    }


def train_plaintext(data_dir: Path) -> Model:
    """The same training on the same patients, in plaintext by numpy (float64).

    Args:
        data_dir: with alice.csv and bob.csv: what no single party of a real run has.
    """
    rows = [read_rows(data_dir / f"{owner}.csv") for owner in FEATURE_OWNERS]
    shared = set(rows[0]) & set(rows[1])
    alice, bob = (prepare({id_: own[id_] for id_ in shared}) for own in rows)
    weights = np.zeros(alice["x_train"].shape[1] + bob["x_train"].shape[1])
    bias = np.float64(0)
    train = alice["x_train"], bob["x_train"], bob["y_train"].astype(float)
    for _ in range(STEPS):
        weights, bias = step(*train, weights, bias, xp=np)
    held_out = len(bob["y_test"])
    right = count_right(alice["x_test"], bob["x_test"], bob["y_test"], weights, bias, xp=np)
    return Model(weights, float(bias), int(right) / held_out, held_out)


def plaintext_accuracy(data_dir: Path) -> float:
    """What `train_plaintext` gets right of the held-out patients, 0 to 1."""
    return train_plaintext(data_dir).accuracy


# ---- the program that every party runs ----


def main(
    session: Session,
    data_dir: Path = DATA,
    report: Report | None = None,
    device: str = "SP0",
) -> Model | None:
    """Align the patients, train, and judge.

    Args:
        session: of all parties.
        data_dir: with ``PARTY.csv``, if this party has data; or that file.
        report: called after each step with ``{"event": "progress", "step", "of", "what"}``.
        device: the SPU device that trains.

    Returns:
        The model, at alice; None elsewhere.
    """
    steps_done = 0

    def done(what: str) -> None:
        nonlocal steps_done
        steps_done += 1
        if report is not None:
            report({"event": "progress", "step": steps_done, "of": STEPS + 3, "what": what})

    own = align(session, data_dir)
    done("patients aligned")

    sp = session.spu(device)
    x_train, x_test = (
        [sp.private(lambda name=name: own[name], owner=owner) for owner in FEATURE_OWNERS]
        for name in ("x_train", "x_test")
    )
    y_train, y_test = (
        sp.private(lambda name=name: own[name], owner=LABEL_OWNER) for name in ("y_train", "y_test")
    )
    done("data shared")

    weights, bias = sp.run(start)(*x_train)
    for number in range(1, STEPS + 1):
        weights, bias = sp.run(step)(*x_train, y_train, weights, bias)
        done(f"training step {number}")

    right = sp.run(count_right)(*x_test, y_test, weights, bias)
    right, weights, bias = sp.reveal((right, weights, bias), to=[LEARNS_MODEL])
    done("model judged")
    if session.party != LEARNS_MODEL:
        return None
    held_out = y_test.size
    return Model(weights, float(bias), int(right) / held_out, held_out)


def align(session: Session, data: Path) -> dict[str, Array]:
    """What `prepare` gives for this party's rows of the patients that both have; {} elsewhere."""
    source = data if data.is_file() else data / f"{session.party}.csv"
    shared = session.psi(source, "id", parties=FEATURE_OWNERS, protocol="RR22")
    return {} if shared is None else prepare(as_rows(shared))


def append_line(path: Path, event: dict[str, Any]) -> None:
    """Append one JSON object to a file, as one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def run_and_report(options: argparse.Namespace) -> None:
    """Join, run `main`, and say what came out."""
    started = time.monotonic()

    def report(event: dict[str, Any]) -> None:
        if options.report is not None:
            append_line(options.report, event)

    with Session.join() as session:
        if options.job and session.party in FEATURE_OWNERS:
            options.data = session.data("patients")
        model = main(session, options.data, report)
        result: dict[str, Any] = {"event": "result", "party": session.party}
        if model is not None:
            result |= {"accuracy": model.accuracy, "held_out": model.held_out}
            print(f"{model.accuracy:.4f} of {model.held_out} held-out patients told rightly")
            if options.job:
                session.result("accuracy", model.accuracy)
                session.result("model", {"weights": model.weights, "bias": model.bias})
            if options.plaintext:
                result["plaintext_accuracy"] = plaintext_accuracy(options.data)
                print(f"{result['plaintext_accuracy']:.4f} by the same training in plaintext")
        seconds = time.monotonic() - started
        print(f"{seconds:.1f} s, {session.stats().bytes_sent} bytes sent")
        report(result | {"seconds": round(seconds, 3)} | asdict(session.stats()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Logistic regression on two hospitals' data")
    parser.add_argument("--data", type=Path, default=DATA, help="directory of your PARTY.csv")
    parser.add_argument(
        "--job",
        action="store_true",
        help="as a job: the data is the data set patients, and alice's results are accuracy and "
        "model",
    )
    parser.add_argument("--report", type=Path, help="append progress and result as JSON lines")
    parser.add_argument(
        "--plaintext",
        action="store_true",
        help="also train in plaintext at alice, for comparison: needs both files in --data",
    )
    run_and_report(parser.parse_args())
