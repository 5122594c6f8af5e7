"""The one-way Noise K: our two sides against published vectors; every broken message."""

import json
from pathlib import Path

import pytest

from redislink.errors import SealError, UsageError
from redislink.identity import Identity
from redislink.protocol import noise_k
from redislink.protocol.noise_state import NoiseConfig

VECTORS = json.loads(Path(__file__).with_name("vectors").joinpath("noise_k.json").read_text())
CASES = [
    pytest.param(vector, id=f"{vector['source']}-{vector['protocol_name']}")
    for vector in VECTORS["vectors"]
]
ALICE, BOB, EVE = (Identity.generate() for _ in range(3))


def config(vector: dict, role: str) -> NoiseConfig:
    psks = vector.get(f"{role}_psks", [None])
    return NoiseConfig(
        bytes.fromhex(vector[f"{role}_static"]),
        bytes.fromhex(vector[f"{role}_remote_static"]),
        bytes.fromhex(vector[f"{role}_prologue"]),
        None if psks[0] is None else bytes.fromhex(psks[0]),
    )


def test_the_vectors_cover_both_patterns() -> None:
    names = [vector["protocol_name"] for vector in VECTORS["vectors"]]
    assert names.count("Noise_K_25519_AESGCM_SHA256") == 2
    assert "Noise_Kpsk0_25519_AESGCM_SHA256" in names


@pytest.mark.parametrize("vector", CASES)
def test_our_two_sides_give_the_vectors(vector: dict) -> None:
    (message,) = vector["messages"]
    payload, expected = (bytes.fromhex(message[name]) for name in ("payload", "ciphertext"))
    ephemeral = bytes.fromhex(vector["init_ephemeral"])
    assert noise_k.seal(config(vector, "init"), ephemeral, payload) == expected
    assert noise_k.open_untrusted(config(vector, "resp"), expected) == payload


@pytest.mark.parametrize("psk", [None, bytes(32)])
def test_no_changed_message_opens(psk: bytes | None) -> None:
    ours = NoiseConfig(ALICE.private_key, BOB.public_key, b"here", psk)
    theirs = NoiseConfig(BOB.private_key, ALICE.public_key, b"here", psk)
    sealed = noise_k.seal(ours, bytes(range(32)), b"payload")
    assert noise_k.open_untrusted(theirs, sealed) == b"payload"
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        for bad in (changed, sealed[:place]):
            with pytest.raises(SealError):
                noise_k.open_untrusted(theirs, bad)
    for bad in (sealed + b"\0", b"\0" * 70_000, bytes(len(sealed))):
        with pytest.raises(SealError):
            noise_k.open_untrusted(theirs, bad)


@pytest.mark.parametrize(
    "other",
    [
        NoiseConfig(EVE.private_key, ALICE.public_key, b"here"),
        NoiseConfig(BOB.private_key, EVE.public_key, b"here"),
        NoiseConfig(BOB.private_key, ALICE.public_key, b"elsewhere"),
        NoiseConfig(BOB.private_key, ALICE.public_key, b"here", bytes(32)),
    ],
    ids=["another receiver", "another sender", "another prologue", "a pre-shared key"],
)
def test_nobody_else_opens_it(other: NoiseConfig) -> None:
    ours = NoiseConfig(ALICE.private_key, BOB.public_key, b"here")
    sealed = noise_k.seal(ours, bytes(range(32)), b"payload")
    with pytest.raises(SealError):
        noise_k.open_untrusted(other, sealed)


def test_a_payload_has_a_limit() -> None:
    ours = NoiseConfig(ALICE.private_key, BOB.public_key, b"")
    theirs = NoiseConfig(BOB.private_key, ALICE.public_key, b"")
    most = bytes(noise_k.MOST_PAYLOAD)
    assert noise_k.open_untrusted(theirs, noise_k.seal(ours, bytes(range(32)), most)) == most
    with pytest.raises(UsageError, match="at most 65487 bytes"):
        noise_k.seal(ours, bytes(range(32)), most + b"1")
