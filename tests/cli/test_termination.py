"""SIGTERM under ``redislink run``: whatever the program does with signals, threads and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redislink import PeerAborted, Session, load_cluster
from redislink.broker import EmbeddedBroker
from redislink.cli import termination
from redislink.cli.termination import (
    Terminated,
    interrupts_come_back,
    run_until_sigterm,
    sigterm_interrupts,
)
from tests.cli.conftest import Start, Write, ended
from tests.conftest import connect_as, in_thread, quick_settings
from tests.support.children import in_child
from tests.support.waiting import wait_until

LOOP = """
    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print, "SIGUSR1")
"""
ENDED = "redislink: alice: ended by SIGTERM"
CUT = "redislink: alice: ended by SIGTERM, in the middle of a computation"
CALLBACK = "waits within a callback of a loop, as a cell of Jupyter"

# Name: what alice's program does once it has joined, and the last line that it leaves on stderr.
PROGRAMS = {
    "waits in a thread of asyncio's": (
        LOOP
        + """
        await asyncio.to_thread(wait)
    asyncio.run(main())
    """,
        ENDED,
    ),
    "is in a loop and idle, as Jupyter": (
        LOOP
        + """
        print("ready", flush=True)
        await asyncio.Event().wait()
    asyncio.run(main())
    """,
        ENDED,
    ),
    CALLBACK: (
        LOOP
        + """
        loop.call_soon(wait)
        await asyncio.Event().wait()
    asyncio.run(main())
    """,
        ENDED,
    ),
    "has the wake-up descriptor, and its main thread in C": (
        """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    assert signal.set_wakeup_fd(theirs.fileno()) == -1
    wait_in_c()
    """,
        CUT,
    ),
    "waits in a thread": (
        """
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    """,
        ENDED,
    ),
    "lets the main thread have no signal": (
        """
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("ready", flush=True)
    threading.Event().wait()
    """,
        CUT,
    ),
    "has a handler that calls ours": (
        """
    before = signal.getsignal(signal.SIGTERM)
    def handle(number, frame):
        before(number, frame)
    signal.signal(signal.SIGTERM, handle)
    wait()
    """,
        ENDED,
    ),
    "has used asyncio, and had a handler, and has put ours back": (
        LOOP
        + """
    asyncio.run(main())
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    wait()
    """,
        ENDED,
    ),
    "has ended the workers of a pool": (
        """
    for _ in range(3):
        with multiprocessing.get_context("fork").Pool(2):
            pass
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(time.sleep, (60,))
    wait()
    """,
        ENDED,
    ),
    "waits in close": ("\n    print('ready', flush=True)", ENDED),
    "leaves a thread behind": (
        """
    threading.Thread(target=threading.Event().wait).start()
    wait()
    """,
        CUT,
    ),
    "does not want to end": (
        """
    while True:
        try:
            print("ready", flush=True)
            threading.Event().wait()
        except BaseException:
            pass
    """,
        CUT,
    ),
}
QUICK = [name for name, (_, last) in PROGRAMS.items() if last == ENDED]
PREPARED = """
import asyncio, ctypes, multiprocessing, os, signal, socket, threading, time
from redislink import Session

def wait():
    print("ready", flush=True)
    session.communicator.recv("bob", "never")

def wait_in_c():
    lock = ctypes.CDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)  # for ever; no signal ends it

with Session.join() as session:
"""


@pytest.fixture
def bobs(broker: EmbeddedBroker) -> Iterator[Callable[..., list[Any]]]:
    """Bob, in a thread here, who waits for what does not come; gives what he gets instead."""

    def play(cluster: Any, alice: subprocess.Popen[str]) -> list[Any]:
        def bob() -> None:
            settings = quick_settings(broker_url=broker.url, recv_timeout=60)
            with Session.from_endpoint(
                connect_as(load_cluster(cluster), "bob", settings)
            ) as session:
                session.communicator.recv("alice", "never")

        thread, outcome = in_thread(bob)
        threads.append(thread)
        assert alice.stdout is not None
        assert alice.stdout.readline() == "ready\n"
        return outcome

    threads: list[threading.Thread] = []
    yield play
    for thread in threads:
        thread.join(20)


@pytest.mark.slow
@pytest.mark.parametrize("does", PROGRAMS)
def test_sigterm_reaches_the_session(
    start: Start,
    spawn: Start,
    write_cluster: Write,
    write_program: Write,
    broker: EmbeddedBroker,
    bobs: Callable[..., list[Any]],
    does: str,
) -> None:
    work, last = PROGRAMS[does]
    cluster, program = write_cluster(), write_program(PREPARED + work.strip("\n"))
    begin = spawn if "Pool" in work else start  # the process of `start` may have no children
    process = begin(
        *("run", "--cluster", cluster, "--party", "alice", program),
        broker_url=broker.url,
        recv_timeout="60",
        close_timeout="60",
    )
    outcome = bobs(cluster, process)
    process.send_signal(signal.SIGTERM)
    alice = ended(process)
    assert alice.returncode == 143, alice.stderr
    said = alice.stderr.splitlines()
    # asyncio prints the callback's error just then, and `traceback` may take ours for its own.
    assert last in said or (does == CALLBACK and CUT in said), alice.stderr
    deadline = time.monotonic() + 20
    while not outcome and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert isinstance(outcome[0], PeerAborted), outcome
    assert outcome[0].reason == "ended by SIGTERM"


def test_a_program_that_handles_signals_in_its_loop(
    start: Start, write_cluster: Write, write_program: Write
) -> None:
    program = write_program(
        """
        import asyncio, signal, sys
        async def main():
            came, end = asyncio.Event(), asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
            print("ready", flush=True)
            await came.wait()
            print("came", flush=True)
            await end.wait()
            sys.exit(9)
        asyncio.run(main())
        """
    )
    process = start("run", "--cluster", write_cluster(), "--party", "alice", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "came\n"
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    assert (result.returncode, result.stderr) == (9, "")


def test_sessions_that_cannot_be_ended_hold_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the broker drips an answer that never ends, and abort waits for a lock."""

    class Stuck:
        def abort(self, _reason: str) -> None:
            threading.Event().wait()

    monkeypatch.setattr(termination, "_open_sessions", lambda: [Stuck(), Stuck()])
    monkeypatch.setattr(termination, "_TELLING", 0.05)

    def program() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    def child() -> str:
        try:
            run_until_sigterm("alice", program)
        except SystemExit as end:
            return f"{end.code}"
        return ""

    assert in_child(child) == "143"


