"""The intersection is the one that a plain comparison of both files gives."""

from __future__ import annotations

import csv
import os
import stat
from pathlib import Path
from typing import Any

import psi
import pytest

from redislink import Endpoint
from tests.examples.conftest import DATA, Place


def _rows(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        return {row[0]: row for row in csv.reader(file)}


def test_both_protocols_find_the_shared_patients(place: Place, tmp_path: Path) -> None:
    def main(endpoint: Endpoint) -> dict[str, int]:
        source = None if endpoint.party == "carol" else DATA / f"{endpoint.party}.csv"
        return psi.main(endpoint, source, tmp_path / "out")

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


def test_files_with_nobody_in_common(in_process: Place, tmp_path: Path) -> None:
    (tmp_path / "alice.csv").write_text("id,x\nP1,1\nP2,2\n")
    (tmp_path / "bob.csv").write_text("id,y\nP3,3\n")

    def main(endpoint: Endpoint) -> dict[str, int]:
        source = tmp_path / f"{endpoint.party}.csv"
        return psi.main(endpoint, source, tmp_path / "out", ["RR22"])

    assert in_process.play(main) == [{"RR22": 0}, {"RR22": 0}, {}]
    assert list(_rows(tmp_path / "out" / "alice_RR22.csv")) == ["id"]


def test_files_that_two_runs_read_at_once_stay_alone(
    in_process: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = psi.psi.psi_execute
    read: list[Path] = []

    def execute(config: Any, context: Any) -> Any:
        read.append(Path(config.input_params.path))
        return real(config, context)

    monkeypatch.setattr(psi.psi, "psi_execute", execute)
    source = tmp_path / "data" / "both.csv"
    source.parent.mkdir()
    source.write_text("id,x\nP2,1\nP1,2\n")

    def main(endpoint: Endpoint) -> dict[str, int]:
        return psi.main(endpoint, source, tmp_path / "out", ["KKRT"])

    assert in_process.play(main) == [{"KKRT": 2}, {"KKRT": 2}, {}]
    assert len({path.parent for path in (*read, source)}) == 3, "libpsi writes beside its input"
    assert list(source.parent.iterdir()) == [source]
    assert not any(path.exists() for path in read)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,x\nP1,1\nP2,2\nP1,3\n", "id 'P1' stands there 2 times"),
        ("x,id\n1,P1\n", "the first column must be 'id'"),
        ("", "the first column must be 'id'"),
    ],
)
def test_a_file_that_would_not_match_up_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        psi.check_keys(path, "id")


def test_a_member_without_a_file_is_told(in_process: Place, tmp_path: Path) -> None:
    def main(endpoint: Endpoint) -> None:
        psi.main(endpoint, None, tmp_path)

    with pytest.raises(ValueError, match="needs a file: give --input"):
        in_process.play(main)


def test_scratch_is_private_and_goes_away() -> None:
    before = os.environ["TMPDIR"]
    with psi.private_scratch():
        directory = Path(os.environ["TMPDIR"])
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()
    assert os.environ["TMPDIR"] == before
