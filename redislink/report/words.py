"""Figures and states in words, as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from redislink.audit.records import EndSaid
from redislink.text import one_line

_BYTES: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_MOST_TEXT: Final = 300
NONE: Final = "\N{EN DASH}"


def said(text: object, most: int = _MOST_TEXT) -> str:
    """What somebody else wrote, as one line of plain text."""
    return one_line(str(text), most)


def listed(names: Sequence[object]) -> str:
    """alice, bob and carol."""
    texts = [said(name, 100) for name in names[:100]]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)


def count(number: int) -> str:
    """1,234."""
    return f"{number:,}"


def counted(number: int, one: str, many: str = "") -> str:
    """1 message, 2 messages."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def size(number: int) -> str:
    """1.20 MB, with powers of 1,000."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_BYTES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{number:,} B" if unit == 0 else f"{_three(value)} {_BYTES[unit]}"


def _three(value: float) -> str:
    """Three digits: 1.20, 12.0, 120."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def duration(seconds: float | None) -> str:
    """12.0 ms, 3.40 s, 2 min 5 s, 1 h 2 min."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return NONE
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs" if seconds else "0 s"
    if seconds < 0.9995:
        return f"{_three(seconds * 1e3)} ms"
    if seconds < 59.95:
        return f"{_three(seconds)} s"
    whole = round(min(seconds, 1e12))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def share(part: float, whole: float) -> str:
    """12 %."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else NONE


def moment(seconds: float) -> str:
    """2026-11-30 08:15:02 UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return NONE


def array(shape: Sequence[int], dtype: str) -> str:
    """The shape and type of an array: 64 by 10 float32; one number: float32."""
    dims = " \N{MULTIPLICATION SIGN} ".join(f"{size:,}" for size in shape[:10])
    return said(f"{dims} {dtype}" if dims else f"one {dtype}", 100)


def arrays(shapes: Sequence[Sequence[int]], dtypes: Sequence[str], most: int = 12) -> str:
    """The shapes and types of a reveal."""
    texts = [array(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more if texts else "nothing"


def how_ended(end: EndSaid | None) -> str:
    """How a party's run ended, as it says itself."""
    if end is None:
        return "no end is recorded"
    text = {
        "closed": "in good order",
        "failed": "failed",
        "aborted": "was ended by its own program or operator",
        "left": "the program ended without closing the session",
    }[end.how]
    if end.error:
        text += f" ({said(end.error, 80)})"
    if end.by:
        text += f", because of {said(end.by, 64)}"
    return text
