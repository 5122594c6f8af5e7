"""Fixtures for every test: a broker of each kind, and parties that run as threads."""

from __future__ import annotations

import gc
import itertools
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from redislink import ClusterSpec, Endpoint, RedisLinkSettings, connect, native
from redislink.broker import Broker, EmbeddedBroker, embedded
from redislink.identity.keypair import Identity, format_public_key
from redislink.transport import rendezvous
from tests.support import constants
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.hanging import SayWhereItHangs

pytest_plugins = ["pytester", "redislink.testing.fixtures"]

# A second process beside this one makes an example take as long as it likes.
hypothesis.settings.register_profile(
    "beside others", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("beside others")

# For tests that do not connect: REDISLINK_NATIVE=0 runs all on the definitions of the leaves.
native.use(RedisLinkSettings(_env_file=None).native)

# A shell that starts `make test` in the background has it ignored, and so would the processes here
# that are to end by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # nothing that is imported and collected is garbage

_sessions = itertools.count()
EVERY_BROKER = (
    "fakeredis",
    "valkey",
    pytest.param("sentinel", marks=pytest.mark.slow),
    pytest.param("cluster", marks=pytest.mark.slow),
)
"""Kinds of brokers."""
DEVICES = {
    "ABY3": {"kind": "SPU", "members": ["alice", "bob", "carol"], "config": {"protocol": "ABY3"}},
    "SEMI2K": {"kind": "SPU", "members": ["alice", "carol"], "config": {"protocol": "SEMI2K"}},
    "CHEETAH": {"kind": "SPU", "members": ["bob", "carol"], "config": {"protocol": "CHEETAH"}},
}


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist
        config.pluginmanager.register(SayWhereItHangs())
    elif config.getoption("numprocesses", None):
        from tests.support.scheduling import TellAtOnce

        config.pluginmanager.register(TellAtOnce(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """From then on there is garbage."""
    found = yield
    gc.enable()
    return found


def pytest_collection_finish() -> None:
    """What is imported by now stays: as it is, and where no garbage collection looks at it."""
    constants.restore_changed()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # jax makes much that stays for a while


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """No module's tests leave a constant of redislink changed for those that run after them."""
    yield
    if nextitem is not None and nextitem.path == item.path:
        return  # a fixture of the module may still hold
    if changed := constants.restore_changed():
        pytest.fail(f"{item.path.name} left changed: {', '.join(changed)}", pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.scheduling import ByTest

    return ByTest(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """A report with a lone surrogate in what was logged or printed must not end the worker."""
    report = yield
    return _encodable(report)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_encodable(each) for each in value)
    return value


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedBroker]:
    """One real server for the whole run; tests keep apart by their session names."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="module", params=["valkey", "redis"])
def real_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    """A server of this module's own, with a password for its default user, the admin."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "redis":
            patch.setattr(embedded, "_server_binary", _redis_server)
        with EmbeddedBroker(password=secrets.token_urlsafe(16)) as broker:
            yield broker


def _redis_server() -> Path:
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on this machine: not tried on Redis")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.partition("v=")[2].partition(".")[0]) < 7:
        pytest.skip(f"{found} is older than Redis 7: not tried on Redis")
    return Path(found)


@pytest.fixture(scope="module")
def sentinel_group() -> Iterator[SentinelGroup]:
    """A master, its replica and a sentinel, of this module's own."""
    with SentinelGroup() as group:
        yield group


@pytest.fixture(scope="module")
def cluster_group() -> Iterator[ClusterGroup]:
    """A Redis Cluster of three masters, of this module's own."""
    with ClusterGroup() as group:
        yield group


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """A broker of one of the kinds in `EVERY_BROKER`."""
    if kind == "fakeredis":
        return f"fakeredis://test-{next(_sessions)}"
    broker = request.getfixturevalue("valkey" if kind == "valkey" else f"{kind}_group")
    return str(broker.url)


@pytest.fixture(params=["fakeredis", "valkey"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Runs a test on fakeredis and on a real server."""
    return url_of(request.param, request)


@pytest.fixture(params=EVERY_BROKER)
def every_broker_url(request: pytest.FixtureRequest) -> str:
    """Runs a test on every kind of broker; a conformance suite takes it for its `broker_url`."""
    return url_of(request.param, request)


IDENTITIES = {name: Identity.generate() for name in ("alice", "bob", "carol", "dave", "erin")}


def make_cluster(url: str, size: int = 3, **changes: Any) -> ClusterSpec:
    """A sealed cluster of alice, bob, carol, … in a session of its own."""
    names = list(IDENTITIES)[:size]
    devices = {n: d for n, d in DEVICES.items() if set(d["members"]) <= set(names)}
    content = {
        "session": f"test-{next(_sessions)}",
        "broker": url,
        "parties": [
            {"name": n, "public_key": format_public_key(IDENTITIES[n].public_key)} for n in names
        ],
        "devices": devices,
    }
    return ClusterSpec.parse(content | changes)


def quick_settings(**changes: Any) -> RedisLinkSettings:
    """Settings under which nothing in a test waits for ever, and a slow machine is no fault."""
    return RedisLinkSettings(
        _env_file=None, **({"connect_timeout": 60, "recv_timeout": 60} | changes)
    )


def run_parties(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread; return their results in order, or raise what was raised first."""
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
        for future in as_completed(futures):
            future.result()  # who fails first says why the others do
        return [future.result() for future in futures]


def join(cluster: ClusterSpec, broker: Broker | None = None, **changes: Any) -> list[Endpoint]:
    """Every party's endpoint, in rank order."""
    settings = quick_settings(**changes)
    return run_parties(
        *(
            lambda name=name: connect_as(cluster, name, settings, broker=broker)
            for name in cluster.party_names
        )
    )


def connect_as(
    cluster: ClusterSpec, name: str, settings: RedisLinkSettings | None = None, **options: Any
) -> Endpoint:
    """`connect` with the party's own identity."""
    settings = settings or quick_settings()
    return connect(cluster, name, settings, identity=IDENTITIES.get(name), **options)


@pytest.fixture
def brisk_hellos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hellos follow each other five times as fast, and so does what depends on their number."""
    monkeypatch.setattr(rendezvous, "_HELLO_INTERVAL", rendezvous._HELLO_INTERVAL / 5)
    monkeypatch.setattr(rendezvous, "_LINGER", rendezvous._LINGER / 5)


@pytest.fixture
def mesh() -> Iterator[Callable[..., list[Endpoint]]]:
    """``mesh(url, size=3)`` gives connected endpoints, closed after the test."""
    opened: list[Endpoint] = []

    def make(url: str, size: int = 3, **changes: Any) -> list[Endpoint]:
        endpoints = join(make_cluster(url, size), **changes)
        opened.extend(endpoints)
        return endpoints

    yield make
    if opened:
        run_parties(*(endpoint.close for endpoint in opened))


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start ``work``; its result or exception is the one element of the list, after a join."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def result(started: tuple[threading.Thread, list[Any]]) -> Any:
    """What `in_thread`'s work gave."""
    thread, outcome = started
    thread.join(15)
    assert len(outcome) == 1, "it has not ended"
    return outcome[0]
