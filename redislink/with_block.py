"""`ClosesOrAborts`: how the ``with`` block of an endpoint, communicator or session ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from redislink.errors import may_pass, reason_for_peers


class ClosesOrAborts(ABC):
    """Closes at the end of its ``with`` block; aborts if an exception leaves the block.

    The peers are told of the exception what `reason_for_peers` lets them know, and whether it
    `may_pass`.
    """

    @abstractmethod
    def close(self) -> None:
        """Leave in good order. Safe to call twice."""

    @abstractmethod
    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell every peer that this party's run has failed, and leave.

        Args:
            reason: one line. The peers see it, so it must not contain any data.
            retryable: whether the cause may pass, so that the peers may start again.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(reason_for_peers(error), retryable=may_pass(error))
