"""Errors go from one process to another whole, and nothing that is shown holds a secret."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator

import pytest

from redislink import errors
from redislink.broker.connection import Login
from redislink.cli.termination import Terminated
from redislink.errors import PeerAborted, RedisLinkError, may_pass
from redislink.spu.intersection import Query

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "IntersectionFailed": ("alice", "it ended by SIGKILL"),
    "LoadFailed": ("bob", "psi()", "OSError"),
    "PeerAborted": ("bob", "ValueError in its program"),
    "PeerClosed": ("bob", "bob has left"),
    "PeerLost": ("bob", 31.5),
    "PeerProtocolError": ("bob", "bob sent too much"),
    "PeerRestarted": ("bob",),
}
"""Of those that make their message themselves."""


def kinds(root: type[RedisLinkError] = RedisLinkError) -> Iterator[type[RedisLinkError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


PUBLIC = sorted(
    {kind for kind in kinds() if kind.__module__ == errors.__name__ and kind.__name__[0] != "_"},
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_an_error_arrives_whole_from_a_worker_of_a_pool(kind: type[RedisLinkError]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("what happened",)))
    error.retryable = True  # as some do to one error alone
    for arrived in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(arrived) is kind
        assert str(arrived) == str(error)
        assert arrived.args == error.args
        assert vars(arrived) == vars(error)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    above, drawn = [RedisLinkError.__name__], {}
    for depth, name in re.findall(
        r"^    ((?:│   |    )*)[├└]── (\w+)", errors.__doc__, re.MULTILINE
    ):
        del above[len(depth) // 4 + 1 :]
        drawn[name] = above[-1]
        above.append(name)
    real = {}
    for kind in set(PUBLIC) - {RedisLinkError}:
        parents = [k.__name__ for k in kind.__mro__[1:] if k in PUBLIC]
        real[kind.__name__] = parents[0]
    assert drawn == real


PASSING = {
    "BrokerBusy",
    "BrokerUnreachable",
    "HandshakeTimeout",
    "PeerLost",
    "PeerRestarted",
    "RecvTimeout",
    "SendTimeout",
}
"""What may be gone when all parties start again. A peer's ABORT says it for that peer's error."""


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_what_may_pass(kind: type[RedisLinkError]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("what happened",)))
    assert may_pass(error) is error.retryable is (kind.__name__ in PASSING)


def test_an_abort_may_pass_if_its_party_says_so() -> None:
    assert may_pass(PeerAborted("bob", "it lost carol", retryable=True))


def test_what_ends_a_program_from_outside_may_pass_and_its_own_errors_do_not() -> None:
    theirs = OSError("throttled")
    theirs.retryable = True  # type: ignore[attr-defined] - as some libraries say of their own calls
    assert may_pass(KeyboardInterrupt())
    assert may_pass(Terminated(143))
    for error in (SystemExit(1), ValueError("no such column"), MemoryError(), theirs):
        assert not may_pass(error)


def test_a_call_that_its_own_party_ended_is_no_wrong_use() -> None:
    for kind in (errors.EndpointClosed, errors.RecvCancelled):
        assert not issubclass(kind, errors.UsageError)


def test_what_a_debugger_shows_holds_no_password_and_no_table() -> None:
    assert "hunter2" not in repr(Login(("alice", "hunter2")))
    query = Query.check("alice", {"id": ["patient-7"]}, "id", None, "RR22")
    assert "patient-7" not in repr(query)
