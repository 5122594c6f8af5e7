"""`redislink init`: what each organisation does, and what it finds when it is run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from redislink import ClusterSpec, RedisLinkSettings, load_cluster
from redislink.cli import ExitCode, app
from redislink.cluster.introduction import Introduction
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity
from redislink.jobs.agent import Agent
from redislink.jobs.policy import Action, Policy
from redislink.jobs.work import WorkDirectory
from tests.cli.conftest import Call

At = Callable[..., tuple[int, str, str]]
PARTIES = ("alice", "bob")
DIRECTORY = Path("redislink-session")


@pytest.fixture
def at(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> At:
    """Run a command in the directory of a party."""

    def run(party: str, *words: str) -> tuple[int, str, str]:
        (tmp_path / party).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / party)
        return call(*words)

    return run


def exchange(tmp_path: Path) -> None:
    """Each party gets the others' introductions."""
    for one in PARTIES:
        for other in PARTIES:
            if one != other:
                shutil.copy(
                    tmp_path / one / DIRECTORY / "introductions" / f"{one}.yaml",
                    tmp_path / other / DIRECTORY / "introductions",
                )


def test_two_organisations_come_to_the_same_cluster_file(at: At, tmp_path: Path) -> None:
    for party in PARTIES:
        code, out, err = at(party, "init", "--as", party, *PARTIES)
        assert (code, out) == (0, f"{DIRECTORY}/introductions/{party}.yaml\n")
        assert "CHEETAH, because two parties compute, and neither has to trust the other" in err
        assert "is missing" in err
        assert "redislink init, in this directory, says what is missing" in at(party, "acl")[2]
        secret = Identity.load(DIRECTORY / f"{party}.key").private_key
        assert (DIRECTORY / f"{party}.key").stat().st_mode & 0o777 == 0o600
        assert secret not in (DIRECTORY / "introductions" / f"{party}.yaml").read_bytes()
        assert not list(Path().rglob("*.key"))[1:]
        peer = PARTIES[1 - PARTIES.index(party)]
        for again in ((), ("--as", party), ("--as", party, *PARTIES)):
            code, _, err = at(party, "init", *again)
            assert code == ExitCode.PEER
            assert f"the introduction of {peer} is missing in {DIRECTORY}/introductions" in err
    exchange(tmp_path)
    made = []
    for party in PARTIES:
        code, out, err = at(party, "init")
        assert (code, out) == (0, f"{DIRECTORY}/cluster.yaml\n")
        assert "compare by telephone" in err
        assert f"{party} SHA256:" in err
        made.append((tmp_path / party / DIRECTORY / "cluster.yaml").read_bytes())
        settings = RedisLinkSettings.load()
        assert settings.party == party
        assert settings.cluster_file is not None
        spec = load_cluster(settings.cluster_file)
        identity = Identity.load(settings.identity_file_of() or "")
        assert spec.public_keys()[party] == identity.public_key
        assert at(party, "init")[0] == 0, "run again, it finds that all is done"
        assert "  own" in at(party, "fingerprint")[1]
        assert f"{spec.session}~{party}" in at(party, "acl")[1]
    assert made[0] == made[1]


def test_parties_that_do_not_agree_are_told(at: At, tmp_path: Path) -> None:
    at("alice", "init", "--as", "alice", *PARTIES)
    at("bob", "init", "--as", "bob", "bob", "alice")
    exchange(tmp_path)
    code, _, err = at("alice", "init")
    assert code == 2
    assert "bob has parties: ('bob', 'alice'), and alice has parties: ('alice', 'bob')" in err
    assert "the same order, which numbers them" in err
    assert not (DIRECTORY / "cluster.yaml").exists()


def test_a_key_that_has_changed_since_is_told(at: At, tmp_path: Path) -> None:
    for party in PARTIES:
        at(party, "init", "--as", party, *PARTIES)
    exchange(tmp_path)
    at("alice", "init")
    shutil.rmtree(tmp_path / "bob")
    at("bob", "init", "--as", "bob", *PARTIES)
    exchange(tmp_path)
    code, _, err = at("alice", "init")
    assert code == 2
    assert "differs from the introductions beside it" in err


