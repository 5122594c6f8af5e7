"""Metrics for Prometheus, written to a file or pushed to a gateway, because no party listens.

Rules:
- `EndpointCollector` reads `Endpoint.stats` when it is asked and keeps nothing, so nothing is
  counted twice and messages cost nothing.
- A failure to write or push never ends a run, nor delays its end by more than `_LONGEST_LAST`.
- This module needs ``prometheus-client`` (``redislink[metrics]``); import it only when needed.

``docs/how-to/observe.md`` lists the names and meanings; a test compares them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from redislink._version import __version__
from redislink.errors import ConfigError
from redislink.files import EVERYBODY_READS, replacing
from redislink.logs import PartyLogger
from redislink.transport.stats import EndpointStats, PeerStats

try:
    from prometheus_client import CollectorRegistry, generate_latest, push_to_gateway
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import basic_auth_handler, default_handler
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError:
    raise ConfigError(
        "REDISLINK_METRICS_TEXTFILE and REDISLINK_METRICS_PUSH_URL need the package "
        "prometheus-client: pip install 'redislink[metrics]', or unset them"
    ) from None

if TYPE_CHECKING:
    from redislink.transport.endpoint import Endpoint

_JOB: Final = "redislink"
_LONGEST_PUSH: Final = 5.0
_LONGEST_LAST: Final = 2.0
"""Seconds by which the last export may delay the end of a session."""

# The name without ``_total``, the meaning, and the field of `PeerStats`.
_COUNTERS: Final = (
    ("redislink_messages_sent", "Messages of the application sent to the peer", "messages_sent"),
    ("redislink_messages_received", "Messages received from the peer", "messages_received"),
    ("redislink_sent_bytes", "Bytes of payload sent to the peer", "bytes_sent"),
    ("redislink_received_bytes", "Bytes of payload received from the peer", "bytes_received"),
    ("redislink_frames_resent", "Frames pushed again, because they may be lost", "frames_resent"),
    ("redislink_duplicates_dropped", "Frames that came again", "duplicates_dropped"),
    ("redislink_probes_sent", "Questions to the peer from a waiting receive", "probes_sent"),
    ("redislink_frames_refused", "Pushes the broker had no memory for", "frames_refused"),
)


def _longest(peer: PeerStats) -> float:
    return max(peer.waiting.values(), default=0.0)


_GAUGES: Final[tuple[tuple[str, str, Callable[[PeerStats], float]], ...]] = (
    (
        "redislink_unacked_bytes",
        "Bytes kept until the peer confirms that it has them",
        lambda peer: peer.unacked_bytes,
    ),
    (
        "redislink_in_flight_bytes",
        "The part of the unacked bytes that may be on the broker",
        lambda peer: peer.in_flight_bytes,
    ),
    (
        "redislink_waiting_tags",
        "Tags that receives from the peer wait for now",
        lambda peer: len(peer.waiting),
    ),
    (
        "redislink_longest_wait_seconds",
        "How long the longest of these receives has waited; 0 if there is none",
        _longest,
    ),
    (
        "redislink_peer_last_heard_timestamp_seconds",
        "When the peer was last heard, in seconds since 1970",
        lambda peer: time.time() - peer.last_heard_seconds,
    ),
)


class EndpointCollector(Collector):
    """Collects the metrics of one endpoint for a registry of ``prometheus_client``.

    A program that serves or pushes metrics itself registers one:
    ``prometheus_client.REGISTRY.register(EndpointCollector(endpoint))``.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Args:
        endpoint: the endpoint whose `stats` are read whenever the registry is.
        """
        self._endpoint = endpoint
        self._labels = [endpoint.session, endpoint.party]
        self.is_open = True
        """The value of ``redislink_session_open``."""

    def describe(self) -> list[Metric]:
        """Nothing, so that a registry does not read the endpoint when the collector registers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        stats: EndpointStats = self._endpoint.stats()
        whose = ["session", "party"]
        about = InfoMetricFamily("redislink", "Version of redislink", labels=whose)
        about.add_metric(self._labels, {"version": __version__})
        yield about
        is_open = GaugeMetricFamily(
            "redislink_session_open", "1 while the party is in the session", labels=whose
        )
        is_open.add_metric(self._labels, float(self.is_open))
        yield is_open
        reconnects = CounterMetricFamily(
            "redislink_reconnects", "Times that a connection was opened again", labels=whose
        )
        reconnects.add_metric(self._labels, stats.reconnects)
        yield reconnects
        between = [*whose, "peer"]
        for name, text, field in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=between)
            for peer, of_peer in stats.peers.items():
                counter.add_metric([*self._labels, peer], getattr(of_peer, field))
            yield counter
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=between)
            for peer, of_peer in stats.peers.items():
                gauge.add_metric([*self._labels, peer], value(of_peer))
            yield gauge


