"""Freed memory is kept for the next large message, instead of going back to the kernel.

libspu's binding copies a message twice on its way out and twice on its way in. By its defaults
glibc's malloc gives the memory of a large copy back at once, so that every page of the next copy
is a page fault: more time than the copying takes. See mallopt(3); other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h, as are these
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_MOST_MMAP_THRESHOLD: Final = 32 << 20
"""The largest that glibc takes; what is larger is always mapped, and given back."""
_PAD: Final = 16 << 20
_MOST: Final = (1 << 31) - 1


def keep_freed_memory(most: int) -> bool:
    """Have malloc keep freed memory, in this process, from now on.

    Args:
        most: bytes that may lie free at the end of each of malloc's arenas; 0 changes nothing.

    Returns:
        False where malloc is not glibc's, or would not.
    """
    if not most:
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    wanted = {
        _M_MMAP_THRESHOLD: min(most, _MOST_MMAP_THRESHOLD),
        _M_TRIM_THRESHOLD: min(most, _MOST),
        _M_TOP_PAD: min(most, _PAD),
    }
    taken = [libc.mallopt(option, size) for option, size in wanted.items()]
    return all(taken)
