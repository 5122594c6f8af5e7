"""Values and raw bytes between parties, over an endpoint or between threads."""

from redislink.communicator.base import (
    DEFAULT_NAMESPACE,
    MAX_NAMESPACE_BYTES,
    Communicator,
)
from redislink.communicator.relay import RedisCommunicator
from redislink.communicator.threads import ThreadCommunicator
from redislink.transport.request import Request

__all__ = [
    "DEFAULT_NAMESPACE",
    "MAX_NAMESPACE_BYTES",
    "Communicator",
    "RedisCommunicator",
    "Request",
    "ThreadCommunicator",
]
