"""Containers for a device: what travels comes back as it was, the rest is refused at the owner."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest

from redislink import UsageError, values
from redislink.spu import pytrees
from redislink.spu.arrays import as_array, columns_of, short
from redislink.spu.pytrees import Unknown, count_leaves_untrusted, fill, take_apart
from redislink.values import decode_value_untrusted, encode_value

Pair = collections.namedtuple("Pair", "w b")


class Model(NamedTuple):
    """Of the kind that optimisers keep their state in."""

    layers: Any
    step: Any = None

    class Inner(NamedTuple):
        """Within another class."""

        x: Any


class WithCode(Pair):
    """Its own code must not run at a party that another sends its name to."""

    def __new__(cls, w: Any, b: Any) -> WithCode:
        raise AssertionError("ran")


def _as_is(leaf: Any, place: str) -> Any:
    return (leaf, place)


TREES = [
    1.5,
    None,
    [],
    (),
    {},
    {"b": [1, (2, None)], "a": {3: 4.0}},
    Pair(1, 2),
    Pair(np.ones(2), np.ones(3)),
    [Model({"w": 1}, Pair(2, [3])), Model.Inner(4), ()],
    (("a", 1), Pair(("b",), 0)),
]


@pytest.mark.parametrize("value", TREES)
def test_what_travels_comes_back_as_it_was(value: Any) -> None:
    tree, leaves = take_apart(value, lambda leaf, _: leaf)
    told = decode_value_untrusted(encode_value(tree))
    assert count_leaves_untrusted(told) == len(leaves)
    back = fill(told, leaves)
    assert jax.tree_util.tree_structure(back) == jax.tree_util.tree_structure(value)
    assert type(back) is type(value)
    mine, theirs = jax.tree_util.tree_leaves(value), jax.tree_util.tree_leaves(back)
    assert all(a is b for a, b in zip(mine, theirs, strict=True))


def test_places_are_those_of_jax() -> None:
    value = {"t": [Pair(1, {"a": 2}), Model(3)]}
    _, leaves = take_apart(value, _as_is)
    expected = jax.tree_util.tree_flatten_with_path(value)[0]
    assert leaves == [(leaf, jax.tree_util.keystr(path)) for path, leaf in expected]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _local() -> Any:
    local = collections.namedtuple("local", "x")
    return local(1)


class OwnList(list[Any]):
    """Would arrive as an array."""


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"a": 1, 1: 2}, r"^value has keys of both str and int, which JAX cannot sort"),
    (lambda: [{(1, 2): 3}], r"^value\[0\] has keys that are not str or int: rename them"),
    (lambda: {True: 3}, r"^value has keys that are not str or int"),
    (lambda: {2**63: 3}, r"^value has an int key of more than 64 bits: rename it"),
    (lambda: {"\ud800": 3}, r"^value has a key with a lone surrogate: rename it"),
    (lambda: _deep(61), r"nested deeper than 60, or contains itself: flatten it"),
    (_circle, r"nested deeper than 60, or contains itself: flatten it"),
    (lambda: [0.5] * 2000, r"^value has \d+ arrays in 1 containers so far.*numpy.asarray"),
    (lambda: [[]] * 5000, r"^value has 0 arrays in \d+ containers so far"),
    (
        lambda: {"a": _local()},
        r"^value\['a'\] is a local of tests.spu.test_pytrees, where.*at the top",
    ),
    (lambda: OwnList([1, 2]), r"^value is a OwnList, which would not arrive as one"),
    (lambda: [collections.OrderedDict(a=1)], r"^value\[0\] is a OrderedDict, which would not"),
    (lambda: {1, 2}, r"^value is a set, which would not arrive as one"),
]


@pytest.fixture
def few_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real bound would take a million of them."""
    monkeypatch.setattr(pytrees, "MAX_CONTAINERS", 4096)
    monkeypatch.setattr(values, "MAX_CONTAINERS", 4096)


