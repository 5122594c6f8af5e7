"""`TraceRecorder`: records when this party's sends, receives and steps began and ended.

Rules:
- While it is off it costs nothing: only a traced endpoint gets a `Sending` and a `Receiving` that
  record (`TraceRecorder.ways`), through which all its messages go.
- In the caller's thread a call costs two readings of the clock and one append. A thread of the
  recorder writes twice a second, so a run that is killed leaves its trace too.
- Memory and disk are bounded. At the limit the recording ends, and the file says so: it keeps the
  first calls, because messages are matched by their number within a tag.
- A disk failure ends the recording, never the run.

The file has one JSON value per line: first an object that describes the party; then arrays with
the `FIELDS` of one call after the other, and an object for each thread; and last an object that
says how it ended. Perfetto cannot read it: writing its format would cost five times as much.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

from redislink.errors import ConfigError
from redislink.files import open_in_place_of
from redislink.forking import dies_in_child, let_go
from redislink.logs import PartyLogger
from redislink.protocol.frame import BytesLike, Encoding
from redislink.transport.core import Core
from redislink.transport.endpoint import Endpoint
from redislink.transport.peer import Party
from redislink.transport.receiving import Message, Receiving
from redislink.transport.sending import Sending

FORMAT: Final = 2
"""1 had no steps."""
SUFFIX: Final = ".trace.jsonl"
FIELDS: Final = 8
"""Kind, began and ended (monotonic ns), thread, peer (name or rank), tag, bytes, and: the number
of the message that was sent (0 of one received), or the name of the error. A step has what it was
in place of the tag, and "" as its peer."""
SEND: Final = 0
WAIT: Final = 1
STEP: Final = 2
_WRITE_INTERVAL: Final = 0.5
_MOST_PENDING: Final = 100_000
"""The most calls that may wait to be written."""
_CALLS_PER_LINE: Final = 500
"""The interpreter is held while a line is made: for half a millisecond."""
_LONGEST_WRITE: Final = 5.0


class TraceRecorder:
    """The trace file of one endpoint. Call `attach` once, then `close`."""

    def __init__(self, directory: Path, session: str, party: str, limit: int) -> None:
        """Make the file, which replaces that of an earlier run and only its owner can read.

        Args:
            directory: where to make SESSION.PARTY.trace.jsonl; it is made with mode 0700 if it
                does not exist.
            session: the name of the session.
            party: the name of this party.
            limit: the most calls to record.

        Raises:
            ConfigError: the file cannot be made.
        """
        self.path = directory / f"{session}.{party}{SUFFIX}"
        self._session = session
        self._party = party
        self._limit = limit
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file: TextIO = open_in_place_of(self.path)
        except OSError as error:
            raise ConfigError(
                f"{party}: cannot write the trace {self.path} ({error.strerror}): set "
                "REDISLINK_TRACE_DIR to a directory that can be written"
            ) from None
        self._log = PartyLogger(session, party)
        self._calls: list[int | str] = []  # flat, because garbage collection visits every tuple
        self._threads: dict[int, str] = {}
        self._new_threads: list[int] = []
        self._written = 0
        self._cut_at: int | None = None
        self.is_on = False
        """Whether calls are recorded."""
        self._stop = threading.Event()
        self._writer: threading.Thread | None = None
        self._is_parents = False
        dies_in_child(self)

    def ways(self, core: Core) -> tuple[Sending, Receiving]:
        """The objects that send and receive for an endpoint, and record it."""
        return TracedSending(core, self), TracedReceiving(core, self)

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:
        """Record every message of an endpoint from now on.

        Args:
            endpoint: an endpoint made with `ways`.
            epochs: for each peer, the epoch that tells this run from others, the same at both.
        """
        described = {
            "redislink_trace": FORMAT,
            "session": self._session,
            "party": self._party,
            "parties": list(endpoint.cluster.party_names),
            "epochs": dict(epochs),
            "monotonic_ns": time.monotonic_ns(),
            "wall_ns": time.time_ns(),
        }
        self.is_on = True
        endpoint.note_step = self.add_step
        self._writer = threading.Thread(
            target=self._run, args=(described,), name=f"redislink-trace-{self._party}", daemon=True
        )
        self._writer.start()

    def close(self) -> None:
        """Write the rest and the end; without `attach`, remove the file."""
        if self._is_parents:
            return
        if self._writer is None:
            self._file.close()
            self.path.unlink(missing_ok=True)
            return
        self.is_on = False
        self._stop.set()
        self._writer.join(_LONGEST_WRITE)
        if self._writer.is_alive():
            self._log.warning("%s: the trace %s is incomplete", self._party, self.path)

    def die_in_child(self) -> None:
        """In the child of a fork: the parent writes what is not written yet."""
        self.is_on = False
        self._calls.clear()
        self._stop = threading.Event()
        self._is_parents = True
        if not self._file.closed:
            let_go(self._file.fileno())

    # -- in the caller's thread --------------------------------------------------------------

    def add(self, call: tuple[int | str, ...]) -> None:
        """Record one call, given by its `FIELDS`."""
        self._calls.extend(call)
        if len(self._calls) > _MOST_PENDING * FIELDS:
            self._cut()

    def add_step(self, what: str, began: int, ended: int) -> None:
        """Record a step of the session; see `redislink.transport.observer.NoteStep`."""
        if self.is_on:
            thread = self.meet_thread(threading.get_ident())
            self.add((STEP, began, ended, thread, "", what, 0, 0))

    def meet_thread(self, ident: int) -> int:
        """Record the name of a thread, once, because the thread may end before the writer runs."""
        if ident not in self._threads:
            named = (thread.name for thread in threading.enumerate() if thread.ident == ident)
            self._threads[ident] = next(named, f"thread {len(self._threads) + 1}")
            self._new_threads.append(ident)
        return ident

    def _cut(self) -> None:
        if self._cut_at is None:
            self._cut_at = time.monotonic_ns()
            self.is_on = False
            self._log.warning(
                "%s: the trace %s ends here, after about %d calls: allow more of them "
                "(REDISLINK_TRACE_LIMIT)",
                self._party,
                self.path,
                self._written + len(self._calls) // FIELDS,
            )

    # -- in the writer's ---------------------------------------------------------------------

    def _run(self, described: dict[str, object]) -> None:
        try:
            with self._file:
                self._put(described)
                while not self._stop.wait(_WRITE_INTERVAL):
                    self._write()
                self._write()
                self._put({"calls": self._written, "cut_ns": self._cut_at})
        except OSError as error:
            self.is_on = False
            self._log.warning(
                "%s: the trace %s ends here, because it cannot be written (%s): check the disk",
                self._party,
                self.path,
                error.strerror,
            )

    def _write(self) -> None:
        pending = len(self._calls)
        most = (self._limit - self._written) * FIELDS
        if pending > most:
            self._cut()
        while self._new_threads:
            ident = self._new_threads.pop(0)
            self._put({"thread": ident, "name": self._threads[ident]})
        step = _CALLS_PER_LINE * FIELDS
        for first in range(0, min(pending, most), step):
            self._put(self._calls[first : min(first + step, pending, most)])
        del self._calls[:pending]
        self._written += min(pending, most) // FIELDS
        self._file.flush()

    def _put(self, value: object) -> None:
        self._file.write(json.dumps(value, default=str) + "\n")


class TracedSending(Sending):
    """Records each call of `post`."""

    def __init__(self, core: Core, recorder: TraceRecorder | None) -> None:
        super().__init__(core)
        self._recorder = recorder

    def post(self, dst: Party, tag: str, data: BytesLike, encoding: Encoding = Encoding.RAW) -> int:
        recorder = self._recorder
        if recorder is None or not recorder.is_on:
            return super().post(dst, tag, data, encoding)
        began = time.monotonic_ns()
        try:
            number = super().post(dst, tag, data, encoding)
        except BaseException as error:
            ended, thread = time.monotonic_ns(), recorder.meet_thread(threading.get_ident())
            recorder.add((SEND, began, ended, thread, dst, tag, 0, _name(error)))
            raise
        ended, thread = time.monotonic_ns(), recorder.meet_thread(threading.get_ident())
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        recorder.add((SEND, began, ended, thread, dst, tag, size, number))
        return number


class TracedReceiving(Receiving):
    """Records each call of `recv`."""

    def __init__(self, core: Core, recorder: TraceRecorder | None) -> None:
        super().__init__(core)
        self._recorder = recorder

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Message:
        recorder = self._recorder
        if recorder is None or not recorder.is_on:
            return super().recv(src, tag, timeout)
        began = time.monotonic_ns()
        try:
            message = super().recv(src, tag, timeout)
        except BaseException as error:
            ended, thread = time.monotonic_ns(), recorder.meet_thread(threading.get_ident())
            recorder.add((WAIT, began, ended, thread, src, tag, 0, _name(error)))
            raise
        ended, thread = time.monotonic_ns(), recorder.meet_thread(threading.get_ident())
        recorder.add((WAIT, began, ended, thread, src, tag, len(message[0]), 0))
        return message


def _name(error: BaseException) -> str:
    return type(error).__name__
