"""``--data`` and ``--results`` of ``redislink run`` and ``redislink simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redislink import ConfigError, read_result
from redislink.cli.exchange import exchanged
from redislink.settings import RedisLinkSettings
from tests.cli.conftest import Call, Run, Write

SETTINGS = RedisLinkSettings(_env_file=None, data={"patients": "/p.csv", "loans": "/l.csv"})


def test_options_are_added_to_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables = exchanged(SETTINGS, ["patients=x/{party}=1.csv", "a=/a"], Path("out"))
    assert json.loads(variables["REDISLINK_DATA"]) == {
        "patients": f"{tmp_path}/x/{{party}}=1.csv", "loans": "/l.csv", "a": "/a",
    }  # fmt: skip
    assert variables["REDISLINK_RESULTS_DIR"] == f"{tmp_path}/out"
    assert exchanged(SETTINGS, None, None) == {}
    read = RedisLinkSettings(_env_file=None, data=variables["REDISLINK_DATA"])
    assert read.data["a"] == Path("/a")


@pytest.mark.parametrize("words", ["patients", "patients=", "=x", "../x=/x", ""])
def test_what_is_no_name_and_path(words: str) -> None:
    with pytest.raises(ConfigError):
        exchanged(SETTINGS, [words], None)


@pytest.mark.slow
def test_run_passes_them_on(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program("import os; print(os.environ['REDISLINK_DATA'])")
    cluster = write_cluster()
    run = ("run", "--cluster", cluster, "--party", "alice")
    result = redislink(*run, "--data", "patients=p.csv", program)
    assert json.loads(result.stdout) == {"patients": str(tmp_path / "p.csv")}, result.stderr
    result = redislink(*run, "--data", "patients", program)
    assert (result.returncode, "is not NAME=PATH" in result.stderr) == (2, True)


@pytest.mark.slow
def test_every_simulated_party_has_its_own(
    call: Call, write_program: Write, tmp_path: Path
) -> None:
    program = write_program(
        """
        from redislink import Session
        with Session.join() as session:
            session.result("text", session.data("patients").read_text())
        """
    )
    for party in ("alice", "bob"):
        (tmp_path / f"{party}.csv").write_text(f"of {party}")
    code, out, err = call(
        *("simulate", "--parties", "2", "--data", f"patients={tmp_path}/{{party}}.csv"),
        *("--results", tmp_path / "out", program),
    )
    assert (code, err) == (0, ""), out
    assert read_result(tmp_path / "out" / "bob" / "text.msgpack") == "of bob"
    assert read_result(tmp_path / "out" / "alice" / "text.msgpack") == "of alice"
