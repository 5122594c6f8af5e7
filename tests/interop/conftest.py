"""A trial on the tests' own server, and descriptions of links in it."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spu.libspu import link

from redislink.broker import EmbeddedBroker
from redislink.identity.keypair import KEY_BYTES, write_secret

_ids = itertools.count()
Describe = Callable[..., Any]


@pytest.fixture
def trial(valkey: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a trial that this process takes part in."""
    write_secret(tmp_path / "trial.key", secrets.token_bytes(KEY_BYTES), "of a test", "key")
    for name, value in {
        "TRIAL_DIR": str(tmp_path),
        "BROKER_URL": valkey.url,
        "CONNECT_TIMEOUT": "60",
    }.items():
        monkeypatch.setenv(f"REDISLINK_{name}", value)
    return tmp_path


@pytest.fixture
def describe() -> Iterator[Describe]:
    """``describe("alice", "bob", id="x")``: a Desc; without ``id``, of an id of its own."""

    def make(*names: str, port: int = 1, **fields: Any) -> Any:
        desc = link.Desc()
        desc.id = f"link {next(_ids)}"
        for number, name in enumerate(names):
            desc.add_party(name, f"127.0.0.1:{port + number}")
        for field, value in fields.items():
            setattr(desc, field, value)
        return desc

    return make
