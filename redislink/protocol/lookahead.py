"""Which tags come next from a peer, so that a BLPOP for them can be under way already.

yacl numbers its messages (``root:P2P-7:0->1``, then ``root:P2P-8:0->1``). Tags that differ in
one number only, which grows by one, are a *family*; once two of a family have come one after
the other, the next ones are foreseen. A wrong guess costs a BLPOP that nobody answers.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]+")
_MAX_FAMILIES: Final = 256
_MAX_DIGITS: Final = 15


class LookAhead:
    """Watches the tags received from one peer. Not thread-safe."""

    def __init__(self, depth: int) -> None:
        """Args: how many tags to foresee; 0 foresees nothing."""
        self.depth = depth
        self._last: dict[str, list[int]] = {}

    def observe(self, tag: str) -> tuple[str, list[str]] | None:
        """A message with this tag has come.

        Returns:
            The name of its family and the ``depth`` tags that come after it; None if it is not
            known how its family goes on.
        """
        if not self.depth:
            return None
        texts = _NUMBER.findall(tag)
        if not texts or any(len(t) > _MAX_DIGITS or str(int(t)) != t for t in texts):
            return None
        numbers = [int(text) for text in texts]
        skeleton = _NUMBER.sub("#", tag)
        last = self._last.pop(skeleton, None)
        self._last[skeleton] = numbers
        if len(self._last) > _MAX_FAMILIES:
            del self._last[next(iter(self._last))]
        if last is None:
            return None
        changed = [place for place, number in enumerate(numbers) if number != last[place]]
        if len(changed) != 1 or numbers[changed[0]] != last[changed[0]] + 1:
            return None
        place = changed[0]
        spans = [match.span() for match in _NUMBER.finditer(tag)]
        start, end = spans[place]
        before, after = tag[:start], tag[end:]
        first = numbers[place] + 1
        following = [f"{before}{n}{after}" for n in range(first, first + self.depth)]
        return f"{before}#{after}", following
