"""Runs a job: ``redislink run`` in a process of its own, within its limits.

Rules:
- The process gets its own session, directory, environment and log. Nothing of the agent's
  environment reaches it but a few names and the settings of the broker; arguments of a driver never
  become environment.
- Nothing here waits: `Running.poll` is called about twice a second, and does what is due.
- Who starts a job stays: the process ends with the thread that started it (`redislink.jobs.child`).
- No process of a job outlives it, wherever it has moved itself.
- What the process says is untrusted: it runs a program of somebody else's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from redislink.files import MOST_READ, read_text, replacing
from redislink.jobs import child
from redislink.jobs.cgroup import ControlGroup, ControlGroups
from redislink.jobs.policy import JobLimits
from redislink.jobs.usage import cpu_seconds, disk_bytes, family, has_exited, marked, memory_bytes
from redislink.session.supervisor import MOST_BYTES, make_line
from redislink.text import one_line

LOG: Final = "log"
OLD_LOG: Final = "log.1"
JOURNAL: Final = "journal"
RESULTS: Final = "results"
SCRATCH: Final = "scratch"
_ENDED: Final = "ended.json"
_LOG_START: Final = "log.start"
MOST_LOG: Final = 8 << 20
"""Bytes of the log; then it becomes the old one, and the one before that is lost."""
_RETRIES: Final = 1_000_000
"""More than fit into the time that a job may take: the agents decide when a job has failed."""
_LOOK_INTERVAL: Final = 0.5
_DISK_INTERVAL: Final = 5.0
GRACE: Final = 10.0
"""Seconds from SIGTERM to SIGKILL."""
_MOST_PARTIES: Final = 64
_HAS_PRCTL: Final = hasattr(ctypes.CDLL(None), "prctl")
"""Whether the kernel can end a job with its agent: Linux."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a job has used so far, in all its runs here: seconds."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to run.

    Attributes:
        job: the job's id.
        directory: the job's own directory; it exists, and nobody else may read it.
        cluster: the cluster file of the job's session.
        party: the party that it runs as.
        identity: the party's key file.
        program: the file that is run.
        arguments: the words that follow it.
        environment: the settings of the broker, and what else the process is to have.
        data: the path of each data set.
        audit: the file to which the run appends its audit record; None for none.
        report: the page to write when it has ended; None for none.
        agent_record: the agent's own record, for that page; None for none.
        limits: what it may use.
        used: what it has used before.
    """

    job: str
    directory: Path
    cluster: Path
    party: str
    identity: Path
    program: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    data: Mapping[str, Path] = field(default_factory=dict)
    audit: Path | None = None
    report: Path | None = None
    agent_record: Path | None = None
    limits: JobLimits = field(default_factory=JobLimits)
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        attempt: which one this is, from 1; ``redislink run --retries`` counts.
        has_met: whether all parties have joined.
        step: the number of its step; 0 before the first.
        text: the call; or why it waits, before the first step.
        waits_for: whom it waits for, and what is known of each.
    """

    attempt: int = 1
    has_met: bool = False
    step: int = 0
    text: str = ""
    waits_for: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"step {self.step}, {self.text}" if self.step else self.text or "starting"
        rest = f", waiting for {', '.join(self.waits_for)}" if self.waits_for else ""
        return f"{what}{rest}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run has ended.

    Attributes:
        why: one line for this party's own people; empty if the program came to its end.
        told: one line that the driver and the other parties may read.
        peer: the party whose failure it was; None if it was this one's.
        may_pass: whether running it again, with nothing changed, may work.
    """

    why: str = ""
    told: str = ""
    peer: str | None = None
    may_pass: bool = False

    @property
    def ended_well(self) -> bool:
        """Whether the program came to its end."""
        return not self.why


class Running:
    """A job's process. `Runner.start` makes it; call `poll` until it gives an `Outcome`."""

    def __init__(
        self,
        task: Task,
        process: subprocess.Popen[bytes],
        line: socket.socket,
        clock: Callable[[], float],
        group: ControlGroup | None,
        guard: IO[bytes] | None = None,
    ) -> None:
        """Not for users."""
        self.task = task
        self.progress = Progress()
        self._process = process
        self._line = line
        self._clock = clock
        self._group = group
        self._guard = guard
        self._started = clock()
        self._next_look = self._next_disk_look = self._started
        self._cpu = 0.0
        self._end: dict[str, Any] = {}
        self._asked: Outcome | None = None
        self._kill_at = float("inf")
        self._outcome: Outcome | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def used(self) -> Used:
        """What the job has used so far."""
        before = self.task.used
        return Used(before.wall + self._clock() - self._started, before.cpu + self._cpu)

    def poll(self) -> Outcome | None:
        """Do what is due. Returns how the run has ended; None while it goes on."""
        if self._outcome is not None:
            return self._outcome
        self._take_messages()
        if self._has_exited():
            self._outcome = self._conclude()
            return self._outcome
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL
            self._look(now)
        if now >= self._kill_at:
            self._kill()
        return None

    def end(self, reason: str, *, may_pass: bool = False) -> None:
        """Make the run end: at once if the program lets it, and after 10 s in any case.

        Args:
            reason: why, in one line, which the other parties are told.
            may_pass: whether the job is to go on later.
        """
        if self._asked is not None or self._outcome is not None:
            return
        self._asked = Outcome(reason, reason, may_pass=may_pass)
        with contextlib.suppress(OSError):
            self._line.send(json.dumps({"end": reason, "retryable": may_pass}).encode())
        self._process.send_signal(signal.SIGTERM)
        self._kill_at = self._clock() + GRACE

    # -- what the process says ---------------------------------------------------------------

    def _take_messages(self) -> None:
        for _ in range(100):
            try:
                message = self._line.recv(MOST_BYTES)
            except OSError:  # none now
                return
            if not message:
                return
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                self._take_untrusted(json.loads(message))

    def _take_untrusted(self, told: dict[str, Any]) -> None:
        attempt = self.progress.attempt
        match told["kind"]:
            case "joining":
                waits_for = _names(told["waits_for"])
                self.progress = Progress(attempt, text="joining", waits_for=waits_for)
            case "joined":
                self.progress = Progress(attempt, has_met=True, text="joined")
            case "step":
                number, chain = int(told["number"]), one_line(str(told["chain"]), 80)
                text = one_line(str(told["text"]), 200) + (f" of {chain}" if chain else "")
                waits_for = _names(told["waits_for"])
                self.progress = Progress(
                    attempt, step=number, has_met=True, text=text, waits_for=waits_for
                )
            case "attempt":
                why = one_line(str(told["why"]), 200)
                self.progress = Progress(int(told["number"]), text=f"starting again: {why}")
            case "end":
                self._end = _end_untrusted(told)

    # -- limits ------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        limits, directory = self.task.limits, self.task.directory
        processes = family(self.pid)
        self._cpu = max(self._cpu, cpu_seconds(processes))
        _bound_log(directory)
        over = None
        used = self.used
        if limits.wall is not None and used.wall > limits.wall:
            over = f"ran for more than {limits.wall:g} s"
        elif limits.cpu is not None and used.cpu > limits.cpu:
            over = f"used more than {limits.cpu:g} s of CPU"
        elif limits.memory is not None and memory_bytes(processes, limits.memory) > limits.memory:
            over = f"used more than {shown_bytes(limits.memory)} of memory"
        elif limits.disk is not None and now >= self._next_disk_look:
            self._next_disk_look = now + _DISK_INTERVAL
            if disk_bytes(directory) > limits.disk:
                over = f"used more than {shown_bytes(limits.disk)} of disk"
        if over is not None:
            self.end(f"the job {over}, its limit here")

    # -- the end -----------------------------------------------------------------------------

    def _has_exited(self) -> bool:
        """Whether it has exited; it stays a zombie, so that nobody else gets its number."""
        if hasattr(os, "waitid"):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, options) is not None
        return has_exited(self.pid)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()

    def _conclude(self) -> Outcome:
        self._take_messages()
        self._kill()  # what it has left behind
        if self._guard is not None:
            with contextlib.suppress(OSError), self._guard:  # a guard may have been killed
                self._guard.write(b".")
        code = self._process.wait()
        end_leftovers(self.task.directory)
        self._line.close()
        outcome = self._judge(code)
        if self._group is not None:
            self._group.remove()
        return outcome

    def _judge(self, code: int) -> Outcome:
        if self._end.get("code") == 0 or (code == 0 and not self._end):
            return Outcome()
        if self._asked is not None:
            return self._asked
        if self._end and code >= 0:
            return _outcome(self._end)
        if code == -signal.SIGXCPU and self.task.limits.cpu is not None:
            why = f"the job used more than {self.task.limits.cpu:g} s of CPU, its limit here"
            return Outcome(why, why)
        if self._group is not None and self._group.ran_out_of_memory():
            why = f"the job used more than {shown_bytes(self.task.limits.memory or 0)} of memory"
            return Outcome(f"{why}, its limit here", f"{why}, its limit here")
        if code < 0:
            name = signal.Signals(-code).name
            why = f"its process was ended by {name}"
            return Outcome(why, why, may_pass=True)
        last = last_line(self.task.directory)
        return Outcome(last or f"exit code {code}", f"exit code {code}", may_pass=code == 3)


