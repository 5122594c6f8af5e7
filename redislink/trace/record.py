"""`TraceRecorder`: writes when this party's sends and receives began and ended.

Rules:
- While it is off nothing of it is there: it puts its own ``send`` and ``recv_marked`` on the one
  endpoint that it is attached to, and takes them away at the end.
- In the caller's thread a call costs two readings of the clock and one append. A thread of the
  recorder makes lines of them, twice a second, so that a run that is killed leaves its trace too.
- Memory and disk are bounded. What goes over ends the recording, and the file says so: the
  first calls are kept, as messages are matched by their number within a tag.
- A disk that fails ends the recording, never the run.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from redislink.errors import ConfigError
from redislink.protocol.frame import BytesLike, Encoding

if TYPE_CHECKING:
    from redislink.endpoint import Endpoint, Party, SendHandle

FORMAT: Final = 1
HEAD: Final = "redislink"
"""Name of the metadata event that describes the file."""
END: Final = "redislink_end"
"""Name of the metadata event that ends it."""
_WRITE_INTERVAL: Final = 0.5
_MOST_PENDING: Final = 100_000
"""Calls that may wait to be written."""
_LONGEST_WRITE: Final = 5.0
_SEND: Final = "send"
_WAIT: Final = "wait"
_Call = tuple[str, int, int, int, "str | int", str, int, int, str]
"""Kind, began and ended (monotonic ns), thread, peer, tag, bytes, number of the message, error."""


class TraceRecorder:
    """One endpoint's trace file. `attach` once, then `close`."""

    def __init__(self, directory: Path, session: str, party: str, limit: int) -> None:
        """Make the file, in place of one of an earlier run.

        Args:
            directory: made if it is not there; the file is SESSION.PARTY.trace.json.
            limit: calls after which it ends.

        Raises:
            ConfigError: the file cannot be made.
        """
        self.path = directory / f"{session}.{party}.trace.json"
        self._session = session
        self._party = party
        self._limit = limit
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self.path.open("w", encoding="ascii")
        except OSError as error:
            raise ConfigError(
                f"{party}: cannot write the trace {self.path} ({error.strerror}): name a "
                "directory that can be written (REDISLINK_TRACE_DIR)"
            ) from None
        self._log = logging.getLogger("redislink")
        self._calls: list[_Call] = []
        self._threads: dict[int, int] = {}
        self._thread_numbers = itertools.count(1)
        self._unnamed: list[tuple[int, str]] = []
        self._written = 0
        self._cut_at: int | None = None
        self._endpoint: Endpoint | None = None
        self._stop = threading.Event()
        self._writer: threading.Thread | None = None

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:
        """Record every `send`, `recv` and `recv_marked` of this endpoint from now on.

        Args:
            epochs: what tells this run with each peer from others, the same at both.
        """
        self._endpoint = endpoint
        self._rank = endpoint.rank
        self._names = endpoint.cluster.party_names
        self._began = time.monotonic_ns()
        described = {
            "format": FORMAT,
            "session": self._session,
            "party": self._party,
            "rank": self._rank,
            "epochs": dict(epochs),
            "monotonic_ns": self._began,
            "wall_ns": time.time_ns(),
        }
        self._put_on(endpoint)
        self._writer = threading.Thread(
            target=self._run, args=(described,), name=f"redislink-trace-{self._party}", daemon=True
        )
        self._writer.start()

    def close(self) -> None:
        """Write what is left, and the end; without `attach`, remove the file."""
        if self._writer is None:
            self._file.close()
            self.path.unlink(missing_ok=True)
            return
        self._take_off()
        self._stop.set()
        self._writer.join(_LONGEST_WRITE)
        if self._writer.is_alive():
            self._log.warning("%s: the trace %s is not written whole", self._party, self.path)

    # -- in the caller's thread --------------------------------------------------------------

    def _put_on(self, endpoint: Endpoint) -> None:
        """In place of the class's methods, on this instance alone."""
        send, recv_marked = endpoint.send, endpoint.recv_marked
        now, ident = time.monotonic_ns, threading.get_ident
        calls, threads, meet_thread = self._calls, self._threads, self._meet_thread
        add = calls.append

        def traced_send(
            dst: Party, tag: str, data: BytesLike, *, encoding: Encoding = Encoding.RAW
        ) -> SendHandle:
            began = now()
            try:
                handle = send(dst, tag, data, encoding=encoding)
            except BaseException as error:
                add((_SEND, began, now(), meet_thread(ident()), dst, tag, 0, 0, _name(error)))
                raise
            ended, thread = now(), ident()
            if thread not in threads:
                meet_thread(thread)
            size = len(data) if type(data) is bytes else memoryview(data).nbytes
            add((_SEND, began, ended, thread, dst, tag, size, handle._seq, ""))
            if len(calls) > _MOST_PENDING:
                self._cut()
            return handle

        def traced_recv_marked(
            src: Party, tag: str, timeout: float | None = None
        ) -> tuple[bytes, Encoding]:
            began = now()
            try:
                message = recv_marked(src, tag, timeout)
            except BaseException as error:
                add((_WAIT, began, now(), meet_thread(ident()), src, tag, 0, 0, _name(error)))
                raise
            ended, thread = now(), ident()
            if thread not in threads:
                meet_thread(thread)
            add((_WAIT, began, ended, thread, src, tag, len(message[0]), 0, ""))
            if len(calls) > _MOST_PENDING:
                self._cut()
            return message

        vars(endpoint).update(send=traced_send, recv_marked=traced_recv_marked)

    def _take_off(self) -> None:
        if self._endpoint is not None:
            for name in ("send", "recv_marked"):
                vars(self._endpoint).pop(name, None)

    def _meet_thread(self, ident: int) -> int:
        """Give a thread a number and note its name, once; identifiers are too long for Perfetto."""
        if ident not in self._threads:
            named = (thread.name for thread in threading.enumerate() if thread.ident == ident)
            number = self._threads.setdefault(ident, next(self._thread_numbers))
            self._unnamed.append((number, next(named, f"thread {number}")))
        return ident

    def _cut(self) -> None:
        if self._cut_at is None:
            self._cut_at = time.monotonic_ns()
            self._take_off()
            self._log.warning(
                "%s: the trace %s ends here, after about %d calls: allow more of them "
                "(REDISLINK_TRACE_LIMIT)",
                self._party,
                self.path,
                self._written + len(self._calls),
            )

    # -- in the writer's ---------------------------------------------------------------------

    def _run(self, described: dict[str, Any]) -> None:
        try:
            with self._file:
                self._file.write("[\n" + self._metadata("process_name", name=self._party))
                self._file.write(self._metadata("process_sort_index", sort_index=self._rank))
                self._file.write(self._metadata(HEAD, **described))
                while not self._stop.wait(_WRITE_INTERVAL):
                    self._write()
                self._write()
                cut_us = None if self._cut_at is None else (self._cut_at - self._began) / 1000
                last = self._metadata(END, calls=self._written, cut_us=cut_us)
                self._file.write(last.rstrip(",\n") + "\n]\n")
        except OSError as error:
            self._take_off()
            self._log.warning(
                "%s: the trace %s ends here, as it cannot be written (%s): see to the disk",
                self._party,
                self.path,
                error.strerror,
            )

    def _write(self) -> None:
        pending = len(self._calls)
        calls = self._calls[:pending]
        del self._calls[:pending]
        if self._written + len(calls) > self._limit:
            calls = calls[: self._limit - self._written]
            self._cut()
        while self._unnamed:
            number, name = self._unnamed.pop(0)
            self._file.write(self._metadata("thread_name", tid=number, name=name))
        self._file.write("".join(map(self._line, calls)))
        self._file.flush()
        self._written += len(calls)

    def _line(self, call: _Call) -> str:
        kind, began, ended, thread, peer, tag, size, number, error = call
        quoted = json.dumps(tag) if type(tag) is str else '""'
        if type(peer) is int and 0 <= peer < len(self._names):
            peer = self._names[peer]
        failed = f',"error":"{error}"' if error else ""
        return (
            f'{{"ph":"X","cat":"{kind}","name":"{kind} {quoted[1:]},"pid":{self._rank},'
            f'"tid":{self._threads[thread]},"ts":{(began - self._began) / 1000:.3f},'
            f'"dur":{(ended - began) / 1000:.3f},"args":{{"peer":{json.dumps(str(peer))},'
            f'"tag":{quoted},"bytes":{size},"number":{number}{failed}}}}},\n'
        )

    def _metadata(self, event: str, tid: int = 0, **arguments: Any) -> str:
        line = {"ph": "M", "name": event, "pid": self._rank, "tid": tid, "args": arguments}
        return json.dumps(line) + ",\n"


def _name(error: BaseException) -> str:
    return type(error).__name__
