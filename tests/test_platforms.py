"""What other systems lack is taken away here: the code goes another way there.

macOS and ARM were not tried. These tests run on Linux, without what Linux alone has.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redislink import forking
from redislink.audit.chain import Head, HeadFile
from redislink.broker import Broker, EmbeddedBroker, embedded, socket_wire, tcp
from redislink.cli import retries
from redislink.files import put_on_disk, replacing
from redislink.jobs import usage
from redislink.jobs.cgroup import ControlGroups
from redislink.journal.disk import OsDisk
from redislink.session import journal
from tests.conftest import join, make_cluster

PACKAGE = Path(__file__).parents[1] / "redislink"
NOWHERE = Path("/nowhere/proc")

LINUX_ONLY = frozenset(
    {
        "CLOCK_BOOTTIME", "EPOLLIN", "F_ADD_SEALS", "F_FULLFSYNC", "F_SETPIPE_SZ", "MSG_DONTWAIT",
        "MSG_NOSIGNAL", "MSG_ZEROCOPY", "O_DIRECT", "O_PATH", "O_TMPFILE", "SIGRTMIN",
        "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SOCK_SEQPACKET", "SO_BINDTODEVICE", "SO_PEERCRED",
        "SO_PRIORITY", "TCP_CONGESTION", "TCP_CORK", "TCP_DEFER_ACCEPT", "TCP_INFO", "TCP_KEEPCNT",
        "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_NOTSENT_LOWAT", "TCP_QUICKACK", "TCP_USER_TIMEOUT",
        "copy_file_range", "epoll", "eventfd", "fdatasync", "getrandom", "mallopt",
        "memfd_create", "pidfd_open", "pidfd_send_signal", "pipe2", "posix_fadvise",
        "posix_fallocate", "prctl", "prlimit", "sched_getaffinity", "sched_setaffinity",
        "sendfile", "setns", "sigtimedwait", "sigwaitinfo", "splice", "timerfd_create", "unshare",
        "waitid",
    }
)  # fmt: skip
"""Names of Python's and C's libraries that a Unix may lack, or give another meaning."""

WITH_ANOTHER_WAY = {
    ("broker/busy_poll.py", "/sys"),
    ("broker/busy_poll.py", "sched_getaffinity"),
    ("broker/embedded.py", "/proc"),
    ("broker/socket_wire.py", "MSG_DONTWAIT"),
    ("broker/socket_wire.py", "TCP_NOTSENT_LOWAT"),
    ("broker/tcp.py", "TCP_CONGESTION"),
    ("broker/tcp.py", "TCP_INFO"),
    ("broker/tcp.py", "TCP_KEEPCNT"),
    ("broker/tcp.py", "TCP_KEEPIDLE"),
    ("broker/tcp.py", "TCP_KEEPINTVL"),
    ("broker/tcp.py", "TCP_NOTSENT_LOWAT"),
    ("broker/tcp.py", "TCP_USER_TIMEOUT"),
    ("files.py", "F_FULLFSYNC"),
    ("interop/forward/pipes.py", "TCP_KEEPCNT"),
    ("interop/forward/pipes.py", "TCP_KEEPIDLE"),
    ("interop/forward/pipes.py", "TCP_KEEPINTVL"),
    ("interop/sidecar/server.py", "MSG_DONTWAIT"),  # to read, which macOS does
    ("files.py", "fdatasync"),
    ("forking.py", "/proc"),
    ("jobs/cgroup.py", "/proc"),
    ("jobs/cgroup.py", "/sys"),
    ("jobs/child.py", "prctl"),
    ("jobs/runner.py", "prctl"),
    ("jobs/runner.py", "waitid"),
    ("jobs/usage.py", "/proc"),
    ("session/journal.py", "/proc"),
    ("session/supervisor.py", "SOCK_SEQPACKET"),
    ("spu/log.py", "/proc"),
    ("spu/log.py", "memfd_create"),
    ("spu/malloc.py", "mallopt"),
}
"""Where they are used all the same, and do no harm where they are missing."""


_MENTIONED = re.compile(rf"\b({'|'.join(LINUX_ONLY)})\b|\"/(proc|sys)")


def _linux_only(path: Path) -> Iterator[str]:
    text = path.read_text()
    if not _MENTIONED.search(text):
        return  # to parse it takes long
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name):
                if name in LINUX_ONLY:
                    yield name
            case ast.Constant(value=str(text)) if id(node) not in prose:
                if text in LINUX_ONLY:
                    yield text
                yield from (top for top in ("/proc", "/sys") if text.startswith(top))


def test_what_only_linux_has_is_used_where_there_is_another_way() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in _linux_only(path)
    }
    assert found == WITH_ANOTHER_WAY


# -- files -----------------------------------------------------------------------------------------


def write_everywhere(directory: Path) -> None:
    """Use every kind of file that is put on disk."""
    with replacing(directory / "replaced", durable=True) as file:
        file.write("text")
    made = OsDisk().create(directory / "journal")
    made.write(b"record")
    made.sync()
    made.close()
    head = HeadFile(directory / "record", None)
    head.write(Head(1, 0, 10, "0" * 64))
    head.sync()
    head.close()


def test_without_fdatasync_everything_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.setattr(os, "fsync", synced.append)
    write_everywhere(tmp_path)
    assert len(synced) == 4, "the file, its directory, the journal, the head of the record"


def test_a_disk_empties_its_cache_where_only_that_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, command: asked.append(command))
    monkeypatch.setattr(os, "fsync", None)
    monkeypatch.setattr(os, "fdatasync", None)
    write_everywhere(tmp_path)
    assert asked == [51] * 4


def test_a_file_system_without_that_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with (tmp_path / "file").open("wb") as file:
        put_on_disk(file.fileno())
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing), pytest.raises(OSError, match="Invalid argument"):
        put_on_disk(reading)


# -- sockets ---------------------------------------------------------------------------------------


class Options:
    """A connection that takes every option."""

    def __init__(self) -> None:
        self.set: dict[int, int] = {}

    def setsockopt(self, _level: int, option: int, value: int) -> None:
        self.set[option] = value


def as_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_INFO", "TCP_NOTSENT_LOWAT"):
        monkeypatch.delattr(socket, name, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 0x10, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPINTVL", 0x101)
    monkeypatch.setattr(socket, "TCP_KEEPCNT", 0x102)
    monkeypatch.setattr(tcp, "_INFO", None)


def test_macos_gives_a_silent_connection_up_by_options_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_on_macos(monkeypatch)
    line = Options()
    tcp.watch(line, 7.5)  # type: ignore[arg-type]
    assert line.set == {socket.SO_KEEPALIVE: 1, 0x10: 2, 0x101: 1, 0x102: 6, 0x80: 8}
    assert tcp.option("TCP_NOTSENT_LOWAT") == 0x201


def test_a_system_without_options_has_none_set(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_macos(monkeypatch)
    monkeypatch.setattr(sys, "platform", "other")
    for name in ("TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name)
    line = Options()
    tcp.watch(line, 7.5)  # type: ignore[arg-type]
    assert line.set == {socket.SO_KEEPALIVE: 1}
    near, far = socket.socketpair()
    with near, far:
        assert tcp.traffic(near) is None


@pytest.mark.parametrize("kernel_waits", [True, False])
def test_parties_talk_whoever_waits(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, kernel_waits: bool
) -> None:
    monkeypatch.setattr(socket_wire, "_KERNEL_WAITS", kernel_waits)
    monkeypatch.setattr(socket_wire, "_NOTSENT_LOWAT", None)
    sent = os.urandom(3 << 20)
    alice, bob = join(make_cluster(valkey.url, 2))
    with alice, bob:
        answer = threading.Thread(target=lambda: bob.send("alice", "t", bob.recv("alice", "t")))
        answer.start()
        alice.send("bob", "t", sent)
        assert alice.recv("bob", "t") == sent
        answer.join()


def test_a_server_is_waited_for_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PROC", NOWHERE)
    with EmbeddedBroker() as broker:
        assert broker._server_alive()
    assert not broker._server_alive()


def test_a_socket_has_another_address_where_its_path_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of temporary directories on macOS are long, its limit is 103 bytes."""
    deep = tmp_path / ("d" * (104 - len(str(tmp_path))))
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedBroker() as broker:
        assert broker.unix_url == broker.url
        Broker(broker.unix_url).open().close()


