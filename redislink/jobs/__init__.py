"""Jobs: what a driver offers, what each organisation's policy decides, and what is then run.

A driver's program uses `Client`.

Rules: an offer, its arguments and an attached program were made by somebody else. They are data:
bounded, checked field by field, shown with their control characters escaped, and never unpickled.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from redislink.jobs.client import Client, Job
    from redislink.jobs.offer import Offer
    from redislink.jobs.program import Program
    from redislink.jobs.spec import JobSpec
    from redislink.jobs.status import State, Status, Whole

_HOMES: Final = MappingProxyType(
    {
        "Client": "client",
        "Job": "client",
        "JobSpec": "spec",
        "Offer": "offer",
        "Program": "program",
        "State": "status",
        "Status": "status",
        "Whole": "status",
    }
)

__all__ = ["Client", "Job", "JobSpec", "Offer", "Program", "State", "Status", "Whole"]


def __getattr__(name: str) -> Any:
    """Import what a program asks for; an agent and its jobs need less."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
