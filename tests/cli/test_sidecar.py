"""``redislink sidecar``: what it refuses and prints, and what it gives to the program beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from redislink.cli import main
from redislink.cli import sidecar as module
from redislink.interop.sidecar import command


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text("session: s\nsecurity: none\nbroker: fakeredis://cli\nparties: [alice, bob]\n")
    return str(path)


def run(cluster: str, *words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["sidecar", "--cluster", cluster, "--party", "alice", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "localhost", "10.0.0.1:80", "127.0.0.1:x", "127.0.0.1:70000", ":0"]
)
def test_it_listens_on_loopback_only(
    cluster: str, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert run(cluster, "--listen", address, "--", "true") == 2
    assert "loopback only: give 127.0.0.1:PORT" in capsys.readouterr().err


def test_a_program_that_is_not_there(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cluster, "--", "/no/such/program") == 2
    assert "check the command after --" in capsys.readouterr().err


def test_the_program_has_what_it_needs_and_none_of_our_settings(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_URL", "fakeredis://secret")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    seen = tmp_path / "seen"
    program = (
        "import os, sys; open(sys.argv[1], 'w').write('\\n'.join(f'{k}={v}' for k, v in "
        "os.environ.items() if k.startswith('REDISLINK') or k == 'PYTHONPATH')); sys.exit(7)"
    )
    assert run(cluster, "--", sys.executable, "-c", program, str(seen)) == 7
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert found.pop("REDISLINK_SIDECAR").startswith("127.0.0.1:")
    assert len(found.pop("REDISLINK_SIDECAR_TOKEN")) >= 43
    assert found.pop("REDISLINK_INTEROP").startswith("sidecar,")
    path = found.pop("PYTHONPATH").split(os.pathsep)
    assert path[1:] == [str(command.SHIM), "/theirs"]
    assert (Path(path[0]) / "sitecustomize.py").is_file()
    assert found == {}


def test_a_program_that_a_signal_ends(cluster: str) -> None:
    kill = "import os; os.kill(os.getpid(), 9)"
    assert run(cluster, "--", sys.executable, "-S", "-c", kill) == 137


def test_without_a_program_it_prints_what_to_set(
    cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = tmp_path / "token"
    token.write_text("it's mine\n")
    token.chmod(0o600)

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_for_ever", interrupted)
    assert run(cluster, "--token-file", str(token)) == 0
    printed = capsys.readouterr()
    shell = printed.out + 'echo "$REDISLINK_SIDECAR|$REDISLINK_SIDECAR_TOKEN|$PYTHONPATH"'
    shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    address, given, path = shown.strip().split("|")
    assert given == "it's mine"
    assert str(command.SHIM) in path
    assert f"the sidecar listens on {address}" in printed.err
    assert "sidecar stopped" in printed.err
