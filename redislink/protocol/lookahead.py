"""Which tags come next from a peer, so that a BLPOP for them can be under way already.

yacl numbers its messages (``root:P2P-7:0->1``, then ``root:P2P-8:0->1``). Tags that differ in
one number only, which grows by one, are a *family*; once two of a family have come one after
the other, the next ones are foreseen. A wrong guess costs a BLPOP that nobody answers.
"""

from __future__ import annotations

import re
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
    """

    before: str
    next: int
    after: str

    @property
    def name(self) -> tuple[str, str]:
        """The same for all its tags, and for no other's."""
        return self.before, self.after

    def tags(self, first: int, count: int) -> list[str]:
        """``count`` of its tags, from number ``first`` on."""
        return [f"{self.before}{n}{self.after}" for n in range(first, first + count)]


class LookAhead:
    """Watches the tags received from one peer. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, list[int]] = {}

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
        return Family(tag[:start], numbers[place] + 1, tag[end:])
