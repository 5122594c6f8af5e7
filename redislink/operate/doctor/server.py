"""Checks of the server and its settings: version, eviction, memory, idle cut-off.

On a Cluster, they check each node that has an inbox of this session.

The users that `redislink acl` makes may see none of this: each check then says so, and is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from redislink.operate.doctor.examination import Examination, Place
from redislink.operate.doctor.finding import (
    Verdict,
    failed,
    joined,
    mebibytes,
    passed,
    unseen,
    warned,
)
from redislink.text import one_line

_OLDEST: Final = (6, 0)
_WITH_RULES_PER_KEY: Final = (7, 0)
_UNTIL_FULL: Final = 1.25
"""Factor for the memory that is needed: docs/broker.md asks for a quarter more."""


def version(exam: Examination) -> Verdict:
    """Check that the server is recent enough.

    Raises: see `Examination.info`.
    """
    return joined([(place.label, _version(exam, place)) for place in exam.places()])


def _version(exam: Examination, place: Place) -> Verdict:
    info = exam.info(place, "server")
    if info is None:
        return unseen("INFO", "Redis 6 or later, or Valkey; for users per party, Redis 7 or Valkey")
    return judge_version(info)


def judge_version(info: Mapping[str, str]) -> Verdict:
    """Judge a server by its reply to ``INFO server``."""
    named = "Valkey" if "valkey_version" in info else "Redis"
    text = one_line(info.get("valkey_version") or info.get("redis_version", ""), 40)
    # A server that is neither, such as a service's own, names the version it is compatible with.
    parts = [int(part) if part.isdecimal() else 0 for part in f"{text}.0".split(".")[:2]]
    found = (parts[0], parts[1])
    if not text:
        return warned(
            "the server does not say its version", "look it up: it needs Redis 6.0 or later"
        )
    if found < _OLDEST:
        return failed(
            f"{named} {text}: its BLPOP does not accept fractions of a second",
            "use Redis 6.0 or later (7.0 for users per party), or Valkey",
        )
    if found < _WITH_RULES_PER_KEY:
        return warned(
            f"{named} {text}: works, but has no permissions per key, so no users per party",
            "use Redis 7.0 or later, or Valkey",
        )
    return passed(f"{named} {text}")


def eviction(exam: Examination) -> Verdict:
    """Check that the server removes no messages on its own.

    Raises: see `Examination.info`.
    """
    return joined([(place.label, _eviction(exam, place)) for place in exam.places()])


def _eviction(exam: Examination, place: Place) -> Verdict:
    policy = (exam.info(place, "memory") or {}).get("maxmemory_policy")
    if policy is None:
        return unseen("INFO", "maxmemory-policy must be noeviction")
    policy = one_line(policy, 40)
    if policy == "noeviction":
        return passed("maxmemory-policy is noeviction")
    return warned(
        f"maxmemory-policy is {policy}: when memory is short, the broker removes messages; the "
        "parties notice and send them again, which costs time",
        "CONFIG SET maxmemory-policy noeviction, in the service's console or the server's "
        "configuration",
    )


def memory(exam: Examination) -> Verdict:
    """Check that the broker has memory for all that a session may store there at once.

    Raises: see `Examination.info`.
    """
    return joined([(place.label, _memory(exam, place)) for place in exam.places()])


def _memory(exam: Examination, place: Place) -> Verdict:
    inboxes, peers = len(place.parties), len(exam.case.peers)
    wanted = int(inboxes * peers * 2 * exam.case.settings.window_bytes * _UNTIL_FULL)
    info = exam.info(place, "memory")
    if info is None or "maxmemory" not in info:
        return unseen("INFO", f"maxmemory must leave {mebibytes(wanted)} free")
    limit, total = _number(info, "maxmemory"), _number(info, "total_system_memory")
    used = _number(info, "used_memory") or 0
    what = "maxmemory" if limit else "the machine's memory"
    limit = limit or total
    if not limit:
        return passed(f"no maxmemory is set; up to {mebibytes(wanted)} may be needed")
    free = max(0, limit - used)
    text = (
        f"{mebibytes(free)} of {what} ({mebibytes(limit)}) are free; this session stores up to "
        f"{mebibytes(wanted)} on the broker"
    )
    if free >= wanted:
        return passed(text)
    return warned(
        f"{text}: when the broker is full, parties wait",
        f"raise maxmemory to {mebibytes(used + wanted)}, or lower REDISLINK_WINDOW_BYTES at every "
        "party",
    )


def idle_cut_off(exam: Examination) -> Verdict:
    """Check that the server does not close idle connections.

    Raises: see `Examination.config`.
    """
    return joined([(place.label, _idle_cut_off(exam, place)) for place in exam.places()])


def _idle_cut_off(exam: Examination, place: Place) -> Verdict:
    seconds = exam.config(place, "timeout")
    if seconds is None or not seconds.isdecimal():
        return unseen("CONFIG GET", "timeout must be 0")
    if int(seconds) == 0:
        return passed("timeout is 0: the server closes no idle connections; a firewall may")
    return warned(
        f"timeout is {seconds}: the server closes connections that are idle for {seconds} s, and "
        "the next use of each costs a reconnect",
        "CONFIG SET timeout 0",
    )


def _number(info: Mapping[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isdecimal() else None
