"""An agent's work directory: what it knows of each job, and what people at its machine decide.

::

    WORK/lock               held by the agent that runs here
    WORK/agent.json         the instance of the agent, for its claim
    WORK/audit/             agent.jsonl, and for each job the record of its runs, JOB.jsonl
    WORK/decisions/         what people have decided of jobs, until the agent takes it
    WORK/<job id>/          one directory for each job
        state.json          what the agent knows of the job
        progress.json       how far it is, and what it has used
        program/            the private copy of the program that is run
        cluster.yaml        the cluster file of the job's session
        report.html         the page about its last run
        log, journal/, scratch/, results/       see `redislink.jobs.runner`

Rules:
- Nobody but the agent's user (and root) may use the directory: who can write here decides.
- A state is on disk before anybody is told of it.
- People decide by files, so that an agent needs no socket that it would listen on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from redislink.errors import ConfigError, PartyTaken
from redislink.files import open_regular, read_text, replacing, sync_directory
from redislink.jobs.offer import check_job_id
from redislink.jobs.runner import Used

STATE: Final = "state.json"
DECISIONS: Final = "decisions"
PROGRESS: Final = "progress.json"
PROGRAM: Final = "program"
CLUSTER: Final = "cluster.yaml"
REPORT: Final = "report.html"
AUDIT: Final = "audit"
_LOCK: Final = "lock"
_AGENT: Final = "agent.json"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MOST_BYTES: Final = 16 << 20


class Verdict(BaseModel):
    """What a person at the agent's machine has decided about a job.

    Attributes:
        action: what is to become of it.
        program: the digest of the program that the person has seen; only that is approved.
        by: who decided.
        at: when, in UTC seconds since 1970.
        reason: one line for the driver and the other parties; may be empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
    action: Literal["approve", "refuse", "cancel"]
    program: str
    by: str
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Noted:
    """How far a job is, as the agent last noted it.

    Attributes:
        progress: in words; empty before it runs.
        wall: seconds that it has run.
        cpu: seconds of CPU that it has used.
        starts: how often its process was started.
    """

    progress: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    starts: int = 0

    @property
    def used(self) -> Used:
        """What it has used."""
        return Used(self.wall, self.cpu)


