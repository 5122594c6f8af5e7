"""Exit codes, and the one place where an error becomes a line on stderr.

Rules: an error that redislink raised becomes one line that says what to do, with a traceback only
under ``--verbose``. An error in the user's own program is shown with that program's traceback,
without our frames.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from redislink.errors import (
    AuditError,
    BrokerError,
    ConfigError,
    FrameError,
    JobError,
    JournalError,
    LinkError,
    PeerError,
    RedisLinkError,
    SecurityError,
)
from redislink.logs import NAME, JsonFormatter
from redislink.settings import LONGEST_SECONDS, LogFormat, RedisLinkSettings, SpuLogLevel
from redislink.text import MOST_IN_LINE, one_line, printable


class ExitCode(enum.IntEnum):
    """The exit codes. ``redislink run`` also passes on the code with which the program exits."""

    OK = 0
    PROGRAM = 1
    CONFIG = 2
    BROKER = 3
    PEER = 4
    TAMPERED = 5
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = {
    ExitCode.OK: "ok",
    ExitCode.PROGRAM: "program failed",
    ExitCode.CONFIG: "wrong command line, cluster file, setting, URL, journal or audit record",
    ExitCode.BROKER: "broker cannot be reached, or refused us",
    ExitCode.PEER: "other party missing, late, failed or not matching, or this one taken",
    ExitCode.TAMPERED: "broker delivered what no party sent",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "ended by SIGTERM",
}
EPILOG = "redislink --help says what the exit codes mean."
"""Of every command but ``redislink`` itself, which lists them."""
ALL_CODES = "\n".join(
    [
        "\b",
        "Exit codes:",
        *(
            textwrap.fill(f"{int(code):5}  {text}", 56, subsequent_indent=" " * 7)
            for code, text in MEANINGS.items()
        ),
    ]
)
"""One below the other, narrow enough for 60 columns; the first line of it keeps them so."""

# The first match wins; any other error counts as the program's.
_CODES: tuple[tuple[type[RedisLinkError], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (JournalError, ExitCode.CONFIG),
    (JobError, ExitCode.PEER),
    (AuditError, ExitCode.CONFIG),
    (LinkError, ExitCode.CONFIG),
    (BrokerError, ExitCode.BROKER),
    (PeerError, ExitCode.PEER),
    (SecurityError, ExitCode.TAMPERED),
    (FrameError, ExitCode.TAMPERED),
)

_verbose = False
_json = False
_advice = ""
"""The command to run to find out more about the broker in use."""
_MORE = "; to find out more: "


def choose_log_format() -> None:
    """Read ``REDISLINK_LOG_FORMAT``; then say, now and later, where settings were read from."""
    global _advice, _json
    _advice = ""
    notes = _Notes()
    logger = logging.getLogger("redislink.settings")
    logger.handlers[:] = [notes]
    logger.propagate = False
    try:
        _json = RedisLinkSettings.load().log_format is LogFormat.JSON
    except ConfigError:  # whoever needs the settings reports it
        _json = False
    notes.go_on()


class _Notes(logging.Handler):
    """Prints each record as one of our lines, once the format is known."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._early: list[logging.LogRecord] | None = []

    def go_on(self) -> None:
        """Print the records so far, and from now on print each at once."""
        early, self._early = self._early or [], None
        for record in early:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        if self._early is None:
            say(record.getMessage(), level=record.levelno)
        else:
            self._early.append(record)


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    text = _PrintableFormatter("%(asctime)s %(name)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if _json else text)
    return handler


class _PrintableFormatter(logging.Formatter):
    """Makes records safe to print: tracebacks may hold any text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _be_verbose(wanted: bool) -> bool:
    """Turn on ``--verbose``, wherever it is on our part of the command line."""
    global _verbose
    if wanted and not _verbose:
        _verbose = True
        logger = logging.getLogger("redislink")
        logger.addHandler(_handler())
        logger.setLevel(logging.DEBUG)
    return wanted


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_be_verbose,
        is_eager=True,
        help="Log to stderr; show tracebacks of redislink's own errors.",
    ),
]


def spu_log(settings: RedisLinkSettings) -> dict[str, str]:
    """The variable that shows more of SPU's log under ``--verbose``, unless the settings say."""
    if not _verbose or "spu_log_level" in settings.model_fields_set:
        return {}
    return {"REDISLINK_SPU_LOG_LEVEL": SpuLogLevel.INFO.value}


def check_finite(seconds: float) -> float:
    """Check an option that is a time: click's bounds let NaN through."""
    if not seconds <= LONGEST_SECONDS:
        raise typer.BadParameter(
            f"{seconds} is more than {LONGEST_SECONDS} seconds, or not a number"
        )
    return seconds


def exit_code(error: BaseException) -> ExitCode:
    """The exit code for ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.PROGRAM)


def say(message: str, *, party: str = "", level: int = logging.INFO) -> None:
    """Print one line on stderr, marked as ours, or one JSON object.

    Args:
        message: the text; it is made safe to print.
        party: the party that it is about, if known; only JSON shows it.
        level: its ``logging`` level; only JSON shows it.
    """
    line = one_line(message, MOST_IN_LINE)
    if _json:
        fields = {"name": "redislink.cli", "levelno": level, "msg": line, "party": party or None}
        record = logging.makeLogRecord(fields | {"levelname": logging.getLevelName(level)})
        line = JsonFormatter().format(record)
    else:
        line = f"redislink: {line}"
    print(line, file=sys.stderr, flush=True)


def show(line: str) -> None:
    """Print one line of a command's results on stdout, made safe to print."""
    typer.echo(printable(line))


def show_block(text: str) -> None:
    """Print somebody else's lines on stderr: a traceback, or the output of a process."""
    print(printable(text, keep="\n\t"), file=sys.stderr, end="", flush=True)


class _Lines(logging.Handler):
    """Prints each record as one of our lines."""

    def __init__(self, party: str) -> None:
        super().__init__()
        self._party = party

    def emit(self, record: logging.LogRecord) -> None:
        text = with_party(record.getMessage(), self._party)
        say(text, party=self._party, level=record.levelno)


class _Failures(logging.Filter):
    """Holds back that a session has failed: the calls of the program raise the same error.

    If it ends the program, it is printed then. A program with handlers of its own hears at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_heard(record):
            return True
        self._held.append(record)
        return False

    def say_rest(self, error: BaseException | None) -> None:
        """Print what the program's own end, by ``error``, does not tell."""
        told = str(error) if isinstance(error, RedisLinkError) else ""
        for record in self._held:
            failure = vars(record)["failure"]
            if error is not None and f"({record.party} could not load its data" in failure:  # type: ignore[attr-defined]
                continue  # a peer has ended because of this very error
            if not told or (told not in failure and failure not in told):
                say(record.getMessage(), level=record.levelno)


@contextlib.contextmanager
def _tell_failures_once() -> Iterator[None]:
    logger, failures = logging.getLogger(NAME), _Failures()
    logger.addFilter(failures)
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        logger.removeFilter(failures)
        failures.say_rest(ended_by)


@contextlib.contextmanager
def say_progress(party: str) -> Iterator[None]:
    """Report on stderr whom this party waits for, and which of its steps take long.

    In JSON, report everything else that is logged at INFO or above too.
    """
    if _json:
        with _log_as_json():
            yield
        return
    with _tell_failures_once(), say_records("redislink.progress", party):
        yield


@contextlib.contextmanager
def say_for_ever(party: str, *names: str) -> Iterator[None]:
    """Print what these loggers are told, for a command that joins sessions again and again.

    How each of them failed is left out, because the command says it itself. In JSON, report
    everything else that is logged at INFO or above too.
    """
    logger = logging.getLogger(NAME)
    with contextlib.ExitStack() as stack:
        if _json:
            stack.enter_context(_log_as_json())
        logger.addFilter(_is_heard)
        stack.callback(logger.removeFilter, _is_heard)
        for name in names:
            stack.enter_context(say_records(name, party))
        yield


def _is_heard(record: logging.LogRecord) -> bool:
    """Whether it tells of no failure, or somebody listens: Python would print it otherwise."""
    return not hasattr(record, "failure") or logging.getLogger(record.name).hasHandlers()


@contextlib.contextmanager
def say_records(name: str, party: str) -> Iterator[None]:
    """Print what this logger is told, at INFO or above, as our lines; all of it if verbose.

    Args:
        name: the logger.
        party: the party that it is about.
    """
    logger, lines = logging.getLogger(name), _Lines(party)
    before = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    logger.propagate = False  # --verbose would print it twice
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def _log_as_json() -> Iterator[None]:
    if _verbose:  # there is a handler already
        yield
        return
    logger, handler = logging.getLogger("redislink"), _handler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the program's own handlers would print it as text
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def with_party(message: str, party: str) -> str:
    """``message`` with the party before it, unless it is there already."""
    return f"{party}: {message}" if party and not message.startswith(f"{party}: ") else message


def advise_doctor(*words: str | Path | None) -> None:
    """From now on, end an error of the broker with the ``redislink doctor`` command to run.

    The doctor does not run by itself: it takes up to 20 seconds and pushes to the broker, and
    whoever starts parties from a script wants the error at once.

    Args:
        words: options of the doctor, each followed by its value. Options with the value None are
            left out, because the doctor reads the same settings.
    """
    global _advice
    pairs = zip(words[::2], words[1::2], strict=True)
    given = [str(word) for option, value in pairs if value is not None for word in (option, value)]
    _advice = " ".join(["redislink doctor", *map(_for_shell, given)])


def _for_shell(word: str) -> str:
    return f'"{word}"' if word == "$REDISLINK_BROKER_URL" else shlex.quote(word)


def fail(error: RedisLinkError, party: str = "") -> NoReturn:
    """End the process: print the line for ``error`` and exit with its code."""
    if _verbose:
        show_block("".join(traceback.format_exception(error)))
    text = with_party(with_advice(str(error) or type(error).__name__, exit_code(error)), party)
    say(text, party=party, level=logging.ERROR)
    raise SystemExit(int(exit_code(error)))


def with_advice(message: str, code: ExitCode) -> str:
    """``message``, with the command to run next if the broker is at fault."""
    if code is not ExitCode.BROKER or not _advice:
        return message
    return f"{message}{_MORE}{_advice}"


def without_advice(message: str) -> str:
    """The message of another redislink process, without the command that it names."""
    return message.partition(_MORE)[0]


def fail_usage(error: typer.TyperException) -> NoReturn:
    """End the process because the command line cannot be parsed."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "redislink"
    usage = f"{error.format_message().rstrip('.')}: see {command} --help"
    say(usage, level=logging.ERROR)
    raise SystemExit(int(ExitCode.CONFIG))


def fail_program(error: BaseException, program: str, party: str) -> NoReturn:
    """End the process because the user's program failed; show that program's traceback.

    A file that cannot be opened is one line: where in the program, which file, and why.
    """
    frames = error.__traceback__
    shown = frames if _verbose else _from_file(frames, program)
    if shown is None and not isinstance(error, SyntaxError):
        shown = frames  # of a module
    if isinstance(error, OSError) and error.filename is not None and not _verbose:
        lines = [n for frame, n in traceback.walk_tb(frames) if frame.f_code.co_filename == program]
        line = f", line {lines[-1]}" if lines else ""
        why = error.strerror or type(error).__name__
        text = f"{program}{line}: {error.filename}: {why}: check the path (--verbose shows more)"
    else:
        show_block("".join(traceback.format_exception(type(error), error, shown)))
        text = f"{program} failed with {type(error).__name__}: see above"
    say(with_party(text, party), party=party, level=logging.ERROR)
    raise SystemExit(int(ExitCode.PROGRAM))


def fail_unexpected(error: Exception) -> NoReturn:
    """End the process because of a bug in redislink."""
    if _verbose:
        show_block("".join(traceback.format_exception(error)))
    hint = "please report it" if _verbose else "run again with --verbose, and please report it"
    say(f"internal error, {type(error).__name__}: {error}: {hint}", level=logging.ERROR)
    raise SystemExit(int(ExitCode.PROGRAM))


def _from_file(frames: TracebackType | None, program: str) -> TracebackType | None:
    """The part of a traceback from the first frame of ``program`` on; None if there is none."""
    while frames is not None and frames.tb_frame.f_code.co_filename != program:
        frames = frames.tb_next
    return frames
