"""Passwords, certificates and CAs are changed in the middle of a run, on a real server with TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from redislink import Endpoint
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from redislink.errors import BrokerUnreachable
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.groups import free_ports
from tests.support.servers import debian_redis
from tests.support.waiting import wait_until

HOST = "127.0.0.1"


class Files:
    """The PEM files of a server and of a party, who trust each other's CA."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.password = directory / "password"
        self.password.touch(0o600)
        self.password.write_text("first\n")
        self.authorities = {"server": trustme.CA(), "party": trustme.CA()}
        for who, ca in self.authorities.items():
            self.trust(who, ca)
            self.issue(who, ca)

    def __getitem__(self, name: str) -> Path:
        return self._directory / f"{name}.pem"

    def trust(self, who: str, *authorities: trustme.CA) -> None:
        """Whose certificates are accepted as those of ``who``."""
        pems = b"".join(ca.cert_pem.bytes() for ca in authorities)
        self[f"{who}-ca"].write_bytes(pems)

    def issue(self, who: str, ca: trustme.CA) -> None:
        """Give ``who`` a new certificate and its key."""
        for write in self.renewal(who, ca):
            write()

    def renewal(self, who: str, ca: trustme.CA) -> tuple[Callable[[], None], Callable[[], None]]:
        """The two steps of `issue`: the certificate, and its key."""
        issued = ca.issue_cert(HOST if who == "server" else "party@example.org")
        certificate, key = str(self[f"{who}-cert"]), str(self[f"{who}-key"])
        return (
            lambda: issued.cert_chain_pems[0].write_to_path(certificate),
            lambda: issued.private_key_pem.write_to_path(key),
        )


class Server:
    """A Redis server that asks parties for a certificate, and its administrator."""

    def __init__(self, files: Files, server: EmbeddedBroker, port: int) -> None:
        self._files = files
        self.url = f"rediss://{HOST}:{port}"
        self._admin: BrokerConnection = Broker(server.url, timeout=5).open()

    def admin(self, *command: str) -> None:
        self._admin.execute(*command, timeout=5)

    def reload(self) -> None:
        """Let the server read its files anew, as after a renewal."""
        files = self._files
        self.admin(
            *("CONFIG", "SET", "tls-ca-cert-file", str(files["party-ca"])),
            *("tls-cert-file", str(files["server-cert"]), "tls-key-file", str(files["server-key"])),
        )

    def cut(self) -> None:
        self.admin("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def close(self) -> None:
        self._admin.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def server(files: Files) -> Iterator[Server]:
    binary = debian_redis()
    if binary is None:
        pytest.skip("redis-server is not installed here: run .ci/install-redis")
    (port,) = free_ports(1)
    options = {
        "tls-port": str(port),
        "tls-ca-cert-file": str(files["party-ca"]),
        "tls-cert-file": str(files["server-cert"]),
        "tls-key-file": str(files["server-key"]),
    }
    with EmbeddedBroker(options=options, binary=binary, password="first") as started:
        found = Server(files, started, port)
        yield found
        found.close()


def join(files: Files, server: Server, **changes: float) -> list[Endpoint]:
    cluster = make_cluster(server.url, 2)
    settings = quick_settings(
        broker_url=server.url,
        broker_tls_ca=str(files["server-ca"]),
        broker_tls_cert=str(files["party-cert"]),
        broker_tls_key=str(files["party-key"]),
        broker_password_file=str(files.password),
        close_timeout=1,
        **changes,
    )
    return run_parties(*(lambda n=n: connect_as(cluster, n, settings) for n in ("alice", "bob")))


@pytest.fixture
def parties(files: Files, server: Server) -> Iterator[list[Endpoint]]:
    ends = join(files, server)
    yield ends
    run_parties(*(end.close for end in ends))


def still_well(server: Server, parties: list[Endpoint], tag: str) -> None:
    """All connections are cut, and messages come through on new ones."""
    alice, bob = parties
    before = alice.stats().reconnects
    server.cut()
    alice.send("bob", tag, b"alice's")
    bob.send("alice", tag, b"bob's")
    assert (bob.recv("alice", tag), alice.recv("bob", tag)) == (b"alice's", b"bob's")
    assert alice.stats().reconnects > before


@pytest.mark.slow
def test_everything_is_rotated_in_the_order_of_the_page(
    files: Files, server: Server, parties: list[Endpoint]
) -> None:
    # The password: first a second one, then the file, then without the first.
    server.admin("ACL", "SETUSER", "default", ">second")
    files.password.write_text("second\n")
    server.admin("ACL", "SETUSER", "default", "<first")
    still_well(server, parties, "password")
    # Certificates by new CAs, which the other side knows beforehand.
    new = trustme.CA()
    for who in ("party", "server"):
        files.trust(who, files.authorities[who], new)
        files.issue(who, new)
    server.reload()
    still_well(server, parties, "certificates")
    for who in ("party", "server"):
        files.trust(who, new)
    server.reload()
    still_well(server, parties, "the old CAs are gone")


@pytest.mark.slow
def test_what_is_wrong_for_a_moment_is_waited_for_and_named(
    files: Files, server: Server, parties: list[Endpoint]
) -> None:
    """The parties come later: with a key, with the server's CA, with their password."""
    alice, bob = parties
    outage = alice.parts.core.outage
    new = trustme.CA()
    write_certificate, write_key = files.renewal("party", files.authorities["party"])
    write_certificate()
    files.issue("server", new)
    server.reload()
    server.admin("CONFIG", "SET", "requirepass", "second")
    server.cut()
    for mend, cause in (
        (write_key, "REDISLINK_BROKER_TLS_KEY"),
        (lambda: files.trust("server", new), "its certificate is not trusted"),
        (lambda: files.password.write_text("second\n"), "user or password not accepted"),
    ):
        wait_until(lambda cause=cause: cause in str(outage._last))
        mend()
    alice.send("bob", "t", b"through")
    assert bob.recv("alice", "t") == b"through"


@pytest.mark.slow
def test_the_last_cause_is_named_and_not_the_first(files: Files, server: Server) -> None:
    """First the connections end; what lasts is that the new CA is not known."""
    ends = join(files, server, broker_timeout=1)
    files.issue("server", trustme.CA())
    server.reload()
    server.cut()
    for end in ends:
        with pytest.raises(BrokerUnreachable, match="its certificate is not trusted"):
            end.recv(1 - end.rank, "never")
        end.abort("done")
