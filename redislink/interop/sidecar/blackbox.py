"""The messages of yacl's blackbox transport, as bytes.

A request is a POST whose headers say from whom to whom; the answer is a protobuf of three fields
(``TransportOutbound``: payload, code, message). What is carried is yacl's own business.
"""

from __future__ import annotations

import enum
from typing import Final

PREFIX: Final = "/v1/interconn/chan/"
PUSH: Final = f"{PREFIX}push"
POP: Final = f"{PREFIX}pop"
TOKEN: Final = "x-ptp-token"  # noqa: S105 - the name of a header
LINK: Final = "x-ptp-session-id"
SOURCE: Final = "x-ptp-source-inst-id"
TARGET: Final = "x-ptp-target-inst-id"


class Code(enum.StrEnum):
    """What yacl makes of an answer."""

    OK = "E0000000000"
    """Of a pop without a payload: nothing has come yet."""
    QUEUE_FULL = "E0000000700"
    """Push it again, five seconds later, for as long as it takes."""
    BAD_REQUEST = "E0000000400"
    FORBIDDEN = "E0000000403"
    NETWORK = "E0000000607"


def answer(payload: bytes = b"", code: Code = Code.OK, message: str = "") -> list[bytes]:
    """An answer, in pieces, so that the payload is not copied.

    Args:
        payload: what was popped.
        code: the result.
        message: a line about it, which yacl logs.
    """
    rest = _field(2, code.encode()) + (_field(3, message.encode()) if message else b"")
    return [_head(1, len(payload)), payload, rest] if payload else [rest]


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, length: int) -> bytes:
    head = bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
