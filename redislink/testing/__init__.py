"""For tests of programs that use redislink: a broker that loses, a proxy that breaks lines.

Fixtures for pytest are in `redislink.testing.fixtures`; nothing here imports pytest.
"""

from redislink.testing.faults import Faults, FaultyBroker
from redislink.testing.proxy import ProxiedConnection, Proxy

__all__ = ["Faults", "FaultyBroker", "ProxiedConnection", "Proxy"]
