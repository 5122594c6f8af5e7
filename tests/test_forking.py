"""After a fork nothing of the parent's works in the child, and the parent goes on unharmed."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import multiprocessing
import os
import pkgutil
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

import redislink
from redislink import Endpoint, Session, Simulator, UsageError, UsedAfterFork, forking
from redislink.broker import Broker, EgressProxy, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from redislink.broker.topology import SentinelTopology
from redislink.broker.url import parse_url
from redislink.cli import termination
from redislink.cli.termination import run_until_sigterm
from redislink.protocol.frame import Data, Encoding
from redislink.testing import Faults, FaultyBroker, Proxy
from redislink.transport.party_status import status_of
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.children import error_of, in_child
from tests.support.scripted_proxy import ScriptedProxy, tunnel_to
from tests.support.tls_terminator import TlsTerminator

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def pair(valkey: EmbeddedBroker) -> Iterator[list[Endpoint]]:
    endpoints = join(make_cluster(valkey.url, 2), close_timeout=3)
    yield endpoints
    run_parties(*(endpoint.close for endpoint in endpoints))


def exchange(alice: Endpoint, bob: Endpoint, tag: str) -> None:
    """The two are well."""
    for number in range(5):
        alice.send("bob", f"{tag}-{number}", b"a" * 70_000)
        assert bob.recv("alice", f"{tag}-{number}") == b"a" * 70_000
        bob.send("alice", f"{tag}-{number}", b"b")
        assert alice.recv("bob", f"{tag}-{number}") == b"b"


def take_and_release(lock: Any) -> bool:
    taken: bool = lock.acquire(blocking=False)
    if taken:
        lock.release()
    return taken


def test_every_call_of_an_endpoint_says_so(pair: list[Endpoint]) -> None:
    alice, bob = pair
    exchange(alice, bob, "before")
    handle = alice.send("bob", "early", b"x")
    codec = alice.parts.core.peer("bob").codec
    sealed = bob.parts.core.peer("alice").codec.encode(b"list", Data(900), b"x")

    def child() -> list[str]:
        calls = [
            lambda: alice.send("bob", "t", b"x"),
            lambda: alice.send("bob", "t", b"x" * 5_000_000),
            lambda: alice.parts.sending.post("bob", "t", b"x"),
            lambda: alice.recv("bob", "t"),
            lambda: alice.parts.receiving.recv("bob", "before-6", 0.1),
            lambda: alice.has_message("bob", "t"),
            lambda: alice.peek_message("bob", "t"),
            lambda: alice.cancel_recv("bob", "t"),
            lambda: alice.parts.sending.wait_until(
                lambda: False, 1, ask=alice.parts.core.peers["bob"]
            ),
            alice.flush,
            alice.stats,
            lambda: status_of(alice.parts.core, alice.parts.closing._claim),
            lambda: alice.announce_silence().__enter__(),
            handle.test,
            handle.wait,
            lambda: codec.encode_whole(b"list", 900, Encoding.RAW, 0, b"x"),
            lambda: codec.encode(b"list", Data(900), b"x"),
            lambda: codec.decode_untrusted(b"list", sealed),
            lambda: alice.parts.core.outbox.push(b"list", (b"", b"x")),
        ]
        for call in calls:
            error_of(call)
        thread, taken = in_thread(lambda: take_and_release(alice.parts.core.lock))
        thread.join(10)
        assert taken == [True], "a call has kept the lock"
        for leave in (alice.close, lambda: alice.abort("no"), alice.close):
            leave()
        with contextlib.suppress(ZeroDivisionError), alice:
            1 / 0  # noqa: B018
        return [error_of(call) for call in calls]

    said = in_child(child)
    assert {*said} == {"UsedAfterFork"}, said
    assert bob.recv("alice", "early") == b"x"
    exchange(alice, bob, "after")


def test_the_error_says_whose_it_is_and_what_to_do(pair: list[Endpoint]) -> None:
    alice, _ = pair

    def child() -> tuple[str, int, bool]:
        try:
            alice.send("bob", "t", b"x")
        except UsedAfterFork as error:
            return str(error), os.getpid(), isinstance(error, UsageError)
        return "", 0, False

    text, pid, is_usage = in_child(child)
    assert is_usage
    assert text.startswith(f"alice: the endpoint of session {alice.session!r} belongs to process ")
    assert str(os.getpid()) in text
    assert str(pid) in text
    assert "\n" not in text


def sockets() -> set[int]:
    """Inodes of the connections to brokers that this process has."""
    found = {c for c in gc.get_objects() if isinstance(c, BrokerConnection)}
    held = [getattr(getattr(c, "_connection", None), "_sock", None) for c in found]
    return {os.fstat(s.fileno()).st_ino for s in held if s is not None and s.fileno() >= 0}


def open_files() -> set[int]:
    """Inodes of all that this process has open."""
    held = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(path.stat().st_ino)
    return held


def test_the_child_has_no_socket_and_the_broker_sees_none_end(
    pair: list[Endpoint], valkey: EmbeddedBroker
) -> None:
    alice, bob = pair
    exchange(alice, bob, "before")
    ours = sockets()
    assert len(ours) >= 6
    watching = redis.Redis(port=valkey.port)
    before = {client["addr"] for client in watching.client_list()}

    assert not ours & in_child(open_files)
    assert before <= {client["addr"] for client in watching.client_list()}
    exchange(alice, bob, "after")


def test_the_child_has_no_socket_of_a_tunnel(valkey: EmbeddedBroker, tmp_path: Path) -> None:
    """TLS in TLS is no socket of its own."""
    (tmp_path / "outer").mkdir()
    with (
        TlsTerminator(valkey.port, tmp_path) as tls,
        ScriptedProxy(tunnel_to(tls.port)) as scripted,
        TlsTerminator(scripted.port, tmp_path / "outer") as outer,
    ):
        proxy = EgressProxy(f"https://127.0.0.1:{outer.port}", tls_ca=outer.ca_file)
        connection = Broker(tls.url(), tls_ca=tls.ca_file, proxy=proxy).open()
        held = os.fstat(connection._connection._sock.fileno()).st_ino
        assert held not in in_child(open_files)
        assert held in open_files()
        assert connection.execute(b"PING", timeout=5) == b"PONG"
        connection.close()


@pytest.mark.slow
def test_locks_that_others_hold_do_not_hold_up_the_child(pair: list[Endpoint]) -> None:
    alice, bob = pair
    session = Session.from_endpoint(alice)
    locks = [
        alice.parts.core.lock,
        alice.parts.core.outbox._lock,  # type: ignore[union-attr]
        session._lock,
        session._failure._lock,
        session._silence._lock,
        session._steps._lock,
        session._steps._in_step,
        session._communicator._changed,  # type: ignore[attr-defined]
        *(
            lane.lock
            for peer in alice.parts.core.peers.values()
            for lane in peer.lanes._lanes.values()
        ),
        *(peer.lanes._lock for peer in alice.parts.core.peers.values()),
    ]
    held, may_release = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            may_release.wait()

    thread, _ = in_thread(hold)
    held.wait()

    def child() -> list[str]:
        said = [
            error_of(lambda: alice.send("bob", "t", b"x")),
            error_of(lambda: alice.recv("bob", "t")),
            error_of(lambda: session.communicator.recv("bob", "t")),
            error_of(lambda: session.psi({}, "k", parties=["alice", "bob"])),
        ]
        session.close()
        session.abort("no")
        return said

    try:
        assert in_child(child) == ["UsedAfterFork"] * 4
    finally:
        may_release.set()
        thread.join()
    exchange(alice, bob, "after")


@pytest.mark.parametrize("where", ["before it is sealed", "before it is written"])
def test_a_fork_in_the_middle_of_a_message(
    pair: list[Endpoint], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As by a signal handler: the child comes back into `send` with what it has half done."""
    alice, bob = pair
    owner: Any = (
        alice.parts.core.peer("bob").codec
        if where == "before it is sealed"
        else alice.parts.core.outbox
    )
    name = "encode_whole" if where == "before it is sealed" else "push"
    real = getattr(owner, name)
    children: list[int] = []

    def forks(*arguments: Any, **named: Any) -> Any:
        if not children:
            monkeypatch.undo()
            children.append(os.fork())
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, forks)
    said = ""
    try:
        alice.send("bob", "t", b"x")
    except Exception as error:  # noqa: BLE001 - told by the exit code
        said = type(error).__name__
    finally:
        if children == [0]:
            os._exit(0 if said in ("UsedAfterFork", "EndpointClosed") else 9)
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert bob.recv("alice", "t") == b"x"
    exchange(alice, bob, "after")
    assert bob.stats().duplicates_dropped == 0


