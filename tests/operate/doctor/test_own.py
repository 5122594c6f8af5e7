"""The doctor on what the party itself has: files, keys, settings."""

from __future__ import annotations

import pytest

from redislink import ConfigError, RedisLinkSettings
from redislink.broker import EmbeddedBroker
from redislink.cluster.trial import write_trial
from redislink.identity.keypair import fingerprint
from redislink.identity.signing import SigningKey, format_signing_key
from redislink.operate.doctor import CHECKS, FIRST, Blame, Case, Level, examine
from tests.conftest import IDENTITIES, make_cluster
from tests.operate.doctor.conftest import Ask


def test_all_is_well(one_server: EmbeddedBroker, doctor: Ask) -> None:
    told = doctor(one_server.url)
    assert told.not_tried == {}
    assert told.report.worst is Level.WARN, "there are no users per party"
    assert told.report.blame is None
    assert {f.name: f.level for f in told.report.findings if f.level is not Level.PASS} == {
        "other parties' lists": Level.WARN,
        "same cluster file": Level.SKIP,
    }
    assert told.report.seconds < 5
    every = [FIRST, *(check.name for check in CHECKS)]
    # For TLS, and for brokers of several servers.
    for_others = ["proxy", "client certificate", "server certificate", "CA certificate", "replicas"]
    assert [f.name for f in told.report.findings] == [n for n in every if n not in for_others]


def test_no_cluster_file(doctor: Ask) -> None:
    def begin() -> None:
        raise ConfigError("cluster file x.yaml: No such file: check the path")

    report = examine(begin)  # type: ignore[arg-type]
    (finding,) = report.findings
    assert (finding.name, finding.level) == ("cluster file", Level.FAIL)
    assert finding.text == "cluster file x.yaml: No such file"
    assert finding.remedy == "check the path"
    assert report.blame is Blame.OURS
    assert {name for name, _ in report.not_tried} == {check.name for check in CHECKS}


def test_the_digest_and_the_fingerprints_are_shown(one_server: EmbeddedBroker, doctor: Ask) -> None:
    spec = make_cluster("", 3, broker=None)
    told = doctor(one_server.url, spec=spec)
    told.check("cluster file", Level.PASS, f"digest {spec.digest().hex()[:12]}", spec.session)
    shown = [f"{n} {fingerprint(IDENTITIES[n].public_key)}" for n in ("alice", "bob", "carol")]
    told.check("keys", Level.PASS, *shown)


def test_the_identity_of_another(one_server: EmbeddedBroker, doctor: Ask, key_files) -> None:
    told = doctor(one_server.url, identity_file=key_files["bob"])
    own = fingerprint(IDENTITIES["bob"].public_key)
    finding = told.check("keys", Level.FAIL, own, "that of 'bob'", "REDISLINK_IDENTITY_FILE")
    assert finding.blame is Blame.OURS
    told.check("login", Level.PASS)
    told.check("commands", Level.PASS)


def test_a_signing_key_of_another(one_server: EmbeddedBroker, doctor: Ask) -> None:
    spec = make_cluster("", 3, broker=None)
    for owner, level in (("alice", Level.PASS), ("bob", Level.FAIL)):
        key = format_signing_key(SigningKey(IDENTITIES[owner]).public_key)
        first = spec.parties[0].model_copy(update={"signing_key": key})
        changed = spec.model_copy(update={"parties": (first, *spec.parties[1:])})
        words = () if level is Level.PASS else ("signing_key for alice", "redislink audit key")
        doctor(one_server.url, spec=changed).check("keys", level, *words)


def test_no_identity(doctor: Ask) -> None:
    told = doctor("redis://127.0.0.1:1", identity_file=None)
    told.check("keys", Level.FAIL, "sealed and REDISLINK_IDENTITY_FILE is not set", "keygen alice")


