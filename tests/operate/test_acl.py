"""One Redis user per party, on real servers: what a party needs is let through, nothing else."""

import logging
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from redislink import BrokerAuthError, BrokerPermissionError, ConfigError, PartyTaken
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.wire import LISTING
from redislink.operate import acl
from redislink.protocol import list_names
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.groups import ClusterGroup
from tests.support.renewals import Renewals

NAMES = ("alice", "bob", "carol")
EPOCH = "0123456789abcdef"
SESSION = "acl-test"


def run(url, *command):
    """The reply to one command, on a connection of its own."""
    connection = Broker(url).open()
    try:
        return connection.execute(*command, timeout=5)
    finally:
        connection.close()


def give_users(server, session, names=NAMES):
    """Make the users of a session; each party's URL."""
    users = acl.party_users(session, names)
    passwords = {name: acl.make_password() for name in names}
    acl.apply_users(Broker(server.url), users, passwords)
    return {u.party: acl.party_url(server.url, u.name, passwords[u.party]) for u in users}


@pytest.fixture(scope="module")
def urls(real_server):
    """Of three parties; another session with the same names is on the same server."""
    give_users(real_server, "other")
    return give_users(real_server, SESSION)


def data(dst, src, session=SESSION):
    return list_names.data_list(session, dst, src, EPOCH, "t")


def forbidden(me):
    """What party ``me`` must not be able to do, as (what it would be, command)."""
    peer, third = (name for name in NAMES if name != me)
    # Lists that it may not read: others' inboxes, what it pushed there itself, another session.
    for name in (
        data(peer, third),
        data(peer, me),
        list_names.control_list(SESSION, peer, third, EPOCH),
        list_names.hello_list(SESSION, peer, third),
        list_names.claim_key(SESSION, peer),
        data(me, peer, "other"),
        data(peer, third, "other"),
        list_names.claim_key("other", me),
        b"something else",
    ):
        yield "pop", (b"BLPOP", name, 0.01)
        yield "pop with own", (b"BLPOP", data(me, peer), name, 0.01)
        yield "pop", (b"LPOP", name)
        yield "read", (b"LRANGE", name, 0, -1)
        yield "read", (b"GET", name)
        yield "read", (b"PTTL", name)
        yield "look", (b"LLEN", name)
        yield "look", (b"EXISTS", name)
        yield "look", (b"TYPE", name)
        yield "copy", (b"COPY", name, data(me, peer))
        yield "copy", (b"DUMP", name)
        yield "move", (b"RENAME", name, data(me, peer))
        yield "move", (b"LMOVE", name, data(me, peer), b"LEFT", b"RIGHT")
    # Keys that it may not write: whatever does not begin with a peer's inbox and its own name.
    for name in (
        data(peer, third),
        list_names.control_list(SESSION, peer, third, EPOCH),
        list_names.hello_list(SESSION, peer, third),
        list_names.claim_key(SESSION, peer),
        data(peer, me, "other"),
        data(me, peer, "other"),
        f"rl:{{{SESSION}:{peer}}}:{me}".encode(),
        f"rl:{{{SESSION}:{peer}}}:{me}x:{EPOCH}:t".encode(),
        f"rl:{{{SESSION}:{peer}}}:{third}:{me}:0:t".encode(),
        f"rl:{{{SESSION}:{peer}}}:*:{EPOCH}:t".encode(),
        f"rl:{{{SESSION}:{peer}}}::{me}:t".encode(),
        f"rl:{{{SESSION}:{peer}}}}}:{me}:t".encode(),
        f"rl:{{{SESSION}:{peer}:{me}}}:{third}:t".encode(),
        f"rl:{{{SESSION}:*}}:{me}:{EPOCH}:t".encode(),
        f"xrl:{{{SESSION}:{peer}}}:{me}:{EPOCH}:t".encode(),
        f"RL:{{{SESSION}:{peer}}}:{me}:{EPOCH}:t".encode(),
        f"rl:{{{SESSION}:{peer}}}:{third}:{EPOCH}::{me}:t".encode(),
        f"rl:{{{SESSION}:{peer}}}:{third}:{EPOCH}:\n{me}:t".encode(),
        b"something else",
        b"",
    ):
        yield "push", (b"RPUSH", name, b"x")
        yield "remove", (b"DEL", name)
        yield "remove with own", (b"DEL", data(peer, me), name)
        yield "expire", (b"PEXPIRE", name, 1)
        yield "set", (b"SET", name, b"x", b"PX", 6000, b"NX")
    # Its own inbox is for the others to push onto, and its claim alone is a string.
    yield "push to itself", (b"RPUSH", data(me, peer), b"x")
    yield "set a list", (b"SET", data(peer, me), b"x")
    yield "set another's status", (b"SET", list_names.status_key(SESSION, peer), b"x", b"PX", 6000)
    yield "read a status", (b"GET", list_names.status_key(SESSION, peer))
    yield "read its own status", (b"GET", list_names.status_key(SESSION, me))
    yield "set a list of its own", (b"SET", data(me, peer), b"x")
    yield "read by another command", (b"GET", data(me, peer))
    for words in (
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "SELECT 1",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "CONFIG RESETSTAT",
        "EVAL return(1) 0",
        f"EVAL return(redis.call('keys','*')) 1 rl:{{{SESSION}:{me}}}:x",
        "EVAL_RO return(1) 0",
        "EVALSHA 0000000000000000000000000000000000000000 0",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "FCALL f 0",
        "CLIENT KILL TYPE normal",
        "CLIENT LIST",
        "CLIENT PAUSE 1000",
        "CLIENT NO-EVICT on",
        "CLIENT SETNAME x",
        "MONITOR",
        "ACL LIST",
        "ACL WHOAMI",
        "ACL SETUSER default on nopass",
        f"ACL SETUSER {SESSION}~{me} +@all",
        "INFO",
        "COMMAND",
        "OBJECT ENCODING x",
        "SHUTDOWN NOSAVE",
        "REPLICAOF 127.0.0.1 1",
        "PSYNC ? -1",
        "SAVE",
        "BGREWRITEAOF",
        "MODULE LIST",
        "SLOWLOG GET",
        "LATENCY RESET",
        "SUBSCRIBE x",
        "PSUBSCRIBE *",
        "PUBLISH x y",
        "MULTI",
        "WAIT 0 0",
        "TIME",
    ):
        yield words.partition(" ")[0], tuple(word.encode() for word in words.split(" "))


