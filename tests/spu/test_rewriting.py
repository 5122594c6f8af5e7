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
from redislink.spu.factors import Factors
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


@jax.custom_vjp
def _square(x: Any) -> Any:
    return x * x


_square.defvjp(lambda x: (x * x, x), lambda x, given: (given * 2 * x,))

# Of N rows, with factors such as 1 / N, of which SPU would cut some percent.
N = 30_000
ROWS = np.random.default_rng(1).normal(120, 15, N).astype(np.float32)
WEIGHTS = np.arange(N, dtype=np.float32) / N
FACTORS: dict[str, Callable[[Any], Any]] = {
    "mean": jnp.mean,
    "variance": jnp.var,
    "deviation": jnp.std,
    "covariance": lambda x: jnp.cov(x, 2 * x),
    "means of columns": lambda x: jnp.mean(x.reshape(-1, 5), axis=0),
    "a quotient": lambda x: jnp.sum(x) / N,
    "a factor": lambda x: jnp.float32(-1 / N) * jnp.sum(x),
    "of 64 bits": lambda x: jnp.mean(x.astype(jnp.float64)),
    "an array of one number": lambda x: jnp.sum(x.reshape(-1, 3), axis=0) * np.full(3, 1 / N),
    "a number made of others": lambda x: jnp.sum(x) * (jnp.float32(3) / (3 * N - jnp.int32(0))),
    "a factor of a factor": lambda x: jnp.mean(x[:100]) * 0.03 * 0.03 * 7,
    "halves between": lambda x: jnp.mean(x) * 0.5 * 0.7 / 300,
    "far below a unit": lambda x: jnp.sum(x) * 1e-6 * 1e-3,
    "within jit": lambda x: jax.jit(jnp.mean)(x) + jax.jit(lambda y: jnp.sum(y) / N)(x),
    "in a branch": lambda x: lax.cond(True, jnp.mean, jnp.sum, x),
    "in a loop": lambda x: lax.fori_loop(0, 3, lambda _, c: c - jnp.mean(x) / 3, 200.0),
    "in a scan": lambda x: lax.scan(lambda c, y: (c + y / 300, y), 0.0, x[:9])[0],
    "in a while": lambda x: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + jnp.mean(x)), (0, 0.0)
    )[1],
    "with derivatives of its own": lambda x: jnp.mean(jax.nn.relu(x)) + jnp.mean(_square(x / 10)),
    "differentiated": lambda x: jnp.sum(jax.grad(lambda y: jnp.mean(_square(y)))(x)),
    "a mean of equal weights": lambda x: jnp.average(x, weights=jnp.ones(N)),
    "a weighted mean": lambda x: jnp.average(x, weights=WEIGHTS),
    "mapped": lambda x: jax.vmap(lambda y: y / 3000)(x[:3]),
}


def _rewritten(function: Any, *arguments: Any) -> Any:
    traced, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return rewrite(traced, jax.tree.structure(out), 64, 18)


@pytest.mark.parametrize("name", FACTORS)
def test_to_jax_a_function_with_small_factors_is_the_same(name: str) -> None:
    function = FACTORS[name]
    with jax.enable_x64(name == "of 64 bits"):
        rewritten = _rewritten(function, ROWS)
        assert rewritten is not None
        assert str(jax.eval_shape(rewritten, ROWS)) == str(jax.eval_shape(function, ROWS))
        for mine, plain in zip(
            jax.tree.leaves(rewritten(ROWS)), jax.tree.leaves(function(ROWS)), strict=True
        ):
            assert np.allclose(mine, plain, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["SP0", "SP1"])
def test_small_factors_are_not_cut(memory: Stage, device: str) -> None:
    def every(x: Any) -> Any:
        return {name: f(x) for name, f in FACTORS.items() if name != "of 64 bits"}

    def program(session: Session) -> Any:
        sp = session.spu(device)
        return sp.reveal(sp.run(every)(sp.private(lambda: ROWS, "alice")), to=["bob"])

    found, plain = memory.play(program)["bob"], every(jnp.asarray(ROWS))
    for name, mine in found.items():
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(plain[name]), strict=True):
            assert np.allclose(one, other, rtol=3e-4, atol=3e-5), name


@pytest.mark.parametrize("factor", [2.0**-k for k in range(8, 22)] + [1 / 600, 1e-5, 3e-7])
def test_what_is_multiplied_by_a_small_factor_may_be_large(memory: Stage, factor: float) -> None:
    rows = np.array([3e6, 2e8, 1e9, -1e9, 9e11 if factor < 1e-4 else 1.0], np.float64)

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        shared = sp.private(lambda: rows, "alice")
        return sp.reveal(sp.run(lambda x: x * factor)(shared), to=["bob"])

    assert np.allclose(memory.play(program)["bob"], rows * factor, rtol=2e-5, atol=1e-5)


def test_a_factor_is_split_where_its_cutting_is_felt() -> None:
    factors = Factors(64, 18)
    right = [0.0, 0.5, 0.1, 0.03, 1.7, -3.0, 1 / 256, 2.0**-16, np.inf, np.nan, 1e-30]
    assert not [one for one in right if factors.is_cut(one)]
    cut = [1 / 600, -1 / 600, 1 / 30_000, 1e-3, 1e-6, 2.0**-17, 2.0**-19]
    assert [one for one in cut if factors.is_cut(one)] == cut
    assert not Factors(128, 40).is_cut(1 / 30_000)


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
    "function",
    [
        jnp.sort,
        lambda x: x + 1,
        lambda x: x + jax.random.key_data(KEY)[0],
        jnp.mean,
        lambda x: (x * 0.03) @ (x * 0.03),
        lambda x: x / x,
        lambda x: 1e-3 / x,
        lambda x: x + 1e-6 * 1e-3,
        lambda x: lax.fori_loop(0, 3, lambda _, c: c * 0.9, x),
    ],
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
