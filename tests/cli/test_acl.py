"""``redislink acl``: users for a server that takes them, and a list for one that does not."""

from __future__ import annotations

import re
import secrets
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink import BrokerAuthError, BrokerPermissionError
from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from redislink.protocol import list_names
from tests.cli.conftest import CLUSTER, NAMES, Call, Write
from tests.deploy.test_broker_files import server_binary


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(password=secrets.token_urlsafe(16)) as broker:
        yield broker


def printed(stdout: str) -> dict[str, dict[str, str]]:
    """User, password and rules by party."""
    parties: dict[str, dict[str, str]] = {}
    for line in stdout.splitlines():
        if not line.startswith("  "):
            mine = parties.setdefault(line, {})
        else:
            name, _, value = line.strip().partition(" ")
            mine[name] = value.strip()
    return parties


def check_works(url: str, party: str) -> None:
    """The party can pop its own inbox, and not another's."""
    connection = Broker(url).open()
    other = next(name for name in NAMES if name != party)
    mine, theirs = (
        list_names.hello_list("cli", *pair) for pair in ((party, other), (other, party))
    )
    assert connection.execute(b"LPOP", mine, timeout=5) is None
    with pytest.raises(BrokerPermissionError):
        connection.execute(b"LPOP", theirs, timeout=5)
    connection.close()


def test_the_list_to_paste(call: Call, write_cluster: Write, server: EmbeddedBroker) -> None:
    code, out, err = call("acl", "--cluster", write_cluster())
    assert code == 0, err
    assert "turn the server's default user off" in err
    parties = printed(out)
    assert tuple(parties) == NAMES
    assert len({party["password"] for party in parties.values()}) == len(NAMES)
    # As an operator does it by hand, on a server that is like a service's console.
    admin = Broker(server.url).open()
    for name, party in parties.items():
        rules = re.findall(r"\([^)]*\)|\S+", party["rules"])
        words = ("ACL", "SETUSER", party["user"], "on", f">{party['password']}", *rules)
        assert admin.execute(*words, timeout=5) == b"OK"
        check_works(acl.party_url(server.url, party["user"], party["password"]), name)
    admin.close()


def test_apply(call: Call, write_cluster: Write, tmp_path: Path) -> None:
    with EmbeddedBroker(password=secrets.token_urlsafe(16)) as server:
        _apply(call, write_cluster, server, tmp_path)


