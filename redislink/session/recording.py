"""What a session writes into its party's audit record.

Rules:
- A line about a step is written when the step begins, before anything of it leaves this party; a
  reveal and an intersection are on disk by then.
- Calls, names, shapes, digests and counts are written. No value is, nor the text of an error, which
  may quote one. Keys of dicts are data of the program and are left out too.
- A record that cannot be written ends the session.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from redislink.audit import AuditLog
from redislink.audit.records import (
    BeginSaid,
    EndSaid,
    How,
    Participant,
    PsiSaid,
    RevealSaid,
    Said,
    Script,
    StepSaid,
    Traffic,
)
from redislink.cluster import ClusterSpec
from redislink.errors import AuditError, RedisLinkError, UsageError
from redislink.files import open_regular
from redislink.forking import dies_in_child
from redislink.identity import fingerprint
from redislink.identity.keypair import parse_public_key
from redislink.text import one_line
from redislink.transport.stats import EndpointStats

_MOST_NAME: Final = 80
_MOST_SCRIPT: Final = 64 << 20
"""Bytes of a file whose digest is taken."""
_TRAFFIC: Final = tuple(Traffic.model_fields)


class SessionAudit:
    """Writes about one run of a session. Its record is closed with the end of the run."""

    def __init__(
        self, log: AuditLog, cluster: ClusterSpec, epochs: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        log: the record; `end` closes it.
        cluster: the contents of the cluster file.
        epochs: see `BeginSaid`.
        """
        self._log = log
        self._lines_before = log.lines
        self._cluster = cluster
        self._epochs = dict(epochs or {})
        self._began = time.monotonic()
        self._steps = 0
        self._took: dict[str, float] = {}
        self._stats: Callable[[], EndpointStats] | None = None
        self._how: How | None = None
        self._error: str | None = None
        self._by: str | None = None
        self._ended = False
        _open.add(self)
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork nothing is written."""
        self._ended = True
        _open.discard(self)

    def begin(
        self, resumed_after: int | None, versions: str, stats: Callable[[], EndpointStats]
    ) -> None:
        """All parties have met.

        Args:
            resumed_after: see `BeginSaid`.
            versions: of what computes, as text.
            stats: gives this party's counts.

        Raises:
            AuditError: it cannot be written.
        """
        cluster = self._cluster
        self._stats = stats
        self._log.append(
            BeginSaid(
                session=cluster.session,
                party=self._log.party,
                parties=[
                    Participant(
                        name=party.name,
                        fingerprint=party.public_key
                        and fingerprint(parse_public_key(party.public_key)),
                        signing_key=party.signing_key,
                    )
                    for party in cluster.parties
                ],
                cluster=cluster.digest().hex(),
                security=cluster.security,
                versions=versions,
                script=_script(),
                epochs=self._epochs,
                resumed_after=resumed_after,
            ),
            durable=True,
        )

    def step(
        self,
        chain: str,
        number: int,
        text: str,
        digest: bytes,
        parts: Sequence[tuple[str, bytes]],
        *,
        from_journal: bool,
    ) -> None:
        """A step begins.

        Args:
            chain, number, text, from_journal: see `StepSaid`.
            digest: that of the chain.
            parts: the label of each part and the first bytes of its digest.

        Raises:
            AuditError: it cannot be written.
        """
        if not chain:
            self._steps = number
        self._write(
            StepSaid(
                chain=chain,
                number=number,
                text=text,
                digest=digest.hex(),
                parts=[(label.partition("[")[0], short.hex()) for label, short in parts],
                previous_seconds=self._took.get(chain),
                from_journal=from_journal,
            ),
            durable=False,
        )

    def stepped(self, chain: str, seconds: float) -> None:
        """A step has ended, in good order or not; the next line of its chain says so."""
        self._took[chain] = round(seconds, 6)

    def reveal(
        self,
        chain: str,
        number: int,
        device: str,
        receivers: Sequence[str],
        shapes: Sequence[tuple[tuple[int, ...], Any]],
        *,
        from_journal: bool,
    ) -> None:
        """The step that has begun is a reveal.

        Args:
            chain, number, device, receivers, from_journal: see `RevealSaid`.
            shapes: shape and dtype of each value.

        Raises:
            AuditError: it cannot be written.
        """
        self._write(
            RevealSaid(
                chain=chain,
                number=number,
                device=device,
                receivers=list(receivers),
                shapes=[list(shape) for shape, _ in shapes],
                dtypes=[dtype.name for _, dtype in shapes],
                from_journal=from_journal,
            ),
            durable=not from_journal,
        )

    def psi(
        self,
        chain: str,
        number: int,
        protocol: str,
        parties: Sequence[str],
        *,
        from_journal: bool,
    ) -> None:
        """The step that has begun is an intersection; raises what `reveal` raises.

        Args:
            chain, number, protocol, parties, from_journal: see `PsiSaid`.
        """
        self._write(
            PsiSaid(
                chain=chain,
                number=number,
                protocol=protocol,
                parties=list(parties),
                from_journal=from_journal,
            ),
            durable=not from_journal,
        )

    def _write(self, said: Said, *, durable: bool) -> None:
        try:
            self._log.append(said, durable=durable)
        except AuditError:
            if not self._ended:  # else nothing of it leaves this party any more
                raise

    def blame(self, error: BaseException | None) -> None:
        """Note why the session ends; what was noted first counts.

        Args:
            error: the error that ends it; None if it is aborted without one.
        """
        if self._how is not None:
            return
        is_ours = isinstance(error, RedisLinkError) and not isinstance(error, UsageError)
        self._how = "failed" if is_ours else "aborted"
        self._error = None if error is None else one_line(type(error).__name__, _MOST_NAME)
        self._by = getattr(error, "peer", None) if isinstance(error, RedisLinkError) else None

    def end(self, how: How) -> None:
        """Write the last line, unless the run has not begun or has ended; close the record.

        Args:
            how: see `EndSaid`; what `blame` was told takes precedence.

        Raises:
            AuditError: it cannot be written.
        """
        try:
            _open.remove(self)  # one of the threads that end a session comes first
        except KeyError:
            return
        self._ended = True
        try:
            if self._log.lines == self._lines_before:
                return
            peers = {} if self._stats is None else self._stats().peers
            said = EndSaid(
                how=self._how or how,
                error=self._error,
                by=self._by,
                seconds=round(time.monotonic() - self._began, 6),
                steps=self._steps,
                previous_seconds=self._took.get(""),
                peers={
                    name: Traffic(**{count: getattr(peer, count) for count in _TRAFFIC})
                    for name, peer in peers.items()
                },
            )
            self._log.append(said, durable=True)
        finally:
            self._log.close()


_open: Final[set[SessionAudit]] = set()
"""Those that have not ended, even if the program has forgotten their sessions."""


@atexit.register
def _end_at_exit() -> None:
    for audit in list(_open):
        with contextlib.suppress(AuditError):  # then it has no end, which can be seen
            audit.end("left")


def _script() -> Script | None:
    """The file that this process runs; None if it runs none."""
    named = sys.argv[0] if sys.argv else ""
    try:
        with open_regular(named) as file:
            content = file.read(_MOST_SCRIPT)
    except (OSError, ValueError):
        return None
    name = one_line(PurePath(named).name, _MOST_NAME)
    return Script(name=name, sha256=hashlib.sha256(content).hexdigest())
