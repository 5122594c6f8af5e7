"""A Redis-brokered relay transport for secure multi-party computation with SPU.

The public names, and nothing else: importing this package opens no socket, reads no
environment, configures no logging and does not import ``spu``. What needs SPU is in
``redislink.spu``, the embedded broker in ``redislink.broker``.
"""

from redislink._version import __version__
from redislink.cluster import ClusterSpec, DeviceSpec, Mask, PartySpec, load_cluster
from redislink.communicator import Communicator, RedisCommunicator, Request, ThreadCommunicator
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
    LoadFailed,
    NotRevealed,
    PartyTaken,
    PayloadTypeError,
    PeerAborted,
    PeerClosed,
    PeerError,
    PeerLost,
    PeerRestarted,
    ProgramDiverged,
    RecvCancelled,
    RecvTimeout,
    RedisLinkError,
    SealError,
    SecurityError,
    SecurityMismatch,
    SendTimeout,
    UsageError,
    ValueDecodeError,
)
from redislink.session import Session
from redislink.settings import RedisLinkSettings
from redislink.simulator import Simulator
from redislink.values import decode_value_untrusted, encode_value, register_dataclass

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
    "Communicator",
    "ConfigError",
    "DeviceSpec",
    "Endpoint",
    "EndpointClosed",
    "EndpointStats",
    "FrameError",
    "HandshakeTimeout",
    "LinkError",
    "LoadFailed",
    "Mask",
    "NotRevealed",
    "PartySpec",
    "PartyTaken",
    "PayloadTypeError",
    "PeerAborted",
    "PeerClosed",
    "PeerError",
    "PeerLost",
    "PeerRestarted",
    "ProgramDiverged",
    "RecvCancelled",
    "RecvTimeout",
    "RedisCommunicator",
    "RedisLinkError",
    "RedisLinkSettings",
    "Request",
    "SealError",
    "SecurityError",
    "SecurityMismatch",
    "SendHandle",
    "SendTimeout",
    "Session",
    "Simulator",
    "ThreadCommunicator",
    "UsageError",
    "ValueDecodeError",
    "__version__",
    "connect",
    "decode_value_untrusted",
    "encode_value",
    "load_cluster",
    "register_dataclass",
]