@pytest.mark.parametrize("me", NAMES)
def test_every_forbidden_thing_is_refused(real_server, urls, me):
    peer, third = (name for name in NAMES if name != me)
    for name in (data(peer, third), data(me, peer), data(me, peer, "other")):
        run(real_server.url, b"RPUSH", name, b"secret")
    connection = Broker(urls[me]).open()
    tried = 0
    for what, command in forbidden(me):
        with pytest.raises(BrokerPermissionError, match="permission denied"):
            raise AssertionError(f"{what} {command}: {connection.execute(*command, timeout=5)}")
        tried += 1
    assert tried > 250
    # The control: on the same connection, what it needs goes through, and nothing was changed.
    assert connection.execute(b"LPOP", data(me, peer), timeout=5) == b"secret"
    assert connection.execute(b"RPUSH", data(peer, me), b"x", timeout=5) == 1
    connection.close()
    assert run(real_server.url, b"LRANGE", data(peer, third), 0, -1) == [b"secret"]
    assert run(real_server.url, b"LRANGE", data(me, peer, "other"), 0, -1) == [b"secret"]
    run(real_server.url, b"FLUSHALL")


def every_command(described):
    """Each command and subcommand of a server, with as many arguments as it takes."""
    for name, arity, flags, *_, subcommands in described:
        if subcommands:
            yield from every_command(subcommands)
        elif b"no_auth" not in flags:  # AUTH, HELLO, QUIT, RESET: open before the login too
            words = name.split(b"|")
            yield [*words, *[b"1"] * (abs(arity) - len(words))]


def test_no_other_command_is_granted(real_server, urls):
    admin = Broker(real_server.url).open()
    commands = list(every_command(admin.execute(b"COMMAND", timeout=5, most=LISTING)))
    assert len(commands) > 300
    for user in acl.party_users(SESSION, NAMES):
        known = set()
        for command in commands:
            said = admin.execute(b"ACL", b"DRYRUN", user.name, *command, timeout=5)
            keyless = b" ".join(command[:2]).lower() in (b"ping", b"client reply")
            if b"no permissions to run" not in said and not keyless:
                assert b"no permissions to access" in said, "but not on a key like this"
                known.add(command[0].decode())
        assert known == {*acl.PUSH, *acl.POP, *acl.CLAIM, *acl.STATUS}
    admin.close()


