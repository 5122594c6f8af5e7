"""What SPU itself logs: lines about how it computes, on stdout, among those of the program."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from spu import libspu

from redislink.settings import SpuLogLevel

_NEVER_ROTATED: Final = 1 << 62
"""Bytes."""
_limited = False


def limit_log(level: SpuLogLevel) -> None:
    """Let SPU log from this level on in this process. Only the first call has an effect.

    SPU wants a file for its log besides: it gets one in memory, which ends with the process. Where
    that cannot be had, its log stays as it is.
    """
    global _limited
    if _limited or level is SpuLogLevel.UNCHANGED or not hasattr(os, "memfd_create"):
        return
    _limited = True
    options = libspu.logging.LogOptions()
    options.log_level = getattr(libspu.logging.LogLevel, level.name)
    options.max_log_file_size = _NEVER_ROTATED
    with contextlib.suppress(OSError, RuntimeError):
        file = os.memfd_create("spu.log")
        try:
            options.system_log_path = f"/proc/self/fd/{file}"
            libspu.logging.setup_logging(options)
        finally:
            os.close(file)
