"""The program of the process in which libpsi runs, and which may die.

libpsi ends its process when a channel fails (its C++ unwinder aborts), so it does not run in the
process of a party. `redislink.spu.psi_relay` starts this file and carries its messages.
Rules:
- It has no connection, no keys and no ids: it gets digests and returns row numbers.
- No channel ever raises into libpsi. When the parent ends or closes the socket, this process ends.
- Its working directory is the scratch directory, and it uses bare file names, because libpsi hands
  paths to a shell. If the parent was killed, it removes that directory.
- The top level imports only the standard library: the parent imports the frames from here, and the
  child needs neither the package nor jax, which ``import spu`` would take a second to load.
"""

from __future__ import annotations

import array
import csv
import enum
import os
import shutil
import socket
import struct
import sys
import threading
import types
from pathlib import Path
from typing import Any, Final, NoReturn

DIGEST_BYTES: Final = 16
_HEADER: Final = struct.Struct("<BIIQ")
_MOST_AT_ONCE: Final = 1 << 20
_ATTEMPTS: Final = 100
"""To remove a directory that libpsi's other threads still write to."""
_COLUMN, _ROW = "digest", "row"
_INPUT, _OUTPUT = "./input.csv", "./output.csv"


class PsiFrameKind(enum.IntEnum):
    """The kinds of frame between parent and child."""

    START = 1
    """To the child: the digests, concatenated."""
    SEND = 2
    """From the child: a message for the peer; no reply."""
    SEND_THROTTLED = 3
    """The same; the reply comes once the peer has few enough left to receive."""
    RECV = 4
    """From the child: the message to wait for, and for how many ms; 0: the parent's timeout."""
    WINDOW = 5
    """From the child: how many throttled messages the peer may leave; 0: any number."""
    REPLY = 6
    """To the child: the reply that it waits for."""
    FOUND = 7
    """From the child: the numbers of the common rows, 8 bytes each. The last frame."""
    FAILED = 8
    """From the child: libpsi's error. The last frame."""


def write_frame(
    sock: socket.socket, kind: PsiFrameKind, number: int = 0, key: bytes = b"", body: Any = b""
) -> None:
    """Write one frame. Call it from one thread at a time.

    Raises:
        OSError: the other side is gone.
    """
    body = memoryview(body).cast("B")
    head = _HEADER.pack(kind, number, len(key), len(body)) + key
    if len(body) <= _MOST_AT_ONCE:
        sock.sendall(head + body)
    else:
        sock.sendall(head)
        sock.sendall(body)


def read_frame(sock: socket.socket) -> tuple[PsiFrameKind, int, bytes, bytes]:
    """Read one frame: kind, number, key, body.

    Raises:
        EOFError, OSError: the other side is gone.
    """
    kind, number, key_size, size = _HEADER.unpack(_read(sock, _HEADER.size))
    key = bytes(_read(sock, key_size))
    return PsiFrameKind(kind), number, key, bytes(_read(sock, size))


