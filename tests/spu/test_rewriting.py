"""Functions that SPU computes otherwise than JAX: put right, or refused; never other numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from redislink import Session, UsageError
from redislink.spu.rewriting import rewrite
from tests.session.conftest import Stage

X = np.array([3, 1, 2, 5, 0, 4, 9, 7, 6, 8], np.float32)
KEY, RAW = jax.random.key(3), jax.random.PRNGKey(3)

DRAWS: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda x: x + jax.random.uniform(KEY, x.shape),
    "of a raw key": lambda x: x + jax.random.uniform(RAW, x.shape),
    "of a seed": lambda x: x + jax.random.uniform(jax.random.key(5), x.shape),
    "dropout": lambda x: jnp.where(jax.random.uniform(KEY, x.shape) < 0.5, x / 0.5, 0),
    "of keys made of keys": lambda x: [
        x + jax.random.uniform(jax.random.fold_in(k, 7), x.shape) for k in jax.random.split(KEY)
    ],
    "within jit": lambda x: jax.jit(lambda y: y + jax.random.uniform(KEY, y.shape))(x),
    "a loop over keys alone": lambda x: (
        x[:3] + lax.scan(lambda c, k: (c, jax.random.uniform(k)), 0, jax.random.split(KEY, 3))[1]
    ),
    "another generator": lambda x: x + jax.random.uniform(jax.random.key(3, impl="rbg"), x.shape),
}
LARGEST: dict[str, Callable[[Any], Any]] = {
    "values and places": lambda x: lax.top_k(x, 4),
    "of rows": lambda x: lax.top_k(x.reshape(2, 5), 3),
    "within jit and vmap": lambda x: jax.jit(jax.vmap(lambda y: lax.top_k(y, 2)[0]))(
        x.reshape(2, 5)
    ),
    "in a branch": lambda x: lax.cond(True, lambda y: lax.top_k(y, 6)[0], lambda y: y[:6], x),
    "in a loop": lambda x: lax.fori_loop(0, 2, lambda _, c: lax.top_k(c, len(c))[0], x),
    "of whole numbers": lambda x: lax.top_k(-x.astype(jnp.int32), 4),
    "differentiated": jax.grad(lambda x: jnp.sum(lax.top_k(x, 4)[0] * jnp.arange(4.0))),
}


def _rewritten(function: Any, *arguments: Any) -> Any:
    traced, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return rewrite(traced, jax.tree.structure(out), 64)


@pytest.mark.parametrize("name", [*DRAWS, *LARGEST])
def test_to_jax_the_rewritten_function_is_the_same_and_it_draws_nothing(name: str) -> None:
    function = {**DRAWS, **LARGEST}[name]
    rewritten = _rewritten(function, X)
    again, out = jax.make_jaxpr(rewritten, return_shape=True)(X)
    for word in ("random_bits", "threefry", "random_seed", "rng_bit_generator"):
        assert word not in str(again)
    assert str(out) == str(jax.eval_shape(function, X))
    for mine, plain in zip(
        jax.tree.leaves(rewritten(X)), jax.tree.leaves(function(X)), strict=True
    ):
        assert np.allclose(mine, plain, rtol=1e-6)


@pytest.mark.parametrize(
    "function", [jnp.sort, lambda x: x + 1, lambda x: x + jax.random.key_data(KEY)[0]]
)
def test_what_spu_gets_right_stays_as_it_is(function: Any) -> None:
    assert _rewritten(function, X) is None


@pytest.mark.slow
def test_random_numbers_are_those_of_jax_at_all(memory: Stage) -> None:
    def every(x: Any) -> Any:
        return {name: DRAWS[name](x) for name in ("uniform", "of a raw key", "dropout")}

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        return sp.reveal(sp.run(every)(sp.private(lambda: X, "alice")), to=["bob", "carol"])

    found, plain = memory.play(program), every(jnp.asarray(X))
    for party in ("bob", "carol"):
        for name, got in found[party].items():
            assert np.allclose(got, plain[name], atol=1e-4), name


@pytest.mark.slow
def test_the_largest_come_in_order(memory: Stage) -> None:
    def every(x: Any) -> Any:
        return {name: function(x) for name, function in LARGEST.items()}

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        return sp.reveal(sp.run(every)(sp.private(lambda: X, "alice")), to=["bob"])

    found, plain = memory.play(program)["bob"], every(jnp.asarray(X))
    for name, mine in found.items():
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(plain[name]), strict=True):
            assert one.dtype == other.dtype, name
            assert np.allclose(one, other, atol=1e-3), name


@pytest.mark.parametrize("secret", [True, False])
def test_keys_that_are_not_known_when_it_is_compiled(memory: Stage, secret: bool) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: X, "alice")
        key: Any = np.asarray(RAW)
        if secret:
            key = sp.private(lambda: np.asarray(RAW), "bob")
        for draw in (
            lambda x, k: x + jax.random.uniform(k, x.shape),
            lambda x, k: lax.fori_loop(0, 2, lambda _, c: c + jax.random.uniform(KEY), x),
            lambda x, k: x + lax.rng_uniform(0.0, 1.0, x.shape),
        ):
            with pytest.raises(UsageError, match=r"SP1.run\(.*it draws random numbers in a loop"):
                sp.run(draw)(x, key)
        return sp.reveal(x, to=["bob"])

    assert np.array_equal(memory.play(program)["bob"], X)


WHOLE: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: (jnp.max(x), jnp.max(x, axis=0), jnp.max(x, axis=(0, 1), keepdims=True)),
    "min": lambda x: (jnp.min(x), jnp.min(x, axis=1)),
    "places": lambda x: (jnp.argmax(x), jnp.argmax(x, axis=0), jnp.argmin(x, axis=1)),
    "so far": lambda x: (lax.cummax(x, 1), lax.cummin(x, 1, reverse=True)),
    "within jit": lambda x: jax.jit(jnp.ptp)(x),
}


@pytest.mark.parametrize(
    "x",
    [
        np.array([[-(2**62), 5, 2**62 - 1], [7, 1, 5]]),
        np.array([[-3, -1, -2], [-3, -1, -7]]),
        np.array([[0, 5, 2**62 - 1], [7, 1, 5]], np.uint64),
    ],
)
def test_extremes_of_whole_numbers_of_full_width(memory: Stage, x: Any) -> None:
    def every(x: Any) -> Any:
        return {name: function(x) for name, function in WHOLE.items()}

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        return sp.reveal(sp.run(every)(sp.private(lambda: x, "alice")), to=["bob"])

    found = memory.play(program)["bob"]
    with jax.enable_x64(True):
        plain = every(jnp.asarray(x))
    for name, mine in found.items():
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(plain[name]), strict=True):
            assert one.dtype == other.dtype, name
            assert np.array_equal(one, other), name
