"""A Redis-brokered relay transport for secure multi-party computation with SPU.

The public names, and nothing else: importing this package opens no socket, reads no
environment, configures no logging and does not import ``spu``. What needs SPU is in
``redislink.spu``, the embedded broker in ``redislink.broker``.
"""

from redislink._version import __version__
from redislink.cluster import ClusterSpec, DeviceSpec, Mask, PartySpec, load_cluster
from redislink.endpoint import Endpoint, EndpointStats, SendHandle, connect
from redislink.errors import (
    BrokerAuthError,
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerTampered,
    BrokerUnreachable,
    ClusterMismatch,
    ConfigError,
    EndpointClosed,
    FrameError,
    HandshakeTimeout,
    LinkError,
    PartyTaken,
    PayloadTypeError,
    PeerAborted,
    PeerClosed,
    PeerError,
    PeerLost,
    PeerRestarted,
    RecvCancelled,
    RecvTimeout,
    RedisLinkError,
    SealError,
    SecurityError,
    SecurityMismatch,
    SendTimeout,
    UsageError,
)
from redislink.settings import RedisLinkSettings

__all__ = [
    "BrokerAuthError",
    "BrokerBusy",
    "BrokerError",
    "BrokerPermissionError",
    "BrokerRefused",
    "BrokerTampered",
    "BrokerUnreachable",
    "ClusterMismatch",
    "ClusterSpec",
    "ConfigError",
    "DeviceSpec",
    "Endpoint",
    "EndpointClosed",
    "EndpointStats",
    "FrameError",
    "HandshakeTimeout",
    "LinkError",
    "Mask",
    "PartySpec",
    "PartyTaken",
    "PayloadTypeError",
    "PeerAborted",
    "PeerClosed",
    "PeerError",
    "PeerLost",
    "PeerRestarted",
    "RecvCancelled",
    "RecvTimeout",
    "RedisLinkError",
    "RedisLinkSettings",
    "SealError",
    "SecurityError",
    "SecurityMismatch",
    "SendHandle",
    "SendTimeout",
    "UsageError",
    "__version__",
    "connect",
    "load_cluster",
]
