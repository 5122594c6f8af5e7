"""Programs of MPLang, unchanged: its drivers and simulators are drivers over redislink.

``redislink mplang run PROGRAM``. Rules:
- ``make_driver`` and ``make_simulator`` give an interpreter whose graphs run at the workers of the
  cluster file, or, in a trial, of this machine. The addresses in a program are not used.
- In a trial, a program that serves MPLang's worker app serves it over redislink, and listens on
  nothing; a simulator's workers are processes that end with the program.
- This module imports MPLang only when a program does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any, Final

from redislink.errors import ConfigError, RedisLinkError
from redislink.interop.mplang.driver import Client
from redislink.interop.mplang.meeting import DRIVER_OF_TRIAL, NODES, joins
from redislink.interop.mplang.policy import Policy
from redislink.interop.mplang.worker import LOGGER, serve_for_ever
from redislink.interop.parties import Parties
from redislink.logs import PartyLogger

STAND_INS: Final = ("mplang-driver", "mplang-simulator", "mplang-worker")
"""The names in `redislink.interop.startup.sitecustomize`."""
_GRACE: Final = 5.0
"""Seconds that a simulator's worker has to end."""
_open: Final[dict[tuple[str, ...], tuple[weakref.ref[Any], Client]]] = {}
"""Each driver that this process has made, and its client, by what tells its session from others."""
_workers: Final[dict[tuple[str, ...], list[subprocess.Popen[bytes]]]] = {}
"""The processes of each simulator's workers."""


def install(module: ModuleType) -> None:
    """Put our stand-ins in place of what a module of MPLang makes.

    Args:
        module: one that has just been imported.
    """
    name = module.__name__.removeprefix("mplang.backends.")
    if name == "simp_driver.http":
        module.make_driver = make_driver  # type: ignore[attr-defined]
    elif name == "simp_driver.mem":
        module.make_simulator = make_simulator  # type: ignore[attr-defined]
    elif name == "simp_worker.http":
        module.create_worker_app = create_worker_app  # type: ignore[attr-defined]


def make_driver(endpoints: Sequence[str], *, cluster_spec: Any = None) -> Any:
    """Stands in for ``mplang.make_driver``.

    Args:
        endpoints: one for each worker; only how many they are counts, and in a trial they tell
            clusters apart. Without ``cluster_spec``, their hosts are the workers' names.
        cluster_spec: MPLang's; the names of its nodes are those of parties.

    Raises:
        ConfigError: a node is no party of the cluster file.
        RedisLinkError: the session cannot be joined.
    """
    from redislink.interop.mplang import binding

    if cluster_spec is None:
        cluster_spec = binding.simple_cluster(endpoints)
        nodes = [_host(endpoint) for endpoint in endpoints]
    else:
        nodes = binding.node_names(cluster_spec)
    places = [endpoint.split("://")[-1].rstrip("/") for endpoint in endpoints]
    parties = Parties(drives=True)
    if parties.is_trial:
        return _drive(parties, _in_trial(len(nodes)), cluster_spec, *places)
    return _drive(parties, parties.named(nodes, NODES), cluster_spec)


def make_simulator(
    world_size: int,
    *,
    cluster_spec: Any = None,
    enable_tracing: bool = False,  # noqa: ARG001 - MPLang's signature
) -> Any:
    """Stands in for ``mplang.make_simulator``: in a trial, with worker processes of its own.

    Args:
        world_size: the number of workers.
        cluster_spec: as for `make_driver`; without it, the workers are those of the cluster file.
        enable_tracing: ignored.

    Raises: as `make_driver`.
    """
    from redislink.interop.mplang import binding

    parties = Parties(drives=True)
    if cluster_spec is None:
        cluster_spec = binding.simple_cluster([f"worker-{rank}" for rank in range(world_size)])
        nodes = None
    else:
        nodes = binding.node_names(cluster_spec)
    if not parties.is_trial:
        workers = parties.others() if nodes is None else parties.named(nodes, NODES)
        if len(workers) != world_size:
            raise ConfigError(
                f"a simulator of {world_size} parties, but the workers are {', '.join(workers)}: "
                "pass a cluster_spec whose nodes are the parties that take part"
            )
        return _drive(parties, workers, cluster_spec)
    said = _free(world_size)
    if said not in _workers:
        _workers[said] = [_start(rank, world_size, said) for rank in range(world_size)]
    return _drive(parties, _in_trial(world_size), cluster_spec, *said)


