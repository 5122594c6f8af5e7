"""Which locks of redislink the calling thread holds."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest


class WatchedLock:
    """A lock that notes in which threads it is held."""

    def __init__(self, lock: Any, place: str, held: threading.local) -> None:
        self._lock = lock
        self._place = place
        self._held = held

    def _places(self) -> list[str]:
        return self._held.__dict__.setdefault("places", [])

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = self._lock.acquire(blocking, timeout)
        if got:
            self._places().append(self._place)
        return bool(got)

    def release(self) -> None:
        self._places().remove(self._place)
        self._lock.release()

    def locked(self) -> bool:
        return bool(self._lock.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class WatchedRLock(WatchedLock):
    """Has what a condition needs of a lock that one thread may take several times."""

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())

    def _release_save(self) -> tuple[Any, int]:
        places = self._places()
        times = places.count(self._place)
        places[:] = [place for place in places if place != self._place]
        return self._lock._release_save(), times

    def _acquire_restore(self, saved: tuple[Any, int]) -> None:
        self._lock._acquire_restore(saved[0])
        self._places().extend([self._place] * saved[1])


class Locks:
    """The locks that redislink makes from now on, until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here = threading.local()
        for name, kind in (("Lock", WatchedLock), ("RLock", WatchedRLock)):
            monkeypatch.setattr(threading, name, self._maker(getattr(threading, name), kind))

    def _maker(self, make: Any, kind: type[WatchedLock]) -> Any:
        def made() -> Any:
            caller = sys._getframe(1)
            module = str(caller.f_globals.get("__name__", ""))
            if not module.startswith("redislink."):
                return make()
            return kind(make(), f"{module}:{caller.f_lineno}", self._here)

        return made

    def held(self) -> list[str]:
        """Module and line where each lock was made that this thread holds."""
        return list(self._here.__dict__.get("places", []))
