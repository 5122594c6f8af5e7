"""``redislink run``: run one program as one party.

Rules: what is wrong with cluster file or party is said before the program starts; the program
sees the same world as under ``python PROGRAM ARGS``, plus ``REDISLINK_CLUSTER_FILE``,
``REDISLINK_PARTY`` and what ``--identity`` and ``--trace`` stand for; its exit code is passed on.
SIGTERM ends the session for all at once, with code 143, unless the program has a
handler of its own.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from redislink.cli import errors, who
from redislink.cli.errors import ExitCode, Verbose
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError, RedisLinkError
from redislink.identity import Identity
from redislink.settings import RedisLinkSettings

if TYPE_CHECKING:
    from redislink.session import Session

_GRACE: Final = 5.0
"""Seconds that the program gets to end after SIGTERM has ended its sessions."""


def run(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", help="Python file that every party runs.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="Handed to the program untouched.", show_default=False),
    ] = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="DIR",
            help="Record a timeline there, for redislink trace merge; else REDISLINK_TRACE_DIR.",
            show_default=False,
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run PROGRAM as one party; a bare redislink.Session.join() in it joins the session.

    The same program is started by every party, on its own machine and with its own data:

        redislink run --cluster cluster.yaml --party alice --identity alice.key program.py
    """
    path, _, name = who.resolve(RedisLinkSettings.load(), cluster, party, identity)
    if not Path(program).is_file():
        raise ConfigError(f"program {program}: there is no such file: check the path")
    os.environ["REDISLINK_CLUSTER_FILE"] = str(path.resolve())
    os.environ["REDISLINK_PARTY"] = name
    if identity is not None:
        Identity.load(identity)  # what is wrong with it is said now
        os.environ["REDISLINK_IDENTITY_FILE"] = str(identity.resolve())
    if trace is not None:
        os.environ["REDISLINK_TRACE_DIR"] = str(trace.resolve())
    _run_as_main(program, arguments or [], name)


def _run_as_main(program: str, arguments: list[str], party: str) -> None:
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).resolve().parent)
    try:
        with errors.say_progress(party), ended_by_sigterm(party):
            runpy.run_path(program, run_name="__main__")
    except RedisLinkError as error:
        errors.fail(error, party)
    except KeyboardInterrupt:
        errors.say(f"{party}: interrupted")
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except Exception as error:  # noqa: BLE001 - whatever the program raises is shown and ends it
        errors.fail_program(error, program, party)


class Terminated(SystemExit):
    """Raised in the program by SIGTERM."""

    told_to_peers = "ended by SIGTERM"
    """What a `Session` that it leaves tells the other parties."""


@contextlib.contextmanager
def ended_by_sigterm(party: str) -> Iterator[None]:
    """Within this block SIGTERM aborts every open session, then raises `Terminated`.

    A handler alone would not do. Python runs it in the main thread, which may be inside SPU and
    wait there for a peer; and what it raises may hit the main thread halfway through a message,
    with the ABORT still to be sent. So a thread hears of the signal, ends the sessions, and only
    then has the main thread raise.
    """
    heard, sessions_ended, is_over = threading.Event(), threading.Event(), threading.Event()
    code = int(ExitCode.TERMINATED)

    def stop(_number: int, _frame: FrameType | None) -> None:
        waits = not sessions_ended.is_set() and (heard.is_set() or bool(_open_sessions()))
        if waits or is_over.is_set():
            return
        heard.set()
        raise Terminated(code)

    def listen() -> None:
        while (numbers := os.read(read_end, 64)) and signal.SIGTERM not in numbers:
            continue
        if not numbers or signal.getsignal(signal.SIGTERM) is not stop:
            return
        heard.set()
        for session in _open_sessions():
            session.abort(Terminated.told_to_peers)
        sessions_ended.set()
        if not is_over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if not is_over.wait(_GRACE):
            errors.say(f"{party}: ended by SIGTERM, in the middle of a computation")
            sys.stdout.flush()
            os._exit(code)

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    handler_before = signal.signal(signal.SIGTERM, stop)
    listener = threading.Thread(target=listen, name="redislink-sigterm", daemon=True)
    listener.start()
    try:
        yield
    except (Terminated, RedisLinkError):
        # What the program raises once its session has been ended is a consequence.
        if not heard.is_set():
            raise
        errors.say(f"{party}: ended by SIGTERM")
        raise SystemExit(code) from None
    finally:
        is_over.set()
        signal.set_wakeup_fd(wakeup_before)
        os.close(write_end)  # ends the listener, if it has not heard
        listener.join()
        signal.signal(signal.SIGTERM, handler_before)
        os.close(read_end)


def _open_sessions() -> list[Session]:
    module = sys.modules.get("redislink.session")
    return [] if module is None else module.open_sessions()
