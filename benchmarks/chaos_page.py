"""The measured part of docs/reliability.md, as it comes: see `benchmarks.chaos`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from redislink.broker import EmbeddedBroker
from tests.support.servers import Admin


class Page:
    """Lines of Markdown, printed as they come; and whether all was as it has to be."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed = False

    def write(self, *lines: str) -> None:
        """Add lines."""
        self.lines += lines
        print(*lines, sep="\n", flush=True)

    def head(self, title: str, *columns: str) -> None:
        """Begin a table."""
        self.write(
            "", f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"
        )

    def row(self, *cells: object) -> None:
        """Add a row to the table."""
        self.write(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")

    def problem(self, text: str) -> None:
        """Something was lost, doubled or wrong."""
        self.failed = True
        self.write(f"**{text}**")


def version(server: EmbeddedBroker) -> str:
    """Name and version of a server."""
    admin = Admin(server)
    info = admin.info("server")
    admin.close()
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def span(values: Sequence[float], form: str) -> str:
    """The median of some values, and their lowest and highest."""
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"
