"""TLS as Debian's redis-server has it, with client certificates, on every kind of broker."""

import pytest
import trustme

from redislink import BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker
from tests.support.groups import free_ports
from tests.support.servers import Admin, debian_redis

pytestmark = pytest.mark.skipif(
    debian_redis() is None, reason="redis-server is not installed here: run .ci/install-redis"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of the CA, and of certificate and key of a server and of a party."""
    directory = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, identity in (("server", "127.0.0.1"), ("party", "party@example.org")):
        issued = ca.issue_cert(identity)
        issued.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(directory / f"{name}.key"))
    return directory


def server_options(files, port):
    return {
        "tls-port": str(port),
        "tls-ca-cert-file": str(files / "ca.pem"),
        "tls-cert-file": str(files / "server.pem"),
        "tls-key-file": str(files / "server.key"),
        "tls-auth-clients": "yes",
        "tls-replication": "yes",
    }


def as_party(files, url):
    return Broker(
        url,
        timeout=5,
        tls_ca=str(files / "ca.pem"),
        tls_cert=str(files / "party.pem"),
        tls_key=str(files / "party.key"),
    )


def push(broker):
    name = b"rl:{s:alice}:x"
    connection = broker.at(name).open_answering()
    try:
        return connection.execute(b"RPUSH", name, b"x", timeout=5)
    finally:
        connection.close()


def test_one_server_wants_the_party_s_certificate(files):
    (port,) = free_ports(1)
    binary = debian_redis()
    with EmbeddedBroker(options=server_options(files, port), binary=binary):
        url = f"rediss://127.0.0.1:{port}"
        assert push(as_party(files, url)) == 1
        with pytest.raises(BrokerUnreachable, match="REDISLINK_BROKER_TLS_CA"):
            push(Broker(url, timeout=5))
        with pytest.raises(BrokerUnreachable):
            push(Broker(url, timeout=5, tls_ca=str(files / "ca.pem")))


def test_a_cluster(files):
    port, bus = free_ports(2)
    cluster = {"cluster-enabled": "yes", "cluster-port": str(bus), "tls-cluster": "yes"}
    options = server_options(files, port) | cluster
    with EmbeddedBroker(options=options, binary=debian_redis()) as server:
        admin = Admin(server)
        admin(b"CLUSTER", b"ADDSLOTSRANGE", 0, 16383)
        broker = as_party(files, f"rediss+cluster://127.0.0.1:{port}")
        while b"cluster_state:ok" not in bytes(admin(b"CLUSTER", b"INFO")):
            pass
        admin.close()
        assert push(broker) == 1
        assert broker.address(b"x") == ("127.0.0.1", port)


def test_sentinels_and_their_master(files, tmp_path):
    port, watcher = free_ports(2)
    name = tmp_path / "redis-sentinel"  # its mode goes by its name
    name.symlink_to(debian_redis())
    watch = {"sentinel monitor relay": f"127.0.0.1 {port} 1"}
    with (
        EmbeddedBroker(options=server_options(files, port), binary=debian_redis()),
        EmbeddedBroker(options=server_options(files, watcher) | watch, binary=name),
    ):
        broker = as_party(files, f"rediss+sentinel://127.0.0.1:{watcher}/relay")
        assert push(broker) == 1
        with pytest.raises(BrokerUnreachable, match="REDISLINK_BROKER_TLS_CA"):
            Broker(f"rediss+sentinel://127.0.0.1:{watcher}/relay", timeout=5).open()
