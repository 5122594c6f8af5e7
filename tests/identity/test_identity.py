"""Identities: what is written, who can read it, what is refused, and that nothing shows a key."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from redislink import ConfigError
from redislink.cluster import ClusterSpec
from redislink.identity.keypair import (
    Identity,
    fingerprint,
    format_public_key,
    parse_public_key,
    read_secret,
    write_secret,
)
from redislink.protocol.sealed_handshake import SealedHandshake
from redislink.transport.security import make_handshake
from tests.conftest import IDENTITIES, make_cluster, quick_settings


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alice.key"


@pytest.fixture
def identity():
    return Identity.generate()


def test_the_public_key_is_that_of_published_pairs():
    vectors = Path(__file__).parents[1] / "protocol" / "vectors" / "noise_kk.json"
    for vector in json.loads(vectors.read_text())["vectors"]:
        for mine, theirs in (("init", "resp"), ("resp", "init")):
            private = bytes.fromhex(vector[f"{mine}_static"])
            assert Identity(private).public_key.hex() == vector[f"{theirs}_remote_static"]


class TestFile:
    def test_round_trip(self, path, identity):
        identity.save(path, "alice's key: keep it secret")
        assert Identity.load(path) == identity
        assert Identity.load(str(path)).public_key == identity.public_key

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177])
    def test_its_mode_is_0600_whatever_the_umask(self, path, identity, mask):
        before = os.umask(mask)
        try:
            identity.save(path, "alice")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_another_one_is_never_overwritten(self, path, identity):
        identity.save(path, "alice")
        kept = path.read_bytes()
        with pytest.raises(ConfigError, match="exists already and would be lost"):
            Identity.generate().save(path, "alice")
        assert path.read_bytes() == kept

    def test_neither_is_what_a_link_points_to(self, path, tmp_path, identity):
        target = tmp_path / "elsewhere"
        path.symlink_to(target)
        with pytest.raises(ConfigError, match="exists already"):
            identity.save(path, "alice")
        assert not target.exists()

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o602, 0o777])
    def test_one_that_others_can_read_or_change_is_refused(self, path, identity, mode):
        identity.save(path, "alice")
        path.chmod(mode)
        with pytest.raises(ConfigError, match=r"others .* can read it: run chmod 600"):
            Identity.load(path)
        path.chmod(0o400)
        assert Identity.load(path) == identity

    def test_a_link_is_judged_by_what_it_points_to(self, path, tmp_path, identity):
        identity.save(path, "alice")
        link = tmp_path / "link"
        link.symlink_to(path)
        assert Identity.load(link) == identity
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            Identity.load(link)

    def test_one_that_is_not_there_says_how_to_make_one(self, path, tmp_path):
        for missing in (path, tmp_path, tmp_path / "no" / "such"):
            with pytest.raises(ConfigError, match=r"identity file .*redislink keygen|chmod 600"):
                Identity.load(missing)

    def test_one_that_cannot_be_written_says_why(self, tmp_path, identity):
        with pytest.raises(ConfigError, match=r"cannot be written \(No such file"):
            identity.save(tmp_path / "no" / "alice.key", "alice")

    def test_every_truncation_is_refused_without_quoting_it(self, path, identity):
        identity.save(path, "alice")
        whole = path.read_bytes()
        for end in range(len(whole) - 1):
            path.write_bytes(whole[:end])
            with pytest.raises(ConfigError, match="holds no key") as caught:
                Identity.load(path)
            check_hides(str(caught.value), identity.private_key)
        path.write_bytes(whole[:-1])
        assert Identity.load(path) == identity, "the last byte is a newline"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"# a comment alone\n",
            b"not base64!\n",
            b"\xff\xfe\x00binary",
            "schlüssel".encode(),
            base64.b64encode(b"x" * 31),
            base64.b64encode(b"x" * 33),
            base64.b64encode(b"x" * 32) + b"\n" + base64.b64encode(b"x" * 32),
            base64.b64encode(b"x" * 32) + b" trailing",
            base64.urlsafe_b64encode(b"\xff" * 32),
            (b"x" * 32).hex().encode(),
            b"\0" * 100,
        ],
        ids=range(12),
    )
    def test_anything_else_is_refused_without_quoting_it(self, path, content):
        path.touch(mode=0o600)
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"identity file {path}: holds no key") as caught:
            Identity.load(path)
        assert len(content) < 10 or content.decode("latin-1") not in str(caught.value)

    def test_comments_blank_lines_and_carriage_returns_are_allowed(self, path, identity):
        path.touch(mode=0o600)
        key = base64.b64encode(identity.private_key)
        path.write_bytes(b"# alice\r\n\r\n  " + key + b"  \r\n# end")
        assert Identity.load(path) == identity

    def test_a_pre_shared_key_is_kept_alike(self, tmp_path):
        path = tmp_path / "bob.psk"
        write_secret(path, b"k" * 32, "alice and bob", "pre-shared key file")
        assert read_secret(path, "pre-shared key file") == b"k" * 32
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="pre-shared key file"):
            read_secret(path, "pre-shared key file")


def check_hides(text, secret):
    for form in (repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode()):
        assert form not in text
        assert form[:12] not in text


def test_nothing_shows_the_private_key(identity):
    for text in (repr(identity), str(identity), f"{identity}", repr([identity])):
        check_hides(text, identity.private_key)
        assert fingerprint(identity.public_key) in text


def test_two_are_never_alike():
    assert len({Identity.generate().public_key for _ in range(20)}) == 20


@pytest.mark.parametrize("private", [b"", b"x" * 31, b"x" * 33])
def test_one_of_another_length_cannot_be_made(private):
    with pytest.raises(ConfigError, match="32 bytes"):
        Identity(private)


class TestPublicKey:
    def test_round_trip(self, identity):
        text = format_public_key(identity.public_key)
        assert text.startswith("x25519:")
        assert parse_public_key(text) == identity.public_key

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x25519:",
            "x25519:AAAA",
            "X25519:" + "A" * 43 + "=",
            "ed25519:" + "C" * 43 + "=",
            "x25519: " + "C" * 43 + "=",
            "x25519:" + "C" * 43,
            "x25519:" + "C" * 43 + "=\n",
            "x25519:" + "é" * 43 + "=",
            "x25519:" + "C" * 42 + "!=",
        ],
    )
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(ConfigError, match="copy the line that redislink keygen"):
            parse_public_key(text)

    @pytest.mark.parametrize(
        "point",
        [
            "00" * 32,
            "01" + "00" * 31,
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ec" + "ff" * 30 + "7f",
            "ed" + "ff" * 30 + "7f",
            "ee" + "ff" * 30 + "7f",
        ],
    )
    def test_a_point_with_which_there_are_no_secrets_is_refused(self, point):
        """All of low order on Curve25519 (https://cr.yp.to/ecdh.html)."""
        with pytest.raises(ConfigError, match="public_key"):
            parse_public_key(format_public_key(bytes.fromhex(point)))

    def test_the_fingerprint_is_that_of_sha256(self):
        assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"


class TestWrongKeys:
    """Which key is wrong is said before anything is sent."""

    def handshake(self, cluster, name, identity=None, **changes):
        settings = quick_settings(**changes)
        return make_handshake(cluster, name, settings, identity, b"instance")

    @pytest.fixture
    def cluster(self):
        return make_cluster("redis://127.0.0.1:1", 3)

    def test_the_right_one(self, cluster):
        made = self.handshake(cluster, "alice", IDENTITIES["alice"])
        assert isinstance(made, SealedHandshake)

    def test_none(self, cluster):
        with pytest.raises(ConfigError, match=r"alice: .*REDISLINK_IDENTITY_FILE.*keygen alice"):
            self.handshake(cluster, "alice")

    def test_another_partys(self, cluster):
        with pytest.raises(ConfigError, match=r"alice: .*that of 'bob'.*IDENTITY_FILE to alice's"):
            self.handshake(cluster, "alice", IDENTITIES["bob"])

    def test_nobodys(self, cluster, identity):
        with pytest.raises(ConfigError, match=r"in nobody's line.*mend its public_key"):
            self.handshake(cluster, "alice", identity)

    def test_a_party_without_a_public_key(self):
        parties = ["alice", {"name": "bob", "public_key": format_public_key(b"\x09" * 32)}]
        cluster = ClusterSpec.parse({"session": "s", "parties": parties})
        with pytest.raises(ConfigError, match=r"'alice' has no public_key: .*security: none"):
            self.handshake(cluster, "bob", IDENTITIES["bob"])

    def test_two_parties_with_one_key(self):
        line = format_public_key(IDENTITIES["alice"].public_key)
        parties = [{"name": name, "public_key": line} for name in ("alice", "bob")]
        cluster = ClusterSpec.parse({"session": "s", "parties": parties})
        with pytest.raises(ConfigError, match="'bob' has another party's"):
            self.handshake(cluster, "alice", IDENTITIES["alice"])

    def test_a_pre_shared_key_that_others_can_read(self, cluster, tmp_path):
        write_secret(tmp_path / "bob.psk", b"k" * 32, "", "psk")
        (tmp_path / "bob.psk").chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            self.handshake(cluster, "alice", IDENTITIES["alice"], psk_dir=tmp_path)

    def test_security_none_warns_at_every_start(self, cluster, caplog):
        plain = cluster.model_copy(update={"security": "none"})
        for _ in range(2):
            self.handshake(plain, "alice")
        warnings = [r for r in caplog.records if "security none" in r.getMessage()]
        assert len(warnings) == 2
        assert all(r.levelname == "WARNING" for r in warnings)
