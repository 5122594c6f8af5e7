"""Functions of JAX that SPU computes otherwise than JAX, rewritten before it compiles them.

- ``lax.top_k`` comes from SPU in any order: what it gives is sorted.
- JAX's random numbers rely on 32-bit integers that wrap, and in SPU's rings they do not: the
  numbers would be neither JAX's nor uniform. What is drawn from a key that all parties know is
  drawn while the function is traced, and compiled in; from another key nothing can be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.extend.core
from jax import lax

from redislink.errors import UsageError

_DRAWN: Final = frozenset(
    {
        "random_bits",
        "random_seed",
        "random_split",
        "random_fold_in",
        "random_gamma",
        "threefry2x32",
        "rng_bit_generator",
        "rng_uniform",
    }
)
_TOP_K: Final = "top_k"
_INLINED: Final = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"})


def rewrite(traced: Any, out_tree: Any) -> Callable[..., Any] | None:
    """A function with what SPU gets wrong put right; None if there is nothing of the kind.

    Args:
        traced: what ``jax.make_jaxpr`` gave.
        out_tree: containers of the results.

    Raises:
        UsageError: by the function, where it is traced: it draws random numbers from a key that
            is not known.
    """
    if not _has(traced.jaxpr, _DRAWN | {_TOP_K}):
        return None

    def rewritten(*leaves: Any) -> Any:
        return jax.tree_util.tree_unflatten(out_tree, _evaluate(traced, leaves))

    return rewritten


def _evaluate(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    for equation, is_needed in zip(jaxpr.eqns, _needed_to_draw(jaxpr), strict=True):
        given = [_value(values, place) for place in equation.invars]
        results = _apply(equation, given, is_needed)
        values |= zip(equation.outvars, results, strict=True)
    return [_value(values, place) for place in jaxpr.outvars]


def _value(values: dict[Any, Any], place: Any) -> Any:
    return place.val if isinstance(place, jax.extend.core.Literal) else values[place]


def _apply(equation: Any, given: list[Any], is_needed: bool) -> list[Any]:
    name = equation.primitive.name
    known = not any(isinstance(value, jax.core.Tracer) for value in given)
    if is_needed and known:
        with jax.ensure_compile_time_eval():
            return _bind(equation, given, equation.params)
    if name in _DRAWN:
        raise UsageError(
            "it draws random numbers in a loop, or from a key that is an argument, and SPU would "
            "give numbers that are neither JAX's nor uniform: close over the key and draw outside "
            "of the loop, or draw before and give the numbers as an argument"
        )
    inner = [part for value in equation.params.values() for part in _closed(value)]
    if not any(_has(part.jaxpr, _DRAWN | {_TOP_K}) for part in inner):
        results = _bind(equation, given, equation.params)
        return _in_order(*results) if name == _TOP_K else results
    if name in _INLINED:
        (function,) = inner
        return _evaluate(function, given)
    params = {key: _rewritten(value) for key, value in equation.params.items()}
    return _bind(equation, given, params)


def _bind(equation: Any, given: list[Any], params: dict[str, Any]) -> list[Any]:
    primitive = equation.primitive
    functions, rest = primitive.get_bind_params(params)
    results = primitive.bind(*functions, *given, **rest)
    return list(results) if primitive.multiple_results else [results]


def _in_order(values: Any, places: Any) -> list[Any]:
    """The largest first, as ``lax.top_k`` has them."""
    axis = values.ndim - 1
    values, places = lax.sort((values, places), dimension=axis, num_keys=1)
    return [lax.rev(values, (axis,)), lax.rev(places, (axis,))]


def _needed_to_draw(jaxpr: Any) -> list[bool]:
    """For each equation whether random numbers come from it, or from what it gives."""
    needed: set[Any] = set()
    found = []
    for equation in reversed(jaxpr.eqns):
        draws = equation.primitive.name in _DRAWN or any(
            _has(part.jaxpr, _DRAWN)
            for value in equation.params.values()
            for part in _closed(value)
        )
        found.append(draws or not needed.isdisjoint(equation.outvars))
        if found[-1]:
            needed |= {v for v in equation.invars if not isinstance(v, jax.extend.core.Literal)}
    return found[::-1]


def _has(jaxpr: Any, names: frozenset[str]) -> bool:
    return any(
        equation.primitive.name in names
        or any(
            _has(part.jaxpr, names) for value in equation.params.values() for part in _closed(value)
        )
        for equation in jaxpr.eqns
    )


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


def _rewritten(value: Any) -> Any:
    """A parameter of an equation, with the functions in it rewritten."""
    match value:
        case jax.extend.core.ClosedJaxpr():
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in value.in_avals]
            return jax.make_jaxpr(lambda *given: _evaluate(value, given))(*shapes)
        case list() | tuple():
            return type(value)(_rewritten(part) for part in value)
    return value
