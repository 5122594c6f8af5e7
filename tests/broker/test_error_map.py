"""Every error reply of a server means one thing, in whichever command and on whichever broker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from redislink.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.error_map import SERVER_ERRORS, classify, own_words
from redislink.errors import (
    BrokerAuthError,
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
)
from tests.conftest import connect_as, in_thread, make_cluster, quick_settings
from tests.support.resp_server import HOST, OK, RespServer, encode

# As servers of Redis 6.2, 7.0 and Valkey 9.1, sentinels, and a proxy say it.
REPLIES: dict[str, tuple[type[BrokerError], str]] = {
    "NOPERM User x has no permissions to run the 'rpush' command": (
        BrokerPermissionError,
        "redislink acl",
    ),
    "NOAUTH Authentication required.": (BrokerAuthError, "none was given"),
    "WRONGPASS invalid username-password pair or user is disabled.": (BrokerAuthError, "check the"),
    "ERR invalid password": (BrokerAuthError, "check the user and password"),
    "ERR AUTH <password> called without any password configured for the default user. Are you "
    "sure your configuration is correct?": (
        BrokerAuthError,
        "it has no password, but was given one",
    ),
    "ERR Client sent AUTH, but no password is set": (BrokerAuthError, "it has no password"),
    "ERR wrong number of arguments for 'auth' command": (BrokerAuthError, "check the user"),
    "DENIED Redis is running in protected mode because": (BrokerRefused, "protected mode"),
    "ERR max number of clients reached": (BrokerBusy, "raise its maxclients"),
    "ERR max number of clients + cluster connections reached": (BrokerBusy, "maxclients"),
    "OOM command not allowed when used memory > 'maxmemory'.": (BrokerBusy, "raise its maxmemory"),
    "LOADING Redis is loading the dataset in memory": (BrokerBusy, "loading its data"),
    "BUSY Redis is busy running a script.": (BrokerBusy, "SCRIPT KILL"),
    "MISCONF Redis is configured to save RDB snapshots": (BrokerBusy, "cannot save to its disk"),
    "NOREPLICAS Not enough good replicas to write.": (BrokerBusy, "min-replicas-to-write"),
    "MASTERDOWN Link with MASTER is down": (BrokerBusy, "lost its master"),
    "CLUSTERDOWN The cluster is down": (BrokerBusy, "CLUSTER INFO"),
    "ASK 3999 127.0.0.1:6381": (BrokerBusy, "being moved"),
    "TRYAGAIN Multiple keys request during rehashing of slot": (BrokerBusy, "being moved"),
    "IOERR error or timeout writing to target instance": (BrokerBusy, "does not reach it"),
    "no upstream host": (BrokerBusy, "proxy"),
    "ERR Protocol error: invalid bulk length": (BrokerUnreachable, "proto-max-bulk-len"),
    "MOVED 3999 127.0.0.1:6381": (BrokerRefused, r"redis\+cluster://"),
    "READONLY You can't write against a read only replica.": (
        BrokerUnreachable,
        "is a replica now",
    ),
    "UNBLOCKED force unblock from blocking operation": (BrokerUnreachable, "is a replica now"),
    "ERR DB index is out of range": (BrokerRefused, "no database of this number"),
    "ERR invalid DB index": (BrokerRefused, "no database of this number"),
    "ERR SELECT is not allowed in cluster mode": (BrokerRefused, "no database of this number"),
    "ERR This instance has cluster support disabled": (
        BrokerRefused,
        "not a node of a Redis Cluster",
    ),
    "ERR unknown command 'BLPOP', with args beginning with: 'x' '5'": (BrokerRefused, "a service"),
    "WRONGTYPE Operation against a key holding the wrong kind of value": (
        BrokerRefused,
        "holds something else",
    ),
    "CROSSSLOT Keys in request don't hash to the same slot": (BrokerRefused, "in several slots"),
    "ERR something that nobody has heard of": (BrokerRefused, "see its log"),
    "": (BrokerRefused, "refused a command"),
}
AT: dict[str, tuple[bytes, str]] = {
    "AUTH": (b"AUTH", "redis://someone:some-password@{}"),
    "SELECT": (b"SELECT", "redis://{}/3"),
    "a command": (b"LLEN", "redis://{}"),
}


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("reply", REPLIES)
def test_a_servers_error_is_called_the_same_wherever_it_comes(reply: str, at: str) -> None:
    (kind, words), (refused, url) = REPLIES[reply], AT[at]
    with RespServer(lambda c: b"-%b\r\n" % reply.encode() if c[0] == refused else OK) as server:
        broker = Broker(url.format(f"{HOST}:{server.port}"), timeout=5)
        with pytest.raises(BrokerError, match=words) as caught:
            broker.open().execute(b"LLEN", b"x", timeout=5)
    error = caught.value
    assert type(error) is kind
    assert error.retryable == classify(reply).retryable == (kind in (BrokerBusy, BrokerUnreachable))
    assert str(error).isprintable()
    remedy = str(error).rpartition(": ")[2]
    assert remedy == classify(reply).remedy, "its last part is what to do"


def test_every_row_of_the_table_is_tried() -> None:
    assert {classify(reply).called for reply in REPLIES} == {row.called for row in SERVER_ERRORS}
    for row in SERVER_ERRORS:
        assert all(begin == begin.upper() for begin in row.begins), row
        assert classify("x" if row.begins == ("",) else row.begins[0]).called == row.called


@pytest.mark.parametrize("url", ["redis+sentinel://{}/relay", "redis+cluster://{}"])
def test_nor_does_it_matter_of_what_kind_the_broker_is(url: str) -> None:
    said = b"-ERR max number of clients reached\r\n"
    with RespServer(lambda _: said) as server:
        broker = Broker(url.format(f"u:some-password@{HOST}:{server.port}"), timeout=5)
        with pytest.raises(BrokerBusy, match="as many connections as it takes"):
            broker.open()


def test_what_a_server_quotes_of_our_command_is_not_shown() -> None:
    said = "ERR unknown command `RPUSH`, with args beginning with: `rl:x`, `a patient's name`"
    assert own_words(said) == "ERR unknown command `RPUSH`"
    assert (
        own_words("ERR \x1b[31m\nred\u202e")
        == "ERR \N{REPLACEMENT CHARACTER}[31m red\N{REPLACEMENT CHARACTER}"
    )


QUOTED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda secret: b"-ERR what is " + secret,
    "in another error": lambda secret: b"-WRONGPASS for " + secret + b" of someone",
    "percent-encoded": lambda _: b"-WRONGPASS no%2Fsecret%40here",
    "in arguments": lambda s: (
        b"-ERR unknown command 'AUTH', with args beginning with: '%b'" % s[:4]
    ),
    "backwards": lambda secret: b"-ERR " + secret[::-1],
}


@pytest.mark.parametrize("how", QUOTED)
def test_user_and_password_are_cut_out_of_what_a_server_says(how: str) -> None:
    secret = b"no/secret@here"
    with RespServer(lambda _: QUOTED[how](secret) + b"\r\n") as server:
        url = f"redis://someone:no%2Fsecret%40here@{HOST}:{server.port}"
        with pytest.raises(BrokerError) as caught:
            Broker(url, timeout=5).open()
    for part in ("no/s", "secret", "terces", "someone"):
        assert part not in str(caught.value)


def test_also_later_than_at_the_login() -> None:
    with RespServer(lambda c: OK if c[0] == b"AUTH" else b"-ERR no s3cret of me, x\r\n") as server:
        connection = Broker(f"redis://me:s3cret@{HOST}:{server.port}", timeout=5).open()
        with pytest.raises(BrokerRefused, match=r"ERR no \*\*\* of \*\*\*, x"):
            connection.execute(b"LLEN", b"x", timeout=5)


@pytest.mark.parametrize("credentials", ["", ":some-password@"])
def test_a_broker_that_is_full_for_a_moment_is_waited_for(valkey: Any, credentials: str) -> None:
    """With a login or without, behind which the same reply used to end the session at once."""
    refusals = threading.Semaphore(0)
    room = threading.Event()
    real = Broker(valkey.url).open()
    lock = threading.Lock()

    def answer(command: list[bytes]) -> bytes:
        if not room.is_set():
            refusals.release()
            return b"-ERR max number of clients reached\r\n"
        if command[0] == b"AUTH":
            return OK
        if command[0] == b"BLPOP":  # nobody else comes
            return b"*-1\r\n"
        if command[0] == b"CLIENT":  # would change the connection that all share
            return b"-ERR unknown command\r\n"
        with lock:
            reply = real.execute(*command, timeout=5)
        return OK if reply == b"OK" else encode(reply)

    with RespServer(answer) as server:
        cluster = make_cluster(f"redis://{HOST}:{server.port}", 2)
        url = f"redis://{credentials}{HOST}:{server.port}"
        settings = quick_settings(broker_url=url, connect_timeout=0.5)
        thread, outcome = in_thread(lambda: connect_as(cluster, "alice", settings))
        for _ in range(5):  # more than the tries that a broker gets that is not there
            assert refusals.acquire(timeout=20)
        room.set()
        thread.join(20)
    assert type(outcome[0]).__name__ == "HandshakeTimeout", outcome


def test_what_a_server_said_before_it_hung_up_is_the_cause() -> None:
    # Then writing fails first, with no more than "Broken pipe".
    with socket.create_server((HOST, 0)) as server:
        connection = Broker(f"redis://{HOST}:{server.getsockname()[1]}").open()
        taken, _ = server.accept()
        taken.sendall(b":1\r\n-ERR max number of clients reached\r\n")
        taken.close()
        with pytest.raises(BrokerUnreachable, match="as many connections as it takes"):
            _write_until_it_fails(connection)
        assert not connection.usable


def _write_until_it_fails(connection: BrokerConnection) -> None:
    while True:
        connection.write((b"PING\r\n",))


def test_what_lasts_ends_with_its_own_name() -> None:
    with RespServer(lambda _: b"-ERR max number of clients reached\r\n") as server:
        cluster = make_cluster(f"redis://{HOST}:{server.port}", 2)
        with pytest.raises(BrokerBusy, match=r"refused this party for .*raise its maxclients"):
            connect_as(cluster, "alice", quick_settings(broker_timeout=0.05))


def test_peers_are_told_the_class_of_a_brokers_error_alone(valkey: Any) -> None:
    from redislink.errors import ConfigError, PeerLost, reason_for_peers

    for error, told in (
        (BrokerRefused("host, path and what it said"), "BrokerRefused at its broker"),
        (BrokerAuthError("s3cret"), "BrokerAuthError at its broker"),
        (ConfigError("/home/alice/key"), "ConfigError in its program"),
        (KeyError("patient 7"), "KeyError in its program"),
    ):
        assert reason_for_peers(error) == told
    lost = PeerLost("bob", 3.0)
    assert reason_for_peers(lost) == str(lost)
