"""What a check finds, and what a whole examination finds."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redislink.cluster import ClusterSpec
from redislink.errors import RedisLinkError
from redislink.identity.keypair import fingerprint, parse_public_key
from redislink.text import MOST_IN_LINE, one_line


class Level(enum.StrEnum):
    """How bad it is."""

    PASS = "PASS"  # noqa: S105
    """As it should be: this was looked at."""
    SKIP = "SKIP"
    """Not known: this user may not look, or the other side says nothing."""
    WARN = "WARN"
    """Sessions run, more slowly or less well protected than they could."""
    FAIL = "FAIL"
    """Sessions do not run so."""


class Blame(enum.StrEnum):
    """Whose it is to mend a failure."""

    OURS = "ours"
    BROKER = "broker"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says; texts are made safe to print, as servers and parties are quoted in them.

    Attributes:
        level: how bad it is.
        text: what was seen.
        remedy: what to do; empty only where nothing is wrong.
        blame: who has to, where it is a failure.
    """

    level: Level
    text: str
    remedy: str = ""
    blame: Blame = Blame.BROKER

    def __post_init__(self) -> None:
        for name in ("text", "remedy"):
            object.__setattr__(self, name, one_line(getattr(self, name), MOST_IN_LINE))


@dataclass(frozen=True, slots=True)
class Finding:
    """A `Verdict`, and the name of the check that gave it."""

    name: str
    level: Level
    text: str
    remedy: str
    blame: Blame

    @classmethod
    def of(cls, name: str, verdict: Verdict) -> Finding:
        """The verdict of the check with this name."""
        return cls(name, verdict.level, verdict.text, verdict.remedy, verdict.blame)


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination found.

    Attributes:
        spec: the cluster file's content; None if it could not be read.
        party: who asked; empty if that is not known.
        broker: its URL without user and password; empty if that is not known.
        findings: in the order of the checks.
        not_tried: names of checks, and why each was not tried.
        seconds: how long it all took.
    """

    spec: ClusterSpec | None
    party: str
    broker: str
    findings: tuple[Finding, ...]
    not_tried: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def worst(self) -> Level:
        """The worst level of all findings, of which there is always one."""
        order = list(Level)
        return max((finding.level for finding in self.findings), key=order.index)

    @property
    def counts(self) -> dict[Level, int]:
        """How many findings have each level."""
        levels = [finding.level for finding in self.findings]
        return {level: levels.count(level) for level in Level}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the checks that could not look."""
        return tuple(f.name for f in self.findings if f.level is Level.SKIP)

    @property
    def blame(self) -> Blame | None:
        """Who has to mend the first failure, as later ones often follow from it; None without."""
        return next((f.blame for f in self.findings if f.level is Level.FAIL), None)


def passed(text: str) -> Verdict:
    """All is well."""
    return Verdict(Level.PASS, text)


def skipped(text: str, remedy: str) -> Verdict:
    """It could not be looked at, so nobody knows."""
    return Verdict(Level.SKIP, text, remedy)


def warned(text: str, remedy: str) -> Verdict:
    """It works, and could be better."""
    return Verdict(Level.WARN, text, remedy)


def failed(text: str, remedy: str, blame: Blame = Blame.BROKER) -> Verdict:
    """It does not work."""
    return Verdict(Level.FAIL, text, remedy, blame)


def failed_with(error: RedisLinkError, blame: Blame) -> Verdict:
    """The failure that an error is: its message ends with ``: `` and what to do."""
    text, _, remedy = str(error).rpartition(": ")
    return failed(text or remedy, remedy if text else "mend what it names", blame)


def joined(found: Sequence[tuple[str, Verdict]]) -> Verdict:
    """One verdict of those about several servers: the worst, which says which server it is.

    Args:
        found: how each server is called, and what was found there; at least one.
    """
    (_, first), *others = found
    if all(verdict == first for _, verdict in others):
        everywhere = f"on each of {len(found)} nodes: " if others else ""
        return replace(first, text=everywhere + first.text)
    order = list(Level)
    worst = max((verdict for _, verdict in found), key=lambda v: order.index(v.level))
    remedies = dict.fromkeys(
        f"at {where}: {verdict.remedy}" for where, verdict in found if verdict.remedy
    )
    text = "; ".join(f"{where}: {verdict.text}" for where, verdict in found)
    return replace(worst, text=text, remedy="; ".join(remedies))


def unseen(command: str, wanted: str) -> Verdict:
    """The broker does not let this user look, which is right for a party's user."""
    return skipped(
        f"not allowed to look (permission missing: {command}), as is right for a party's user",
        f"ask whoever runs the broker: {wanted}",
    )


def fingerprints(spec: ClusterSpec) -> dict[str, str | None]:
    """Of every party's public key in the cluster file; None for a party that has none."""
    return {
        party.name: fingerprint(parse_public_key(party.public_key)) if party.public_key else None
        for party in spec.parties
    }


def mebibytes(count: int) -> str:
    """For people."""
    return f"{count / (1 << 20):.0f} MiB" if count >= 10 << 20 else f"{count / (1 << 20):.1f} MiB"
