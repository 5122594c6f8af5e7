"""Noise KK: the library and our two sides against published vectors; every broken message."""

import json
import os
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from noise.connection import Keypair, NoiseConnection

from redislink.errors import SealError
from redislink.protocol.noise_kk import KkInitiator, KkResponder
from redislink.protocol.noise_state import NoiseConfig

VECTORS = json.loads(Path(__file__).with_name("vectors").joinpath("noise_kk.json").read_text())
CASES = [
    pytest.param(vector, id=f"{vector['source']}-{vector['protocol_name']}")
    for vector in VECTORS["vectors"]
]


def unhex(vector, name):
    return bytes.fromhex(vector[name])


def library_side(vector, role):
    """The library's own object for one side, with the vector's ephemeral key."""
    noise = NoiseConnection.from_name(vector["protocol_name"].encode())
    (noise.set_as_initiator if role == "init" else noise.set_as_responder)()
    if f"{role}_psks" in vector:
        noise.set_psks(psks=[bytes.fromhex(psk) for psk in vector[f"{role}_psks"]])
    noise.set_prologue(unhex(vector, f"{role}_prologue"))
    noise.set_keypair_from_private_bytes(Keypair.STATIC, unhex(vector, f"{role}_static"))
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, unhex(vector, f"{role}_ephemeral"))
    noise.set_keypair_from_public_bytes(
        Keypair.REMOTE_STATIC, unhex(vector, f"{role}_remote_static")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the ephemeral key is set
        noise.start_handshake()
    return noise


def our_config(vector, role):
    psks = vector.get(f"{role}_psks", [None])
    return NoiseConfig(
        unhex(vector, f"{role}_static"),
        unhex(vector, f"{role}_remote_static"),
        unhex(vector, f"{role}_prologue"),
        None if psks[0] is None else bytes.fromhex(psks[0]),
    )


def test_the_vectors_cover_both_patterns():
    names = [vector["protocol_name"] for vector in VECTORS["vectors"]]
    assert names.count("Noise_KK_25519_AESGCM_SHA256") == 2
    assert "Noise_KKpsk0_25519_AESGCM_SHA256" in names


@pytest.mark.parametrize("vector", CASES)
def test_the_library_gives_the_vectors(vector):
    initiator, responder = library_side(vector, "init"), library_side(vector, "resp")
    for turn, message in enumerate(vector["messages"]):
        writer, reader = (initiator, responder) if turn % 2 == 0 else (responder, initiator)
        payload, expected = unhex(message, "payload"), unhex(message, "ciphertext")
        if turn < 2:
            assert writer.write_message(payload) == expected
            assert reader.read_message(expected) == payload
        else:
            assert writer.encrypt(payload) == expected
            assert reader.decrypt(expected) == payload
    if "handshake_hash" in vector:
        assert initiator.get_handshake_hash() == unhex(vector, "handshake_hash")


@pytest.mark.parametrize("vector", CASES)
def test_our_two_sides_give_the_vectors(vector):
    first, second = vector["messages"][:2]
    initiator = KkInitiator(
        our_config(vector, "init"), unhex(vector, "init_ephemeral"), unhex(first, "payload")
    )
    assert initiator.first == unhex(first, "ciphertext")
    responder = KkResponder(
        our_config(vector, "resp"), unhex(vector, "resp_ephemeral"), initiator.first
    )
    assert responder.payload == unhex(first, "payload")
    assert responder.name == initiator.name
    answer, at_responder = responder.answer(unhex(second, "payload"))
    assert answer == unhex(second, "ciphertext")
    payload, at_initiator = initiator.finish_untrusted(answer)
    assert payload == unhex(second, "payload")
    assert at_initiator.handshake_hash == at_responder.handshake_hash
    if "handshake_hash" in vector:
        assert at_initiator.handshake_hash == unhex(vector, "handshake_hash")
    check_keys_against_the_library(vector, at_initiator, at_responder)


def check_keys_against_the_library(vector, at_initiator, at_responder):
    """The library's transport keys are the vectors' (see above); ours derive from them."""
    initiator, responder = library_side(vector, "init"), library_side(vector, "resp")
    first, second = vector["messages"][:2]
    responder.read_message(bytes(initiator.write_message(unhex(first, "payload"))))
    initiator.read_message(bytes(responder.write_message(unhex(second, "payload"))))
    there = initiator.noise_protocol.cipher_state_encrypt.k
    back = initiator.noise_protocol.cipher_state_decrypt.k

    def derived(key, purpose):
        return HKDF(SHA256(), 32, salt=None, info=b"redislink 1 " + purpose).derive(bytes(key))

    ours, theirs = at_initiator.keys, at_responder.keys
    assert ours.data_out == theirs.data_in == derived(there, b"data")
    assert ours.data_in == theirs.data_out == derived(back, b"data")
    assert ours.control_out == theirs.control_in == derived(there, b"control")
    assert ours.control_in == theirs.control_out == derived(back, b"control")
    assert at_initiator.confirm_key == at_responder.confirm_key == derived(there, b"confirm")
    every = {ours.data_out, ours.data_in, ours.control_out, ours.control_in}
    assert len(every | {at_initiator.confirm_key, bytes(there), bytes(back)}) == 7


def public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


ALICE, BOB, MALLORY = (bytes([n]) * 32 for n in (1, 2, 3))
FIRST_EPHEMERAL, SECOND_EPHEMERAL = bytes([4]) * 32, bytes([5]) * 32


def pair(psk=None, **bobs):
    """The configurations of alice, who initiates, and bob, whose may differ."""
    alice = {"private_key": ALICE, "peer_public_key": public(BOB), "prologue": b"p", "psk": psk}
    bob = {"private_key": BOB, "peer_public_key": public(ALICE), "prologue": b"p", "psk": psk}
    return NoiseConfig(**alice), NoiseConfig(**(bob | bobs))


@pytest.fixture(params=[None, b"k" * 32], ids=["KK", "KKpsk0"])
def psk(request):
    return request.param


def begin(config):
    return KkInitiator(config, FIRST_EPHEMERAL, b"hello")


def flips(message):
    for place in range(len(message)):
        for bit in range(8):
            broken = bytearray(message)
            broken[place] ^= 1 << bit
            yield bytes(broken)


def test_every_flipped_bit_of_the_first_message_is_refused(psk):
    alice, bob = pair(psk)
    for broken in flips(begin(alice).first):
        with pytest.raises(SealError):
            KkResponder(bob, SECOND_EPHEMERAL, broken)


def test_every_flipped_bit_of_the_second_message_is_refused_and_the_true_one_still_opens(psk):
    alice, bob = pair(psk)
    initiator = begin(alice)
    second, _ = KkResponder(bob, SECOND_EPHEMERAL, initiator.first).answer(b"")
    for broken in flips(second):
        with pytest.raises(SealError):
            initiator.finish_untrusted(broken)
    assert initiator.finish_untrusted(second)[0] == b""


def test_every_length_but_the_right_one_is_refused(psk):
    alice, bob = pair(psk)
    initiator = begin(alice)
    second, _ = KkResponder(bob, SECOND_EPHEMERAL, initiator.first).answer(b"ok")
    for message, read in (
        (initiator.first, lambda m: KkResponder(bob, SECOND_EPHEMERAL, m)),
        (second, initiator.finish_untrusted),
    ):
        for length in range(len(message)):
            with pytest.raises(SealError):
                read(message[:length])
        for longer in (b"\0", b"x" * 100, bytes(70_000)):
            with pytest.raises(SealError):
                read(message + longer)


def test_any_bytes_are_refused(psk):
    alice, bob = pair(psk)
    initiator = begin(alice)
    for length in [*range(0, 120, 7), 65_535, 65_536]:
        junk = os.urandom(length)
        with pytest.raises(SealError):
            KkResponder(bob, SECOND_EPHEMERAL, junk)
        with pytest.raises(SealError):
            initiator.finish_untrusted(junk)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
def test_a_public_key_of_low_order_or_not_reduced_is_refused(psk, point):
    alice, bob = pair(psk)
    initiator = begin(alice)
    with pytest.raises(SealError):
        KkResponder(bob, SECOND_EPHEMERAL, point + initiator.first[32:])
    second, _ = KkResponder(bob, SECOND_EPHEMERAL, initiator.first).answer(b"")
    with pytest.raises(SealError):
        initiator.finish_untrusted(point + second[32:])


@pytest.mark.parametrize(
    "bobs",
    [
        {"private_key": MALLORY},
        {"peer_public_key": public(MALLORY)},
        {"prologue": b"q"},
        {"prologue": b""},
    ],
    ids=["responder's key", "initiator's key", "prologue", "no prologue"],
)
def test_what_differs_refuses(bobs, psk):
    alice, bob = pair(psk, **bobs)
    with pytest.raises(SealError):
        KkResponder(bob, SECOND_EPHEMERAL, begin(alice).first)


@pytest.mark.parametrize("psks", [(b"k" * 32, b"K" * 32), (None, b"k" * 32), (b"k" * 32, None)])
def test_differing_pre_shared_keys_refuse(psks):
    alice, _ = pair(psks[0])
    _, bob = pair(psks[1])
    with pytest.raises(SealError):
        KkResponder(bob, SECOND_EPHEMERAL, begin(alice).first)


def test_nobody_else_can_answer_the_initiator():
    alice, _ = pair()
    initiator = begin(alice)
    with pytest.raises(SealError):
        KkResponder(NoiseConfig(MALLORY, public(ALICE), b"p"), SECOND_EPHEMERAL, initiator.first)
    # Not even with a first message of mallory's own, in bob's place.
    mallory = NoiseConfig(MALLORY, public(ALICE), b"p")
    other = KkInitiator(NoiseConfig(ALICE, public(MALLORY), b"p"), FIRST_EPHEMERAL, b"hello")
    second, _ = KkResponder(mallory, SECOND_EPHEMERAL, other.first).answer(b"")
    with pytest.raises(SealError):
        initiator.finish_untrusted(second)


def test_the_same_first_message_gives_other_keys_each_time_it_is_answered():
    alice, bob = pair()
    first = begin(alice).first
    keys = [KkResponder(bob, os.urandom(32), first).answer(b"")[1] for _ in range(3)]
    assert len({k.keys.data_out for k in keys} | {k.confirm_key for k in keys}) == 6
    assert len({k.handshake_hash for k in keys}) == 3


def test_nothing_that_holds_a_key_shows_it():
    alice, bob = pair(b"k" * 32)
    initiator = begin(alice)
    responder = KkResponder(bob, SECOND_EPHEMERAL, initiator.first)
    _, secrets = responder.answer(b"")
    hidden = [ALICE, BOB, b"k" * 32, FIRST_EPHEMERAL, secrets.confirm_key, secrets.keys.data_in]
    for holder in (alice, bob, initiator, responder, secrets, secrets.keys):
        text = repr(holder) + str(holder)
        for secret in hidden:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text
