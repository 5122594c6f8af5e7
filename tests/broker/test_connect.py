"""Broker URLs and connections: every failure is one BrokerError or ConfigError, in one line."""

import socket
import threading

import pytest

from redislink import (
    BrokerAuthError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
)
from redislink.broker import Broker, EmbeddedBroker, Inbox, Outbox
from redislink.broker.inbox import Interrupted
from redislink.broker.url import parse_url
from redislink.broker.wire import ELEMENT
from redislink.errors import EndpointClosed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no scheme"),
        ("localhost:6379", "scheme"),
        ("http://host", "unknown scheme 'http'"),
        ("redis://", "without a host"),
        ("redis://host:port", "host or port is not valid"),
        ("redis://host:99999", "host or port is not valid"),
        ("redis://[::1", "host or port is not valid"),
        ("unix://", "without a path"),
        ("unix://run/redis.sock", "with a host"),
        ("redis://host:0", "host or port is not valid"),
        ("redis://host:1:2", "host or port is not valid"),
        ("redis://[host]:1", "host or port is not valid"),
        ("redis://ho*st", "host or port is not valid"),
        ("redis://host/prod", "database that is no number"),
        ("redis://host/1/2", "database that is no number"),
        ("redis://host/1e3", "database that is no number"),
        ("redis://host/-1", "database that is no number"),
        ("redis://host/٣", "database that is no number"),
        ("redis://host?db=prod", "database that is no number"),
        ("redis+sentinel://", "without a host"),
        ("redis+sentinel://host:1,host:2", "without the name"),
        ("redis+sentinel://host:1,host:port/name", "host or port is not valid"),
        ("redis+sentinel://host:1,:2/name", "host or port is not valid"),
        ("redis+sentinel://host/name/one", "database that is no number"),
        ("redis+cluster://:s3cret@", "without a host"),
        ("redis+cluster://host:99999,host", "host or port is not valid"),
        ("redis+cluster://host/1", "has database 0 alone"),
        ("redis+cluster://host?db=3", "has database 0 alone"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Broker(url)
    assert "redis://" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("redis://user:s3cret@host:1234/2", "redis://host:1234/2"),
        ("rediss://:s3cret@host", "rediss://host:6379"),
        ("redis://[::1]:7", "redis://[::1]:7"),
        ("unix://user:s3cret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("fakeredis://name", "fakeredis://name"),
        (
            "redis+sentinel://user:s3cret@a:1,b/name/2?sentinel_password=s3cret",
            "redis+sentinel://a:1,b:26379/name/2",
        ),
        ("rediss+sentinel://:s3,cret@[::1]:7,b/name", "rediss+sentinel://[::1]:7,b:26379/name"),
        ("REDIS+cluster://:s3cret@a,b:2/0", "redis+cluster://a:6379,b:2/0"),
        ("rediss+cluster://user:s3cret@[::1]:7", "rediss+cluster://[::1]:7"),
    ],
)
def test_the_label_holds_no_secret(url, label):
    assert Broker(url).label == label


def test_what_a_url_says():
    url = parse_url("rediss+sentinel://u:p%40@a:1,b/name/2?sentinel_password=q&ssl_cert_reqs=none")
    assert url.addresses == (("a", 1), ("b", 26379))
    assert (url.master, url.database, url.tls) == ("name", 2, True)
    assert (url.user, url.password) == ("u", "p@")
    assert (url.sentinel_user, url.sentinel_password) == ("", "q")
    assert (url.checks_certificate, url.checks_name) == (False, True)
    assert url.label_at(("h", 7)) == "rediss://h:7 (master of rediss+sentinel://a:1,b:26379/name/2)"
    assert "p@" not in repr(url)
    assert "'q'" not in repr(url)
    files = parse_url("rediss://h?ssl_ca_certs=/x%20y&ssl_check_hostname=no")
    assert (dict(files.tls_files), files.checks_name) == ({"ssl_ca_certs": "/x y"}, False)
    assert parse_url("redis://BRÜCKE.example").addresses == (("xn--brcke-lva.example", 6379),)
    assert parse_url("redis://[fe80::1%25eth0]:7").addresses == (("fe80::1%eth0", 7),)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        *(("redis://h", 0), ("redis://h/", 0), ("redis://h/3", 3), ("redis://h/3/", 3)),
        *(("redis://h?db=3", 3), ("redis://h/3?db=3", 3), ("unix:///run/x.sock?db=3", 3)),
        *(("redis+sentinel://h/name?db=3", 3), ("redis+cluster://h?db=0", 0)),
    ],
)
def test_the_database_is_the_same_wherever_the_url_has_it(url, database):
    assert parse_url(url).database == database