def test_a_key_that_is_there_is_used_and_stays(at: At) -> None:
    at("alice", "keygen", "alice", "--out", "mine.key")
    before = Path("mine.key").read_bytes()
    assert at("alice", "init", "--as", "alice", *PARTIES, "--identity", "mine.key")[0] == 0
    assert Path("mine.key").read_bytes() == before
    assert not (DIRECTORY / "alice.key").exists()
    assert RedisLinkSettings.load().identity_file == Path("mine.key")
    code, _, err = at("alice", "init", "--as", "alice", *PARTIES, "carol")
    assert code == 2
    assert "exists already, and says something else: run redislink init alone to go on" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "who takes part? Name all parties"),
        (("--as", "dave", *PARTIES), "'dave' is not in session"),
        (("--as", "alice", "alice"), "at least two parties"),
        (("--as", "../x", *PARTIES), "begin with a letter or digit"),
        ((*PARTIES, "--identity", "x"), "give --as NAME too"),
    ],
)
def test_what_cannot_be(at: At, words: tuple[str, ...], said: str) -> None:
    code, _, err = at("alice", "init", *words)
    assert code == 2
    assert said in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("party: bob", "public_key"),
        ("[]", "an introduction is a file"),
        ("party: carol\npublic_key: a\nsigning_key: b\nsession: s\nparties: [a]\ndevices: {}",
         "name it carol.yaml"),
        ("party: bob\npublic_key: a\nsigning_key: b\nsession: s\nparties: [bob, eve]\ndevices: {}",
         "public_key must be x25519"),
    ],
)  # fmt: skip
def test_an_introduction_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bob.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Introduction.read(tmp_path / "bob.yaml")


def test_it_asks_where_somebody_can_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("redislink.cli.init._can_ask", lambda: True)
    asked = CliRunner().invoke(app, ["init"], input="alice, bob carol\nbob\n")
    assert asked.exit_code == 0, asked.output
    assert Introduction.read(DIRECTORY / "introductions" / "bob.yaml").parties == (
        "alice", "bob", "carol",
    )  # fmt: skip


def test_lines_in_env_come_before_those_of_init(at: At) -> None:
    at("alice", "init", *PARTIES)
    assert RedisLinkSettings.load().cluster_file == DIRECTORY / "cluster.yaml"
    assert RedisLinkSettings.load().identity_file_of("bob") == DIRECTORY / "bob.key"
    Path(".env").write_text("REDISLINK_CLUSTER_FILE=other.yaml\n")
    Path(".env").chmod(0o600)
    assert RedisLinkSettings.load().cluster_file == Path("other.yaml")
    (DIRECTORY / ".env").chmod(0o666)
    assert RedisLinkSettings.load().identity_file is None, "others may have written it"


def test_a_trial_has_devices_for_its_number_of_parties(at: At) -> None:
    assert at("x", "init", "a", "b", "c", "d")[0] == 0
    spec: ClusterSpec = load_cluster(DIRECTORY / "cluster.yaml")
    assert spec.device("SP0").members == ("a", "b", "c")


