"""Write the reference of the commands and their options, from the functions that parse them.

python docs/make_commands.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer
from fields import code

from redislink.cli import app

PAGE: Final = Path(__file__).parent / "commands.md"
HEAD: Final = """\
# All commands and options

What does a command take? `redislink COMMAND --help` prints the same. [The command `redislink`](cli.md) says how the commands
are meant to be used, and has [exit codes](cli.md#exit-codes) and completion. Every command also has `-h`, `--help`, and
`--verbose` (`-v`), which logs to stderr and shows tracebacks of redislink's own errors.

<!-- Written by docs/make_commands.py from the code. Do not edit: run it again. -->
"""
_EVERYWHERE: Final = frozenset({"help", "verbose"})


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, each in below.items():
        yield from _commands(each, f"{path} {name}")


def render() -> str:
    """The page."""
    parts = [HEAD]
    for path, command in _commands(typer.main.get_command(app), "redislink"):
        parts.append(f"\n## `{path}`\n\n{_text(command.help or '')}\n")
        context = typer.Context(command, info_name=path, help_option_names=["-h", "--help"])
        usage = re.sub(r"\{(\w+)\}", r"\1", " ".join(command.collect_usage_pieces(context)))
        parts.append(f"\n```\n{path} {usage}\n```\n")
        shown = [p for p in command.params if p.name not in _EVERYWHERE and not _hidden(p)]
        if shown:
            parts.append("\n| | meaning |\n|---|---|\n")
            parts += [_row(param, context) for param in shown]
    return "".join(parts)


def _hidden(param: Any) -> bool:
    return bool(getattr(param, "hidden", False))


def _text(help_text: str) -> str:
    """A docstring: paragraphs, and commands to copy."""
    paragraphs = []
    for paragraph in re.split(r"\n\n+", help_text.strip()):
        lines = paragraph.removeprefix("\b\n").splitlines()
        if paragraph.startswith("\b"):
            shown = "\n".join(line.removeprefix("    ") for line in lines)
            paragraphs.append(f"```sh\n{shown}\n```")
        else:
            paragraphs.append("\n".join(line.strip() for line in lines).replace("*", "\\*"))
    return "\n\n".join(paragraphs)


def _row(param: Any, context: Any) -> str:
    """An argument or option, as the help shows it."""
    name, text = param.get_help_record(context)
    name = re.sub(r" <[^>]*>$", "", name)  # the type of an argument, for Python
    text = re.sub(r"(?<![`\w])(--[a-z][\w-]*)", r"`\1`", text)
    text = re.sub(r" +\[(default|required|x[<>])(.*)\]$", r" (\1\2)", text)
    return f"| `{name.replace('|', chr(92) + '|')}` | {code(text)} |\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