class MetricsExporter:
    """Writes or pushes the metrics of one endpoint at intervals, and at its end."""

    def __init__(
        self, textfile: Path | None, push_url: str | None, interval: float, session: str, party: str
    ) -> None:
        """Args:
        textfile: a file for node_exporter's textfile collector; {session} and {party} are replaced
            by their names.
        push_url: the http or https URL of a push gateway, perhaps with user and password.
        interval: seconds from one export to the next.

        Raises:
            ConfigError: the file's directory does not exist, or the URL is not valid.
        """
        self._party = party
        self._interval = interval
        self._log = PartyLogger(session, party)
        self._grouping = {"session": session, "party": party}
        self._outlets: list[tuple[str, Callable[[CollectorRegistry], None]]] = []
        self._failing: set[str] = set()
        if textfile is not None:
            named = str(textfile).replace("{session}", session).replace("{party}", party)
            if not Path(named).parent.is_dir():
                raise ConfigError(
                    f"REDISLINK_METRICS_TEXTFILE: there is no directory {Path(named).parent}: make "
                    "it, or name another"
                )
            self._outlets.append((named, functools.partial(_write_textfile, named)))
        if push_url is not None:
            label, push = _gateway(push_url, self._grouping)
            self._outlets.append((label, push))
        self._collector: EndpointCollector | None = None
        self._registry = CollectorRegistry()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"redislink-metrics-{party}", daemon=True
        )

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:  # noqa: ARG002
        """Export from now on."""
        self._collector = EndpointCollector(endpoint)
        self._registry.register(self._collector)
        self._thread.start()

    def close(self) -> None:
        """Export once more, and stop."""
        if self._collector is None:
            return
        self._collector.is_open = False
        self._stop.set()
        self._thread.join(_LONGEST_LAST)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._export()
            self._stop.wait(self._interval)
        self._export()

    def _export(self) -> None:
        for label, export in self._outlets:
            try:
                export(self._registry)
            except Exception as error:  # noqa: BLE001 - whatever it is shall not end the run
                self._failed(label, error)
            else:
                if label in self._failing:
                    self._failing.remove(label)
                    self._log.info("%s: metrics go to %s again", self._party, label)

    def _failed(self, label: str, error: Exception) -> None:
        if label in self._failing:
            return  # logged once, until it works again
        self._failing.add(label)
        self._log.warning(
            "%s: metrics do not go to %s (%s): fix that; the run goes on without them",
            self._party,
            label,
            getattr(error, "strerror", None)
            or getattr(error, "reason", None)
            or type(error).__name__,
        )


def _write_textfile(path: str, registry: CollectorRegistry) -> None:
    """Write the file atomically, readable for node_exporter, which runs as another user."""
    with replacing(path, EVERYBODY_READS) as file:
        file.write(generate_latest(registry).decode())


def _gateway(url: str, grouping: dict[str, str]) -> tuple[str, Callable[[CollectorRegistry], None]]:
    """The name of a push gateway for messages, and a function that pushes to it."""
    wrong = ConfigError(
        "REDISLINK_METRICS_PUSH_URL: is not the URL of a push gateway: use http://HOST:PORT or "
        "https://USER:PASSWORD@HOST:PORT"
    )
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise wrong
        place = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        if parts.port is not None:
            place += f":{parts.port}"
    except ValueError:  # the error's text would show the URL
        raise wrong from None
    bare = urlunsplit((parts.scheme, place, parts.path, "", ""))
    handler: Callable[..., Any] = default_handler
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")

        def handler(
            url: str,
            method: str,
            timeout: float | None,
            headers: list[tuple[str, str]],
            data: bytes,
        ) -> Callable[[], None]:
            return basic_auth_handler(url, method, timeout, headers, data, user, password)

    def push(registry: CollectorRegistry) -> None:
        push_to_gateway(
            bare, _JOB, registry, grouping_key=grouping, timeout=_LONGEST_PUSH, handler=handler
        )

    return bare, push
