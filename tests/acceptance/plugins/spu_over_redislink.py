"""A plug-in for pytest: SPU's own tests, unchanged, with parties that talk over redislink.

SPU's operator and machine-learning tests use `spu.utils.simulation.Simulator`, whose parties are
threads with a link in memory. This replaces it, as the variable ``ACCEPTANCE_LINKS`` says:

- ``own``: by nothing, to compare.
- ``relay``: each party is a process, and makes an SPU link through a broker for each run, sealed.
- ``device``: `sim_jax` puts the arguments on an `SpuDevice` of a session through a broker, runs the
  function there, and reveals the results.

``ACCEPTANCE_SPU`` is the checkout that has SPU's tests. The spu that runs is the installed one.
``ACCEPTANCE_EVERY`` is 1 for all tests, n for one in n. The number of sockets that the parties
listened on goes into the file ``ACCEPTANCE_LISTENING``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import spu
import spu.utils.simulation as theirs
from spu import libspu

from redislink import ClusterSpec, Identity, RedisLinkSettings, Session, Simulator, connect
from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster.trial import write_trial
from redislink.spu import create_link

_NAMES = ("alice", "bob", "carol")
_SETTINGS = RedisLinkSettings.model_construct(recv_timeout=1800.0)


def pytest_configure() -> None:
    """Replace what `theirs` has, before any test is imported."""
    spu.__path__.append(str(Path(os.environ["ACCEPTANCE_SPU"], "spu")))
    match os.environ["ACCEPTANCE_LINKS"]:
        case "relay":
            theirs.Simulator = RelaySimulator
        case "device":
            theirs.sim_jax = sim_jax_on_a_device
        case "own":
            pass
        case other:
            raise ValueError(f"ACCEPTANCE_LINKS={other}")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep one test of each ``ACCEPTANCE_EVERY``."""
    items[:] = items[:: int(os.environ.get("ACCEPTANCE_EVERY", "1"))]


def pytest_unconfigure() -> None:
    """Say how many sockets the parties listened on, and end them."""
    counted = [parties.listening() for parties in _parties.values()]
    for parties in [*_parties.values(), *_sessions.values()]:
        parties.close()
    Path(os.environ["ACCEPTANCE_LISTENING"]).write_text(str(sum(counted)))


# -- a link for each run -------------------------------------------------------------------------


def play(pipe: Connection, directory: str, party: str, url: str) -> None:
    """A party's process: runs what the pipe brings, until it brings nothing."""
    cluster, key = Path(directory, "cluster.yaml"), Path(directory, f"{party}.key")
    with connect(
        cluster, party, _SETTINGS, broker=Broker(url), identity=Identity.load(key)
    ) as endpoint:
        while (order := pipe.recv()) is not None:
            config, executable, shares = order
            try:
                with create_link("SP0", endpoint) as link:
                    runtime = spu.Runtime(link.context, config)
                    for name, share in zip(executable.input_names, shares, strict=True):
                        runtime.set_var(name, share)
                    runtime.run(executable)
                    answer: Any = [runtime.get_var(name) for name in executable.output_names]
            except Exception as error:  # noqa: BLE001 - raised again where the test is
                answer = f"{type(error).__name__}: {error}"
            pipe.send(answer)


class Parties:
    """The processes of some parties, for many runs."""

    def __init__(self, count: int) -> None:
        self._stack = contextlib.ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        broker = self._stack.enter_context(EmbeddedBroker())
        names = _NAMES[:count]
        protocol = "CHEETAH" if count == 2 else "ABY3"  # the tests bring configs of their own
        write_trial(
            _cluster(names, {"protocol": protocol, "field": "FM64"}),
            Path(directory, "cluster.yaml"),
            {name: Path(directory, f"{name}.key") for name in names},
            "for a test",
        )
        start = get_context("spawn")
        self._pipes, self._processes = [], []
        for name in names:
            ours, of_party = start.Pipe()
            process = start.Process(
                target=play, args=(of_party, directory, name, broker.unix_url), daemon=True
            )
            process.start()
            of_party.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, config: Any, executable: Any, shares: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """What each party has as the result, for the shares of each party."""
        for pipe, mine in zip(self._pipes, shares, strict=True):
            pipe.send((config, executable, mine))
        answers = [pipe.recv() for pipe in self._pipes]
        if failed := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError(failed[0])
        return answers

    def listening(self) -> int:
        """The sockets that the processes listen on now."""
        return sum(
            connection.status == psutil.CONN_LISTEN
            for process in self._processes
            for connection in psutil.Process(process.pid).net_connections(kind="inet")
        )

    def close(self) -> None:
        """End the processes and their broker."""
        for process in self._processes:
            process.kill()
            process.join()
        self._stack.close()


_parties: dict[int, Parties] = {}
"""By their number."""


