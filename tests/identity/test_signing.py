"""The key that signs audit records: derived from the identity, and what is accepted as one."""

from __future__ import annotations

import base64

import pytest

from redislink import ClusterSpec, ConfigError
from redislink.identity import Identity
from redislink.identity.signing import (
    SigningKey,
    format_signing_key,
    is_signed,
    parse_signing_key,
)

IDENTITY = Identity(bytes(range(32)))
KEY = SigningKey(IDENTITY)


def test_it_follows_from_the_identity_and_stays_the_same() -> None:
    """In every later version too: a record would otherwise no longer be its writer's."""
    assert format_signing_key(KEY.public_key) == (
        "ed25519:hDrMWDKYVgxjOpHJZ9OPoo2jq568ZbvQFU5GaSg0M/U="
    )
    assert SigningKey(Identity.generate()).public_key != KEY.public_key


def test_a_signature_is_of_one_message_and_one_key() -> None:
    signature = KEY.sign(b"message")
    assert is_signed(b"message", signature, KEY.public_key)
    assert not is_signed(b"Message", signature, KEY.public_key)
    assert not is_signed(b"message", signature[:-1], KEY.public_key)
    assert not is_signed(b"message", signature, SigningKey(Identity.generate()).public_key)
    assert not is_signed(b"message", signature, b"short")


def test_it_shows_its_public_half_only() -> None:
    assert repr(KEY) == f"<SigningKey {format_signing_key(KEY.public_key)}>"


def test_what_is_written_is_read() -> None:
    assert parse_signing_key(format_signing_key(KEY.public_key)) == KEY.public_key


# With these, one signature fits many messages.
LOW_ORDER = (
    bytes(32),
    bytes([1, *[0] * 31]),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes([0xEC, *[0xFF] * 30, 0x7F]),
    bytes([0xEE, *[0xFF] * 31]),
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x25519:AAAA",
        "ed25519:",
        "ed25519:AAAA",
        "ed25519:é",
        *(f"ed25519:{base64.b64encode(key).decode()}" for key in LOW_ORDER),
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="signing_key must be ed25519:"):
        parse_signing_key(text)
    parties = [{"name": "alice", "signing_key": text}, "bob"]
    with pytest.raises(ConfigError, match=r"parties\.0\.signing_key: signing_key must be"):
        ClusterSpec.parse({"session": "s", "security": "none", "parties": parties})


def test_it_belongs_to_what_all_parties_agree_on() -> None:
    content = {"session": "s", "security": "none", "parties": [{"name": "alice"}, {"name": "bob"}]}
    without = ClusterSpec.parse(content).digest()
    content["parties"][0]["signing_key"] = format_signing_key(KEY.public_key)  # type: ignore[index]
    assert ClusterSpec.parse(content).digest() != without