PASSWORD = "Sup3rS3cret"


@pytest.mark.parametrize(
    "sign", ["/", "?", "#", "@", "%", " ", "\t", "\n", "\x1b", "\u202e", "%ff"]
)
@pytest.mark.parametrize("start", ["", "42", "ab"])
@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://alice:{}@broker.example:6379/0",
            "rediss://:{}@h",
            "unix://alice:{}@/run/x.sock",
        ),
        *("redis+sentinel://a:{}@h1,h2/relay", "redis+cluster://a:{}@h:1", "redis://{}:pw@h"),
        *("redis+sentinel://h/relay?sentinel_password={}", "redis://{}@h/3"),
    ],
)
def test_a_password_that_is_not_percent_encoded_is_refused_and_not_shown(url, start, sign):
    if sign == "?" and "?" in url:
        return  # it may stand there
    if sign == "/" and "?" in url:
        return
    with pytest.raises(ConfigError, match="percent-encode") as caught:
        parse_url(url.format(f"{start}{sign}{PASSWORD}"))
    for part in (PASSWORD, PASSWORD.lower(), "alice"):
        assert part not in str(caught.value)


@pytest.mark.parametrize("tail", [f"42?{PASSWORD}", f"42/{PASSWORD}", f"42?{PASSWORD}=1"])
def test_nor_is_one_in_a_url_without_a_host(tail):
    with pytest.raises(ConfigError) as caught:
        parse_url(f"redis://alice:{tail}")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        # redis-py would let each of these win over what redislink sets.
        *(("redis://h?socket_timeout=1", "socket_timeout"), ("redis://h?protocol=3", "protocol")),
        *(("redis://h?max_connections=1", "max_connections"), ("redis://h?host=evil", "an option")),
        *(
            ("redis://h?health_check_interval=1", "health_check_interval"),
            ("redis://h?x", "option"),
        ),
        *(("redis://h?password=x", "password behind"), ("redis://h?username=x", "username behind")),
        *(("redis://h?ssl_cert_reqs=none", "TLS has rediss://"), ("redis://h?db=1&db=2", "twice")),
        *(("rediss://h?ssl_cert_reqs=some", "not known"), ("redis://h/1?db=2", "two databases")),
        *(
            ("rediss://h?ssl_check_hostname=", "not known"),
            ("rediss://h?ssl_ciphers=NULL", "option"),
        ),
        ("redis://h?sentinel_password=x", "sentinel_password with redis://"),
        ("redis+sentinel://h/name?sentinel_ssl_cert_reqs=none", "an option"),
    ],
)
def test_only_options_that_are_known_may_stand_in_a_url(url, message):
    with pytest.raises(ConfigError, match=message):
        Broker(url)


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        broker = Broker(f"redis://:s3cret@127.0.0.1:{taken.getsockname()[1]}", timeout=5)
        with pytest.raises(BrokerUnreachable, match="check that it runs") as caught:
            broker.open()
    assert "s3cret" not in str(caught.value)


