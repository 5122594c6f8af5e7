"""``redislink policy``: what a policy says, before an agent goes by it."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from redislink.cli.errors import EPILOG, Verbose, say, show
from redislink.cli.output import JsonOption, group
from redislink.cli.programs import ProgramsOption, store_at
from redislink.cli.who import ClusterOption, PartyOption, resolve
from redislink.errors import ConfigError
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.policy import Action, Decision, Policy, Rule
from redislink.jobs.rules import ANY
from redislink.jobs.spec import JobSpec
from redislink.jobs.store import Entry
from redislink.settings import RedisLinkSettings
from redislink.units import show_duration, show_size

app = group("Check a policy file, and see what it says about a job.")


@app.command("check", epilog=EPILOG)
def check_policy(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Policy file; otherwise REDISLINK_POLICY_FILE.",
            show_default=False,
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Argument(metavar="JOB", help="Job file to decide about.", show_default=False),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who would submit it.", show_default=False),
    ] = None,
    party: PartyOption = None,
    cluster: ClusterOption = None,
    programs: ProgramsOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When it would be submitted, as in 2026-12-01T22:00+01:00 (UTC without an "
            "offset); otherwise now.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Check a policy file; with JOB, show what would be decided, and by which rule.

    Nothing is sent, and no program runs. Without --programs, the program counts as approved under
    the name that the job file gives it.

        redislink policy check policy.yaml job.yaml \\
            --driver coordinator --party alice
    """
    file = file or RedisLinkSettings.load().policy_file_of()
    if file is None:
        raise ConfigError("no policy: give its FILE, or set REDISLINK_POLICY_FILE")
    policy = Policy.load(file)
    if job is None:
        if as_json:
            typer.echo(policy.model_dump_json(by_alias=True))
            return
        for line in _about(policy):
            show(line)
        for name, path in policy.data.items():
            if not path.exists():
                say(f"data set {name}: there is no file {path} now")
        return
    if driver is None:
        raise ConfigError("no driver: give --driver NAME, who would submit the job")
    now = time.time() if at is None else _seconds(at)
    _, spec, name = resolve(RedisLinkSettings.load(), cluster, party)
    if driver not in (*spec.party_names, *(each.name for each in spec.drivers or ())):
        say(f"{driver} is neither a party nor a driver of the cluster file, so cannot submit jobs")
    offer = JobSpec.load(job).offer(spec, driver=driver, job=new_job_id(), now=now)
    decision = policy.decide(offer, now, party=name, program=_entry(offer, programs))
    if as_json:
        typer.echo(json.dumps(_as_dict(decision)))
        return
    for line in _told(policy, decision):
        show(line)


@app.command("schema", epilog=EPILOG)
def show_schema(
    job: Annotated[bool, typer.Option("--job", help="That of job files instead.")] = False,
    verbose: Verbose = False,
) -> None:
    """Print the JSON Schema of policy files, for editors that complete and check YAML."""
    model: type[Policy | JobSpec] = JobSpec if job else Policy
    typer.echo(json.dumps(model.model_json_schema(), indent=2))


def _seconds(text: str) -> float:
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--at {text}: is no time: write it as in 2026-12-01T22:00+01:00"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()


def _entry(offer: Offer, programs: Path | None) -> Entry | None:
    if programs is not None or RedisLinkSettings.load().programs_dir is not None:
        return store_at(programs).find(offer.program)
    if offer.source is not None:
        return None
    name = offer.program_name or "unnamed"
    say(f"without --programs: {offer.program} counts as approved, as {name}")
    return Entry(digest=offer.program, name=name, added=0.0, added_by="", approved=0.0)


def _about(policy: Policy) -> Iterator[str]:
    for number, rule in enumerate(policy.rules, start=1):
        line = policy.place(rule.name).removeprefix(", ")
        yield f"{number}. {rule.name} ({line}): {rule.action} {_conditions(rule)}"
    yield f"{len(policy.rules) + 1}. whatever matches none of them: refuse"
    data = ", ".join(policy.data) or "none"
    yield f"data sets: {data}; offers are valid for at most {show_duration(policy.longest_offer)}"


def _conditions(rule: Rule) -> str:
    stated = [
        f"{field} {', '.join(names) or 'none'}"
        for field in ("driver", "program", "data", "devices", "parties")
        if (names := getattr(rule, field)) is not None and names != (ANY,)
    ]
    if rule.arguments:
        stated.append("arguments by schema")
    if (window := rule.window) is not None:
        days = ",".join(window.days)
        stated.append(f"window {days} {window.begins} to {window.ends} {window.zone}")
    return "; ".join(stated) or "everything"


def _told(policy: Policy, decision: Decision) -> Iterator[str]:
    by = f" (rule {decision.rule!r}{policy.place(decision.rule)})" if decision.rule else ""
    yield f"{decision.action}{by}: {decision.reason}"
    if decision.action is not Action.REFUSE:
        yield f"results to the driver: {', '.join(decision.results) or 'none'}"
        yield f"log to the driver: {'yes' if decision.logs else 'no'}"
        yield f"limits: {_limits(decision) or 'none'}"
    yield from decision.details


def _limits(decision: Decision) -> str:
    limits = decision.limits
    shown = [
        (name, show(value))
        for name, value, show in (
            ("wall", limits.wall, show_duration),
            ("cpu", limits.cpu, show_duration),
            ("memory", limits.memory, show_size),
            ("disk", limits.disk, show_size),
        )
        if value is not None
    ]
    return ", ".join(f"{name} {text}" for name, text in shown)


def _as_dict(decision: Decision) -> dict[str, Any]:
    limits = decision.limits
    return {
        "action": decision.action.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "limits": {n: getattr(limits, n) for n in ("wall", "cpu", "memory", "disk")},
        "results": list(decision.results),
        "logs": decision.logs,
        "details": list(decision.details),
    }
