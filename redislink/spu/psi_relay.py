"""The parent's side of libpsi, which runs in its own process (`redislink.spu.psi_child`).

Rules:
- The child's messages go through a communicator, under the key that libpsi gave them; a message
  for the child is received when the child asks for it. So no more is held here than in libpsi.
- The child may die at any time and for any reason. Here that is an error and nothing more.
- Whatever ends the session ends the wait: a receive is pending for as long as the child lives.
- No process, thread or file outlives the call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import numpy as np
import spu

from redislink.communicator import Communicator, Request
from redislink.errors import IntersectionFailed, RecvTimeout, SendTimeout
from redislink.forking import dies_in_child, let_go
from redislink.logs import PartyLogger
from redislink.spu import psi_child
from redislink.spu.psi_child import PsiFrameKind, read_frame, write_frame
from redislink.spu.scratch import Scratch, scratch
from redislink.text import one_line

LOGGER: Final = "redislink.libpsi"
_MESSAGES, _END = "messages", "end"
"""The namespace of libpsi's messages, and the tag of a party's message that it is done."""
THREADS: Final = "redislink-psi"
"""How the names of the threads begin."""
_MOST_THREADS: Final = 64
"""More than the two or three receives that libpsi has pending at a time."""
_LOOK: Final = 0.05
"""Seconds between looks at a full window, because the peer may receive in any order."""
_PATIENCE: Final = 1.0
"""Seconds to wait for the last lines of a dead child."""
_MOST_OF_A_LINE: Final = 500
_LEVELS: Final = {
    "[warning]": logging.INFO,
    "[error]": logging.WARNING,
    "[critical]": logging.WARNING,
    "terminate called": logging.WARNING,
    "what():": logging.WARNING,
}
"""Log levels for libpsi's lines, by a text in them; otherwise `logging.DEBUG`."""


