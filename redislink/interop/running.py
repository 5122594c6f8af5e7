"""Runs a program in this process as Python would."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from redislink.errors import ConfigError


def check_program(program: str, *, module: bool) -> None:
    """Check that there is such a program, before anything is started for it.

    Args:
        program, module: as for `run_program`.

    Raises:
        ConfigError: there is not.
    """
    if not module:
        if not Path(program).is_file():
            raise ConfigError(f"program {program}: there is no such file: check the path")
        return
    sys.path[0] = str(Path.cwd())
    try:
        found = importlib.util.find_spec(program)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            f"program {program}: there is no such module: check the name, and start this in the "
            "directory from which python -m finds it"
        )


def run_program(program: str, arguments: Sequence[str], *, module: bool) -> None:
    """Run a program as ``__main__``.

    Args:
        program: path of a file, or name of a module.
        arguments: its arguments.
        module: whether it is a module's name, as after ``python -m``.

    Raises: what the program raises.
    """
    sys.argv = [program, *arguments]
    if module:
        sys.path[0] = str(Path.cwd())
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
