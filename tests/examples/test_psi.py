"""The intersection is the one that a plain comparison of both files gives."""

from __future__ import annotations

import csv
from pathlib import Path

import psi
import pytest

from redislink import ConfigError, Session
from tests.examples.conftest import DATA, Place


def _rows(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        return {row[0]: row for row in csv.reader(file)}


def test_both_protocols_find_the_shared_patients(place: Place, tmp_path: Path) -> None:
    def main(session: Session) -> dict[str, int]:
        source = None if session.party == "carol" else DATA / f"{session.party}.csv"
        return psi.main(session, source, tmp_path / "out")

    sources = {party: _rows(DATA / f"{party}.csv") for party in ("alice", "bob")}
    shared = (set(sources["alice"]) & set(sources["bob"])) - {"id"}
    size = len(shared)
    assert 0 < size < min(len(rows) for rows in sources.values()) - 1
    assert place.play(main) == [{"KKRT": size, "RR22": size}] * 2 + [{}]
    for party, source in sources.items():
        for protocol in psi.PROTOCOLS:
            found = _rows(tmp_path / "out" / f"{party}_{protocol}.csv")
            assert list(found) == ["id", *sorted(shared)], "the same order at both"
            assert all(found[id_] == source[id_] for id_ in found), "own columns, unchanged"
    assert not (tmp_path / "out" / "carol_KKRT.csv").exists()


def test_files_with_nobody_in_common(simulated: Place, tmp_path: Path) -> None:
    (tmp_path / "alice.csv").write_text("id,x\nP1,1\nP2,2\n")
    (tmp_path / "bob.csv").write_text("id,y\nP3,3\n")

    def main(session: Session) -> dict[str, int]:
        source = tmp_path / f"{session.party}.csv"
        return psi.main(session, source, tmp_path / "out", ["RR22"])

    assert simulated.play(main) == [{"RR22": 0}, {"RR22": 0}, {}]
    assert list(_rows(tmp_path / "out" / "alice_RR22.csv")) == ["id"]


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "needs a file: give --input"), ("x.csv", "there is no file .*x.csv: give --input")],
)
def test_a_member_without_a_file_is_told(
    simulated: Place, tmp_path: Path, name: str | None, said: str
) -> None:
    def main(session: Session) -> None:
        psi.main(session, None if name is None else tmp_path / name, tmp_path)

    with pytest.raises(ConfigError, match=said):
        simulated.play(main)