def test_a_signal_before_the_program_has_begun_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the handler raises is not raised where nobody would catch it."""

    def prepare(preparing: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(preparing._sessions_ended.is_set)
        signal.raise_signal(signal.SIGTERM)
        began.append("still prepares")

    began: list[str] = []
    monkeypatch.setattr(termination, "dies_in_child", prepare)

    def program() -> None:
        began.append("program")
        threading.Event().wait()

    def child() -> tuple[Any, list[str], str]:
        try:
            run_until_sigterm("alice", program)
        except SystemExit as end:
            return end.code, began[:1], capsys.readouterr().err
        return None, began, ""

    said = "redislink: alice: ended by SIGTERM\n"
    assert in_child(child) == (143, ["still prepares"], said)


def test_what_python_drops_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    came: set[int] = set()
    monkeypatch.setattr(signal, "pthread_kill", lambda _thread, number: came.add(number))
    with interrupts_come_back():
        for kind in (KeyboardInterrupt, Terminated):
            sys.unraisablehook(types.SimpleNamespace(exc_type=kind))  # type: ignore[arg-type]
        wait_until(lambda: came == {signal.SIGINT, signal.SIGTERM})


def test_a_session_that_was_just_being_made_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the thread which hears the signal has not seen."""
    opened: list[Any] = []
    monkeypatch.setattr(termination, "_open_sessions", lambda: list(opened))

    class Made:
        def abort(self, reason: str, *, retryable: bool) -> None:
            opened.clear()
            told.append((reason, retryable))

    told: list[tuple[str, bool]] = []

    def program() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        finally:
            opened.append(Made())

    def child() -> str:
        try:
            run_until_sigterm("alice", program)
        except SystemExit as end:
            return f"{end.code} {told} {opened}"
        return ""

    assert in_child(child) == "143 [('ended by SIGTERM', True)] []"


def test_what_the_program_did_to_signals_is_put_back() -> None:
    def program() -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        first, second = signal.set_wakeup_fd(writing), signal.set_wakeup_fd(writing)
        assert (first, second) == (-1, writing)
        with pytest.raises(ValueError, match="non-blocking"):
            signal.set_wakeup_fd(reading)
        with pytest.raises(OSError, match="descriptor"):
            signal.set_wakeup_fd(999)
        signal.raise_signal(signal.SIGCHLD)

    def child() -> tuple[bool, int, bool]:
        before = signal.set_wakeup_fd
        run_until_sigterm("alice", program)
        handler = signal.getsignal(signal.SIGTERM)
        return before is signal.set_wakeup_fd, signal.set_wakeup_fd(-1), handler is signal.SIG_DFL

    restored, theirs, is_default = in_child(child)
    assert restored
    assert theirs >= 0, "what the program set stays set"
    assert is_default


def test_a_child_has_the_handler_that_was_there_before() -> None:
    seen: list[object] = []

    def program() -> None:
        seen.extend(
            in_child(
                lambda: (
                    signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
                    signal.set_wakeup_fd(-1),
                )
            )
        )
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        os.kill(pid, signal.SIGTERM)  # at once: it may not have let go yet
        _, status = os.waitpid(pid, 0)
        seen.append(os.waitstatus_to_exitcode(status))

    def parent() -> list[object]:
        run_until_sigterm("alice", program)
        return seen

    assert in_child(parent) == [True, -1, -signal.SIGTERM]


def test_a_child_may_leave_the_block() -> None:
    def parent() -> int:
        pids: list[int] = []
        run_until_sigterm("alice", lambda: pids.append(os.fork()))
        if pids[0] == 0:
            os._exit(7)
        _, status = os.waitpid(pids[0], 0)
        return os.waitstatus_to_exitcode(status)

    assert in_child(parent) == 7


def test_what_ends_the_program_says_so_to_the_peers() -> None:
    assert Terminated.told_to_peers == "ended by SIGTERM"


def test_a_command_that_sigterm_interrupts_puts_the_handler_back() -> None:
    """Else a worker of a Pool that SIGTERM ends as it starts would live on."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_program_that_is_still_importing_has_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else SIGTERM at that moment would be heard and come to nothing."""
    monkeypatch.setitem(sys.modules, "redislink.session.session", types.ModuleType("half"))
    assert termination._open_sessions() == []
    monkeypatch.delitem(sys.modules, "redislink.session.session")
    assert termination._open_sessions() == []
