"""Fields of SPU's RuntimeConfig: each can be given, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from spu import libspu

from redislink import ClusterSpec, ConfigError
from redislink.cluster.runtime import (
    REFUSED,
    CheetahConfig,
    ClientSslConfig,
    SpuRuntime,
    TtpBeaverConfig,
)
from redislink.spu.link import runtime_config

TTP = {"server_host": "10.0.0.9:9449", "server_public_key": "-----BEGIN PUBLIC KEY-----"}


def _config(protocol: str, runtime: Any) -> Any:
    members = ["a", "b", "c"] if protocol == "ABY3" else ["a", "b"]
    device = {"kind": "SPU", "members": members}
    device["config"] = {"protocol": protocol, "field": "FM128", "fxp_fraction_bits": 20}
    device["config"]["runtime"] = runtime
    spec = ClusterSpec.parse({"session": "s", "parties": ["a", "b", "c"], "devices": {"D": device}})
    return runtime_config(spec.device("D"))


def _fields(kind: type) -> set[str]:
    return {name for name, member in vars(kind).items() if isinstance(member, property)}


def test_every_field_of_spu_is_known_or_refused() -> None:
    assert _fields(libspu.RuntimeConfig) == {*SpuRuntime.model_fields, *REFUSED}
    assert _fields(libspu.CheetahConfig) == set(CheetahConfig.model_fields)
    assert _fields(libspu.TTPBeaverConfig) == set(TtpBeaverConfig.model_fields)
    assert _fields(libspu.ClientSSLConfig) == set(ClientSslConfig.model_fields)


SCHEMA = SpuRuntime.model_json_schema()


def _choices(field: str) -> list[Any]:
    """Values that a field takes: each of a choice, else one that is not SPU's default."""
    schema = SCHEMA["properties"][field]["anyOf"][0]
    return schema.get("enum") or [{"boolean": True, "integer": 4099}[schema["type"]]]


SIMPLE = [
    (field, value)
    for field in SpuRuntime.model_fields
    if field not in ("ttp_beaver_config", "cheetah_2pc_config", "beaver_type")
    for value in _choices(field)
]


@pytest.mark.parametrize(("field", "value"), SIMPLE)
def test_what_is_given_comes_to_spu_and_the_rest_keeps_its_default(field: str, value: Any) -> None:
    config, usual = _config("ABY3", {field: value}), libspu.RuntimeConfig()
    got = getattr(config, field)
    assert getattr(got, "name", got) == value
    assert (config.protocol.name, config.field.name) == ("ABY3", "FM128")
    assert config.fxp_fraction_bits == 20
    rest = _fields(libspu.RuntimeConfig) - {
        field, "protocol", "field", "fxp_fraction_bits", "ttp_beaver_config", "cheetah_2pc_config"
    }  # fmt: skip
    assert all(getattr(config, name) == getattr(usual, name) for name in rest)


@pytest.mark.parametrize(
    ("given", "encoded"),
    [
        ({"disable_matmul_pack": True}, b"\x08\x01"),
        ({"enable_mul_lsb_error": True}, b"\x10\x01"),
        ({"ot_kind": "YACL_Ferret"}, b""),
        ({"ot_kind": "YACL_Softspoken"}, b"\x18\x01"),
        ({"ot_kind": "EMP_Ferret", "disable_matmul_pack": True}, b"\x08\x01\x18\x02"),
    ],
)
def test_how_cheetah_computes(given: Any, encoded: bytes) -> None:
    """Spu's Python cannot read ot_kind back: what it would send of it is looked at."""
    packed = _config("CHEETAH", {"cheetah_2pc_config": given}).SerializeToString()
    assert b"\xc2\x04" + bytes([len(encoded)]) + encoded in packed


