"""Metrics for Prometheus: what they say, where they go, and that their failures harm no run."""

from __future__ import annotations

import base64
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from redislink import ConfigError, Endpoint
from redislink.observe import metrics
from redislink.observe.metrics import EndpointCollector
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until
from tests.transport.test_endpoint import blocked

PASSWORD = "s3cret-of-the-gateway"
Samples = dict[tuple[str, str], float]


def samples(text: str) -> Samples:
    """By name and peer ("" where there is none)."""
    return {
        (sample.name, sample.labels.get("peer", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposed(endpoint: Endpoint) -> str:
    registry = CollectorRegistry()
    registry.register(EndpointCollector(endpoint))
    return generate_latest(registry).decode()


def talk(alice: Endpoint, bob: Endpoint) -> None:
    alice.send("bob", "t", b"12345")
    alice.send("bob", "t", b"123")
    for _ in range(2):
        bob.recv("alice", "t")
    bob.send("alice", "back", bytes(100))
    alice.recv("bob", "back")


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, Endpoint]]:
    alice, bob = join(make_cluster(f"fakeredis://{request.node.name}", 2))
    yield alice, bob
    run_parties(alice.close, bob.close)


class TestCollector:
    def test_it_says_what_the_stats_say(self, pair: tuple[Endpoint, Endpoint]) -> None:
        alice, bob = pair
        talk(alice, bob)
        found = samples(exposed(alice))
        assert found["redislink_messages_sent_total", "bob"] == 2
        assert found["redislink_sent_bytes_total", "bob"] == 8
        assert found["redislink_messages_received_total", "bob"] == 1
        assert found["redislink_received_bytes_total", "bob"] == 100
        assert found["redislink_session_open", ""] == 1
        assert found["redislink_longest_wait_seconds", "bob"] == 0
        assert samples(exposed(alice))["redislink_messages_sent_total", "bob"] == 2, "not twice"

    def test_a_receive_that_waits_is_seen(self, pair: tuple[Endpoint, Endpoint]) -> None:
        _, bob = pair
        thread, _ = in_thread(lambda: bob.recv("alice", "never"))
        wait_until(lambda: blocked(bob, "never"))
        found = samples(exposed(bob))
        assert found["redislink_waiting_tags", "alice"] == 1
        assert found["redislink_longest_wait_seconds", "alice"] > 0
        bob.cancel_recv("alice", "never")
        thread.join(10)

    def test_names_follow_the_conventions_and_the_page(
        self, pair: tuple[Endpoint, Endpoint]
    ) -> None:
        families = list(text_string_to_metric_families(exposed(pair[0])))
        for family in families:
            assert re.fullmatch(r"redislink(_[a-z]+)*", family.name)
            assert family.documentation
            if family.type == "counter":
                assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
            for sample in family.samples:
                assert {"session", "party"} <= set(sample.labels)
        shown = {sample.name for family in families for sample in family.samples}
        page = Path(__file__).parents[2] / "docs" / "how-to" / "observe.md"
        assert set(re.findall(r"^\| `(redislink_\w+)` \|", page.read_text(), re.MULTILINE)) == shown


class TestTextfile:
    def test_it_is_written_while_the_run_lasts_and_at_its_end(self, tmp_path: Path) -> None:
        cluster = make_cluster("fakeredis://textfile", 2)
        alice, bob = join(
            cluster, metrics_textfile=tmp_path / "{session}.{party}.prom", metrics_interval=0.1
        )
        path = tmp_path / f"{cluster.session}.alice.prom"
        wait_until(path.exists)
        talk(alice, bob)

        def has_all() -> bool:
            return samples(path.read_text())["redislink_received_bytes_total", "bob"] == 100

        wait_until(has_all)
        assert samples(path.read_text())["redislink_session_open", ""] == 1
        alice.send("bob", "last", b"")
        bob.recv("alice", "last")
        run_parties(alice.close, bob.close)
        last = samples(path.read_text())
        assert last["redislink_session_open", ""] == 0
        assert last["redislink_messages_sent_total", "bob"] == 3
        assert path.stat().st_mode & 0o444 == 0o444  # node_exporter runs as another user
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [f"{cluster.session}.{party}.prom" for party in ("alice", "bob")]

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        settings = quick_settings(metrics_textfile=tmp_path / "none" / "x.prom")
        with pytest.raises(ConfigError, match=r"REDISLINK_METRICS_TEXTFILE.*make it"):
            connect_as(make_cluster("fakeredis://nowhere", 2), "alice", settings)

    def test_a_directory_that_goes_away_does_not_end_the_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "metrics"
        directory.mkdir()
        cluster = make_cluster("fakeredis://goes", 2)
        alice, bob = join(
            cluster, metrics_textfile=directory / "{party}.prom", metrics_interval=0.1
        )
        wait_until(lambda: len(list(directory.glob("*.prom"))) == 2)
        directory.rename(tmp_path / "away")
        wait_until(lambda: caplog.text.count("metrics do not go to") == 2)
        talk(alice, bob)
        caplog.set_level(logging.INFO, "redislink")
        (tmp_path / "away").rename(directory)
        wait_until(lambda: caplog.text.count(" again") == 2)
        run_parties(alice.close, bob.close)
        assert caplog.text.count("alice: metrics do not go to") == 1


class Gateway:
    """Takes what is pushed to it."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str, str, Samples]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                who = self.headers.get("Authorization", "")
                gateway.pushed.append((self.command, self.path, who, samples(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    yield server
    server.close()


class TestPush:
    def test_each_party_is_a_group_of_its_own(self, gateway: Gateway) -> None:
        cluster = make_cluster("fakeredis://push", 2)
        url = f"http://me:{PASSWORD}@127.0.0.1:{gateway.port}"
        alice, bob = join(cluster, metrics_push_url=url, metrics_interval=0.1)
        talk(alice, bob)
        wait_until(
            lambda: any(
                pushed[3]["redislink_messages_sent_total", "bob"] == 2
                for pushed in gateway.pushed
                if "/party/alice/" in pushed[1]
            )
        )
        run_parties(alice.close, bob.close)
        expected = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        paths = {path for _, path, _, _ in gateway.pushed}
        assert paths == {
            f"/metrics/job/redislink/party/{party}/session/{cluster.session}"
            for party in ("alice", "bob")
        }
        assert {who for _, _, who, _ in gateway.pushed} == {f"Basic {expected}"}
        last = [sent for _, path, _, sent in gateway.pushed if "/party/alice/" in path][-1]
        assert last["redislink_session_open", ""] == 0

    def test_a_gateway_that_is_away_is_said_once_and_ends_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://me:{PASSWORD}@127.0.0.1:{port}/at"
        alice, bob = join(
            make_cluster("fakeredis://away", 2), metrics_push_url=url, metrics_interval=0.1
        )
        wait_until(lambda: caplog.text.count("metrics do not go to") == 2)
        talk(alice, bob)
        run_parties(alice.close, bob.close)
        assert f"alice: metrics do not go to http://127.0.0.1:{port}/at (" in caplog.text
        assert caplog.text.count("metrics do not go to") == 2
        assert PASSWORD not in caplog.text

    def test_a_gateway_that_never_answers_does_not_hold_up_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics, "_LONGEST_LAST", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            alice, bob = join(make_cluster("fakeredis://deaf", 2), metrics_push_url=url)
            talk(alice, bob)
            closing, ended = in_thread(lambda: run_parties(alice.close, bob.close))
            closing.join(3)
            assert ended == [[None, None]]

    @pytest.mark.parametrize(
        "url", ["gateway:9091", "ftp://h", "http://", "http://h:x", f"https://u:{PASSWORD}@", "x"]
    )
    def test_urls_that_are_none(self, url: str) -> None:
        settings = quick_settings(metrics_push_url=url)
        with pytest.raises(ConfigError, match="REDISLINK_METRICS_PUSH_URL") as told:
            connect_as(make_cluster("fakeredis://nowhere", 2), "alice", settings)
        assert PASSWORD not in str(told.value)


def test_without_the_package_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "redislink.observe.metrics")
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    settings = quick_settings(metrics_textfile=tmp_path / "x.prom")
    with pytest.raises(ConfigError, match=r"pip install 'redislink\[metrics\]'"):
        connect_as(make_cluster("fakeredis://nowhere", 2), "alice", settings)
