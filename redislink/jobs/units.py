"""Durations and sizes as people write them, ``2h`` and ``8GiB``: never without a unit."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

_FORM: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([A-Za-z]+)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES: Final = {
    "B": 1,
    **{f"{letter}B": 1000 ** (n + 1) for n, letter in enumerate(("k", "M", "G", "T"))},
    **{f"{letter}iB": 1024 ** (n + 1) for n, letter in enumerate(("K", "M", "G", "T"))},
}
_BINARY: Final = {unit: _BYTES[unit] for unit in ("TiB", "GiB", "MiB", "KiB", "B")}
LONGEST: Final = 366 * 86400
"""Seconds."""


def parse_duration(text: Any) -> int:
    """Seconds of a text such as ``90s``, ``30m``, ``2h``, ``7d`` or ``2w``.

    Raises:
        ValueError: it is no such text, or is not from a second to 366 days.
    """
    seconds = _parse(text, _SECONDS, "a duration", "90s, 30m, 2h, 7d or 2w")
    if not 1 <= seconds <= LONGEST:
        raise ValueError(f"{text} is not from 1s to 366d: use a time in between")
    return int(seconds)


def parse_size(text: Any) -> int:
    """Bytes of a text such as ``500MB`` or ``8GiB``.

    Raises:
        ValueError: it is no such text, or is less than one byte.
    """
    size = _parse(text, _BYTES, "a size", "500MB or 8GiB")
    if size < 1:
        raise ValueError(f"{text} is less than a byte: use more")
    return int(size)


def show_duration(seconds: float) -> str:
    """A duration in the largest unit that fits, as in ``2h`` or ``90s``."""
    whole = int(seconds)
    unit, length = next((u, n) for u, n in list(_SECONDS.items())[-2::-1] if whole % n == 0)
    return f"{whole // length}{unit}"


def show_size(size: int) -> str:
    """A size in the largest binary unit that fits, as in ``8GiB``."""
    unit, length = next((u, n) for u, n in _BINARY.items() if size % n == 0)
    return f"{size // length}{unit}"


def _parse(text: Any, units: dict[str, int], what: str, examples: str) -> float:
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    unit = units.get(match[2]) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"is not {what}: write a number and its unit ({', '.join(units)}), as in {examples}"
        )
    return float(match[1]) * unit if "." in match[1] else int(match[1]) * unit


def _described(what: str, examples: list[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "description": what, "examples": examples})


Duration = Annotated[
    int, BeforeValidator(parse_duration), _described("number and unit: s, m, h, d, w", ["2h"])
]
"""Seconds, written as a text with a unit."""
Size = Annotated[
    int, BeforeValidator(parse_size), _described("number and unit: MB, GB, MiB, GiB", ["8GiB"])
]
"""Bytes, written as a text with a unit."""
