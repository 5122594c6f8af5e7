"""``redislink broker``: a broker in the foreground."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.errors import BrokerAuthError
from tests.cli.conftest import Run, Start, check_one_line, ended


def ping(url: str) -> bytes:
    connection = Broker(url).open()
    try:
        return bytes(connection.execute(b"PING", timeout=5))
    finally:
        connection.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_told_to_stop(spawn: Start, how: signal.Signals) -> None:
    process = spawn("broker", "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert ping(url) == b"PONG"
    servers = psutil.Process(process.pid).children(recursive=True)
    assert servers
    process.send_signal(how)
    result = ended(process)
    assert result.returncode == 0, result.stderr
    assert "stopped" in result.stderr
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert not alive


def test_listens_on_loopback_only(start: Start) -> None:
    process = start("broker", "--port", "0")
    assert process.stdout is not None
    port = int(process.stdout.readline().strip().rpartition(":")[2].removesuffix("/0"))
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for child in psutil.Process(process.pid).children(recursive=True)
        for connection in child.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", port)}


def test_password_is_asked_for_and_not_printed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    (tmp_path / "password").chmod(0o600)
    process = start("broker", "--port", "0", "--password-file", "password")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with pytest.raises(BrokerAuthError):
        ping(url)
    assert ping(url.replace("redis://", "redis://:s3cret@")) == b"PONG"
    process.terminate()
    result = ended(process)
    assert result.returncode == 0
    assert "s3cret" not in url + result.stderr


def test_port_in_use(redislink: Run, broker: EmbeddedBroker) -> None:
    result = redislink("broker", "--port", str(broker.port))
    check_one_line(result, 2, f"port {broker.port} is in use", "take another")


@pytest.mark.parametrize("who", ["guard", "server"])
def test_server_that_is_killed(start: Start, who: str) -> None:
    process = start("broker", "--port", "0")
    assert process.stdout is not None
    assert process.stdout.readline()
    (guard,) = psutil.Process(process.pid).children()
    (server,) = guard.children()
    (guard if who == "guard" else server).kill()
    result = ended(process)
    assert result.returncode == 3
    assert "start it again" in result.stderr
    assert "Traceback" not in result.stderr
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running()
