"""``redislink doctor``: the table, the JSON, the exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from redislink.identity.keypair import fingerprint, format_public_key
from redislink.operate.doctor import CHECKS, FIRST
from tests.cli.conftest import CLUSTER, NAMES, Call, Run, Write, key_file
from tests.conftest import IDENTITIES

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "doctor.md"


def words(cluster: Path, tmp_path: Path, party: str = "alice") -> list[str | Path]:
    key = key_file(tmp_path, party)
    return ["doctor", "--cluster", cluster, "--party", party, "--identity", key]


def test_json(broker: EmbeddedBroker, call: Call, write_cluster: Write, tmp_path: Path) -> None:
    cluster = write_cluster(CLUSTER | {"broker": broker.url, "session": "doctor-json"})
    code, out, err = call(*words(cluster, tmp_path), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["session"] == "doctor-json"
    assert told["party"] == "alice"
    assert told["broker"] == broker.url
    assert len(told["digest"]) == 64
    prints = {name: fingerprint(IDENTITIES[name].public_key) for name in NAMES}
    assert told["fingerprints"] == prints
    assert told["worst"] == "WARN"
    assert 0 < told["seconds"] < 20
    assert told["not_tried"] == []
    assert sum(told["counts"].values()) == len(told["findings"])
    assert told["counts"]["SKIP"] == 1, "the other party's doctor has not run"
    by_name = {finding["name"]: finding for finding in told["findings"]}
    assert by_name["commands"]["level"] == "PASS"
    assert by_name["commands"]["remedy"] == ""
    assert by_name["other parties' lists"]["level"] == "WARN"
    assert "redislink acl" in by_name["other parties' lists"]["remedy"]


@pytest.mark.parametrize("has_key", [True, False])
def test_a_driver(
    broker: EmbeddedBroker, call: Call, write_cluster: Write, tmp_path: Path, has_key: bool
) -> None:
    key = format_public_key(IDENTITIES["carol"].public_key)
    drivers = [{"name": "dora", "public_key": key}]
    cluster = write_cluster(CLUSTER | {"broker": broker.url, "drivers": drivers})
    identity = key_file(tmp_path, "carol" if has_key else "alice")
    code, out, err = call("doctor", "--cluster", cluster, "--party", "dora", "--identity", identity)
    if has_key:
        assert code == 0
        assert "dora is a driver: its key is right; what follows is about the broker" in err
        assert re.search(r"login +│ PASS", out)
    else:
        assert code == 2
        assert "is not the key that the cluster file has for dora" in " ".join(out.split())


def test_the_table(broker: EmbeddedBroker, call: Call, write_cluster: Write, tmp_path) -> None:
    cluster = write_cluster(CLUSTER | {"broker": broker.url, "session": "doctor-table"})
    code, out, _ = call(*words(cluster, tmp_path))
    assert code == 0
    assert "alice in session doctor-table" in out
    assert re.search(r"round trip +│ PASS │ .* ms, the median of 9", out)
    assert "→ as an administrator: redislink acl --cluster FILE" in out
    told = r"\d+ PASS, 1 SKIP, \d+ WARN\. Not checked, so .*: same cluster file\."
    assert re.fullmatch(told, out.splitlines()[-1])
    code, out, _ = call(
        *words(write_cluster(CLUSTER | {"broker": "redis://127.0.0.1:1"}), tmp_path)
    )
    assert code == 3
    assert re.search(r"TCP +│ FAIL │ 127\.0\.0\.1:1: .*refused", out)
    assert re.search(r"login +│ - +│ not checked: TCP failed", out)


def test_the_exit_code_is_that_of_the_first_failure(
    broker: EmbeddedBroker, call: Call, write_cluster: Write, tmp_path: Path
) -> None:
    here = CLUSTER | {"broker": broker.url, "session": "doctor-codes"}
    assert call("doctor", "--cluster", "none.yaml", "--party", "alice")[0] == 2
    assert call("doctor", "--party", "alice")[0] == 2
    cluster = write_cluster(here)
    assert call("doctor", "--cluster", cluster, "--party", "zoe")[0] == 2
    # Another's key and, further down, a broker without users per party: the key is what fails.
    alice, bob = words(cluster, tmp_path), words(cluster, tmp_path, "bob")
    code, out, _ = call(*alice[:-1], bob[-1], "--json")
    assert code == 2
    assert json.loads(out)["worst"] == "FAIL"
    cluster.write_text(cluster.read_text() + "devices: {}\nsecurity: none\n")
    assert call(*bob)[0] == 4, "alice has left a note with the digest that the file had then"


def test_a_cluster_file_that_is_not_there(call: Call) -> None:
    code, out, _ = call("doctor", "--cluster", "none.yaml", "--party", "alice", "--json")
    assert code == 2
    told = json.loads(out)
    assert told["findings"] == [
        {
            "name": "cluster file",
            "level": "FAIL",
            "text": "cluster file none.yaml: No such file or directory",
            "remedy": "check the path given with --cluster or REDISLINK_CLUSTER_FILE",
        }
    ]
    assert {entry["name"] for entry in told["not_tried"]} == {check.name for check in CHECKS}
    assert told["session"] is told["party"] is told["broker"] is told["digest"] is None


@pytest.mark.slow
def test_as_a_command_without_an_identity(
    broker: EmbeddedBroker, redislink: Run, write_cluster: Write
) -> None:
    url = broker.url.replace("redis://", "redis://:s3cret@")
    cluster = write_cluster(CLUSTER | {"broker": url, "session": "doctor-run"})
    result = redislink("doctor", "--cluster", cluster, "--party", "bob", identity_file="")
    assert result.returncode == 2, "the first failure: no identity"
    assert "REDISLINK_IDENTITY_FILE is not set" in re.sub(r"[\s│]+", " ", result.stdout)
    assert result.stderr == ""
    assert "s3cret" not in result.stdout


def test_the_page_has_every_check() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == ["check", FIRST, *(check.name for check in CHECKS)]
