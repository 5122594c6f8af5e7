"""What a run tells the process that started it and watches it, and is told by it.

``redislink agent`` runs each job in a child process, ``redislink run``, and holds the other end of
a pair of connected sockets. What comes over it came from a program, so the agent trusts none of it.

Rules:
- A run never waits for its supervisor: a message that the socket does not take at once is dropped.
  A step that lasts is told again, so what was dropped is made up for.
- A message is one JSON object. It holds calls, names and shapes, never a value, as a log line does.
- How a run has ended is also written to a file, because the supervisor may end at that moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redislink.errors import RedisLinkError, may_pass, reason_for_peers
from redislink.files import replacing
from redislink.text import one_line

MOST_BYTES: Final = 8192
"""Bytes of a message; the texts of a longer one are cut."""
_MOST_TEXT: Final = 1000
_BUFFER_BYTES: Final = 32 * MOST_BYTES
_PAUSE: Final = 0.25
"""Seconds between two messages about steps."""


@dataclass(frozen=True, slots=True)
class Asked:
    """That the supervisor wants the run to end.

    Attributes:
        reason: one line, which the peers are told.
        retryable: whether the run goes on later.
    """

    reason: str
    retryable: bool


def make_line() -> tuple[socket.socket, socket.socket]:
    """The pair of connected sockets: the supervisor's end, and the one that the run inherits."""
    try:
        line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (OSError, AttributeError):  # macOS has none
        line = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in line:
            # Its own limit of a datagram, 2 KiB, follows the size of the buffer.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    line[0].settimeout(0)
    return line


class Supervisor:
    """A run's end of the pair of sockets."""

    def __init__(self, descriptor: int, ended: Path | None = None) -> None:
        """Args:
        descriptor: one end of `make_line`, which this process has inherited.
        ended: the file to write when the run has ended.
        """
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(0)
        os.set_inheritable(descriptor, True)  # for the next attempt of --retries
        self._ended = ended
        self._process = os.getpid()
        self._quiet_until = 0.0

    def tell_missing(self, parties: Sequence[str], seconds: float) -> None:
        """This run waits for parties to join."""
        self._tell(kind="joining", waits_for=list(parties), seconds=round(seconds, 1))

    def tell_joined(self) -> None:
        """All parties have met."""
        self._tell(kind="joined")

    def tell_step(
        self,
        chain: str,
        number: int,
        text: str,
        seconds: float = 0.0,
        waits_for: Sequence[str] = (),
    ) -> bool:
        """This run is in a step. Those that follow each other too fast are left out.

        Args:
            chain: the name of the chain of steps; "" for the session's own.
            number: the number of the step, from 1.
            text: the call.
            seconds: how long it has lasted.
            waits_for: the parties that it waits for, and what is known of each.

        Returns:
            Whether it was told.
        """
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _PAUSE
        return self._tell(
            kind="step",
            chain=chain,
            number=number,
            text=text,
            seconds=round(seconds, 1),
            waits_for=list(waits_for),
        )

    def tell_attempt(self, number: int, error: BaseException) -> None:
        """Another attempt of ``--retries`` begins, because the last one ended with ``error``."""
        self._tell(kind="attempt", number=number, why=_home_text(error))

    def tell_end(self, code: int, error: BaseException | None) -> None:
        """The run has ended.

        Args:
            code: the exit code that follows.
            error: why; None if it has ended well.
        """
        if os.getpid() != self._process:  # a child that the program forked
            return
        end: dict[str, Any] = {"kind": "end", "code": code}
        if error is not None:
            end["why"] = _home_text(error)
            end["told"] = one_line(reason_for_peers(error), _MOST_TEXT)
            end["peer"] = getattr(error, "peer", None)
            end["retryable"] = may_pass(error)
        if self._ended is not None:
            with contextlib.suppress(OSError), replacing(self._ended) as file:
                file.write(json.dumps(end))
        self._tell(**end)

    def asked_to_end(self) -> Asked | None:
        """What the supervisor said before it sent SIGTERM; None if it said nothing."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(self._socket.recv(MOST_BYTES))
            return Asked(one_line(str(told["end"]), _MOST_TEXT), bool(told["retryable"]))
        return None

    def _tell(self, **fields: Any) -> bool:
        if os.getpid() != self._process:  # a child that the program forked
            return False
        message = _encode(fields)
        if len(message) > MOST_BYTES:
            message = _encode({name: _cut(value) for name, value in fields.items()})
        with contextlib.suppress(OSError):  # it is gone, or does not read
            return self._socket.send(message) == len(message)
        return False


def _encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace")


def _cut(value: Any) -> Any:
    match value:
        case str():
            return one_line(value, 200)
        case list():
            return [one_line(str(each), 100) for each in value[:5]]
    return value


def _home_text(error: BaseException) -> str:
    """What this party itself may read: only errors of ours are free of values."""
    text = str(error) if isinstance(error, RedisLinkError) else type(error).__name__
    return one_line(text or type(error).__name__, _MOST_TEXT)


here: Supervisor | None = None
"""This process's; None if nobody supervises it."""