def _read(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = sock.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return data


class _Parent:
    """The socket to the parent. A failure here ends the process: see the rules above."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._directory = Path.cwd()
        self._lock = threading.Lock()
        self._replied = threading.Condition()
        self._replies: dict[int, bytes] = {}
        self._number = 0

    def start(self) -> bytes:
        """The digests."""
        kind, _, _, body = read_frame(self._sock)
        if kind is not PsiFrameKind.START:
            raise ValueError(f"the parent began with {kind.name}")
        threading.Thread(target=self._listen, daemon=True).start()
        return body

    def tell(self, kind: PsiFrameKind, number: int = 0, key: bytes = b"", body: Any = b"") -> None:
        """Write a frame without a reply."""
        try:
            with self._lock:
                write_frame(self._sock, kind, number, key, body)
        except OSError:
            self._leave()

    def ask(self, kind: PsiFrameKind, key: bytes, body: Any = b"") -> bytes:
        """Write a frame and wait for its reply."""
        with self._replied:
            self._number += 1
            number = self._number
        self.tell(kind, number, key, body)
        with self._replied:
            self._replied.wait_for(lambda: number in self._replies)
            return self._replies.pop(number)

    def _listen(self) -> None:
        try:
            while True:
                _, number, _, body = read_frame(self._sock)
                with self._replied:
                    self._replies[number] = body
                    self._replied.notify_all()
        except (OSError, EOFError):
            self._leave()

    def _leave(self) -> NoReturn:
        """End the process. The parent is gone, so remove the directory here."""
        for _ in range(_ATTEMPTS):
            shutil.rmtree(self._directory, ignore_errors=True)
            if not self._directory.exists():
                break
        os._exit(1)


def _load_spu(directory: str) -> tuple[Any, Any]:
    """``spu.libspu`` and ``spu.psi``, without the other imports of ``import spu``."""
    package = types.ModuleType("spu")
    package.__path__ = [directory]
    sys.modules["spu"] = package
    from spu import libspu, psi

    return libspu, psi


def _make_context(libspu: Any, parent: _Parent, rank: int) -> tuple[Any, list[Any]]:
    class Channel(libspu.link.IChannel):  # type: ignore[misc]
        """The channel to the peer, through the parent. The parties have met: no tests."""

        recv_timeout_ms = 0

        def Send(self, key: str, value: bytes) -> None:
            parent.tell(PsiFrameKind.SEND, 0, key.encode(), value)

        SendAsync = Send

        def SendAsyncThrottled(self, key: str, value: bytes) -> None:
            parent.ask(PsiFrameKind.SEND_THROTTLED, key.encode(), value)

        def Recv(self, key: str) -> bytes:
            return parent.ask(
                PsiFrameKind.RECV, key.encode(), struct.pack("<Q", self.recv_timeout_ms)
            )

        def SetRecvTimeout(self, recv_timeout_ms: int) -> None:
            self.recv_timeout_ms = recv_timeout_ms

        def GetRecvTimeout(self) -> int:
            return self.recv_timeout_ms

        def SetThrottleWindowSize(self, size: int) -> None:
            parent.tell(PsiFrameKind.WINDOW, size)

        def WaitLinkTaskFinish(self) -> None:
            """Return at once: the parent stays until the peer has everything."""

        def Abort(self) -> None: ...

        def SetChunkParallelSendSize(self, size: int) -> None: ...

        def TestSend(self, timeout: int) -> None: ...

        def TestRecv(self) -> None: ...

    desc = libspu.link.Desc()
    for number in range(2):
        desc.add_party(str(number), str(number))
    channels = [None if other == rank else Channel() for other in range(2)]
    return libspu.link.create_with_channels(desc, rank, channels), channels


def _write_input(digests: bytes) -> None:
    with Path(_INPUT).open("w", encoding="ascii") as file:
        file.write(f"{_COLUMN},{_ROW}\n")
        text, width = digests.hex(), 2 * DIGEST_BYTES
        for row in range(len(digests) // DIGEST_BYTES):
            file.write(f"{text[row * width : (row + 1) * width]},{row}\n")


def _read_output() -> array.array[int]:
    with Path(_OUTPUT).open(newline="", encoding="ascii") as file:
        return array.array("q", (int(row[_ROW]) for row in csv.DictReader(file)))


def main(descriptor: int, rank: int, protocol: str, spu_directory: str) -> None:
    """Intersect with the peer's child.

    Args:
        descriptor: a socket whose other end the parent holds.
        rank: this party's rank among the two, 0 or 1.
        protocol: KKRT, RR22 or ECDH.
        spu_directory: the directory of the parent's package spu.
    """
    os.set_inheritable(descriptor, False)
    parent = _Parent(socket.socket(fileno=descriptor))
    try:
        libspu, psi = _load_spu(spu_directory)
        _write_input(parent.start())
        context, _channels = _make_context(libspu, parent, rank)
        settings = {}
        if protocol == "ECDH":
            settings["ecdh_params"] = psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519)
        config = psi.PsiExecuteConfig(
            protocol_conf=psi.PsiProtocolConfig(
                protocol=psi.parse_protocol(f"PROTOCOL_{protocol}"),
                receiver_rank=0,
                broadcast_result=True,
                **settings,
            ),
            input_params=psi.InputParams(path=_INPUT, selected_keys=[_COLUMN], keys_unique=True),
            output_params=psi.OutputParams(path=_OUTPUT),
        )
        psi.psi_execute(config, context)
        parent.tell(PsiFrameKind.FOUND, body=_read_output())
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        parent.tell(
            PsiFrameKind.FAILED, body=f"{type(error).__name__}: {error}".encode(errors="replace")
        )
    sys.stdout.flush()
    os._exit(0)  # skips libpsi's own cleanup: the parent removes the directory


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
