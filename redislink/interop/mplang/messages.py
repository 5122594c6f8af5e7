"""What a driver and a worker say to each other, as bytes.

Rules: a request is answered once, by its number. Graphs and values travel in MPLang's own binary
form inside; nothing here reads them. `read_request_untrusted` and `read_reply_untrusted` raise
`ValueDecodeError` and nothing else, whatever the bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from redislink.errors import ValueDecodeError
from redislink.text import one_line
from redislink.values import decode_value_untrusted, encode_value

REQUESTS: Final = "mplang:requests"
REPLIES: Final = "mplang:replies"
MOST_TEXT: Final = 1000
"""Characters of an error that a driver is told."""


@dataclass(frozen=True, slots=True)
class Request:
    """Run a graph, or give a value.

    Attributes:
        number: what the reply names, different for each request to a worker.
        graph: MPLang's binary form; None: give the value of ``uri``.
        inputs: URI of each input at this worker; None where it has none.
        job: MPLang's name of the job, if it has one.
        context: the same for one graph at all workers, and for no other: it keeps the messages of
            graphs apart.
        uri: of a value, if ``graph`` is None.
    """

    number: int
    graph: bytes | None = None
    inputs: tuple[str | None, ...] = ()
    job: str | None = None
    context: str = ""
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    Attributes:
        number: of the request.
        outputs: URI of each output; None where this worker has none; None for all: there are none.
        value: MPLang's binary form of the value that was asked for.
        error: why there is neither; "" if there is.
        refused: whether the worker's policy is the reason.
    """

    number: int
    outputs: tuple[str | None, ...] | None = None
    value: bytes | None = None
    error: str = ""
    refused: bool = False


_Said = TypeVar("_Said", Request, Reply)


def written(message: Request | Reply) -> bytes:
    """A request or a reply as bytes."""
    return encode_value(asdict(message))


def read_request_untrusted(data: bytes) -> Request:
    """The request that `written` wrote.

    Raises:
        ValueDecodeError: it is none.
    """
    request = _read(Request, data)
    _check(request.graph is None or isinstance(request.graph, bytes))
    _check(isinstance(request.inputs, tuple) and all(map(_is_text_or_none, request.inputs)))
    _check(_is_text_or_none(request.job))
    _check(isinstance(request.context, str) and isinstance(request.uri, str))
    return request


def read_reply_untrusted(data: bytes) -> Reply:
    """The reply that `written` wrote. What it says is made safe to show.

    Raises:
        ValueDecodeError: it is none.
    """
    reply = _read(Reply, data)
    outputs = reply.outputs
    _check(outputs is None or (isinstance(outputs, tuple) and all(map(_is_text_or_none, outputs))))
    _check(reply.value is None or isinstance(reply.value, bytes))
    _check(isinstance(reply.error, str) and isinstance(reply.refused, bool))
    return Reply(
        reply.number, outputs, reply.value, one_line(reply.error, MOST_TEXT), reply.refused
    )


def _read(kind: type[_Said], data: bytes) -> _Said:
    content: Any = decode_value_untrusted(data)
    _check(isinstance(content, dict) and content.keys() == set(kind.__dataclass_fields__))
    said = kind(**content)
    _check(type(said.number) is int)
    return said


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _check(holds: bool) -> None:  # noqa: FBT001 - reads as an assertion
    if not holds:
        raise ValueDecodeError(
            "a message between a driver and a worker is not as this redislink writes it: run the "
            "same version at both"
        )
