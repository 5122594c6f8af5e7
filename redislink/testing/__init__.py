"""For testing programs that use redislink: a faulty broker, and a proxy that breaks connections.

The pytest fixtures are in `redislink.testing.fixtures`; nothing here imports pytest.
"""

from redislink.testing.faults import Faults, FaultyBroker
from redislink.testing.proxy import ProxiedConnection, Proxy

__all__ = ["Faults", "FaultyBroker", "ProxiedConnection", "Proxy"]
