"""Every command that dials the broker goes through the proxy: none knows another way to it."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from redislink.errors import ConfigError
from redislink.protocol import list_names
from tests.cli.conftest import Call, Run, Write
from tests.support.keyspace import run
from tests.support.scripted_proxy import ScriptedProxy, tunnel_to

PASSWORD = secrets.token_urlsafe(16)
URL = f"redis://:{PASSWORD}@broker.invalid:6379/0"
"""A host that nobody here can resolve."""
LOGIN = "hospital:s3cret-of-the-proxy@"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(password=PASSWORD) as started:
        yield started


@pytest.fixture(scope="module")
def proxy(server: EmbeddedBroker) -> Iterator[ScriptedProxy]:
    with ScriptedProxy(tunnel_to(server.port)) as made:
        yield made


@pytest.mark.parametrize(
    "words",
    [
        "sessions --broker URL",
        "inspect some --broker URL",
        "purge some --yes --broker URL",
        "top --once --broker URL --cluster CLUSTER",
        "doctor --broker URL",
        "acl --cluster CLUSTER --passwords PASSWORDS --apply URL",
    ],
)
def test_a_command_dials_through_it(
    call: Call,
    server: EmbeddedBroker,
    proxy: ScriptedProxy,
    write_cluster: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    run(server.url, "RPUSH", list_names.hello_list("some", "alice", "bob"), b"hello")
    named = {"URL": URL, "CLUSTER": str(write_cluster()), "PASSWORDS": str(tmp_path / "passwords")}
    line = [named.get(word, word) for word in words.split()]
    code, out, err = call(*line)
    assert (code, "broker.invalid" in out + err) == (3, True), (out, err)
    dialled = len(proxy.heads)
    monkeypatch.setenv("REDISLINK_BROKER_PROXY", proxy.url(LOGIN))
    code, out, err = call(*line)
    assert code == 0, (out, err)
    assert len(proxy.heads) > dialled
    assert "s3cret" not in out + err


def test_a_command_says_when_it_takes_the_proxy_of_the_environment(
    redislink: Run, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url(LOGIN))
    done = redislink("sessions", "--json", "--broker", URL, broker_proxy="env")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"redislink: the broker is dialled through proxy {proxy.url()}, from HTTPS_PROXY\n"
    )
    assert "sessions" in json.loads(done.stdout)


def test_a_proxy_that_refuses_is_one_line_and_code_3(redislink: Run) -> None:
    with ScriptedProxy(lambda line: line.sendall(b"HTTP/1.1 403 No\r\n\r\n")) as refusing:
        done = redislink("sessions", "--broker", URL, broker_proxy=refusing.url(LOGIN))
    assert done.returncode == 3
    (said,) = done.stderr.splitlines()
    assert said.startswith(
        f"redislink: proxy {refusing.url()}: refused to connect to broker.invalid:6379 (403 No): "
    )


def test_the_demo_watches_where_its_parties_dial(
    call: Call, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_PROXY", proxy.url(LOGIN))
    watched = []

    def watch(_: object, addresses: set[tuple[str, int]]) -> None:
        watched.append(addresses)
        raise ConfigError("the parties would start: that is all of this test")

    monkeypatch.setattr(sys.modules["redislink.cli.demo"]._Run, "until_all_ended", watch)
    code, out, err = call("demo", "--broker", URL)
    assert "the parties would start" in err, (code, out, err)
    assert watched == [{("127.0.0.1", proxy.port)}]


def test_the_demo_s_own_broker_needs_none(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_PROXY", "http://proxy.invalid:1")
    environments = []

    def begun(_: str, *, environment: dict[str, str], **others: object) -> None:
        environments.append(environment)
        raise ConfigError("the demo has reached its broker: that is all of this test")

    monkeypatch.setattr(sys.modules["redislink.cli.demo"], "PartyProcess", begun)
    code, out, err = call("demo")
    assert "the demo has reached its broker" in err, (code, out, err)
    assert environments[0]["REDISLINK_BROKER_PROXY"] == "none"
