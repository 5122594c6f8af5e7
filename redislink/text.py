"""Makes text that somebody else wrote safe to show.

Rule: text from a server, another party or a file goes through `one_line` before it becomes part of
a line of output. Errors (`RedisLinkError`), log records (`PartyLogger`), the doctor's verdicts
(`Verdict`) and the lines of the command ``redislink`` do this by themselves.
"""

from __future__ import annotations

from typing import Final

MOST_SHOWN: Final = 1000
"""Characters: more than a part of a message needs, less than a screen."""
MOST_IN_LINE: Final = 10_000
"""Characters of a whole message, which may list the names of 64 parties."""


def one_line(text: str, limit: int = MOST_SHOWN) -> str:
    """Return ``text`` as one line that a terminal shows as plain text.

    Runs of white space become one space. Characters that are not printable become U+FFFD: control
    characters, and so every terminal escape; characters that reverse or hide text (bidi, zero
    width); lone surrogates; private and unassigned characters.

    Args:
        text: any text.
        limit: the most characters to return; longer text is cut and ends with an ellipsis.
    """
    line = " ".join(text.split())
    if len(line) > limit:
        line = f"{line[: limit - 1]}…"
    return printable(line)


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with U+FFFD for each character not printable, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
