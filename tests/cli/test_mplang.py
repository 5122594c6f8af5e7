"""``redislink mplang``: what is refused before MPLang is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", "cluster.yaml")
    monkeypatch.setenv("REDISLINK_PARTY", "alice")
    Path("cluster.yaml").write_text("session: t\nsecurity: none\nparties: [alice, bob, carol]\n")
    Path("policy.yaml").touch(0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a worker runs only what a policy allows: give --policy FILE, or --allow-everything"),
        (["--policy", "policy.yaml", "--allow-everything"], "not both"),
        (["--policy", "policy.yaml"], "a worker's policy is a mapping with rules and data"),
        (["--policy", "none.yaml"], "policy file none.yaml"),
        (["--allow-everything", "--driver", "dora"], "driver 'dora' is not in session 't'"),
        (["--allow-everything", "--workers", "bob"], "party 'alice' is none of the workers, bob"),
        (["--allow-everything", "--workers", "alice, dora"], "party 'dora' is not in session"),
        (["--allow-everything"], "pip install 'redislink[mplang]'"),
    ],
)
def test_a_worker_says_what_is_missing(
    call: Call, files: Path, words: list[str], said: str
) -> None:
    code, out, err = call("mplang", "worker", "--driver", "carol", *words)
    assert (code, out) == (2, "")
    assert said in err
    if words == ["--allow-everything"]:
        assert "carol may run anything here: for trials only" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.py"], "program none.py: there is no such file"),
        (["-m", "no_such_module"], "program no_such_module: there is no such module"),
        (["--trial", "--party", "carol", "policy.yaml"], "a trial makes its own keys"),
        (["--party", "dora", "policy.yaml"], "party 'dora' is not in session 't'"),
        (["--alias", "node_0", "policy.yaml"], "--alias node_0: is not NAME=PARTY"),
    ],
)
def test_a_driver_says_what_is_missing(
    call: Call, files: Path, words: list[str], said: str
) -> None:
    code, out, err = call("mplang", "run", *words)
    assert (code, out) == (2, "")
    assert said in err
