"""The observers of an endpoint that the settings ask for: trace, statistics and metrics.

Rules: observers that are not asked for are not imported; errors in their settings come before the
session is joined; once it is joined, nothing here ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from redislink.settings import RedisLinkSettings
from redislink.transport.core import Core
from redislink.transport.endpoint import Endpoint
from redislink.transport.receiving import Receiving
from redislink.transport.sending import Sending

if TYPE_CHECKING:
    from redislink.observe.account import StatsRecorder
    from redislink.observe.record import TraceRecorder


class _Observer(Protocol):
    """Observes one endpoint."""

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:
        """Begin to watch. Call it once at most.

        Args:
            endpoint: the endpoint to watch.
            epochs: for each peer, the epoch that tells this run from others, the same at both.
        """

    def close(self) -> None:
        """Stop. Call it even without `attach`, if the session could not be joined."""


class Observers:
    """All observers of one endpoint; usually there are none."""

    def __init__(
        self, settings: RedisLinkSettings, session: str, party: str, names: Iterable[str]
    ) -> None:
        """Make the observers that the settings ask for.

        Args:
            settings: this party's settings.
            session: the name of the session.
            party: the name of this party.
            names: those of all parties, in rank order.

        Raises:
            ConfigError: a setting is wrong.
        """
        self._all: list[_Observer] = []
        self._trace: TraceRecorder | None = None
        self._stats: StatsRecorder | None = None
        try:
            if settings.trace_dir is not None:
                from redislink.observe.record import TraceRecorder

                limit = settings.trace_limit
                self._trace = TraceRecorder(settings.trace_dir, session, party, limit)
                self._all.append(self._trace)
            if settings.stats_file is not None:
                from redislink.observe.account import StatsRecorder

                self._stats = StatsRecorder(settings.stats_file, session, party, names)
                self._all.append(self._stats)
            push_url = settings.metrics_push_url
            if settings.metrics_textfile is not None or push_url is not None:
                from redislink.observe.metrics import MetricsExporter

                self._all.append(
                    MetricsExporter(
                        settings.metrics_textfile,
                        None if push_url is None else push_url.get_secret_value(),
                        settings.metrics_interval,
                        session,
                        party,
                    )
                )
        except BaseException:
            self.close()
            raise

    def ways(self, core: Core) -> tuple[Sending, Receiving]:
        """The objects that send and receive: the plain ones, or ones that are observed."""
        if self._stats is not None:
            return self._stats.ways(core, self._trace)
        if self._trace is not None:
            return self._trace.ways(core)
        return Sending(core), Receiving(core)

    def attach(self, endpoint: Endpoint, epochs: Mapping[str, str]) -> None:
        """Begin to observe, until `close`.

        Args:
            endpoint: the endpoint to watch.
            epochs: for each peer, the epoch that tells this run from others, the same at both.
        """
        for observer in self._all:
            observer.attach(endpoint, epochs)

    def close(self) -> None:
        """Stop. Safe to call twice."""
        observers, self._all = self._all, []
        for observer in observers:
            observer.close()
