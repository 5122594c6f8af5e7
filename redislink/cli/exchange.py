"""The options ``--data`` and ``--results``: what a run is given, and where it gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from redislink.errors import ConfigError
from redislink.protocol.list_names import check_name
from redislink.settings import RedisLinkSettings

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=PATH",
        help="What session.data(NAME) of the program returns, besides REDISLINK_DATA. {party} and "
        "{session} in PATH stand for their names; you may repeat this option.",
        show_default=False,
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="DIR",
        help="Directory for what the program keeps with session.result, with {party} and {session} "
        "as above; otherwise REDISLINK_RESULTS_DIR.",
        show_default=False,
    ),
]


def exchanged(
    settings: RedisLinkSettings, data: list[str] | None, results: Path | None
) -> dict[str, str]:
    """The environment variables of these options.

    Raises:
        ConfigError: a data set is not given as NAME=PATH.
    """
    variables: dict[str, str] = {}
    if data:
        paths = dict(settings.data)
        for words in data:
            name, equals, path = words.partition("=")
            if not equals or not path:
                raise ConfigError(f"--data {words}: is not NAME=PATH: write both")
            paths[check_name(name, "data set")] = Path(path)
        named = {name: str(path.absolute()) for name, path in paths.items()}
        variables["REDISLINK_DATA"] = json.dumps(named)
    if results is not None:
        variables["REDISLINK_RESULTS_DIR"] = str(results.absolute())
    return variables
