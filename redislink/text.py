"""Text that somebody else wrote, made safe to show.

Rule: what a server, another party or a file says goes through `one_line` before it becomes part
of a line of output. Errors (`RedisLinkError`), log records (`PartyLogger`), what the doctor finds
(`Verdict`) and the lines of the command ``redislink`` do so by themselves.
"""

from __future__ import annotations

from typing import Final

MOST_SHOWN: Final = 1000
"""Characters: more than a part of a message needs, less than a screen."""
MOST_IN_LINE: Final = 10_000
"""Characters of a whole message, which may list the names of 64 parties."""


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
    return printable(line)


def printable(text: str, keep: str = "") -> str:
    """``text`` with each character that is not printable, and not in ``keep``, as U+FFFD."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
