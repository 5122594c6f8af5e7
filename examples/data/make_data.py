"""Make alice.csv and bob.csv: one public data set, split as if two hospitals held it.

Both files are committed; this script is how they came about. Needs scikit-learn, which
redislink itself does not: ``pip install scikit-learn && python make_data.py``.

Rules: one seed, so every run writes the same bytes; each hospital has its own columns, its own
subset of the patients and its own row order; the patient id is the only thing they share.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

SEED = 20240229
ALICE_PATIENTS = 500
BOB_PATIENTS = 480
SHARED_PATIENTS = 420


def main(directory: Path) -> None:
    """Write ``alice.csv`` (id, 15 features) and ``bob.csv`` (id, 15 features, diagnosis)."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        sys.exit("make_data.py needs scikit-learn: pip install scikit-learn")

    source = load_breast_cancer()
    columns = [str(name).replace(" ", "_") for name in source.feature_names]
    half = len(columns) // 2
    rows = [[repr(float(value)) for value in row] for row in source.data]
    # scikit-learn has 0 for malignant; here, 1 is what one looks for.
    malignant = [str(1 - int(target)) for target in source.target]

    chance = random.Random(SEED)
    ids = [f"P{number:05d}" for number in chance.sample(range(1, 100_000), len(rows))]
    patients = chance.sample(range(len(rows)), ALICE_PATIENTS + BOB_PATIENTS - SHARED_PATIENTS)
    alice = patients[:ALICE_PATIENTS]
    bob = patients[-BOB_PATIENTS:]
    chance.shuffle(alice)
    chance.shuffle(bob)

    write(
        directory / "alice.csv", ["id", *columns[:half]], [[ids[i], *rows[i][:half]] for i in alice]
    )
    write(
        directory / "bob.csv",
        ["id", *columns[half:], "diagnosis"],
        [[ids[i], *rows[i][half:], malignant[i]] for i in bob],
    )


def write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """One CSV file with Unix line ends."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
