"""A password from the command line goes to a broker that the user names, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from redislink import settings
from tests.cli.conftest import CLUSTER, Call, Write
from tests.support.resp_server import HOST, OK, RespServer

ONLOOKERS = (
    ["top", "--once"],
    ["sessions"],
    ["inspect", "cli"],
    ["purge", "cli", "--yes"],
)
PASSWORD = "0perat0r"


@pytest.fixture
def server() -> Iterator[RespServer]:
    """Lets everybody in, and has no session."""

    def answer(command: list[bytes]) -> bytes:
        return b"*2\r\n$1\r\n0\r\n*0\r\n" if command[0] == b"SCAN" else OK

    with RespServer(answer) as started:
        yield started


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The option with the operator's password."""
    monkeypatch.setattr(settings, "_said", set())
    path = tmp_path / "operator.password"
    path.touch(0o600)
    path.write_text(f"{PASSWORD}\n")
    return ("--password-file", path.name)


def logins(server: RespServer) -> list[list[bytes]]:
    return [command for command in server.commands if command[0] == b"AUTH"]


def url_of(server: RespServer) -> str:
    return f"redis://watcher@{HOST}:{server.port}/0"


@pytest.mark.parametrize("command", ONLOOKERS, ids=lambda words: words[0])
class TestOnlookers:
    def test_not_to_the_cluster_files_broker(
        self,
        call: Call,
        write_cluster: Write,
        server: RespServer,
        words: tuple[str, str],
        command: list[str],
    ) -> None:
        path = write_cluster({**CLUSTER, "broker": url_of(server)})
        code, _, err = call(*command, "--cluster", path, *words)
        assert code == 2
        assert "is named by the cluster file, but a password given on the command line" in err
        assert err.count("\n") == 1
        assert server.commands == []

    def test_not_to_that_of_a_file_in_the_working_directory(
        self,
        call: Call,
        write_cluster: Write,
        server: RespServer,
        words: tuple[str, str],
        command: list[str],
        tmp_path: Path,
    ) -> None:
        (tmp_path / ".env").write_text(f"REDISLINK_BROKER_URL={url_of(server)}\n")
        (tmp_path / ".env").chmod(0o600)
        code, _, err = call(*command, "--cluster", write_cluster(CLUSTER), *words)
        assert code == 2
        read, refused = err.splitlines()
        assert read == f"redislink: settings read from {tmp_path / '.env'}"
        assert "is named by the .env here" in refused
        assert server.commands == []

    def test_not_in_clear_to_a_proxy_of_a_file_in_the_working_directory(
        self,
        call: Call,
        write_cluster: Write,
        server: RespServer,
        words: tuple[str, str],
        command: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / ".env").write_text(f"REDISLINK_BROKER_PROXY=http://{HOST}:{server.port}\n")
        (tmp_path / ".env").chmod(0o600)
        line = [*command, "--cluster", write_cluster(CLUSTER), *words]
        for named in (["--broker", "redis://watcher@broker.invalid/0"], []):
            monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://watcher@broker.invalid/0")
            code, _, err = call(*line, *named)
            assert code == 2
            assert "the .env here names the proxy (REDISLINK_BROKER_PROXY)" in err
        for url in (url_of(server).replace("redis:", "rediss:"), "unix:///nobody.sock"):
            code, _, err = call(*line, "--broker", url)
            assert code == 3, "through the proxy, or without need of one"
        monkeypatch.setenv("REDISLINK_BROKER_PROXY", "none")
        code, _, _ = call(*line, "--broker", url_of(server))
        assert code in (0, 2)
        assert logins(server)

    def test_to_one_on_the_command_line_or_in_the_environment(
        self,
        call: Call,
        write_cluster: Write,
        server: RespServer,
        words: tuple[str, str],
        command: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = write_cluster({**CLUSTER, "broker": "redis://127.0.0.1:1/0"})
        call(*command, "--cluster", path, "--broker", url_of(server), *words)
        monkeypatch.setenv("REDISLINK_BROKER_URL", url_of(server))
        call(*command, "--cluster", path, *words)
        assert {tuple(login) for login in logins(server)} == {
            (b"AUTH", b"watcher", PASSWORD.encode())
        }
        assert len(logins(server)) >= 2


def test_a_broker_on_the_command_line_does_not_get_the_environments_password(
    call: Call, server: RespServer, words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_PASSWORD_FILE", words[1])
    call("sessions", "--broker", url_of(server))
    assert all(PASSWORD.encode() not in command for command in server.commands)
    call("sessions", "--broker", f"redis://watcher:own@{HOST}:{server.port}")
    assert [b"AUTH", b"watcher", b"own"] in server.commands


def test_a_partys_password_file_is_for_its_own_broker(
    call: Call,
    write_cluster: Write,
    server: RespServer,
    words: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_cluster({**CLUSTER, "broker": url_of(server)})
    monkeypatch.setenv("REDISLINK_BROKER_PASSWORD_FILE", words[1])
    code, _, err = call("sessions", "--cluster", path)
    assert (code, server.commands) == (2, [])
    assert "a password goes only to one that you name: set REDISLINK_BROKER_URL" in err


def test_a_password_file_that_others_can_read(call: Call, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("pw\n")
    (tmp_path / "open").chmod(0o644)
    url = "redis://127.0.0.1:1/0"
    for command in (["sessions", "--broker", url], ["broker", "--port", "0"]):
        code, _, err = call(*command, "--password-file", "open")
        assert code == 2
        assert "password file open: others on this machine can read it: run chmod 600" in err


COMMANDS = (
    *ONLOOKERS,
    ["run", "--party", "alice", "program.py"],
    ["doctor", "--party", "alice"],
    ["bench", "--party", "alice"],
    ["acl"],
    ["acl", "--apply", "redis://127.0.0.1:1"],
    ["demo", "--broker", "redis://127.0.0.1:1"],
)
OTHERS = (["version"], ["keygen", "carol"], ["fingerprint"], ["--help"], ["trace", "merge", "x"])


@pytest.mark.parametrize("command", [*COMMANDS, *OTHERS], ids=" ".join)
def test_settings_that_are_not_utf_8(
    call: Call, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command ends with a traceback; those that need settings name the file."""
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    (tmp_path / "program.py").touch()
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", "cluster.yaml")
    (tmp_path / ".env").write_bytes("REDISLINK_PARTY=Müller\n".encode("latin-1"))
    (tmp_path / ".env").chmod(0o600)
    code, out, err = call(*command)
    assert "Traceback" not in out + err
    assert "internal error" not in err
    if command in COMMANDS:
        assert code == 2
        said = "UTF-8" if command[0] == "doctor" else f"{tmp_path / '.env'}: is not UTF-8 (byte 18)"
        assert said in out + err, "the doctor's table breaks lines"


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_times_that_nobody_can_wait_for(call: Call, value: str) -> None:
    for words in (["top", "--every", value], ["simulate", "--timeout", value, "x.py"]):
        code, _, err = call(*words)
        assert code == 2
        assert words[1] in err


def test_the_database_of_a_query(call: Call, write_cluster: Write) -> None:
    for broker in ("redis://h/3", "redis://h?db=3", "unix:///run/x.sock?db=3"):
        path = write_cluster({**CLUSTER, "broker": broker})
        code, out, _ = call("acl", "--cluster", path)
        assert (code, out.count("+select|3")) == (0, 2), broker
    path = write_cluster({**CLUSTER, "broker": "redis://h/prod"})
    code, _, err = call("acl", "--cluster", path)
    assert code == 2
    assert "a database that is no number" in err