class Runner:
    """Starts jobs."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, groups: ControlGroups | None = None
    ) -> None:
        """Args:
        clock: seconds.
        groups: the control group that jobs get a part of, if there is one.
        """
        self._clock = clock
        self._groups = groups

    def start(self, task: Task) -> Running:
        """Start the process of a job, in which it begins or, if it has a journal, goes on.

        Raises:
            OSError: it cannot be started.
        """
        directory = task.directory
        for name in (RESULTS, SCRATCH):
            (directory / name).mkdir(mode=0o700, exist_ok=True)
        (directory / _ENDED).unlink(missing_ok=True)
        group = None
        if self._groups is not None:
            group = self._groups.make(task.job, task.limits.memory)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            line, childs_end = make_line()
            ours.enter_context(line)
            theirs.enter_context(childs_end)
            log = theirs.enter_context(_open_log(directory / LOG))
            passed = [childs_end.fileno()]
            guard = None
            if not _HAS_PRCTL:
                reading, writing = os.pipe()
                theirs.enter_context(os.fdopen(reading, "rb", 0))
                guard = ours.enter_context(os.fdopen(writing, "wb", 0))
                passed.append(reading)
            limits = {
                "parent": os.getpid(),
                "guard": None if guard is None else reading,
                "cgroup": None if group is None else str(group.path),
                "cpu": _rest(task.limits.cpu, task.used.cpu),
                "file": task.limits.disk,
            }
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", child.__file__, json.dumps(limits)),
                    *(sys.executable, "-P", "-m", "redislink", "run"),
                    *_options(task, childs_end.fileno()),
                    *(str(task.program), *task.arguments),
                ],
                cwd=directory / SCRATCH,
                env=_environment(task),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
                umask=0o077,
            )
            ours.pop_all()
        return Running(task, process, line, self._clock, group, guard)


def outcome_before(directory: Path) -> Outcome | None:
    """How the last run of a job has ended, if its agent ended before it learned that."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        return _outcome(_end_untrusted(json.loads(read_text(directory / _ENDED, MOST_BYTES))))
    return None


