"""What several threads print into one stream."""

from __future__ import annotations


def print_line(*words: object) -> None:
    """``print`` by one write: its own two let the line of another thread come between."""
    print(" ".join(map(str, words)) + "\n", end="")