def test_a_fork_while_joining(valkey: EmbeddedBroker) -> None:
    cluster = make_cluster(valkey.url, 2)
    children: list[int] = []
    may_join = threading.Event()

    def fork(_missing: list[str], _seconds: float) -> None:
        if not children:
            children.append(os.fork())
            may_join.set()

    bob, joined = in_thread(
        lambda: may_join.wait() and connect_as(cluster, "bob", quick_settings(close_timeout=3))
    )
    said = ""
    try:
        settings = quick_settings(close_timeout=3)
        alice = connect_as(cluster, "alice", settings, on_progress=fork)
    except Exception as error:  # noqa: BLE001 - told by the exit code
        said = type(error).__name__
    finally:
        if children == [0]:
            os._exit(0 if said in ("UsedAfterFork", "EndpointClosed") else 9)
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    bob.join()
    exchange(alice, joined[0], "t")
    run_parties(alice.close, joined[0].close)


@pytest.mark.parametrize("kind", ["valkey", "fakeredis"])
def test_a_child_may_join_again(valkey: EmbeddedBroker, kind: str) -> None:
    """At once after the threads in which its parent has joined: they may be about to end."""
    url = valkey.url if kind == "valkey" else "fakeredis://of-parent-and-child"
    alice, bob = join(make_cluster(url, 2), close_timeout=3)

    def child() -> bytes:
        others = join(make_cluster(url, 2, session="of-the-child"), close_timeout=3)
        others[0].send("bob", "t", b"from the child")
        got = others[1].recv("alice", "t")
        run_parties(*(endpoint.close for endpoint in others))
        return got

    assert in_child(child) == b"from the child"
    exchange(alice, bob, "after")
    run_parties(alice.close, bob.close)