def test_an_identity_that_others_may_read(doctor: Ask, tmp_path) -> None:
    path = tmp_path / "alice.key"
    IDENTITIES["alice"].save(path, "of a test")
    path.chmod(0o644)
    told = doctor("redis://127.0.0.1:1", identity_file=path)
    told.check("keys", Level.FAIL, "others on this machine can read it", f"chmod 600 {path}")


@pytest.mark.parametrize(
    ("protocol", "level", "words"),
    [
        ("CHEETAH", Level.PASS, "D runs CHEETAH: nobody is trusted"),
        ("SEMI2K", Level.WARN, "D runs SEMI2K with TrustedFirstParty: alice, the first member"),
        ("REF2K", Level.WARN, "D runs REF2K: nothing is secret"),
    ],
)
def test_whom_each_device_trusts(doctor: Ask, protocol: str, level: Level, words: str) -> None:
    device = {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": protocol}}
    spec = make_cluster("", 3, broker=None, devices={"D": device})
    told = doctor("redis://127.0.0.1:1", spec=spec)
    told.check("protocols", level, words)


def test_security_none(doctor: Ask) -> None:
    spec = make_cluster("", 2, broker=None, security="none")
    told = doctor("redis://127.0.0.1:1", spec=spec)
    told.check("keys", Level.WARN, "the broker can read and change everything", "keygen")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, ("no broker", "set REDISLINK_BROKER_URL")),
        ("http://host", ("unknown scheme 'http'", "redis://")),
        ("redis://:s3cret@", ("without a host",)),
    ],
)
def test_a_url_that_cannot_be_used(doctor: Ask, url, words) -> None:
    told = doctor(url)
    finding = told.check("broker URL", Level.FAIL, *words)
    assert finding.blame is Blame.OURS
    assert told.report.broker == ""
    assert "s3cret" not in str(told.report.findings)
    assert told.not_tried["TCP"] == "broker URL failed"
    assert told.not_tried["bandwidth"] == "broker URL failed"


def test_a_password_in_the_cluster_file(doctor: Ask) -> None:
    told = doctor(None, spec=make_cluster("redis://:s3cret@127.0.0.1:1"))
    finding = told.check("broker URL", Level.WARN, "password in the cluster file")
    assert "s3cret" not in finding.text


def test_brokers_without_a_network(doctor: Ask, tmp_path) -> None:
    told = doctor("fakeredis://doctor")
    assert not {"name resolution", "TCP", "TLS"} & {f.name for f in told.report.findings}
    told.check("commands", Level.PASS)
    told.check("bandwidth", Level.PASS)
    path = tmp_path / "valkey.sock"
    with EmbeddedBroker(options={"unixsocket": str(path)}):
        told = doctor(f"unix://{path}")
        told.check("commands", Level.PASS)
        told.check("TLS", Level.PASS, "on this machine")
    path.unlink(missing_ok=True)
    doctor(f"unix://{path}").check("login", Level.FAIL, "no connection")


def test_the_cluster_files_broker_is_used(one_server: EmbeddedBroker, doctor: Ask) -> None:
    told = doctor(None, spec=make_cluster(one_server.url))
    told.check("broker URL", Level.PASS, "from the cluster file")
    told.check("login", Level.PASS)


def test_no_time(one_server: EmbeddedBroker) -> None:
    settings = RedisLinkSettings(_env_file=None, broker_url=one_server.url)
    report = examine(lambda: Case(settings, make_cluster(""), "alice"), seconds=0)
    assert dict(report.not_tried)["keys"] == "the time is up"
    assert [finding.name for finding in report.findings] == ["cluster file"]


def test_a_trial_passes(one_server: EmbeddedBroker, doctor: Ask, tmp_path) -> None:
    keys = {name: tmp_path / f"{name}.key" for name in ("alice", "bob")}
    content = {"session": "trial", "parties": list(keys), "devices": {}}
    spec = write_trial(content, tmp_path / "cluster.yaml", keys, "trial")
    told = doctor(one_server.url, spec=spec, identity_file=keys["alice"])
    assert told.report.blame is None