def test_a_third_party_for_beavers() -> None:
    ssl = {"certificate": "/c.pem", "private_key": "/k.pem", "ca_file_path": "/ca.pem"}
    more = {"transport_protocol": "h2", "adjust_rank": 1, "ssl_config": ssl}
    third = {"beaver_type": "TrustedThirdParty", "ttp_beaver_config": TTP | more}
    config = _config("SEMI2K", third)
    assert config.beaver_type.name == "TrustedThirdParty"
    packed = config.SerializeToString()
    for text in (*TTP.values(), "SM2", "h2", *ssl.values()):
        assert text.encode() in packed
    assert b"\x20\x01" in packed, "verify_depth: SPU takes 0 as no check"


def test_a_device_runs_with_what_is_given() -> None:
    import numpy as np
    from spu.utils.simulation import Simulator, sim_jax

    config = _config("CHEETAH", {"cheetah_2pc_config": {"ot_kind": "YACL_Softspoken"}})
    x = np.array([-1.5, 2], np.float32)
    got = sim_jax(Simulator(2, config), lambda x: x * x)(x)
    assert np.allclose(got, x * x, atol=1e-2)


@pytest.mark.parametrize(
    ("protocol", "runtime", "words"),
    [
        ("SEMI2K", {"beaver_type": "MultiParty"}, "MultiParty is in SPU's list, but SPU ref"),
        ("SEMI2K", {"beaver_type": "Nobody"}, "'TrustedFirstParty' or 'TrustedThirdParty'"),
        ("SEMI2K", {"beaver_type": "TrustedThirdParty"}, "add runtime.ttp_beaver_config"),
        ("SEMI2K", {"ttp_beaver_config": TTP}, "no effect without beaver_type: TrustedThirdParty"),
        ("SEMI2K", {"ttp_beaver_config": "1.2.3.4:9"}, "has fields of its own: write ttp_beaver"),
        ("SEMI2K", {"ttp_beaver_config": {"server_host": "h:1"}}, "server_public_key: is missing"),
        (
            "SEMI2K",
            {"cheetah_2pc_config": {}},
            "only CHEETAH has runtime.cheetah_2pc_config, and this is SEMI2K",
        ),
        ("CHEETAH", {"cheetah_2pc_config": "YACL_Softspoken"}, "any of disable_matmul_pack, ena"),
        ("CHEETAH", {"cheetah_2pc_config": {"ot_kind": "X"}}, "'YACL_Ferret', 'YACL_Softspoken'"),
        (
            "CHEETAH",
            {"beaver_type": "TrustedFirstParty"},
            "only SEMI2K has runtime.beaver_type, and this is CHEETAH",
        ),
        (
            "ABY3",
            {"ttp_beaver_config": TTP},
            "only SEMI2K has runtime.ttp_beaver_config, and this is ABY3",
        ),
        ("ABY3", {"fxp_exp_mode": 1}, "'EXP_DEFAULT', 'EXP_PADE'"),
        ("ABY3", {"fxp_exp_iters": True}, "valid integer"),
        ("ABY3", {"fxp_exp_iters": -1}, "greater than or equal to 0"),
        ("ABY3", {"fxp_exp_iters": 2**70}, "less than or equal to"),
        ("ABY3", {"enable_pphlo_trace": 1}, "valid boolean"),
        ("ABY3", {"fxp_exp_itres": 1}, "no such field"),
        *(("ABY3", {name: 1}, f"{name} cannot be set here: {REFUSED[name]}") for name in REFUSED),
        (
            "SEMI2K",
            {
                "beaver_type": "TrustedThirdParty",
                "ttp_beaver_config": TTP | {"ssl_config": {"private_key": "-----BEGIN PRIVATE"}},
            },
            "holds the key itself",
        ),
    ],
)
def test_what_spu_would_refuse_or_ignore_is_refused_in_one_line(
    protocol: str, runtime: Any, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(protocol, runtime)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert text.startswith("cluster: devices.D.config")
    assert "PRIVATE" not in text


def test_a_field_that_the_installed_spu_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from redislink.spu import link

    real = link._fields
    monkeypatch.setattr(link, "_fields", lambda c: [n for n in real(c) if n != "max_concurrency"])
    with pytest.raises(ConfigError, match="installed spu has no field max_concurrency"):
        _config("ABY3", {"max_concurrency": 3})
