"""``session.data`` and ``session.result``: names, not paths, at whoever starts the run."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import (
    ConfigError,
    PayloadTypeError,
    RedisLinkSettings,
    Session,
    Simulator,
    ValueDecodeError,
    read_result,
)
from redislink.session.exchange import Exchange
from tests.conftest import connect_as, make_cluster, quick_settings


def test_a_simulated_party_has_its_own(tmp_path: Path) -> None:
    for party in ("alice", "bob"):
        (tmp_path / f"{party}.csv").write_text(f"of {party}")

    def program(session: Session) -> str:
        text = session.data("patients").read_text()
        session.result("weights", {"of": text, "w": np.arange(3.0)})
        return text

    simulator = Simulator(2, data={"patients": tmp_path / "{party}.csv"})
    assert simulator.run(program) == {"alice": "of alice", "bob": "of bob"}
    assert simulator.results["bob"]["weights"]["of"] == "of bob"
    np.testing.assert_array_equal(simulator.results["alice"]["weights"]["w"], np.arange(3.0))
    again = simulator(through="fakeredis")
    assert again.results == {}
    assert again.run(program)["bob"] == "of bob"
    assert again.results.keys() == {"alice", "bob"}
    assert simulator(data={}).run(lambda s: len(s._exchange.data)) == {"alice": 0, "bob": 0}


def test_results_of_a_simulation_are_files_too_where_the_settings_say_so(tmp_path: Path) -> None:
    settings = RedisLinkSettings(_env_file=None, results_dir=tmp_path / "{session}" / "{party}")
    Simulator(2, settings=settings).run(lambda session: session.result("n", session.rank))
    assert read_result(tmp_path / "simulator" / "alice" / "n.msgpack") == 0
    assert read_result(tmp_path / "simulator" / "bob" / "n.msgpack") == 1


def test_apart_they_come_from_the_settings(valkey: Any, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("1")
    settings = quick_settings(data={"patients": tmp_path / "p.csv"}, results_dir=tmp_path / "out")
    cluster = make_cluster(valkey.url, 2)

    def play(party: str) -> None:
        with Session.from_endpoint(connect_as(cluster, party, settings)) as session:
            assert session.data("patients") == tmp_path / "p.csv"
            if party == "alice":
                session.result("answer", 41)
                session.result("answer", 42)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(play, ("alice", "bob")))
    assert read_result(tmp_path / "out" / "answer.msgpack") == 42
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / "answer.msgpack").stat().st_mode & 0o777 == 0o600


def _exchange(**fields: Any) -> Exchange:
    return Exchange("trial", "alice", **fields)


@pytest.mark.parametrize("name", ["loans", "../patients", "/etc/passwd", "", "\x1b[2J", None])
def test_an_unknown_name_is_told_with_those_that_there_are(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"alice: no data set .*known are a, patients") as found:
        _exchange(data={"patients": Path("/p"), "a": Path("/a")}).find(name)
    assert str(found.value).isprintable()
    with pytest.raises(ConfigError, match="known are none; give it with redislink run --data"):
        _exchange().find(name)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data set patients: there is no file .*none\.csv"):
        _exchange(data={"patients": tmp_path / "none.csv"}).find("patients")
    assert _exchange(data={"all": tmp_path}).find("all") == tmp_path


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\nb", 3])
def test_a_result_has_a_name(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="result name"):
        _exchange(results=tmp_path).give_back(name, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_changes_nothing(tmp_path: Path) -> None:
    exchange = _exchange(results=tmp_path)
    exchange.give_back("x", 1)
    with pytest.raises(PayloadTypeError):
        exchange.give_back("x", object())
    assert read_result(tmp_path / "x.msgpack") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.msgpack"]


def test_without_a_directory_a_result_is_missed_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        _exchange().give_back("weights", 7)
    assert "result weights is not kept: give a directory with" in caplog.text


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"alice: result .*cannot be written \(.*--results"):
        _exchange(results=tmp_path / "file").give_back("x", 1)


def test_what_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xc1")
    with pytest.raises(ValueDecodeError):
        read_result(tmp_path / "x")
    with pytest.raises(ConfigError, match="check the path"):
        read_result(tmp_path / "none")
