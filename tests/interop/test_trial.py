"""Trials: whose keys, and whose broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from redislink import ConfigError
from redislink.broker import Broker
from redislink.identity.keypair import parse_public_key
from redislink.interop import trial
from redislink.interop.trial import Trial, party_called, take_part
from redislink.protocol.list_names import check_name
from tests.conftest import in_thread
from tests.support.children import in_child


def test_every_process_derives_the_same_keys_and_each_party_has_its_own() -> None:
    with take_part() as variables:
        directory = Path(variables["REDISLINK_TRIAL_DIR"])
        here, there = Trial(directory), Trial(directory)
        keys = here.cluster(["alice", "bob"]).public_keys()
        assert keys == there.cluster(["alice", "bob"]).public_keys()
        assert keys["alice"] != keys["bob"]
        assert keys["bob"] == here.identity("bob").public_key
        assert (directory / "trial.key").stat().st_mode & 0o077 == 0
    with take_part() as variables:
        other = Trial(Path(variables["REDISLINK_TRIAL_DIR"])).cluster(["alice", "bob"])
        assert other.public_keys()["alice"] != keys["alice"]
        assert parse_public_key(other.parties[0].public_key or "")
    assert not directory.exists()


def test_who_names_the_directory_next_takes_part_and_is_waited_for(tmp_path: Path) -> None:
    place = tmp_path / "trial"
    first, guest = take_part(place), take_part(place)
    variables = first.__enter__()
    assert guest.__enter__() == variables
    Broker(variables["REDISLINK_BROKER_URL"]).open().close()
    ending, outcome = in_thread(lambda: first.__exit__(None, None, None))
    ending.join(0.1)
    assert ending.is_alive(), "somebody still takes part"
    Broker(variables["REDISLINK_BROKER_URL"]).open().close()
    guest.__exit__(None, None, None)
    ending.join(20)
    assert outcome == [False]
    assert not (place / "broker.url").exists()
    assert not (place / "trial.key").exists()


def test_a_child_takes_nothing_away_from_its_parent() -> None:
    """It unwinds the same blocks."""
    begun = take_part()
    variables = begun.__enter__()
    in_child(lambda: begun.__exit__(None, None, None))
    assert Path(variables["REDISLINK_TRIAL_DIR"], "trial.key").exists()
    Broker(variables["REDISLINK_BROKER_URL"]).open().close()
    begun.__exit__(None, None, None)


def test_what_one_that_was_killed_has_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "broker.url").write_text("redis://127.0.0.1:1")
    (tmp_path / "trial.key").write_text("old")
    with take_part(tmp_path) as variables:
        Broker(variables["REDISLINK_BROKER_URL"]).open().close()
        Trial(tmp_path)


def test_a_directory_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"file: .*: name a new one"),
        take_part(tmp_path / "file"),
    ):
        pass
    monkeypatch.setattr(trial, "_START_TIMEOUT", 0.0)
    monkeypatch.setattr(trial._Place, "host", lambda *_: None)
    with (
        pytest.raises(ConfigError, match="has not started its broker"),
        take_part(tmp_path / "new"),
    ):
        pass


@pytest.mark.parametrize(
    "name", ["node:0", "node:1", "Bob & co", "ä", "", "-rf", "x" * 100, "\udc80"]
)
def test_whatever_a_program_calls_a_party_it_has_a_name(name: str) -> None:
    called = party_called(name)
    assert check_name(called, "party") == called
    assert called == party_called(name)
    assert called != party_called(f"{name}.")


def test_a_name_that_is_one_stays() -> None:
    assert [party_called(name) for name in ("alice", "id_0", "r0")] == ["alice", "id_0", "r0"]
