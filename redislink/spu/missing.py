"""Refuses functions that use NaN for what is missing: shares have none, and SPU takes it as 0.

``jnp.nanmean(jnp.where(group, x, jnp.nan))`` would be a mean over zeros. JAX's own functions also
name NaN, for values that shares cannot hold, and are right: their inner functions are not searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import jax
import jax.extend.core
import numpy as np

from redislink.errors import UsageError
from redislink.spu.rewriting import INLINED, functions_of

INSTEAD: Final = (
    "share 0 where a value is missing and a mask of ones and zeros beside it, reveal "
    "jnp.sum(x * mask) and jnp.sum(mask), and divide these"
)
_HARMLESS: Final = frozenset({"nan_to_num"})
"""Functions of JAX with ``nan`` in their names that are right where there is none."""


def check_no_nan(traced: Any) -> None:
    """Refuse a traced function that names NaN or asks for it.

    Raises:
        UsageError: it does; the message says by what, and what to write instead.
    """
    for what in _uses(traced.jaxpr):
        raise UsageError(f"it uses {what}, and shares have no NaN, so SPU takes it as 0: {INSTEAD}")


def _uses(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        name = str(equation.params.get("name", ""))
        plain = name.lstrip("_")
        is_of_jax = equation.primitive.name in INLINED and hasattr(jax.numpy, plain)
        if is_of_jax and plain.startswith("nan") and plain not in _HARMLESS:
            yield f"jnp.{plain}"
        if any(_is_nan(operand) for operand in equation.invars):
            yield "the constant NaN"
        if equation.primitive.name == "ne" and _asks(*equation.invars):
            yield "jnp.isnan"
        if not is_of_jax:
            for function in functions_of(equation):
                yield from _uses(function.jaxpr)


def _is_nan(operand: Any) -> bool:
    if not isinstance(operand, jax.extend.core.Literal):
        return False
    value = np.asarray(operand.val)
    return value.dtype.kind == "f" and bool(np.isnan(value).any())


def _asks(one: Any, other: Any) -> bool:
    """Whether a comparison is of a fraction with itself, as only NaN is not equal to itself."""
    return one is other and np.dtype(one.aval.dtype).kind == "f"
