"""Parts of pages that are measured: each lies between two comments that hold its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

JOURNAL: Final = "journal"
"""The part about journals, of docs/performance.md and of docs/reliability.md."""

QUOTED: Final = "figures"
"""The part of the README that quotes docs/performance.md."""


def write_part(page: Path, name: str, text: str) -> None:
    """Replace a part of a page.

    Args:
        page: the page, which has the part.
        name: the name of the part.
        text: what shall stand in it.
    """
    before, _, after = _split(page.read_text(encoding="utf-8"), name)
    page.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def read_part(page: Path, name: str) -> str:
    """What stands in a part, with its comments; nothing if there is no page or no such part."""
    if not page.exists() or f"<!-- {name}: begin -->" not in page.read_text(encoding="utf-8"):
        return ""
    before, text, after = _split(page.read_text(encoding="utf-8"), name)
    return f"{before.splitlines()[-1]}{text}{after.splitlines()[0]}\n"


def _split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before the end of the first comment, between, and from the second one on."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.fullmatch(f"(.*{re.escape(begin)})(.*?)({re.escape(end)}.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no part {name}: write {begin} and {end} where it belongs")
    return found[1], found[2], found[3]
