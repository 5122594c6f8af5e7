"""Values arrive whole, and only where they are revealed; functions are compiled once per shape."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from redislink import EndpointClosed, NotRevealed, ProgramDiverged, Session, UsageError
from redislink.spu import compiling
from redislink.spu import device as device_module
from tests.session.conftest import Stage

VALUES = [
    np.array([[1.5, -2.25], [0, 1000]], np.float32),
    np.array([0.5, -3], np.float64),
    np.int64(-(2**40)),
    np.array([1, 2, 3], np.int32),
    np.array([0, 255], np.uint8),
    np.array([-128, 127], np.int8),
    np.array([-(2**15), 2**15 - 1], np.int16),
    np.array([0, 2**16 - 1], np.uint16),
    np.array([0, 2**31], np.uint32),
    np.array([0, 2**40], np.uint64),
    np.array([0.5, -3], np.float16),
    np.array([True, False]),
    np.zeros((0, 3), np.float32),
    np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
]


def test_values_of_every_kind_come_back_whole(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        handles = [
            sp.private(lambda value=value: value, owner=sp.members[number % 3])
            for number, value in enumerate(VALUES)
        ]
        assert [h.shape for h in handles] == [v.shape for v in VALUES]
        assert [h.dtype for h in handles] == [v.dtype for v in VALUES]
        return sp.reveal(handles, to=["alice", "carol"])

    found = stage.play(program)
    for party in ("alice", "carol"):
        for value, got in zip(VALUES, found[party], strict=True):
            assert got.dtype == value.dtype
            assert got.shape == value.shape
            assert np.array_equal(got, value), "these are exact in fixed point"
    assert [withheld.to for withheld in found["bob"]] == [("alice", "carol")] * len(VALUES)


def test_load_is_called_at_the_owner_only(memory: Stage) -> None:
    called: list[str] = []

    def program(session: Session) -> Any:
        def load() -> Any:
            called.append(session.party)
            return 7

        return session.spu("SP1").private(load, owner="carol")

    handles = memory.play(program)
    assert called == ["carol"]
    assert {(h.shape, h.dtype) for h in handles.values()} == {((), np.dtype(np.int32))}


def test_a_party_outside_owns_an_input_and_learns_the_result(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.array([1, 2], np.int32), owner="carol")
        more, total = sp.run(lambda x: (x + 1, jnp.sum(x)))(x)
        assert more.shape == (2,)
        return sp.reveal(more, to=["carol"]), sp.reveal(total, to="bob")

    found = stage.play(program)
    assert found["bob"][1] == 3
    assert found["carol"][0].tolist() == [2, 3]
    for withheld in (*found["alice"], found["bob"][0], found["carol"][1]):
        with pytest.raises(NotRevealed, match=r"was revealed to (bob|carol) only"):
            np.asarray(withheld)


def test_pytrees_public_values_and_static_arguments(memory: Stage) -> None:
    def affine(model: Any, x: Any, scale: Any, power: int, *, shift: Any) -> Any:
        y = (x @ model["w"] + model["b"][0]) * scale + shift["by"]
        return {"y": y**power, "pair": (y, model["w"]), "none": None}

    model = {"w": np.array([1.0, 2.0], np.float32), "b": [np.float32(0.5), None]}

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        secret = sp.private(lambda: model, owner="bob")
        x = sp.private(lambda: np.eye(2, dtype=np.float32), owner="alice")
        run = sp.run(affine, static_argnums=-1)
        out = run(secret, x, 2, 3, shift={"by": np.float32(1)})
        return sp.reveal(out, to=session.party_names)

    for got in memory.play(program).values():
        plain = affine(model, np.eye(2, dtype=np.float32), 2, 3, shift={"by": 1})
        assert sorted(got) == ["none", "pair", "y"]
        assert got["none"] is None
        assert np.allclose(got["y"], plain["y"], atol=1e-2)
        assert np.allclose(got["pair"][0], plain["pair"][0], atol=1e-3)
        assert np.array_equal(got["pair"][1], model["w"])


def test_static_arguments_that_are_equal_may_still_differ(memory: Stage) -> None:
    def pick(x: Any, how: Any) -> Any:
        return x + (10 if how is True else 20 if type(how) is float else 30)

    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: 0, owner="alice")
        run = sp.run(pick, static_argnums=1)
        return sp.reveal([run(x, how) for how in (True, 1.0, 1, True)], to=["bob"])

    assert [int(got) for got in memory.play(program)["bob"]] == [10, 20, 30, 10]


def test_what_a_function_closes_over_is_of_the_first_call_on_a_device(memory: Stage) -> None:
    def program(session: Session) -> Any:
        number = 1

        def add(x: Any) -> Any:
            return x + number

        first, second = session.spu("SP0"), session.spu("SP1")
        x, y = first.private(lambda: 0, owner="alice"), second.private(lambda: 0, owner="alice")
        got = [first.reveal(first.run(add)(x), to="bob")]
        number = 2
        got.append(first.reveal(first.run(add)(x), to="bob"))
        got.append(second.reveal(second.run(add)(y), to="bob"))
        return got

    assert [int(got) for got in memory.play(program)["bob"]] == [1, 1, 2], "as by jax.jit"


def test_functions_without_secret_arguments_or_with_constant_results(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        zeros = sp.run(lambda: jnp.zeros(3))()
        x = sp.private(lambda: np.arange(3, dtype=np.float32), owner="bob")
        same, one = sp.run(lambda x: (x, 1))(x)
        total = sp.run(lambda a, b: a + b)(zeros, same)
        return sp.reveal([total, one], to=["bob"])

    total, one = memory.play(program)["bob"]
    assert total.tolist() == [0, 1, 2]
    assert one == 1


def test_a_function_is_compiled_once_per_shape(
    memory: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[Any] = []
    real = compiling._lower

    def count(flat: Any, shapes: Any, secret: Any) -> bytes:
        lowered.append(shapes[0].shape)
        return real(flat, shapes, secret)

    monkeypatch.setattr(compiling, "_lower", count)
    traced: list[Any] = []

    def double(x: Any) -> Any:
        traced.append(x.shape)
        return 2 * x

    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        for length in (1, 2):
            x = sp.private(lambda length=length: np.ones(length, np.int32), owner="bob")
            for _ in range(3):
                x = sp.run(double)(x)
        return sp.reveal(x, to=["bob"])

    assert memory.play(program)["bob"].tolist() == [8, 8]
    assert lowered == [(1,), (2,)], "threads of one process share what is compiled"
    assert traced.count((1,)) == traced.count((2,)) == 3, "each party traces once"


def test_variables_go_when_their_handles_go(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.int32(0), owner="alice")
        add = sp.run(lambda x: x + 1)
        for _ in range(20):
            x = add(x)
        gc.collect()
        x = add(x)
        if sp.is_member:
            runtime = sp._own.runtime
            names = [f"v{number}" for number in range(1, sp._variables._count + 1)]
            return sum(_is_there(runtime, name) for name in names)
        return None

    found = memory.play(program)
    assert found["carol"] is None
    assert found["alice"] <= 3
    assert found["bob"] <= 3


def _is_there(runtime: Any, name: str) -> bool:
    try:
        runtime.get_var_meta(name)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    "use",
    [
        np.asarray, float, int, bool, list, len, lambda x: x + 1, lambda x: 1 - x, lambda x: -x,
        lambda x: x[0], lambda x: x == 0, lambda x: x != 0, lambda x: x > 0, lambda x: x @ x,
        jnp.asarray, lambda x: x * np.ones(2), lambda x: np.ones(2) * x,
    ],
)  # fmt: skip
def test_a_handle_is_not_a_value(use: Any) -> None:
    shape, dtype = (2,), np.dtype(np.float32)
    handle = device_module.SpuArray.__new__(device_module.SpuArray)
    handle.device, handle.shape, handle.dtype = "SP0", shape, dtype
    with pytest.raises(NotRevealed, match=r"is secret-shared on SP0"):
        use(handle)
    with pytest.raises(NotRevealed, match=r"was revealed to alice only"):
        use(device_module.Withheld(shape, dtype, ("alice",)))
    assert (handle.ndim, handle.size) == (1, 2)
    assert handle in {handle}


def test_several_devices_in_one_session(stage: Stage) -> None:
    def program(session: Session) -> Any:
        session.ensure_spu_env()
        first, second = session.spu("SP1"), session.spu("SP2")
        assert session.spu("SP1") is first
        x = first.private(lambda: np.int32(20), owner="alice")
        y = second.private(lambda: np.int32(22), owner="alice")
        with pytest.raises(UsageError, match=r"SP2.run got <SpuArray i32.. on SP1>: it lives on"):
            second.run(lambda x: x)(x)
        total = first.run(lambda x: x + 1)(x), second.run(lambda y: y + 1)(y)
        return (
            int(first.reveal(total[0], to=["carol", "alice"]))
            + int(second.reveal(total[1], to=["carol", "alice"]))
            if session.party != "bob"
            else (
                first.reveal(total[0], to=["carol", "alice"]),
                second.reveal(total[1], to=["carol", "alice"]),
            )
        )

    found = stage.play(program)
    assert found["alice"] == found["carol"] == 44


def test_spawned_devices_run_at_the_same_time(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: np.arange(4, dtype=np.float32), owner="alice")
        lanes = [sp, sp.spawn(), sp.spawn()]

        def work(lane: Any, number: int) -> Any:
            y = lane.private(lambda: np.float32(number), owner="bob")
            for _ in range(3):
                y = lane.run(lambda x, y: jnp.maximum(x, y) + 1)(x, y)
            return lane.reveal(y, to=["carol"])

        with ThreadPoolExecutor(3) as pool:
            return [
                f.result()
                for f in [pool.submit(work, *job) for job in zip(lanes, range(3), strict=True)]
            ]

    for number, got in enumerate(stage.play(program)["carol"]):
        expected = np.float32(number)
        for _ in range(3):
            expected = np.maximum(np.arange(4), expected) + 1
        assert np.allclose(got, expected, atol=1e-3)


def test_a_spawned_device_takes_thread_and_runtime_along(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.arange(4, dtype=np.int32), owner="alice")
        sums, gone = [], []
        for number in range(2):
            with sp.spawn() as lane:
                with lane.spawn() as inner:
                    assert inner.name == f"SP1~{number + 1}~1"
                y = lane.run(lambda x, n: jnp.sum(x) + n)(x, number)
                sums.append(lane.reveal(y, to=["bob"]))
                if lane.is_member:
                    gone.append(weakref.ref(lane._own))
                watcher = lane._steps._watcher
            lane.close()
            assert not watcher.is_alive()
            with pytest.raises(EndpointClosed, match=rf"called after SP1~{number + 1} was closed"):
                lane.run(jnp.negative)(x)
            gone.append(weakref.ref(lane))
        del inner, y
        gc.collect()
        assert [found() for found in gone[:-1]] == [None] * (len(gone) - 1), "all but this lane"
        again = sp.spawn()  # stays open
        return sums, again.reveal(again.run(jnp.sum)(x), to=["bob"])

    assert stage.play(program)["bob"] == ([6, 7], 6)


def test_devices_are_closed_by_threads_in_any_order(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.int32(20), owner="alice")
        lanes = [sp.spawn() for _ in range(4)]
        turn = [threading.Event() for _ in lanes]
        order = {"alice": (0, 1, 2, 3), "bob": (3, 2, 1, 0), "carol": (2, 0, 3, 1)}[session.party]

        def work(number: int) -> Any:
            with lanes[number] as lane:
                got = lane.reveal(lane.run(jnp.negative)(x), to="carol")
                turn[number].wait(20)
            return got

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(work, number) for number in range(4)]
            for number in order:
                turn[number].set()
            return [job.result() for job in jobs]

    assert stage.play(program)["carol"] == [-20] * 4


def test_a_device_that_is_closed_by_some_only(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        lane = sp.spawn()
        x = lane.private(lambda: np.int32(1), owner="alice")
        if session.party != "bob":
            lane.close()
        return lane.reveal(x, to=["alice"])

    for error in memory.errors(program).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        assert "at step 2 of SP1~1" in str(error)
        assert "called close() (test_device.py:" in str(error)


def test_a_device_of_the_session_is_not_closed_alone(memory: Stage) -> None:
    def program(session: Session) -> Any:
        with pytest.raises(UsageError, match="SP1 ends with its session"):
            session.spu("SP1").close()

    memory.play(program)
