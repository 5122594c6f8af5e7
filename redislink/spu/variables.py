"""`Variables`: which variable of an SPU runtime holds a handle's share.

Rules:
- A variable is freed when its handle is gone, but not in that moment: handles go in any thread.
- A share that a journal holds is read when it is first used. Until then it has no variable.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import spu
from spu import libspu

ReadShare = Callable[[], libspu.Share]
"""Reads a share from the journal."""


class Variables:
    """The variables of one device's runtime."""

    def __init__(self) -> None:
        """None yet."""
        self._count = 0
        self._names: Final[dict[int, tuple[weakref.ref[Any], str]]] = {}
        self._later: Final[dict[int, ReadShare]] = {}
        self._garbage: Final[deque[str]] = deque()

    def next_name(self) -> str:
        """A name that no other variable has."""
        self._count += 1
        return f"v{self._count}"

    def name(self, handle: Any) -> str:
        """Give the handle a variable, which is freed when the handle is."""
        name, key = self.next_name(), id(handle)
        names, later, garbage = self._names, self._later, self._garbage

        def free(_: object) -> None:
            names.pop(key, None)
            later.pop(key, None)
            garbage.append(name)

        names[key] = (weakref.ref(handle, free), name)
        return name

    def keep_for_later(self, handle: Any, read: ReadShare) -> None:
        """Say where the share of a handle comes from that the runtime does not have."""
        self.name(handle)
        self._later[id(handle)] = read

    def waiting(self, handle: Any) -> ReadShare | None:
        """Reads the share of a handle; None if the runtime has it, or it is not known."""
        return self._later.get(id(handle))

    def has(self, handle: Any) -> bool:
        """Whether the runtime has the share of a handle."""
        return id(handle) in self._names and id(handle) not in self._later

    def of(self, handle: Any) -> str:
        """The variable of a handle."""
        return self._names[id(handle)][1]

    def arrived(self, handle: Any) -> None:
        """The runtime has the share of a handle now."""
        self._later.pop(id(handle), None)

    def sweep(self, runtime: spu.Runtime) -> None:
        """Free the variables whose handles are gone, while nobody else uses the runtime."""
        while self._garbage:
            # If its run failed, or its share was never needed, the variable never existed.
            with contextlib.suppress(RuntimeError, IndexError):
                runtime.del_var(self._garbage.popleft())

    def clear(self) -> None:
        """Forget all handles: the runtime has ended."""
        self._names.clear()
        self._later.clear()
