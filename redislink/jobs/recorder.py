"""What an agent writes into its audit record: offers, decisions, starts, and results that leave.

What a job's run does is in a record of its own, which the run writes.

Rule: a record that cannot be written ends the agent: nothing happens that nobody can look up later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from redislink.audit import AuditLog
from redislink.audit.records import DecisionSaid, OfferSaid, ResultSaid, StartSaid
from redislink.files import open_regular
from redislink.jobs.offer import Offer, job_session

_MOST_DATA: Final = 1 << 30
"""Bytes of a data set whose digest is taken; a larger one would hold up the agent's other jobs."""
_PART: Final = 1 << 20

Decided = Literal["accept", "ask", "refuse", "cancel"]
Decider = Literal["policy", "person", "driver", "peer"]


class Recorder:
    """Writes about the jobs of one agent."""

    def __init__(self, log: AuditLog, session: str) -> None:
        """Args:
        log: the agent's record.
        session: the cluster's session.
        """
        self._log = log
        self._session = session
        self._given: set[tuple[str, str]] = set()

    def offered(self, offer: Offer, *, conflicts: bool = False) -> None:
        """A driver offers a job.

        Args:
            offer: what it offers.
            conflicts: whether another offer with this id was there before.

        Raises:
            AuditError: it cannot be written.
        """
        said = OfferSaid(
            job=offer.job,
            driver=offer.driver,
            issued=offer.issued,
            expires=offer.expires,
            program=offer.program,
            program_name=offer.program_name,
            attached=offer.source is not None,
            arguments=arguments_digest(offer),
            data={party: list(names) for party, names in offer.data.items()},
            parties=list(offer.parties),
            devices=list(offer.devices),
            results=list(offer.results),
            conflicts=conflicts,
        )
        self._log.append(said, durable=True)

    def decided(
        self,
        job: str,
        action: Decided,
        by: Decider,
        *,
        rule: str = "",
        who: str = "",
        reason: str = "",
    ) -> None:
        """Something is decided about a job; see `DecisionSaid`.

        Raises:
            AuditError: it cannot be written.
        """
        said = DecisionSaid(job=job, action=action, by=by, rule=rule, who=who, reason=reason)
        self._log.append(said, durable=True)

    def starts(
        self, offer: Offer, program_name: str, data: Mapping[str, Path], attempt: int
    ) -> None:
        """A job is about to start.

        Args:
            offer: the job.
            program_name: what this organisation calls the program.
            data: the path of each of its data sets.
            attempt: from 1.

        Raises:
            AuditError: it cannot be written.
        """
        said = StartSaid(
            job=offer.job,
            session=job_session(self._session, offer.job),
            program=offer.program,
            program_name=program_name,
            arguments=arguments_digest(offer),
            data={name: _file_digest(path) for name, path in data.items()},
            parties=list(offer.parties),
            devices=list(offer.devices),
            attempt=attempt,
        )
        self._log.append(said, durable=True)

    def given(self, job: str, name: str, receiver: str, size: int) -> None:
        """A result leaves this organisation; said once, however often it is fetched.

        Raises:
            AuditError: it cannot be written.
        """
        if (job, name) not in self._given:
            self._given.add((job, name))
            said = ResultSaid(job=job, name=name, receiver=receiver, bytes=size)
            self._log.append(said, durable=True)


def arguments_digest(offer: Offer) -> str:
    """``sha256:…`` of the arguments, the same at every party."""
    text = json.dumps(offer.arguments, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _file_digest(path: Path) -> str | None:
    with contextlib.suppress(OSError), open_regular(path) as file:
        if file.seek(0, 2) <= _MOST_DATA:
            file.seek(0)
            digest = hashlib.sha256()
            while part := file.read(_PART):
                digest.update(part)
            return f"sha256:{digest.hexdigest()}"
    return None
