"""``redislink report``: one page of HTML about a run; and the page of ``redislink run --report``.

Rules: a page is made only after the run, and nothing that goes wrong with it changes how the run
ends. What is wrong with an audit record is on the page, on stderr and in the exit code.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from redislink.cli.audit import signing_keys
from redislink.cli.errors import ExitCode, Verbose, say, show
from redislink.cli.who import ClusterOption
from redislink.cluster import load_cluster
from redislink.errors import RedisLinkError
from redislink.observe.account import SUFFIX as STATS_SUFFIX
from redislink.observe.record import SUFFIX as TRACE_SUFFIX
from redislink.report import write_report
from redislink.report.gather import AUDIT_SUFFIX
from redislink.report.writing import check_installed
from redislink.settings import RedisLinkSettings

_PAGE: Final = ".html"


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Audit records, statistics (of REDISLINK_STATS_FILE) and timelines of one run, of "
            "one party or of several; or directories of *.audit.jsonl, *.stats.json and "
            "*.trace.jsonl.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Page to write.")],
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Report about the newest run of this session, instead of the newest run.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    verbose: Verbose = False,
) -> None:
    """Make one page about a run: who took part, what was revealed to whom, where the time went.

    Each kind of file adds its part, and one is enough. The page is a single file that needs no
    network. With a cluster file, the records' signatures are held against its keys.

        redislink report alice.jsonl bob.jsonl --out run.html
    """
    found = write_report(files, out, session=session, keys=signing_keys(cluster))
    show(f"{out}: the run of {found.session}, from {len(found.files)} files")
    problems = [
        f"audit record {record.path}: {problem}"
        for part in found.parties
        for record in (part.record, part.agent_record)
        if record is not None
        for problem in record.problems
    ]
    for problem in problems:
        say(problem)
    if problems:
        raise SystemExit(int(ExitCode.CONFIG))


def report_at_end(page: Path, cluster: Path, party: str, agent_record: Path | None) -> None:
    """Have a page made when this process ends, about the run that it is about to begin.

    The environment's settings get an audit record and statistics next to the page, unless they
    name other files.

    Args:
        page: the page to write.
        cluster: the cluster file.
        party: the name of this party.
        agent_record: that of the agent whose job this is; None if there is none.

    Raises:
        ConfigError: ``redislink[report]`` is not installed.
    """
    check_installed()
    page = page.absolute()
    settings = RedisLinkSettings.load()
    beside = page.with_suffix("") if page.suffix == _PAGE else page
    if settings.audit_file is None:
        os.environ["REDISLINK_AUDIT_FILE"] = f"{beside}{AUDIT_SUFFIX}"
    if settings.stats_file is None:
        os.environ["REDISLINK_STATS_FILE"] = f"{beside}{STATS_SUFFIX}"
    settings = RedisLinkSettings.load()
    spec = load_cluster(cluster)
    named = [
        Path(str(file).replace("{session}", spec.session).replace("{party}", party))
        for file in (settings.audit_file, settings.stats_file)
    ]
    if settings.trace_dir is not None:
        named.append(settings.trace_dir / f"{spec.session}.{party}{TRACE_SUFFIX}")
    keys = {each.name: each.signing_key for each in spec.parties}
    began, process = time.time(), os.getpid()
    before = {path: _state(path) for path in named}

    def make() -> None:
        if os.getpid() != process:  # a child that the program forked
            return
        files = [path for path in named if _state(path) not in (None, before[path])]
        if not files:
            say(f"{party}: no report: the parties have not met")
            return
        if agent_record is not None:
            files.append(agent_record)
        try:
            write_report(files, page, session=spec.session, keys=keys, since=began)
            say(f"{party}: the report is {page}")
        except RedisLinkError as error:
            say(f"{party}: no report: {error}")
        except Exception as error:  # noqa: BLE001 - the run has ended as it has
            say(f"{party}: no report: {type(error).__name__}")

    # Runs after what ends the records of sessions, which is registered later.
    atexit.register(make)


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when `path` is written to or replaced; ``None`` without such a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