@pytest.mark.slow
def test_a_session_needs_no_more_and_no_less(real_server):
    cluster = make_cluster(real_server.url)
    urls = give_users(real_server, cluster.session)
    admin = Broker(real_server.url).open()
    admin.execute(b"ACL", b"LOG", b"RESET", timeout=5)
    admin.execute(b"CONFIG", b"RESETSTAT", timeout=5)

    def settings(name):
        return quick_settings(broker_url=urls[name], close_timeout=1)

    endpoints = run_parties(
        *(lambda name=name: connect_as(cluster, name, settings(name)) for name in NAMES)
    )

    def work(me):
        for other in (e for e in endpoints if e is not me):
            me.send(other.party, "t", me.party.encode() * 100_000)
        for other in (e for e in endpoints if e is not me):
            assert me.recv(other.party, "t") == other.party.encode() * 100_000
            assert not me.has_message(other.party, "u")

    run_parties(*(lambda e=e: work(e) for e in endpoints))
    with pytest.raises(PartyTaken):  # waits until the claim has been renewed once
        connect_as(cluster, "alice", settings("alice"))
    run_parties(*(endpoint.close for endpoint in endpoints))

    assert admin.execute(b"ACL", b"LOG", timeout=5) == []
    stats = admin.execute(b"INFO", b"commandstats", timeout=5).decode()
    used = {line.partition(":")[0].removeprefix("cmdstat_") for line in stats.split()[2:]}
    admins = {"acl|log", "config|resetstat", "info"}
    party = {*acl.ANSWERS, *acl.HUSH, *acl.PUSH, *acl.POP, *acl.CLAIM, *acl.STATUS}
    assert used - admins == {*party, "auth"}
    admin.close()


def test_a_user_of_one_session_is_none_of_another(real_server, urls):
    cluster = make_cluster(real_server.url)
    with pytest.raises(BrokerPermissionError, match="permission denied"):
        connect_as(cluster, "alice", quick_settings(broker_url=urls["alice"]))


OPERATOR = "watcher"


@pytest.fixture(scope="module")
def operator_url(real_server):
    user = acl.operator_user(SESSION, NAMES, OPERATOR)
    acl.apply_users(Broker(real_server.url), [user], {OPERATOR: "pw"})
    return acl.party_url(real_server.url, user.name, "pw")


def test_an_operator_watches_and_purges(real_server, operator_url):
    name = data("alice", "bob")
    run(real_server.url, b"RPUSH", name, b"secret")
    for party in NAMES:
        for key in (list_names.claim_key(SESSION, party), list_names.status_key(SESSION, party)):
            run(real_server.url, b"SET", key, b"said")
            assert run(operator_url, b"GET", key) == b"said"
    assert name in run(operator_url, b"SCAN", 0, b"COUNT", 10_000)[1]
    assert run(operator_url, b"TYPE", name) == b"list"
    assert run(operator_url, b"LLEN", name) == 1
    assert run(operator_url, b"PTTL", name) == -1
    assert run(operator_url, b"MEMORY", b"USAGE", name) > 0
    assert run(operator_url, b"UNLINK", name) == 1
    assert run(operator_url, b"DEL", name) == 0
    run(real_server.url, b"FLUSHALL")


