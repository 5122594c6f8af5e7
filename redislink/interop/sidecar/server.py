"""Answers the program's requests, on loopback.

Rules:
- Whoever has not the token gets nothing: every process of this machine can connect.
- One thread for each connection. It waits in the link, for at most as long as the request says.
- A body is read only after the token, and is bounded.
- An answer goes out in one write, without Nagle's algorithm: a push waits for it.

Besides yacl's two requests (`redislink.interop.sidecar.blackbox`) there are those of the shim, all
POST: ``/v1/clients``, whose answer goes on for as long as the process lives; ``/v1/clients/N/end``,
``/v1/links`` and ``/v1/links/N/release``, with JSON in their bodies; ``/v1/links/N/send`` and
``/v1/links/N/recv``, whose bodies are messages.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import queue
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from redislink.errors import ConfigError, RedisLinkError, UsageError
from redislink.interop.sidecar import blackbox
from redislink.interop.sidecar.blackbox import Code, answer
from redislink.interop.sidecar.link import Link, Told
from redislink.interop.sidecar.links import Links, Wanted

LONGEST_POP: Final = 10.0
_MOST_HEADERS: Final = 100
_LONGEST_LINE: Final = 16 << 10
_MOST_JSON: Final = 1 << 20
_MOST_BYTES: Final = 4 << 30
_LOOK: Final = 0.25
"""Seconds between looks: whether a process is still there, whether the sidecar ends."""
_LOST: Final = 3.0
"""Seconds: who lost an answer has closed its connection by then; later it was merely idle."""


class SidecarServer(socketserver.ThreadingTCPServer):
    """The service. It listens on loopback from its creation on.

    Attributes:
        address: ``host:port``.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, links: Links, token: str, host: str = "127.0.0.1", port: int = 0) -> None:
        """Args:
        links: what the requests are about.
        token: what each request must show.
        host: a loopback address.
        port: 0 chooses a free one.

        Raises:
            OSError: it cannot listen there.
        """
        self.links = links
        self._token = token.encode()
        super().__init__((host, port), _Connection)
        self.address = f"{host}:{self.server_address[1]}"
        self._sweeper = threading.Event()

    def is_token(self, shown: str | None) -> bool:
        """Whether a request shows the token."""
        return hmac.compare_digest((shown or "").encode(), self._token)

    def start(self) -> None:
        """Answer requests, in threads, until `stop`."""
        threading.Thread(
            target=self.serve_forever, args=(_LOOK,), name="redislink-serve", daemon=True
        ).start()
        threading.Thread(target=self._sweep, name="redislink-sweep", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self._sweeper.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a program that goes away in the middle of a request is no error of ours."""

    def _sweep(self) -> None:
        while not self._sweeper.wait(1.0):
            self.links.sweep()


class _Connection(BaseHTTPRequestHandler):
    server: SidecarServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    raw_requestline: bytes
    requestline = ""
    """For the base class's log, which is off."""

    def setup(self) -> None:
        super().setup()
        self._popped: tuple[Link, str, bytes, float] | None = None
        """What the last answer carried, until it is known to have arrived."""

    def finish(self) -> None:
        if self._popped is not None:
            link, peer, message, at = self._popped
            if time.monotonic() - at < _LOST:
                link.give_back(peer, message)
        with contextlib.suppress(OSError):
            super().finish()

    def parse_request(self) -> bool:
        """The base class's, without the parser for mail, which took most of a request's time."""
        words = self.raw_requestline.decode("latin-1").split()
        headers: dict[str, str] = {}
        for _ in range(_MOST_HEADERS):
            line = self.rfile.readline(_LONGEST_LINE)
            if line in (b"\r\n", b"\n", b""):
                break
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        else:
            words = []
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            self.close_connection = True
            self.request_version = "HTTP/1.1"
            self._json(HTTPStatus.BAD_REQUEST, {"error": "the sidecar takes HTTP/1.1 only"})
            return False
        self.command, self.path, self.request_version = words
        self.headers = headers  # type: ignore[assignment]
        keep = words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        self.close_connection = not keep
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: requests come hundreds of times a second."""

    def do_POST(self) -> None:
        self._popped = None  # whoever asks again has the answer before
        if not self.server.is_token(self.headers.get(blackbox.TOKEN)):
            self.close_connection = True
            self._json(HTTPStatus.FORBIDDEN, {"error": "this sidecar wants its token"})
            return
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._json(HTTPStatus.LENGTH_REQUIRED, {"error": "a request says how long it is"})
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        try:
            if self.path.startswith(blackbox.PREFIX):
                self._blackbox(body)
            else:
                self._of_the_shim(body)
        except (KeyError, TypeError, ValueError):
            self._json(HTTPStatus.BAD_REQUEST, {"error": "the sidecar does not know this request"})
        except (ConfigError, UsageError) as error:
            self._json(HTTPStatus.BAD_REQUEST, _error(error))
        except RedisLinkError as error:
            self._json(HTTPStatus.BAD_GATEWAY, _error(error))

    # -- yacl's requests --------------------------------------------------------------------------

    def _blackbox(self, body: bytes) -> None:
        try:
            link = self.server.links.link(int(self.headers[blackbox.LINK]))
            peer = self.headers[blackbox.TARGET]
            path, _, query = self.path.partition("?")
            if path == blackbox.PUSH:
                self._answer(answer(code=Code.OK if link.push(peer, body) else Code.QUEUE_FULL))
            elif path == blackbox.POP:
                seconds = float(parse_qs(query).get("timeout", ["1"])[0])
                message = link.pop(peer, min(max(seconds, 0.0), LONGEST_POP))
                if message:
                    self._popped = link, peer, message, time.monotonic()
                self._answer(answer(message))
            else:
                self._answer(answer(code=Code.BAD_REQUEST, message="push or pop"))
        except (KeyError, ValueError):
            self._answer(answer(code=Code.BAD_REQUEST, message="headers are missing"))
        except UsageError as error:
            self._answer(answer(code=Code.BAD_REQUEST, message=str(error)))
        except RedisLinkError as error:
            self._answer(answer(code=Code.NETWORK, message=str(error)))

    # -- the shim's requests ----------------------------------------------------------------------

    def _of_the_shim(self, body: bytes) -> None:
        links = self.server.links
        target = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        match target.path.split("/")[2:]:
            case ["clients"]:
                self._accompany(_read(body))
            case ["clients", number, "end"]:
                links.client(int(number)).ended = str(_read(body)["failed"])
                self._json(HTTPStatus.OK, {})
            case ["links"]:
                asked = _read(body)
                members = tuple((str(name), str(address)) for name, address in asked["parties"])
                wanted = Wanted(str(asked["id"]), members, int(asked["rank"]))
                link = links.make(links.client(int(asked["client"])), wanted)
                self._json(HTTPStatus.OK, {"link": link.number, "parties": link.parties})
            case ["links", number, "release"]:
                links.link(int(number)).released = True
                self._json(HTTPStatus.OK, {})
            case ["links", number, "send"]:
                links.link(int(number)).send(query["to"], query["tag"], body)
                self._json(HTTPStatus.OK, {})
            case ["links", number, "recv"]:
                seconds = min(max(float(query["timeout"]), 0.0), LONGEST_POP)
                message = links.link(int(number)).recv(query["from"], query["tag"], seconds)
                if message is None:
                    self._send(HTTPStatus.NO_CONTENT, "application/octet-stream", [])
                else:
                    self._send(HTTPStatus.OK, "application/octet-stream", [message])
            case _:
                raise ValueError("no such request")

    def _accompany(self, asked: dict[str, Any]) -> None:
        """Tell a process what happens to its links, for as long as it lives."""
        client = self.server.links.enter(
            f"process {int(asked['pid'])} of the program", lasting=bool(asked["lasting"])
        )
        self.close_connection = True
        try:
            self.send_response_only(HTTPStatus.OK)
            self.send_header("Content-Type", "application/jsonl")
            self.send_header("Connection", "close")
            self.end_headers()
            self._line({"client": client.number, "party": self.server.links.party})
            while not self._is_gone():
                with contextlib.suppress(queue.Empty):
                    told: Told = client.told.get(timeout=_LOOK)
                    self._line({"link": told.link, "text": told.text, "failed": told.failed})
        except OSError:
            pass
        finally:
            self.server.links.leave(client)

    def _is_gone(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _line(self, content: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")
        self.wfile.flush()

    # -- answers ----------------------------------------------------------------------------------

    def _answer(self, pieces: list[bytes]) -> None:
        self._send(HTTPStatus.OK, "application/octet-stream", pieces)

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", [json.dumps(content).encode()])

    def _send(self, status: HTTPStatus, kind: str, pieces: list[bytes]) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
        self.wfile.flush()


def _read(body: bytes) -> dict[str, Any]:
    if len(body) > _MOST_JSON:
        raise ValueError("too long")
    content = json.loads(body)
    if not isinstance(content, dict):
        raise TypeError("not an object")
    return content


def _error(error: RedisLinkError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__}
