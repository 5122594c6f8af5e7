"""`Device`: values arrive whole, in order, and only where they are revealed."""

from __future__ import annotations

from typing import Any

import common
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from redislink import Endpoint
from tests.examples.conftest import Place

VALUES = [
    np.array([[1.5, -2.25], [0, 1000]], np.float32),
    np.array([0.5, -3], np.float64),
    np.int64(-(2**40)),
    np.array([1, 2, 3], np.int32),
    np.array([0, 255], np.uint8),
    np.array([True, False]),
    np.zeros((0, 3), np.float32),
]


def test_values_of_every_kind_come_back_whole(in_process: Place) -> None:
    def main(endpoint: Endpoint) -> list[Any]:
        with common.Device(endpoint, "SP0") as device:
            for number, value in enumerate(VALUES):
                owner = device.members[number % 3]
                device.share(f"v{number}", value if owner == endpoint.party else None, owner)
            return [device.reveal(f"v{n}", to=["alice", "carol"]) for n in range(len(VALUES))]

    at_alice, at_bob, at_carol = in_process.play(main)
    assert at_bob == [None] * len(VALUES)
    for revealed in (at_alice, at_carol):
        for value, got in zip(VALUES, revealed, strict=True):
            assert got.shape == value.shape
            assert np.array_equal(got, value), "these are exact in fixed point"


def test_a_party_outside_owns_an_input_and_learns_the_result(in_process: Place) -> None:
    def main(endpoint: Endpoint) -> Any:
        with common.Device(endpoint, "PSI0") as device:
            assert device.members == ("alice", "bob")
            assert device.is_member == (endpoint.party != "carol")
            mine = np.array([1, 2], np.int32) if endpoint.party == "carol" else None
            device.share("x", mine, "carol")
            device.run(lambda x: (x + 1, jnp.sum(x)), ["x"], ["more", "sum"])
            if device.is_member:
                assert device.shape("more") == (2,)
            else:
                with pytest.raises(ValueError, match="carol is no member of PSI0"):
                    device.shape("more")
            return device.reveal("more", to=["carol"]), device.reveal("sum", to=["bob"])

    at_alice, at_bob, at_carol = in_process.play(main)
    assert at_alice == (None, None)
    assert at_bob == (None, 3)
    assert at_carol[0].tolist() == [2, 3]
    assert at_carol[1] is None


def test_a_function_is_compiled_once_per_shape(
    in_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    real = common._compile

    def count(function: Any, arguments: Any, *names: Any) -> Any:
        compiled.append(arguments[0].shape)
        return real(function, arguments, *names)

    monkeypatch.setattr(common, "_compile", count)

    def double(x: Any) -> Any:
        return 2 * x

    def main(endpoint: Endpoint) -> Any:
        with common.Device(endpoint, "SP0") as device:
            for length in (1, 2):
                mine = np.ones(length, np.int32) if endpoint.party == "bob" else None
                device.share("x", mine, "bob")
                for _ in range(3):
                    device.run(double, ["x"], ["x"])
            return device.reveal("x", to=["bob"])

    assert in_process.play(main)[1].tolist() == [8, 8]
    assert sorted(compiled) == [(1,)] * 3 + [(2,)] * 3, "once per party and shape"


def test_the_owner_must_give_a_value(in_process: Place) -> None:
    def main(endpoint: Endpoint) -> None:
        if endpoint.party != "carol":
            return
        with common.Device(endpoint, "PSI0") as device:
            device.share("x", None, "carol")

    with pytest.raises(ValueError, match="carol owns x and must give its value"):
        in_process.play(main)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([b"meta"]),
        msgpack.packb([b"meta", [b"chunk"], b"more"]),
        msgpack.packb(["text", [b"chunk"]]),
        msgpack.packb([b"meta", b"chunk"]),
        msgpack.packb([b"meta", [1, 2]]),
        msgpack.packb([b"meta", [b"chunk"]])[:-1],
        msgpack.packb([b"meta", [b"chunk"]]) + b"\x00",
    ],
)
def test_what_is_not_a_share_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="a message that is not a share"):
        common._unpack_untrusted(message)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 4.6, 10.9, 21.2])
def test_missing_parties_are_named(seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    common.print_missing(["bob", "carol"], seconds)
    said = capsys.readouterr().err
    assert said == ("waiting for bob, carol\n" if seconds in (1.0, 10.9, 21.2) else "")
