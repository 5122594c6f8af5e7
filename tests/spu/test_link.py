"""SPU links in every mode give the same results; the wrong use of each is an error."""

import logging
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import spu
from spu import libspu
from spu.utils import frontend

from redislink import ConfigError, LinkError, RecvTimeout
from redislink.settings import LinkMode
from redislink.spu import create_link, runtime_config
from tests.conftest import DEVICES, connect_as, join, make_cluster, quick_settings, run_parties
from tests.support.children import error_of, in_child

X = np.linspace(-2, 2, 6).reshape(3, 2)
Y = np.cos(X)


def program(x, y):
    return jnp.dot(x, y.T), jnp.where(x > y, x * y, x), jnp.sort(x.sum(axis=1))


def compiled():
    secret = [spu.Visibility.VIS_SECRET] * 2
    names = lambda flat: [f"out{i}" for i in range(len(flat))]  # noqa: E731
    executable, _ = frontend.compile(
        frontend.Kind.JAX, program, [X, Y], {}, ["x", "y"], secret, names
    )
    return executable


def run_program(cluster, device, make_link):
    """Run `program` at every member; returns its outputs in the clear."""
    spec = cluster.device(device)
    config = runtime_config(spec)
    io = spu.Io(len(spec.members), config)
    shares = {
        "x": io.make_shares(X, spu.Visibility.VIS_SECRET),
        "y": io.make_shares(Y, spu.Visibility.VIS_SECRET),
    }
    executable = compiled()

    def member(rank, name):
        with make_link(name) as communicator:
            assert (communicator.rank, communicator.world_size) == (rank, len(spec.members))
            runtime = spu.Runtime(communicator.context, config)
            for variable, parts in shares.items():
                runtime.set_var(variable, parts[rank])
            runtime.run(executable)
            return [runtime.get_var(output) for output in executable.output_names]

    outputs = run_parties(*(lambda r=r, n=n: member(r, n) for r, n in enumerate(spec.members)))
    return [io.reconstruct(list(parts)) for parts in zip(*outputs, strict=True)]


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


@pytest.fixture
def over_mode(broker_url):
    endpoints = []

    def run(device, mode):
        if mode is LinkMode.CHANNELS:
            cluster = make_cluster(broker_url)
            endpoints.extend(join(cluster))
            by_name = {endpoint.party: endpoint for endpoint in endpoints}
            return run_program(cluster, device, lambda name: create_link(device, by_name[name]))
        parties = [
            {"name": name, "brpc_address": address}
            for name, address in zip(("alice", "bob", "carol"), free_addresses(3), strict=True)
        ]
        cluster = make_cluster(broker_url, parties=parties)
        settings = quick_settings()
        return run_program(
            cluster,
            device,
            lambda name: create_link(
                device, cluster=cluster, party=name, mode=mode, settings=settings
            ),
        )

    yield run
    if endpoints:
        run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker_url", "device"),
    [("fakeredis", "ABY3"), *(("valkey", device) for device in DEVICES)],
    indirect=["broker_url"],
)
def test_the_modes_agree(over_mode, device):
    outputs = {mode: over_mode(device, mode) for mode in LinkMode}
    expected = program(X, Y)
    for mode, values in outputs.items():
        for value, from_mem, plain in zip(values, outputs[LinkMode.MEM], expected, strict=True):
            np.testing.assert_allclose(value, from_mem, atol=1e-3, err_msg=str(mode))
            np.testing.assert_allclose(value, plain, atol=1e-2, err_msg=str(mode))


def test_collectives_and_spawned_links(mesh, broker_url):
    endpoints = mesh(broker_url, 3)

    def work(endpoint):
        with create_link("ABY3", endpoint) as communicator:
            context = communicator.context
            for c in (context, context.spawn()):
                me = endpoint.party
                assert c.all_gather(me) == ["alice", "bob", "carol"]
                assert c.broadcast(me, 1) == "bob"
                assert c.gather(me, 2) == (["alice", "bob", "carol"] if c.rank == 2 else [])
                c.barrier()
                c.send_async(c.next_rank(), me)
                assert c.recv(c.next_rank(2)) == [b"carol", b"alice", b"bob"][c.rank]

    run_parties(*(lambda e=e: work(e) for e in endpoints))


