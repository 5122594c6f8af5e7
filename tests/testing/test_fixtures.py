"""The fixtures that redislink has for its users' tests, used as a user would."""

from __future__ import annotations

import pytest

from redislink import Endpoint
from redislink.errors import ConfigError, RecvTimeout
from redislink.testing import Faults
from redislink.testing.fixtures import RelayMesh


def test_a_pair_over_fakeredis(relay_pair: tuple[Endpoint, Endpoint]) -> None:
    alice, bob = relay_pair
    alice.send("bob", "t", b"1")
    assert bob.recv("alice", "t") == b"1"
    assert (alice.party, bob.party) == ("alice", "bob")


@pytest.mark.parametrize("where", ["fakeredis", "embedded"])
def test_a_mesh_over_each_kind_of_broker(relay_mesh: RelayMesh, where: str) -> None:
    endpoints = relay_mesh(4, broker=where)
    for endpoint in endpoints:
        endpoint.send((endpoint.rank + 1) % 4, "ring", endpoint.party.encode())
    assert [e.recv((e.rank - 1) % 4, "ring") for e in endpoints] == [
        b"dave",
        b"alice",
        b"bob",
        b"carol",
    ]


def test_settings_devices_and_faults(relay_mesh: RelayMesh) -> None:
    devices = {
        "SP0": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
    }
    alice, bob = relay_mesh(
        2, faults=Faults(duplicate=1.0), seed=3, devices=devices, recv_timeout=0.01
    )
    assert alice.cluster.device("SP0").members
    alice.send("bob", "t", b"1")
    assert bob.recv("alice", "t", timeout=10) == b"1"
    with pytest.raises(RecvTimeout, match=r"waited 0\.01 s"):
        bob.recv("alice", "t")


@pytest.mark.parametrize("size", [-1, 0, 1, 9])
def test_too_few_or_too_many(relay_mesh: RelayMesh, size: int) -> None:
    with pytest.raises(ConfigError, match="from 2 to 8 parties"):
        relay_mesh(size)


@pytest.mark.slow
def test_in_somebody_elses_project(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        pytest_plugins = ["redislink.testing.fixtures"]

        @pytest.fixture(params=["fakeredis", "embedded"])
        def relay_broker(request):
            return request.param
        """
    )
    pytester.makepyfile(
        """
        import threading
        import pytest
        from redislink import EndpointClosed

        seen = []
        before = set(threading.enumerate())

        def test_pair(relay_pair):
            seen.extend(relay_pair)
            relay_pair[0].send("bob", "t", b"x")
            assert relay_pair[1].recv("alice", "t") == b"x"

        def test_fails_with_open_endpoints(relay_mesh):
            seen.extend(relay_mesh(3))
            raise RuntimeError("a test that fails")

        def test_all_were_closed():
            assert len(seen) == 10
            for endpoint in seen:
                with pytest.raises(EndpointClosed):
                    endpoint.send(0 if endpoint.rank else 1, "t", b"")
            begun = set(threading.enumerate()) - before
            assert not [t.name for t in begun if "redislink" in t.name]
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=2)
