"""``redislink keygen``, ``fingerprint``, ``init``: private keys stay private, public ones agree."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from redislink import ConfigError, load_cluster
from redislink.broker import EmbeddedBroker
from redislink.cluster.trial import write_trial
from redislink.identity.keypair import Identity, fingerprint, format_public_key, read_secret
from redislink.identity.signing import SigningKey, format_signing_key
from tests.cli.conftest import CLUSTER, Call, Run, Start, Write, check_one_line, ended
from tests.conftest import IDENTITIES


class TestKeygen:
    def test_of_a_driver_for_the_cluster_file(
        self, call: Call, write_cluster: Write, tmp_path: Path
    ) -> None:
        code, out, err = call("keygen", "dora", "--driver")
        assert code == 0
        identity = Identity.load(tmp_path / "dora.key")
        lines = yaml.safe_load(out)
        assert lines == [{"name": "dora", "public_key": format_public_key(identity.public_key)}]
        cluster = write_cluster(CLUSTER | {"drivers": lines})
        code, out, err = call("fingerprint", "--cluster", cluster, "--identity", "dora.key")
        assert code == 0, err
        assert f"dora   {fingerprint(identity.public_key)}  driver own" in out

    def test_the_line_on_stdout_is_for_the_cluster_file(self, call: Call, tmp_path: Path) -> None:
        code, out, err = call("keygen", "alice")
        assert code == 0
        path = tmp_path / "alice.key"
        identity = Identity.load(path)
        assert yaml.safe_load(out) == [
            {
                "name": "alice",
                "public_key": format_public_key(identity.public_key),
                "signing_key": format_signing_key(SigningKey(identity).public_key),
            }
        ]
        assert out.count("\n") == 1
        assert err.startswith("redislink: wrote alice.key, which stays here")
        assert fingerprint(identity.public_key) in err
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secret = path.read_text().splitlines()[1]
        assert secret not in out + err

    @pytest.mark.parametrize("name", ["123", "1e3", "null", "on", "0x1F", "1_0", "2024-1-1", "a.b"])
    def test_any_name_is_read_back_as_it_is(self, call: Call, name: str) -> None:
        _, out, _ = call("keygen", "--out", "x.key", "--", name)
        (line,) = yaml.safe_load(out)
        assert line["name"] == name

    def test_it_never_overwrites(self, call: Call, tmp_path: Path) -> None:
        call("keygen", "alice")
        before = (tmp_path / "alice.key").read_bytes()
        code, out, err = call("keygen", "alice")
        assert (code, out) == (2, "")
        assert "alice.key: exists already and would be lost: move it away first" in err
        assert (tmp_path / "alice.key").read_bytes() == before

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["a b"], "party name 'a b' is not valid"),
            (["../alice"], "party name '../alice' is not valid"),
            (["alice", "--psk", "b/c"], "party name 'b/c' is not valid"),
            (["alice", "--psk", "alice"], "between two parties"),
            (["alice", "--out", "none/alice.key"], "cannot be written"),
        ],
    )
    def test_what_cannot_be(self, call: Call, words: list[str], said: str) -> None:
        code, out, err = call("keygen", *words)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1

    def test_a_pre_shared_key(self, call: Call, tmp_path: Path) -> None:
        code, out, err = call("keygen", "alice", "--psk", "bob")
        assert (code, out) == (0, "")
        assert "alice's REDISLINK_PSK_DIR as bob.psk" in err
        assert "bob's as alice.psk" in err
        path = tmp_path / "bob.psk"
        assert len(read_secret(path, "it")) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not (tmp_path / "alice.key").exists()
        assert call("keygen", "alice", "--psk", "bob")[0] == 2

    def test_a_key_that_others_can_read_is_refused(self, call: Call, tmp_path: Path) -> None:
        call("keygen", "alice")
        for mode in (0o640, 0o604, 0o660):
            (tmp_path / "alice.key").chmod(mode)
            code, out, err = call("fingerprint", "--identity", "alice.key")
            assert (code, out) == (2, "")
            assert "others on this machine can read it: run chmod 600 alice.key" in err

    @pytest.mark.parametrize(
        "content", [b"", b"# only this\n", b"abc\n", b"AAAA\nBBBB\n", b"\xff\xfe", "ü".encode()]
    )
    def test_a_file_without_a_key(self, call: Call, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "alice.key"
        path.touch(0o600)
        path.write_bytes(content)
        code, _, err = call("fingerprint", "--identity", "alice.key")
        assert code == 2
        assert "alice.key: holds no key: make one with redislink keygen" in err


class TestFingerprint:
    def test_of_the_own_key_and_of_every_party(self, call: Call, write_cluster: Write) -> None:
        IDENTITIES["bob"].save("bob.key", "of a test")
        path = write_cluster()
        code, out, _ = call("fingerprint", "--identity", "bob.key", "--cluster", path)
        assert code == 0
        alice, bob = (fingerprint(IDENTITIES[name].public_key) for name in ("alice", "bob"))
        digest = load_cluster(path).digest().hex()
        assert out.splitlines()[:2] == [f"alice  {alice}", f"bob    {bob}  own"]
        assert f"session cli, security sealed, digest {digest[:12]}" in out
        words = ("--identity", "bob.key", "--cluster", path, "--json")
        assert json.loads(call("fingerprint", *words)[1]) == {
            "own": bob,
            "own_party": "bob",
            "session": "cli",
            "security": "sealed",
            "digest": digest,
            "parties": [
                {"name": "alice", "fingerprint": alice},
                {"name": "bob", "fingerprint": bob},
            ],
            "drivers": [],
            "devices": {},
        }

    def test_a_key_that_is_in_nobodys_line(self, call: Call, write_cluster: Write) -> None:
        IDENTITIES["erin"].save("erin.key", "of a test")
        path = write_cluster()
        _, out, _ = call("fingerprint", "--identity", "erin.key", "--cluster", path)
        own = fingerprint(IDENTITIES["erin"].public_key)
        assert f"(own)  {own}  not in the cluster file\n" in out

    def test_a_party_without_a_key(self, call: Call, write_cluster: Write) -> None:
        path = write_cluster(CLUSTER | {"parties": [CLUSTER["parties"][0], "bob"]})
        _, out, _ = call("fingerprint", "--cluster", path)
        assert "bob    no public_key\n" in out
        told = json.loads(call("fingerprint", "--cluster", path, "--json")[1])
        assert told["own"] is None
        assert told["parties"][1] == {"name": "bob", "fingerprint": None}

    def test_of_the_own_key_alone(self, call: Call) -> None:
        IDENTITIES["bob"].save("bob.key", "of a test")
        own = fingerprint(IDENTITIES["bob"].public_key)
        assert call("fingerprint", "--identity", "bob.key") == (0, f"(own)  {own}\n", "")

    def test_settings_say_where_they_are(
        self, call: Call, write_cluster: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        IDENTITIES["bob"].save("bob.key", "of a test")
        monkeypatch.setenv("REDISLINK_CLUSTER_FILE", str(write_cluster()))
        monkeypatch.setenv("REDISLINK_IDENTITY_FILE", "bob.key")
        assert "  own\n" in call("fingerprint")[1]

    def test_nothing_to_show(self, call: Call) -> None:
        code, _, err = call("fingerprint")
        assert code == 2
        assert "give --identity FILE or --cluster FILE" in err


class TestInit:
    def test_a_trial_that_can_run(self, call: Call, tmp_path: Path) -> None:
        code, out, err = call("init", "alice", "bob", "carol", "--dir", "t", "--session", "s")
        assert (code, out) == (0, "t/cluster.yaml\n")
        assert "for a trial on this machine only" in err
        spec = load_cluster("t/cluster.yaml")
        assert (spec.session, spec.security) == ("s", "sealed")
        assert spec.party_names == ("alice", "bob", "carol")
        for name, key in spec.public_keys().items():
            assert Identity.load(f"t/{name}.key").public_key == key
        assert {n: d.config.protocol for n, d in spec.devices.items()} == {
            "SP0": "ABY3",
            "PSI0": "CHEETAH",
        }
        assert "runs `redislink init --as NAME …`" in (tmp_path / "t" / "cluster.yaml").read_text()

    @pytest.mark.parametrize(
        ("count", "told"),
        [
            (2, "CHEETAH: nobody is trusted"),
            (4, "ABY3: no two of p0, p1 and p2 may work together"),
        ],
    )
    def test_other_numbers_of_parties(self, call: Call, count: int, told: str) -> None:
        names = [f"p{i}" for i in range(count)]
        code, _, err = call("init", *names, "--dir", ".")
        assert code == 0
        assert f"SP0: {told}" in err
        assert load_cluster("cluster.yaml").device("SP0").members == tuple(names[:3])
        assert f"device SP0: {told}" in call("fingerprint", "--cluster", "cluster.yaml")[1]

    def test_a_trusted_first_party_is_asked_for_by_name(self, call: Call) -> None:
        code, _, err = call("init", "p0", "p1", "p2", "p3", "--protocol", "SEMI2K", "--dir", ".")
        assert code == 0
        assert "SP0: SEMI2K with TrustedFirstParty: p0, the first member, makes" in err
        assert load_cluster("cluster.yaml").device("SP0").members == ("p0", "p1", "p2", "p3")
        told = json.loads(call("fingerprint", "--cluster", "cluster.yaml", "--json")[1])
        assert told["devices"]["SP0"].startswith("SEMI2K with TrustedFirstParty: p0")

    def test_a_protocol_that_does_not_run_between_so_many(self, call: Call) -> None:
        code, _, err = call("init", "p0", "p1", "--protocol", "ABY3")
        assert code == 2
        assert "ABY3 runs between 3 members, not 2" in err
        assert "between 2 members CHEETAH (nobody is trusted" in err

    @pytest.mark.parametrize("there", ["cluster.yaml", "bob.key"])
    def test_it_never_overwrites(self, call: Call, tmp_path: Path, there: str) -> None:
        (tmp_path / there).write_text("mine")
        code, _, err = call("init", "alice", "bob", "--dir", ".")
        assert code == 2
        assert f"{there}: exists already" in err
        assert [path.name for path in tmp_path.iterdir()] == [there]
        assert (tmp_path / there).read_text() == "mine"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["alice"], "at least two parties"),
            (["alice", "alice"], "'alice' is listed twice"),
            (["alice", "b b"], "party name 'b b' is not valid"),
            (["alice", "bob", "--session", "a:b"], "session name 'a:b' is not valid"),
        ],
    )
    def test_what_cannot_be(self, call: Call, tmp_path: Path, words: list[str], said: str) -> None:
        code, _, err = call("init", *words)
        assert code == 2
        assert said in err
        assert not list(tmp_path.iterdir())

    def test_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        content = {"session": "s", "parties": ["alice", "bob"]}
        key_files = {name: tmp_path / f"{name}.key" for name in ("alice", "bob")}
        with pytest.raises(ConfigError):
            write_trial(content, tmp_path / "file" / "cluster.yaml", key_files, "")


@pytest.mark.slow
def test_run_takes_the_identity_and_checks_it_first(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program("import os; print(os.environ['REDISLINK_IDENTITY_FILE'])")
    words = ("run", "--cluster", write_cluster(), "--party", "alice", "--identity")
    result = redislink(*words, "alice.key", program)
    assert result.stdout == f"{tmp_path / 'alice.key'}\n"
    check_one_line(redislink(*words, "none.key", program), 2, "none.key", "redislink keygen")


@pytest.mark.parametrize("name", ["cluster.yaml", "bob.key"])
def test_init_writes_through_no_link(call: Call, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "planted")
    code, out, err = call("init", "alice", "bob", "--dir", ".")
    assert (code, out) == (2, "")
    assert f"{name}: exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "words",
    [
        ("init", "alice", ".."),
        ("init", "alice", "bob", "--session", ".env"),
        ("keygen", "--", "-rf"),
        ("keygen", "alice", "--psk", "."),
        ("inspect", "--", "-s"),
        ("purge", "."),
    ],
)
def test_names_that_mean_something_to_a_shell(
    call: Call, tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "begin with a letter or digit" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_with_keys_of_their_own(
    start: Start, broker: EmbeddedBroker, write_program: Write
) -> None:
    """From nothing: init, then a session of which `redislink run` finds the files by itself."""
    ended(start("init", "one", "two", "--session", "from-nothing"))
    program = write_program(
        """
        import redislink
        with redislink.connect() as me:
            me.send(1 - me.rank, "t", me.party.encode())
            print(me.recv(1 - me.rank, "t").decode())
        """
    )
    processes = [
        start("run", "--party", name, program, broker_url=broker.url) for name in ("one", "two")
    ]
    assert [ended(process).stdout for process in processes] == ["two\n", "one\n"]