def test_a_device_may_be_linked_again_and_two_devices_at_once(mesh, broker_url):
    endpoints = mesh(broker_url, 3)

    def work(endpoint):
        for _ in range(2):
            with create_link("ABY3", endpoint) as communicator:
                if endpoint.party != "bob":
                    with create_link("SEMI2K", endpoint) as other:
                        assert other.context.all_gather(endpoint.party) == ["alice", "carol"]
                assert len(communicator.context.all_gather("")) == 3

    run_parties(*(lambda e=e: work(e) for e in endpoints))


@pytest.fixture
def cluster():
    return make_cluster("fakeredis://unused")


class TestMode:
    def test_argument_over_environment_over_cluster_file(self, monkeypatch):
        from redislink.spu.link import _choose_mode

        by_file = {
            use: make_cluster(
                "fakeredis://unused",
                devices={"S": DEVICES["ABY3"] | {"config": {"use_redis_channel": use}}},
            ).device("S")
            for use in (True, False)
        }
        nothing_set, mem_set = quick_settings(), quick_settings(link_mode="mem")
        assert _choose_mode(None, nothing_set, by_file[True], "alice") is LinkMode.CHANNELS
        assert _choose_mode(None, nothing_set, by_file[False], "alice") is LinkMode.BRPC
        assert _choose_mode(None, mem_set, by_file[True], "alice") is LinkMode.MEM
        assert _choose_mode("brpc", mem_set, by_file[True], "alice") is LinkMode.BRPC

    def test_the_environment_variable(self, monkeypatch):
        monkeypatch.setenv("REDISLINK_LINK_MODE", "brpc")
        assert quick_settings().link_mode is LinkMode.BRPC

    @pytest.mark.parametrize("gone", ["create_with_channels", "IChannel"])
    def test_an_spu_without_channels_is_refused_and_takes_no_brpc(self, monkeypatch, cluster, gone):
        monkeypatch.delattr(libspu.link, gone)
        monkeypatch.setattr(libspu.link, "create_brpc", None)
        for mode in (None, "channels"):
            with pytest.raises(LinkError, match=r"redislink sidecar.* or choose mode=brpc"):
                create_link("ABY3", cluster=cluster, party="alice", mode=mode)

    def test_an_spu_without_channels_takes_brpc_by_name(self, monkeypatch, cluster):
        monkeypatch.delattr(libspu.link, "create_with_channels")
        with pytest.raises(ConfigError, match="no brpc_address"):  # the next that brpc needs
            create_link("ABY3", cluster=cluster, party="alice", mode="brpc")

    @pytest.mark.parametrize(("device", "warned"), [("SEMI2K", True), ("ABY3", False)])
    def test_a_link_without_endpoint_says_whom_its_device_trusts(
        self, cluster, caplog, device, warned
    ):
        with caplog.at_level(logging.WARNING, "redislink"), pytest.raises(LinkError):
            create_link(device, cluster=cluster, party="alice", mode="channels")
        words = "alice: device SEMI2K runs SEMI2K with TrustedFirstParty: alice, the first member"
        assert (words in caplog.text) is warned

    def test_an_unknown_mode(self, cluster):
        with pytest.raises(LinkError, match="use channels, brpc, mem"):
            create_link("ABY3", cluster=cluster, party="alice", mode="pigeon")


class TestWrongUse:
    def test_no_endpoint_for_channels(self, cluster):
        with pytest.raises(LinkError, match="needs an endpoint"):
            create_link("ABY3", cluster=cluster, party="alice", mode="channels")

    def test_nothing_at_all(self):
        with pytest.raises(LinkError, match="pass either"):
            create_link("ABY3")

    def test_not_a_member(self, cluster):
        with pytest.raises(ConfigError, match="'bob' is not a member of device 'SEMI2K'"):
            create_link("SEMI2K", cluster=cluster, party="bob", mode="mem")

    def test_no_such_device(self, cluster):
        with pytest.raises(ConfigError, match="it has ABY3, SEMI2K, CHEETAH"):
            create_link("SP9", cluster=cluster, party="bob", mode="mem")

    def test_brpc_without_an_address(self, cluster):
        with pytest.raises(ConfigError, match="no brpc_address"):
            create_link("ABY3", cluster=cluster, party="alice", mode="brpc")

    def test_a_peer_that_makes_no_link(self, mesh):
        alice, *_ = mesh("fakeredis://lonely", recv_timeout=0.1)
        with pytest.raises((LinkError, RecvTimeout), match=r"bob|carol"):
            create_link("ABY3", alice)


