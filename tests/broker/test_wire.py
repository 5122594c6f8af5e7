"""The wire: how commands are packed, and that both of its kinds are one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from redislink.broker.socket_wire import SocketWire
from redislink.broker.wire import (
    CLEARING_REPLIES,
    LARGE,
    PUSH_REPLIES,
    LibraryWire,
    Wire,
    element_of,
    pack,
    pack_blpop,
    pack_blpops,
    pack_clearing_push,
    pack_push,
)

NAME = b"rl:{s:bob}:alice:0:t"


def test_a_command_is_resp() -> None:
    assert pack(("SET", b"a", 12)) == b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n12\r\n"
    assert pack_blpop((NAME, b"x"), 1) == pack((b"BLPOP", NAME, b"x", b"1.000"))
    assert pack_blpops((NAME, b"x"), 0.5) == b"".join(
        pack((b"BLPOP", name, b"0.500")) for name in (NAME, b"x")
    )


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("size", [0, 1, LARGE - 5, LARGE - 4, LARGE, 3 * LARGE])
def test_the_short_way_to_pack_a_push_gives_what_the_plain_one_does(size: int, clear: bool) -> None:
    body = b"b" * size
    plain = [(b"DEL", NAME)] if clear else []
    plain += [(b"RPUSH", NAME, b"head" + body), (b"PEXPIRE", NAME, b"5000")]
    pack_it, replies = (
        (pack_clearing_push, CLEARING_REPLIES) if clear else (pack_push, PUSH_REPLIES)
    )
    assert replies == len(plain)
    pieces = pack_it(NAME, (b"head", body), 5000)
    assert b"".join(pieces) == b"".join(map(pack, plain))
    assert len(pieces) == 1 or any(piece is body for piece in pieces), "a large body is not copied"


def test_a_push_is_one_write_with_its_expiry() -> None:
    small = pack_clearing_push(NAME, (b"head", b"body"), 5000)
    assert small == [
        b"*2\r\n$3\r\nDEL\r\n$%d\r\n%b\r\n" % (len(NAME), NAME)
        + b"*3\r\n$5\r\nRPUSH\r\n$%d\r\n%b\r\n$8\r\nheadbody\r\n" % (len(NAME), NAME)
        + b"*3\r\n$7\r\nPEXPIRE\r\n$%d\r\n%b\r\n$4\r\n5000\r\n" % (len(NAME), NAME)
    ]
    large = bytes(100_000)
    pieces = pack_push(NAME, (b"head", large), 5000)
    assert pieces[1] is large


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([NAME, b"e"], b"e"),
        (None, None),
        (5, 5),
        ([b"another", b"e"], [b"another", b"e"]),
        ([NAME, 5], [NAME, 5]),
        (b"e", [b"e"]),
    ],
)
def test_what_a_pop_gives(reply: Any, expected: Any) -> None:
    assert element_of(reply, NAME) == expected


@pytest.mark.parametrize("kind", [SocketWire, LibraryWire])
def test_both_kinds_are_called_alike(kind: type) -> None:
    names = {name for name in vars(Wire) if not name.startswith("_")}
    assert len(names) > 10
    assert {name for name in vars(kind) if not name.startswith("_")} == names
    for name in names:
        one, other = vars(Wire)[name], vars(kind)[name]
        assert isinstance(other, property) is isinstance(one, property)
        if not isinstance(one, property):
            assert inspect.signature(other) == inspect.signature(one)
