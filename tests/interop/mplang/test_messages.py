"""Requests and replies: as they were, or one kind of error."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from redislink.errors import ValueDecodeError
from redislink.interop.mplang.messages import (
    Reply,
    Request,
    read_reply_untrusted,
    read_request_untrusted,
    written,
)
from redislink.values import encode_value

REQUESTS = [
    Request(1, b"graph", ("mem://a", None), job="j", context="#1"),
    Request(2, uri="mem://a"),
]
REPLIES = [
    Reply(1, outputs=("mem://a", None)),
    Reply(2),
    Reply(3, value=b"v"),
    Reply(4, error="not so", refused=True),
]


def test_they_are_read_as_they_were_written() -> None:
    assert [read_request_untrusted(written(each)) for each in REQUESTS] == REQUESTS
    assert [read_reply_untrusted(written(each)) for each in REPLIES] == REPLIES


@pytest.mark.parametrize(
    "changed",
    [
        {"number": "1"}, {"number": True}, {"graph": "text"}, {"inputs": ["mem://a"]},
        {"inputs": (1,)}, {"job": 1}, {"context": None}, {"uri": None}, {"more": 1},
    ],
)  # fmt: skip
def test_a_request_that_nobody_wrote_is_no_request(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueDecodeError):
        read_request_untrusted(encode_value(asdict(REQUESTS[0]) | changed))


@pytest.mark.parametrize(
    "changed",
    [{"number": 1.0}, {"outputs": [None]}, {"outputs": (b"",)}, {"value": "v"}, {"error": None},
     {"refused": 0}],
)  # fmt: skip
def test_a_reply_that_nobody_wrote_is_no_reply(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueDecodeError):
        read_reply_untrusted(encode_value(asdict(REPLIES[0]) | changed))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff" * 9, *map(encode_value, (None, 1, "x", [], {}, {"number": 1}))]
)
def test_other_bytes_raise_one_kind_of_error(data: bytes) -> None:
    for read in (read_request_untrusted, read_reply_untrusted):
        with pytest.raises(ValueDecodeError):
            read(data)


def test_what_a_worker_says_is_safe_to_show() -> None:
    reply = read_reply_untrusted(written(Reply(1, error="\x1b[2J" + "x" * 5000)))
    assert "\x1b" not in reply.error
    assert len(reply.error) <= 1000
