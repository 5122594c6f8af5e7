"""Sessions that run at once and take turns, so that one measures while the others only wait.

Shared machines have slow minutes. What is measured in turns of a second meets them alike, so
that the ratio of two sessions says something about these, and not about the minute.

Rules: a turn is a byte in a named pipe, each party has one. It stays there while the party has its
turn, and goes into the pipe of the same rank in the next session then; in one system call, so that
it is never lost with one that is killed. Standard library only: MPLang's parties import this.
"""

from __future__ import annotations

import itertools
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

_TURN: Final = b"t"
_POLL: Final = 0.05


class Turns:
    """One party's turns. It holds one while this is entered, and gives it away in `next`."""

    def __init__(self, mine: str, following: str) -> None:
        """Args: paths of named pipes, that exist."""
        self._mine, self._following = _open(mine), _open(following)

    def __enter__(self) -> Turns:
        select.select([self._mine], [], [])
        return self

    def __exit__(self, *_: object) -> None:
        _give(self._mine, self._following)

    def next(self) -> None:
        """Let the other sessions have theirs."""
        self.__exit__()
        self.__enter__()


class Ring:
    """The turns of several sessions, for whoever starts them."""

    def __init__(self, directory: Path, sizes: Sequence[int]) -> None:
        """The first session has the first turn.

        Args:
            directory: where the pipes go.
            sizes: how many parties each session has; all have as many.
        """
        (self._size,) = set(sizes)
        self._paths = [
            [str(directory / f"turn{number}-{rank}") for rank in range(self._size)]
            for number in range(len(sizes))
        ]
        self._pipes = []
        for path in itertools.chain(*self._paths):
            os.mkfifo(path)
            self._pipes.append(_open(path))
        for pipe in self._pipes[: self._size]:
            os.write(pipe, _TURN)

    def close(self) -> None:
        """No more turns."""
        for pipe in self._pipes:
            os.close(pipe)

    def arguments(self, number: int) -> list[tuple[str, str]]:
        """For the `Turns` of a session's parties, by rank."""
        following = self._paths[(number + 1) % len(self._paths)]
        return list(zip(self._paths[number], following, strict=True))

    def pass_on(self, number: int, over: Callable[[], bool]) -> None:
        """Stand in for a session that has ended, until all have."""
        mine = self._pipes[number * self._size :][: self._size]
        start = (number + 1) % len(self._paths) * self._size
        following = dict(zip(mine, self._pipes[start:], strict=False))
        while not over():
            for pipe in select.select(mine, [], [], _POLL)[0]:
                _give(pipe, following[pipe])


def _open(path: str) -> int:
    # For both ways: nobody waits for the other end, and what was written stays.
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _give(mine: int, following: int) -> None:
    os.splice(mine, following, 1)
