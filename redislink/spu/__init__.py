"""SPU over the relay: importing this package imports ``spu``."""

from redislink.settings import LinkMode
from redislink.spu.link import LinkCommunicator, create_link, runtime_config

__all__ = ["LinkCommunicator", "LinkMode", "create_link", "runtime_config"]
