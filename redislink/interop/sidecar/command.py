"""The program beside a sidecar: what its environment holds, and how it is started and ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from redislink.errors import ConfigError
from redislink.interop.startup.sitecustomize import HERE, STAND_INS, VARIABLE

SHIM: Final = Path(__file__).parent / "shim"
"""A directory that the program has on its ``PYTHONPATH``."""
_STAND_INS: Final = ",".join(name for name in STAND_INS if name.startswith("sidecar"))
ADDRESS: Final = "REDISLINK_SIDECAR"
TOKEN: Final = "REDISLINK_SIDECAR_TOKEN"  # noqa: S105 - the name of a variable
_GRACE: Final = 10.0
"""Seconds that the program has to end after SIGTERM."""


def variables(address: str, token: str, path: str = "") -> dict[str, str]:
    """What the program's environment holds more.

    Args:
        address: the sidecar's.
        token: what the program shows it.
        path: the ``PYTHONPATH`` so far.
    """
    joined = os.pathsep.join([HERE, str(SHIM), *([path] if path else [])])
    return {ADDRESS: address, TOKEN: token, VARIABLE: _STAND_INS, "PYTHONPATH": joined}


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program until it ends. KeyboardInterrupt ends it, and is raised again.

    Returns:
        Its exit code, as a shell gives it.

    Raises:
        ConfigError: it cannot be started.
    """
    try:
        process = subprocess.Popen(list(command), env=dict(environment))
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror}: check the command after --") from None
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    return code if code >= 0 else 128 - code
