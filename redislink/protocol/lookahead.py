"""Predicts a peer's next tags, so that BLPOPs for them can be sent in advance.

yacl numbers its messages (``root:P2P-7:0->1``, then ``root:P2P-8:0->1``). Tags that differ only in
one number, which grows by one, are a *family*. Once two tags of a family have come in a row, we
predict the next ones. A wrong guess costs a BLPOP that nobody answers.
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
        before, after: the text before and after the number.
        next: the number in the tag that is expected next.
        run: how many of its tags have come in a row.
    """

    before: str
    next: int
    after: str
    run: int = 2

    @property
    def name(self) -> tuple[str, str]:
        """A name that all tags of the family share, and no other tags have."""
        return self.before, self.after

    def tags(self, numbers: Iterable[int]) -> list[str]:
        """Return the family's tags with these numbers."""
        return [f"{self.before}{number}{self.after}" for number in numbers]


class LookAhead:
    """Watches the tags received from one peer. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[list[int], int, int]] = {}
        """For each skeleton: the last tag's numbers, which one grew, and how often in a row."""

    def observe(self, tag: str) -> Family | None:
        """Note that a message with this tag has come.

        Returns:
            The tag's family, which tells the next tags; None if there is no family yet.
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
