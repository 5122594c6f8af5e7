"""Small constant factors, which SPU would cut: 1 / 30,000 to 8.7 units of 2^-18, so to 8.

A mean of 30,000 rows is a sum times 1 / 30,000, and on FM64 it would be 8.4 % too low, without an
error. So a factor whose cutting would be felt becomes two: a power of two, which has all its bits,
and a number from 0.5 to 1, which has all of its own that matter. The power of two comes first, so
that no product is larger than with one factor. It costs a second truncation of the product.

XLA multiplies constant factors of a product with each other, and would undo that. So between them
a number is added that is 0 on shares. For the same reason, factors that are right one by one, and
wrong multiplied with each other, are kept apart.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import numpy as np

LEAST_RIGHT: Final = 2.0**-13
"""Part of a factor that may be cut off it, before it becomes two factors."""
_FEWEST_BITS: Final = 2
"""A factor of fewer than 2**2 units is another operation to SPU (``MulOp`` in its
``pphlo_executor.cc``), which is exact, but wrong if what is multiplied passes 2**26 on FM64."""

_RESHAPED: Final = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "expand_dims",
        "reshape",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
_COMPUTED: Final[dict[str, Callable[..., float]]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "max": max,
    "min": min,
}
SCALING: Final = frozenset({"mul", "div"})
"""Primitives that may multiply by a constant."""


@dataclass
class _Fact:
    """What is known of an array.

    Attributes:
        array: the array itself, so that no other one can have its identity.
        number: the number that all of its elements are; None if there is none.
        merged: the constants that XLA may still multiply with the next one.
    """

    array: Any
    number: float | None = None
    merged: float = 1.0


@dataclass
class Factors:
    """Follows constants through a function, and keeps small factors right.

    Attributes:
        ring_bits, fraction_bits: of the device.
        split: how many operations were replaced.
    """

    ring_bits: int
    fraction_bits: int
    split: int = 0
    _facts: dict[int, _Fact] = field(default_factory=dict)

    def is_cut(self, factor: float) -> bool:
        """Whether so much is cut off a factor that results are wrong.

        No if even the largest number of the ring times the factor is 0.
        """
        size = abs(factor)
        if not math.ldexp(1.0, 2 - self.ring_bits) <= size < 1:
            return False
        units = math.ldexp(size, self.fraction_bits)
        return units < 1 << _FEWEST_BITS or units - math.floor(units) > units * LEAST_RIGHT

    def apply(self, equation: Any, given: list[Any]) -> list[Any] | None:
        """The results of an operation that multiplies by a constant that SPU would cut.

        Args:
            equation: of a traced function.
            given: its operands.

        Returns:
            None for any other operation, which then is right as it is.
        """
        name = equation.primitive.name
        if name not in SCALING or equation.outvars[0].aval.dtype.kind != "f":
            return None
        array, factor = self._factor(name, given)
        if factor is None or not isinstance(array, jax.core.Tracer):
            return None
        fact = self._fact(array)
        if fact.number is not None:
            return None  # XLA computes it, in floating point
        merged = fact.merged
        if self.is_cut(factor):
            result, last = self._in_two(array, factor, is_scaled=merged != 1.0)
        elif merged != 1.0 and self.is_cut(merged * factor):
            result, last = self._apart(array) * _like(array, factor), factor
        else:
            return None
        self.split += 1
        self._facts[id(result)] = _Fact(result, merged=last)
        return [result]

    def learn(self, equation: Any, given: list[Any], results: list[Any]) -> None:
        """Remember what an operation says about its results."""
        name = equation.primitive.name
        if len(results) != 1 or not isinstance(results[0], jax.core.Tracer):
            return
        (result,) = results
        if id(result) in self._facts:
            return
        if name in _RESHAPED:
            known = self._fact(given[0])
            number = known.number
            if number is not None and result.dtype.kind != "f" and number != round(number):
                number = None
            self._facts[id(result)] = _Fact(result, number, known.merged)
            return
        if name == "reduce_sum":
            self._facts[id(result)] = _Fact(result, self._sum(given[0], result))
            return
        numbers = [self._fact(one).number for one in given]
        if name in _COMPUTED and None not in numbers:
            try:
                number = float(_COMPUTED[name](*numbers))
            except ArithmeticError:
                return
            self._facts[id(result)] = _Fact(result, number)
        elif name in SCALING:
            array, factor = self._factor(name, given)
            if factor is not None:
                merged = self._fact(array).merged * factor
                self._facts[id(result)] = _Fact(result, merged=merged)

    def _factor(self, name: str, given: list[Any]) -> tuple[Any, float | None]:
        """What is multiplied, and the constant by which it is multiplied, if it is one."""
        first, second = given
        number = self._fact(second).number
        if name == "div":
            return first, 1 / number if number else None
        if number is None:
            first, number = second, self._fact(first).number
        return first, number

    def _sum(self, array: Any, result: Any) -> float | None:
        """What each sum over axes of an array is."""
        number = self._fact(array).number
        if number is not None:
            return float(number * array.size / max(result.size, 1))
        if result.ndim == 0 and not isinstance(array, jax.core.Tracer):
            return float(np.sum(array, dtype=np.float64))
        return None

    def _fact(self, value: Any) -> _Fact:
        found = self._facts.get(id(value))
        if found is not None:
            return found
        number = None if isinstance(value, jax.core.Tracer) else _number(value)
        return _Fact(value, number)

    def _in_two(self, array: Any, factor: float, *, is_scaled: bool) -> tuple[Any, float]:
        fraction, exponent = math.frexp(factor)
        bits = self.fraction_bits
        result = self._apart(array) if is_scaled else array
        while exponent < 0:
            step = max(exponent, _FEWEST_BITS - bits)
            result = self._apart(result * _like(array, math.ldexp(1.0, step)))
            exponent -= step
        fraction = math.ldexp(round(math.ldexp(fraction, bits)), -bits)
        return result * _like(array, fraction), fraction

    def _apart(self, array: Any) -> Any:
        """The array plus a number that is 0 on shares; XLA multiplies no factors across a sum."""
        return array + _like(array, math.ldexp(1.0, -self.fraction_bits - 12))


def _like(array: Any, number: float) -> Any:
    return np.array(number, array.dtype)


def _number(value: Any) -> float | None:
    """The number that all elements of a constant are."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not array.size:
        return None
    first = array.flat[0]
    return float(first) if array.ndim == 0 or (array == first).all() else None
