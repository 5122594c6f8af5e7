"""Which session a command joins, and as which party: from options, or else from settings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli import errors
from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import ConfigError
from redislink.settings import RedisLinkSettings

ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Cluster file; otherwise REDISLINK_CLUSTER_FILE.",
        show_default=False,
    ),
]


def _complete_party(context: typer.Context, incomplete: str) -> list[str]:
    """Completions for a shell: the party names, if the cluster file can be read."""
    with contextlib.suppress(ConfigError):
        path = context.params.get("cluster") or RedisLinkSettings.load().cluster_file
        if path is not None:
            names = load_cluster(path).party_names
            return [name for name in names if name.startswith(incomplete)]
    return []


PartyOption = Annotated[
    str | None,
    typer.Option(
        "--party",
        metavar="NAME",
        help="Name of this party; otherwise REDISLINK_PARTY.",
        show_default=False,
        autocompletion=_complete_party,
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="This party's key file, from redislink keygen; otherwise REDISLINK_IDENTITY_FILE.",
        show_default=False,
    ),
]


def resolve(
    settings: RedisLinkSettings,
    cluster: Path | None,
    party: str | None,
    identity: Path | None = None,
) -> tuple[Path, ClusterSpec, str]:
    """The path of the cluster file, its contents, and the party. Tells the doctor's advice too.

    Raises:
        ConfigError: the cluster file or the party is missing or wrong.
    """
    errors.advise_doctor("--cluster", cluster, "--party", party, "--identity", identity)
    path = Path(settings.cluster_file_to_use(cluster))
    name = party or settings.party
    spec = load_cluster(path)
    if name is None:
        raise ConfigError(
            f"no party: give --party NAME, or set REDISLINK_PARTY; {path} has "
            f"{', '.join(spec.party_names)}"
        )
    spec.rank(name)
    return path, spec, name
