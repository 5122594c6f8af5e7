"""Which patients do two hospitals share? Neither learns who else is the other's patient.

Private set intersection (``spu.psi``) between two parties of the session.

What is revealed: to both, which of their own ids the other has too, and how many rows the other's
file has. To the other parties of the session and to the broker, no id.

In one terminal per party (carol has no file; she only has to be there), or all at once::

    redislink run --cluster cluster.yaml --party alice psi.py --input data/alice.csv --output out
    redislink simulate psi.py --input data/{party}.csv --output out
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from redislink import ConfigError, Session

PROTOCOLS = ("KKRT", "RR22")
PARTIES = ("alice", "bob")


def main(
    session: Session,
    source: Path | None,
    directory: Path,
    protocols: Sequence[str] = PROTOCOLS,
    key: str = "id",
) -> dict[str, int]:
    """Intersect by each protocol in turn.

    Args:
        session: of all parties.
        source: this party's CSV file, with a header; None at a party that takes no part.
        directory: where ``PARTY_PROTOCOL.csv`` is written, with all columns of ``source``; both
            get their rows in the same order, that of the ids.
        protocols: some of `PROTOCOLS`.
        key: column with the ids, each of which stands there once.

    Returns:
        Size of the intersection by protocol; empty at a party that takes no part.
    """
    if session.party in PARTIES and (source is None or not source.is_file()):
        found = "" if source is None else f", and there is no file {source}"
        raise ConfigError(f"{session.party} takes part and needs a file{found}: give --input FILE")
    sizes = {}
    for protocol in protocols:
        shared = session.psi(source, key, parties=PARTIES, protocol=protocol)
        if shared is not None:
            write_csv(directory / f"{session.party}_{protocol}.csv", shared)
            sizes[protocol] = len(shared[key])
    return sizes


def write_csv(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns, by name, as a CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Private set intersection of two CSV files")
    parser.add_argument("--input", type=Path, help="your CSV file, with a column id")
    parser.add_argument("--output", type=Path, default=Path(), help="directory for the results")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: one after the other")
    options = parser.parse_args()
    chosen = PROTOCOLS if options.protocol is None else (options.protocol,)
    with Session.join() as own_session:
        sizes = main(own_session, options.input, options.output, chosen)
        for name, size in sizes.items():
            written = options.output / f"{own_session.party}_{name}.csv"
            print(f"{name}: {size} ids in common, own rows in {written}")
        if not sizes:
            print("takes no part: nothing to do here")
