"""A Redis-brokered relay transport for secure multi-party computation with SPU.

The public names, and nothing else: importing this package opens no socket, reads no
environment, configures no logging and does not import ``spu``. What needs SPU is in
``redislink.spu``, the embedded broker in ``redislink.broker``.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from redislink._version import __version__
from redislink.errors import (
    AuditError,
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
    IntersectionFailed,
    JobError,
    JournalError,
    LinkError,
    LoadFailed,
    NotRevealed,
    PartyTaken,
    PayloadTypeError,
    PeerAborted,
    PeerClosed,
    PeerError,
    PeerLost,
    PeerProtocolError,
    PeerRestarted,
    ProgramDiverged,
    ProxyRefused,
    RecvCancelled,
    RecvTimeout,
    RedisLinkError,
    SealError,
    SecurityError,
    SecurityMismatch,
    SendTimeout,
    TableError,
    UsageError,
    UsedAfterFork,
    ValueDecodeError,
)

if TYPE_CHECKING:
    from redislink.broker import Broker, EgressProxy
    from redislink.cluster import (
        ClusterSpec,
        DeviceSpec,
        DriverSpec,
        Mask,
        PartySpec,
        SpuConfig,
        load_cluster,
    )
    from redislink.communicator import (
        Communicator,
        RedisCommunicator,
        ThreadCommunicator,
    )
    from redislink.identity.keypair import Identity
    from redislink.joining import connect
    from redislink.session.exchange import read_result
    from redislink.session.session import Session
    from redislink.session.simulator import Simulator
    from redislink.settings import LinkMode, LogFormat, RedisLinkSettings, SpuLogLevel
    from redislink.transport.endpoint import Endpoint
    from redislink.transport.peer import Party
    from redislink.transport.request import Request
    from redislink.transport.stats import EndpointStats, PeerStats
    from redislink.values import decode_value_untrusted, encode_value, register_dataclass

# Imported when first asked for: a command that makes a key needs no redis, and no help numpy.
_LATER: Final = {
    "Broker": "broker",
    "ClusterSpec": "cluster",
    "Communicator": "communicator",
    "DeviceSpec": "cluster",
    "DriverSpec": "cluster",
    "EgressProxy": "broker",
    "Endpoint": "transport.endpoint",
    "EndpointStats": "transport.stats",
    "Identity": "identity.keypair",
    "LinkMode": "settings",
    "LogFormat": "settings",
    "Mask": "cluster",
    "Party": "transport.peer",
    "PartySpec": "cluster",
    "PeerStats": "transport.stats",
    "RedisCommunicator": "communicator",
    "RedisLinkSettings": "settings",
    "Request": "transport.request",
    "Session": "session.session",
    "Simulator": "session.simulator",
    "SpuConfig": "cluster",
    "SpuLogLevel": "settings",
    "ThreadCommunicator": "communicator",
    "connect": "joining",
    "decode_value_untrusted": "values",
    "encode_value": "values",
    "load_cluster": "cluster",
    "read_result": "session.exchange",
    "register_dataclass": "values",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'redislink' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"redislink.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AuditError",
    "Broker",
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
    "DriverSpec",
    "EgressProxy",
    "Endpoint",
    "EndpointClosed",
    "EndpointStats",
    "FrameError",
    "HandshakeTimeout",
    "Identity",
    "IntersectionFailed",
    "JobError",
    "JournalError",
    "LinkError",
    "LinkMode",
    "LoadFailed",
    "LogFormat",
    "Mask",
    "NotRevealed",
    "Party",
    "PartySpec",
    "PartyTaken",
    "PayloadTypeError",
    "PeerAborted",
    "PeerClosed",
    "PeerError",
    "PeerLost",
    "PeerProtocolError",
    "PeerRestarted",
    "PeerStats",
    "ProgramDiverged",
    "ProxyRefused",
    "RecvCancelled",
    "RecvTimeout",
    "RedisCommunicator",
    "RedisLinkError",
    "RedisLinkSettings",
    "Request",
    "SealError",
    "SecurityError",
    "SecurityMismatch",
    "SendTimeout",
    "Session",
    "Simulator",
    "SpuConfig",
    "SpuLogLevel",
    "TableError",
    "ThreadCommunicator",
    "UsageError",
    "UsedAfterFork",
    "ValueDecodeError",
    "__version__",
    "connect",
    "decode_value_untrusted",
    "encode_value",
    "load_cluster",
    "read_result",
    "register_dataclass",
]
