"""Shared by the commands: groups, their help, ``--json``, how numbers and times are printed.

It imports little, so that no command loads what only others need.
"""

from __future__ import annotations

import inspect
import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from redislink.cli.errors import EPILOG

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")
]


class Group(TyperGroup):
    """A group of commands, whose help cuts none of their first sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [
            (name, self.commands[name].get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(help_text: str) -> typer.Typer:
    """A group of commands, such as ``redislink journal``; alone, it shows its help."""
    return typer.Typer(
        help=help_text, epilog=EPILOG, no_args_is_help=True, add_completion=False,
        cls=Group, rich_markup_mode=None,
    )  # fmt: skip


def keep_examples(command: Any) -> None:
    """Let the help leave lines that are indented as they are: commands to copy."""
    if command.help:
        paragraphs = inspect.cleandoc(command.help).split("\n\n")
        command.help = "\n\n".join(f"\b\n{p}" if p.startswith("    ") else p for p in paragraphs)
    for each in getattr(command, "commands", {}).values():
        keep_examples(each)


def count(value: int | None) -> str:
    """A number as text, also if it is unknown."""
    return "?" if value is None else f"{value:,}".replace(",", " ")


def counted(value: int, what: str) -> str:
    """A number of things as text, such as ``1 step`` or ``3 steps``."""
    return f"{count(value)} {what}{'' if value == 1 else 's'}"


def size(value: float | None) -> str:
    """A size in bytes, for people to read."""
    if value is None:
        return "?"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """A time in seconds, for people to read."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"


def moment(seconds: float) -> str:
    """A time in UTC, for people to read."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
