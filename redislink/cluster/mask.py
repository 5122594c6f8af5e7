"""`Mask`: a set of ranks as one value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from redislink.errors import UsageError


@dataclass(frozen=True, slots=True)
class Mask:
    """A set of global ranks, one bit each. It is hashable and iterates in ascending order.

    An SPU device runs on some of the parties and counts those from 0: their *relative* ranks. A
    mask translates between global and relative ranks.
    """

    bits: int = 0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits < 0:
            raise UsageError("Mask takes a non-negative int of bits; see Mask.from_ranks")

    @classmethod
    def from_ranks(cls, ranks: Iterable[int]) -> Mask:
        """The mask of these ranks; duplicates count once.

        Raises:
            UsageError: a rank is not a non-negative int.
        """
        bits = 0
        for rank in ranks:
            if type(rank) is not int or rank < 0:
                raise UsageError(f"a rank is a non-negative int, not {rank!r}")
            bits |= 1 << rank
        return cls(bits)

    @classmethod
    def all(cls, world_size: int) -> Mask:
        """The mask of ranks 0 to ``world_size`` - 1.

        Raises:
            UsageError: ``world_size`` is not a non-negative int.
        """
        if type(world_size) is not int or world_size < 0:
            raise UsageError(f"a world size is a non-negative int, not {world_size!r}")
        return cls((1 << world_size) - 1)

    def __contains__(self, rank: object) -> bool:
        return type(rank) is int and rank >= 0 and bool(self.bits >> rank & 1)

    def __iter__(self) -> Iterator[int]:
        return (rank for rank in range(self.bits.bit_length()) if self.bits >> rank & 1)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __or__(self, other: object) -> Mask:
        return Mask(self.bits | other.bits) if isinstance(other, Mask) else NotImplemented

    def __and__(self, other: object) -> Mask:
        return Mask(self.bits & other.bits) if isinstance(other, Mask) else NotImplemented

    def union(self, other: Mask) -> Mask:
        """The ranks that are in either mask. The same as ``|``."""
        return self | other

    def intersection(self, other: Mask) -> Mask:
        """The ranks that are in both masks. The same as ``&``."""
        return self & other

    def global_to_relative_rank(self, rank: int) -> int:
        """The relative rank of a global rank.

        Raises:
            UsageError: the rank is not in the mask.
        """
        if rank not in self:
            raise UsageError(f"rank {rank!r} is not in {self}")
        return (self.bits & ((1 << rank) - 1)).bit_count()

    def relative_to_global_rank(self, relative: int) -> int:
        """The inverse of `global_to_relative_rank`.

        Raises:
            UsageError: the mask has too few ranks.
        """
        if type(relative) is not int or not 0 <= relative < len(self):
            raise UsageError(f"{self} has no relative rank {relative!r}")
        return tuple(self)[relative]

    def __str__(self) -> str:
        return f"Mask({', '.join(map(str, self))})"
