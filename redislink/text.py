"""Text that somebody else wrote, made safe to show.

Rule: what a server, another party or a file says goes through `one_line` before it becomes part
of an error, a log record or a line of output.
"""

from __future__ import annotations

from typing import Final

MOST_SHOWN: Final = 1000
"""Characters: longer than any message of redislink, shorter than a screen."""


def one_line(text: str, limit: int = MOST_SHOWN) -> str:
    """``text`` as one line that a terminal takes for nothing but text.

    Runs of white space become one space. What is not printable becomes U+FFFD: control
    characters and with them every terminal escape, characters that reverse or hide text (bidi,
    zero width), lone surrogates, private and unassigned ones.

    Args:
        limit: characters to return at most; of longer text the last one is an ellipsis.
    """
    line = " ".join(text.split())
    if len(line) > limit:
        line = f"{line[: limit - 1]}…"
    if line.isascii() and line.isprintable():
        return line
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
