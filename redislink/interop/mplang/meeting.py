"""Who takes part in a program of MPLang, and in which session.

Rules: workers are parties, and their order gives MPLang's ranks; the driver comes after them. A
driver is one more party of the cluster file, or one of its ``drivers``. Each driver has a session
of its own with its workers, so nobody waits for another driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.interop.parties import Parties
from redislink.transport.endpoint import Endpoint

DRIVER_OF_TRIAL: Final = "driver"
NODES: Final = "the program's nodes"


def workers_of(
    cluster: ClusterSpec, driver: str, workers: Sequence[str] | None = None
) -> list[str]:
    """The workers of a driver, in the order of their ranks.

    Args:
        cluster: the cluster file's.
        driver: a party or driver of it.
        workers: parties of it; None: all but the driver, in the file's order.

    Raises:
        ConfigError: the file has no such driver or party, or the names do not fit.
    """
    everybody = (*cluster.party_names, *cluster.driver_names)
    if driver not in everybody:
        raise ConfigError(
            f"driver {driver!r:.80} is not in session {cluster.session!r}: use one of "
            f"{', '.join(everybody)}, or add it to the cluster file, under parties or drivers"
        )
    if workers is None:
        return [name for name in cluster.party_names if name != driver]
    for name in workers:
        cluster.rank(name)
    if driver in workers or len(set(workers)) < len(workers) or not workers:
        raise ConfigError(
            f"workers {', '.join(workers) or 'none'}: list each worker once, without the driver, "
            f"{driver}"
        )
    return list(workers)


def joins(
    parties: Parties, workers: Sequence[str], driver: str, me: str, *more: str
) -> Callable[[], Endpoint]:
    """What joins the session of a driver and its workers.

    Args:
        parties: who may take part.
        workers, driver: their names.
        me: which of them joins.
        more: what tells this session from others between the same.

    Raises:
        ConfigError: they do not fit the cluster file.
    """
    members = [*workers, driver]
    cluster = parties.cluster(members, ["mplang", *members, *more])
    return lambda: parties.connect(cluster, me, parties.settings)
