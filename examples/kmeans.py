"""Which kinds of patients are there? Two hospitals find groups and show their data to nobody.

Alice and bob hold different measurements of the patients that they share (found by PSI). K-means
on secret shares, three-party ABY3, puts the patients into groups by the measurements of both.

What is revealed:
- to alice and bob: the centres of the groups, each its own measurements only, and each patient's
  group; which of their own patients the other has too, and the other's number of rows;
- to all: how many patients and columns take part.

Every party: ``redislink run --cluster cluster.yaml --party NAME kmeans.py --data DIR``. Alice and
bob need ``DIR/NAME.csv``. All at once on one machine: ``redislink simulate kmeans.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from logistic_regression import DATA, FEATURE_OWNERS, align
from numpy.typing import NDArray

from redislink import Session

GROUPS = 2
ROUNDS = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """What alice and bob learn, each.

    Attributes:
        centres: (groups, own columns), of standardised measurements.
        member_of: (patients,), number of each patient's group, in the order of their ids.
    """

    centres: Array
    member_of: Array


def start(x_alice: Any, x_bob: Any, xp: Any = jnp) -> Any:
    """Centres to begin with: the first patients. (groups, columns of both)."""
    return xp.concatenate([x_alice, x_bob], axis=1)[:GROUPS]


def nearest(x: Any, centres: Any, xp: Any = jnp) -> Any:
    """For each patient, 1 at the nearest centre and else 0: (patients, groups)."""
    # |x|² is the same for all centres.
    distance = xp.sum(centres**2, axis=1) - 2 * xp.matmul(x, centres.T)
    group = xp.argmin(distance, axis=1)
    return (group[:, None] == xp.arange(GROUPS)).astype(np.float32)


def improve(x_alice: Any, x_bob: Any, centres: Any, xp: Any = jnp) -> Any:
    """One round: each centre moves to the mean of its patients; one without any stays."""
    x = xp.concatenate([x_alice, x_bob], axis=1)
    belongs = nearest(x, centres, xp)
    counts = xp.sum(belongs, axis=0)[:, None]
    means = xp.matmul(belongs.T, x) / xp.maximum(counts, 1)
    return xp.where(counts > 0, means, centres)


def finish(x_alice: Any, x_bob: Any, centres: Any, xp: Any = jnp) -> tuple[Any, Any, Any]:
    """Alice's and bob's columns of the centres, and each patient's group."""
    x = xp.concatenate([x_alice, x_bob], axis=1)
    member_of = xp.argmax(nearest(x, centres, xp), axis=1)
    columns = x_alice.shape[1]
    return centres[:, :columns], centres[:, columns:], member_of


def group_plaintext(x_alice: Array, x_bob: Array) -> tuple[Any, Any, Any]:
    """The same in plaintext, by numpy: what `finish` gives."""
    centres = start(x_alice, x_bob, np)
    for _ in range(ROUNDS):
        centres = improve(x_alice, x_bob, centres, np)
    return finish(x_alice, x_bob, centres, np)


def main(session: Session, data_dir: Path = DATA, device: str = "SP0") -> Groups | None:
    """Align the patients and find the groups.

    Args:
        session: of all parties.
        data_dir: with ``PARTY.csv``, if this party has data.
        device: the SPU device that computes.

    Returns:
        What alice and bob learn; None elsewhere.
    """
    own = align(session, data_dir)
    sp = session.spu(device)
    x = [sp.private(lambda: own["x_train"], owner=owner) for owner in FEATURE_OWNERS]
    centres = sp.run(start)(*x)
    for _ in range(ROUNDS):
        centres = sp.run(improve)(*x, centres)
    *by_owner, member_of = sp.run(finish)(*x, centres)
    learnt = [
        sp.reveal(part, to=[owner]) for owner, part in zip(FEATURE_OWNERS, by_owner, strict=True)
    ]
    member_of = sp.reveal(member_of, to=FEATURE_OWNERS)
    if session.party not in FEATURE_OWNERS:
        return None
    return Groups(learnt[FEATURE_OWNERS.index(session.party)], member_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Groups of two hospitals' patients")
    parser.add_argument("--data", type=Path, default=DATA, help="directory of your PARTY.csv")
    options = parser.parse_args()
    with Session.join() as own_session:
        groups = main(own_session, options.data)
        if groups is not None:
            sizes = np.bincount(groups.member_of, minlength=GROUPS)
            print(f"groups of {', '.join(map(str, sizes))} patients")
            for number, centre in enumerate(groups.centres):
                print(f"group {number}: {' '.join(f'{value:+.2f}' for value in centre)}")