class WorkDirectory:
    """A work directory, as the agent and the commands beside it see it."""

    def __init__(self, directory: str | Path) -> None:
        """Args:
        directory: the directory.
        """
        self.path = Path(directory).absolute()
        self._lock: TextIO | None = None

    def check(self) -> None:
        """Check that it is there, and nobody else's.

        Raises:
            ConfigError: it is not; the message says what to do.
        """
        try:
            found = self.path.lstat()
        except OSError as error:
            raise ConfigError(
                f"work directory {self.path}: {error.strerror}: name the --work of the agent"
            ) from None
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"work directory {self.path}: is no directory: name another")
        if found.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
            raise ConfigError(
                f"work directory {self.path}: belongs to another user: run this as that user"
            )
        if found.st_mode & _OTHERS:
            raise ConfigError(
                f"work directory {self.path}: others on this machine can use it: run "
                f"chmod 700 {self.path}"
            )

    def take(self, party: str) -> None:
        """Make it if need be, and hold it until `release`. At most one agent does.

        Raises:
            ConfigError: it cannot be used.
            PartyTaken: another agent holds it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check()
            lock = os.open(
                self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ConfigError(
                f"work directory {self.path}: {error.strerror}: name another with --work"
            ) from None
        self._lock = os.fdopen(lock, "r+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._lock.read(20).strip() or "unknown"
            self.release()
            raise PartyTaken(
                f"{party}: another agent (process {holder}) uses {self.path}: end that one first, "
                "or give each party a work directory of its own"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def release(self) -> None:
        """Let another agent use it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_used(self) -> bool:
        """Whether an agent runs here now."""
        try:
            with open_regular(self.path / _LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    # -- jobs --------------------------------------------------------------------------------

    def of(self, job: str) -> Path:
        """The directory of a job.

        Raises:
            ConfigError: that is no job id.
        """
        return self.path / check_job_id(job)

    def record_of(self, job: str) -> Path:
        """The audit record of a job's runs, which outlives the job's directory."""
        return self.path / AUDIT / f"{check_job_id(job)}.jsonl"

    @property
    def record(self) -> Path:
        """The agent's own audit record."""
        return self.path / AUDIT / "agent.jsonl"

    def jobs(self) -> Iterator[str]:
        """The ids of the jobs that are here, sorted."""
        for path in sorted(self.path.glob("j*")):
            with contextlib.suppress(ConfigError):
                yield check_job_id(path.name)

    def save(self, job: str, state: Any) -> None:
        """Have a job's state on disk when this returns.

        Args:
            job: the job's id.
            state: what JSON can hold.

        Raises:
            OSError: it cannot be written.
        """
        directory = self.of(job)
        is_new = not directory.exists()
        directory.mkdir(mode=0o700, exist_ok=True)
        _replace_durably(directory / STATE, json.dumps(state))
        if is_new:
            sync_directory(self.path)

    def load(self, job: str) -> Any:
        """What was saved of a job; None if nothing was, or it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(read_text(self.of(job) / STATE, _MOST_BYTES))
        return None

    def decide(self, job: str, verdict: Verdict) -> None:
        """Leave a person's decision for the agent.

        Raises:
            ConfigError: it cannot be written.
        """
        path = self._decision(job)
        try:
            owner = self.path.stat() if os.geteuid() == 0 else None  # the agent must read it
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if owner is not None:
                os.chown(path.parent, owner.st_uid, owner.st_gid)
            _replace_durably(path, verdict.model_dump_json(), owner)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}: run this as the agent's user") from None

    def decisions(self) -> Iterator[tuple[str, Verdict | None]]:
        """Decisions that the agent has not taken yet, by job; None for one that makes no sense."""
        with contextlib.suppress(OSError):
            for path in sorted((self.path / DECISIONS).glob("j*.json")):
                with contextlib.suppress(ConfigError):
                    yield check_job_id(path.stem), self._read_decision(path)

    def is_decided(self, job: str) -> bool:
        """Whether a decision about this job still waits for the agent."""
        return self._decision(job).exists()

    def drop_decision(self, job: str) -> None:
        """The decision has been taken: its effect is on disk."""
        self._decision(job).unlink(missing_ok=True)

    def _decision(self, job: str) -> Path:
        return self.path / DECISIONS / f"{check_job_id(job)}.json"

    @staticmethod
    def _read_decision(path: Path) -> Verdict | None:
        with contextlib.suppress(OSError, ValueError, ValidationError):
            return Verdict.model_validate_json(read_text(path, _MOST_BYTES))
        return None

    def note(self, job: str, noted: Noted) -> None:
        """Note how far a job is; that is no state, so a crash may lose the last note."""
        with contextlib.suppress(OSError), replacing(self.of(job) / PROGRESS) as file:
            json.dump(asdict(noted), file)

    def noted(self, job: str) -> Noted:
        """What was noted last."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Noted(**json.loads(read_text(self.of(job) / PROGRESS, _MOST_BYTES)))
        return Noted()

    # -- the agent itself --------------------------------------------------------------------

    def instance(self) -> str:
        """The instance of the last agent that ran here; "" if none did."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return str(json.loads(read_text(self.path / _AGENT, _MOST_BYTES))["instance"])
        return ""

    def save_instance(self, instance: str) -> None:
        """Remember this agent's instance."""
        _replace_durably(self.path / _AGENT, json.dumps({"instance": instance}))


def _replace_durably(path: Path, text: str, owner: os.stat_result | None = None) -> None:
    with replacing(path, durable=True) as file:
        if owner is not None:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text)
