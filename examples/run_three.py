"""Run an example as all parties at once on this machine: ``redislink simulate`` with this
directory's cluster file.

::

    python run_three.py logistic_regression.py
    python run_three.py psi.py --input data/{party}.csv --output out
    python run_three.py --for alice "--wealth 3" --for bob "--wealth 5" --for carol "--wealth 4" \\
        millionaire.py

``--for PARTY ARGS`` in two words is that of ``redislink simulate`` in one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from redislink.cli import main

CLUSTER: Final = Path(__file__).resolve().parent / "cluster.yaml"


def join_for(words: list[str]) -> list[str]:
    """The words with each ``--for PARTY ARGS`` as ``--for "PARTY ARGS"``."""
    joined: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        joined.append(option)
        if option == "--for" and len(rest) >= 2:
            joined.append(f"{rest.pop(0)} {rest.pop(0)}")
        elif rest and "=" not in option:
            joined.append(rest.pop(0))
    return joined + rest


if __name__ == "__main__":
    main(["simulate", "--cluster", str(CLUSTER), *join_for(sys.argv[1:])])
