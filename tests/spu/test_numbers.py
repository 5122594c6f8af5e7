"""Numbers on shares: what a device cannot hold is refused before it is sent; results are of JAX's
types."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from spu import libspu

from redislink import ClusterSpec, LoadFailed, PeerError, Session, Simulator, UsageError
from redislink.spu import pytrees
from tests.session.conftest import Stage

Pair = collections.namedtuple("Pair", "w b")
NAN = np.array([[0, 1], [np.nan, np.inf]], np.float32)


def _simulator(protocol: str = "SEMI2K", field: str = "FM64") -> Simulator:
    names = ["alice", "bob", "carol"][: 3 if protocol == "ABY3" else 2]
    device = {"kind": "SPU", "members": names, "config": {"protocol": protocol, "field": field}}
    return Simulator(
        ClusterSpec.parse({"session": "s", "parties": names, "devices": {"SP0": device}})
    )


# -- what is missing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: jnp.where(x > 1, x, jnp.nan).sum(), "the constant NaN"),
        (lambda x: jnp.nanmean(x), "jnp.nanmean"),
        (lambda x: jax.jit(jnp.nanmedian)(x), "jnp.nanmedian"),
        (lambda x: jnp.isnan(x).sum(), "jnp.isnan"),
        (lambda x: jax.jit(lambda y: jnp.where(y != y, 0, y))(x), "jnp.isnan"),
        (lambda x: lax.cond(True, lambda y: y * jnp.nan, lambda y: y, x), "the constant NaN"),
        (lambda x: jax.vmap(lambda y: jnp.nansum(y))(x[:, None]), "jnp.nansum"),
        (lambda x: jax.checkpoint(lambda y: y * jnp.nan)(x), "the constant NaN"),
    ],
)
def test_functions_for_missing_values_are_refused(function: Any, what: str) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: np.arange(4.0), "alice")
        with pytest.raises(UsageError, match=rf"it uses {what}, and shares have no NaN.* mask"):
            sp.run(function)(x)
        return sp.reveal(x, to=["bob"])

    assert _simulator().run(program)["bob"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "function",
    [
        jnp.median,
        jnp.var,
        jnp.std,
        jnp.nan_to_num,
        jax.nn.logsumexp,
        lambda x: jnp.quantile(x, 0.5),
    ],
)
def test_what_names_nan_for_others_than_shares_is_right(function: Any) -> None:
    x = np.linspace(0, 4, 600)  # so many that factors are split

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        return sp.reveal(sp.run(function)(sp.private(lambda: x, "alice")), to=["bob"])

    found = _simulator().run(program)["bob"]
    assert np.allclose(found, function(jnp.asarray(x)), atol=0.05)


def test_a_branch_on_a_secret_is_explained() -> None:
    def program(session: Session) -> None:
        sp = session.spu("SP0")
        x = sp.private(lambda: 3.0, "alice")
        with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
            sp.run(lambda x: x if x > 0 else -x)(x)
        assert any("jnp.where(condition, one, other)" in note for note in caught.value.__notes__)

    _simulator().run(program)


def test_an_operation_that_spu_lacks_is_named() -> None:
    def program(session: Session) -> None:
        sp = session.spu("SP0")
        x = sp.private(lambda: np.eye(3), "alice")
        with pytest.raises(UsageError, match=r"SPU has no operation 'eigh': write it with other"):
            sp.run(jnp.linalg.eigvalsh)(x)

    _simulator().run(program)


# -- what comes in -------------------------------------------------------------------------------

UNFIT: list[tuple[Any, str]] = [
    (NAN, r"value has values that do not fit \(2 of 4; the first, at \[1, 0\], is NaN\): SP1 \("),
    ({"t": [1.0, 3e13]}, r"value\['t'\]\[1\] does not fit \(it is out of range\)"),
    (1e39, r"value does not fit \(it is out of range\)"),
    (Pair(1, np.float16("inf")), r"value.b does not fit \(it is infinite\)"),
    (np.array([2**62]), r"the first, at \[0\], is out of range.*wrap_ok=True"),
    (2**64, r"value is an int of more than 64 bits"),
    (np.ones((1,) * 33), r"value has 33 dimensions, more than 32"),
    (np.ma.masked_array([1.0], [True]), r"value has masked values \(1 of 1; the first at \[0\]\)"),
    ({"a": 1.0, 1: 2.0}, r"value has keys of both str and int"),
    ([jax.random.key(0)], r"value\[0\] is a typed PRNG key"),
]


@pytest.mark.parametrize("owner", ["alice", "carol"])
def test_what_does_not_fit_is_refused_at_the_owner_and_the_session_goes_on(
    stage: Stage, owner: str
) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")  # of alice and bob
        for value, text in UNFIT:
            refused = LoadFailed if session.party != owner else UsageError
            with pytest.raises(refused, match=text if session.party == owner else "UsageError"):
                sp.private(lambda value=value: value, owner=owner)
        return sp.reveal(sp.private(lambda: 5, owner=owner), to=["bob"])

    assert stage.play(program)["bob"] == 5


def test_nothing_is_sent_of_what_does_not_fit(
    memory: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def program(session: Session) -> None:
        sp = session.spu("SP0")
        if session.party == "alice":
            real = sp._steps.send
            monkeypatch.setattr(
                sp._steps, "send", lambda peer, body: sent.append(body) or real(peer, body)
            )
        with pytest.raises(UsageError if session.party == "alice" else LoadFailed):
            sp.private([np.zeros(3), NAN], owner="alice")
        assert session.party != "alice" or sent == [["failed", "UsageError"]] * 2

    memory.play(program)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (NAN, r"run\(add\): argument 2 has values that do not fit \(2 of 4"),
        ({"by": 3e13}, r"run\(add\): argument 2\['by'\] does not fit"),
        (2**62, r"run\(add\): argument 2 does not fit \(it is out of range\).*wrap_ok=True"),
        ({"a": 1, 1: 2}, r"run\(add\): JAX cannot sort the keys of a dict"),
        (jax.random.key(0), r"argument 2 is a typed PRNG key"),
        (np.ma.masked_array([1.0], [True]), r"argument 2 has masked values"),
    ],
)
def test_public_arguments_likewise_at_every_party(memory: Stage, value: Any, text: str) -> None:
    def add(x: Any, y: Any) -> Any:
        return x

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: 1, owner="alice")
        with pytest.raises(UsageError, match=text):
            sp.run(add)(x, value)
        with pytest.raises(UsageError, match=r"argument shift|JAX cannot sort"):
            sp.run(lambda x, *, shift: x)(x, shift=value)
        return sp.reveal(x, to=["bob"])

    assert memory.play(program)["bob"] == 1


def test_arrays_that_a_function_closes_over_likewise_but_not_single_numbers(memory: Stage) -> None:
    mask = np.array([0, -np.inf], np.float32)

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: np.arange(2, dtype=np.float32), owner="alice")
        for inner in (lambda x: x, jax.jit):
            with pytest.raises(UsageError, match=r"an array that it closes over has values that"):
                sp.run(inner(lambda x: x + mask))(x)
        # JAX's own maximum starts from minus infinity.
        return sp.reveal(sp.run(lambda x: jnp.max(x, initial=-jnp.inf))(x), to=["bob"])

    assert memory.play(program)["bob"] == 1


def test_whole_numbers_of_full_width_where_they_have_a_meaning(memory: Stage) -> None:
    ids = np.array([2**63 - 1, -(2**63), 2**62], np.int64)

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(ids, "alice", wrap_ok=True)
        same = sp.run(lambda x, y: (x == y, x ^ y, x + y), wrap_ok=True)(x, ids[::-1].copy())
        return sp.reveal(same, to=["bob"])

    equal, xor, total = memory.play(program)["bob"]
    assert equal.tolist() == [False, True, False]
    assert np.array_equal(xor, ids ^ ids[::-1])
    assert np.array_equal(total, ids + ids[::-1])


@pytest.mark.parametrize("protocol", ["ABY3", "SEMI2K", "CHEETAH"])
@pytest.mark.parametrize("field", ["FM64", "FM32"])
def test_whole_numbers_compare_rightly_up_to_the_range_and_not_beyond(
    protocol: str, field: str
) -> None:
    bits = int(field[2:])
    limit, dtype = 1 << (bits - 2), np.dtype(f"int{bits}")
    inside = np.array([limit - 1, -limit, 0, limit - 1], dtype)
    others = np.array([-limit, limit - 1, limit - 1, limit - 1], dtype)
    beyond, far = np.array([2 * limit - 1], dtype), np.array([-limit], dtype)

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        less = sp.run(lambda x, y: (x < y, jnp.maximum(x, y)))
        within = less(sp.private(inside, "alice"), sp.private(others, "alice"))
        outside = less(sp.private(beyond, "alice", wrap_ok=True), sp.private(far, "alice"))
        return sp.reveal([within, outside], to=["alice"])

    (less, most), (wrong, _) = _simulator(protocol, field).run(program)["alice"]
    assert np.array_equal(less, inside < others)
    assert np.array_equal(most, np.maximum(inside, others))
    assert wrong.tolist() == [True], "where it is refused it would be wrong"


def test_int64_on_a_field_of_32_bits() -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        with pytest.raises(UsageError if session.party == "alice" else LoadFailed):
            sp.private(lambda: np.arange(3), owner="alice")
        with pytest.raises(UsageError, match=r"argument 1 is i64\[3\], and SP0 .*numpy.int32"):
            sp.run(jnp.negative)(np.arange(3))
        x = sp.private(lambda: np.arange(3, dtype=np.int32), owner="alice")
        return sp.reveal(sp.run(lambda x: lax.top_k(x, 2))(x), to=["bob"])

    values, places = _simulator(field="FM32").run(program)["bob"]
    assert (values.tolist(), places.tolist()) == ([2, 1], [2, 1])
    assert places.dtype == np.int32


# -- containers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["alice", "carol"])
def test_namedtuples_stay_what_they_are(stage: Stage, owner: str) -> None:
    def load() -> Any:
        return Pair(np.ones(2, np.float32), [Pair(1, None)])

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        secret = sp.private(load, owner=owner)
        assert type(secret) is Pair
        assert type(secret.b[0]) is Pair
        public = Pair(np.zeros(2, np.float32), [Pair(2, None)])
        both = sp.run(lambda a, b: jax.tree.map(jnp.add, a, b))(secret, public)
        return sp.reveal(both, to=["alice"])

    got = stage.play(program)["alice"]
    assert type(got) is Pair
    assert got.w.tolist() == [1, 1]
    assert got.b == [Pair(3, None)]


def test_a_namedtuple_that_a_party_does_not_have(
    memory: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, absent = pytrees._find, threading.local()
    monkeypatch.setattr(
        pytrees, "_find", lambda name: None if hasattr(absent, "here") else real(name)
    )

    def program(session: Session) -> Any:
        if session.party == "bob":
            absent.here = True
        return session.spu("SP1").private(lambda: Pair(1, 2), owner="alice")

    error = memory.outcomes(program)["bob"]
    assert isinstance(error, UsageError)
    assert (
        "bob: alice put a namedtuple tests.spu.test_numbers:Pair on SP1, and this party has no"
        in str(error)
    )


# -- what comes out ------------------------------------------------------------------------------

X = np.array([3, 1, 2, 5, 0, 4])
RESULTS: dict[str, Callable[[Any], Any]] = {
    "sort": jnp.sort,
    "argsort": jnp.argsort,
    "argmax": lambda x: (jnp.argmax(x), jnp.argmin(x)),
    "cumsum": jnp.cumsum,
    "bitwise": lambda x: (x.astype(jnp.uint8) & 3, ~x.astype(jnp.int16), x.astype(jnp.int32) ^ 5),
    "divisions": lambda x: (x.astype(jnp.int32) // 2, x.astype(jnp.int32) % 3, x / 2),
    "bool": lambda x: (jnp.any(x > 4), jnp.all(x > 4), x == 2, jnp.logical_not(x)),
    "counts": lambda x: (jnp.count_nonzero(x), jnp.sum(x > 2)),
    "shapes": lambda x: (jnp.arange(3), 7, 2.5, True, jnp.zeros(2, jnp.int8)),
}


@pytest.mark.slow
def test_results_are_of_jaxs_types() -> None:
    def every(x: Any) -> Any:
        return {name: function(x) for name, function in RESULTS.items()}

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        return sp.reveal(sp.run(every)(sp.private(X.astype(np.float32), "alice")), to=["bob"])

    found, plain = _simulator().run(program)["bob"], every(jnp.asarray(X, jnp.float32))
    for name, mine in found.items():
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(plain[name]), strict=True):
            assert one.dtype == jnp.asarray(other).dtype, name
            assert np.allclose(one, other, atol=1e-3), name


@pytest.mark.parametrize("protocol", ["ABY3", "SEMI2K", "CHEETAH"])
def test_places_of_the_largest_and_what_is_computed_with_them(protocol: str) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(X.astype(np.float32), "alice")
        values, places = sp.run(lambda x: lax.top_k(x, 3))(x)
        assert places.dtype == np.int32
        return sp.reveal([values, places, sp.run(lambda p: p + 1)(places)], to=["bob"])

    values, places, more = _simulator(protocol).run(program)["bob"]
    assert places.dtype == more.dtype == np.int32
    assert sorted(places) == [0, 3, 5]
    assert np.array_equal(values, X[places])
    assert np.array_equal(more, places + 1)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: {"z": lax.complex(x, x)}, r"the result\['z'\] is complex64, .*imaginary part"),
        (lambda x: (x, jax.random.key(0)), r"the result\[1\] is a typed PRNG key: return jax.ran"),
        (lambda x: x.astype(jnp.bfloat16), r"the result is bfloat16, .*astype"),
    ],
)
def test_results_that_shares_cannot_hold_are_refused_at_all(
    memory: Stage, function: Any, text: str
) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.float32(1), owner="alice")
        with pytest.raises(UsageError, match=text):
            sp.run(function)(x)
        inside = sp.run(lambda x: jnp.real(lax.complex(x, x)))(x)
        return sp.reveal(inside, to=["bob"])

    assert memory.play(program)["bob"] == 1


def _of_type(data_type: Any) -> Callable[[Any], Any]:
    def forge(meta: Any) -> None:
        meta.data_type = data_type

    return forge


def _complex(meta: Any) -> None:
    meta.is_complex = True


@pytest.mark.parametrize(
    "forge",
    [
        _of_type(libspu.DataType.DT_F32),
        _of_type(libspu.DataType.DT_I64),
        _of_type(libspu.DataType.DT_INVALID),
        _complex,
    ],
)
def test_a_share_of_another_type_than_the_others_is_refused(memory: Stage, forge: Any) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(np.arange(3, dtype=np.int32), owner="alice")
        if session.party == "alice":
            real = sp._own_shares

            def forged(handles: Any) -> Any:
                (share,) = real(handles)
                meta = libspu.ValueMeta()
                meta.ParseFromString(share.meta)
                forge(meta)
                share.meta = meta.SerializeToString()
                return [share]

            sp._own_shares = forged
        if session.party != "carol":
            return sp.reveal(x, to=["carol"])
        with pytest.raises(PeerError, match=r"(alice|bob) sent a message in SP1.reveal"):
            sp.reveal(x, to=["carol"])
        return True

    assert memory.outcomes(program)["carol"]
