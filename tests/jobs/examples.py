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


POLICY = """\
rules:
  # The training of the night.
  - name: nightly training
    driver: coordinator
    program: lr-train
    arguments:
      type: object
      properties: {epochs: {type: integer, minimum: 1, maximum: 100}}
      additionalProperties: false
    data: [patients]
    window: {days: [mon, tue], from: "20:00", to: "06:00", zone: Europe/Berlin}
    results: {to_driver: [weights]}
    limits: {wall: 2h, cpu: 4h, memory: 8GiB, disk: 10GiB}
    action: accept
    logs: to_driver
data: {patients: data/patients.csv}
limits: {jobs: 2, disk: 50GiB}
longest_offer: 7d
"""
"""With its lines counted in the tests."""
