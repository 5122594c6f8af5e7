"""Wrong use: every party has a clear error within seconds, and nobody hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spu import libspu

from redislink import (
    ConfigError,
    EndpointClosed,
    LoadFailed,
    NotRevealed,
    PayloadTypeError,
    PeerAborted,
    PeerError,
    ProgramDiverged,
    Session,
    UsageError,
)
from redislink.session import steps as steps_module
from tests.session.conftest import Stage


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_PATIENCE", 0.3)
    monkeypatch.setattr(steps_module, "_TICK", 0.05)


def _share(session: Session, device: str = "SP0", owner: str = "alice") -> tuple[Any, Any]:
    sp = session.spu(device)
    return sp, sp.private(lambda: np.arange(3, dtype=np.float32), owner=owner)


def _by_alice(a: Callable[[Session], Any], b: Callable[[Session], Any]) -> Callable[..., Any]:
    """Alice does the one, the others the other; then all learn a value."""

    def program(session: Session) -> Any:
        (a if session.party == "alice" else b)(session)
        sp, x = _share(session)
        return sp.reveal(x, to=session.party_names)

    return program


def _run(function: Any, *more: Any, device: str = "SP0") -> Callable[[Session], Any]:
    def work(session: Session) -> Any:
        sp, x = _share(session, device)
        return sp.run(function)(x, *more)

    return work


def _plus(number: int) -> Callable[[Any], Any]:
    def add(x: Any) -> Any:
        return x + number

    return add


@pytest.mark.parametrize(
    ("by_alice", "by_others", "words"),
    [
        pytest.param(
            lambda s: s.spu("SP0").private(0, owner="bob"),
            lambda s: s.spu("SP0").private(0, owner="alice"),
            ("step 2", "SP0.private(owner=bob)", "SP0.private(owner=alice)"),
            id="owner: both wait for each other",
        ),
        pytest.param(
            _run(_plus(1)), _run(_plus(2)),
            ("step 3", "(what differs: the function)", "SP0.run(add)(f32[3])"),
            id="function: the same messages flow",
        ),
        pytest.param(
            _run(jnp.sort), _run(jnp.negative), ("step 3", "run(sort)", "run(negative)"),
            id="function: other messages flow",
        ),
        pytest.param(
            _run(jnp.add, 1), _run(jnp.add, 2),
            ("step 3", "(what differs: argument 2)", "(f32[3], i32[])"),
            id="public value",
        ),
        pytest.param(
            lambda s: s.spu("SP0"), lambda s: _share(s),
            ("step 2", "SP0.private(owner=alice)", "spu(SP0)"), id="a call left out",
        ),
        pytest.param(
            lambda s: _share(s, "SP1"), lambda s: _share(s, "SP2"),
            ("step 1", "alice called spu(SP1)", "called spu(SP2)"), id="device",
        ),
        pytest.param(
            lambda s: s.ensure_spu_env("SP1"), lambda s: s.ensure_spu_env("SP2"),
            ("step 1", "ensure_spu_env(SP1)", "ensure_spu_env(SP2)"), id="link",
        ),
        pytest.param(
            lambda s: s.psi({"id": ["a"]}, "id", parties=["alice", "bob"], protocol="KKRT"),
            lambda s: s.psi({"id": ["a"]}, "id", parties=["alice", "bob"], protocol="RR22"),
            ("step 1", "psi(KKRT, 1 keys; alice, bob)", "psi(RR22"), id="psi",
        ),
    ],
)  # fmt: skip
def test_programs_that_diverge(stage: Stage, by_alice: Any, by_others: Any, words: Any) -> None:
    for error in stage.errors(_by_alice(by_alice, by_others)).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        text = str(error)
        assert text.count("(test_wrong_use.py:") == 2, "where each called it"
        assert "alice" in text
        assert "bob" in text or "carol" in text
        for word in words:
            assert word in text


def test_who_gets_a_value_differs(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        return sp.reveal(x, to=["alice"] if session.party == "alice" else ["bob"])

    for error in stage.errors(program).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        assert "to=alice" in str(error)
        assert "to=bob" in str(error)


def test_a_divergence_of_one_that_took_no_part(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP1")
        x = sp.private(lambda: np.int32(1), owner="alice")
        for _ in range(1 if session.party == "carol" else 2):
            x = sp.run(jnp.negative)(x)
        return sp.reveal(x, to=session.party_names)

    for error in stage.errors(program).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        assert "step 4" in str(error)
        assert "carol" in str(error)


def test_one_that_ends_before_the_others(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        if session.party != "alice":
            return sp.reveal(sp.run(jnp.sort)(x), to=["bob"])
        return None

    for error in stage.errors(program).values():
        assert isinstance(error, ProgramDiverged), repr(error)
        assert "step 3" in str(error)
        assert "alice called close()" in str(error)
        assert "called SP0.run(sort)(f32[3])" in str(error)


def test_an_owner_that_is_no_party(stage: Stage) -> None:
    for error in stage.errors(lambda s: s.spu("SP0").private(1, owner="dave")).values():
        assert isinstance(error, UsageError | PeerAborted), "its own, or the first's"
        assert "owner='dave' is not a party: use one of alice, bob, carol" in str(error)


@pytest.mark.parametrize("to", [[], ()])
def test_reveal_to_nobody(memory: Stage, to: Any) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        return sp.reveal(x, to=to)

    for error in memory.errors(program).values():
        assert isinstance(error, UsageError | PeerAborted), "its own, or the first's"
        assert "SP0.reveal to nobody: name at least one party" in str(error)


def test_reveal_to_what_is_no_party(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        return sp.reveal(x, to=["alice", "dave"])

    for error in memory.errors(program).values():
        assert isinstance(error, UsageError | PeerAborted), "its own, or the first's"
        assert "to='dave' is not a party" in str(error)


def test_shapes_that_do_not_match(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        y = sp.private(lambda: np.zeros((2, 5), np.float32), owner="bob")
        return sp.run(jnp.matmul)(x, y)

    found = stage.errors(program)
    own = {party: error for party, error in found.items() if isinstance(error, TypeError)}
    assert own, "as JAX says it"
    for party, error in own.items():
        assert f"{party}: SP0.run(matmul) with (f32[3], f32[2,5])" in error.__notes__
    for error in found.values():
        assert isinstance(error, TypeError) or "TypeError in its program" in str(error)


def test_after_an_error_of_all_the_session_goes_on(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        with pytest.raises(TypeError):
            sp.run(lambda x: x @ jnp.zeros((7, 7)))(x)
        with pytest.raises(UsageError):
            sp.reveal(x, to=[])
        return sp.reveal(x, to=["bob"])

    assert stage.play(program)["bob"].tolist() == [0, 1, 2]


def _fail() -> Any:
    raise FileNotFoundError("the secret diagnosis is flu")


@pytest.mark.parametrize("owner", ["alice", "carol"])
def test_a_load_that_raises(stage: Stage, owner: str) -> None:
    for party, error in stage.errors(lambda s: s.spu("SP1").private(_fail, owner=owner)).items():
        if party == owner:
            assert isinstance(error, FileNotFoundError)
        else:
            assert isinstance(error, LoadFailed | PeerAborted), "its own, or the first's"
            assert owner in str(error)
            assert "could not load its data for SP1.private" in str(error)
            assert "FileNotFoundError" in str(error)
            assert "flu" not in str(error)


def test_an_abort_that_overtakes_the_news_of_a_load_that_raised(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a slow line: the others have the abort before they come to the step."""
    monkeypatch.setattr(steps_module, "_PATIENCE", 0.0)

    def program(session: Session) -> None:
        if session.party != "alice":
            with pytest.raises(PeerAborted):
                session.communicator.recv("alice", "none", 20)
        session.spu("SP1").private(_fail, owner="alice")

    for party, error in stage.errors(program).items():
        if party == "alice":
            assert isinstance(error, FileNotFoundError)
        else:
            assert isinstance(error, PeerAborted)
            assert "alice aborted the session" in str(error)
            assert "could not load its data for SP1.private(owner=alice) (FileNotFound" in str(
                error
            )
            assert "flu" not in str(error)


