"""Exit codes, and the one place where an error becomes a line on stderr.

Rules: an error that redislink raised is one line that says what to do, and a traceback only
with ``--verbose``. An error in the user's own program is shown with the traceback of that
program, without the frames of ours below it.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from redislink.errors import (
    BrokerError,
    ConfigError,
    FrameError,
    LinkError,
    PeerError,
    RedisLinkError,
    SecurityError,
)
from redislink.logs import JsonFormatter
from redislink.settings import LONGEST_SECONDS, LogFormat, RedisLinkSettings
from redislink.text import MOST_IN_LINE, one_line, printable


class ExitCode(enum.IntEnum):
    """What the shell sees. ``redislink run`` also passes on a code the program exits with."""

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
    ExitCode.CONFIG: "wrong command line, cluster file, setting or URL",
    ExitCode.BROKER: "broker out of reach, or refused us",
    ExitCode.PEER: "other party missing, late, failed or not matching, or this one taken",
    ExitCode.TAMPERED: "broker delivered what no party sent",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "ended by SIGTERM",
}

# First match wins; an error of a class that is not here is the program's.
_CODES: tuple[tuple[type[RedisLinkError], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (LinkError, ExitCode.CONFIG),
    (BrokerError, ExitCode.BROKER),
    (PeerError, ExitCode.PEER),
    (SecurityError, ExitCode.TAMPERED),
    (FrameError, ExitCode.TAMPERED),
)

_verbose = False
_json = False
_advice = ""
"""The command that finds out more about the broker that this one uses."""
_MORE = "; to find out more: "


def choose_log_format() -> None:
    """Take note of ``REDISLINK_LOG_FORMAT``; then say, also later, what settings are read from."""
    global _advice, _json
    _advice = ""
    notes = _Notes()
    logger = logging.getLogger("redislink.settings")
    logger.handlers[:] = [notes]
    logger.propagate = False
    try:
        _json = RedisLinkSettings.load().log_format is LogFormat.JSON
    except ConfigError:  # of any setting; whoever needs them says so
        _json = False
    notes.go_on()


class _Notes(logging.Handler):
    """Says each record as one line of ours, as soon as it is known in which form."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._early: list[logging.LogRecord] | None = []

    def go_on(self) -> None:
        """Say what was noted, and from now on say it at once."""
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
    """Tracebacks hold errors that are not ours."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _be_verbose(wanted: bool) -> bool:
    """Take note of ``--verbose``, wherever on our part of the command line it stands."""
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


def check_finite(seconds: float) -> float:
    """For options that are times: click's bounds let NaN through."""
    if not seconds <= LONGEST_SECONDS:
        raise typer.BadParameter(f"{seconds} is more than {LONGEST_SECONDS} seconds, or no number")
    return seconds


def exit_code(error: BaseException) -> ExitCode:
    """The code to exit with after ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.PROGRAM)


def say(message: str, *, party: str = "", level: int = logging.INFO) -> None:
    """One line on stderr, marked as ours, or one JSON object.

    Args:
        party: whom it is of, where that is known; text has it in the message.
        level: of ``logging``; text does not show it.
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
    """One line on stdout, safe to print: of a command's results."""
    typer.echo(printable(line))


def show_block(text: str) -> None:
    """Lines of somebody else's on stderr, as a traceback or the output of a process."""
    print(printable(text, keep="\n\t"), file=sys.stderr, end="", flush=True)


class _Lines(logging.Handler):
    """Says each record as one line of ours."""

    def __init__(self, party: str) -> None:
        super().__init__(logging.INFO)
        self._party = party

    def emit(self, record: logging.LogRecord) -> None:
        say(with_party(record.getMessage(), self._party), party=self._party)


@contextlib.contextmanager
def say_progress(party: str) -> Iterator[None]:
    """Say on stderr for whom this party waits, and which of its steps last.

    As JSON, that and whatever else is logged from INFO on.
    """
    if _json:
        with _log_as_json():
            yield
        return
    logger = logging.getLogger("redislink.progress")
    lines = _Lines(party)
    before = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # --verbose would say it twice
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def _log_as_json() -> Iterator[None]:
    if _verbose:  # has a handler already
        yield
        return
    logger, handler = logging.getLogger("redislink"), _handler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the program's own handlers would say it as text
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def with_party(message: str, party: str) -> str:
    """``message`` with the party before it, once."""
    return f"{party}: {message}" if party and not message.startswith(f"{party}: ") else message


def advise_doctor(*words: str | Path | None) -> None:
    """From now on, an error of the broker ends with the command ``redislink doctor`` to run.

    Its examination is not made here: it takes up to 20 seconds, pushes to the broker, and whoever
    starts parties by a script wants the error at once.

    Args:
        words: options, each with its value; those whose value is None are left out, as the doctor
            reads the same settings.
    """
    global _advice
    pairs = zip(words[::2], words[1::2], strict=True)
    given = [str(word) for option, value in pairs if value is not None for word in (option, value)]
    _advice = " ".join(["redislink doctor", *map(_for_shell, given)])


def _for_shell(word: str) -> str:
    return f'"{word}"' if word == "$REDISLINK_BROKER_URL" else shlex.quote(word)


def fail(error: RedisLinkError, party: str = "") -> NoReturn:
    """End the process with the line and the code of ``error``."""
    if _verbose:
        show_block("".join(traceback.format_exception(error)))
    text = with_party(with_advice(str(error) or type(error).__name__, exit_code(error)), party)
    say(text, party=party, level=logging.ERROR)
    raise SystemExit(int(exit_code(error)))


def with_advice(message: str, code: ExitCode) -> str:
    """``message``, and the command that finds out more if the broker is at fault."""
    if code is not ExitCode.BROKER or not _advice:
        return message
    return f"{message}{_MORE}{_advice}"


def without_advice(message: str) -> str:
    """What another process of redislink's said, less the command that it names."""
    return message.partition(_MORE)[0]


def fail_usage(error: typer.TyperException) -> NoReturn:
    """End the process after a command line that cannot be parsed."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "redislink"
    usage = f"{error.format_message().rstrip('.')}: see {command} --help"
    say(usage, level=logging.ERROR)
    raise SystemExit(int(ExitCode.CONFIG))


def fail_program(error: BaseException, program: str, party: str) -> NoReturn:
    """End the process after an error of the user's program, with that program's traceback."""
    frames = error.__traceback__
    shown = frames if _verbose else _from_file(frames, program)
    show_block("".join(traceback.format_exception(type(error), error, shown)))
    text = with_party(f"{program} failed with {type(error).__name__}: see above", party)
    say(text, party=party, level=logging.ERROR)
    raise SystemExit(int(ExitCode.PROGRAM))


def fail_unexpected(error: Exception) -> NoReturn:
    """End the process after an error that redislink should have foreseen."""
    if _verbose:
        show_block("".join(traceback.format_exception(error)))
    hint = "please report it" if _verbose else "run again with --verbose, and please report it"
    say(f"internal error, {type(error).__name__}: {error}: {hint}", level=logging.ERROR)
    raise SystemExit(int(ExitCode.PROGRAM))


def _from_file(frames: TracebackType | None, program: str) -> TracebackType | None:
    """The part of a traceback from the first frame of ``program`` on; None if it has none."""
    while frames is not None and frames.tb_frame.f_code.co_filename != program:
        frames = frames.tb_next
    return frames