def create_worker_app(
    rank: int, world_size: int, endpoints: Sequence[str], *_: Any, **__: Any
) -> WorkerApp:
    """Stands in for ``create_worker_app``: what ``uvicorn.run`` gets, and serves over redislink.

    Args:
        rank: the worker's.
        world_size: the number of workers.
        endpoints: of all of them; they only tell clusters apart.

    Raises:
        ConfigError: this is no trial: `redislink mplang worker` asks for a policy.
    """
    if not Parties().is_trial:
        raise ConfigError(
            "a program serves as a worker of MPLang: that is for trials on one machine (--trial); "
            "start redislink mplang worker in its place, with a policy"
        )
    uvicorn = importlib.import_module("uvicorn")
    run = uvicorn.run
    if not getattr(run, "of_redislink", False):
        uvicorn.run = _serving(run)  # type: ignore[attr-defined]
    places = tuple(endpoint.split("://")[-1].rstrip("/") for endpoint in endpoints)
    return WorkerApp(rank, world_size, places)


class WorkerApp:
    """A worker in a trial, as ``uvicorn.run`` gets it."""

    def __init__(self, rank: int, world_size: int, said: tuple[str, ...]) -> None:
        """Args:
        rank: the worker's.
        world_size: the number of workers.
        said: what tells the session from others.
        """
        self._rank, self._world_size, self._said = rank, world_size, said

    def serve(self) -> None:
        """Serve one driver after the other, for ever."""
        from redislink.interop.mplang import binding

        parties = Parties()
        workers = _in_trial(self._world_size)
        me = workers[self._rank]
        connect = joins(parties, workers, DRIVER_OF_TRIAL, me, *self._said)
        log = PartyLogger(None, me, LOGGER)
        with _ended_by_sigterm():
            serve_for_ever(connect, binding.engine, DRIVER_OF_TRIAL, Policy.everything(), log=log)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within this block, SIGTERM ends the process in good order, as it does under uvicorn."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _serving(run: Callable[..., Any]) -> Callable[..., Any]:
    def run_or_serve(app: Any, *given: Any, **named: Any) -> Any:
        if isinstance(app, WorkerApp):
            app.serve()
            return None
        return run(app, *given, **named)

    run_or_serve.of_redislink = True  # type: ignore[attr-defined]
    return run_or_serve


def _drive(parties: Parties, workers: Sequence[str], cluster: Any, *said: str) -> Any:
    from redislink.interop.mplang import binding

    me = DRIVER_OF_TRIAL if parties.is_trial else parties.party
    if me is None:
        raise ConfigError("no driver: give --party NAME, or set REDISLINK_PARTY, to the driver's")
    if me in workers:
        raise ConfigError(
            f"this process runs as {me}, and a node of the program is {me}: a driver computes "
            "nothing, so drive as another party, or as one of the cluster file's drivers"
        )
    endpoint = joins(parties, workers, me, me, *said)()
    endpoint.parts.closing.left_open_is_said = False
    client = Client(endpoint, timeout=parties.settings.request_timeout)
    driver = binding.RelayDriver(client)
    _open[*workers, *said] = weakref.ref(driver), client
    return binding.interpreter_of(driver, cluster)


def _in_trial(world_size: int) -> list[str]:
    return [f"worker-{rank}" for rank in range(world_size)]


def _host(endpoint: str) -> str:
    return endpoint.split("://")[-1].split("/")[0].rsplit(":", 1)[0]


def _free(world_size: int) -> tuple[str, ...]:
    """What tells a new simulator's session from those that are in use."""
    number = 0
    while True:
        said = ("simulator", str(os.getpid()), str(world_size), str(number))
        session = (*_in_trial(world_size), *said)
        if session not in _open:
            return said
        driver, client = _open[session]
        if driver() is None:  # the program has dropped it
            client.close()
        if driver() is None or client.is_closed:
            return said
        number += 1


def _start(rank: int, world_size: int, said: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a worker, which ends when its standard input does: with this process."""
    command = [sys.executable, "-m", __name__, str(rank), str(world_size), *said]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def open_drivers() -> list[Client]:
    """The clients of this process's drivers whose sessions are not over."""
    return [client for _, client in _open.values() if not client.is_closed]


def end_workers() -> None:
    """End the workers of all simulators of this process."""
    processes = [process for group in _workers.values() for process in group]
    _workers.clear()
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(words: Sequence[str] | None = None) -> None:
    """A simulator's worker: ``python -m redislink.interop.mplang.programs``.

    Args:
        words: the words of the command line; None: this process's.
    """
    parser = argparse.ArgumentParser(description="A worker of a simulator in a trial.")
    parser.add_argument("rank", type=int)
    parser.add_argument("world_size", type=int)
    parser.add_argument("said", nargs="+")
    given = parser.parse_args(words)
    threading.Thread(target=_end_with_input, name="redislink-parent", daemon=True).start()
    try:
        WorkerApp(given.rank, given.world_size, tuple(given.said)).serve()
    except RedisLinkError as error:
        sys.exit(f"worker-{given.rank}: {error}")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    logging.disable(logging.CRITICAL)  # that the others end too is no news
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(0)


if __name__ == "__main__":
    main()
