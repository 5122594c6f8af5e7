"""How processes of the benchmarks are started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def command(module: str, *arguments: str, interpreter: str = sys.executable) -> list[str]:
    """To run one of our modules, whatever the current directory holds."""
    return [interpreter, "-P", "-m", f"benchmarks.{module}", *arguments]


def environment(*code: Path) -> dict[str, str]:
    """Ours, without redislink's settings.

    Args:
        code: directories with ``redislink`` and ``benchmarks`` to be taken instead of ours; the
            first that has a package wins.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("REDISLINK_")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, code or (ROOT,)))}
