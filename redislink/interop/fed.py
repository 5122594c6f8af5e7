"""SecretFlow's ``fed`` (production mode, ``ray_mode=False``) over redislink.

Where redislink and SecretFlow share an interpreter::

    from redislink.interop import fed

    fed.install()  # before secretflow.init, at every party

Then ``secretflow.init(ray_mode=False, …)`` sends its objects through the relay, whichever
``cross_silo_comm_backend`` it names, and no party listens. Its SPU links are those of
`redislink.interop.brpc`. Cluster file, party and key file are those of the environment.

SecretFlow 1.14 runs on Python 3.10 only: it needs ``redislink sidecar`` and not this module.

The objects are SecretFlow's own pickles: a party that unpickles one trusts its sender with more
than a result. That is SecretFlow's, with and without redislink.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from redislink.interop.objects import Objects
from redislink.interop.sidecar.shim.redislink_sidecar import make_fed_proxy

__all__ = ["install"]


def install(api: ModuleType | None = None) -> None:
    """Have SecretFlow's objects go over redislink.

    Args:
        api: its module ``secretflow.distributed.fed.api``; None imports it.
    """
    target: Any = api or importlib.import_module("secretflow.distributed.fed.api")
    base = importlib.import_module("secretflow.distributed.fed.proxy.base")
    pickling = importlib.import_module("secretflow.utils.secure_pickle")
    proxy = make_fed_proxy(base.SenderReceiverProxy, pickling, Objects)
    target.GrpcProxy = target.BrpcLinkProxy = proxy