def end_leftovers(directory: Path) -> int:
    """End whatever processes of a job are still there; return how many."""
    found = marked(_mark(directory))
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def clear(directory: Path) -> None:
    """Remove what a job needs only while it runs: its journal and its scratch files."""
    for name in (JOURNAL, SCRATCH):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / _ENDED).unlink(missing_ok=True)


def last_line(directory: Path) -> str:
    """The last line of a job's log, made safe to show; "" if it has none."""
    with contextlib.suppress(OSError):
        lines = tail(directory, 4096).splitlines()
        return next((one_line(line) for line in reversed(lines) if line.strip()), "")
    return ""


def tail(directory: Path, most: int = MOST_READ) -> str:
    """The end of a job's log, as text.

    Args:
        directory: the job's directory.
        most: the most bytes to read.
    """
    with contextlib.suppress(FileNotFoundError), (directory / LOG).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        return file.read(most).decode(errors="replace")
    return ""


def log_start(directory: Path) -> int:
    """How many bytes of a job's log are lost, before those in the old log."""
    with contextlib.suppress(OSError, ValueError):
        return int(read_text(directory / _LOG_START, 40))
    return 0


def shown_bytes(count: int) -> str:
    """A number of bytes as a person writes it: 8 GiB."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


def _options(task: Task, descriptor: int) -> list[str]:
    directory = task.directory
    words = [
        *("--cluster", str(task.cluster), "--party", task.party),
        *("--identity", str(task.identity), "--journal", str(directory / JOURNAL)),
        *("--retries", str(_RETRIES), "--results", str(directory / RESULTS)),
        *("--supervised", str(descriptor), "--ended", str(directory / _ENDED)),
    ]
    if task.audit is not None:
        words += ["--audit", str(task.audit)]
    if task.report is not None:
        words += ["--report", str(task.report)]
        if task.agent_record is not None:
            words += ["--agent-record", str(task.agent_record)]
    for name, path in task.data.items():
        words += ["--data", f"{name}={path}"]
    return words


def _environment(task: Task) -> dict[str, str]:
    scratch = str(task.directory / SCRATCH)
    fixed = {"HOME": scratch, "TMPDIR": scratch, "REDISLINK_BROKER_WAIT": "true"}
    if site.ENABLE_USER_SITE:  # where redislink may be, and HOME is another one now
        fixed["PYTHONUSERBASE"] = site.getuserbase()
    name, _, value = _mark(task.directory).partition("=")
    return {**task.environment, **fixed, name: value}


def _mark(directory: Path) -> str:
    return f"REDISLINK_JOB_DIR={directory.resolve()}"


def _rest(limit: float | None, used: float) -> int | None:
    return None if limit is None else max(1, int(limit - used) + 1)


def _open_log(path: Path) -> Any:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)


def _bound_log(directory: Path) -> None:
    """Begin the log anew once it is long. What is written meanwhile is lost."""
    log, old = directory / LOG, directory / OLD_LOG
    with contextlib.suppress(OSError):
        if log.stat().st_size <= MOST_LOG:
            return
        start = log_start(directory) + (old.stat().st_size if old.exists() else 0)
        with replacing(directory / _LOG_START) as file:
            file.write(str(start))
        shutil.copyfile(log, old)
        os.truncate(log, 0)


def _names(told: Any) -> tuple[str, ...]:
    return tuple(one_line(str(name), 200) for name in list(told)[:_MOST_PARTIES])


def _outcome(end: dict[str, Any]) -> Outcome:
    if end["code"] == 0:
        return Outcome()
    code = f"exit code {end['code']}"
    return Outcome(end["why"] or code, end["told"] or code, end["peer"], end["retryable"])


def _end_untrusted(told: dict[str, Any]) -> dict[str, Any]:
    peer = told.get("peer")
    return {
        "code": int(told["code"]),
        "why": one_line(str(told.get("why", ""))),
        "told": one_line(str(told.get("told", ""))),
        "peer": None if peer is None else one_line(str(peer), 64),
        "retryable": told.get("retryable") is True,
    }
