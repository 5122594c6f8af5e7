"""Checks that the shares of a device can hold a value.

SPU silently accepts anything: it turns NaN into 0, and infinity and numbers that are too large into
its largest number; and it compares whole numbers of the ring's full width wrongly. So values are
checked before they are shared. Results cannot be checked.

With k bits in the ring and f fraction bits:

- a fraction x becomes x * 2**f, truncated to a whole number, which must be from -2**(k-2) to
  2**(k-2): a comparison takes the sign of a difference, which must fit;
- the same bounds hold for whole numbers that are compared; and SPU refuses types of more than k
  bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from spu import libspu

from redislink.errors import UsageError
from redislink.spu.arrays import Array, short
from redislink.spu.missing import INSTEAD

_NAN: Final = "NaN"
_INFINITE: Final = "infinite"
_OUTSIDE: Final = "out of range"
_REMEDIES: Final = {
    _NAN: f"shares have no NaN: leave out rows with missing values before psi (after it, the "
    f"parties' rows would no longer belong together), or {INSTEAD}",
    _INFINITE: "shares have no infinity: replace it by a large number (numpy.clip)",
    _OUTSIDE: "divide by a scale that all parties know, or use a larger field or fewer "
    "fxp_fraction_bits",
}
_WHOLE: Final = (
    "beyond, comparing, sorting and dividing go wrong: use a larger field, or pass wrap_ok=True "
    "if you only add, multiply and test them for equality"
)


@dataclass(frozen=True)
class Ranges:
    """The range of values that a device can hold.

    Attributes:
        device: the device in errors: its name, protocol, field and fraction bits.
        ring_bits: k, the bits of the ring.
        fraction_bits: f, the bits after the binary point.
    """

    device: str
    ring_bits: int
    fraction_bits: int

    @classmethod
    def of(cls, name: str, config: Any, io: Any) -> Ranges:
        """The ranges of a device.

        SPU chooses the fraction bits if the configuration does not name them; its smallest number
        shows how many it chose.

        Args:
            name: the name of the device.
            config: its ``libspu.RuntimeConfig``.
            io: an ``spu.Io`` with that configuration.
        """
        ring_bits = int(config.field.name.removeprefix("FM"))
        shares = io.make_shares(np.array(-np.inf), libspu.Visibility.VIS_PUBLIC)
        least = -float(io.reconstruct(shares))
        fraction_bits = ring_bits - 2 - round(math.log2(least))
        about = f"{config.protocol.name}, {config.field.name}, {fraction_bits} fraction bits"
        return cls(f"{name} ({about})", ring_bits, fraction_bits)

    @property
    def fraction_limit(self) -> float:
        """L: fractions x must satisfy -L <= x < L."""
        return math.ldexp(1.0, self.ring_bits - 2 - self.fraction_bits)

    @property
    def whole_limit(self) -> int:
        """L: whole numbers n can be compared if -L <= n < L."""
        return 1 << (self.ring_bits - 2)

    def check(self, array: Array, columns: Sequence[object] = (), *, wrap_ok: bool = False) -> None:
        """Refuse an array that the device cannot hold.

        Args:
            array: an array that `as_array` returned.
            columns: the names of the columns, if the array is a table with names.
            wrap_ok: whether whole numbers may use the ring's full width.

        Raises:
            UsageError: values cannot be held; the message says how many, where the first is, and
                what to do, but quotes no value.
        """
        if array.dtype.kind == "f":
            self._check_fractions(array, columns)
        elif array.dtype.kind in "iu":
            self._check_whole(array, columns, wrap_ok=wrap_ok)

    def _check_fractions(self, array: Array, columns: Sequence[object]) -> None:
        limit = self.fraction_limit
        # In float16 the limit itself may be infinite. If there is a NaN, it is the minimum.
        if not array.size or (float(array.min()) >= -limit and float(array.max()) < limit):
            return
        wide = array.astype(np.float64)
        bad = [
            (_NAN, np.isnan(wide)),
            (_INFINITE, np.isinf(wide)),
            (_OUTSIDE, np.isfinite(wide) & ~((wide >= -limit) & (wide < limit))),
        ]
        exponent = self.ring_bits - 2 - self.fraction_bits
        self._refuse(
            array,
            columns,
            bad,
            f"holds fractions x with -2**{exponent} <= x < 2**{exponent} (about {limit:.2g})",
            "; ".join(_REMEDIES[kind] for kind, found in bad if found.any()),
        )

    def _check_whole(self, array: Array, columns: Sequence[object], *, wrap_ok: bool) -> None:
        if array.dtype.itemsize * 8 > self.ring_bits:
            narrow = f"{'u' * (array.dtype.kind == 'u')}int{self.ring_bits}"
            raise UsageError(
                f"is {short(array)}, and {self.device} has whole numbers of {self.ring_bits} bits: "
                f"convert it with .astype(numpy.{narrow}), or use a larger field"
            )
        limit = self.whole_limit
        info = np.iinfo(array.dtype)
        if wrap_ok or not array.size or (info.max < limit and info.min >= -limit):
            return
        if int(array.min()) >= -limit and int(array.max()) < limit:
            return
        exponent = self.ring_bits - 2
        bad = [(_OUTSIDE, (array >= limit) | (array < -limit))]
        self._refuse(
            array,
            columns,
            bad,
            f"compares whole numbers n with -2**{exponent} <= n < 2**{exponent}",
            _WHOLE,
        )

    def _refuse(
        self,
        array: Array,
        columns: Sequence[object],
        bad: list[tuple[str, Any]],
        can: str,
        remedy: str,
    ) -> None:
        every = np.logical_or.reduce([found for _, found in bad])
        place = np.unravel_index(int(np.argmax(every)), array.shape)
        kind = next(kind for kind, found in bad if found[place])
        count = int(every.sum())
        if array.ndim:
            what = f"has values that do not fit ({count} of {array.size}; the first, at "
            what += f"{_at(place, columns)}, is {kind})"
        else:
            what = f"does not fit (it is {kind})"
        raise UsageError(f"{what}: {self.device} {can}: {remedy}")


def _at(place: tuple[Any, ...], columns: Sequence[object]) -> str:
    index = ", ".join(str(int(i)) for i in place)
    if len(place) == 2 and int(place[1]) < len(columns):
        return f"[{index}], column {str(columns[int(place[1])])!r:.80}"
    return f"[{index}]"
