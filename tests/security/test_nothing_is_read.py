"""What a broker that reads everything learns of a whole SPU computation: no byte of any payload."""

import random
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import spu
from spu.utils import frontend

from redislink.spu import create_link, runtime_config
from redislink.transport.sending import Sending
from tests.conftest import join, make_cluster, run_parties
from tests.security.hostile_broker import ADDS_ONLY, Attacker
from tests.security.hostile_proxy import HostileProxy
from tests.spu import test_link

WINDOW = 8


def windows(content):
    """Every run of 8 bytes in it, as numbers, sorted, each once."""
    if len(content) < WINDOW:
        return np.empty(0, dtype=np.uint64)
    view = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), WINDOW)
    return np.unique(np.ascontiguousarray(view).view(np.uint64).ravel())


def is_telling(window):
    """Not zeros, or one byte again and again, as every protocol's headers hold some."""
    return len(set(int(window).to_bytes(8, "little"))) >= 4


def leaked(secrets, traffic):
    """Runs of 8 bytes of the secrets that are in the traffic."""
    mine = np.unique(np.concatenate([windows(secret) for secret in secrets]))
    found = np.intersect1d(mine, windows(traffic), assume_unique=True)
    return [window for window in found if is_telling(window)]


def test_the_check_finds_what_is_there():
    secret = bytes(range(100, 130))
    assert leaked([secret], b"x" * 50 + secret[7:16] + b"y" * 9)
    assert not leaked([secret], b"x" * 50 + secret[7:14] + b"y" * 9)


@pytest.fixture
def sent(monkeypatch):
    """Every payload that any endpoint is given to send."""
    payloads, lock, post = [], threading.Lock(), Sending.post

    def recording(self, dst, tag, data, *encoding):
        with lock:
            payloads.append(bytes(data))
        return post(self, dst, tag, data, *encoding)

    monkeypatch.setattr(Sending, "post", recording)  # every send comes through it
    return payloads


def compute(proxy, **changes):
    """The program of `tests.spu.test_link` by three parties; its outputs in the clear."""
    cluster = make_cluster(proxy.url, 3, **changes)
    endpoints = join(cluster)
    by_name = {endpoint.party: endpoint for endpoint in endpoints}
    outputs = test_link.run_program(
        cluster, "ABY3", lambda name: create_link("ABY3", by_name[name])
    )
    run_parties(*(endpoint.close for endpoint in endpoints))
    for output, plain in zip(outputs, test_link.program(test_link.X, test_link.Y), strict=True):
        np.testing.assert_allclose(output, plain, atol=1e-2)


def inputs():
    """The parties' inputs, in every form in which they could pass."""
    for values in (test_link.X, test_link.Y):
        fixed_point = np.round(values * (1 << 18)).astype(np.int64)
        for form in (values, values.astype(np.float32), fixed_point):
            yield form.tobytes()


@pytest.mark.slow
def test_sealed_no_payload_and_no_input_is_ever_seen(valkey, sent):
    with HostileProxy(valkey.port) as proxy:
        compute(proxy)
        traffic = proxy.seen_bytes()
    assert len(sent) > 100
    assert len(traffic) > sum(map(len, sent))  # all of it did go through the proxy
    assert leaked(sent, traffic) == []
    assert leaked(list(inputs()), traffic) == []
    for payload in sent:
        assert len(payload) < WINDOW or payload not in traffic


@pytest.mark.slow
def test_without_security_the_same_check_finds_all(valkey, sent):
    with HostileProxy(valkey.port) as proxy:
        compute(proxy, security="none")
        traffic = proxy.seen_bytes()
    every = np.unique(np.concatenate([windows(payload) for payload in sent]))
    telling = sum(map(is_telling, every))
    assert telling > 1000
    assert len(leaked(sent, traffic)) == telling


def logistic_regression(x, y):
    """Two steps of gradient descent."""
    weights = jnp.zeros(x.shape[1])
    for _ in range(2):
        predicted = 1 / (1 + jnp.exp(-(x @ weights)))
        weights = weights - 0.5 * x.T @ (predicted - y) / x.shape[0]
    return weights


@pytest.mark.slow
def test_a_logistic_regression_that_the_broker_reads_and_disturbs(valkey, sent):
    """It also doubles, replays, forges and flips; the model is right, and it has seen nothing."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(64, 6))
    y = (x @ rng.normal(size=6) > 0).astype(float)
    kinds = [kind for kind in ADDS_ONLY if kind != "flip each"]
    with HostileProxy(valkey.port, Attacker(random.Random(4), kinds, 0.5)) as proxy:
        cluster = make_cluster(proxy.url, 3)
        endpoints = join(cluster, tamper_limit=1_000_000)
        config = runtime_config(cluster.device("ABY3"))
        io = spu.Io(3, config)
        secret = [spu.Visibility.VIS_SECRET] * 2
        executable, _ = frontend.compile(
            frontend.Kind.JAX, logistic_regression, [x, y], {}, ["x", "y"], secret,
            lambda flat: ["weights"],
        )  # fmt: skip
        shares = [io.make_shares(value, spu.Visibility.VIS_SECRET) for value in (x, y)]

        def member(rank, endpoint):
            with create_link("ABY3", endpoint) as communicator:
                runtime = spu.Runtime(communicator.context, config)
                for name, parts in zip(("x", "y"), shares, strict=True):
                    runtime.set_var(name, parts[rank])
                runtime.run(executable)
                return runtime.get_var("weights")

        parts = run_parties(*(lambda r=r, e=e: member(r, e) for r, e in enumerate(endpoints)))
        proxy.attacker.active = False
        run_parties(*(endpoint.close for endpoint in endpoints))
        traffic = proxy.seen_bytes()
    np.testing.assert_allclose(io.reconstruct(parts), logistic_regression(x, y), atol=0.05)
    assert leaked(sent, traffic) == []
    assert leaked([x.tobytes(), x.astype(np.float32).tobytes()], traffic) == []