# -- processes -------------------------------------------------------------------------------------


def test_a_process_is_found_and_measured_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"REDISLINK_JOB_DIR={NOWHERE}-{os.getpid()}"
    name, _, value = mark.partition("=")
    with subprocess.Popen(
        [sys.executable, "-ISc", "print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={name: value},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        family = usage.family(os.getpid())
        assert process.pid in family
        expected = usage.memory_bytes(usage.family(process.pid) * 2, 1)
        seconds = usage.cpu_seconds([process.pid])
        monkeypatch.setattr(usage, "_PROC", NOWHERE)
        assert usage.marked(mark) == usage.family(process.pid) == [process.pid]
        assert set(usage.family(os.getpid())) == set(family)
        assert usage.cpu_seconds([process.pid]) == pytest.approx(seconds)
        measured = usage.memory_bytes(usage.family(process.pid) * 2, 1)
        assert 0 < measured <= expected
        process.communicate(b"\n")


def test_without_proc_nothing_is_known_and_nothing_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_BOOT_ID", NOWHERE)
    assert journal._boot() == "", "a run before is then not taken for ended"
    monkeypatch.setattr(forking, "_TASKS", NOWHERE)
    forking._let_threads_leave()
    assert ControlGroups.find(NOWHERE, NOWHERE) is None


def test_open_files_are_known_on_every_unix() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert {near.fileno(), far.fileno()} <= retries._open_files()
    assert "/proc" not in str(retries._OPEN_FILES)