def _apply(call: Call, write_cluster: Write, server: EmbeddedBroker, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(server.url.partition(":")[2].split("@")[0][3:] + "\n")
    (tmp_path / "admin").chmod(0o600)
    words = ("acl", "--cluster", write_cluster(), "--passwords", "passwords", "--apply")
    no_password = f"redis://127.0.0.1:{server.port}/0"
    for last in ([server.url], [no_password, "--password-file", "admin"]):
        code, out, err = call(*words, *last)
        assert code == 0, err
        assert f"broker {no_password} has these users now" in err
        assert "its default user is on" in err
        again, turn_off = re.findall(r"^redislink: (?:to make one|then): (.*)$", err, re.MULTILINE)
        for name, party in printed(out).items():
            path = tmp_path / "passwords" / f"{name}.password"
            assert party["password"] == f"in passwords/{name}.password"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            password = path.read_text().strip()
            assert password not in out + err
            check_works(acl.party_url(server.url, party["user"], password), name)
    # What it says to do about the default user, as printed.
    assert call(*shlex.split(again)[1:])[0] == 0
    server_binary("redis-cli")
    done = subprocess.run(turn_off, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "OK\n"
    with pytest.raises(BrokerAuthError):
        Broker(server.url).open()


def test_a_file_for_the_server(call: Call, write_cluster: Write, tmp_path: Path) -> None:
    words = ("acl", "--cluster", write_cluster(), "--out", "users.acl")
    code, out, err = call(*words)
    assert code == 0, err
    assert "with the default user off and no admin" in err
    path = tmp_path / "users.acl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_text().splitlines()
    assert lines[0] == "user default off"
    for line, (name, party) in zip(lines[1:], printed(out).items(), strict=True):
        digest = acl.hash_rule(party["password"])
        assert line == f"user cli~{name} on {digest} {party['rules']}"
        assert party["password"] not in line
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "users.acl: exists already" in err


def test_a_second_session_in_the_file(
    call: Call, write_cluster: Write, server: EmbeddedBroker, tmp_path: Path
) -> None:
    words = ("acl", "--cluster", write_cluster(), "--passwords", "passwords")
    assert call(*words, "--out", "users.acl", "--admin", "root")[0] == 0
    path = tmp_path / "users.acl"
    path.write_text("# of the hospital\n" + path.read_text() + "user cli~gone on ~x\n")
    path.chmod(0o640)
    first = path.read_text().splitlines()

    second = write_cluster(CLUSTER | {"session": "night"})
    update = ("acl", "--cluster", second, "--passwords", "passwords", "--update", "users.acl")
    code, _, err = call(*update, "--apply", server.url)
    assert code == 0, err
    assert "users.acl has these users now; the server reads it when it starts" in err
    assert "has these users now" in err
    assert "forgets them" not in err
    lines = path.read_text().splitlines()
    assert lines[: len(first)] == first, "all that was there stays"
    passwords = {
        name: (tmp_path / f"passwords/{name}.password").read_text().strip() for name in NAMES
    }
    for line, name in zip(lines[len(first) :], NAMES, strict=True):
        assert line.startswith(f"user night~{name} on {acl.hash_rule(passwords[name])} ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "else its server could not read it any more"
    assert {each.name for each in tmp_path.iterdir()} == {"cluster.yaml", "passwords", "users.acl"}

    # Again, with a new password of one party: its line changes, and no other.
    (tmp_path / "passwords" / "bob.password").unlink()
    assert call(*update)[0] == 0
    again = path.read_text().splitlines()
    assert [old != new for old, new in zip(lines, again, strict=True)] == [
        line.startswith("user night~bob ") for line in lines
    ]
    # Who is in the file and takes no part any more is named.
    code, _, err = call("acl", "--cluster", write_cluster(), "--update", "users.acl")
    assert code == 0
    assert "users.acl still has cli~gone of session cli, as before: name operators with" in err
    others = "night~alice, night~bob"
    assert f"users.acl also has {others}, as before: if you changed a password, run this" in err


def test_a_file_that_a_link_leads_to_is_updated(
    call: Call, write_cluster: Write, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    real, link = tmp_path / "etc" / "users.acl", tmp_path / "users.acl"
    real.write_text("user default off\n")
    link.symlink_to(real)
    assert call("acl", "--cluster", write_cluster(), "--update", "users.acl")[0] == 0
    assert link.is_symlink()
    assert [line.split()[1] for line in real.read_text().splitlines()] == [
        "default",
        *(f"cli~{name}" for name in NAMES),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--update", "none.acl"], "none.acl: there is no such file"),
        (["--update", "binary.acl"], "binary.acl: is not text"),
        (["--update", "."], "cannot be changed"),
        (["--update", "a.acl", "--out", "b.acl"], "not both"),
        (["--admin", "alice"], "admin 'alice' is the server's own user, a party or the operator"),
        (["--admin", "default"], "take another name"),
        (["--admin", "watcher", "--operator", "watcher"], "take another name"),
        (["--admin", "a b"], "admin"),
    ],
)
def test_files_and_admins_that_cannot_be(
    call: Call, write_cluster: Write, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "binary.acl").write_bytes(b"\xff\xfe")
    code, out, err = call("acl", "--cluster", write_cluster(), *words)
    assert (code, out) == (2, "")
    assert said in err
    assert (tmp_path / "binary.acl").read_bytes() == b"\xff\xfe"


def test_an_admin_of_the_broker(
    call: Call, write_cluster: Write, server: EmbeddedBroker, tmp_path: Path
) -> None:
    words = ("acl", "--cluster", write_cluster(), "--passwords", "passwords", "--admin", "root")
    code, out, err = call(*words, "--out", "users.acl")
    assert code == 0, err
    assert "with the default user off and the admin root" in err
    password = (tmp_path / "passwords" / "root.password").read_text().strip()
    line = f"user root on {acl.hash_rule(password)} ~* &* +@all"
    assert (tmp_path / "users.acl").read_text().splitlines()[-1] == line
    assert printed(out)["root"]["rules"] == "~* &* +@all"

    code, _, err = call(*words, "--apply", server.url)
    assert code == 0, err
    url = acl.party_url(server.url, "root", "").replace(":@", "@")
    code, _, err = call(
        *(*words, "--apply", url, "--password-file", "passwords/root.password")
    )  # as that admin, who stays one
    assert code == 0, err
    assert "forgets them when it restarts" in err


def test_the_database_comes_from_the_cluster_file_or_the_option(
    call: Call, write_cluster: Write
) -> None:
    path = write_cluster(CLUSTER | {"broker": "redis://broker:6379/5"})
    assert "+select|5 " in call("acl", "--cluster", path)[1]
    assert "+select|2 " in call("acl", "--cluster", path, "--db", "2")[1]
    assert "+select" not in call("acl", "--cluster", path, "--db", "0")[1]


def test_an_operators_user(
    call: Call, write_cluster: Write, server: EmbeddedBroker, tmp_path: Path
) -> None:
    words = ("acl", "--cluster", write_cluster(), "--operator", "watcher")
    code, out, err = call(*words, "--passwords", "passwords", "--apply", server.url)
    assert code == 0, err
    told = printed(out)
    assert tuple(told) == (*NAMES, "watcher")
    assert told["watcher"]["user"] == "cli~watcher"
    password = (tmp_path / "passwords" / "watcher.password").read_text().strip()
    connection = Broker(acl.party_url(server.url, "cli~watcher", password)).open()
    inbox = list_names.hello_list("cli", *NAMES)
    assert connection.execute(b"LLEN", inbox, timeout=5) == 0
    with pytest.raises(BrokerPermissionError):
        connection.execute(b"LPOP", inbox, timeout=5)
    connection.close()
    code, out, err = call(*words[:-1], "alice")
    assert (code, out) == (2, "")
    assert "is a party or driver of the session: take another name" in err


def test_what_goes_wrong(
    call: Call, write_cluster: Write, server: EmbeddedBroker, tmp_path: Path
) -> None:
    path = write_cluster()
    wrong = acl.party_url(server.url, "default", "wr0ng")
    users = acl.party_users("weak", NAMES)
    acl.apply_users(Broker(server.url), users, dict.fromkeys(NAMES, "pw"))
    weak = acl.party_url(server.url, users[0].name, "pw")
    for words, code, said in (
        ([], 2, "give --cluster FILE, or set REDISLINK_CLUSTER_FILE"),
        (["--cluster", path, "--apply", "http://x"], 2, "unknown scheme"),
        (["--cluster", path, "--apply", "redis://[::1", "--password-file", "x"], 2, "not valid"),
        (["--cluster", path, "--apply", wrong], 3, "check the user and password"),
        (["--cluster", path, "--apply", weak], 3, "may not run ACL: log in as an administrator"),
        (["--cluster", path, "--apply", wrong, "--password-file", "x"], 2, "password file x"),
        (["--cluster", path, "--out", "none/users.acl"], 2, "cannot be written"),
    ):
        assert call("acl", *words)[:2] == (code, ""), "no password that is not valid"
        _, _, err = call("acl", *words)
        assert said in err
        assert err.count("\n") == 1
        assert "wr0ng" not in err
