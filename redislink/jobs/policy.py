"""The policy of one organisation: which offers it accepts, asks a person about, or refuses.

Rules:
- The first rule that matches decides; if none does, the offer is refused.
- A decision depends on the policy, the offer, the time and what this agent holds of the program.
  What the driver says about the program decides nothing.
- Whatever goes wrong while deciding refuses the offer.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Action(enum.StrEnum):
    """What becomes of an offer."""

    ACCEPT = "accept"
    ASK = "ask"
    """A person at the agent's machine decides."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may use; None: as much as there is.

    Attributes:
        wall: seconds from its start to its end.
        cpu: seconds of CPU of all its processes together.
        memory: bytes.
        disk: bytes in its work directory.
    """

    wall: float | None = None
    cpu: float | None = None
    memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What all jobs of an agent may use together; None: as much as there is.

    Attributes:
        jobs: jobs that run at the same time.
        disk: bytes in all work directories.
    """

    jobs: int | None = None
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about an offer.

    Attributes:
        action: accept, ask or refuse.
        rule: name of the rule that decided; empty if none did.
        reason: one line for the driver, which may see it.
        limits: what the job may use here.
        results: names of results that may go to the driver.
        logs: whether the job's log may go to the driver.
        details: one line for each rule that did not match, for people at this agent only.
    """

    action: Action
    rule: str
    reason: str
    limits: JobLimits = JobLimits()
    results: tuple[str, ...] = ()
    logs: bool = False
    details: tuple[str, ...] = ()
