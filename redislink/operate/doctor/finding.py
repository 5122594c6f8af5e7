"""The results of a check (`Verdict`, `Finding`) and of a whole examination (`Report`)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redislink.cluster import ClusterSpec
from redislink.errors import RedisLinkError
from redislink.identity.keypair import fingerprint, parse_public_key
from redislink.text import MOST_IN_LINE, one_line


class Level(enum.StrEnum):
    """How bad a finding is."""

    PASS = "PASS"  # noqa: S105
    """Checked, and as it should be."""
    SKIP = "SKIP"
    """Unknown: this user may not look, or the other side says nothing."""
    WARN = "WARN"
    """Sessions run, but more slowly or less well protected than they could."""
    FAIL = "FAIL"
    """Sessions cannot run like this."""


class Blame(enum.StrEnum):
    """Who has to fix a failure."""

    OURS = "ours"
    BROKER = "broker"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check. Its texts are made safe to print: they quote servers and parties.

    Attributes:
        level: how bad it is.
        text: what the check saw.
        remedy: what to do; empty only if nothing is wrong.
        blame: who has to do it, if this is a failure.
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
    """A `Verdict` with the name of its check."""

    name: str
    level: Level
    text: str
    remedy: str
    blame: Blame

    @classmethod
    def of(cls, name: str, verdict: Verdict) -> Finding:
        """Return the finding for this check's verdict."""
        return cls(name, verdict.level, verdict.text, verdict.remedy, verdict.blame)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an examination.

    Attributes:
        spec: the cluster file's content; None if it could not be read.
        party: the party that was examined; empty if unknown.
        broker: the broker's URL without user and password; empty if unknown.
        findings: the findings, in the order of the checks.
        not_tried: (name, reason) of each check that was not tried.
        seconds: how long the examination took.
        brokers: how many brokers there are to examine, each in an examination of its own.
    """

    spec: ClusterSpec | None
    party: str
    broker: str
    findings: tuple[Finding, ...]
    not_tried: tuple[tuple[str, str], ...]
    seconds: float
    brokers: int = 1

    @property
    def worst(self) -> Level:
        """The worst level of all findings; there is always at least one finding."""
        order = list(Level)
        return max((finding.level for finding in self.findings), key=order.index)

    @property
    def counts(self) -> dict[Level, int]:
        """The number of findings at each level."""
        levels = [finding.level for finding in self.findings]
        return {level: levels.count(level) for level in Level}

    @property
    def skipped(self) -> tuple[str, ...]:
        """The names of the checks that could not look."""
        return tuple(f.name for f in self.findings if f.level is Level.SKIP)

    @property
    def blame(self) -> Blame | None:
        """Who has to fix the first failure (others often follow from it); None if none failed."""
        return next((f.blame for f in self.findings if f.level is Level.FAIL), None)


def passed(text: str) -> Verdict:
    """Return a PASS: all is well."""
    return Verdict(Level.PASS, text)


def skipped(text: str, remedy: str) -> Verdict:
    """Return a SKIP: the check could not look."""
    return Verdict(Level.SKIP, text, remedy)


def warned(text: str, remedy: str) -> Verdict:
    """Return a WARN: it works, but could be better."""
    return Verdict(Level.WARN, text, remedy)


def failed(text: str, remedy: str, blame: Blame = Blame.BROKER) -> Verdict:
    """Return a FAIL: it does not work."""
    return Verdict(Level.FAIL, text, remedy, blame)


def failed_with(error: RedisLinkError, blame: Blame) -> Verdict:
    """Turn an error into a FAIL. The error's message ends with ``: `` and what to do."""
    text, _, remedy = str(error).rpartition(": ")
    return failed(text or remedy, remedy if text else "mend what it names", blame)


def joined(found: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Join the verdicts about several servers into one, with the worst level.

    Args:
        found: (name, verdict) of each server; at least one.
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
    """Return a SKIP: the broker does not let this user look, as is right for a party's user."""
    return skipped(
        f"not allowed to look (permission missing: {command}), as is right for a party's user",
        f"ask whoever runs the broker: {wanted}",
    )


def fingerprints(spec: ClusterSpec) -> dict[str, str | None]:
    """Return the fingerprint of each party's public key; None for a party that has no key."""
    return {
        party.name: fingerprint(parse_public_key(party.public_key)) if party.public_key else None
        for party in spec.parties
    }


def mebibytes(count: int) -> str:
    """Return a number of bytes as text, in MiB."""
    return f"{count / (1 << 20):.0f} MiB" if count >= 10 << 20 else f"{count / (1 << 20):.1f} MiB"
