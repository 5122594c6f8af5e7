"""`Session`: one program that every party runs.

Rules:
- Every party makes the same calls of the session and its devices in the same order, also those
  in which it takes no part. What differs is found and named (`redislink.session.steps`).
- An exception that leaves the session's ``with`` block ends the session for all, at once.
- Nothing here imports spu or jax before a device or an intersection is asked for.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from redislink.broker import Broker
from redislink.broker.credentials import CredentialsCallable
from redislink.cluster import ClusterSpec
from redislink.communicator import Communicator, RedisCommunicator
from redislink.errors import (
    EndpointClosed,
    RedisLinkError,
    UsageError,
    reason_for_peers,
)
from redislink.forking import dies_in_child, renew_in_child
from redislink.identity.keypair import Identity
from redislink.joining import connect, resolve_cluster
from redislink.logs import PartyLogger
from redislink.session.steps import Failure, Silence, Steps
from redislink.settings import RedisLinkSettings
from redislink.transport.endpoint import Endpoint
from redislink.transport.rendezvous import Progress
from redislink.transport.stats import EndpointStats

if TYPE_CHECKING:
    from redislink.spu.device import SpuDevice
    from redislink.spu.link import SpuLink

MakeLink = Callable[[str, Sequence[str]], "SpuLink"]
"""From the name of a device and its members."""

NAMESPACE: Final = "session"
_REPORT_INTERVAL: Final = 10
_simulated: ContextVar[Session | None] = ContextVar("redislink_simulated", default=None)
_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_open_lock = threading.Lock()
renew_in_child(_open_lock)


class Session:
    """This party's part in a session. Made by `Session.join`; a context manager.

    Calls come from one thread at a time; `SpuDevice.spawn` is for more. What may be called from
    any thread: `communicator`, `abort`, `stats`.

    Attributes:
        cluster: what the cluster file says.
        party: name of this party.
    """

    def __init__(
        self,
        communicator: Communicator,
        user_communicator: Communicator,
        cluster: ClusterSpec,
        make_link: MakeLink,
        close_timeout: float,
    ) -> None:
        """Not for users: `join` is, and `over` for an endpoint that is there already."""
        self.cluster = cluster
        self.party = communicator.party
        self._communicator = communicator
        self._user_communicator = user_communicator
        self._make_link = make_link
        self._close_timeout = close_timeout
        self._failure = Failure(communicator.abort)
        self._steps = Steps(communicator.sub("main"), self._failure)
        self._silence = Silence(communicator)
        self._devices: dict[str, SpuDevice] = {}
        self._closed = False
        self._left = False
        self._lock = threading.Lock()
        with _open_lock:
            _open_sessions.add(self)
        dies_in_child(self)

    @classmethod
    def join(
        cls,
        cluster: ClusterSpec | str | Path | None = None,
        party: str | None = None,
        settings: RedisLinkSettings | None = None,
        *,
        on_progress: Progress | None = None,
        broker: Broker | None = None,
        identity: Identity | None = None,
        credentials: CredentialsCallable | None = None,
    ) -> Session:
        """Join: returns once every pair of parties has said hello.

        Under ``redislink run`` and ``redislink simulate`` no argument is needed. In a program
        that a `Simulator` runs, arguments are not looked at: it gives the simulated session.

        Args:
            cluster: the cluster, or the path of its file; None takes ``REDISLINK_CLUSTER_FILE``.
            party: who this process is; None takes ``REDISLINK_PARTY``.
            settings: None reads the environment and ``.env``.
            on_progress: called about once a second while parties are missing, with their names
                and the seconds waited. None says it to the logger ``redislink.progress``, at
                first and then every ten seconds.
            broker: None takes the one that the settings or the cluster file name.
            identity: this party's key; None reads ``REDISLINK_IDENTITY_FILE``.
            credentials: as of `redislink.connect`.

        Raises:
            ConfigError, BrokerError, PartyTaken, ClusterMismatch, HandshakeTimeout: as
                `redislink.connect`.
        """
        simulated = _simulated.get()
        if simulated is not None:
            return simulated
        settings = settings or RedisLinkSettings.load()
        spec = resolve_cluster(cluster, settings)
        party = party or settings.party
        return cls.from_endpoint(
            connect(
                spec,
                party,
                settings,
                on_progress=on_progress or _log_missing(spec.session, party),
                broker=broker,
                identity=identity,
                credentials=credentials,
            )
        )

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint) -> Session:
        """A session over an endpoint that is there already; closing it closes the endpoint."""

        def make_link(device: str, _members: Sequence[str]) -> SpuLink:
            from redislink.spu.link import create_link

            return create_link(device, endpoint)

        return cls(
            RedisCommunicator(endpoint, NAMESPACE),
            RedisCommunicator(endpoint),
            endpoint.cluster,
            make_link,
            endpoint.settings.close_timeout,
        )

    # -- what it is --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the session, in the cluster file."""
        return self.cluster.session

    @property
    def rank(self) -> int:
        """Of this party."""
        return self._communicator.rank

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return self._communicator.world_size

    @property
    def party_names(self) -> tuple[str, ...]:
        """Of all parties, in rank order."""
        return self._communicator.party_names

    @property
    def communicator(self) -> Communicator:
        """For the program's own messages; they never meet those of the session."""
        return self._user_communicator

    def stats(self) -> EndpointStats:
        """What passed through so far: messages, bytes, resends."""
        return self._communicator.stats()

    # -- collective calls --------------------------------------------------------------------

    def spu(self, name: str) -> SpuDevice:
        """An SPU device of the cluster file; its link is made when it is first used.

        Raises:
            ConfigError: no such device.
            ProgramDiverged, PeerError: as every call of a session.
        """
        spec = self.cluster.device(name)
        with self._steps.step(f"spu({name})", spec.members):
            return self._device(name)

    def ensure_spu_env(self, *names: str) -> None:
        """Make link and runtime of devices now, all at the same time, instead of on first use.

        Args:
            names: of devices; none takes all of the cluster file.

        Raises:
            ConfigError: no such device.
            LinkError: a link cannot be made.
            ProgramDiverged, PeerError: as every call of a session.
        """
        wanted = names or tuple(self.cluster.devices)
        members = {member for name in wanted for member in self.cluster.device(name).members}
        with self._steps.step(f"ensure_spu_env({', '.join(wanted)})", tuple(members)):
            devices = [self._device(name) for name in wanted]
            if devices:
                with ThreadPoolExecutor(len(devices)) as pool:
                    for made in [pool.submit(device.ensure) for device in devices]:
                        made.result()

    def psi(
        self,
        table: Any,
        keys: str | Sequence[str],
        columns: str | Sequence[str] | None = None,
        *,
        parties: Sequence[str],
        protocol: str = "RR22",
    ) -> dict[str, Any] | None:
        """Private set intersection between two parties: which rows have keys that both have.

        Both learn which of their own keys the other has too, and how many rows it has. libpsi
        runs in a process of its own, and writes to a private directory meanwhile: digests under
        a secret of this call, and no key.

        Args:
            table: this party's; not looked at elsewhere. A dict of columns (lists, arrays,
                Series, all of one length), a pandas or polars DataFrame, a pyarrow Table, the
                path of a CSV file in UTF-8, or a function that gives one of these. Rows are
                counted by position: labels of a pandas index mean nothing here.
            keys: the column, or columns, by which rows are matched, in this party's table; text
                or integers, each there once. Equal is what has the same text, to the letter.
                They may have other names at the other party.
            columns: which of its own columns this party wants; None takes all.
            parties: the two.
            protocol: ``RR22`` (fast), ``KKRT`` or ``ECDH`` (least traffic).

        Returns:
            At the two, their own columns with the rows in common, in the same order at both
            (that of the keys as text): a list where a list was given, else an array. None
            elsewhere.

        Raises:
            ValueError, OSError: this party's table is not right; the other gets LoadFailed.
            UsageError: parties, keys, columns or protocol are not valid.
            IntersectionFailed: libpsi has failed here. The session has ended for all.
            ProgramDiverged, PeerError: as every call of a session.
        """
        from redislink.spu.intersection import Query, intersect_tables

        pair = self._check_pair(parties)
        query = Query.check(self.party, table, keys, columns, protocol)
        return intersect_tables(self._steps, self._communicator, pair, query, self.abort)

    # -- the end -----------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Tell every peer that this party's run has failed, and leave. From any thread.

        Args:
            reason: one line; it is shown to the peers, so it must hold no data.
        """
        with self._lock:
            self._closed = True
        try:
            self._failure.set(
                EndpointClosed(f"{self.party}: the session was aborted here: {reason}"), reason
            )
            self._leave_steps()
        finally:
            self._left = True

    def close(self) -> None:
        """Leave in good order: wait, for ``close_timeout`` at most, until the others come to
        the end too, then until they have all that was sent. Later calls raise EndpointClosed.
        Safe to call twice.

        Raises:
            ProgramDiverged: another party calls something else instead.
            PeerAborted: the run of another has failed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._steps.usable:
                spawned = [
                    (f"the calls of devices spawned from {name}", device.spawned_digest())
                    for name, device in sorted(self._devices.items())
                ]
                self._steps.finish(self._close_timeout, spawned)
        except RedisLinkError as error:
            self._failure.set(error)
            raise
        finally:
            self._leave_steps()
            try:
                if self._failure.error is None:
                    for device in self._devices.values():
                        device.close_link()
            finally:
                try:
                    self._communicator.close()
                finally:
                    self._left = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(reason_for_peers(error))

    def die_in_child(self) -> None:
        """In the child of a fork: every call raises `UsedAfterFork`, leaving does nothing."""
        self._lock = threading.Lock()
        self._closed = self._left = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"open, at step {self._steps.number}"
        return f"<Session {self.name} at {self.party} (rank {self.rank}), {state}>"

    # -- shared ------------------------------------------------------------------------------

    def _device(self, name: str) -> SpuDevice:
        from redislink.spu.device import SpuDevice, Surroundings

        if name not in self._devices:
            spec = self.cluster.device(name)
            members = tuple(self.party_names[rank] for rank in self.cluster.mask(name))
            at = Surroundings(
                self._communicator.sub("devices").sub(name),
                self._failure,
                lambda device: self._make_link(device, members),
                self._silence,
                self._close_timeout,
            )
            self._devices[name] = SpuDevice(name, spec, members, self._steps, at)
        return self._devices[name]

    def _check_pair(self, parties: Sequence[str]) -> tuple[str, ...]:
        for party in parties:
            if party not in self.party_names:
                raise UsageError(
                    f"{self.party}: psi between {party!r:.80}, which is not a party: use two of "
                    f"{', '.join(self.party_names)}"
                )
        if isinstance(parties, str) or len(set(parties)) != 2 or len(parties) != 2:
            raise UsageError(f"{self.party}: psi is between two parties: name two in parties=")
        return tuple(sorted(parties, key=self.cluster.rank))

    def _leave_steps(self) -> None:
        for device in self._devices.values():
            device.leave()
        self._steps.leave()


def open_sessions() -> list[Session]:
    """The sessions of this process that are open, or still being left."""
    with _open_lock:
        return [session for session in _open_sessions if not session._left]


def _log_missing(session: str, party: str | None) -> Progress:
    log = PartyLogger(session, party, "redislink.progress")

    def say(missing: list[str], waited_seconds: float) -> None:
        if round(waited_seconds) % _REPORT_INTERVAL == 1:
            log.info("waiting for %s to join", ", ".join(missing))

    return say