def test_an_operator_reads_no_message_and_changes_nothing_else(real_server, operator_url):
    mine, others = data("alice", "bob"), data("alice", "bob", "other")
    for name in (mine, others):
        run(real_server.url, b"RPUSH", name, b"secret")
    connection = Broker(operator_url).open()
    for command in (
        *((words, name) for name in (mine, others) for words in (b"LPOP", b"GET", b"DUMP")),
        (b"LRANGE", mine, 0, -1),
        (b"LINDEX", mine, 0),
        (b"BLPOP", mine, 0.01),
        (b"LMOVE", mine, others, b"LEFT", b"RIGHT"),
        (b"COPY", mine, list_names.claim_key(SESSION, "alice")),
        (b"RENAME", mine, list_names.claim_key(SESSION, "alice")),
        (b"SORT", mine),
        (b"RPUSH", mine, b"x"),
        (b"PEXPIRE", mine, 1),
        (b"SET", list_names.claim_key(SESSION, "alice"), b"x"),
        (b"SET", list_names.status_key(SESSION, "alice"), b"x"),
        (b"LLEN", others),
        (b"TYPE", others),
        (b"UNLINK", others),
        (b"DEL", mine, others),
        (b"UNLINK", b"rl"),
        (b"UNLINK", f"rl:{{{SESSION}".encode()),
        (b"UNLINK", f"rl:{{{SESSION}X:alice}}:bob:0:t".encode()),
        (b"MEMORY", b"DOCTOR"),
        (b"FLUSHALL",),
        (b"KEYS", b"*"),
        (b"EVAL", b"return 1", 0),
        (b"CONFIG", b"GET", b"*"),
        (b"MONITOR",),
    ):
        with pytest.raises(BrokerPermissionError, match="permission denied"):
            raise AssertionError(f"{command}: {connection.execute(*command, timeout=5)}")
    connection.close()
    for name in (mine, others):
        assert run(real_server.url, b"LRANGE", name, 0, -1) == [b"secret"]
    run(real_server.url, b"FLUSHALL")


@pytest.mark.parametrize("name", ["alice", "", "a b", "~x"])
def test_an_operator_has_a_name_of_its_own(name):
    with pytest.raises(ConfigError):
        acl.operator_user(SESSION, NAMES, name)


