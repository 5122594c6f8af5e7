"""MPLang's HTTP communicator as a transport: its own classes, put together as its worker does.

Imported only in an interpreter where ``mplang-nightly`` is installed (see ``make bench``).
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from mplang.backends.channel import BaseChannel
from mplang.backends.simp_worker.http import CommConfig, HttpCommunicator, register_routes
from mplang.runtime.object_store import FileSystemBackend, ObjectStore

_START_SECONDS: Final = 60.0


class MplangWorker:
    """One party's HTTP server and client."""

    def __init__(self, rank: int, port: int, urls: list[str]) -> None:
        """Start to listen, and return once every party does.

        Args:
            rank: this party's.
            port: where it listens.
            urls: how this party reaches each, by rank.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-mplang-")
        self.communicator = HttpCommunicator(
            rank, len(urls), urls, config=CommConfig(default_recv_timeout=120.0)
        )
        app = FastAPI()
        register_routes(
            app,
            rank=rank,
            world_size=len(urls),
            infra=None,  # only the routes that execute graphs look at it
            comm=self.communicator,
            store=ObjectStore(
                persistent=FileSystemBackend(root_path=str(Path(self._scratch.name)))
            ),
            exec_pool=None,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        for other, url in enumerate(urls):
            if other != rank:
                _wait_until_healthy(url)

    def channels(self, rank: int, world_size: int, device: str) -> list[Any]:
        """The channels of one link."""
        return [
            None if peer == rank else BaseChannel(self.communicator, rank, peer, device)
            for peer in range(world_size)
        ]

    def close(self) -> None:
        """Send what is queued, and stop to listen."""
        self.communicator.wait_pending_sends()
        time.sleep(0.2)  # a peer's last request may still be on its way
        self._server.should_exit = True
        self._thread.join(5)
        self.communicator.shutdown()
        self._scratch.cleanup()


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{url} did not answer")
