"""A FIFO, device or directory in the place of a file that a command reads holds nobody up."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from redislink import ConfigError
from redislink.identity.keypair import read_secret
from tests.cli.conftest import Call, Write

NOBODY = "redis://127.0.0.1:1/0"


def fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path, 0o600)
    return path


def device(_: Path) -> Path:
    return Path("/dev/zero")


def directory(directory: Path) -> Path:
    path = directory / "directory"
    path.mkdir(mode=0o700)
    return path


Make = Callable[[Path], Path]
SPECIAL = pytest.mark.parametrize("make", [fifo, device, directory])
SAID = (
    "is a FIFO",
    "is a device",
    "is a directory",
    "not a regular file",
    "others on this machine",
)


@SPECIAL
@pytest.mark.parametrize(
    "words",
    [
        ("fingerprint", "--identity"),
        ("fingerprint", "--cluster"),
        ("sessions", "--broker", NOBODY, "--password-file"),
        ("broker", "--port", "0", "--password-file"),
        ("simulate", "--cluster"),
        ("trace", "merge", "--out", "out"),
    ],
)
def test_files_of_options(call: Call, tmp_path: Path, make: Make, words: tuple[str, ...]) -> None:
    extra = (__file__,) if words[0] == "simulate" else ()
    code, out, err = call(*words, make(tmp_path), *extra)
    assert (code, out) == (2, "")
    assert any(word in err for word in SAID), err
    assert err.count("\n") == 1


@SPECIAL
@pytest.mark.parametrize(
    "setting", ["BROKER_TLS_CA", "BROKER_TLS_CERT", "BROKER_TLS_KEY", "CLUSTER_FILE"]
)
def test_files_of_settings(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, setting: str
) -> None:
    monkeypatch.setenv(f"REDISLINK_{setting}", str(make(tmp_path)))
    monkeypatch.setenv("REDISLINK_BROKER_URL", "rediss://127.0.0.1:1/0")
    code, out, err = call("sessions")
    assert (code, out) == (2, "")
    assert any(word in err for word in SAID), err


@SPECIAL
def test_a_pre_shared_key(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match=r"pre-shared key file .*: (is a|others)"):
        read_secret(make(tmp_path), "pre-shared key file")


def test_what_is_written_is_its_owners(call: Call, write_cluster: Write, tmp_path: Path) -> None:
    """Every file that a command makes and that may hold a secret, whatever the umask is."""
    before = os.umask(0)
    try:
        assert call("keygen", "alice")[0] == 0
        assert call("keygen", "alice", "--psk", "bob")[0] == 0
        assert call("init", "carol", "dave", "--dir", "made")[0] == 0
        words = ("--cluster", write_cluster(), "--out", "users.acl", "--passwords", "passwords")
        assert call("acl", *words)[0] == 0
    finally:
        os.umask(before)
    private = ["alice.key", "bob.psk", "made/carol.key", "made/dave.key", "users.acl"]
    private += [f"passwords/{name}.password" for name in ("alice", "bob")]
    for name in private:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    for name in ("made", "passwords"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700, name
    shared = stat.S_IMODE((tmp_path / "made" / "cluster.yaml").stat().st_mode)
    assert shared == 0o644, "which all may read and nobody else may change"
