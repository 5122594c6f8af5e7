"""What a program beside a sidecar imports, with stand-ins for SPU, SecretFlow and RayFed."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from redislink.interop.sidecar import command
from redislink.interop.sidecar.shim import redislink_sidecar as shim
from redislink.interop.sidecar.shim.redislink_sidecar import Sidecar, SidecarError
from tests.interop.sidecar.conftest import TOKEN, MakeServer
from tests.support.waiting import wait_until


class Party:
    def __init__(self, name: str, host: str) -> None:
        self.id, self.host = name, host


class Desc:
    """As ``libspu.link.Desc`` of spu 0.9.5, as far as the shim uses it."""

    def __init__(self, name: str = "root") -> None:
        self.id = name
        self.parties = [Party("alice", "a:9001"), Party("bob", "b:9002")]
        self.link_type = "normal"
        self.enable_ssl = False
        self.brpc_channel_protocol = "baidu_std"
        self.brpc_channel_connection_type = ""
        self.http_timeout_ms = 20_000


class Context:
    """A link, which remembers how it was made."""

    def __init__(self, desc: Desc, rank: int, **options: Any) -> None:
        self.made = dict(vars(desc)), rank, options
        self.environment = dict(os.environ)
        self.calls: list[str] = []

    def all_gather(self, text: str) -> list[str]:
        self.calls.append(text)
        return [text]

    def spawn(self) -> Context:
        return type(self)(Desc(), 0)

    def stop_link(self) -> None:
        self.calls.append("stop_link")


class RuntimeWrapper:
    def __init__(self, context: Context, config: Any) -> None:
        self.context = context

    def Run(self, program: Any) -> Any:  # noqa: N802 - SPU's name
        return program()


@pytest.fixture
def libspu() -> Any:
    """A module ``spu.libspu`` whose links are the shim's."""
    link = types.SimpleNamespace(
        create_brpc=lambda desc, rank, **options: link.Context(desc, rank, **options),
        Context=type("Context", (Context,), dict(vars(Context))),
    )
    module = types.ModuleType("spu.libspu")
    module.link = link  # type: ignore[attr-defined]
    module.RuntimeWrapper = type("RuntimeWrapper", (RuntimeWrapper,), dict(vars(RuntimeWrapper)))  # type: ignore[attr-defined]
    shim.install(module)
    return module


@pytest.fixture
def lines(make_server: MakeServer) -> Iterator[dict[str, Sidecar]]:
    """The line of each party's process to its sidecar."""
    made = {name: Sidecar(make_server(name).address, TOKEN) for name in ("alice", "bob")}
    yield made
    for line in made.values():
        line.end("")
        line.hang_up()


