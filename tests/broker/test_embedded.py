"""The embedded broker: real, private to this machine, and gone when its parent is."""

import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from redislink import BrokerAuthError, ConfigError
from redislink.broker import Broker, EmbeddedBroker


def gone(pid):
    try:
        psutil.Process(pid).wait(10)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return False
    return True


def test_it_serves_on_loopback_only_and_is_gone_afterwards():
    with EmbeddedBroker() as broker:
        server = psutil.Process(broker.pid)
        listening = [c for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert [c.laddr for c in listening] == [("127.0.0.1", broker.port)]
        assert Broker(broker.url).open().execute(b"LPUSH", b"x", b"y", timeout=5) == 1
    assert gone(broker.pid)


def test_it_keeps_nothing_on_disk():
    with EmbeddedBroker() as broker:
        directory = Path(psutil.Process(broker.pid).cwd())
        Broker(broker.url).open().execute(b"SET", b"x", b"y", timeout=5)
        assert sorted(p.name for p in directory.iterdir()) == [
            "valkey.conf",
            "valkey.log",
            "valkey.sock",
        ]
        assert (directory / "valkey.conf").stat().st_mode & 0o077 == 0
    assert not directory.exists()


def test_stopping_twice_and_starting_again():
    broker = EmbeddedBroker()
    broker.start()
    first = broker.pid
    assert broker.start() is broker
    assert broker.pid == first
    broker.stop()
    broker.stop()
    with broker:
        assert broker.pid != first


def test_its_unix_socket_is_for_this_user_alone_and_asks_for_the_password():
    with EmbeddedBroker(password="p w/@") as broker:
        path = Path(urlsplit(broker.unix_url).path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        connection = Broker(broker.unix_url).open()
        assert connection.execute(b"RPUSH", b"x", b"y", timeout=5) == 1
        connection.close()
        with pytest.raises(BrokerAuthError):
            Broker(f"unix://{path}").open_answering()
    assert not path.exists()


def test_a_directory_with_too_long_a_path_for_a_socket(tmp_path, monkeypatch):
    directory = tmp_path / ("x" * 100)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    with EmbeddedBroker() as broker:
        assert broker.unix_url == broker.url


@pytest.mark.parametrize("name", ["with a space", "quote's \"#%41?'", "ü"])
def test_a_temporary_directory_of_any_name(monkeypatch, name):
    with tempfile.TemporaryDirectory() as short:  # a socket's path may not be long
        directory = Path(short, name)
        directory.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        with EmbeddedBroker(password=name) as broker:
            assert broker.unix_url != broker.url
            for url in (broker.url, broker.unix_url):
                Broker(url).open_answering().close()
        assert not list(directory.iterdir())


def test_a_port_that_is_taken():
    with (
        EmbeddedBroker() as first,
        pytest.raises(ConfigError, match=f"port {first.port} is in use"),
    ):
        EmbeddedBroker(first.port).start()


def test_many_at_once():
    brokers = [EmbeddedBroker().start() for _ in range(5)]
    try:
        assert len({broker.port for broker in brokers}) == 5
    finally:
        for broker in brokers:
            broker.stop()


def test_it_is_gone_when_its_parent_is_killed():
    program = (
        "from redislink.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker().start()\n"
        "print(broker.pid, flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.communicate()
    started = time.monotonic()
    assert gone(pid)
    assert time.monotonic() - started < 10