def test_a_fork_waits_for_threads_that_end() -> None:
    """What libraries do in a thread after its Python, as OpenSSL, may hold locks of theirs."""
    libc, key = ctypes.CDLL(None), ctypes.c_uint()
    libc.pthread_key_create(ctypes.byref(key), libc.usleep)  # called with the value, at the end
    numbers = []

    def work() -> None:
        numbers.append(threading.get_native_id())
        libc.pthread_setspecific(key, ctypes.c_void_p(100_000))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    is_there = Path(f"/proc/self/task/{numbers[0]}").exists()
    os.waitpid(pid, 0)
    assert not is_there


def test_a_fork_waits_once_for_threads_that_stay() -> None:
    """Those of C++, of which Python knows nothing."""
    may_end, began = threading.Event(), threading.Event()
    numbers: list[str] = []

    def stay() -> None:
        numbers.append(str(_thread.get_native_id()))
        began.set()
        may_end.wait()

    _thread.start_new_thread(stay, ())
    began.wait()
    assert in_child(lambda: set(forking._staying)) == set()
    assert numbers[0] in forking._staying
    may_end.set()
    while Path(f"/proc/self/task/{numbers[0]}").exists():
        pass
    in_child(lambda: None)
    assert numbers[0] not in forking._staying


LOCKS = (
    *(type(threading.Lock()), type(threading.RLock())),
    *(threading.Condition, threading.Semaphore),
)


NOT_IMPORTED = {"redislink.__main__", "redislink.interop.mplang.binding"}
"""The one runs a command, the other needs a package that is not here; neither has a lock."""


def locks_of_modules() -> dict[str, Any]:
    """Every lock that a module of redislink, or a class of it, has as an attribute, by a name."""
    found: dict[int, tuple[str, Any]] = {}
    for module in pkgutil.walk_packages(redislink.__path__, "redislink."):
        if module.name in NOT_IMPORTED:
            spec = importlib.util.find_spec(module.name)
            assert spec is not None
            text = Path(str(spec.origin)).read_text()
            assert not re.search(
                r"^(    )?[a-z_]+\b.*= threading\.", text, re.MULTILINE | re.IGNORECASE
            )
        else:
            loaded = importlib.import_module(module.name)
            classes = [thing for thing in vars(loaded).values() if isinstance(thing, type)]
            for owner in (loaded, *(c for c in classes if c.__module__ == module.name)):
                for name, thing in vars(owner).items():
                    if isinstance(thing, LOCKS):
                        found[id(thing)] = f"{owner.__name__}.{name}", thing
    return dict(found.values())


@pytest.mark.slow
def test_locks_of_modules_are_free_in_a_child() -> None:
    locks = locks_of_modules()
    assert len(locks) >= 4
    assert "redislink.values._registry_lock" in locks
    held, may_release = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks.values():
                stack.enter_context(lock)
            held.set()
            may_release.wait()

    thread, _ = in_thread(hold)
    held.wait()
    try:
        taken = in_child(
            lambda: [name for name, lock in locks.items() if not lock.acquire(blocking=False)]
        )
    finally:
        may_release.set()
        thread.join()
    assert taken == []