class TestRuntimeConfig:
    def config(self, **changes):
        device = DEVICES["ABY3"] | {"config": changes}
        return runtime_config(make_cluster("fakeredis://x", devices={"S": device}).device("S"))

    def test_fields(self):
        config = self.config(
            protocol="ABY3", field="FM128", fxp_fraction_bits=30, runtime={"fxp_exp_iters": 5}
        )
        assert config.protocol == spu.ProtocolKind.ABY3
        assert config.field == spu.FieldType.FM128
        assert (config.fxp_fraction_bits, config.fxp_exp_iters) == (30, 5)

    def test_an_enum_by_its_name(self):
        config = self.config(runtime={"sigmoid_mode": "SIGMOID_REAL"})
        assert config.sigmoid_mode == spu.libspu.RuntimeConfig.SigmoidMode.SIGMOID_REAL

    @pytest.mark.parametrize(
        "runtime", [{"nonsense": 1}, {"sigmoid_mode": "X"}, {"fxp_exp_iters": "many"}]
    )
    def test_what_spu_does_not_know(self, runtime):
        with pytest.raises(ConfigError, match=r"config\.runtime"):
            self.config(runtime=runtime)


def test_connect_is_all_that_a_party_needs(broker_url):
    """Two parties, SEMI2K, from nothing: the shortest program."""
    cluster = make_cluster(
        broker_url,
        2,
        devices={
            "S": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
        },
    )

    def party(name):
        with (
            connect_as(cluster, name, quick_settings()) as endpoint,
            create_link("S", endpoint) as link,
        ):
            return link.context.all_gather(name)

    assert run_parties(lambda: party("alice"), lambda: party("bob")) == [["alice", "bob"]] * 2


LEFT_IN_A_CHILD = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import spu
from redislink import ClusterSpec, RedisLinkSettings, UsedAfterFork
from redislink.spu import create_link, runtime_config

mode, *addresses = sys.argv[1:]
members = ["alice", "bob"]
cluster = ClusterSpec.parse({
    "session": "s",
    "broker": "fakeredis://left-in-a-child",
    "security": "none",
    "parties": [{"name": n, "brpc_address": a} for n, a in zip(members, addresses)],
    "devices": {"d": {"kind": "SPU", "members": members, "config": {"protocol": "CHEETAH"}}},
})
settings = RedisLinkSettings(_env_file=None)

def make(name):
    link = create_link("d", cluster=cluster, party=name, mode=mode, settings=settings)
    return link, spu.Runtime(link.context, runtime_config(cluster.device("d")))

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        work()
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

def leave():
    with links[0]:
        pass
    try:
        with links[0]:
            1 / 0
    except ZeroDivisionError:
        pass
    try:
        links[0].context.rank
    except UsedAfterFork as error:
        os._exit(8)

pool = ThreadPoolExecutor(2)
links, runtimes = zip(*pool.map(make, members))
child(leave)
if mode == "mem":  # brpc's own clean-up at the end of a process waits for its threads for ever
    child(lambda: None)
print(*pool.map(lambda link: link.context.all_gather(f"{link.rank}"), links))
list(pool.map(lambda link: link.close(), links))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [LinkMode.MEM, LinkMode.BRPC])
def test_a_child_may_leave_a_link(mode):
    """By the end of its block and of the process; the parent goes on."""
    program = [sys.executable, "-c", LEFT_IN_A_CHILD, mode.value, *free_addresses(2)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    left = ["8", "7"] if mode is LinkMode.MEM else ["8"]
    assert done.stdout.splitlines() == [*left, "['0', '1'] ['0', '1']"]


def test_a_child_may_leave_a_link_of_channels(mesh):
    alice, bob, carol = mesh("fakeredis://left-in-a-child")

    def work(endpoint):
        with create_link("ABY3", endpoint) as link:
            said = None
            if endpoint is bob:

                def child():
                    with link:
                        pass
                    return error_of(lambda: link.context.rank)

                said = in_child(child)
            return said, link.context.all_gather(endpoint.party)

    everybody = ["alice", "bob", "carol"]
    assert run_parties(*(lambda e=e: work(e) for e in (alice, bob, carol))) == [
        *((None, everybody), ("UsedAfterFork", everybody), (None, everybody))
    ]
