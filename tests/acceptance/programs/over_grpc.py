"""A gRPC program of all four kinds of calls: ``serve PORT_FILE`` or ``call PORT COUNT``.

It knows nothing of redislink. Messages are bytes, so it needs no generated code.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc

LARGE = bytes(range(256)) * 4096 * 3  # 3 MiB
LIMIT = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


def _echo(request: bytes, _context: object) -> bytes:
    return request


def _count(request: bytes, _context: object) -> Iterator[bytes]:
    yield from (str(number).encode() for number in range(int(request)))


def _digest(requests: Iterator[bytes], _context: object) -> bytes:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(request)
    return digest.digest()


def _echo_each(requests: Iterator[bytes], _context: object) -> Iterator[bytes]:
    yield from requests


def serve(port_file: Path) -> None:
    """Serve until killed; the port goes into the file."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=LIMIT)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Count": grpc.unary_stream_rpc_method_handler(_count),
        "Digest": grpc.stream_unary_rpc_method_handler(_digest),
        "EchoEach": grpc.stream_stream_rpc_method_handler(_echo_each),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Any", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    port_file.with_suffix(".new").write_text(str(port))
    port_file.with_suffix(".new").rename(port_file)
    server.wait_for_termination()


def call(port: int, count: int) -> None:
    """Make calls of each kind, and print which were right and how long each kind took."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=LIMIT) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
        echo = channel.unary_unary("/Any/Echo")
        said: dict[str, object] = {}

        def timed(kind: str, right: list[bool], since: float) -> None:
            said[kind] = [sum(right), len(right), time.monotonic() - since]

        began = time.monotonic()
        timed("unary", [echo(b"%d" % each) == b"%d" % each for each in range(count)], began)
        began = time.monotonic()
        timed("unary 3 MiB", [echo(LARGE) == LARGE for _ in range(10)], began)
        began = time.monotonic()
        came = list(channel.unary_stream("/Any/Count")(str(count).encode()))
        timed("server streams", [came == [b"%d" % each for each in range(count)]], began)
        began = time.monotonic()
        digest = channel.stream_unary("/Any/Digest")(iter([LARGE] * 10))
        timed("client streams", [digest == hashlib.sha256(LARGE * 10).digest()], began)
        began = time.monotonic()
        sent = [b"%d" % each for each in range(count)]
        timed(
            "both stream", [list(channel.stream_stream("/Any/EchoEach")(iter(sent))) == sent], began
        )
        print(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    else:
        call(int(sys.argv[2]), int(sys.argv[3]))