@pytest.mark.parametrize("how", [("--as", "alice"), ()])
def test_an_agent_finds_what_it_needs_and_asks_about_each_job(
    at: At, how: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("alice", "init", *how, *PARTIES)
    if how:
        at("bob", "init", "--as", "bob", *PARTIES)
        exchange(tmp_path)
        at("alice", "init", "--broker", "redis://127.0.0.1:6379/0")
    started = []
    monkeypatch.setattr(Agent, "serve", lambda self: started.append(self._place))
    code, _, err = at("alice", "agent", *(() if how else ("--party", "alice")))
    assert (code, len(started)) == (0, 1), err
    policy = Policy.load(started[0].policy)
    assert [rule.action for rule in policy.rules] == [Action.ASK]
    WorkDirectory(started[0].work).take("alice")
    assert started[0].programs == DIRECTORY / "programs"
    words = ("jobs", "approve", "j" + "z" * 12)
    code, _, err = at("alice", *words, *(() if how else ("--work", str(started[0].work))))
    assert "there is no job" in err
    assert how or "give --work DIR, or set REDISLINK_WORK_DIR" in at("alice", *words)[2]


def test_a_driver_introduces_itself_and_has_no_agent(at: At, tmp_path: Path) -> None:
    everybody = (*PARTIES, "dora")
    for name in everybody:
        assert at(name, "init", "--as", name, *PARTIES, "--driver", "dora")[0] == 0
    code, _, err = at("dora", "init", "--driver", "dora", "--as", "dora")
    assert code == ExitCode.PEER
    assert "the introductions of alice, bob are missing" in err
    for name in everybody:
        given = tmp_path / name / DIRECTORY / "introductions" / f"{name}.yaml"
        for other in set(everybody) - {name}:
            shutil.copy(given, tmp_path / other / DIRECTORY / "introductions")
    assert at("bob", "init")[0] == 0
    assert "dora SHA256:" in at("alice", "init")[2].replace("  ", " ")
    code, _, err = at("dora", "init")
    assert code == 0
    assert "then, once agents wait at the parties: redislink submit JOB.yaml" in err
    assert "redislink doctor" not in err
    assert not (DIRECTORY / "policy.yaml").exists()
    made = [(tmp_path / name / DIRECTORY / "cluster.yaml").read_bytes() for name in everybody]
    assert len(set(made)) == 1
    spec = load_cluster(DIRECTORY / "cluster.yaml")
    assert (spec.party_names, spec.driver_names) == (PARTIES, ("dora",))
    code, _, err = at("other", "init", *PARTIES, "--driver", "dora")
    assert code == 2
    assert "in a trial a party submits the jobs" in err


URL = "redis://127.0.0.1:6379/0"


def _met(at: At, tmp_path: Path) -> None:
    for party in PARTIES:
        at(party, "init", "--as", party, *PARTIES)
    exchange(tmp_path)


@pytest.mark.parametrize("first", [(), ("--broker", URL)])
def test_a_broker_that_the_cluster_file_has_not_is_never_ignored(
    at: At, tmp_path: Path, first: tuple[str, ...]
) -> None:
    _met(at, tmp_path)
    assert at("alice", "init", *first)[0] == 0
    code, _, err = at("alice", "init", *first)
    assert code == 0, "the same again"
    assert ("redislink acl" in err) != bool(first)
    assert (f"{URL} is on this machine, for a trial: redislink broker runs it" in err) == bool(
        first
    )
    code, _, err = at("alice", "init", "--broker", "redis://alice:hidden@other:6379/0")
    assert code == 2
    assert "cluster.yaml is there already, and has " in err
    assert "write REDISLINK_BROKER_URL=URL into redislink-session/.env" in err
    assert "hidden" not in err
    assert load_cluster(DIRECTORY / "cluster.yaml").broker == (URL if first else None)


def test_another_key_is_never_ignored(at: At, tmp_path: Path) -> None:
    _met(at, tmp_path)
    at("alice", "keygen", "alice", "--out", "new.key")
    assert at("alice", "init", "--identity", str(DIRECTORY / "alice.key"))[0] == 0
    code, _, err = at("alice", "init", "--identity", "new.key")
    assert code == 2
    assert "is not the key that alice has introduced itself with" in err
    assert "add --rekey" in err


@pytest.mark.parametrize("brings", [False, True])
def test_a_party_changes_its_key(
    at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brings: bool
) -> None:
    _met(at, tmp_path)
    for party in PARTIES:
        assert at(party, "init", "--broker", URL)[0] == 0
    before = (tmp_path / "alice" / DIRECTORY / "alice.key").read_bytes()
    at("alice", "keygen", "alice", "--out", "new.key")
    records = DIRECTORY / "work" / "alice" / "audit" / "agent.jsonl", Path("alice.jsonl")
    records[0].parent.mkdir(parents=True)
    monkeypatch.setenv("REDISLINK_AUDIT_FILE", "{party}.jsonl")
    for record in records:
        record.write_text("signed with the old key\n")
        Path(f"{record}.head").write_text("head")
    code, _, err = at("alice", "init", "--rekey", *(["--identity", "new.key"] * brings))
    assert code == 0, err
    assert "the others put redislink-session/introductions/alice.yaml in place of" in err
    assert "users and passwords at the broker stay as they are" in err
    assert "redislink acl" not in err
    own_key = Path("new.key") if brings else DIRECTORY / "alice.key"
    if brings:
        assert (DIRECTORY / "alice.key").read_bytes() == before
        assert "write into redislink-session/.env: REDISLINK_IDENTITY_FILE=new.key" in err
    else:
        (kept,) = DIRECTORY.glob("alice.key.*.old")
        assert kept.read_bytes() == before
        assert kept.stat().st_mode & 0o777 == 0o600
    for record in records:
        assert not record.exists()
        (kept,) = record.parent.glob(f"{record.name}.*.old")
        assert Path(f"{kept}.head").read_text() == "head", "they are verified together"
    spec = load_cluster(DIRECTORY / "cluster.yaml")
    assert spec.broker == URL
    assert spec.public_keys()["alice"] == Identity.load(own_key).public_key
    bob = tmp_path / "bob" / DIRECTORY
    shutil.copy(DIRECTORY / "introductions" / "alice.yaml", bob / "introductions")
    code, _, err = at("bob", "init")
    assert code == 2
    assert "redislink init --renew makes the file anew" in err
    assert at("bob", "init", "--renew")[0] == 0
    renewed = load_cluster(bob / "cluster.yaml")
    assert (renewed.digest(), renewed.broker) == (spec.digest(), URL)
    assert len(list(bob.glob("cluster.yaml.*.old"))) == 1
    if not brings:
        assert at("alice", "init", "--rekey")[0] == 0, "twice within a second"
        assert len(list((tmp_path / "alice" / DIRECTORY).glob("alice.key.*.old"))) == 2


def test_a_change_that_cannot_be_leaves_all_as_it_is(at: At, tmp_path: Path) -> None:
    _met(at, tmp_path)
    assert at("alice", "init")[0] == 0
    bobs = str(tmp_path / "bob" / DIRECTORY / "bob.key")
    for words, said in (
        (["--rekey", "--identity", bobs], "is the key that bob has already"),
        (["--rekey", "--identity", str(DIRECTORY / "alice.key")], "that alice has already"),
        (["--rekey", "--identity", "nowhere.key"], "nowhere.key"),
        (["--rekey", "alice"], "--rekey takes no names: redislink-session is alice's"),
        (["--renew", "--as", "bob"], "--renew takes no names: redislink-session is alice's"),
    ):
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        code, _, err = at("alice", "init", *words)
        assert code == 2, words
        assert said in err
        assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("option", ["--rekey", "--renew"])
def test_only_what_init_began_can_change(
    at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    code, _, err = at("alice", "init", option)
    assert code == 2
    assert "run it where redislink init --as was run" in err
    assert at("alice", "init", *PARTIES)[0] == 0
    assert at("alice", "init", option)[0] == 2
    code, _, err = at(f"alice/{DIRECTORY}", "init", option)
    assert "go up one directory: cd .." in err


def test_names_that_people_take_for_each_other(at: At) -> None:
    for words in (("alice", "Alice"), ("--as", "bob", "bob", "carol", "--driver", "BOB")):
        code, _, err = at("x", "init", *words)
        assert code == 2
        assert "differ only in case: choose another name" in err


def test_a_driver_keeps_its_jobs_beside_its_key(at: At) -> None:
    at("dora", "init", "--as", "dora", *PARTIES, "--driver", "dora")
    assert RedisLinkSettings.load().jobs_dir == DIRECTORY / "jobs"
