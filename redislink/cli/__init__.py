"""The command ``redislink``. Thin: it parses, calls and prints.

Rules: a command's module is imported when the command is asked for, and nothing heavy (spu, jax,
the broker's server) before it is needed; results go to stdout, all else to stderr; every way out
is a code of `errors.ExitCode`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, NoReturn

import typer

from redislink._version import __version__
from redislink.cli import errors
from redislink.cli.errors import ALL_CODES, EPILOG, ExitCode, Verbose
from redislink.cli.output import Group, keep_examples
from redislink.errors import RedisLinkError

__all__ = ["ExitCode", "app", "main"]

_COMMANDS: Final = {
    "demo": "demo:demo",
    "run": "run:run",
    "simulate": "simulate:simulate",
    "sidecar": "sidecar:sidecar",
    "ppd": "ppd:ppd",
    "init": "init:init",
    "keygen": "keys:keygen",
    "fingerprint": "keys:show_fingerprints",
    "broker": "broker:broker",
    "acl": "acl:acl",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "size": "size:show_size",
    "top": "top:top",
    "sessions": "sessions:sessions",
    "inspect": "sessions:inspect",
    "purge": "sessions:purge",
    "agent": "agent:agent",
    "submit": "submit:submit",
    "jobs": "jobs:app",
    "forward": "forward:forward",
    "trace": "trace:app",
    "journal": "journal:app",
    "audit": "audit:app",
    "report": "report:report",
    "programs": "programs:app",
    "policy": "policy:app",
    "mplang": "mplang:app",
    "version": "version:version",
}
"""In the order of the help: where each command's function or group is, in this package."""
_FIRST_COMMANDS: Final = f"""\
redislink {__version__}: SPU computations between parties that
listen on no port, over a Redis or Valkey broker.

To begin with:

  redislink demo               see it work, set up by itself
  redislink simulate PROGRAM   run yours as all parties here
  redislink init               make keys and a cluster file
  redislink doctor             is all ready for a run?
  redislink run PROGRAM        take part as one party

redislink --help lists all commands; redislink run --help
explains one."""
"""For whoever types no command; 60 columns are enough."""
_PROGRAM_FOLLOWS: Final = {"ppd", "run", "simulate", "sidecar"}
"""From PROGRAM on nothing is ours: its options stay untouched."""


@functools.cache
def _command(name: str) -> Any:
    module, _, attribute = _COMMANDS[name].partition(":")
    found = getattr(importlib.import_module(f"redislink.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
        interspersed = {"allow_interspersed_args": name not in _PROGRAM_FOLLOWS}
        found.command(name, epilog=EPILOG, context_settings=interspersed)(function)
    command = typer.main.get_command(found)
    command.name = name
    keep_examples(command)
    return command


class _OnDemand(Mapping[str, Any]):
    """All commands, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return _command(name)

    def __contains__(self, name: object) -> bool:
        return name in _COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Group(Group):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _OnDemand()

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 - TyperGroup's signature
        return list(self.commands)  # their names alone; the base class asks for each


app = typer.Typer(
    name="redislink",
    cls=_Group,
    help="SPU computations between parties that listen on no port, over a Redis or Valkey broker.",
    epilog=ALL_CODES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        errors.show(f"redislink {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(_FIRST_COMMANDS)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        arguments: instead of ``sys.argv[1:]``.
    """
    # At its end Python looks for garbage among all that jax made: half a second of a core.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    errors.choose_log_format()
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="redislink", standalone_mode=False)
    except typer.TyperException as error:
        errors.fail_usage(error)
    except RedisLinkError as error:
        errors.fail(error)
    except typer.Abort:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except Exception as error:  # noqa: BLE001 - a fault of ours; the line says how to see it all
        errors.fail_unexpected(error)
    raise SystemExit(result if isinstance(result, int) else int(ExitCode.OK))
