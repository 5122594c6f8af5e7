"""What functions close over counts, errors come to all, and what is kept has an end."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lax import lax
from spu import api
from spu.utils import frontend

from redislink import ProgramDiverged, Session, UsageError
from redislink.spu import compiling
from redislink.spu.compiling import Kept
from tests.session.conftest import Stage


def _typed_key(session: Session, seed: int) -> Any:
    key = jax.random.key(seed)
    return lambda x: x + jax.random.key_data(key)[1]


def _bits_of_a_key(session: Session, seed: int) -> Any:
    key = jax.random.key(seed)
    return lambda x: x + jax.random.bits(key, x.shape)


def _key_within(session: Session, seed: int) -> Any:
    key = jax.random.key(seed, impl="rbg")
    return jax.jit(lambda x: x + jax.random.key_data(key)[0])


def _array(session: Session, seed: int) -> Any:
    added = np.full(3, seed)
    return lambda x: x + added


def _array_within(session: Session, seed: int) -> Any:
    added = jnp.full(3, seed)
    inner = jax.jit(lambda x: x + added)
    return lambda x: inner(x) + 1


def _array_in_a_branch(session: Session, seed: int) -> Any:
    added = np.full(3, seed, np.int32)
    inner = jax.jit(lambda x: x + added)
    return lambda x: jax.lax.cond(True, inner, lambda x: x, x)


CLOSURES = [_typed_key, _key_within, _array, _array_within, _array_in_a_branch]


def _runs(make: Any, seed: Any) -> Any:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.arange(3, dtype=np.int32), owner="carol")
        return sp.reveal(sp.run(make(session, seed(session)))(x), to=session.party_names)

    return program


@pytest.mark.parametrize("make", CLOSURES)
def test_what_a_function_closes_over_is_compiled_in(memory: Stage, make: Any) -> None:
    got = memory.play(_runs(make, lambda s: 1))["carol"]
    expected = make(None, 1)(np.arange(3, dtype=np.int32))
    assert np.array_equal(got.astype(np.int64) % 2**32, np.asarray(expected, np.int64) % 2**32)


def test_random_bits_are_those_of_a_raw_key(memory: Stage) -> None:
    """SPU's bits are not those of JAX; a typed key changes nothing about that."""

    def raw(session: Session, seed: int) -> Any:
        key = jax.random.PRNGKey(seed)
        return lambda x: x + jax.random.bits(key, x.shape)

    got = [memory.play(_runs(make, lambda s: 1))["carol"] for make in (_bits_of_a_key, raw)]
    assert np.array_equal(*got)


@pytest.mark.parametrize("make", [*CLOSURES, _bits_of_a_key])
def test_what_a_function_closes_over_must_be_equal(memory: Stage, make: Any) -> None:
    for error in memory.errors(_runs(make, lambda s: 1 if s.party == "bob" else 2)).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        assert "(what differs: what the function closes over)" in str(error)


def _no_such_operation(x: Any) -> Any:
    return jnp.fft.fft(x).real


def _no_callbacks(x: Any) -> Any:
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def _raises(x: Any) -> Any:
    raise RuntimeError("the function's own")


@pytest.mark.parametrize(
    ("function", "kind"),
    [(_no_such_operation, UsageError), (_no_callbacks, ValueError), (_raises, RuntimeError)],
)
def test_what_cannot_be_compiled_is_told_to_all_and_the_session_goes_on(
    stage: Stage, function: Any, kind: type[Exception]
) -> None:
    names = [name for patch in frontend.lax_patches.values() for name in patch.possible_names]
    before = [getattr(lax, name, None) for name in names]

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.ones(4, np.float32), owner="alice")
        with pytest.raises(kind) as caught:
            sp.run(function)(x)
        told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        return told, sp.reveal(sp.run(jnp.negative)(x), to=["carol"])

    found = stage.play(program)
    for party, (told, _) in found.items():
        assert f"{party}: SP1.run({function.__name__}) with (f32[4])" in told
    assert found["carol"][1].tolist() == [-1] * 4
    assert [getattr(lax, name, None) for name in names] == before, "JAX is as it was"


def test_kept_are_the_newest_up_to_a_number_and_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_MOST_KEPT", 3)
    monkeypatch.setattr(compiling, "_MOST_BYTES", 10)
    kept: Kept[str] = Kept()
    for key in "abc":
        kept.put(key, key, 3)
    assert kept.get("a") == "a", "now the newest"
    kept.put("d", "d", 1)
    assert [kept.get(key) for key in "abcd"] == ["a", None, "c", "d"], "the number"
    kept.put("e", "e", 7)
    assert [kept.get(key) for key in "acde"] == [None, None, "d", "e"], "the sum"
    kept.put("e", "E", 2)
    assert (kept.get("e"), kept.total_bytes) == ("E", 3)
    kept.put("large", "x", 99)
    assert (len(kept), kept.total_bytes, kept.get("large")) == (1, 99, "x"), "the last one stays"


def test_a_loop_that_closes_over_new_weights_does_not_grow(
    memory: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 200_000
    monkeypatch.setattr(compiling, "_MOST_BYTES", limit)
    codes: Kept[bytes] = Kept()
    monkeypatch.setattr(compiling, "_codes", codes)

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.ones((1, 100), np.float32), owner="alice")
        functions = []
        for seed in range(8):
            weights = np.random.default_rng(seed).normal(size=(100, 100)).astype(np.float32)
            function = eval("lambda x: x @ weights", {"weights": weights})
            functions.append(weakref.ref(function))
            sp.run(function)(x)
            del function
        gc.collect()
        return sp._cache.total_bytes, sum(f() is not None for f in functions)

    for total, alive in memory.play(program).values():
        assert 40_000 <= total <= limit
        assert alive <= 3
    assert 40_000 <= codes.total_bytes <= limit
    assert len(api._spu_compilation.cache) == 0
