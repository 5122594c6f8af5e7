"""Sessions that run at once and take turns, so that one measures while the others only wait.

Shared machines have slow minutes. What is measured in turns of a second meets them alike, so
that the ratio of two sessions says something about these, and not about the minute.

Rules: a turn is a byte in a named pipe, each session has one, and whoever has had its turn puts
the byte into the next one's. Standard library only: MPLang's parties import this.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

_TURN: Final = b"t"
_POLL: Final = 0.05


class Turns:
    """One session's turns, while entered; it is its first party that takes them."""

    def __init__(self, mine: str, following: str) -> None:
        """Args: paths of named pipes, that exist."""
        self._mine, self._following = _open(mine), _open(following)

    def __enter__(self) -> None:
        os.read(self._mine, 1)

    def __exit__(self, *_: object) -> None:
        os.write(self._following, _TURN)


class Ring:
    """The turns of several sessions, for whoever starts them."""

    def __init__(self, directory: Path, count: int) -> None:
        """The first session has the first turn.

        Args:
            directory: where the pipes go.
            count: of sessions.
        """
        self._paths = [str(directory / f"turn{number}") for number in range(count)]
        for path in self._paths:
            os.mkfifo(path)
        self._pipes = [_open(path) for path in self._paths]
        os.write(self._pipes[0], _TURN)

    def close(self) -> None:
        """No more turns."""
        for pipe in self._pipes:
            os.close(pipe)

    def arguments(self, number: int) -> Sequence[str]:
        """For a session's `Turns`."""
        return self._paths[number], self._paths[(number + 1) % len(self._paths)]

    def pass_on(self, number: int, over: Callable[[], bool]) -> None:
        """Stand in for a session that has ended, until all have."""
        mine, following = (_open(path) for path in self.arguments(number))
        try:
            while not over():
                if select.select([mine], [], [], _POLL)[0]:
                    os.write(following, os.read(mine, 1))
        finally:
            os.close(mine)
            os.close(following)


def _open(path: str) -> int:
    # For both ways: nobody waits for the other end, and what was written stays.
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
