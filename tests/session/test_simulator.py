"""The simulator: the same as the parties apart, and as SPU's own simulation."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from spu import libspu
from spu.utils import simulation

from redislink import (
    ConfigError,
    EndpointClosed,
    PeerAborted,
    Session,
    Simulator,
    UsageError,
)
from tests.session.conftest import DEVICES, Stage

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0], np.float32)


def _fit(x: Any, y: Any) -> dict[str, Any]:
    """Some steps of logistic regression, and what is sorted and counted."""
    w = jnp.zeros(x.shape[1])
    for _ in range(3):
        w = w - 0.5 * (jax.nn.sigmoid(x @ w) - y) @ x / len(y)
    return {"w": w, "sorted": jnp.sort(x[:, 0]), "above": jnp.sum(x > 0)}


def _program(session: Session) -> Any:
    sp = session.spu("SP0")
    x, y = sp.private(lambda: X, owner="alice"), sp.private(lambda: Y, owner="bob")
    return sp.reveal(sp.run(_fit)(x, y), to=["carol"])


@pytest.mark.slow
def test_it_agrees_with_the_parties_apart_and_with_spus_own_simulation(valkey: Any) -> None:
    results = {
        through: Simulator(3, through=through).run(_program)["carol"]
        for through in ("memory", "fakeredis", "embedded")
    }
    results["apart"] = Stage(valkey.url).play(_program)["carol"]
    aby3 = simulation.Simulator.simple(3, libspu.ProtocolKind.ABY3, libspu.FieldType.FM64)
    results["spu"] = simulation.sim_jax(aby3, _fit)(X, Y)
    plain = _fit(X, Y)
    for place, got in results.items():
        # The last bits of fixed point are chance, of SPU's truncation.
        assert np.allclose(got["w"], plain["w"], atol=2e-3), place
        assert np.allclose(got["w"], results["spu"]["w"], atol=2e-4), place
        assert np.allclose(got["sorted"], plain["sorted"], atol=1e-4), place
        assert int(got["above"]) == int(plain["above"]), place


def test_results_come_by_party_in_rank_order(simulator: Simulator) -> None:
    found = simulator.run(lambda session, more: (session.rank, session.party, more), "x")
    assert list(found.items()) == [
        ("alice", (0, "alice", "x")),
        ("bob", (1, "bob", "x")),
        ("carol", (2, "carol", "x")),
    ]


def test_a_program_that_joins_by_itself(simulator: Simulator) -> None:
    def main() -> Any:
        with Session.join() as session:
            sp = session.spu("SP0")
            value = sp.reveal(sp.private(lambda: 3, owner="bob"), to=["alice"])
            return int(value) if session.party == "alice" else None

    assert simulator.run(lambda _: main()) == {"alice": 3, "bob": None, "carol": None}


def test_users_messages(simulator: Simulator) -> None:
    def program(session: Session) -> Any:
        right = (session.rank + 1) % session.world_size
        session.communicator.send(right, "step", {"from": session.party})
        return session.communicator.recv((session.rank - 1) % session.world_size, "step")["from"]

    assert simulator.run(program) == {"alice": "carol", "bob": "alice", "carol": "bob"}


@pytest.mark.parametrize("through", ["memory", "fakeredis"])
def test_an_exception_ends_all_and_is_raised(through: Any) -> None:
    ended: list[str] = []

    def program(session: Session) -> Any:
        if session.party == "bob":
            raise ZeroDivisionError("bob's own fault")
        try:
            return session.spu("SP0").private(lambda: 1, owner="bob")
        except PeerAborted:
            ended.append(session.party)
            raise

    started = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="bob's own fault") as caught:
        Simulator(3, through=through).run(program)
    assert time.monotonic() - started < 5
    assert caught.value.__notes__ == ["at bob, in a simulator"]
    assert sorted(ended) == ["alice", "carol"]


def test_a_load_that_raises_is_what_is_raised(simulator: Simulator) -> None:
    with pytest.raises(ZeroDivisionError):
        simulator.run(lambda session: session.spu("SP0").private(lambda: 1 / 0, owner="carol"))


def test_one_that_fails_while_the_others_compute(simulator: Simulator) -> None:
    def program(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: X, owner="alice")
        if session.party == "carol":
            raise ZeroDivisionError
        return sp.run(_fit)(x, Y)

    with pytest.raises(ZeroDivisionError):
        simulator.run(program)


def test_no_thread_is_left(simulator: Simulator) -> None:
    before = set(threading.enumerate())
    simulator.run(_program)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if name.startswith(("simulated-", "redislink-"))]


def test_a_session_is_of_no_use_after_the_run(simulator: Simulator) -> None:
    sessions: list[Session] = []
    simulator.run(lambda session: sessions.append(session))
    for session in sessions:
        with pytest.raises(EndpointClosed):
            session.spu("SP0")
        assert "closed" in repr(session)


def test_a_cluster_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    content = {"session": "own", "parties": ["alice", "bob", "carol"], "devices": DEVICES}
    path.write_text(yaml.safe_dump(content))
    found = Simulator(path).run(
        lambda session: (session.name, session.spu("SP2").members, session.world_size)
    )
    assert found["alice"] == ("own", ("bob", "carol"), 3)


def test_clusters_of_a_number() -> None:
    assert Simulator(2).cluster.devices["SP0"].config.protocol == "CHEETAH"
    assert Simulator(10).cluster.party_names[7:] == ("heidi", "party9", "party10")
    for size in (1, 0, True):
        with pytest.raises(ConfigError, match="needs 2 parties or more"):
            Simulator(size)
    with pytest.raises(UsageError, match="no way through 'tcp'"):
        Simulator(2, through="tcp")  # type: ignore[arg-type]


def test_no_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISLINK_LINK_MODE", "brpc")
    monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://nowhere.invalid:1")
    monkeypatch.setenv("REDISLINK_RECV_TIMEOUT", "not a number")
    assert Simulator(2, through="fakeredis").run(
        lambda s: int(s.spu("SP0").reveal(s.spu("SP0").private(4, "alice"), to=s.party_names))
    ) == {"alice": 4, "bob": 4}