class Records(logging.Handler):
    """What the library says at any level."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.mark.slow
def test_users_made_before_there_was_a_status_go_on_working(real_server, monkeypatch):
    cluster = make_cluster(real_server.url, 2)
    names = cluster.party_names
    older = [
        replace(user, rules=tuple(rule for rule in user.rules if "!status" not in rule))
        for user in acl.party_users(cluster.session, names)
    ]
    acl.apply_users(Broker(real_server.url), older, dict.fromkeys(names, "pw"))
    urls = {u.party: acl.party_url(real_server.url, u.name, "pw") for u in older}
    renewals = Renewals(monkeypatch)
    logger, records = logging.getLogger("redislink"), Records()
    logger.addHandler(records)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        endpoints = run_parties(
            *(lambda n=n: connect_as(cluster, n, quick_settings(broker_url=urls[n])) for n in names)
        )
        alice, bob = endpoints
        for number in range(20):  # over many times that the claims are renewed
            alice.send("bob", f"t{number}", b"x")
            assert bob.recv("alice", f"t{number}") == b"x"
            renewals.wait_for_next(list_names.claim_key(cluster.session, "alice"))
        run_parties(*(endpoint.close for endpoint in endpoints))
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)
    said = [line for line in records.lines if "publishes no status" in line]
    assert len(said) == len(names), said
    assert not run(real_server.url, b"EXISTS", list_names.claim_key(cluster.session, "alice"))


def test_one_party_cannot_run_as_another(real_server):
    cluster = make_cluster(real_server.url)
    urls = give_users(real_server, cluster.session)
    with pytest.raises(BrokerPermissionError, match="permission denied"):
        connect_as(cluster, "bob", quick_settings(broker_url=urls["alice"]))


def test_a_password_is_changed_by_applying_again(real_server):
    first = give_users(real_server, "again")["bob"]
    second = give_users(real_server, "again")["bob"]
    with pytest.raises(BrokerAuthError):
        run(first, b"LPOP", data("bob", "alice", "again"))
    assert run(second, b"LPOP", data("bob", "alice", "again")) is None


def test_users_are_removed(real_server):
    url = give_users(real_server, "gone")["bob"]
    acl.remove_users(Broker(real_server.url), acl.party_users("gone", NAMES))
    with pytest.raises(BrokerAuthError):
        run(url, b"LPOP", data("bob", "alice", "gone"))


def test_another_database(real_server):
    users = acl.party_users("db3", NAMES, 3)
    passwords = dict.fromkeys(NAMES, "pw")
    acl.apply_users(Broker(real_server.url), users, passwords)
    url = acl.party_url(real_server.url, users[0].name, "pw")
    name = data("alice", "bob", "db3")
    assert run(url.removesuffix("/0") + "/3", b"LPOP", name) is None
    with pytest.raises(BrokerPermissionError, match="select"):
        run(url.removesuffix("/0") + "/4", b"LPOP", name)


def test_an_acl_file_turns_everybody_else_away(real_server, tmp_path):
    """The whole way of an operator: a server that reads the file, and is restarted never."""
    path = tmp_path / "users.acl"
    path.write_text("user default on nopass ~* &* +@all\n")
    users = acl.party_users("file", NAMES)
    passwords = acl.keep_passwords(tmp_path / "passwords", NAMES)
    with EmbeddedBroker(options={"aclfile": str(path)}) as server:
        admin = Broker(server.url).open()
        path.write_text(acl.acl_file(users, passwords))
        assert admin.execute(b"ACL", b"LOAD", timeout=5) == b"OK"
        with pytest.raises((BrokerAuthError, BrokerPermissionError)):
            run(server.url, b"LPOP", b"x")
        for user in users:
            url = acl.party_url(server.url, user.name, passwords[user.party])
            name = data(user.party, NAMES[user.party == NAMES[0]], "file")
            assert run(url, b"LPOP", name) is None
            with pytest.raises(BrokerPermissionError):
                run(url, b"LPOP", b"x")
    assert not any(password in path.read_text() for password in passwords.values())


def test_only_an_admin_can_apply(urls):
    with pytest.raises(BrokerPermissionError, match=r"log in as an administrator, .*, or paste"):
        acl.apply_users(
            Broker(urls["alice"]), acl.party_users("x", NAMES), dict.fromkeys(NAMES, "")
        )


def test_a_default_user_that_is_on_is_seen(real_server):
    assert acl.default_user_is_on(Broker(real_server.url))
    run(real_server.url, b"ACL", b"SETUSER", b"admin", b"on", b">pw", b"~*", b"+@all")
    admin = acl.party_url(real_server.url, "admin", "pw")
    run(admin, b"ACL", b"SETUSER", b"default", b"off")
    try:
        assert not acl.default_user_is_on(Broker(admin))
    finally:
        run(admin, b"ACL", b"SETUSER", b"default", b"on")


class TestPasswords:
    def test_they_are_kept_and_private(self, tmp_path):
        directory = tmp_path / "new" / "passwords"
        first = acl.keep_passwords(directory, NAMES)
        assert len(set(first.values())) == len(NAMES)
        assert all(len(password) >= 40 for password in first.values())
        assert directory.stat().st_mode & 0o077 == 0
        for name in NAMES:
            assert acl.password_file(directory, name).stat().st_mode & 0o777 == 0o600
        acl.password_file(directory, "bob").unlink()
        second = acl.keep_passwords(directory, NAMES)
        assert [first[name] == second[name] for name in NAMES] == [True, False, True]

    def test_one_that_others_can_read(self, tmp_path):
        acl.keep_passwords(tmp_path, NAMES)
        acl.password_file(tmp_path, "bob").chmod(0o640)
        with pytest.raises(ConfigError, match=r"bob\.password: others on this machine can read"):
            acl.keep_passwords(tmp_path, NAMES)

    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff\n"])
    def test_one_that_is_empty_is_not_used(self, tmp_path, content):
        path = acl.password_file(tmp_path, "bob")
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bob\.password: is empty"):
            acl.keep_passwords(tmp_path, NAMES)

    def test_a_directory_that_cannot_be(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="take another"):
            acl.keep_passwords(tmp_path / "file", NAMES)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://admin:pw@host:1/0", "redis://s~a:p%40w@host:1/0"),
        ("rediss://[::1]", "rediss://s~a:p%40w@[::1]"),
        ("unix:///run/redis.sock?db=1", "unix://s~a:p%40w@/run/redis.sock?db=1"),
    ],
)
def test_a_url_with_other_credentials(url, expected):
    assert acl.party_url(url, "s~a", "p@w") == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", 0),
        ("redis://h", 0),
        ("redis://h/", 0),
        ("redis://h/7", 7),
        ("unix:///7", 0),
        ("redis+sentinel://h,i/n/3", 3),
        ("redis+cluster://h", 0),
    ],
)
def test_the_database_of_a_url(url, expected):
    assert acl.database(url) == expected


def test_the_database_of_what_is_no_url():
    with pytest.raises(ConfigError, match="not valid: write redis://"):
        acl.database("redis://[::1")


def test_no_two_users_have_the_same_name():
    names = [
        user.name
        for session, parties in (("a", ("b-c", "c")), ("a-b", ("c", "a")), ("a.b", ("c", "a")))
        for user in acl.party_users(session, parties)
    ]
    assert len(set(names)) == len(names)


def test_the_documentation_has_every_command():
    text = (Path(__file__).parents[2] / "docs" / "broker.md").read_text()
    for command in {*acl.PUSH, *acl.POP, *acl.CLAIM, *acl.STATUS}:
        assert f"| `{command.upper()}` |" in text
    for command in {*acl.FIND, *acl.WATCH, *acl.SAID, *acl.PURGE}:
        assert f"| `{command.upper().replace('|', ' ')}` |" in text
    for rule in acl.party_users("SESSION", ("ME", "PEER"))[0].rules:
        assert rule in text
    for user in acl.party_users("SESSION", ("ME", "PEER"), drivers=("DRIVER",)):
        if user.party != "PEER":
            assert all(rule in text for rule in user.rules)
    for rule in acl.operator_user("SESSION", ("A", "B"), "NAME").rules:
        assert rule in text


@pytest.fixture(scope="module")
def urls_with_jobs(real_server):
    users = acl.party_users(TestJobs.SESSION, NAMES, drivers=("dora", "dan"))
    users.append(acl.operator_user(TestJobs.SESSION, NAMES, "olga", drivers=("dora", "dan")))
    passwords = {user.party: acl.make_password() for user in users}
    acl.apply_users(Broker(real_server.url), users, passwords)
    return {u.party: acl.party_url(real_server.url, u.name, passwords[u.party]) for u in users}


class TestJobs:
    """What the users may do where the cluster file has drivers."""

    SESSION = "with-jobs"
    JOB = "with-jobs.j0123456789ab"

    def letters(self, dst, src, tag):
        return list_names.letter_list(self.SESSION, dst, src, tag)

    def allowed(self, who):
        offers, jobs, answers = list_names.LETTER_TAGS
        if who == "dora":
            yield "RPUSH", self.letters("alice", "dora", offers), "x"
            yield "PEXPIRE", self.letters("alice", "dora", offers), 1000
            yield "DEL", self.letters("alice", "dora", offers)
            yield "BLPOP", self.letters("dora", "alice", answers), 0.01
        elif who == "alice":
            for name in (
                self.letters("bob", "alice", jobs),
                self.letters("bob", "alice", offers),
                self.letters("alice", "alice", offers),
                self.letters("alice", "alice", answers),
                self.letters("dora", "alice", answers),
                data("bob", "alice", self.JOB),
            ):
                yield "RPUSH", name, "x"
                yield "PEXPIRE", name, 1000
                yield "DEL", name
            yield "BLPOP", self.letters("alice", "dora", offers), 0.01
            yield "BLPOP", data("alice", "bob", self.JOB), 0.01
            claim, status = (
                of(self.JOB, "alice") for of in (list_names.claim_key, list_names.status_key)
            )
            yield "SET", claim, "x", "PX", 1000, "NX"
            yield "GET", claim
            yield "SET", status, "x", "PX", 1000
        else:
            yield "LLEN", data("alice", "bob", self.JOB)
            yield "GET", list_names.status_key(self.JOB, "alice")
            yield "UNLINK", data("alice", "bob", self.JOB)

    def forbidden(self, who):
        offers, jobs, answers = list_names.LETTER_TAGS
        if who == "dora":
            yield "RPUSH", self.letters("alice", "dan", offers), "x"
            yield "RPUSH", self.letters("alice", "dora", jobs), "x"
            yield "RPUSH", data("alice", "dora", self.SESSION), "x"
            yield "RPUSH", data("alice", "dora", self.JOB), "x"
            yield "BLPOP", self.letters("dan", "alice", answers), 0.01
            yield "BLPOP", self.letters("alice", "dora", offers), 0.01
            yield "SET", list_names.claim_key(self.SESSION, "dora"), "x"
            yield "GET", list_names.status_key(self.SESSION, "alice")
        elif who == "alice":
            yield "RPUSH", self.letters("bob", "dora", offers), "x"
            yield "RPUSH", self.letters("dora", "bob", answers), "x"
            yield "RPUSH", self.letters("alice", "bob", jobs), "x"
            yield "RPUSH", data("bob", "alice", "with-jobs.j0123456789a"), "x"
            yield "RPUSH", data("bob", "alice", "with-jobs.j0123456789abc"), "x"
            yield "RPUSH", data("bob", "alice", "other.j0123456789ab"), "x"
            yield "RPUSH", data("bob", "carol", self.JOB), "x"
            yield "BLPOP", data("bob", "alice", self.JOB), 0.01
            yield "BLPOP", self.letters("dora", "alice", answers), 0.01
            yield "SET", list_names.claim_key(self.JOB, "bob"), "x"
            yield "GET", list_names.status_key(self.JOB, "alice")
        else:
            yield "LPOP", data("alice", "bob", self.JOB)
            yield "LLEN", data("alice", "bob", "other.j0123456789ab")
            yield "GET", data("alice", "bob", self.JOB)

    @pytest.mark.parametrize("who", ["alice", "dora", "olga"])
    def test_all_that_they_need_and_nothing_else(self, urls_with_jobs, who):
        for command in self.allowed(who):
            run(urls_with_jobs[who], *command)
        for command in self.forbidden(who):
            with pytest.raises(BrokerPermissionError):
                run(urls_with_jobs[who], *command)

    def test_without_jobs_nobody_has_more_than_before(self):
        plain = acl.party_users("s", NAMES)
        assert [user.party for user in plain] == list(NAMES)
        assert not any("?" in rule or "!" in rule for u in plain for rule in u.rules[:6])
        some = acl.party_users("s", NAMES, drivers=())
        assert [user.party for user in some] == list(NAMES)
        assert some != plain

    def test_an_operator_is_no_driver(self):
        with pytest.raises(ConfigError, match="'dora' is a party or driver"):
            acl.operator_user("s", NAMES, "dora", drivers=("dora",))


def test_passwords_are_not_guessable():
    assert len({acl.make_password() for _ in range(100)}) == 100
    assert acl.hash_rule("pw") == (
        "#30c952fab122c3f9759f02a6d95c3758b246b4fee239957b2d4fee46e26170c4"
    )
    assert secrets.token_urlsafe(32).isascii()


def test_who_finds_nodes_may_ask_for_them_and_no_others():
    rules = {
        cluster: acl.party_users("s", NAMES, cluster=cluster)[0].rules for cluster in (True, False)
    }
    assert set(rules[True]) - set(rules[False]) == {"+cluster|slots"}


@pytest.mark.slow
def test_a_session_on_a_cluster_needs_no_more_and_no_less():
    with ClusterGroup() as group:
        session = group.spread_session(NAMES)
        users = acl.party_users(session, NAMES, cluster=True)
        passwords = {name: acl.make_password() for name in NAMES}
        admin = Broker(group.url, timeout=5)
        acl.apply_users(admin, users, passwords)
        urls = {u.party: acl.party_url(group.url, u.name, passwords[u.party]) for u in users}
        alice, bob, carol = run_parties(
            *(
                lambda name=name: connect_as(
                    make_cluster(urls[name], session=session), name, quick_settings()
                )
                for name in NAMES
            )
        )
        alice.send("carol", "t", b"1")
        bob.send("carol", "t", b"2")
        assert [carol.recv("alice", "t"), carol.recv("bob", "t")] == [b"1", b"2"]
        run_parties(alice.close, bob.close, carol.close)
        broker = Broker(urls["alice"], timeout=5)
        name = data("bob", "carol", session)
        connection = broker.at(name).open()
        with pytest.raises(BrokerPermissionError):
            connection.execute(b"RPUSH", name, b"x", timeout=5)
        acl.apply_users(admin, acl.party_users(session, NAMES), passwords)
        with pytest.raises(BrokerPermissionError, match="cluster\\|slots"):
            Broker(urls["alice"], timeout=5).open()
