"""The command ``redislink``. Thin: it parses, calls and prints.

Rules: nothing heavy (spu, jax, the broker's server) is imported before a command needs it;
results go to stdout, all else to stderr; every way out is a code of `errors.ExitCode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from redislink import __version__
from redislink.cli import errors
from redislink.cli.acl import acl
from redislink.cli.bench import bench
from redislink.cli.broker import broker
from redislink.cli.demo import demo
from redislink.cli.doctor import doctor
from redislink.cli.errors import ExitCode, Verbose
from redislink.cli.journal import drop_journals, show_journals, verify_journals
from redislink.cli.keys import init, keygen, show_fingerprints
from redislink.cli.run import run
from redislink.cli.sessions import inspect, purge, sessions
from redislink.cli.simulate import simulate
from redislink.cli.top import top
from redislink.cli.trace import merge_files
from redislink.cli.version import version as show_versions
from redislink.errors import RedisLinkError

__all__ = ["ExitCode", "app", "main"]

_EPILOG = "Exit codes: " + ", ".join(f"{int(c)} {text}" for c, text in errors.MEANINGS.items())

app = typer.Typer(
    name="redislink",
    help="SPU computations between parties that listen on no port, over a Redis or Valkey broker.",
    epilog=_EPILOG,
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
        typer.echo(context.get_help())


_trace = typer.Typer(
    help="Merge the timelines that REDISLINK_TRACE_DIR or redislink run --trace recorded.",
    no_args_is_help=True,
)


@_trace.callback()
def _trace_group() -> None:  # else a single command would stand for the group
    pass


_trace.command("merge", epilog=_EPILOG)(merge_files)
_journal = typer.Typer(
    help="Show, check or destroy the journals that redislink run --journal keeps.",
    no_args_is_help=True,
)
_journal.command("show", epilog=_EPILOG)(show_journals)
_journal.command("verify", epilog=_EPILOG)(verify_journals)
_journal.command("drop", epilog=_EPILOG)(drop_journals)
app.command(epilog=_EPILOG)(demo)
app.command(
    epilog=_EPILOG,
    # From PROGRAM on nothing is ours: its options stay untouched.
    context_settings={"allow_interspersed_args": False},
)(run)
app.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})(simulate)
app.command(epilog=_EPILOG)(init)
app.command(epilog=_EPILOG)(keygen)
app.command("fingerprint", epilog=_EPILOG)(show_fingerprints)
app.command(epilog=_EPILOG)(broker)
app.command(epilog=_EPILOG)(acl)
app.command(epilog=_EPILOG)(doctor)
app.command(epilog=_EPILOG)(bench)
app.command(epilog=_EPILOG)(top)
app.command(epilog=_EPILOG)(sessions)
app.command(epilog=_EPILOG)(inspect)
app.command(epilog=_EPILOG)(purge)
app.add_typer(_trace, name="trace", epilog=_EPILOG)
app.add_typer(_journal, name="journal", epilog=_EPILOG)
app.command("version", epilog=_EPILOG)(show_versions)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        arguments: instead of ``sys.argv[1:]``.
    """
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
