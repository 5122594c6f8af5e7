"""SPU over the relay. Importing this package imports ``spu``."""

from redislink.settings import LinkMode
from redislink.spu.device import SpuArray, SpuDevice, Withheld
from redislink.spu.link import SpuLink, create_link, runtime_config
from redislink.spu.scratch import private_scratch

__all__ = [
    "LinkMode",
    "SpuArray",
    "SpuDevice",
    "SpuLink",
    "Withheld",
    "create_link",
    "private_scratch",
    "runtime_config",
]