class RelaySimulator(theirs.Simulator):  # type: ignore[misc]
    """Runs an executable among processes."""

    def __call__(self, executable: Any, *flat_args: Any) -> list[Any]:
        """As in the class above this."""
        arrays = [np.array(jnp.array(value)) for value in flat_args]
        shares = [self.io.make_shares(x, libspu.Visibility.VIS_SECRET) for x in arrays]
        by_party = list(zip(*shares, strict=True)) or [()] * self.wsize
        if self.wsize not in _parties:
            _parties[self.wsize] = Parties(self.wsize)
        try:
            results = _parties[self.wsize].run(self.rt_config, executable, by_party)
        except (RuntimeError, EOFError):
            _parties.pop(self.wsize).close()  # the others wait for the one that failed
            raise
        return [self.io.reconstruct(list(pieces)) for pieces in zip(*results, strict=True)]


# -- a device --------------------------------------------------------------------------------------


class DeviceSession:
    """A session with one device, whose parties do one call after the other."""

    def __init__(self, config: dict[str, Any], count: int) -> None:
        self._names = _NAMES[:count]
        spec = ClusterSpec.parse(_cluster(self._names, config))
        simulator = Simulator(spec, through="embedded", settings=_SETTINGS)
        self._calls: dict[str, SimpleQueue[Any]] = {name: SimpleQueue() for name in self._names}
        self._answers: dict[str, SimpleQueue[Any]] = {name: SimpleQueue() for name in self._names}
        self._thread = Thread(target=self._run, args=(simulator,), daemon=True)
        self._thread.start()

    def _run(self, simulator: Simulator) -> None:
        error: BaseException = RuntimeError("the session has ended")
        try:
            simulator.run(self._play)
        except BaseException as raised:  # noqa: BLE001 - raised again where the test is
            error = raised
        for answers in self._answers.values():
            answers.put(error)

    def _play(self, session: Session) -> None:
        device = session.spu("SP0")
        while (call := self._calls[session.party].get()) is not None:
            function, static, arguments, named = call
            try:
                places = [n for n in range(len(arguments)) if n not in static]
                given = {
                    n: device.private(
                        functools.partial(_as_spu_has_it, arguments[n]),
                        owner=self._names[i % len(self._names)],
                    )
                    for i, n in enumerate(places)
                }
                all_given = [given.get(n, a) for n, a in enumerate(arguments)]
                shared = device.private(functools.partial(_as_spu_has_it, named), owner="bob")
                result = device.run(function, static)(*all_given, **shared)
                answer: Any = device.reveal(result, to=self._names)
            except Exception as error:  # noqa: BLE001 - raised again where the test is
                answer = error
            self._answers[session.party].put(answer)

    def call(
        self, function: Callable[..., Any], static: Sequence[int], args: Any, kwargs: Any
    ) -> Any:
        """The result of a call, which all parties have got."""
        for calls in self._calls.values():
            calls.put((function, tuple(static), args, kwargs))
        answers = [self._answers[name].get() for name in self._names]
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            raise failed[0]
        first = jax.tree_util.tree_leaves(answers[0])
        for answer in answers[1:]:
            for value, other in zip(first, jax.tree_util.tree_leaves(answer), strict=True):
                np.testing.assert_array_equal(value, other)
        return answers[0]

    @property
    def goes_on(self) -> bool:
        """Whether its parties can do another call."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it."""
        for calls in self._calls.values():
            calls.put(None)
        self._thread.join(30)


_sessions: dict[str, DeviceSession] = {}
"""By the device's configuration."""


def sim_jax_on_a_device(
    sim: Any, fun: Callable[..., Any], static_argnums: Any = (), copts: Any = None
) -> Callable[..., Any]:
    """Stand in for `theirs.sim_jax`."""
    static = (static_argnums,) if isinstance(static_argnums, int) else static_argnums
    config: dict[str, Any] = {
        "protocol": sim.rt_config.protocol.name,
        "field": sim.rt_config.field.name,
    }
    if config["protocol"] == "SEMI2K":
        config["runtime"] = {"beaver_type": "TrustedFirstParty"}

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = f"{config} {sim.wsize}"
        if key in _sessions and not _sessions[key].goes_on:
            del _sessions[key]
        if key not in _sessions:
            _sessions[key] = DeviceSession(config, sim.wsize)
        return _sessions[key].call(fun, static, args, kwargs)

    wrapper.pphlo = ""  # type: ignore[attr-defined] - the tests show it when they fail
    return wrapper


def _as_spu_has_it(value: Any) -> Any:
    """Arrays of the widths that JAX has by default, as in `theirs.Simulator`."""
    return jax.tree_util.tree_map(lambda leaf: np.array(jnp.array(leaf)), value)


def _cluster(names: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    device = {"kind": "SPU", "members": list(names), "config": config}
    return {"session": "suite", "parties": list(names), "devices": {"SP0": device}}
