"""MPLang (v2) over redislink: its workers and its drivers, without a port.

`redislink mplang worker` serves one driver; `redislink mplang run` runs a driver's program as it
is. For programs of your own: `make_driver` and `serve`, over endpoints that you have joined.

MPLang is imported by `binding` alone. Without it, or with another one than that is written for,
that is a `ConfigError` that says what to install.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redislink.interop.mplang.driver import Client
from redislink.interop.mplang.policy import Policy
from redislink.interop.mplang.worker import Worker
from redislink.transport.endpoint import Endpoint

__all__ = ["Policy", "make_driver", "serve"]


def make_driver(endpoint: Endpoint, *, cluster_spec: Any = None) -> Any:
    """MPLang's interpreter, whose graphs run at the other parties of a session.

    Its workers are the parties before this one; each calls `serve`. Use it as what
    ``mplang.make_driver`` gives, and close the endpoint at the end.

    Args:
        endpoint: this party's; it comes last in the cluster.
        cluster_spec: MPLang's; None: each worker is a node and a PPU ``P0``, ``P1``, …, and each
            SPU device of the cluster whose members are workers is one.

    Raises:
        ConfigError: MPLang is missing, or is not the one that this is written for.
    """
    from redislink.interop.mplang import binding

    client = Client(endpoint, timeout=endpoint.settings.request_timeout)
    cluster = cluster_spec or binding.mplang_cluster(endpoint.cluster, client.workers)
    return binding.interpreter_of(binding.RelayDriver(client), cluster)


def serve(endpoint: Endpoint, policy: Policy, *, directory: Path | None = None) -> None:
    """Run what the policy allows of what the last party of a session sends, until it leaves.

    Args:
        endpoint: this party's.
        policy: what may run here.
        directory: for what is saved; None: nothing outlives the session.

    Raises:
        ConfigError: as `make_driver`.
        PeerError: the driver, or another worker, is lost or has failed.
        BrokerError: the broker has been away for too long.
        JobError: a request took longer than its rule allows.
    """
    from redislink.interop.mplang import binding

    driver = endpoint.cluster.party_names[-1]
    with binding.engine(endpoint, directory) as engine:
        Worker(endpoint, driver, engine, policy).serve()