def test_somebody_there_who_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = Broker(f"redis://127.0.0.1:{mute.getsockname()[1]}", timeout=0.1)
        connection = broker.open()
        with pytest.raises(BrokerUnreachable, match="waiting for a reply"):
            connection.execute(b"LLEN", b"x", timeout=0.1)
        assert not connection.usable


def test_tls_against_a_server_without_it(valkey):
    with pytest.raises(BrokerUnreachable, match="TLS"):
        Broker(valkey.url.replace("redis://", "rediss://"), timeout=0.5).open()


@pytest.mark.parametrize("credentials", [":wrong@", "nobody:wrong@", ""])
def test_credentials_that_are_not_accepted(credentials):
    with EmbeddedBroker(password="right") as server:
        broker = Broker(f"redis://{credentials}127.0.0.1:{server.port}", timeout=5)
        with pytest.raises(BrokerAuthError, match="check the user and password") as caught:
            broker.open().execute(b"LLEN", b"x", timeout=5)
        assert "wrong" not in str(caught.value)


def test_any_password_can_be_used():
    with EmbeddedBroker(password='p" \\ é:@/%?#') as server:
        assert Broker(server.url).open().execute(b"LLEN", b"x", timeout=5) == 0


def test_an_acl_that_forbids():
    with EmbeddedBroker(options={"user": "weak on >pw ~rl:* +llen +auth"}) as server:
        connection = Broker(f"redis://weak:pw@127.0.0.1:{server.port}").open()
        for command in ((b"RPUSH", b"rl:x", b"payload"), (b"LLEN", b"other")):
            with pytest.raises(BrokerPermissionError, match="redislink acl prints") as caught:
                connection.execute(*command, timeout=5)
            assert "payload" not in str(caught.value)
        assert connection.execute(b"LLEN", b"rl:x", timeout=5) == 0


def test_a_unix_socket(tmp_path):
    path = tmp_path / "valkey.sock"
    with EmbeddedBroker(options={"unixsocket": str(path)}):
        connection = Broker(f"unix://{path}").open()
        assert connection.execute(b"RPUSH", b"x", b"y", timeout=5) == 1


def test_an_error_reply_leaves_the_connection_in_step(valkey):
    connection = Broker(valkey.url).open()
    connection.send([(b"SET", b"string", b"1"), (b"RPUSH", b"string", b"x"), (b"GET", b"string")])
    assert connection.read(5) == b"OK"
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        connection.read(5)
    assert connection.read(5) == b"1"


@pytest.fixture
def outbox(valkey):
    outbox = Outbox(Broker(valkey.url), ttl=60)
    outbox.reconnect()
    yield outbox
    outbox.close()


def test_the_broker_says_of_each_push_whether_it_took_it(outbox):
    for token in ("first", "second"):
        outbox.push(b"outbox test", (b"x", b"y"), token, clear=True)
    assert outbox.flush()
    assert outbox.collect() == [("first", True), ("second", True)]
    assert not outbox.has_unread


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000])
def test_an_element_arrives_as_its_two_parts(valkey, outbox, size):
    outbox.push(b"two parts", (b"head", b"b" * size), clear=True)
    connection = Broker(valkey.url).open()
    assert outbox.flush()
    popped = connection.execute(b"LPOP", b"two parts", timeout=5, most=ELEMENT)
    assert bytes(popped) == b"head" + b"b" * size


def test_a_refused_push_breaks_the_outbox_until_it_is_reconnected(valkey, outbox):
    Broker(valkey.url).open().execute(b"SET", b"not a list", b"1", timeout=5)
    outbox.push(b"not a list", (b"x", b""))
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerRefused)
    assert not outbox.error.retryable
    outbox.push(b"dropped", (b"x", b""), "dropped")
    outbox.reconnect()
    assert outbox.error is None
    assert outbox.flush()
    assert outbox.collect() == []