class PsiRelay:
    """One intersection at one party."""

    def __init__(self, communicator: Communicator, peer: str) -> None:
        """Args:
        communicator: a communicator in a namespace of this intersection only, the same at both.
        peer: the name of the other party.
        """
        self._communicator = communicator
        self._messages = communicator.sub(_MESSAGES)
        self._peer = peer
        self._me = communicator.party
        self._log = PartyLogger(communicator.session, self._me, LOGGER)
        self._line, self._childs_end = socket.socketpair()
        self._write_lock = threading.Lock()
        self._throttle_lock = threading.Lock()
        self._window = 0
        self._untaken: list[Request] = []
        self._found: list[int] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()
        """Set once the child has a result, or something went wrong."""
        self._peer_ended = threading.Event()
        self._log_ended = threading.Event()
        self._last_line = ""
        dies_in_child(self)

    def die_in_child(self) -> None:
        """Close the socket: libpsi's process lives for as long as anybody holds it open."""
        for line in (self._line, self._childs_end):
            let_go(line.fileno())

    def run(self, rank: int, protocol: str, digests: bytes) -> list[int]:
        """Intersect with the peer, which makes the same call.

        Args:
            rank: this party's rank among the two, 0 or 1.
            protocol: KKRT, RR22 or ECDH.
            digests: one or more different digests of keys, `psi_child.DIGEST_BYTES` each.

        Returns:
            The positions, from 0, of those that the peer also has, in any order. When either party
            returns, both have a result.

        Raises:
            IntersectionFailed: libpsi failed here, or its process was killed or could not be
                started.
            PeerError, BrokerError, EndpointClosed: as for a receive.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._line.close)
            pool = stack.enter_context(ThreadPoolExecutor(_MOST_THREADS, THREADS))
            stack.callback(self._communicator.close)  # ends its receives
            child = self._start(stack, rank, protocol)
            stack.callback(self._ended.set)
            pool.submit(self._do, self._watch_peer)
            pool.submit(self._do, self._keep_log, child)
            pool.submit(self._do, self._serve, child, pool)
            self._write(PsiFrameKind.START, 0, digests)
            self._ended.wait()
            if self._error is None:
                self._communicator.send(self._peer, _END, b"")
                self._peer_ended.wait()
            if self._error is not None:
                raise self._error
        return self._found

    # -- threads -----------------------------------------------------------------------------

    def _do(self, work: Callable[..., None], *arguments: object) -> None:
        """Run work in the pool. The first exception in any of its threads ends the wait."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised by run()
            if self._error is None:
                self._error = error
            self._ended.set()

    def _watch_peer(self) -> None:
        """Wait until the peer is done. The end of the session shows here in any case."""
        try:
            while True:
                try:
                    self._communicator.recv(self._peer, _END)
                    return
                except RecvTimeout:
                    if self._ended.is_set():
                        raise
        finally:
            self._peer_ended.set()

    def _keep_log(self, child: subprocess.Popen[bytes]) -> None:
        lines: IO[bytes] | None = child.stdout
        assert lines is not None  # noqa: S101 - for mypy: it is a pipe
        try:
            for raw in lines:
                line = one_line(raw.decode(errors="replace"), _MOST_OF_A_LINE)
                if not line:
                    continue
                self._last_line = line
                levels = (level for sign, level in _LEVELS.items() if sign in line)
                self._log.log(next(levels, logging.DEBUG), "%s", line)
        finally:
            lines.close()
            self._log_ended.set()

    def _serve(self, child: subprocess.Popen[bytes], pool: ThreadPoolExecutor) -> None:
        while True:
            try:
                kind, number, name, body = read_frame(self._line)
            except (EOFError, OSError):
                raise IntersectionFailed(self._me, self._last_words(child)) from None
            key = name.decode()
            match kind:
                case PsiFrameKind.SEND:
                    self._messages.send(self._peer, key, body)
                case PsiFrameKind.SEND_THROTTLED:
                    pool.submit(self._do, self._send_throttled, number, key, body)
                case PsiFrameKind.RECV:
                    pool.submit(self._do, self._recv, number, key, body)
                case PsiFrameKind.WINDOW:
                    self._window = number
                case PsiFrameKind.FOUND:
                    self._found = np.frombuffer(body, np.int64).tolist()
                    self._ended.set()
                    return
                case _:
                    said = body.decode(errors="replace")
                    raise IntersectionFailed(self._me, one_line(said, _MOST_OF_A_LINE))

    def _recv(self, number: int, key: str, limit: bytes) -> None:
        (milliseconds,) = struct.unpack("<Q", limit)
        body = self._messages.recv(self._peer, key, milliseconds / 1000 if milliseconds else None)
        self._write(PsiFrameKind.REPLY, number, body)

    def _send_throttled(self, number: int, key: str, body: bytes) -> None:
        with self._throttle_lock:
            while self._window and not self._ended.is_set():
                self._untaken = [request for request in self._untaken if not request.test()]
                if len(self._untaken) < self._window:
                    break
                with contextlib.suppress(SendTimeout):
                    self._untaken[0].wait(_LOOK)
            self._untaken.append(self._messages.send(self._peer, key, body))
        self._write(PsiFrameKind.REPLY, number)

    def _write(self, kind: PsiFrameKind, number: int, body: bytes = b"") -> None:
        with contextlib.suppress(OSError), self._write_lock:  # _serve sees that it is dead
            write_frame(self._line, kind, number, b"", body)

    # -- the child ---------------------------------------------------------------------------

    def _start(
        self, stack: contextlib.ExitStack, rank: int, protocol: str
    ) -> subprocess.Popen[bytes]:
        """Start the child in its own directory; ``stack`` ends and removes both."""
        try:
            with self._childs_end:
                child = self._spawn(stack.enter_context(scratch()), rank, protocol)
        except OSError as error:
            raise IntersectionFailed(self._me, f"which could not be started: {error}") from error
        stack.callback(_kill, child)
        return child

    def _spawn(self, made: Scratch, rank: int, protocol: str) -> subprocess.Popen[bytes]:
        descriptor = self._childs_end.fileno()
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", psi_child.__file__),  # nobody else's code
                *(str(descriptor), str(rank), protocol, str(Path(spu.__file__).parent)),
            ],
            cwd=made.path,
            # Our settings may hold passwords.
            env={n: v for n, v in os.environ.items() if not n.startswith("REDISLINK_")}
            | {"TMPDIR": "."},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(descriptor, made.descriptor),
            umask=0o077,
            # Ctrl-C at the terminal is for the party; and the processes of libpsi end with it.
            process_group=0,
        )

    def _last_words(self, child: subprocess.Popen[bytes]) -> str:
        code = child.wait()
        self._log_ended.wait(_PATIENCE)
        how = f"it ended with code {code}" if code >= 0 else f"ended by {_signal_name(-code)}"
        return f"{how}; its last line: {self._last_line or 'none'}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
