"""Letters: who can open which, and that every other byte string is refused in the same way."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redislink.errors import FrameError, SealError, UsageError
from redislink.identity import Identity
from redislink.jobs.letters import MOST_BODY, Sealer
from redislink.protocol import noise_k
from redislink.protocol.list_names import ANSWERS_TAG, HELLO_TAG, JOBS_TAG, OFFERS_TAG

KEYS = {name: Identity.generate() for name in ("alice", "bob", "dora")}
PUBLIC = {name: key.public_key for name, key in KEYS.items()}
BODY = {"kind": "note", "job": "j0123456789ab", "numbers": [1, 2, 3]}


def sealer(name: str, **changes: Any) -> Sealer:
    usual: dict[str, Any] = {
        "session": "study",
        "digest": bytes(32),
        "private_key": KEYS[name].private_key,
        "public_keys": PUBLIC,
        "random_bytes": random.Random(1).randbytes,
    }
    return Sealer(name, **(usual | changes))


def test_its_receiver_opens_it() -> None:
    element = sealer("dora").seal("bob", OFFERS_TAG, BODY)
    assert sealer("bob").open_untrusted("dora", OFFERS_TAG, element) == BODY
    assert b"note" not in element
    assert b"dora" not in element


def test_a_party_may_write_to_itself() -> None:
    element = sealer("bob").seal("bob", OFFERS_TAG, BODY)
    assert sealer("bob").open_untrusted("bob", OFFERS_TAG, element) == BODY


@pytest.mark.parametrize(
    ("who", "src", "tag", "changes"),
    [
        ("alice", "dora", OFFERS_TAG, {}),
        ("bob", "alice", OFFERS_TAG, {}),
        ("bob", "bob", OFFERS_TAG, {}),
        ("bob", "mallory", OFFERS_TAG, {}),
        ("bob", "dora", JOBS_TAG, {}),
        ("bob", "dora", ANSWERS_TAG, {}),
        ("bob", "dora", OFFERS_TAG, {"session": "other"}),
        ("bob", "dora", OFFERS_TAG, {"digest": bytes(31) + b"1"}),
        ("bob", "dora", OFFERS_TAG, {"psks": {"dora": bytes(32)}}),
    ],
)
def test_nobody_else_does_and_nowhere_else(
    who: str, src: str, tag: str, changes: dict[str, Any]
) -> None:
    element = sealer("dora").seal("bob", OFFERS_TAG, BODY)
    with pytest.raises(SealError):
        sealer(who, **changes).open_untrusted(src, tag, element)


def test_with_a_pre_shared_key_at_both() -> None:
    element = sealer("dora", psks={"bob": b"k" * 32}).seal("bob", OFFERS_TAG, BODY)
    bob = sealer("bob", psks={"dora": b"k" * 32})
    assert bob.open_untrusted("dora", OFFERS_TAG, element) == BODY


def test_what_is_changed_or_cut_anywhere_does_not_open() -> None:
    element = sealer("dora").seal("bob", OFFERS_TAG, {"a": 1})
    bob = sealer("bob")
    for place in range(len(element)):
        changed = element[:place] + bytes([element[place] ^ 4]) + element[place + 1 :]
        for bad in (changed, element[:place]):
            with pytest.raises(FrameError):
                bob.open_untrusted("dora", OFFERS_TAG, bad)
    with pytest.raises(FrameError):
        bob.open_untrusted("dora", OFFERS_TAG, element + b"\0")


def test_another_format_is_named() -> None:
    element = sealer("dora").seal("bob", OFFERS_TAG, BODY)
    with pytest.raises(FrameError, match="in format 2, here it is 1: run the same version"):
        sealer("bob").open_untrusted("dora", OFFERS_TAG, b"\2" + element[1:])


def test_two_letters_never_share_a_key() -> None:
    dora = sealer("dora")
    first, second = (dora.seal("bob", OFFERS_TAG, BODY) for _ in range(2))
    assert first[:40] != second[:40]
    assert first[-30:] != second[-30:]


def test_letters_have_a_limit() -> None:
    dora, bob = sealer("dora"), sealer("bob")
    most = bytes(MOST_BODY - 5)
    element = dora.seal("bob", OFFERS_TAG, most)
    assert bob.open_untrusted("dora", OFFERS_TAG, element) == most
    with pytest.raises(UsageError, match="4194304 is the most"):
        dora.seal("bob", OFFERS_TAG, most + b"1")
    with pytest.raises(SealError, match="impossible size"):
        bob.open_untrusted("dora", OFFERS_TAG, element + bytes(2048))
    with pytest.raises(UsageError, match="!hello"):
        dora.seal("bob", HELLO_TAG, BODY)


@pytest.mark.parametrize(("key", "body"), [(b"k" * 16, b"\x01"), (b"k" * 32, b"\xc1")])
def test_what_a_sender_itself_made_wrong(key: bytes, body: bytes) -> None:
    """It opens, so it is not the broker's: it is still nothing but a `FrameError`."""
    dora = sealer("dora")
    config = dora._config("bob", dora._prologue("dora", "bob", OFFERS_TAG))
    first = noise_k.seal(config, bytes(range(32)), key)
    head = struct.pack(">BH", 1, len(first)) + first
    element = head + AESGCM(key).encrypt(bytes(12), body, head)
    with pytest.raises(FrameError):
        sealer("bob").open_untrusted("dora", OFFERS_TAG, element)
