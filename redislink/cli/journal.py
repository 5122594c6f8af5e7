"""``redislink journal show``, ``verify`` and ``drop``: journals of steps on this machine.

Rules: no value of a step is shown, only calls, sizes, digests and times; drop destroys nothing
before it has shown what and asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli.errors import EPILOG, ExitCode, Verbose, say, show
from redislink.cli.output import JsonOption, count, group, moment, size
from redislink.cli.who import IdentityOption
from redislink.errors import ConfigError, JournalError
from redislink.identity.keypair import Identity
from redislink.journal import describe, drop, find_journals, verify
from redislink.settings import RedisLinkSettings
from redislink.text import one_line, printable

if TYPE_CHECKING:
    from redislink.operate.journals import JournalView

_WIDTH: Final = 120
_DIGITS: Final = 16
Directory = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR",
        help="Directory of the journals, or one journal in it; otherwise REDISLINK_JOURNAL_DIR.",
        show_default=False,
    ),
]
app = group("Show, check or destroy the journals that redislink run --journal keeps.")


@app.command("show", epilog=EPILOG)
def show_journals(
    directory: Directory = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show what journals hold: their steps, with sizes, digests and times, but no values.

    A journal opens with the key of its party, and while no run uses it.
    """
    from redislink.operate.journals import view_of  # loads numpy

    key = _key(identity)

    def show_one(path: Path) -> None:
        view = view_of(describe(path, key))
        if as_json:
            typer.echo(json.dumps(_as_dict(view)))
        else:
            _print(view)

    _at_each(_found(directory), show_one)


@app.command("verify", epilog=EPILOG)
def verify_journals(
    directory: Directory = None, identity: IdentityOption = None, verbose: Verbose = False
) -> None:
    """Open everything that journals hold, and say what is damaged. Nothing is changed."""
    key = _key(identity)

    def check(path: Path) -> None:
        found = verify(path, key)
        for problem in found.problems:
            say(f"journal {path}: {problem}")
        if found.problems:
            raise JournalError(
                f"journal {path}: {len(found.problems)} of its {found.entries} entries and "
                f"{found.blobs} blobs are damaged: restore the directory from a copy, or start all "
                "parties anew with --fresh"
            )
        torn = f", {size(found.torn_bytes)} after a crash that do not count" * bool(
            found.torn_bytes
        )
        show(
            f"{path}: good: {count(found.entries)} entries, {count(found.blobs)} blobs, "
            f"{size(found.size)}{torn}"
        )

    _at_each(_found(directory), check)


@app.command("drop", epilog=EPILOG)
def drop_journals(
    directory: Directory = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    verbose: Verbose = False,
) -> None:
    """Destroy journals, after asking: their sessions cannot be resumed any more.

    It needs no key. A journal that a run uses is refused.
    """
    paths = _found(directory)
    for path in paths:
        show(f"{path}: {size(_bytes_in(path))}")
    what = printable(str(paths[0])) if len(paths) == 1 else f"these {len(paths)} journals"
    if not yes and not typer.confirm(f"Destroy {what}?", default=False, err=True):
        say("nothing removed")
        raise typer.Abort
    _at_each(paths, drop)


def _bytes_in(directory: Path) -> int:
    try:
        return sum(file.lstat().st_size for file in directory.iterdir())
    except OSError:  # `drop` says why, if it matters
        return 0


def _key(identity: Path | None) -> Identity:
    path = identity or RedisLinkSettings.load().identity_file_of()
    if path is None:
        raise ConfigError("no key: give --identity FILE, or set REDISLINK_IDENTITY_FILE")
    return Identity.load(path)


def _found(directory: Path | None) -> list[Path]:
    directory = directory or RedisLinkSettings.load().journal_dir
    if directory is None:
        raise ConfigError("no directory: give DIR, or set REDISLINK_JOURNAL_DIR")
    found = find_journals(directory)
    if not found:
        raise ConfigError(f"directory {directory}: there is no journal in it: check the path")
    return found


def _at_each(paths: list[Path], work: Callable[[Path], None]) -> None:
    """Go through all journals; if there are several, one that does not open hides no other."""
    failed = False
    for path in paths:
        try:
            work(path)
        except JournalError as error:
            if len(paths) == 1:
                raise
            say(str(error))
            failed = True
    if failed:
        raise SystemExit(int(ExitCode.CONFIG))


def _as_dict(view: JournalView) -> dict[str, Any]:
    about, binding = view.about, view.about.binding
    return {
        "journal": str(about.path),
        "session": binding.session,
        "party": binding.party,
        "program": binding.program,
        "versions": binding.versions,
        "cluster_digest": binding.cluster_digest.hex(),
        "starts": list(map(moment, view.starts)),
        "ended": view.ended,
        "segments": len(about.segments),
        "size_bytes": about.size,
        "live_bytes": about.live_bytes,
        "torn_bytes": about.torn_bytes,
        "steps": [asdict(step) | {"written": moment(step.written)} for step in view.steps],
    }


def _print(view: JournalView) -> None:
    about, binding = view.about, view.about.binding
    starts = f", {count(len(view.starts))} starts" if len(view.starts) > 1 else ""
    torn = f", {size(about.torn_bytes)} after a crash" if about.torn_bytes else ""
    digest = binding.cluster_digest.hex()[:_DIGITS]
    notes = [
        f"{binding.program}; {binding.versions}; cluster file {digest}",
        f"{size(about.size)} in {len(about.segments)} files, {size(about.live_bytes)} of them "
        f"wanted{torn}{starts}",
    ]
    if view.ended:
        notes.append(f"no run can go on from it: {view.ended}")
    table = Table(
        title=Text(one_line(f"{binding.party} in session {binding.session}: {about.path}")),
        caption=Text("\n".join(map(one_line, notes))),
    )
    has_chains = any(step.chain for step in view.steps)
    if has_chains:
        table.add_column("chain", overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("call", overflow="fold")
    table.add_column("gave", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("written", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    for step in view.steps:
        stored = "freed" if step.stored_bytes is None else size(step.stored_bytes)
        cells = [
            str(step.number),
            step.call,
            step.gave,
            "" if step.stored_bytes == 0 else stored,
            moment(step.written),
            step.digest[:_DIGITS],
        ]
        if has_chains:
            cells.insert(0, step.chain)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)
