"""``redislink doctor``: checks everything that this party needs before a session can run.

Rules: no check changes anything that a session uses. The doctor writes only lists with its own tag,
which it removes again or lets expire, and notes for the peers' doctors. Every wait has a limit, and
so has the whole examination. A check is one function that returns a `Verdict`, or None if it does
not apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redislink.errors import BrokerError, ConfigError, ProxyRefused
from redislink.operate.doctor import network, others, own, rights, server, speed
from redislink.operate.doctor.examination import Case, Examination, NotTried
from redislink.operate.doctor.finding import Blame, Finding, Level, Report, Verdict, failed_with

__all__ = ["CHECKS", "FIRST", "Blame", "Case", "Check", "Finding", "Level", "Report", "examine"]

SECONDS: Final = 18.0
"""How long an examination may take. A check that is under way then may still finish."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of `CHECKS`.

    Attributes:
        name: the check's name, for people.
        examine: runs the check; raises ConfigError or BrokerError for ordinary failures.
        needs: the check that must not fail before this one makes sense; empty for none.
        seconds: how long the check may take.
        is_of_broker: True if the check also makes sense without a session.
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
    Check("native leaves", own.native_leaves),
    Check("broker URL", own.broker_url, is_of_broker=True),
    Check("proxy", network.proxy, "broker URL", 4, is_of_broker=True),
    Check("name resolution", network.name_resolution, "proxy", 4, is_of_broker=True),
    Check("TCP", network.tcp, "name resolution", 4, is_of_broker=True),
    Check("client certificate", network.client_certificate, "broker URL", is_of_broker=True),
    Check("TLS", network.tls, "TCP", 4, is_of_broker=True),
    Check("server certificate", network.server_certificate, "TLS", is_of_broker=True),
    Check("CA certificate", network.ca_certificate, "TLS", is_of_broker=True),
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
"""The checks in the order they run: each comes after those that it needs."""


def examine(begin: Callable[[], Case], seconds: float = SECONDS) -> Report:
    """Run every check, except those that earlier failures make pointless.

    Never raises a redislink error.

    Args:
        begin: reads the settings and the cluster file; an error counts as the first check's
            failure.
        seconds: how long the examination may take.

    Returns:
        The report.
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
    brokers = len(case.urls) if broker else 1
    return Report(spec, party, broker, tuple(findings), tuple(not_tried.items()), took, brokers)


def _verdict(
    exam: Examination, check: Check, findings: list[Finding], not_tried: dict[str, str]
) -> Verdict | None:
    """Run one check, and return its verdict.

    Raises:
        NotTried: the check cannot tell anything.
    """
    lacking = {finding.name for finding in findings if finding.level is Level.FAIL} | set(not_tried)
    if check.needs in lacking:
        raise NotTried(not_tried.get(check.needs) or f"{check.needs} failed")
    exam.begin_check(check.seconds)
    try:
        return check.examine(exam)
    except (ConfigError, ProxyRefused) as error:
        return failed_with(error, Blame.OURS)
    except BrokerError as error:
        return failed_with(error, Blame.BROKER)
