"""Servers that tests may kill, flush and starve: one for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from redislink.broker import EmbeddedBroker
from tests.support.servers import debian_redis, make_server

MakeServer = Callable[..., EmbeddedBroker]


@pytest.fixture
def own_server() -> Iterator[MakeServer]:
    """``own_server(kind, options)``: a started server on a port of its own.

    Where redis-server is not installed, a test that wants it says that it did not run.
    """
    with ExitStack() as stack:

        def start(kind: str, options: dict[str, str] | None = None) -> EmbeddedBroker:
            if kind == "redis-server" and debian_redis() is None:
                pytest.skip("redis-server is not installed here: run .ci/install-redis")
            return stack.enter_context(make_server(kind, options))

        yield start
