"""`Forwarder`: one party's ``redislink forward``: a loop, and a link with each other party."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redislink.interop.forward.link import Link, Plan


class Forwarder:
    """Forwards streams of one party."""

    def __init__(self, plan: Plan) -> None:
        """Args:
        plan: what is forwarded.
        """
        self._plan = plan
        concerned = {forward.peer for forward in plan.forwards} | plan.targets.parties
        self._peers = [name for name in plan.cluster.party_names if name in concerned]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._error: BaseException | None = None
        self._links: list[Link] = []

    def serve(self) -> None:
        """Forward until `end`; in the main thread, SIGTERM and Ctrl-C call that.

        Raises:
            ConfigError, BrokerError, PartyTaken: it cannot begin, or cannot go on.
            PeerError: the plan's `Retries` allow no further attempt.
        """
        _allow_many_files()
        asyncio.run(self._serve())
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """End because of this error."""
        self._error = self._error or error
        self._ending.set()

    def end(self) -> None:
        """End in good order. Call it from any thread, once `serve` has begun."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._ending.set)

    def _fail_by(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault of ours in a callback: better to end than to leave a stream without an end."""
        error = context.get("exception")
        self.fail(error if error is not None else RuntimeError(context.get("message")))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._fail_by)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._ending.set)
        links = self._links
        try:
            for peer in self._peers:
                links.append(Link(self._plan, peer, self))
            for link in links:
                link.start()
            await self._ending.wait()
        finally:
            for link in links:
                link.cut()
            with ThreadPoolExecutor(max(1, len(links))) as pool:  # the loop's own has few threads
                ending = [self._loop.run_in_executor(pool, link.stop) for link in links]
                await asyncio.gather(*ending)


def _allow_many_files() -> None:
    """Raise the limit of open files to what the system lets this process have: one a connection."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
