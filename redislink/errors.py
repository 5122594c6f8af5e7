"""Every error that redislink raises, as one tree.

::

    RedisLinkError
    ├── ConfigError            the cluster file, a setting or a URL is wrong (yours to mend)
    ├── UsageError             a call that cannot be meant (yours to mend)
    │   ├── PayloadTypeError   the payload is not bytes
    │   ├── EndpointClosed     the endpoint is closed, or was closed while you waited
    │   └── RecvCancelled      this receive was cancelled locally (``IChannel.Abort``)
    ├── BrokerError            the broker is at fault, or out of reach
    │   ├── BrokerUnreachable  no connection, or it broke
    │   ├── BrokerAuthError    it does not accept our user or password
    │   ├── BrokerPermissionError  it knows us and forbids the command or the key
    │   └── BrokerRefused      it answered with any other error
    ├── PeerError              another party is at fault, or missing
    │   ├── HandshakeTimeout   not every party came
    │   ├── ClusterMismatch    a party runs with another cluster file or version
    │   ├── PartyTaken         another process already runs as this party
    │   ├── RecvTimeout        what we wait for did not come
    │   └── SendTimeout        what we sent was not taken
    ├── FrameError             bytes from the broker that are not a frame of ours
    └── LinkError              the SPU link cannot be made in the mode asked for

Each message is one line and says who, what, how long, and what to do next. No message
holds a payload, a key or a password.
"""

from __future__ import annotations


class RedisLinkError(Exception):
    """The root: ``except RedisLinkError`` catches all that this package raises."""


class ConfigError(RedisLinkError):
    """The cluster file, a setting or a URL is wrong; the message names it and the remedy."""


class UsageError(RedisLinkError):
    """The calling program asked for something that cannot be meant."""


class PayloadTypeError(UsageError, TypeError):
    """A payload that is not bytes-like."""


class EndpointClosed(UsageError):
    """The endpoint is closed, or was closed while this call waited."""


class RecvCancelled(UsageError):
    """A receive that this party itself cancelled (``IChannel.Abort``)."""


class BrokerError(RedisLinkError):
    """The broker is out of reach, or refused what we asked."""


class BrokerUnreachable(BrokerError):
    """No connection to the broker, or an existing one broke."""


class BrokerAuthError(BrokerError):
    """The broker does not accept our user name or password."""


class BrokerPermissionError(BrokerError):
    """The broker knows us, and forbids a command or a key that we need."""


class BrokerRefused(BrokerError):
    """The broker answered with an error of another kind (out of memory, read-only, …)."""


class PeerError(RedisLinkError):
    """Another party is missing, late, or does not match."""


class HandshakeTimeout(PeerError):
    """Not every party said hello in time; the message names those that are missing."""


class ClusterMismatch(PeerError):
    """A party runs with another cluster file, session or protocol version."""


class PartyTaken(PeerError):
    """Another process already runs as this party in this session."""


class RecvTimeout(PeerError, TimeoutError):
    """A message did not come in time."""


class SendTimeout(PeerError, TimeoutError):
    """A peer did not take a message in time."""


class FrameError(RedisLinkError):
    """Bytes that are not a frame. The only thing that a ``*_untrusted`` parser raises."""


class LinkError(RedisLinkError):
    """An SPU link cannot be made in the mode asked for; the message says what to change."""
