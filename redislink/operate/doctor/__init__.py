"""What ``redislink doctor`` examines: everything between this party and a session that runs.

Rules: no check changes what a session uses. All that is written are lists with the doctor's own
tag, which are removed again or expire, and notes for the peers' doctors. Every wait is bounded, and
so is the whole. A check is one function that gives a `Verdict`, or None where it does not apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redislink.errors import BrokerError, ConfigError
from redislink.operate.doctor import network, others, own, rights, server, speed
from redislink.operate.doctor.examination import Case, Examination, NotTried
from redislink.operate.doctor.finding import Blame, Finding, Level, Report, Verdict, failed_with

__all__ = ["CHECKS", "FIRST", "Blame", "Case", "Check", "Finding", "Level", "Report", "examine"]

SECONDS: Final = 18.0
"""How long an examination may take; what is under way then may end."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of `CHECKS`.

    Attributes:
        name: for people.
        examine: looks; raises ConfigError or BrokerError for what fails in the ordinary way.
        needs: a check without which this one is pointless; empty for none.
        seconds: how long it may take.
        is_of_broker: it also says something where no session is known.
    """

    name: str
    examine: Callable[[Examination], Verdict | None]
    needs: str = ""
    seconds: float = 3.0
    is_of_broker: bool = False


FIRST: Final = "cluster file"
"""Without it there is nothing to examine."""
CHECKS: Final = (
    Check("keys", own.own_keys),
    Check("protocols", own.protocols),
    Check("broker URL", own.broker_url, is_of_broker=True),
    Check("name resolution", network.name_resolution, "broker URL", 4, is_of_broker=True),
    Check("TCP", network.tcp, "name resolution", 4, is_of_broker=True),
    Check("client certificate", network.client_certificate, "broker URL", is_of_broker=True),
    Check("TLS", network.tls, "TCP", 4, is_of_broker=True),
    Check("server certificate", network.server_certificate, "TLS", is_of_broker=True),
    Check("login", network.login, "TLS", 4, is_of_broker=True),
    Check("replicas", network.replicas, "login", 4),
    Check("commands", rights.commands, "login"),
    Check("own lists", rights.own_lists, "login"),
    Check("other parties' lists", rights.others_lists, "login"),
    Check("version", server.version, "login", 2, is_of_broker=True),
    Check("eviction", server.eviction, "login", 2, is_of_broker=True),
    Check("memory", server.memory, "login", 2),
    Check("idle cut-off", server.idle_cut_off, "login", 2, is_of_broker=True),
    Check("clock", speed.clock, "login", 2, is_of_broker=True),
    Check("who is there", others.who_is_there, "login", 2),
    Check("same cluster file", others.same_cluster_file, "login", 2),
    Check("round trip", speed.round_trip, "login", 2, is_of_broker=True),
    Check("bandwidth", speed.bandwidth, "round trip", 4, is_of_broker=True),
    Check("largest element", rights.largest_element, "login", 4),
)
"""In the order in which they are made: what later ones depend on comes first."""


def examine(begin: Callable[[], Case], seconds: float = SECONDS) -> Report:
    """Make every check that the others' failures do not make pointless.

    Args:
        begin: reads settings and cluster file; what it raises is the first check's failure.
        seconds: how long all of it may take.

    Returns:
        What was found; never raises an error of redislink's.
    """
    started = time.monotonic()
    try:
        case = begin()
    except ConfigError as error:
        finding = Finding.of(FIRST, failed_with(error, Blame.OURS))
        because = f"{FIRST} failed"
        return Report(None, "", "", (finding,), tuple((c.name, because) for c in CHECKS), 0.0)
    exam = Examination(case, seconds)
    findings = [] if case.is_of_broker else [Finding.of(FIRST, own.cluster_file(case))]
    not_tried: dict[str, str] = {}
    try:
        for check in CHECKS:
            if case.is_of_broker and not check.is_of_broker:
                continue
            try:
                verdict = _verdict(exam, check, findings, not_tried)
            except NotTried as reason:
                not_tried[check.name] = str(reason)
                continue
            if verdict is not None:
                findings.append(Finding.of(check.name, verdict))
    finally:
        exam.close()
    broker = (
        ""
        if any(f.name == "broker URL" and f.level is Level.FAIL for f in findings)
        else (exam.broker.label)
    )
    took = time.monotonic() - started
    spec, party = (None, "") if case.is_of_broker else (case.spec, case.party)
    return Report(spec, party, broker, tuple(findings), tuple(not_tried.items()), took)


def _verdict(
    exam: Examination, check: Check, findings: list[Finding], not_tried: dict[str, str]
) -> Verdict | None:
    """What the check says.

    Raises:
        NotTried: it cannot say anything.
    """
    lacking = {finding.name for finding in findings if finding.level is Level.FAIL} | set(not_tried)
    if check.needs in lacking:
        raise NotTried(not_tried.get(check.needs) or f"{check.needs} failed")
    exam.begin_check(check.seconds)
    try:
        return check.examine(exam)
    except ConfigError as error:
        return failed_with(error, Blame.OURS)
    except BrokerError as error:
        return failed_with(error, Blame.BROKER)