@pytest.fixture
def create(
    libspu: Any, lines: dict[str, Sidecar], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Makes both parties' ends of a link, alice's as the program in this process does."""

    def make(desc: Desc | None = None) -> list[Any]:
        monkeypatch.setattr(shim, "_sidecar", lines["alice"])
        pairs = [("alice", "a:9001"), ("bob", "b:9002")]
        with ThreadPoolExecutor() as pool:
            bob = pool.submit(lines["bob"].make_link, "root", pairs, 1, lambda *_: None)
            return [libspu.link.create_brpc(desc or Desc(), 0, log_details=True), bob.result()]

    monkeypatch.setattr(os, "environ", os.environ.copy())
    return make


def test_a_link_is_made_as_a_client_of_the_sidecar(
    create: Callable[..., list[Any]], lines: dict[str, Sidecar]
) -> None:
    desc = Desc()
    before = dict(vars(desc))
    context, (number, called) = create(desc)
    made, rank, options = context.made
    assert (made["link_type"], made["brpc_channel_protocol"]) == ("blackbox", "http")
    assert made["http_timeout_ms"] >= 60_000, "a push may wait for the peer"
    assert (rank, options) == (0, {"log_details": True})
    assert vars(desc) == before, "the program may use it again"
    spu_reads = context.environment
    assert spu_reads["system.transport"] == lines["alice"].address
    assert spu_reads["config.token"] == TOKEN
    assert spu_reads["config.session_id"].isdecimal()
    assert {spu_reads[f"config.inst_id.{name}"] for name in ("alice", "bob")} == {"alice", "bob"}
    assert called == ["alice", "bob"]
    assert number > 0


def test_tls_of_a_description_is_ignored_and_said_once(
    create: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    desc = Desc()
    desc.enable_ssl = True
    context, _ = create(desc)
    assert context.made[0]["enable_ssl"] is False
    assert desc.enable_ssl is True
    assert capsys.readouterr().err.count("TLS is not used") == 1


def test_a_call_on_a_link_that_has_failed_says_why(
    create: Callable[..., list[Any]], libspu: Any, lines: dict[str, Sidecar]
) -> None:
    context, _ = create()
    child = context.spawn()
    runtime = libspu.RuntimeWrapper(context, None)
    assert context.all_gather("x") == ["x"]
    lines["bob"].end("MemoryError in its program")
    lines["bob"].hang_up()
    wait_until(lambda: shim._links[context].failure)
    for call in (
        lambda: context.all_gather("y"),
        lambda: child.all_gather("y"),
        lambda: runtime.Run(list),
        lambda: libspu.RuntimeWrapper(context, None),
    ):
        with pytest.raises(SidecarError, match=r"bob aborted .*MemoryError in its program"):
            call()
    context.stop_link()
    assert context.calls == ["x"], "SPU's stop_link would wait for ever"


def test_a_process_in_the_middle_of_a_call_ends(
    create: Callable[..., list[Any]],
    libspu: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(shim.os, "_exit", ended.append)
    monkeypatch.setattr(shim, "_PATIENCE", 0.01)
    context, _ = create()
    runtime = libspu.RuntimeWrapper(context, None)
    known = shim._links[context]

    def program() -> str:
        known.tell("bob is lost", True)
        wait_until(lambda: ended)
        return "went on"

    assert runtime.Run(program) == "went on"
    assert ended == [4]
    assert "SPU still waits on it" in capsys.readouterr().err


def test_a_call_that_ends_by_itself_ends_no_process(
    create: Callable[..., list[Any]], libspu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Any] = []

    class Timer:
        def __init__(self, seconds: float, function: Callable[[], None]) -> None:
            timers.append(function)

        def start(self) -> None:
            pass

    monkeypatch.setattr(shim.threading, "Timer", Timer)
    monkeypatch.setattr(shim.os, "_exit", lambda _: pytest.fail("ended the process"))
    context, _ = create()
    known = shim._links[context]
    libspu.RuntimeWrapper(context, None).Run(lambda: known.tell("bob is lost", True))
    (look,) = timers
    look()


def test_a_peer_that_leaves_in_good_order_fails_nothing(
    create: Callable[..., list[Any]], lines: dict[str, Sidecar]
) -> None:
    context, _ = create()
    lines["bob"].end("")
    lines["bob"].hang_up()
    wait_until(lambda: shim._links[context].left)
    assert context.all_gather("x") == ["x"], "what bob sent before is still to be had"
    context.stop_link()
    assert context.calls == ["x"]


def test_links_fail_with_the_sidecar(
    create: Callable[..., list[Any]], lines: dict[str, Sidecar]
) -> None:
    context, _ = create()
    lines["alice"].hang_up()  # as if it had died
    wait_until(lambda: shim._links[context].failure)
    with pytest.raises(SidecarError, match="the sidecar of alice has ended: see its output"):
        context.all_gather("x")


def test_a_dropped_link_is_released(
    create: Callable[..., list[Any]], lines: dict[str, Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr(lines["alice"], "release", released.append)
    context, _ = create()
    number = int(context.environment["config.session_id"])
    assert released == []
    del context
    gc.collect()
    assert released == [number]


def test_the_child_of_a_fork_has_a_line_of_its_own(
    create: Callable[..., list[Any]], lines: dict[str, Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = create()
    monkeypatch.setattr(shim, "_links", shim._links.copy())
    monkeypatch.setattr(shim, "_forgotten", [])
    monkeypatch.setattr(shim.os, "close", lambda number: closed.append(number))
    closed: list[int] = []
    shim._forget_in_child()
    assert shim._sidecar is None
    assert closed == [lines["alice"]._socket.fileno()]
    assert not shim._links
    assert context.all_gather("x") == ["x"], "whatever SPU makes of it"


def test_errors_of_the_sidecar_reach_the_program(
    libspu: Any, lines: dict[str, Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "_sidecar", lines["alice"])
    with pytest.raises(SidecarError, match="rank 1 is bob, and this process runs as alice"):
        libspu.link.create_brpc(Desc(), 1)
    with pytest.raises(RuntimeError, match="wants its token"):
        Sidecar(lines["alice"].address, "another")
    with pytest.raises(
        SidecarError, match=r"cannot be reached .*check that redislink sidecar runs"
    ):
        Sidecar("127.0.0.1:1", TOKEN)


def test_an_spu_without_blackbox_links_is_refused(libspu: Any) -> None:
    desc = Desc()
    del desc.link_type
    with pytest.raises(SidecarError, match=r"install spu 0\.9\.4 or later"):
        libspu.link.create_brpc(desc, 0)


def test_without_a_sidecar_there_is_no_link(libspu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "_sidecar", None)
    monkeypatch.delenv(shim.ADDRESS, raising=False)
    with pytest.raises(SidecarError, match="start this with redislink sidecar"):
        libspu.link.create_brpc(Desc(), 0)


class Pickling:
    """As SecretFlow's ``secure_pickle``."""

    FilterType = types.SimpleNamespace(BLACKLIST="blacklist")
    dumps = staticmethod(pickle.dumps)

    @staticmethod
    def loads(data: bytes, filter_type: str) -> Any:
        assert filter_type == "blacklist"
        return pickle.loads(data)


class FedBase:
    """As ``SenderReceiverProxy`` of SecretFlow's fed."""

    def __init__(
        self, job_name: str, addresses: Any, self_party: str, tls: Any, config: Any = None
    ) -> None:
        self._job_name, self._addresses, self._party = job_name, addresses, self_party


@pytest.mark.parametrize("said_as", ["positional", "named"])
def test_objects_of_secretflow(lines: dict[str, Sidecar], said_as: str) -> None:
    proxies = []
    for name in ("alice", "bob"):
        addresses = {"bob": "b:1", "alice": "a:1"}

        def open_(*args: Any, line: Sidecar = lines[name]) -> Any:
            return shim._Objects(*args, line)

        kind = shim.make_fed_proxy(FedBase, Pickling, open_)
        if said_as == "positional":
            proxies.append(kind(addresses, name, "job", {}, {"timeout_in_ms": 1}))
        else:
            proxies.append(
                kind(addresses=addresses, self_party=name, job_name="job", tls_config=None)
            )
    alice, bob = proxies
    assert alice.concurrent()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda proxy: proxy.start(), proxies))
    assert alice.send("bob", {"weights": [1, 2]}, 3) is True
    assert bob.send("alice", "for alice", 3) is True
    assert bob.recv("alice", 3) == {"weights": [1, 2]}
    assert alice.recv("bob", 3) == "for alice"
    for proxy in proxies:
        proxy.stop()
        proxy.stop()


def test_the_program_finds_the_shim_and_the_sitecustomize_behind_it(tmp_path: Path) -> None:
    """In an interpreter of its own, where the directory of the shim comes first."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.behind = True")
    (tmp_path / "spu").mkdir()
    (tmp_path / "spu" / "__init__.py").write_text("")
    (tmp_path / "spu" / "libspu.py").write_text(
        "class link:\n"
        "    class Context: pass\n"
        "    def create_brpc(desc, rank): raise SystemExit('SPU listens')\n"
    )
    program = (
        "import sys; from spu.libspu import link\n"
        "assert sys.behind\n"
        "assert 'redislink' not in sys.modules\n"
        "class D: id = 'x'; parties = []; enable_ssl = False; link_type = 'normal'\n"
        "try: link.create_brpc(D(), 0)\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = {**os.environ, **command.variables("127.0.0.1:1", TOKEN, str(tmp_path))}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "the sidecar at 127.0.0.1:1 cannot be reached" in ran.stdout, ran.stderr