def test_a_load_that_raises_may_be_caught_by_all(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        with pytest.raises(FileNotFoundError if session.party == "bob" else LoadFailed):
            sp.private(_fail, owner="bob")
        return sp.reveal(sp.private(lambda: 5, owner="bob"), to=["alice"])

    assert stage.play(program)["alice"] == 5


@pytest.mark.parametrize("value", ["text", np.array(["a"]), np.array([1j]), {(1, 2): 3}, object()])
def test_what_cannot_be_put_on_a_device(memory: Stage, value: Any) -> None:
    for party, error in memory.errors(lambda s: s.spu("SP0").private(value, "alice")).items():
        assert isinstance(error, UsageError if party == "alice" else PeerError), repr(error)
        assert party == "alice" or "alice could not load its data" in str(error)


def test_calls_after_the_end(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        session.close()
        session.close()
        for call in (
            lambda: sp.reveal(x, to=["alice"]),
            lambda: sp.private(1, owner="alice"),
            lambda: sp.run(jnp.sort)(x),
            lambda: session.spu("SP0"),
            lambda: session.psi({}, "id", parties=["alice", "bob"]),
            sp.spawn,
            session.ensure_spu_env,
        ):
            with pytest.raises(EndpointClosed, match=r"after the session was closed"):
                call()
        return "ok"

    assert set(stage.play(program).values()) == {"ok"}


def test_an_exception_ends_the_session_for_all(stage: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        if session.party == "carol":
            raise KeyError("secret")
        return sp.reveal(sp.run(jnp.sort)(x), to=["alice", "bob"])

    found = stage.errors(program)
    assert isinstance(found["carol"], KeyError)
    for party in ("alice", "bob"):
        assert isinstance(found[party], PeerAborted)
        assert "KeyError in its program" in str(found[party])
        assert "secret" not in str(found[party])


def test_after_a_failed_call_no_more_are_made(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        if session.party == "carol":
            session.abort("enough")
            with pytest.raises(EndpointClosed, match=r"the session was aborted here: enough"):
                sp.reveal(x, to=["alice"])
            return
        with pytest.raises(PeerAborted, match=r"carol aborted the session \(enough\)"):
            sp.reveal(x, to=["alice", "bob"])
        sp.run(jnp.sort)

    memory.outcomes(program)


def test_other_wrong_arguments(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        hidden = sp.reveal(x, to=["bob"])
        with pytest.raises(ConfigError, match=r"device 'SP9' is not in session"):
            session.spu("SP9")
        with pytest.raises(UsageError, match=r"takes handles, not ndarray: put values"):
            sp.reveal(np.zeros(3), to=["alice"])
        with pytest.raises(UsageError, match=r"a static argument is not hashable"):
            sp.run(lambda x, n: x, static_argnums=1)(x, [1])
        with pytest.raises(UsageError, match=r"static_argnums .2,. for 2 arguments"):
            sp.run(lambda x, n: x, static_argnums=2)(x, 1)
        with pytest.raises(UsageError, match=r"it is text .*numpy.asarray"):
            sp.run(lambda x, n: x)(x, "text")
        if session.party != "bob":
            with pytest.raises(NotRevealed, match=r"an argument of SP0.run: a value of f32"):
                sp.run(jnp.sort)(hidden)
        with pytest.raises(UsageError, match=r"psi is between two parties"):
            session.psi({}, "id", parties=["alice"])
        with pytest.raises(UsageError, match=r"'dave', which is not a party"):
            session.psi({}, "id", parties=["alice", "dave"])
        with pytest.raises(UsageError, match=r"psi has no protocol 'XX'"):
            session.psi({}, "id", parties=["alice", "bob"], protocol="XX")
        return sp.reveal(x, to=["alice"])

    assert memory.play(program)["alice"].tolist() == [0, 1, 2]


def test_two_threads_in_one_order(memory: Stage) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")

        def load() -> int:
            with pytest.raises(UsageError, match=r"while another thread is in SP0.private"):
                sp.private(0, owner="bob")
            return 1

        return sp.reveal(sp.private(load, owner="alice"), to=["alice"])

    assert memory.play(program)["alice"] == 1


SHARE = [b"meta", [b"chunk"]]


@pytest.mark.parametrize(
    "body",
    [
        None,
        5,
        [],
        ["value"],
        ["failed", b"x"],
        ["value", 0, [], []],
        ["value", 1, [[[3], "float32"]], [SHARE]],
        ["value", [0, 0], [[[3], "float32"], [[3], "float32"]], [SHARE, SHARE]],
        ["value", 0, [[[-1], "float32"]], [SHARE]],
        ["value", 0, [[[2**40, 2**40], "float32"]], [SHARE]],
        ["value", 0, [[[3], "object"]], [SHARE]],
        ["value", 0, [[3, "float32"]], [SHARE]],
        ["value", 0, [[[3], "float32"]], None],
        ["value", 0, [[[3], "float32"]], [SHARE]],
        ["value", 0, [[[3], "float32"]], [[b"", [b""]]]],
        ["value", 0, [[[3], "float32"]], [[b"", [1]]]],
        ["value", 0, [[[3], "float32"]], [["text", [b"chunk"]]]],
    ],
)
def test_what_is_not_a_share_is_refused(memory: Stage, body: Any) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        if session.party == "alice":
            with session._steps.step("SP0.private(owner=alice)", sp.members):
                for peer in ("bob", "carol"):
                    session._steps.send(peer, body)
                return session.communicator.recv("bob", "done")
        with pytest.raises(PeerError, match=r"alice sent a message in SP0.private"):
            sp.private(None, owner="alice")
        if session.party == "bob":
            session.communicator.send("alice", "done", True)
        return True

    assert all(memory.play(program).values())


def _longer(share: libspu.Share) -> list[Any]:
    chunk = libspu.ValueChunk()
    chunk.ParseFromString(share.share_chunks[0])
    chunk.content += b"x" * 100_000
    return [share.meta, [chunk.SerializeToString()]]


def _shorter(share: libspu.Share) -> list[Any]:
    """In itself it is whole: SPU alone knows how long one of this kind has to be."""
    chunk = libspu.ValueChunk()
    chunk.ParseFromString(share.share_chunks[0])
    chunk.content = chunk.content[:8]
    chunk.total_bytes = 8
    return [share.meta, [chunk.SerializeToString()]]


def _elsewhere(share: libspu.Share) -> list[Any]:
    chunk = libspu.ValueChunk()
    chunk.ParseFromString(share.share_chunks[0])
    chunk.chunk_offset = 8
    return [share.meta, [chunk.SerializeToString()]]


def _of_another_kind(share: libspu.Share) -> list[Any]:
    meta = libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    meta.storage_type = "semi2k.AShr<FM128>"
    return [meta.SerializeToString(), list(share.share_chunks)]


def _of_another_shape(share: libspu.Share) -> list[Any]:
    meta = libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    meta.shape = [2]
    return [meta.SerializeToString(), list(share.share_chunks)]


def _twice(share: libspu.Share) -> list[Any]:
    return [share.meta, list(share.share_chunks) * 2]


FORGERIES = [_longer, _elsewhere, _of_another_kind, _of_another_shape, _twice]


@pytest.mark.parametrize("forge", [*FORGERIES, _shorter])
def test_forged_shares_are_refused_before_spu_sees_them(memory: Stage, forge: Any) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session)
        if session.party == "alice":
            share = sp._own.runtime.get_var(sp._variables.of(x))
            with session._steps.step("SP0.private(owner=alice)", sp.members):
                for peer in ("bob", "carol"):
                    body = ["value", 0, [[[3], "float32"]], [forge(share)]]
                    session._steps.send(peer, body)
            return session.communicator.recv("bob", "done")
        with pytest.raises(PeerError, match=r"alice sent a message in SP0.private"):
            sp.private(None, owner="alice")
        if session.party == "bob":
            session.communicator.send("alice", "done", True)
        return True

    assert all(memory.play(program).values())


@pytest.mark.parametrize("forge", FORGERIES)
@pytest.mark.parametrize("receiver", ["bob", "carol"])
def test_forged_shares_are_refused_where_a_value_is_revealed(
    memory: Stage, forge: Any, receiver: str
) -> None:
    def program(session: Session) -> Any:
        sp, x = _share(session, "SP1")  # of alice and bob
        if session.party == "alice":
            share = sp._own.runtime.get_var(sp._variables.of(x))
            call = f"SP1.reveal(f32[3]; to={receiver})"
            tree = str(jax.tree_util.tree_structure(0)).encode()
            with session._steps.step(call, sp.members, [("the containers", tree)]):
                session._steps.send(receiver, [forge(share)])
            return session.communicator.recv(receiver, "done")
        third = "carol" if receiver == "bob" else "bob"
        if session.party == third:
            sp.reveal(x, to=[receiver])
            return session.communicator.send(receiver, "done", True)
        with pytest.raises(PeerError, match=r"(alice|bob) sent a message in SP1.reveal"):
            sp.reveal(x, to=[receiver])
        session.communicator.send("alice", "done", True)
        session.communicator.recv(third, "done")  # its share is sent to whoever is still there
        return True

    memory.play(program)


def test_objects_do_not_travel(memory: Stage) -> None:
    def program(session: Session) -> Any:
        with pytest.raises(PayloadTypeError):
            session.communicator.send((session.rank + 1) % 3, "x", object())

    memory.play(program)
