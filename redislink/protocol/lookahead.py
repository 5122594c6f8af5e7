"""Which tags come next from a peer, so that a BLPOP for them can be under way already.

yacl numbers its messages (``root:P2P-7:0->1``, then ``root:P2P-8:0->1``). Tags that differ in
one number only, which grows by one, are a *family*; once two of a family have come one after
the other, the next ones are foreseen. A wrong guess costs a BLPOP that nobody answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]+")
_MAX_FAMILIES: Final = 256
_MAX_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class Family:
    """Tags that differ in one number.

    Attributes:
        before, after: what stands before the number, and after it.
        next: the number of the tag that is expected next.
        run: how many of its tags came one after the other, the last one included.
    """

    before: str
    next: int
    after: str
    run: int = 2

    @property
    def name(self) -> tuple[str, str]:
        """The same for all its tags, and for no other's."""
        return self.before, self.after

    def tags(self, numbers: Iterable[int]) -> list[str]:
        """Its tags with these numbers."""
        return [f"{self.before}{number}{self.after}" for number in numbers]


class LookAhead:
    """Watches the tags received from one peer. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[list[int], int, int]] = {}
        """By skeleton: the numbers of the last tag, which of them grew, how often in a row."""

    def observe(self, tag: str) -> Family | None:
        """A message with this tag has come.

        Returns:
            How its family goes on; None if that is not known.
        """
        texts = _NUMBER.findall(tag)
        if not texts or any(len(t) > _MAX_DIGITS or str(int(t)) != t for t in texts):
            return None
        numbers = [int(text) for text in texts]
        skeleton = _NUMBER.sub("#", tag)
        last, grew, run = self._last.pop(skeleton, (numbers, -1, 1))
        changed = [place for place, number in enumerate(numbers) if number != last[place]]
        follows = len(changed) == 1 and numbers[changed[0]] == last[changed[0]] + 1
        place = changed[0] if follows else -1
        run = run + 1 if follows and place == grew else 2 if follows else 1
        self._last[skeleton] = numbers, place, run
        if len(self._last) > _MAX_FAMILIES:
            del self._last[next(iter(self._last))]
        if not follows:
            return None
        spans = [match.span() for match in _NUMBER.finditer(tag)]
        start, end = spans[place]
        return Family(tag[:start], numbers[place] + 1, tag[end:], run)
