"""Examples that the tests of jobs share."""

from __future__ import annotations

from typing import Any

from redislink.jobs.offer import Offer
from redislink.jobs.program import Program

NOW = 1_790_000_000
"""A Monday, 14:13:20 UTC."""


def an_offer(**fields: Any) -> Offer:
    """A valid offer with some fields of one's own."""
    usual = {
        "job": "j0123456789ab",
        "driver": "coordinator",
        "issued": NOW,
        "expires": NOW + 3600,
        "program": "sha256:" + "ab" * 32,
        "program_name": "lr-train",
        "parties": ("alice", "bob"),
        "arguments": {"epochs": 3},
        "data": {"alice": ("patients",)},
        "devices": ("spu",),
        "results": ("weights",),
    }
    return Offer(**(usual | fields))


def a_program(files: dict[str, bytes]) -> Program:
    """A program with these files."""
    return Program(tuple(sorted(files.items())))
