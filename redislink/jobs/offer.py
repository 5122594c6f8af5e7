"""`Offer`: what a driver asks the parties to run.

Rules: whoever holds an `Offer` holds one whose every field is checked and bounded, whoever made it;
`Offer.from_value_untrusted` raises `ValueDecodeError` and nothing else. What is in an offer is a
claim of its driver's: that name of a program decides nothing (see `redislink.jobs.policy`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from redislink.errors import ConfigError, ValueDecodeError
from redislink.jobs.arguments import Arguments, check_arguments, to_argv
from redislink.protocol.list_names import check_name
from redislink.values import encode_value

MOST_NAMES: Final = 64
"""Parties, devices, results, and data sets of one party."""
MOST_SOURCE: Final = 3 << 20
"""Bytes of an attached program: it and the rest fit into one letter."""
LONGEST_LIFE: Final = 366 * 86400
"""Seconds from ``issued`` to ``expires``. A policy usually allows much less."""
_LATEST: Final = 1 << 40
_JOB: Final = re.compile(r"j[a-z0-9]{12}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ID_LETTERS: Final = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Offer:
    """A job that a driver offers.

    Attributes:
        job: its id: ``j`` and 12 characters of ``a-z0-9``.
        driver: name of who offers it.
        issued: when, in UTC seconds since 1970.
        expires: when it can no longer start, in UTC seconds since 1970.
        program: ``sha256:`` and 64 hex digits, the digest of the program.
        program_name: what the driver calls the program; may be empty.
        source: the packed program, if the driver attached it; its digest is ``program``.
        arguments: a JSON list or object, see `redislink.jobs.arguments`.
        data: for each party, the names of the data sets that the program asks for there.
        parties: who takes part, at least two.
        devices: names of the cluster file's devices that the program uses.
        results: names of the results that the driver wants.
    """

    job: str
    driver: str
    issued: int
    expires: int
    program: str
    parties: tuple[str, ...]
    program_name: str = ""
    source: bytes | None = field(default=None, repr=False)
    arguments: Arguments = field(default_factory=list)
    data: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: one is not what it must be; the message names it.
        """
        _check_text(self.job, _JOB, "job", "j and 12 characters of a-z and 0-9")
        check_name(self.driver, "driver")
        _check_times(self.issued, self.expires)
        check_digest(self.program)
        if type(self.program_name) is not str or self.program_name:
            check_name(self.program_name, "program")
        if self.source is not None:
            _check_source(self.source, self.program)
        check_arguments(self.arguments)
        _check_names(self.parties, "parties", "party")
        if len(self.parties) < 2:
            raise ConfigError("parties: a job has at least two: name them")
        _check_names(self.devices, "devices", "device")
        _check_names(self.results, "results", "result")
        if type(self.data) is not dict:
            raise ConfigError("data: is a mapping of parties to names of data sets")
        for party, names in self.data.items():
            if party not in self.parties:
                raise ConfigError(f"data: {party!r:.80} is none of the job's parties: name those")
            _check_names(names, f"data.{party}", "data set")

    def data_of(self, party: str) -> tuple[str, ...]:
        """Names of the data sets that the program asks for at a party."""
        return self.data.get(party, ())

    def argv(self) -> list[str]:
        """The arguments as words of a command line."""
        return to_argv(self.arguments)

    def digest(self) -> str:
        """``sha256:…`` of the whole offer: two offers with the same one are the same."""
        return f"sha256:{hashlib.sha256(encode_value(self.to_value())).hexdigest()}"

    def to_value(self) -> dict[str, Any]:
        """The offer as a value of `redislink.values`."""
        value: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        for name in ("parties", "devices", "results"):
            value[name] = list(value[name])
        value["data"] = {party: list(names) for party, names in self.data.items()}
        return value

    @classmethod
    def from_value_untrusted(cls, value: Any) -> Offer:
        """The offer that a value of `redislink.values` describes.

        Raises:
            ValueDecodeError: it describes none, or a field is not what it must be.
        """
        if type(value) is not dict or value.keys() != set(_FIELDS):
            raise ValueDecodeError(
                "an offer has other fields than here: run the same version of redislink at the "
                "driver and the agents"
            )
        given = dict(value)
        try:
            for name in ("parties", "devices", "results"):
                given[name] = _tuple(given[name], name)
            if type(given["data"]) is not dict:
                raise ConfigError("data: is no mapping of parties to names of data sets")
            given["data"] = {party: _tuple(names, "data") for party, names in given["data"].items()}
            return cls(**given)
        except ConfigError as error:
            raise ValueDecodeError(f"an offer is not valid: {error}") from None


_FIELDS: Final = tuple(f.name for f in fields(Offer))


def new_job_id(choose: Callable[[str], str] = secrets.choice) -> str:
    """A new job id.

    Args:
        choose: takes letters and returns one of them at random.
    """
    return "j" + "".join(choose(_ID_LETTERS) for _ in range(12))


def check_job_id(text: Any) -> str:
    """Return ``text`` if it is the id of a job.

    Raises:
        ConfigError: it is not.
    """
    return _check_text(text, _JOB, "job", "j and 12 characters of a-z and 0-9")


def check_digest(text: Any) -> str:
    """Return ``text`` if it is the digest of a program.

    Raises:
        ConfigError: it is not.
    """
    return _check_text(text, _DIGEST, "program", "sha256: and 64 hex digits")


def job_session(session: str, job: str) -> str:
    """The name of a job's own session.

    Raises:
        ConfigError: it is too long; the message says how long the cluster's may be.
    """
    name = f"{session}.{check_job_id(job)}"
    if len(name) > 64:
        raise ConfigError(
            f"session {session!r:.80}: a cluster with jobs has a session name of at most "
            f"{64 - 1 - len(job)} characters, because a job's id is added to it: shorten it"
        )
    return check_name(name, "session")


def _tuple(value: Any, what: str) -> tuple[Any, ...]:
    if type(value) is not list:
        raise ConfigError(f"{what}: is no list")
    return tuple(value)


def _check_text(text: Any, form: re.Pattern[str], field: str, what: str) -> str:
    if type(text) is not str or not form.fullmatch(text):
        shown = repr(text)[:80] if isinstance(text, str) else "this"
        raise ConfigError(f"{field} {shown} is not {what}")
    return text


def _check_times(issued: Any, expires: Any) -> None:
    for name, seconds in (("issued", issued), ("expires", expires)):
        if type(seconds) is not int or not 0 <= seconds < _LATEST:
            raise ConfigError(f"{name}: is not a time in seconds since 1970")
    if not issued < expires <= issued + LONGEST_LIFE:
        raise ConfigError("expires: is not after issued, or more than a year after it")


def _check_source(source: Any, digest: str) -> None:
    if type(source) is not bytes:
        raise ConfigError("source: is not bytes")
    if len(source) > MOST_SOURCE:
        raise ConfigError(f"source: has more than {MOST_SOURCE} bytes")
    if f"sha256:{hashlib.sha256(source).hexdigest()}" != digest:
        raise ConfigError("source: is not the program with this digest")


def _check_names(names: Any, field: str, what: str) -> None:
    if type(names) is not tuple or len(names) > MOST_NAMES:
        raise ConfigError(f"{field}: is not a list of at most {MOST_NAMES} names")
    for name in names:
        check_name(name, what)
    if len(set(names)) != len(names):
        raise ConfigError(f"{field}: lists a name twice: name each once")