@pytest.mark.usefixtures("few_containers")
@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_what_would_fail_on_its_way_or_in_jax_is_refused_before(make: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        take_apart(make(), _as_is)


@pytest.mark.usefixtures("few_containers")
def test_the_largest_that_is_taken_can_be_sent() -> None:
    value = [_deep(59), *([0.5] * 980)]
    tree, leaves = take_apart(value, lambda leaf, _: leaf)
    shares = [[b"meta", [b"chunk"]] for _ in leaves]
    told = [[[3], "float32"] for _ in leaves]
    encode_value([1, [[b"digest", "text"]] * 64, ["value", tree, told, shares]])


@pytest.mark.parametrize(
    "tree",
    [
        1, [1, 0], [0, 0], {"a": 1}, True, 0.0, "x", ("m:C",), ("m:C", "f"), ("m:C", 0, 1),
        ("m:C", "f", "g"), ["m:C", "f", 0], ("m:C", "f", 1), [("m:C", "f", 0), "x"], b"x",
    ],
)  # fmt: skip
def test_what_is_no_tree_is_seen(tree: Any) -> None:
    assert count_leaves_untrusted(tree) != 1 or tree == ("m:C",)


@pytest.mark.parametrize(
    "tree",
    [
        ("tests.spu.test_pytrees:Nothing", "w", 0),
        ("tests.spu.test_pytrees:Pair", "w", 0),
        ("tests.spu.test_pytrees:Pair", "b", 0, "w", 1),
        ("tests.spu.test_pytrees:OwnList", "w", 0),
        ("tests.spu.test_pytrees:_local", "x", 0),
        ("tests.spu.test_pytrees:_local.<locals>.local", "x", 0),
        ("no.such.module:Pair", "w", 0),
        ("", "w", 0),
        ("builtins:tuple", "w", 0),
        ("builtins:exec", "w", 0),
        ("os:system", "w", 0),
    ],
)
def test_a_class_that_is_no_namedtuple_of_these_fields_is_not_made(tree: Any) -> None:
    with pytest.raises(Unknown):
        fill(tree, [1, 2])


def test_no_code_of_a_class_is_run_and_no_module_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    back = fill(("tests.spu.test_pytrees:WithCode", "w", 0, "b", 1), [1, 2])
    assert type(back) is WithCode
    assert tuple(back) == (1, 2)

    def raises(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(pytrees, "__getattr__", raises, raising=False)
    with pytest.raises(Unknown):
        fill(("redislink.spu.pytrees:Nothing", "w", 0), [1])


# -- leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, np.array(True)),
        (3, np.array(3, np.int32)),
        (2**31, np.array(2**31, np.int64)),
        (2**63, np.array(2**63, np.uint64)),
        (-(2**63), np.array(-(2**63), np.int64)),
        (1.5, np.array(1.5, np.float32)),
        (1e39, np.array(1e39, np.float64)),
        (np.array([1, 2.5], ">f4"), np.array([1, 2.5], np.float32)),
        (np.array([1, -2], ">i8"), np.array([1, -2], np.int64)),
        (np.array([True, False])[::-1], np.array([False, True])),
        (np.ma.masked_array([1.0, 2.0], [False, False]), np.array([1.0, 2.0])),
        (np.float16(2), np.array(2, np.float16)),
        (np.arange(6).reshape(2, 3).T[::2], np.array([[0, 3], [2, 5]])),
        (np.ones((1,) * 32, np.float32), np.ones((1,) * 32, np.float32)),
    ],
)
def test_leaves_become_arrays_that_spu_takes(value: Any, expected: Any) -> None:
    got = as_array(value)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert np.array_equal(got, expected)


def test_floats_that_are_no_numbers_stay_so() -> None:
    assert as_array(float("inf")) == np.float32("inf")
    assert np.isnan(as_array(float("nan")))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**64, r"^is an int of more than 64 bits"),
        (-(2**63) - 1, r"^is an int of more than 64 bits"),
        (np.ma.masked_array([[1, 2], [3, 4]], [[0, 0], [1, 1]]),
         r"^has masked values \(2 of 4; the first at \[1, 0\]\), .*filled"),
        (np.ones((1,) * 33), r"^has 33 dimensions, more than 32: reshape it"),
        (jax.random.key(0), r"^is a typed PRNG key, .*jax.random.key_data"),
        (np.array([1j]), r"dtype complex128\): pass numbers of bool, int8"),
        (np.array(["2020-01-01"], "M8[D]"), r"datetime64\[D\]"),
        ("text", r"it is text"),
        (jax.numpy.ones(2, jax.numpy.bfloat16), r"dtype bfloat16"),
        (object(), r"no type for object \(dtype object\)"),
    ],
)  # fmt: skip
def test_leaves_that_spu_does_not_take(value: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        as_array(value)


TABLE = pd.DataFrame(
    {"n": pd.array([3, -1], "Int64"), "x": pd.array([1.5, 2], "Float64"), "b": [True, False]},
    index=[7, 7],
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TABLE["n"], np.array([3, -1])),
        (TABLE["n"].astype("int64[pyarrow]"), np.array([3, -1])),
        (TABLE["b"].astype("boolean"), np.array([True, False])),
        (TABLE["n"].astype("category"), np.array([3, -1])),
        (TABLE["n"].astype(pd.SparseDtype(np.int64)), np.array([3, -1])),
        (TABLE["n"].array, np.array([3, -1])),
        (TABLE, np.array([[3, 1.5, 1], [-1, 2, 0]])),
        (TABLE[["n", "b"]], np.array([[3, 1], [-1, 0]])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dtypes_of_pandas_become_numbers(value: Any, expected: Any) -> None:
    """JAX does not know them, and NumPy makes objects of a table with several of them."""
    got = as_array(value)
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (pd.Series(["a"]).astype("category"), r"no type for Series \(dtype object\)"),
        (
            pd.Series(pd.date_range("2020", periods=1, tz="UTC")),
            r"no type for Series \(dtype object",
        ),
        (TABLE.assign(who="a"), r"column 'who' has dtype object, which SPU does not have: leave"),
        (TABLE.assign(b=pd.array([True, None], "boolean")), r"column 'b' has dtype object"),
    ],
    ids=["category", "date", "text", "missing"],
)
def test_dtypes_of_pandas_that_are_no_numbers(value: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        as_array(value)


def test_what_is_missing_in_a_table_of_pandas_stays_missing() -> None:
    got = as_array(TABLE.assign(n=pd.array([3, None], "Int64")))
    assert np.isnan(got).tolist() == [[False] * 3, [True, False, False]]


def test_columns_have_names_in_tables_alone() -> None:
    class Frame:
        columns = ("id", "dose")
        iloc = None

    class Table:
        column_names = ("id", "dose")

    assert columns_of(Frame()) == columns_of(Table()) == ("id", "dose")
    assert columns_of(np.ones((2, 2))) == columns_of(3) == ()
    assert short(np.ones((2, 2), np.float16)) == "f16[2,2]"
