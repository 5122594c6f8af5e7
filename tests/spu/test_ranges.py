"""What shares can hold: the ranges as derived are those of SPU itself, at their edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import spu
from spu import libspu

from redislink import ClusterSpec, ConfigError, UsageError
from redislink.spu import runtime_config
from redislink.spu.arrays import as_array
from redislink.spu.ranges import Ranges

SECRET, PUBLIC = libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC
MEMBERS = {"ABY3": 3, "SEMI2K": 2, "CHEETAH": 2}
FRACTIONS = {"FM32": (0, 1, 8, 16, 28, 30), "FM64": (0, 1, 18, 30, 60), "FM128": (0, 1, 26, 60)}
DEVICES = [
    (protocol, field, bits)
    for protocol in MEMBERS
    for field, several in FRACTIONS.items()
    for bits in several
]

RINGS = list(itertools.product(MEMBERS, FRACTIONS))


def _config(protocol: str, field: str, bits: int = 0) -> Any:
    names = ["alice", "bob", "carol"][: MEMBERS[protocol]]
    config = {"protocol": protocol, "field": field, "fxp_fraction_bits": bits}
    spec = ClusterSpec.parse(
        {
            "session": "s",
            "parties": names,
            "devices": {"SP0": {"kind": "SPU", "members": names, "config": config}},
        }
    )
    return runtime_config(spec.device("SP0"))


def _made(protocol: str, field: str, bits: int = 0) -> tuple[Any, Ranges]:
    config = _config(protocol, field, bits)
    io = spu.Io(MEMBERS[protocol], config)
    return io, Ranges.of("SP0", config, io)


def _back(io: Any, value: Any, visibility: Any = SECRET) -> Any:
    return io.reconstruct(io.make_shares(np.asarray(value), visibility))


@pytest.mark.parametrize(("protocol", "field", "bits"), DEVICES)
def test_fractions_come_back_to_the_last_bit_within_the_range_and_not_beyond(
    protocol: str, field: str, bits: int
) -> None:
    io, ranges = _made(protocol, field, bits)
    assert bits in (0, ranges.fraction_bits)
    limit, last = ranges.fraction_limit, 2.0**-ranges.fraction_bits
    below = np.nextafter(limit, 0)
    for visibility in (SECRET, PUBLIC):
        for inside in (-limit, np.nextafter(-limit, 0), below, below / 2, last, -last, 0.0):
            array = np.array([inside])
            ranges.check(array)
            (got,) = _back(io, array, visibility)
            assert abs(got - inside) <= max(last, abs(inside) * 2**-52)
        for outside in (limit * 2, -limit * 2, limit * 1.5, -limit * 1.5, np.inf, -np.inf, np.nan):
            array = np.array([outside])
            with pytest.raises(UsageError, match=r"values that do not fit \(1 of 1"):
                ranges.check(array)
            (got,) = _back(io, array, visibility)
            assert got == (0 if np.isnan(outside) else np.copysign(limit, outside)) or (
                # the largest is one bit less than the limit, where a float shows that
                got == limit - last
            ), "SPU takes it for another number, without a word"
    for outside in (limit, np.nextafter(-limit, -np.inf)):
        with pytest.raises(UsageError, match=r"out of range"):
            ranges.check(np.array([outside]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("protocol", "field"), RINGS)
def test_narrower_floats(protocol: str, field: str, dtype: str) -> None:
    io, ranges = _made(protocol, field, 18 if field == "FM32" else 0)
    most = min(ranges.fraction_limit, float(np.finfo(dtype).max) * 2)
    with np.errstate(over="ignore"):  # of float16 the limit may be infinite
        inside = np.nextafter(np.array([most, -most]).astype(dtype), np.array(0, dtype))
    ranges.check(inside)
    assert np.allclose(_back(io, inside), inside, rtol=1e-3)
    for outside in (np.inf, -np.inf, np.nan):
        with pytest.raises(UsageError, match=r"at \[1\], is (infinite|NaN)"):
            ranges.check(np.array([0, outside], dtype))
    if most == ranges.fraction_limit:
        with pytest.raises(UsageError, match=r"at \[0\], is out of range"):
            ranges.check(np.array([most, 0], dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
                                   "uint64"])  # fmt: skip
@pytest.mark.parametrize(("protocol", "field"), RINGS)
def test_whole_numbers(protocol: str, field: str, dtype: str) -> None:
    io, ranges = _made(protocol, field)
    info, limit = np.iinfo(dtype), 1 << (ranges.ring_bits - 2)
    every = np.array([info.min, info.max, 0, 1], dtype)
    if info.bits > ranges.ring_bits:
        with pytest.raises(
            UsageError, match=r"has whole numbers of 32 bits: convert it with .astype"
        ):
            ranges.check(every, wrap_ok=True)
        with pytest.raises(RuntimeError, match="could not represent"):
            _back(io, every)
        return
    ranges.check(every, wrap_ok=True)
    assert np.array_equal(_back(io, every), every)
    ranges.check(np.array([max(info.min, -limit), min(info.max, limit - 1)], dtype))
    for outside in (limit, -limit - 1):
        if info.min <= outside <= info.max:
            with pytest.raises(UsageError, match=r"1 of 3; the first, at \[2\], is out of range"):
                ranges.check(np.array([0, 1, outside], dtype))


def test_true_values_of_other_bytes_are_true() -> None:
    io, _ = _made("SEMI2K", "FM64")
    odd = np.array([0, 1, 2, 255], np.uint8).view(bool)
    assert _back(io, odd).tolist() == [False, True, False, True], "SPU looks at the last bit"
    assert _back(io, as_array(odd)).tolist() == [False, True, True, True]


def test_the_error_says_where_how_many_and_what_to_do_and_no_value() -> None:
    _, ranges = _made("SEMI2K", "FM64")
    array = np.zeros((3, 2), np.float32)
    array[1, 1], array[2, 0], array[2, 1] = np.nan, -np.inf, 123456789e9
    with pytest.raises(UsageError) as caught:
        ranges.check(array, columns=("id", "dose"))
    text = str(caught.value)
    assert "(3 of 6; the first, at [1, 1], column 'dose', is NaN)" in text
    assert "SP0 (SEMI2K, FM64, 18 fraction bits) holds fractions x with -2**44 <= x < 2**44" in text
    for word in (
        "leave out rows with missing values before psi",
        "numpy.clip",
        "divide by a scale",
    ):
        assert word in text
    assert "1234" not in text
    assert "1.23" not in text
    with pytest.raises(UsageError, match=r"^does not fit \(it is NaN\)"):
        ranges.check(np.array(np.nan))
    with pytest.raises(UsageError, match=r"compares whole numbers n with -2\*\*62 <= n < 2\*\*62"):
        ranges.check(np.array(2**62))


def test_nothing_is_refused_of_nothing() -> None:
    _, ranges = _made("ABY3", "FM64")
    for dtype in ("float32", "int64", "bool"):
        ranges.check(np.zeros((0, 3), dtype))


@pytest.mark.parametrize(("field", "bits"), [("FM32", 31), ("FM32", 40), ("FM32", 60)])
def test_fraction_bits_that_a_field_has_no_room_for(field: str, bits: int) -> None:
    with pytest.raises(ConfigError, match=rf"fxp_fraction_bits: {field} has room for 30 at most"):
        _config("SEMI2K", field, bits)
