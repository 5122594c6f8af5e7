"""The cluster file: what is right loads; what is wrong gives one line with file, place, remedy."""

import pytest

from redislink import ClusterSpec, ConfigError, load_cluster
from redislink.identity import format_public_key

GOOD = """
session: demo
broker: redis://127.0.0.1:6379/0
parties: [alice, {name: bob, brpc_address: "127.0.0.1:9001"}, carol]
devices:
  SP0: {kind: SPU, members: [alice, bob, carol],
        config: {protocol: ABY3, field: FM64, use_redis_channel: true}}
  PSI0: {kind: SPU, members: [bob, alice], config: {protocol: SEMI2K}}
"""


def load(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def test_a_good_file(tmp_path):
    spec = load(tmp_path, GOOD)
    assert spec.party_names == ("alice", "bob", "carol")
    assert (spec.world_size, spec.rank("carol")) == (3, 2)
    assert spec.parties[1].brpc_address == "127.0.0.1:9001"
    assert list(spec.mask("PSI0")) == [0, 1]
    assert spec.device("SP0").config.protocol == "ABY3"


def test_the_digest_covers_all_but_the_broker(tmp_path):
    spec = load(tmp_path, GOOD)
    assert load(tmp_path, GOOD.replace("127.0.0.1:6379", "other:1")).digest() == spec.digest()
    for change in (("FM64", "FM128"), ("session: demo", "session: demi"), ("carol", "carl")):
        assert load(tmp_path, GOOD.replace(*change)).digest() != spec.digest()


class TestDrivers:
    """Who may submit jobs."""

    KEYS = tuple(format_public_key(bytes([9] * 31 + [n])) for n in range(1, 4))
    FILE = f"""
session: demo
parties:
  - {{name: alice, public_key: "{KEYS[0]}"}}
  - {{name: bob, public_key: "{KEYS[1]}"}}
drivers: [{{name: dora, public_key: "{KEYS[2]}"}}]
"""

    def test_they_are_part_of_the_digest_and_compute_nothing(self, tmp_path):
        spec = load(tmp_path, self.FILE)
        assert spec.driver_names == ("dora",)
        assert spec.party_names == ("alice", "bob")
        assert list(spec.keys_for_jobs()) == ["alice", "bob", "dora"]
        assert "dora" not in spec.public_keys()
        without = load(tmp_path, self.FILE.rpartition("drivers")[0])
        assert without.drivers is None
        assert without.driver_names == ()
        none = load(tmp_path, f"{self.FILE.rpartition('drivers')[0]}drivers: []\n")
        assert len({each.digest() for each in (spec, without, none)}) == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("dora", "bob"), r"drivers: 'bob' is a party or another driver"),
            ((KEYS[2], KEYS[1]), r"drivers: 'dora' has the public_key of 'bob'"),
            ((KEYS[2], "x25519:AA=="), r"drivers\.0\.public_key: public_key must be x25519"),
            (("dora", "do ra"), r"drivers\.0\.name: driver name 'do ra' is not valid"),
            (("session: demo", f"session: {'s' * 51}"), r"with drivers, it has at most 50"),
            (("session: demo", "session: demo\nsecurity: none"), r"jobs need a sealed session"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, change, message):
        assert change[0] in self.FILE
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, self.FILE.replace(*change))

    def test_without_drivers_a_session_may_have_any_name(self, tmp_path):
        text = self.FILE.rpartition("drivers")[0].replace("demo", "s" * 64)
        assert load(tmp_path, text).session == "s" * 64

    def test_jobs_need_keys(self, tmp_path):
        text = "session: demo\nsecurity: none\nparties: [alice, bob]\n"
        with pytest.raises(ConfigError, match="jobs are sealed to their parties"):
            load(tmp_path, text).keys_for_jobs()


def test_the_broker_url_is_not_in_the_repr(tmp_path):
    assert "6379" not in repr(load(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bob", "alice"), r"parties: party 'alice' is listed twice: give each its own name"),
        (("[alice, bob, carol]", "[alice, bob, dave]"), r"SP0\.members: 'dave' is not a party"),
        (("[alice, bob, carol]", "[alice, bob]"), r"devices\.SP0: ABY3 runs between 3 members"),
        (("[bob, alice]", "[bob, bob]"), r"devices\.PSI0: members lists a party twice"),
        (("session: demo", "session: 'a b'"), r"session: session name 'a b' is not valid"),
        (("session: demo\n", ""), r"session: is missing: add it"),
        (("ABY3", "ABY4"), r"devices\.SP0\.config\.protocol: Input should be 'ABY3'"),
        (("kind: SPU, members: [b", "kind: TEE, members: [b"), r"PSI0\.kind"),
        (("field:", "feild:"), r"config\.feild: there is no such field: check the spelling"),
        (("[alice, {", "[{"), r"parties|SP0"),
        (("parties: [", "parties: [[], "), r"parties"),
        (("parties: [alice", "parties: ["), r"line \d+|parties|members"),
        (("session: demo", "session: [demo"), r"line \d+, column \d+: not valid YAML.*fix"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    assert change[0] in GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, GOOD.replace(*change))
    assert "cluster.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "just text", "3"])
def test_what_is_no_mapping_at_all(tmp_path, text):
    with pytest.raises(ConfigError, match="a cluster file is a mapping"):
        load(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file.*--cluster"):
        load_cluster(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_cluster(path)


def test_unknown_party_and_device_list_the_known_ones():
    spec = ClusterSpec.parse({"session": "s", "parties": ["a", "b"]})
    with pytest.raises(ConfigError, match="use one of a, b"):
        spec.rank("c")
    with pytest.raises(ConfigError, match="it has none; add it under devices"):
        spec.device("SP0")


def test_broker_may_be_a_list():
    content = {"session": "s", "parties": ["alice", "bob"], "security": "none"}
    one = ClusterSpec.parse(content | {"broker": "redis://a"})
    several = ClusterSpec.parse(content | {"broker": ["redis://a", "redis://b"]})
    assert one.broker == "redis://a"
    assert several.broker == "redis://a redis://b"
    assert one.digest() == several.digest()
    for wrong in ([], [1], [["redis://a"]]):
        with pytest.raises(ConfigError, match="broker: broker is a URL, or a list of URLs"):
            ClusterSpec.parse(content | {"broker": wrong})
