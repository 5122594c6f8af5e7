"""Job files, and the offers that they describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from redislink.cluster.spec import ClusterSpec
from redislink.errors import ConfigError
from redislink.jobs import spec as module
from redislink.jobs.offer import Offer
from redislink.jobs.program import Program
from redislink.jobs.spec import JobSpec, default_name
from tests.jobs.examples import NOW

CLUSTER = ClusterSpec.parse(
    {
        "session": "trial",
        "parties": ["alice", "bob", "carol"],
        "security": "none",
        "devices": {
            "all": {"kind": "SPU", "members": ["alice", "bob", "carol"]},
            "two": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}},
        },
    }
)
DIGEST = "sha256:" + "ab" * 32
JOB = """\
program: train.py
name: lr-train
arguments: {epochs: 3, plaintext: true}
data: {alice: patients, bob: [loans, patients]}
parties: [alice, bob]
results: weights
expires: 2h
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("print(1)\n")
    return tmp_path


def _spec(text: str, directory: Path = Path("/nowhere")) -> JobSpec:
    return JobSpec.parse(text, "job file job.yaml", directory)


def _offer(text: str, directory: Path) -> Offer:
    return _spec(text, directory).offer(CLUSTER, driver="bob", job="j0123456789ab", now=NOW + 0.5)


def test_the_whole_file(directory: Path) -> None:
    offer = _offer(JOB, directory)
    program = Program.read(directory / "train.py")
    assert offer == Offer(
        job="j0123456789ab",
        driver="bob",
        issued=NOW,
        expires=NOW + 7200,
        program=program.digest,
        program_name="lr-train",
        arguments={"epochs": 3, "plaintext": True},
        data={"alice": ("patients",), "bob": ("loans", "patients")},
        parties=("alice", "bob"),
        devices=("two",),
        results=("weights",),
    )
    assert Offer.from_value_untrusted(offer.to_value()) == offer


def test_what_is_left_out_comes_from_the_cluster_file(directory: Path) -> None:
    offer = _offer("program: train.py\ndata: [patients]\n", directory)
    assert offer.parties == ("alice", "bob", "carol")
    assert offer.devices == ("all", "two")
    assert offer.data == dict.fromkeys(offer.parties, ("patients",))
    assert (offer.program_name, offer.arguments, offer.source) == ("train", [], None)
    assert offer.expires == NOW + 86400


def test_a_star_stands_for_the_parties_that_are_not_named(directory: Path) -> None:
    offer = _offer('program: train.py\ndata: {"*": patients, carol: []}\n', directory)
    assert offer.data == {"alice": ("patients",), "bob": ("patients",)}


def test_a_digest_needs_no_program(tmp_path: Path) -> None:
    offer = _offer(f"program: {DIGEST}\n", tmp_path)
    assert (offer.program, offer.program_name, offer.source) == (DIGEST, "", None)
    assert _offer(f"program: {DIGEST}\nname: lr-train\n", tmp_path).program_name == "lr-train"


def test_an_attached_program_travels(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = _offer(JOB + "attach: true\n", directory)
    assert offer.source is not None
    assert Program.unpack_untrusted(offer.source).digest == offer.program
    monkeypatch.setattr(module, "MOST_SOURCE", 10)
    with pytest.raises(ConfigError, match="redislink programs add"):
        _offer(JOB + "attach: true\n", directory)


def test_names_of_programs(tmp_path: Path) -> None:
    (tmp_path / "lr").mkdir()
    for name in ("lr/main.py", "x.py"):
        (tmp_path / name).write_text("")
    assert default_name(tmp_path / "lr") == "lr"
    assert default_name(tmp_path / "lr" / "main.py") == "lr"
    assert default_name(tmp_path / "x.py") == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("program: train.py", "program: none.py"), "program .*none.py: No such file"),
        (
            ("[alice, bob]", "[alice, dave]"),
            "job.yaml, line 5: parties: 'dave' is not there: use alice, bob, carol",
        ),
        (("[alice, bob]", "alice"), "line 4: data: 'bob' is not there: use alice"),
        (("results", "devices: [all]\nresults"), "devices: all has members that are not among"),
        (("results", "devices: [three]\nresults"), "devices: 'three' is not there: use all, two"),
    ],
)
def test_what_does_not_fit_the_cluster_or_the_disk(
    directory: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _offer(JOB.replace(*change), directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("program: train.py\n", ""), "program: is missing: add it"),
        (("train.py", "3"), "line 1: program: 3 means a number"),
        (("train.py", "sha256:12"), "line 1: program: program 'sha256:12' is not"),
        (("lr-train", "lr train"), "line 2: name: program name 'lr train'"),
        (("epochs: 3", "epochs: {a: 1}"), "line 3: arguments: arguments.epochs: is a mapping"),
        (("epochs: 3", '"--epochs": 3'), "line 3: arguments: .*cannot be the name of an option"),
        (("{epochs: 3, plaintext: true}", "[true]"), r"line 3: arguments: arguments\[0\]: a list"),
        (("{epochs: 3, plaintext: true}", "epochs"), "line 3: arguments: "),
        (("{epochs: 3, plaintext: true}", "[2026-01-01]"), "line 3: arguments: .*is a date"),
        (("alice: patients", "alice: ../x"), "line 4: data: data set name '../x'"),
        (("alice: patients", "alice: {x: 1}"), r"line 4: data.alice: "),
        (("results: weights", "results: [w, w]"), "line 6: results: lists a result twice"),
        (("results: weights", "result: weights"), "line 6: result: there is no such field"),
        (("expires: 2h", "expires: 2"), "line 7: expires: is not a duration"),
        (("expires: 2h", "attach: yes please"), "line 7: attach: "),
        (("train.py", f"{DIGEST}\nattach: true"), "line 2: attach: only a program that is here"),
    ],
)
def test_an_error_names_line_field_and_remedy(change: tuple[str, str], message: str) -> None:
    assert change[0] in JOB
    with pytest.raises(ConfigError, match=r"job file job\.yaml.*" + message) as found:
        _spec(JOB.replace(*change))
    assert str(found.value).isprintable()


def test_a_file_is_read(directory: Path) -> None:
    (directory / "job.yaml").write_text(JOB)
    assert JobSpec.load(directory / "job.yaml").read_program() is not None
    (directory / "job.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        JobSpec.load(directory / "job.yaml")
    with pytest.raises(ConfigError, match="check the path"):
        JobSpec.load(directory / "none.yaml")
    with pytest.raises(ConfigError, match="a job file is a mapping"):
        _spec("- x\n")
