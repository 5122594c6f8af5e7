"""Real servers of both makes: the embedded Valkey, and the Redis that the distribution has."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker, embedded


@pytest.fixture(scope="module", params=["valkey", "redis"])
def real_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    """A server of this module's own, with a password for its default user, the admin."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "redis":
            patch.setattr(embedded, "_server_binary", _redis_server)
        with EmbeddedBroker(password=secrets.token_urlsafe(16)) as broker:
            yield broker


def _redis_server() -> Path:
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on this machine: not tried on Redis")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.partition("v=")[2].partition(".")[0]) < 7:
        pytest.skip(f"{found} is older than Redis 7: not tried on Redis")
    return Path(found)
