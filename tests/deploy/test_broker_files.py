"""What an operator starts a broker with: configuration, users, certificates, on real servers.

``python -m tests.deploy.test_broker_files`` writes deploy/users.acl.template anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from redislink import BrokerAuthError, BrokerError, BrokerUnreachable, RedisLinkSettings
from redislink.broker import Broker
from redislink.broker.embedded import _server_binary
from redislink.operate import acl
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.servers import KINDS, debian_redis

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
SCRIPT: Final = DEPLOY / "make-certificates.sh"
TEMPLATE: Final = DEPLOY / "users.acl.template"
SESSION: Final = "hospitals"
PARTIES: Final = ("alice", "bob", "carol")
_READY: Final = re.compile(r"eady to accept connections")


def users_acl(hashes: dict[str, str]) -> str:
    """The file that ``redislink acl --out --admin admin`` writes for this session."""
    users = [*acl.party_users(SESSION, PARTIES), acl.admin_user("admin", PARTIES)]
    names = [user.party for user in users]
    text = acl.acl_file(users, dict(zip(names, names, strict=True)))
    for name in names:
        text = text.replace(acl.hash_rule(name), hashes[name])
    return text


def placeholders() -> dict[str, str]:
    return {name: f"#SHA256-OF-THE-PASSWORD-OF-{name}" for name in (*PARTIES, "admin")}


def test_the_template_is_what_redislink_acl_writes() -> None:
    assert TEMPLATE.read_text() == users_acl(placeholders()), (
        "write it anew: python -m tests.deploy.test_broker_files"
    )


# -- certificates ----------------------------------------------------------------------------------


def make_certificates(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)


def test_the_script_makes_a_chain_and_writes_over_nothing(tmp_path: Path) -> None:
    made = make_certificates(str(tmp_path), "broker", "broker.example", "192.0.2.1", "::1")
    assert made.returncode == 0, made.stderr
    assert make_certificates(str(tmp_path), "client", "alice").returncode == 0
    shown = {
        name: subprocess.run(
            ["openssl", "x509", "-in", tmp_path / f"{name}.crt", "-noout", "-text"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("ca", "broker", "alice")
    }
    assert "CA:TRUE" in shown["ca"]
    assert "DNS:broker.example, IP Address:192.0.2.1, IP Address:0:0:0:0" in shown["broker"]
    assert "TLS Web Server Authentication" in shown["broker"]
    assert "CN = alice" in shown["alice"]
    assert "TLS Web Client Authentication" in shown["alice"]
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == (0o600 if path.suffix == ".key" else 0o644), path

    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments in (("broker", "other.example"), ("client", "bob", "alice")):
        again = make_certificates(str(tmp_path), *arguments)
        assert again.returncode == 1
        assert "is there already, and stays" in again.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_the_script_signs_a_key_that_it_never_sees(tmp_path: Path) -> None:
    asked = make_certificates(str(tmp_path / "alice"), "request", "alice")
    (key,) = re.findall(r"the key is ([0-9a-f]{64})", asked.stdout)
    request = str(tmp_path / "alice" / "alice.csr")
    signed = make_certificates(str(tmp_path / "ca"), "sign", request)
    assert f"its key is {key}" in signed.stdout
    assert not (tmp_path / "ca" / "alice.key").exists()
    again = make_certificates(str(tmp_path / "ca"), "sign", request)
    assert "is there already, and stays" in again.stderr
    (tmp_path / "bob.csr").write_bytes(b"no request")
    assert (
        "is no request"
        in make_certificates(str(tmp_path / "ca"), "sign", str(tmp_path / "bob.csr")).stderr
    )


def test_a_party_needs_openssl_alone_for_its_key(tmp_path: Path) -> None:
    """What the guide says, word for word."""
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")
    ask, sign = (
        re.findall(rf"<!-- {who} -->\n```sh\n(.*?)```", page, re.DOTALL)[0]
        for who in ("the party", "you")
    )
    (tmp_path / "redislink-session").mkdir()

    def typed(command: str) -> str:
        return subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    digest = typed(ask).split()[-1]
    key = tmp_path / "redislink-session" / "client.key"
    assert key.stat().st_mode & 0o777 == 0o600
    shutil.copy(SCRIPT, tmp_path)
    assert f"its key is {digest}" in typed(sign)
    for command in (f"x509 -in {tmp_path}/tls/alice.crt -noout -pubkey", f"pkey -in {key} -pubout"):
        shown = subprocess.run(["openssl", *command.split()], capture_output=True, check=True)
        assert shown.stdout.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert typed("openssl verify -CAfile tls/ca.crt tls/alice.crt").endswith("OK\n")


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "a b", "a\nb", "$(id)", ""])
def test_the_script_refuses_what_is_no_name(tmp_path: Path, name: str) -> None:
    assert make_certificates(str(tmp_path / "made"), "client", name).returncode == 2
    assert not list(tmp_path.rglob("*.key"))


# -- servers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(binary: Path, directory: Path, config: str, *options: str) -> Iterator[None]:
    """The server with a file of deploy/, started where that file is, until the block ends."""
    process = subprocess.Popen(
        [binary, config, *options],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:  # ends when the server does
            said.append(line)
            if _READY.search(line):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        yield
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_binary(kind: str) -> Path:
    if kind == "valkey":
        return _server_binary()
    found = debian_redis()
    if found is None:
        pytest.skip("NOT TRIED on redis-server: it is not installed (.ci/install-redis)")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_configuration_starts_a_server(kind: str, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "valkey.conf", tmp_path)
    port = free_port()
    with serving(server_binary(kind), tmp_path, "valkey.conf", "--port", str(port)):
        connection = Broker(f"redis://127.0.0.1:{port}", timeout=5).open()
        for name, value in {
            "maxmemory-policy": "noeviction",
            "maxmemory": "1073741824",
            "save": "",
            "appendonly": "no",
            "timeout": "0",
            "tcp-keepalive": "60",
            "protected-mode": "yes",
        }.items():
            got = connection.execute(b"CONFIG", b"GET", name.encode(), timeout=5)
            assert bytes(got[1]).decode() == value, name
        connection.close()
    assert [path.name for path in tmp_path.iterdir()] == ["valkey.conf"], "nothing on the disk"


@pytest.fixture
def broker_directory(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """/etc/redislink-broker as the guide has it, and the passwords of its users."""
    for name in ("valkey.conf", "valkey-tls.conf"):
        shutil.copy(DEPLOY / name, tmp_path)
    tls = str(tmp_path / "tls")
    assert make_certificates(tls, "broker", "localhost", "127.0.0.1").returncode == 0
    assert make_certificates(tls, "client", *PARTIES).returncode == 0
    passwords = {name: acl.make_password() for name in (*PARTIES, "admin")}
    text = TEMPLATE.read_text()
    for name, placeholder in placeholders().items():
        text = text.replace(placeholder, acl.hash_rule(passwords[name]))
    (tmp_path / "users.acl").write_text(text)
    return tmp_path, passwords


@pytest.mark.slow
def test_three_parties_over_tls_with_certificates_and_users_of_their_own(
    broker_directory: tuple[Path, dict[str, str]],
) -> None:
    directory, passwords = broker_directory
    port = free_port()
    url = f"rediss://127.0.0.1:{port}/0"

    def settings(party: str, **changes: Any) -> RedisLinkSettings:
        files = {
            "broker_tls_ca": directory / "tls" / "ca.crt",
            "broker_tls_cert": directory / "tls" / f"{party}.crt",
            "broker_tls_key": directory / "tls" / f"{party}.key",
        }
        own = acl.party_url(url, f"{SESSION}~{party}", passwords[party])
        return quick_settings(**({"broker_url": own} | files | changes))

    options = ("--tls-port", str(port), "--bind", "127.0.0.1")
    with serving(server_binary("redis-server"), directory, "valkey-tls.conf", *options):
        cluster = make_cluster(url, session=SESSION)
        endpoints = run_parties(
            *(lambda party=party: connect_as(cluster, party, settings(party)) for party in PARTIES)
        )
        for me in endpoints:
            for peer in PARTIES:
                if peer != me.party:
                    me.send(peer, "t", f"{me.party} to {peer}".encode())
        for me in endpoints:
            for peer in PARTIES:
                if peer != me.party:
                    assert me.recv(peer, "t") == f"{peer} to {me.party}".encode()
        run_parties(*(endpoint.close for endpoint in endpoints))

        # Who else comes is turned away: without a certificate, without a password, without TLS.
        with pytest.raises(BrokerError):
            connect_once(settings("alice", broker_tls_cert=None, broker_tls_key=None))
        with pytest.raises(BrokerAuthError):
            connect_once(settings("alice", broker_url=url))
        with pytest.raises(BrokerUnreachable):
            connect_once(settings("alice", broker_url=url.replace("rediss", "redis")))
        # The administrator of the template, with any certificate of the CA.
        admin = settings("bob", broker_url=acl.party_url(url, "admin", passwords["admin"]))
        assert connect_once(admin, b"ACL", b"LOAD") == b"OK"

        assert is_healthy(directory, port)
    assert not is_healthy(directory, port)


def connect_once(settings: RedisLinkSettings, *command: bytes) -> Any:
    """The reply to one command."""
    broker = Broker.from_settings(settings, None)
    with contextlib.closing(broker.open()) as connection:
        return connection.execute(*(command or (b"LLEN", b"x")), timeout=5)


def is_healthy(directory: Path, port: int) -> bool:
    """What the container's health check says, which is the same in both files."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    kind, command = compose["services"]["broker"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    *_, broker = yaml.safe_load_all((DEPLOY / "kubernetes" / "broker.yaml").read_text())
    (container,) = broker["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"]["command"] == ["sh", "-c", command]
    command = command.replace("valkey-cli", f"redis-cli -p {port}")
    return (
        subprocess.run(command, shell=True, cwd=directory, stderr=subprocess.DEVNULL).returncode
        == 0
    )


if __name__ == "__main__":
    TEMPLATE.write_text(users_acl(placeholders()))
    print(f"wrote {os.path.relpath(TEMPLATE)}", file=sys.stderr)
