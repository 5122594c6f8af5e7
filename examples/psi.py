"""Which patients do two hospitals share? Neither learns who else is the other's patient.

Private set intersection (``spu.psi``) between the two members of a device, over the relay.

What is revealed: to both members, which of their own ids the other has too, and how many rows
the other's file has. To the other parties of the session and to the broker, no id.

In one terminal per party (carol has no file; she only has to be there)::

    redislink run --cluster cluster.yaml --party alice psi.py --input data/alice.csv --output out
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common import print_missing
from spu import psi

import redislink
from redislink.spu import create_link

PROTOCOLS = ("KKRT", "RR22")


def intersect(
    endpoint: redislink.Endpoint,
    device: str,
    protocol: str,
    source: Path,
    target: Path,
    key: str = "id",
) -> int:
    """Write the rows of this party's file whose key the other member has too.

    The members get their rows in the same order, sorted by key.

    Args:
        endpoint: this party's; it must be a member of ``device``.
        device: a device with two members.
        protocol: one of `PROTOCOLS`.
        source: CSV file with a header; ``key`` is its first column.
        target: CSV file to write, with all columns of ``source``.
        key: column with the ids, each of which stands there once.

    Returns:
        Number of rows in the intersection.
    """
    check_keys(source, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="redislink-psi-") as directory:
        # libpsi writes INPUT.temp.csv beside its input, where two runs would collide, and
        # INPUT.meta, which it leaves there.
        copy = shutil.copyfile(source, Path(directory) / "input.csv")
        config = psi.PsiExecuteConfig(
            protocol_conf=psi.PsiProtocolConfig(
                protocol=psi.parse_protocol(f"PROTOCOL_{protocol}"),
                receiver_rank=0,
                broadcast_result=True,
            ),
            input_params=psi.InputParams(path=str(copy), selected_keys=[key], keys_unique=True),
            output_params=psi.OutputParams(path=str(target)),
        )
        with create_link(device, endpoint) as link:
            report = psi.psi_execute(config, link.context)
    return int(report.intersection_count)


def check_keys(source: Path, key: str) -> None:
    """Refuse a file with which the rows of the two parties would not match up.

    Raises:
        ValueError: ``key`` is not the first column, or an id stands there twice.
    """
    with source.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, [""])[0] != key:
            raise ValueError(f"{source}: the first column must be {key!r}")
        id_, times = (Counter(row[0] for row in rows).most_common(1) or [("", 0)])[0]
    if times > 1:
        raise ValueError(f"{source}: {key} {id_!r} stands there {times} times: keep one row")


@contextmanager
def private_scratch() -> Iterator[None]:
    """Give libpsi a directory that only this user can read.

    It writes ids in the clear to files under ``TMPDIR``, readable for everybody on the machine,
    and removes them at exit. Changes the environment of the whole process, so it belongs around
    a program and not around a call.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="redislink-psi-") as directory:
        os.environ["TMPDIR"] = directory
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before


def main(
    endpoint: redislink.Endpoint,
    source: Path | None,
    directory: Path,
    protocols: Sequence[str] = PROTOCOLS,
    device: str = "PSI0",
) -> dict[str, int]:
    """Intersect by each protocol in turn.

    Args:
        endpoint: this party's.
        source: this party's CSV file; None at a party that is no member.
        directory: where ``PARTY_PROTOCOL.csv`` is written.
        protocols: some of `PROTOCOLS`.
        device: a device with two members.

    Returns:
        Size of the intersection by protocol; empty at a party that is no member.
    """
    if endpoint.party not in endpoint.cluster.device(device).members:
        return {}
    if source is None:
        raise ValueError(f"{endpoint.party} takes part and needs a file: give --input")
    return {
        protocol: intersect(
            endpoint,
            device,
            protocol,
            source,
            directory / f"{endpoint.party}_{protocol}.csv",
        )
        for protocol in protocols
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Private set intersection of two CSV files")
    parser.add_argument("--input", type=Path, help="your CSV file; its first column is id")
    parser.add_argument("--output", type=Path, default=Path(), help="directory for the results")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: one after the other")
    options = parser.parse_args()
    chosen = PROTOCOLS if options.protocol is None else (options.protocol,)
    with private_scratch(), redislink.connect(on_progress=print_missing) as own_endpoint:
        sizes = main(own_endpoint, options.input, options.output, chosen)
        for name, size in sizes.items():
            written = options.output / f"{own_endpoint.party}_{name}.csv"
            print(f"{name}: {size} ids in common, own rows in {written}")
        if not sizes:
            print("no member of the device: nothing to do here")
