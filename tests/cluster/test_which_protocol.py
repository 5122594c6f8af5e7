"""The page on protocols has the table that the code has."""

from __future__ import annotations

from pathlib import Path

from redislink.cluster.protocols import PROTOCOLS

PAGE = Path(__file__).parents[2] / "docs" / "which-protocol.md"


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = "".join(
        f"| {row.label} | {row.members or '2 or more'} | "
        f"{row.trusts.format(first='one party', members='the three')} |\n"
        for row in PROTOCOLS
    )
    assert rows in page, f"put this into {PAGE}:\n{rows}"
