"""Keep freed memory for the next large message, instead of returning it to the kernel.

libspu's binding copies a message twice on its way out and twice on its way in. By default glibc's
malloc returns the memory of a large copy at once, so every page of the next copy is a page fault,
which takes longer than the copying. See mallopt(3). Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # from glibc's malloc.h, like these
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_MOST_MMAP_THRESHOLD: Final = 32 << 20
"""The largest value that glibc accepts; larger blocks are always mapped, and returned."""
_PAD: Final = 16 << 20
_MOST: Final = (1 << 31) - 1


def keep_freed_memory(most: int) -> bool:
    """Make malloc keep freed memory in this process from now on.

    Args:
        most: the most bytes to keep free at the end of each of malloc's arenas; 0 changes nothing.

    Returns:
        Whether malloc keeps it; False if malloc is not glibc's, or refuses.
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
