"""`LoopThread`: an asyncio server of the tests, in a thread of its own while its block lasts."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Final, Self

_START_TIMEOUT: Final = 10.0


class LoopThread:
    """Base of such servers: `_serve` sets ``_listens`` once it listens, and waits for ``_end``."""

    def __init__(self, name: str) -> None:
        """Args: name of the thread."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listens.wait(_START_TIMEOUT):
            raise TimeoutError(f"{self._thread.name} did not listen within {_START_TIMEOUT:g} s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._start())

    async def _start(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        await self._serve(self._end)

    async def _serve(self, end: asyncio.Event) -> None:
        raise NotImplementedError
