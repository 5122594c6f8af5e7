"""Keep freed memory for the next large message, instead of returning it to the kernel.

libspu's binding copies a message twice on its way out and twice on its way in. By default glibc's
malloc returns the memory of a large copy at once, so every page of the next copy is a page fault,
which takes longer than the copying. See mallopt(3). Other C libraries are left alone.

glibc maps a block of more than 32 MiB anew whatever it keeps, unless it may map none at all. Then
more of what is freed stays in holes between other blocks. So it may map until the first message of
that size: a process without such messages stays as small as it was.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # from glibc's malloc.h, like these
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_MMAP_MAX: Final = -4
LARGE_BYTES: Final = 32 << 20
"""The largest threshold that glibc accepts; larger blocks are mapped and returned, if any are."""
_PAD: Final = 16 << 20
_MOST: Final = (1 << 31) - 1
_most_kept = 0
"""What `keep_freed_memory` was told; 0 once `keep_large_blocks` has nothing left to do."""


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
        _M_MMAP_THRESHOLD: min(most, LARGE_BYTES),
        _M_TRIM_THRESHOLD: min(most, _MOST),
        _M_TOP_PAD: min(most, _PAD),
    }
    taken = [libc.mallopt(option, size) for option, size in wanted.items()]
    global _most_kept
    _most_kept = most if all(taken) else 0
    return all(taken)


def keep_large_blocks(size: int) -> None:
    """Make malloc keep blocks of this size too, if it keeps as much; once is enough.

    Args:
        size: bytes of a message that was sent or received, more than `LARGE_BYTES`.
    """
    global _most_kept
    if size <= _most_kept:
        _most_kept = 0
        ctypes.CDLL(None).mallopt(_M_MMAP_MAX, 0)
