"""RayFed over redislink::

    import fed
    from redislink.interop.rayfed import RayFedProxy

    fed.init(
        addresses=addresses, party="alice", receiver_sender_proxy_cls=RayFedProxy,
        config={"cross_silo_comm": {"max_concurrency": 100}},
    )

The addresses only name the parties; nobody listens on them. Cluster file, party and key file are
those of the environment in which Ray starts its workers. With ``max_concurrency: 1``, RayFed's
default, a receive that waits keeps the sends behind it waiting.

The objects are cloudpickled by RayFed: a party that unpickles one trusts its sender with more than
a result. That is RayFed's, with and without redislink.
"""

from __future__ import annotations

import importlib
from typing import Any

from redislink.interop.objects import Objects
from redislink.interop.sidecar.shim.redislink_sidecar import make_rayfed_proxy

__all__ = ["RayFedProxy"]


class RayFedProxy:
    """The class for ``receiver_sender_proxy_cls``."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Args: as RayFed's ``SenderReceiverProxy``, of which this returns an implementation."""
        base = importlib.import_module("fed.proxy.base_proxy").SenderReceiverProxy
        return make_rayfed_proxy(base, Objects)(*args, **options)
