"""Whom a device's protocol trusts is said by name, and the weak ones are never led to."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from redislink import ClusterSpec, ConfigError, Simulator
from redislink.cluster.protocols import PROTOCOLS, advice
from redislink.cluster.trial import trial_devices
from redislink.cluster.trust import warnings, whom_it_trusts
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties

THIRD = {
    "beaver_type": "TrustedThirdParty",
    "ttp_beaver_config": {"server_host": "h:1", "server_public_key": "k"},
}


def _spec(members: list[str], **config: Any) -> ClusterSpec:
    device = {"kind": "SPU", "members": members, "config": config}
    parties = ["alice", "bob", "carol"]
    return ClusterSpec.parse({"session": "s", "parties": parties, "devices": {"D": device}})


@pytest.mark.parametrize(
    ("members", "config", "told", "weak"),
    [
        (["alice", "bob"], {"protocol": "CHEETAH"}, "CHEETAH: nobody is trusted", False),
        (
            ["carol", "alice", "bob"], {},
            "ABY3: no two of alice, bob and carol may work together", False,
        ),
        (
            ["alice", "bob", "carol"], {"protocol": "SECURENN"},
            "SECURENN: no two of alice, bob and carol may work together", False,
        ),
        (
            ["carol", "bob"], {"protocol": "SEMI2K"},
            "SEMI2K with TrustedFirstParty: bob, the first member, makes the beavers and can read",
            True,
        ),
        (
            ["alice", "bob"],
            {"protocol": "SEMI2K", "runtime": {"beaver_type": "TrustedFirstParty"}},
            "alice, the first member", True,
        ),
        (
            ["alice", "bob"], {"protocol": "SEMI2K", "runtime": THIRD},
            "SEMI2K with TrustedThirdParty: the third party that makes the beavers", False,
        ),
        (["alice", "bob"], {"protocol": "REF2K"}, "REF2K: nothing is secret", True),
    ],
)  # fmt: skip
def test_whom_a_device_trusts(members: list[str], config: Any, told: str, weak: bool) -> None:
    spec = _spec(members, **config)
    assert whom_it_trusts(spec, "D").startswith(told) or told in whom_it_trusts(spec, "D")
    assert spec.device("D").config.spu_protocol.is_weak is weak
    assert warnings(spec) == ([f"device D runs {whom_it_trusts(spec, 'D')}"] if weak else [])


@pytest.mark.parametrize(
    ("protocol", "count"), [("ABY3", 2), ("SECURENN", 2), ("CHEETAH", 3), ("ABY3", 4)]
)
def test_a_wrong_number_of_members_leads_to_no_weak_protocol(protocol: str, count: int) -> None:
    names = [f"p{number}" for number in range(count)]
    device = {"kind": "SPU", "members": names, "config": {"protocol": protocol}}
    with pytest.raises(ConfigError) as caught:
        ClusterSpec.parse({"session": "s", "parties": names, "devices": {"D": device}})
    text = str(caught.value)
    assert text.endswith(advice())
    assert "\n" not in text
    for row in PROTOCOLS:
        assert (row.label in text) is not row.is_weak
        assert row.is_weak or row.trusts.format(members="them") in text


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_what_is_set_up_for_a_trial_is_not_weak(count: int) -> None:
    spec = Simulator(count).cluster
    assert warnings(spec) == []
    assert spec.device("SP0").config.protocol == ("CHEETAH" if count == 2 else "ABY3")
    assert trial_devices(["a", "b"], "SEMI2K")["SP0"]["config"]["runtime"] == {
        "beaver_type": "TrustedFirstParty"
    }


def test_a_weak_device_is_warned_of_at_every_start(
    broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    weak = {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}}
    cluster = make_cluster(broker_url, 2, devices={"W": weak})
    with caplog.at_level(logging.WARNING, "redislink"):
        for endpoint in run_parties(
            *(
                lambda name=name: connect_as(cluster, name, quick_settings())
                for name in cluster.party_names
            )
        ):
            endpoint.close()
    for party in cluster.party_names:
        assert any(
            record.getMessage().startswith(
                f"{party}: device W runs SEMI2K with TrustedFirstParty: alice, the first member"
            )
            for record in caplog.records
        )
