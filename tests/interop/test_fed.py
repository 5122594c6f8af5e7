"""Objects of SecretFlow's fed and of RayFed over endpoints, with stand-ins for both packages."""

from __future__ import annotations

import pickle
import secrets
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from redislink.errors import ConfigError
from redislink.interop import fed, objects, rayfed
from redislink.interop.objects import Objects
from redislink.interop.parties import Parties
from redislink.interop.sidecar.links import Links, Wanted
from redislink.settings import RedisLinkSettings

ADDRESSES = {"bob": "b:1", "alice": "a:1"}
_who = threading.local()


class Base:
    """As ``SenderReceiverProxy`` of both: they differ in the order of their arguments."""

    def __init__(self, *args: Any) -> None:
        self._job_name = "job"
        self._addresses, self._party = (args if isinstance(args[0], dict) else args[1:])[:2]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The modules of SecretFlow and RayFed that are imported; returns SecretFlow's ``fed.api``."""
    api = types.ModuleType("secretflow.distributed.fed.api")
    limited: list[str] = []
    for name, content in {
        "secretflow.distributed.fed.api": {},
        "secretflow.distributed.fed.proxy.base": {"SenderReceiverProxy": Base},
        "secretflow.utils.secure_pickle": {
            "dumps": pickle.dumps,
            "loads": lambda data, filter_type: pickle.loads(data),
            "FilterType": types.SimpleNamespace(BLACKLIST=1),
        },
        "fed.proxy.base_proxy": {"SenderReceiverProxy": Base},
        "fed._private.serialization_utils": {
            "_apply_loads_function_with_whitelist": lambda: limited.append("limited")
        },
    }.items():
        module = api if name == api.__name__ else types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    api.limited = limited  # type: ignore[attr-defined]
    return api


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of each party: that of its thread."""
    path = tmp_path / "cluster.yaml"
    path.write_text(
        f"session: objects\nsecurity: none\nbroker: fakeredis://{secrets.token_hex(6)}\n"
        "parties: [alice, bob]\n"
    )

    def of_this_thread() -> Parties:
        times = {"connect_timeout": 20.0, "close_timeout": 2.0}
        settings = {"cluster_file": path, "party": _who.party}
        return Parties(RedisLinkSettings.load(_env_file=None, **settings, **times))

    monkeypatch.setattr(objects, "Parties", of_this_thread)


def both(function: Any) -> list[Any]:
    """Call a function as alice and as bob at once."""

    def call(party: str) -> Any:
        _who.party = party
        return function(party)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, ["alice", "bob"]))


@pytest.fixture
def proxies(request: pytest.FixtureRequest, packages: Any) -> Iterator[list[Any]]:
    """Those of alice and bob, started."""

    def start(party: str) -> Any:
        if request.param == "fed":
            fed.install(packages)
            assert packages.GrpcProxy is packages.BrpcLinkProxy
            proxy = packages.GrpcProxy(ADDRESSES, party, "job", {}, {})
        else:
            proxy = rayfed.RayFedProxy(ADDRESSES, party, {}, {})
        proxy.start()
        return proxy

    made = both(start)
    yield made
    for proxy in made:
        proxy.stop()
        proxy.stop()


@pytest.mark.parametrize("proxies", ["fed"], indirect=True)
def test_secretflow(proxies: list[Any]) -> None:
    alice, bob = proxies
    assert alice.concurrent()
    assert alice.send("bob", {"x": 1}, 2)
    assert bob.send("alice", [3], 2)
    assert bob.recv("alice", 2) == {"x": 1}
    assert alice.recv("bob", 2) == [3]


@pytest.mark.parametrize("proxies", ["rayfed"], indirect=True)
def test_rayfed(proxies: list[Any], packages: Any) -> None:
    alice, bob = proxies
    assert alice.is_ready() == (True, "")
    assert alice.send("bob", {"x": 1}, "1#0", 2)
    assert bob.get_data("alice", "1#0", 2) == {"x": 1}
    assert packages.limited == ["limited"], "what RayFed lets be unpickled"


def test_rayfed_says_why_it_is_not_ready() -> None:
    _who.party = "alice"
    proxy = rayfed.RayFedProxy({"alice": "a:1", "dave": "d:1"}, "alice")
    proxy.start()
    is_ready, why = proxy.is_ready()
    assert not is_ready
    assert "dave is not in session 'objects'" in why
    proxy.stop()


def test_a_party_beside_a_sidecar_meets_one_without() -> None:
    def join(party: str) -> Any:
        if party == "bob":
            return Objects("fed", "job", list(ADDRESSES), "bob")
        links = Links(objects.Parties(), lambda _: None)
        wanted = Wanted("fed job", (("alice", ""), ("bob", "")), 0)
        return links.make(links.enter("program", lasting=False), wanted)

    link, direct = both(join)
    link.send("bob", "7", b"through the sidecar")
    assert direct.recv("alice", "7") == b"through the sidecar"
    direct.send("alice", "7", b"directly")
    assert link.recv("bob", "7", 10) == b"directly"
    both(lambda party: (link if party == "alice" else direct).close())


def test_a_process_is_one_party_only() -> None:
    _who.party = "alice"
    with pytest.raises(ConfigError, match="rank 1 is bob, and this process runs as alice"):
        Objects("fed", "job", list(ADDRESSES), "bob")