def test_no_memory_refuses_a_push_and_leaves_the_connection_in_step():
    with EmbeddedBroker(options={"maxmemory": "2mb"}) as server:
        outbox = Outbox(Broker(server.url), ttl=60)
        outbox.reconnect()
        outbox.push(b"large", (b"x", b"x" * (4 << 20)), "large")
        outbox.delete(b"large")  # needs no memory
        assert outbox.flush()
        assert outbox.collect() == [("large", False)]
        outbox.close()


def test_after_close(outbox):
    outbox.close()
    with pytest.raises(EndpointClosed):
        outbox.push(b"x", (b"x", b""))


def test_a_broker_that_dies_ends_a_waiting_receive():
    with EmbeddedBroker() as server:
        wait = Inbox(Broker(server.url)).acquire()
        outcome = []

        def pop():
            try:
                wait.pop((b"x",), 10)
            except BrokerUnreachable as error:
                outcome.append(error)

        thread = threading.Thread(target=pop)
        thread.start()
        server.stop()
        thread.join(10)
    assert len(outcome) == 1


def test_an_interrupted_pop_ends_at_once_and_its_connection_is_not_reused(valkey):
    wait = Inbox(Broker(valkey.url)).acquire()
    outcome = []

    def pop():
        try:
            wait.pop((b"interrupted",), 10)
        except Interrupted as error:
            outcome.append(error)

    thread = threading.Thread(target=pop)
    thread.start()
    wait.interrupt()
    thread.join(10)
    assert len(outcome) == 1
    Broker(valkey.url).open().execute(b"RPUSH", b"interrupted", b"x", timeout=5)
    assert wait.pop((b"interrupted",), 10) == (b"interrupted", b"x")


@pytest.mark.parametrize("size", [10, 100_000])
def test_many_elements_of_a_list_are_asked_for_ahead(valkey, size):
    wait, connection = Inbox(Broker(valkey.url)).acquire(), Broker(valkey.url).open()
    name, elements = b"many %d" % size, [bytes([n]) * size for n in range(5)]
    connection.execute(b"RPUSH", name, *elements[:3], timeout=5)
    assert [bytes(wait.pop_of_many(name, 10, 5 - n, 1 << 20)) for n in range(3)] == elements[:3]
    assert wait.pop_of_many(name, 0.01, 2, 1 << 20) is None
    connection.execute(b"RPUSH", name, *elements[3:], b"next", timeout=5)
    assert bytes(wait.pop_of_many(name, 10, 2, 1 << 20)) == elements[3]
    assert connection.execute(b"LLEN", name, timeout=5) == 1, "both were asked for"
    assert bytes(wait.pop_of_many(name, 10, 1, 1 << 20)) == elements[4]
    in_step = wait._connection
    wait.end_many()
    assert wait.pop_one(name, 10) == b"next"
    assert wait._connection is in_step


@pytest.mark.parametrize(("size", "asked"), [(1, 32), (128 << 10, 16), (4 << 20, 2)])
def test_more_is_asked_for_ahead_the_smaller_it_is(valkey, size, asked):
    wait, connection = Inbox(Broker(valkey.url)).acquire(), Broker(valkey.url).open()
    name = b"ahead %d" % size
    assert wait.pop_of_many(name, 0.001, 100, size) is None
    connection.execute(b"RPUSH", name, *[b"x"] * 100, timeout=5)
    assert wait.pop_of_many(name, 10, asked, size) == b"x"
    assert connection.execute(b"LLEN", name, timeout=5) == 100 - asked
    wait.disconnect()


def test_an_interrupt_ends_a_pop_of_many(valkey):
    wait = Inbox(Broker(valkey.url)).acquire()
    assert wait.pop_of_many(b"interrupted many", 0.01, 3, 1) is None
    wait.interrupt()
    with pytest.raises(Interrupted):
        wait.pop_of_many(b"interrupted many", 10, 3, 1)
    Broker(valkey.url).open().execute(b"RPUSH", b"other", b"x", timeout=5)
    assert wait.pop_one(b"other", 10) == b"x"