def test_a_broker_that_another_thread_asked_can_be_used_in_a_child() -> None:
    sentinels = SentinelTopology(
        parse_url("redis+sentinel://127.0.0.1:1/mymaster"), lambda *_: [b"127.0.0.1", b"1"]
    )
    with sentinels._asking:
        assert in_child(lambda: sentinels._asking.acquire(blocking=False))


def test_what_has_ended_lets_go_of_nothing() -> None:
    """Its descriptors may be other files' by now."""

    def parent() -> bool:
        found: list[termination._Termination] = []
        run_until_sigterm(
            "alice",
            lambda: found.extend(
                m for m in forking._mortal if isinstance(m, termination._Termination)
            ),
        )
        (waiting,) = found
        reading, writing = os.pipe()
        assert {reading, writing} == {waiting._read_end, waiting._write_end}
        return in_child(lambda: os.write(writing, b"x") == 1 and os.read(reading, 1) == b"x")

    assert in_child(parent)


def test_a_child_writes_nothing_into_the_trace(valkey: EmbeddedBroker, tmp_path: Path) -> None:
    alice, bob = join(make_cluster(valkey.url, 2), trace_dir=tmp_path, close_timeout=3)
    exchange(alice, bob, "before")

    def child() -> str:
        said = error_of(lambda: alice.send("bob", "t", b"x"))
        for recorder in gc.get_objects():
            if type(recorder).__name__ == "TraceRecorder":
                recorder._file.write("by the child")
                recorder._file.flush()
                recorder.close()
        return said

    assert in_child(child) == "UsedAfterFork"
    exchange(alice, bob, "after")
    run_parties(alice.close, bob.close)
    for path in tmp_path.iterdir():
        assert "by the child" not in path.read_text()
        assert '"calls":' in path.read_text().splitlines()[-1]


def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("through", ["memory", "embedded"])
def test_pools_in_a_simulated_program(through: Any) -> None:
    def program(session: Session) -> tuple[list[int], list[int], str]:
        peer = next(name for name in session.party_names if name != session.party)
        with FORK.Pool(2) as pool:
            by_pool = pool.map(double, range(3))
        with ProcessPoolExecutor(1, mp_context=FORK) as executor:
            by_executor = list(executor.map(double, range(3)))
        process = FORK.Process(target=session.communicator.send, args=(peer, "t", 1))
        process.start()
        process.join()
        session.communicator.send(peer, "t", session.party)
        assert process.exitcode == 1
        return by_pool, by_executor, session.communicator.recv(peer, "t")

    simulator = Simulator(2, through=through, settings=quick_settings(close_timeout=3))
    for party, told in simulator.run(program).items():
        peer = "bob" if party == "alice" else "alice"
        assert told == ([0, 2, 4], [0, 2, 4], peer)


@pytest.mark.slow
def test_brokers_and_proxies_stay_the_parents() -> None:
    with EmbeddedBroker() as broker, Proxy(broker.port) as proxy:
        faulty = FaultyBroker(proxy.url(), faults=Faults(reorder=1.0))
        alice, bob = join(make_cluster(proxy.url(), 2), faulty, close_timeout=3)
        directory = Path(broker._directory.name)  # type: ignore[union-attr]

        def child() -> list[str]:
            said = [error_of(lambda: alice.send("bob", "t", b"x"))]
            said.append(error_of(lambda: proxy.connections))
            said.append(str(len(faulty._held)))
            for thing in (proxy, broker):
                thing.__exit__(None, None, None)
            return said

        assert in_child(child) == ["UsedAfterFork", "RuntimeError", "0"]
        assert directory.is_dir()
        assert proxy.connections
        exchange(alice, bob, "after")
        run_parties(alice.close, bob.close)
    assert not directory.exists()


def test_what_the_parent_closes_ends_although_a_child_lives(valkey: EmbeddedBroker) -> None:
    """Else the broker would go on giving messages to connections that nobody reads."""
    broker = Broker(valkey.url)
    connection = broker.open()
    number = connection.execute(b"CLIENT", b"ID", timeout=5)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        connection.close()
        watching = redis.Redis(port=valkey.port)
        clients = {int(client["id"]) for client in watching.client_list()}
        while number in clients:  # the server notices it in its own time
            clients = {int(client["id"]) for client in watching.client_list()}
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)


def test_a_subprocess_is_no_fork(pair: list[Endpoint]) -> None:
    subprocess.run(["true"], check=True, preexec_fn=lambda: None)
    exchange(*pair, "after")
