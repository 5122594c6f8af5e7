"""Durations and sizes as people write them, ``2h`` and ``8GiB``, and other numbers with a unit.

Rule: neither a duration nor a size is ever without its unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

_FORM: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", re.ASCII)
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
    seconds = parse_quantity(text, _SECONDS, "a duration", "90s, 30m, 2h, 7d or 2w")
    if not 1 <= seconds <= LONGEST:
        raise ValueError(f"{text} is not from 1s to 366d: use a time in between")
    return int(seconds)


def parse_size(text: Any) -> int:
    """Bytes of a text such as ``500MB`` or ``8GiB``.

    Raises:
        ValueError: it is no such text, or is less than one byte.
    """
    size = parse_quantity(text, _BYTES, "a size", "500MB or 8GiB")
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


def parse_quantity(text: Any, units: Mapping[str, float], what: str, examples: str) -> float:
    """The number of a text such as ``20 ms``, times its unit; whole where both are.

    Args:
        text: the text.
        units: what each unit stands for; "" is none.
        what: what such a text is, with its article, for the error.
        examples: texts that would do.

    Raises:
        ValueError: it is no such text.
    """
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    unit = units.get(match[2]) if match else None
    if match is None or unit is None:
        names = ", ".join(name or "none" for name in units)
        raise ValueError(f"is not {what}: write a number and its unit ({names}), as in {examples}")
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
