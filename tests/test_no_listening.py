"""The promise: no party listens, and each talks to the broker alone.

Real processes run an SPU computation; their sockets are read from the operating system, while
they compute and at a moment when all links are up and every party is held still.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from redislink.broker import Broker, EgressProxy, EmbeddedBroker
from redislink.cli import main
from redislink.cli.parties import SocketWatch, broker_addresses
from redislink.cluster.trial import write_trial
from tests.support.agents import PATIENCE, world
from tests.support.forking import ForkedCommand
from tests.support.waiting import wait_until

PARTIES = ("alice", "bob", "carol")
PROGRAM = """
    import os
    import sys
    import time
    import numpy as np
    import spu
    import redislink
    from redislink.spu import create_link, runtime_config
    from spu.utils import frontend
    from spu import libspu

    with redislink.connect() as me, create_link("SP0", me) as link:
        runtime = spu.Runtime(link.context, runtime_config(me.cluster.device("SP0")))
        io = spu.Io(link.world_size, runtime_config(me.cluster.device("SP0")))
        x = np.arange(6.0).reshape(2, 3)
        shares = io.make_shares(x, libspu.Visibility.VIS_SECRET)
        runtime.set_var("x", shares[link.rank])
        program, _ = frontend.compile(
            frontend.Kind.JAX, lambda x: x @ x.T, [x], {}, ["x"],
            [libspu.Visibility.VIS_SECRET], lambda outputs: ["y"],
        )
        runtime.run(program)
        print("computed", flush=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
"""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextlib.contextmanager
def _watched_run(
    directory: Path, url: str, mode: str
) -> Iterator[tuple[list[SocketWatch], list[SocketWatch]]]:
    """The parties, computed and held still: watches of the whole run, and of that moment."""
    ports = _free_ports(len(PARTIES))
    cluster = directory / "cluster.yaml"
    content = {
        "session": f"sockets-{mode}",
        "parties": [
            {"name": name, "brpc_address": f"127.0.0.1:{port}"}
            for name, port in zip(PARTIES, ports, strict=True)
        ],
        "devices": {"SP0": {"kind": "SPU", "members": list(PARTIES)}},
    }
    key_files = {name: directory / name / "identity.key" for name in PARTIES}
    write_trial(content, cluster, key_files, "of a test")
    program = directory / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"REDISLINK_BROKER_URL": url, "REDISLINK_LINK_MODE": mode}
    end = directory / "end"
    with contextlib.ExitStack() as stack:
        processes = []
        for name in PARTIES:
            process = ForkedCommand(
                [
                    *("run", "--cluster", str(cluster), "--party", name),
                    *("--identity", str(key_files[name]), str(program), str(end)),
                ],
                cwd=directory,
                env=environment,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        throughout = [SocketWatch(process.pid) for process in processes]
        computed = threading.Event()

        def watch() -> None:
            while not computed.wait(0.02):
                for each in throughout:
                    each.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "computed\n"
        finally:
            computed.set()
            thread.join()
        at_rest = [SocketWatch(process.pid) for process in processes]
        give_up = time.monotonic() + 10
        for each in at_rest:
            each.look()
            # Of other processes the kernel's list of sockets is no snapshot: once all was missing.
            while not each.remotes and time.monotonic() < give_up:
                each.look()
        yield throughout, at_rest
        end.touch()
        assert [process.wait(60) for process in processes] == [0, 0, 0]


@pytest.mark.slow
def test_parties_do_not_listen_and_talk_to_the_broker_alone(tmp_path: Path) -> None:
    with (
        EmbeddedBroker() as broker,
        _watched_run(tmp_path, broker.url, "channels") as (throughout, at_rest),
    ):
        for when, watches in (("throughout", throughout), ("at rest", at_rest)):
            for name, watch in zip(PARTIES, watches, strict=True):
                assert watch.looks > 0, (name, when)
                assert watch.listening == 0, (name, when)
                assert watch.remotes == broker_addresses(broker.url), (name, when, watch.looks)


@pytest.mark.slow
def test_the_same_look_sees_brpc_listen(tmp_path: Path) -> None:
    """The control: over brpc, the same program is seen to listen and to talk to its peers."""
    with (
        EmbeddedBroker() as broker,
        _watched_run(tmp_path, broker.url, "brpc") as (_, at_rest),
    ):
        for name, watch in zip(PARTIES, at_rest, strict=True):
            assert watch.listening == 1, name
            assert watch.remotes > broker_addresses(broker.url), name


@pytest.mark.slow
def test_agents_and_their_jobs_do_not_listen(tmp_path: Path) -> None:
    """Nor do they while a person decides: that goes by files, not by any socket."""
    with EmbeddedBroker() as broker, world(tmp_path, broker.url, alice={"asked": "ask"}) as stage:
        parties = list(stage.parties.values())
        watches = [SocketWatch(party.process.pid) for party in parties if party.process]
        job = stage.driver.offer(stage.program, "asked")
        stage.driver.until_states(job, alice="waiting", bob="accepted")
        for watch in watches:
            watch.look()
        with pytest.raises(SystemExit):
            main(["jobs", "approve", job, "--work", str(stage.parties["alice"].work)])
        for party in parties:
            wait_until(lambda party=party: "met" in party.jobs_log(job), PATIENCE)  # type: ignore[misc]
        for watch in watches:
            watch.look()
            assert watch.looks == 2
            assert watch.listening == 0
            assert watch.remotes == broker_addresses(broker.url)
        for party in parties:
            assert party.process is not None
            unix = psutil.Process(party.process.pid).net_connections("unix")
            assert not any(each.laddr for each in unix), "no unix socket has a name"


def test_watch_sees_listening_tcp_and_open_udp() -> None:
    watch = SocketWatch(os.getpid())
    watch.look()
    before = watch.listening
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        with socket.create_connection(tcp.getsockname()):
            watch.look()
    assert watch.listening == before + 2
    watch.look()
    assert watch.listening == before + 2, "the most that was seen"


def test_watch_of_a_process_that_has_ended_has_not_looked() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = SocketWatch(process.pid)
    process.communicate(b"\n")
    watch.look()
    assert watch.looks == 0


def test_addresses_of_a_broker() -> None:
    assert broker_addresses("redis://127.0.0.1:7000/0") == {("127.0.0.1", 7000)}
    assert broker_addresses("rediss://user:p%40ss@[::1]/0") == {("::1", 6379)}
    assert broker_addresses("unix:///run/broker.sock") == set()
    several = broker_addresses(
        "redis+cluster://127.0.0.1:1,[::1]:2,nobody.invalid", [("127.0.0.2", 3)]
    )
    assert several == {("127.0.0.1", 1), ("::1", 2), ("127.0.0.2", 3)}
    # A server behind a proxy is dialled there, and its own name is not resolved.
    proxy = EgressProxy("http://127.0.0.3:3128", no_proxy="127.0.0.0/8", named_by="HTTPS_PROXY")
    broker = Broker("redis://nobody.invalid", proxy=proxy)
    behind = broker_addresses("redis://nobody.invalid", [("127.0.0.2", 3)], broker.proxy_to)
    assert behind == {("127.0.0.3", 3128), ("127.0.0.2", 3)}
