"""Keys and files that do not fit, as two organisations see it: one line each, with a remedy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from redislink.broker import EmbeddedBroker
from redislink.identity.keypair import Identity, format_public_key, write_secret
from tests.cli.conftest import CLUSTER, NAMES, Run, Start, Write, check_one_line, ended, key_file

JOIN = """
    import redislink
    redislink.connect().close()
"""
Together = Callable[..., list["subprocess.CompletedProcess[str]"]]


@pytest.fixture
def together(
    start: Start, broker: EmbeddedBroker, write_program: Write, tmp_path: Path
) -> Together:
    """Run both parties at once, each with a cluster file and settings of its own."""
    program = write_program(JOIN)

    def run(
        alice: dict[str, Any], bob: dict[str, Any], **both: str
    ) -> list[subprocess.CompletedProcess[str]]:
        processes = []
        for name, own in zip(NAMES, (alice, bob), strict=True):
            path = tmp_path / f"cluster-of-{name}.yaml"
            path.write_text(yaml.safe_dump(own.pop("cluster", CLUSTER)))
            words = ("run", "--cluster", path, "--party", name, program)
            processes.append(start(*words, broker_url=broker.url, **both, **own))
        return [ended(process) for process in processes]

    return run


def in_session(name: str, **changes: Any) -> dict[str, Any]:
    return CLUSTER | {"session": name} | changes


@pytest.mark.slow
def test_none_against_sealed(together: Together) -> None:
    sealed, plain = in_session("none"), in_session("none", security="none")
    alice, bob = together({"cluster": sealed}, {"cluster": plain})
    check_one_line(
        *(alice, 4, "alice: party 'bob' runs session 'none' with security none"),
        *("this party with sealed", "give both the same cluster file"),
    )
    warning, _, error = bob.stderr.partition("\n")
    assert warning == (
        "bob: session none has security none: the broker can read and change everything"
    )
    assert bob.returncode == 4
    assert "bob: party 'alice' runs session 'none' with security sealed" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_differing_cluster_files(together: Together) -> None:
    other = json.loads(json.dumps(in_session("differing")))
    stranger = Identity.generate().public_key
    other["parties"][0]["public_key"] = format_public_key(stranger)
    alice, bob = together({"cluster": in_session("differing")}, {"cluster": other})
    for result, words in ((alice, "alice: party 'bob'"), (bob, "bob: party 'alice'")):
        check_one_line(result, 4, words, "different cluster file", "redislink fingerprint")


@pytest.mark.slow
@pytest.mark.parametrize("at_both", [True, False])
def test_pre_shared_keys_that_differ(together: Together, tmp_path: Path, at_both: bool) -> None:
    for name, peer in zip(NAMES, reversed(NAMES), strict=True):
        (tmp_path / name).mkdir()
        if at_both or name == "alice":
            write_secret(tmp_path / name / f"{peer}.psk", name.encode().ljust(32), "", "it")
    settings = ({"psk_dir": name, "cluster": in_session(f"psk-{at_both}")} for name in NAMES)
    alice, bob = together(*settings, connect_timeout="4")
    check_one_line(alice, 4, "alice: ", "bob is running but does not answer", "(this party has one")
    has = "one" if at_both else "none"
    check_one_line(bob, 4, "bob: ", "alice's hellos do not open", f"(this party has {has}")


@pytest.mark.slow
def test_another_partys_key(together: Together, tmp_path: Path) -> None:
    bobs = str(key_file(tmp_path, "bob"))
    cluster = in_session("swapped-files")
    alice, bob = together(
        {"identity_file": bobs, "cluster": cluster}, {"cluster": cluster}, connect_timeout="1"
    )
    check_one_line(
        *(alice, 2, "alice: this identity (SHA256:", "but that of 'bob'"),
        *("set REDISLINK_IDENTITY_FILE to alice's",),
    )
    check_one_line(bob, 4, "bob: waited 1 s", "for alice to join session 'swapped-files'")


@pytest.mark.slow
def test_two_keys_swapped_in_the_cluster_file(together: Together) -> None:
    keys = [party["public_key"] for party in CLUSTER["parties"]]
    parties = [
        {"name": name, "public_key": key} for name, key in zip(NAMES, reversed(keys), strict=True)
    ]
    cluster = in_session("swapped", parties=parties)
    alice, bob = together({"cluster": cluster}, {"cluster": cluster})
    check_one_line(alice, 2, "alice: this identity", "but that of 'bob'", "mend its public_key")
    check_one_line(bob, 2, "bob: this identity", "but that of 'alice'", "mend its public_key")


@pytest.mark.parametrize(
    ("cluster", "settings", "words"),
    [
        (CLUSTER, {"identity_file": ""}, ["REDISLINK_IDENTITY_FILE is not set", "keygen alice"]),
        (CLUSTER, {"identity_file": "none.key"}, ["none.key", "redislink keygen"]),
        (CLUSTER, {"identity_file": "open.key"}, ["open.key", "chmod 600"]),
        (CLUSTER, {"psk_dir": "none"}, ["REDISLINK_PSK_DIR", "there is no directory none"]),
        (CLUSTER, {"psk_dir": "."}, ["bob.psk", "chmod 600"]),
        (CLUSTER | {"parties": list(NAMES)}, {}, ["'alice' has no public_key", "keygen alice"]),
        (
            CLUSTER | {"parties": [CLUSTER["parties"][0], "bob"]},
            {},
            ["'bob' has no public_key", "redislink keygen bob there"],
        ),
        (
            CLUSTER | {"parties": [{"name": "alice", "public_key": "x25519:AAAA"}, "bob"]},
            {},
            ["parties.0.public_key", "copy the line that redislink keygen prints"],
        ),
        (CLUSTER | {"security": "some"}, {}, ["security", "'sealed' or 'none'"]),
    ],
)
def test_what_one_party_has_wrong(
    redislink: Run,
    write_cluster: Write,
    write_program: Write,
    tmp_path: Path,
    cluster: object,
    settings: dict[str, str],
    words: list[str],
) -> None:
    for name in ("open.key", "bob.psk"):
        write_secret(tmp_path / name, b"x" * 32, "", "it")
        (tmp_path / name).chmod(0o644)
    result = redislink(
        *("run", "--cluster", write_cluster(cluster), "--party", "alice", write_program(JOIN)),
        broker_url="redis://127.0.0.1:1/0",
        **settings,
    )
    check_one_line(result, 2, *words)
