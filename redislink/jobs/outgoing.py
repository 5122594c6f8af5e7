"""What of a job may leave the agent's machine, in parts: its log and its results.

Whether a driver may have it is decided before (`redislink.jobs.machine`); here it is only read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from redislink.errors import ConfigError
from redislink.files import open_regular
from redislink.jobs.requests import MOST_PART, About, Answer, Ask
from redislink.jobs.runner import LOG, OLD_LOG, RESULTS, log_start
from redislink.protocol.list_names import check_name
from redislink.session.exchange import SUFFIX

_MOST_RESULTS: Final = 64


def result_names(directory: Path) -> tuple[str, ...]:
    """The names of a job's results, sorted.

    Args:
        directory: the job's directory.
    """
    found = []
    for path in sorted((directory / RESULTS).glob(f"*{SUFFIX}")):
        with contextlib.suppress(ConfigError):
            found.append(check_name(path.name.removesuffix(SUFFIX), "result"))
    return tuple(found[:_MOST_RESULTS])


def answer(directory: Path, ask: Ask) -> Answer:
    """The part of a log or result that is asked for.

    Args:
        directory: the job's directory.
        ask: a request that may be granted.
    """
    try:
        if ask.about is About.LOG:
            return _answer(ask, [directory / OLD_LOG, directory / LOG], log_start(directory))
        return _answer(ask, [directory / RESULTS / f"{ask.name}{SUFFIX}"], 0)
    except OSError:
        return Answer(ask.nonce, problem="it cannot be read there any more")


def _answer(ask: Ask, files: list[Path], start: int) -> Answer:
    """Read from files that follow each other.

    Args:
        ask: what is asked for.
        files: the files; those that are missing are left out, but for the last.
        start: the offset of the first one's first byte.
    """
    offset = max(ask.offset, start)
    at, data = start, b""
    for path in files:
        if path is not files[-1] and not path.exists():
            continue
        with open_regular(path) as file:
            size = file.seek(0, 2)
            if at <= offset + len(data) < at + size:
                file.seek(offset + len(data) - at)
                data += file.read(MOST_PART - len(data))
        at += size
    return Answer(ask.nonce, total=at, offset=min(offset, at), data=data)
