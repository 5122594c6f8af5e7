"""Answers of the blackbox transport are the protobuf that yacl parses."""

from __future__ import annotations

import pytest

from redislink.interop.sidecar.blackbox import Code, answer


def _parsed(data: bytes) -> dict[int, bytes]:
    """The fields of a message that has only fields with a length, as protobuf's wire format has."""
    fields, at = {}, 0
    while at < len(data):
        number, kind = data[at] >> 3, data[at] & 7
        assert kind == 2
        length, shift, at = 0, 0, at + 1
        while True:
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 0x80:
                break
        fields[number] = data[at : at + length]
        assert len(fields[number]) == length
        at += length
    return fields


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 3 << 20])
def test_an_answer_carries_its_payload(size: int) -> None:
    payload = b"\x80" * size
    pieces = answer(payload)
    assert any(piece is payload for piece in pieces), "not copied"
    assert _parsed(b"".join(pieces)) == {1: payload, 2: Code.OK.encode()}


def test_an_answer_without_payload_says_what_became_of_the_request() -> None:
    assert _parsed(b"".join(answer())) == {2: b"E0000000000"}
    full = answer(code=Code.QUEUE_FULL, message="später")
    assert _parsed(b"".join(full)) == {2: b"E0000000700", 3: "später".encode()}
