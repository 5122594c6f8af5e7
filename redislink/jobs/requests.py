"""What a driver asks an agent for, beyond statuses: its jobs there, logs, and results in parts.

Rules: an answer belongs to one request, by its nonce; a driver asks again until it has the answer,
so both may be lost. Whatever arrives is checked; `FrameError` alone is raised.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any, Final, Self

from redislink.errors import ConfigError, FrameError
from redislink.jobs.status import MOST_TEXT, count_untrusted, fields_untrusted, job_untrusted
from redislink.protocol.list_names import check_name
from redislink.text import one_line

MOST_PART: Final = 1 << 20
"""Bytes of a log or result in one answer."""
MOST_LISTED: Final = 500
"""Jobs in one answer; the newest."""
_NONCE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class About(enum.StrEnum):
    """What is asked for."""

    JOBS = "jobs"
    """All of this driver's jobs at the agent; no job is named."""
    LOG = "log"
    RESULT = "result"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.

    Attributes:
        nonce: 32 random hex digits.
        about: what is asked for.
        job: which job; empty for `About.JOBS`.
        name: of the result; empty otherwise.
        offset: the first byte wanted of a log or result.
    """

    nonce: str
    about: About
    job: str = ""
    name: str = ""
    offset: int = 0

    def to_value(self) -> dict[str, Any]:
        """The request as the body of a letter."""
        return {
            "kind": "ask",
            "nonce": self.nonce,
            "about": str(self.about),
            "job": self.job,
            "name": self.name,
            "offset": self.offset,
        }

    @classmethod
    def from_value_untrusted(cls, value: Any) -> Self:
        """The request with this body.

        Raises:
            FrameError: it is no request's.
        """
        fields = fields_untrusted(value, _ASK_FIELDS, "a request")
        try:
            about = About(fields["about"])
            if about is About.RESULT:
                check_name(fields["name"], "result")
        except (ValueError, ConfigError):
            raise FrameError("a request for something unknown") from None
        if about is not About.JOBS:
            job_untrusted(fields["job"])
        return cls(
            nonce=_nonce_untrusted(fields["nonce"]),
            about=about,
            job=fields["job"],
            name=fields["name"],
            offset=count_untrusted(fields["offset"]),
        )


_ASK_FIELDS: Final[dict[str, type]] = {
    "kind": str,
    "nonce": str,
    "about": str,
    "job": str,
    "name": str,
    "offset": int,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answers.

    Attributes:
        nonce: the request's.
        problem: why there is nothing, in one line; empty if there is.
        total: bytes of the whole log or result.
        offset: of `data` in it; behind the offset asked for if the log's beginning is gone.
        data: at most `MOST_PART` bytes.
        jobs: for `About.JOBS`: for each job ``{"offer": …, "status": …}``, the offer without its
            source.
    """

    nonce: str
    problem: str = ""
    total: int = 0
    offset: int = 0
    data: bytes = b""
    jobs: tuple[Any, ...] = ()

    def to_value(self) -> dict[str, Any]:
        """The answer as the body of a letter."""
        return {
            "kind": "answer",
            "nonce": self.nonce,
            "problem": self.problem,
            "total": self.total,
            "offset": self.offset,
            "data": self.data,
            "jobs": list(self.jobs),
        }

    @classmethod
    def from_value_untrusted(cls, value: Any) -> Self:
        """The answer with this body. Its jobs are not checked yet.

        Raises:
            FrameError: it is no answer's.
        """
        fields = fields_untrusted(value, _ANSWER_FIELDS, "an answer")
        if len(fields["data"]) > MOST_PART or len(fields["jobs"]) > MOST_LISTED:
            raise FrameError("an answer of impossible size")
        return cls(
            nonce=_nonce_untrusted(fields["nonce"]),
            problem=one_line(fields["problem"], MOST_TEXT),
            total=count_untrusted(fields["total"]),
            offset=count_untrusted(fields["offset"]),
            data=fields["data"],
            jobs=tuple(fields["jobs"]),
        )


_ANSWER_FIELDS: Final[dict[str, type]] = {
    "kind": str,
    "nonce": str,
    "problem": str,
    "total": int,
    "offset": int,
    "data": bytes,
    "jobs": list,
}


def _nonce_untrusted(nonce: str) -> str:
    if not _NONCE.fullmatch(nonce):
        raise FrameError("a nonce that is none")
    return nonce
