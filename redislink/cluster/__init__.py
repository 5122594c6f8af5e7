"""The cluster file: parties, devices, and the masks that map their ranks."""

from redislink.cluster.mask import Mask
from redislink.cluster.spec import (
    ClusterSpec,
    DeviceSpec,
    DriverSpec,
    PartySpec,
    SpuConfig,
    load_cluster,
)

__all__ = [
    "ClusterSpec",
    "DeviceSpec",
    "DriverSpec",
    "Mask",
    "PartySpec",
    "SpuConfig",
    "load_cluster",
]
