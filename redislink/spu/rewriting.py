"""Rewrites JAX functions that SPU computes differently from JAX, before SPU compiles them.

- SPU returns the results of ``lax.top_k`` in any order, so they are sorted.
- The maximum and minimum of whole numbers of the ring's full width start from the smallest and
  largest number of their type, which the ring cannot compare (`redislink.spu.ranges`): on FM64,
  ``jnp.max`` of int64 would be -2**63. They start instead from the bounds of comparable numbers.
- Constant factors that are small are cut, so that a mean of 30,000 rows would be 8 % too low
  (`redislink.spu.factors`). They are multiplied in two steps.
- JAX's random numbers need 32-bit integers that wrap around, which those in SPU's rings do not: the
  numbers would be neither JAX's nor uniform. Numbers from a key that all parties know are drawn
  while the function is traced, and compiled in; other keys cannot be drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.extend.core
import numpy as np
from jax import lax

from redislink.errors import UsageError
from redislink.spu.factors import SCALING, Factors

_DRAWN: Final = frozenset(
    {
        "random_bits",
        "random_seed",
        "random_split",
        "random_fold_in",
        "random_gamma",
        "threefry2x32",
        "rng_bit_generator",
    }
)
_DRAWN_FROM_NO_KEY: Final = "rng_uniform"
_TOP_K: Final = "top_k"
_EXTREMES: Final = frozenset({"reduce_max", "reduce_min", "argmax", "argmin", "cummax", "cummin"})
INLINED: Final = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
    }
)
"""Operations that only call a function."""
_FOLLOWED: Final = INLINED | {"scan", "while", "cond"}
"""Operations whose functions are searched for small factors."""


def rewrite(
    traced: Any, out_tree: Any, ring_bits: int, fraction_bits: int
) -> Callable[..., Any] | None:
    """The function with every operation replaced that SPU gets wrong; None if there is none.

    Args:
        traced: the result of ``jax.make_jaxpr``.
        out_tree: the containers of the results.
        ring_bits: the bits of the device's ring.
        fraction_bits: how many of them are after the binary point.

    Raises:
        UsageError: the function draws random numbers from a key that is not public. The returned
            function raises this when it is traced.
    """

    def rewritten(*leaves: Any) -> Any:
        rewriting = _Rewriting(ring_bits, fraction_bits)
        return jax.tree_util.tree_unflatten(out_tree, rewriting.evaluate(traced, leaves))

    trial = _Rewriting(ring_bits, fraction_bits)
    if _has(traced.jaxpr, trial.is_wrong):
        return rewritten
    if _scales(traced.jaxpr):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in traced.in_avals]
        jax.make_jaxpr(lambda *leaves: trial.evaluate(traced, leaves))(*shapes)
        if trial.factors.split:
            return rewritten
    return None


class _Rewriting:
    """Evaluates traced functions, and replaces some of their operations."""

    def __init__(self, ring_bits: int, fraction_bits: int) -> None:
        self._ring_bits = ring_bits
        self.factors = Factors(ring_bits, fraction_bits)

    def is_wrong(self, equation: Any) -> bool:
        """Whether SPU computes an operation differently from JAX."""
        name = equation.primitive.name
        if name in _EXTREMES:
            dtype = equation.invars[0].aval.dtype
            return dtype.kind in "iu" and dtype.itemsize * 8 == self._ring_bits
        return _draws(equation) or name in (_TOP_K, _DRAWN_FROM_NO_KEY)

    def evaluate(self, closed: Any, arguments: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values |= zip(jaxpr.invars, arguments, strict=True)
        for equation, is_needed in zip(jaxpr.eqns, _needed_to_draw(jaxpr), strict=True):
            given = [_value(values, place) for place in equation.invars]
            results = self._apply(equation, given, is_needed=is_needed)
            self.factors.learn(equation, given, results)
            values |= zip(equation.outvars, results, strict=True)
        return [_value(values, place) for place in jaxpr.outvars]

    def _apply(self, equation: Any, given: list[Any], *, is_needed: bool) -> list[Any]:
        name = equation.primitive.name
        known = not any(isinstance(value, jax.core.Tracer) for value in given)
        if is_needed and known:
            with jax.ensure_compile_time_eval():
                return _bind(equation, given, equation.params)
        if _draws(equation) or name == _DRAWN_FROM_NO_KEY:
            raise UsageError(
                "it draws random numbers in a loop, or from a key that is an argument, or from "
                "none, and SPU would give numbers that are neither JAX's nor uniform: close over "
                "the key and draw outside the loop, or draw before the call and pass the numbers "
                "as an argument"
            )
        if name in _EXTREMES and self.is_wrong(equation):
            return self._extreme(name, given[0], equation.params)
        inner = list(functions_of(equation))
        if not any(self._changes(equation, part.jaxpr) for part in inner):
            scaled = self.factors.apply(equation, given)
            if scaled is not None:
                return scaled
            results = _bind(equation, given, equation.params)
            return _in_order(*results) if name == _TOP_K else results
        if name in INLINED:
            (function,) = inner
            return self.evaluate(function, given)
        params = {key: self._rewritten(value) for key, value in equation.params.items()}
        return _bind(equation, given, params)

    def _changes(self, equation: Any, function: Any) -> bool:
        """Whether an inner function of an operation has something to replace, or may have."""
        follows = equation.primitive.name in _FOLLOWED
        return _has(function, self.is_wrong) or (follows and _scales(function))

    def _extreme(self, name: str, operand: Any, params: dict[str, Any]) -> list[Any]:
        largest = name.endswith("max")
        choose = lax.max if largest else lax.min
        if name.startswith("cum"):
            axis, reverse = params["axis"], params["reverse"]
            return [lax.associative_scan(choose, operand, reverse=reverse, axis=axis)]
        limit = 1 << (self._ring_bits - 2)
        least = 0 if operand.dtype.kind == "u" else -limit
        start = np.array(least if largest else limit - 1, operand.dtype)
        if name.startswith("reduce"):
            return [lax.reduce(operand, start, choose, params["axes"])]
        (axis,) = params["axes"]
        places = lax.broadcasted_iota(params["index_dtype"], operand.shape, axis)
        zero = np.array(0, params["index_dtype"])

        def better(one: Any, other: Any) -> Any:
            (value, place), (other_value, other_place) = one, other
            wins = value > other_value if largest else value < other_value
            wins |= (value == other_value) & (place < other_place)
            return lax.select(wins, value, other_value), lax.select(wins, place, other_place)

        _, found = lax.reduce((operand, places), (start, zero), better, (axis,))
        return [found]

    def _rewritten(self, value: Any) -> Any:
        """A parameter of an equation, with its functions rewritten."""
        match value:
            case jax.extend.core.ClosedJaxpr():
                shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in value.in_avals]
                return jax.make_jaxpr(lambda *given: self.evaluate(value, given))(*shapes)
            case list() | tuple():
                return type(value)(self._rewritten(part) for part in value)
        return value


def _value(values: dict[Any, Any], place: Any) -> Any:
    return place.val if isinstance(place, jax.extend.core.Literal) else values[place]


def _bind(equation: Any, given: list[Any], params: dict[str, Any]) -> list[Any]:
    primitive = equation.primitive
    functions, rest = primitive.get_bind_params(params)
    results = primitive.bind(*functions, *given, **rest)
    return list(results) if primitive.multiple_results else [results]


def _in_order(values: Any, places: Any) -> list[Any]:
    """Sort the largest first, as ``lax.top_k`` does."""
    axis = values.ndim - 1
    values, places = lax.sort((values, places), dimension=axis, num_keys=1)
    return [lax.rev(values, (axis,)), lax.rev(places, (axis,))]


def _needed_to_draw(jaxpr: Any) -> list[bool]:
    """For each equation, whether random numbers are drawn in it or from its results."""
    needed: set[Any] = set()
    found = []
    for equation in reversed(jaxpr.eqns):
        draws = _draws(equation) or any(_has(f.jaxpr, _draws) for f in functions_of(equation))
        found.append(draws or not needed.isdisjoint(equation.outvars))
        if found[-1]:
            needed |= {v for v in equation.invars if not isinstance(v, jax.extend.core.Literal)}
    return found[::-1]


def _draws(equation: Any) -> bool:
    return equation.primitive.name in _DRAWN


def _has(jaxpr: Any, is_meant: Callable[[Any], bool]) -> bool:
    """Whether there is such an equation, also in inner functions."""
    return any(
        is_meant(equation) or any(_has(f.jaxpr, is_meant) for f in functions_of(equation))
        for equation in jaxpr.eqns
    )


def _scales(jaxpr: Any) -> bool:
    """Whether fractions are multiplied or divided, also in inner functions."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in SCALING and equation.outvars[0].aval.dtype.kind == "f":
            return True
        if name in _FOLLOWED and any(_scales(f.jaxpr) for f in functions_of(equation)):
            return True
    return False


def functions_of(equation: Any) -> Iterator[Any]:
    """The inner functions of an operation, closed."""
    for value in equation.params.values():
        yield from _closed(value)


def _closed(value: Any) -> Iterator[Any]:
    """The functions in a parameter of an equation."""
    match value:
        case jax.extend.core.ClosedJaxpr():
            yield value
        case jax.extend.core.Jaxpr():
            yield jax.extend.core.ClosedJaxpr(value, ())
        case list() | tuple():
            for part in value:
                yield from _closed(part)
