"""TLS in front of a server that has none: for tests against ``rediss://`` URLs.

Rules: listens on 127.0.0.1 only; a bounded number of connections at a time, the rest are closed
at once; all ends with the ``with`` block.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trustme

from tests.support.loop_thread import LoopThread

HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16


class TlsTerminator(LoopThread):
    """Takes TLS connections, and passes what is in them on to a plain port, both ways.

    Usage::

        with TlsTerminator(broker.port, tmp_path) as tls:
            connect(..., RedisLinkSettings(broker_url=tls.url("pw"), broker_tls_ca=tls.ca_file))

    Attributes:
        port: where it listens, once entered.
        ca_file: PEM file of the CA that signed its certificate.
        connections: how many it has taken so far, with the handshake done.
    """

    def __init__(
        self,
        upstream_port: int,
        directory: Path,
        *,
        max_connections: int = 64,
        client_cert_required: bool = False,
        names: Sequence[str] = ("localhost", HOST),
        not_after: datetime | None = None,
        client_not_after: datetime | None = None,
    ) -> None:
        """Args:
        upstream_port: of the plain server on 127.0.0.1.
        directory: where the CA file is written, and with client certificates those too.
        max_connections: at a time.
        client_cert_required: ask clients for a certificate of the same CA, as `client_cert_file`
            and `client_key_file` are.
        names: hosts and addresses in the server's certificate.
        not_after: when the server's certificate ends.
        client_not_after: when the client's does.
        """
        ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names, not_after=not_after).configure_cert(self._context)
        if client_cert_required:
            ca.configure_trust(self._context)
            self._context.verify_mode = ssl.CERT_REQUIRED
        client = ca.issue_cert("party@example.org", not_after=client_not_after)
        self.client_cert_file = directory / "client-cert.pem"
        self.client_key_file = directory / "client-key.pem"
        client.cert_chain_pems[0].write_to_path(str(self.client_cert_file))
        client.private_key_pem.write_to_path(str(self.client_key_file))
        self.port = 0
        self.connections = 0
        self._upstream_port = upstream_port
        self._room = max_connections
        super().__init__("tls-terminator")

    def url(self, password: str | None = None, user: str = "") -> str:
        """The ``rediss://`` URL of the server behind it."""
        credentials = f"{user}:{quote(password, safe='')}@" if password else ""
        return f"rediss://{credentials}{HOST}:{self.port}/0"

    async def _serve(self, end: asyncio.Event) -> None:
        server = await asyncio.start_server(self._take, HOST, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await end.wait()
        server.close()
        # asyncio.run cancels the connections that are left, and each closes itself then.

    async def _take(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._room == 0:
            answer.close()
            return
        self._room -= 1
        writers = [answer]
        try:
            server, ask = await asyncio.open_connection(HOST, self._upstream_port)
            writers.append(ask)
            passing = [
                asyncio.ensure_future(_pass(client, ask)),
                asyncio.ensure_future(_pass(server, answer)),
            ]
            try:
                # When one side has ended, so has the connection.
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the test is over: the client sees its connection end
        finally:
            self._room += 1
            for writer in writers:
                writer.close()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        target.write(data)
        await target.drain()
