"""`Session`: one program that every party runs.

Rules:
- Every party makes the same calls to the session and its devices in the same order, including
  those in which it takes no part. A difference is found and named (`redislink.session.steps`).
- An exception that leaves the session's ``with`` block ends the session for all, at once.
- Nothing here imports spu or jax before the program uses a device or an intersection.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from redislink.broker import Broker
from redislink.broker.credentials import CredentialsCallable
from redislink.cluster import ClusterSpec
from redislink.communicator import Communicator, RedisCommunicator
from redislink.errors import (
    AuditError,
    ConfigError,
    EndpointClosed,
    RedisLinkError,
    UsageError,
    may_pass,
    reason_for_peers,
)
from redislink.forking import dies_in_child, renew_in_child
from redislink.identity.keypair import Identity
from redislink.identity.signing import check_signing_key
from redislink.joining import connect_run, resolve_cluster
from redislink.logs import PartyLogger
from redislink.session import supervisor
from redislink.session.exchange import Exchange
from redislink.session.journal import NAMESPACE as JOURNALS
from redislink.session.journal import Journal
from redislink.session.steps import Failure, Silence, Steps, versions_here
from redislink.settings import RedisLinkSettings, SpuLogLevel
from redislink.transport.claim import Run
from redislink.transport.endpoint import Endpoint
from redislink.transport.observer import NoteStep
from redislink.transport.rendezvous import Progress
from redislink.transport.stats import EndpointStats
from redislink.with_block import ClosesOrAborts

if TYPE_CHECKING:
    from redislink.audit import AuditLog
    from redislink.audit.records import How
    from redislink.session.recording import SessionAudit
    from redislink.spu.device import SpuDevice
    from redislink.spu.link import SpuLink

MakeLink = Callable[[str, Sequence[str]], "SpuLink"]
"""Makes this party's end of a link, from the name of a device and its members."""

NAMESPACE: Final = "session"
_REPORT_INTERVAL: Final = 10
_simulated: ContextVar[Session | None] = ContextVar("redislink_simulated", default=None)
_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_ended_well: set[Path] = set()
"""The journals of sessions that have ended well in this process."""
_open_lock = threading.Lock()
renew_in_child(_open_lock)


class Session(ClosesOrAborts):
    """This party's part in a session. `Session.join` makes it; use it as a context manager.

    Call it from one thread at a time; to compute in several threads, see `SpuDevice.spawn`. Only
    `communicator`, `abort` and `stats` may be called from any thread.

    Attributes:
        cluster: the contents of the cluster file.
        party: the name of this party.
    """

    def __init__(
        self,
        communicator: Communicator,
        user_communicator: Communicator,
        cluster: ClusterSpec,
        make_link: MakeLink,
        close_timeout: float,
        journal: Journal | None = None,
        exchange: Exchange | None = None,
        audit: SessionAudit | None = None,
        note_step: NoteStep | None = None,
    ) -> None:
        """Not for users: call `join`, or `from_endpoint` if you have an endpoint.

        Raises:
            JournalError: the parties' journals cannot meet.
            AuditError: the audit record cannot be written.
        """
        self.cluster = cluster
        self.party = communicator.party
        self._communicator = communicator
        self._user_communicator = user_communicator
        self._make_link = make_link
        self._close_timeout = close_timeout
        self._failure = Failure(communicator.abort)
        self._journal = journal
        self._exchange = exchange or Exchange(cluster.session, communicator.party)
        self._audit = audit
        self._note_step = note_step
        self._silence = Silence(communicator)
        self._spu_log_level = SpuLogLevel.UNCHANGED
        self._devices: dict[str, SpuDevice] = {}
        self._raised: BaseException | None = None
        self._closed = False
        self._left = False
        self._lock = threading.Lock()
        dies_in_child(self)
        self._steps: Steps
        self._begin()

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
        journal: str | Path | None = None,
        audit: str | Path | None = None,
    ) -> Session:
        """Join the session. Returns once every pair of parties has said hello.

        Under ``redislink run`` and ``redislink simulate`` it needs no arguments. In a program that
        a `Simulator` runs, it ignores its arguments and returns the simulated session.

        Args:
            cluster: the cluster, or the path of its file; None means ``REDISLINK_CLUSTER_FILE``.
            party: the party that this process runs as; None means ``REDISLINK_PARTY``.
            settings: this party's settings; None reads the environment and ``.env``.
            on_progress: called about once a second while parties are missing, with their names
                and the seconds waited so far. None logs them to ``redislink.progress``, at first
                and then every ten seconds.
            broker: the broker to use; None means the one in the settings or the cluster file.
            identity: this party's key pair; None reads ``REDISLINK_IDENTITY_FILE``.
            credentials: as for `redislink.connect`.
            journal: the directory in which this party keeps its journal of the session, so that
                the program, run again by all parties, goes on from the last step that all have;
                None means ``REDISLINK_JOURNAL_DIR``, and if that is not set, no journal. All
                parties keep one, or none does.
            audit: the file to which this party appends its audit record; None means
                ``REDISLINK_AUDIT_FILE``, and if that is not set, no record.

        Raises:
            ConfigError, BrokerError, PartyTaken, ClusterMismatch, HandshakeTimeout: as
                `redislink.connect`.
            JournalError: the journal cannot be opened or written, or those of the parties cannot
                meet.
            AuditError: the audit record cannot be opened or written.
            UsageError: a session has ended well in this process, with this journal.
        """
        simulated = _simulated.get()
        if simulated is not None:
            return simulated
        settings = settings or RedisLinkSettings.load()
        spec = resolve_cluster(cluster, settings)
        party = party or settings.party
        log = open_audit(spec, party, settings, audit, identity)
        kept = None
        try:
            kept = open_journal(spec, party, settings, journal, identity)
            endpoint = connect_run(
                Run() if kept is None else kept.joins(),
                spec,
                party,
                settings,
                on_progress=on_progress or _log_missing(spec.session, party),
                broker=broker,
                identity=identity,
                credentials=credentials,
            )
        except BaseException:
            for opened in (kept, log):
                if opened is not None:
                    opened.close()
            raise
        if supervisor.here is not None:
            supervisor.here.tell_joined()
        return cls._over(endpoint, kept, log)

    @classmethod
    def from_endpoint(
        cls,
        endpoint: Endpoint,
        *,
        journal: str | Path | None = None,
        audit: str | Path | None = None,
        identity: Identity | None = None,
    ) -> Session:
        """Make a session over an existing endpoint.

        Args:
            endpoint: this party's endpoint; closing the session closes it.
            journal: as for `join`; None means the ``journal_dir`` of the endpoint's settings.
            audit: as for `join`; None means the ``audit_file`` of the endpoint's settings.
            identity: this party's key pair, which a journal needs and which signs the audit
                record; None reads the ``identity_file`` of the endpoint's settings.

        Raises:
            ConfigError: there is no identity for the journal.
            JournalError, AuditError: as for `join`.
        """
        settings = endpoint.settings
        log = open_audit(endpoint.cluster, endpoint.party, settings, audit, identity)
        try:
            kept = open_journal(endpoint.cluster, endpoint.party, settings, journal, identity)
        except BaseException:
            if log is not None:
                log.close()
            raise
        return cls._over(endpoint, kept, log)

    @classmethod
    def _over(
        cls,
        endpoint: Endpoint,
        journal: Journal | None,
        log: AuditLog | None,
        exchange: Exchange | None = None,
    ) -> Session:
        """A session over an endpoint, with a journal and a record that are open; it closes all."""

        def make_link(device: str, _members: Sequence[str]) -> SpuLink:
            from redislink.spu.link import create_link

            return create_link(device, endpoint)

        session = cls(
            RedisCommunicator(endpoint, NAMESPACE),
            RedisCommunicator(endpoint),
            endpoint.cluster,
            make_link,
            endpoint.settings.close_timeout,
            journal,
            exchange or Exchange.of(endpoint.settings, endpoint.cluster.session, endpoint.party),
            audit_into(log, endpoint.cluster, endpoint.epochs()),
            endpoint.note_step,
        )
        session._spu_log_level = endpoint.settings.spu_log_level
        endpoint.resumed_steps = session.resumed_steps
        return session

    # -- what it is --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the session."""
        return self.cluster.session

    @property
    def rank(self) -> int:
        """The rank of this party."""
        return self._communicator.rank

    @property
    def world_size(self) -> int:
        """The number of parties."""
        return self._communicator.world_size

    @property
    def party_names(self) -> tuple[str, ...]:
        """The names of all parties, in rank order."""
        return self._communicator.party_names

    @property
    def communicator(self) -> Communicator:
        """A communicator for the program's own messages, apart from those of the session."""
        return self._user_communicator

    @property
    def resumed_steps(self) -> int:
        """How many of the session's first steps the journal answers; 0 without a journal."""
        return 0 if self._steps.journal is None else self._steps.journal.resume

    def stats(self) -> EndpointStats:
        """Counts so far: messages, bytes, resends."""
        return self._communicator.stats()

    # -- what it is given, and gives back ----------------------------------------------------

    def data(self, name: str) -> Path:
        """The path of a data set of this party. Other parties may have one with the same name.

        Whoever starts the run says what the name stands for: ``redislink run --data NAME=PATH``,
        ``REDISLINK_DATA``, or the policy of the agent that runs a job.

        Args:
            name: the data set's name.

        Raises:
            ConfigError: there is none with this name, or no such file; the message lists the names.
        """
        return self._exchange.find(name)

    def result(self, name: str, value: Any) -> None:
        """Keep a value as a result of this party's run. No other party is told.

        It goes into ``NAME.msgpack`` in the directory that ``redislink run --results DIR`` or
        ``REDISLINK_RESULTS_DIR`` names; `redislink.read_result` reads it. An agent also sends it to
        the driver of a job, if its policy says so. Without a directory the value is not kept, and a
        warning is logged.

        Args:
            name: the result's name, in letters, digits, ``_``, ``.`` and ``-``. A result with the
                same name is replaced.
            value: any value of `redislink.encode_value`, in the clear here: reveal it first.

        Raises:
            ConfigError: the name is not valid, or the file cannot be written.
            PayloadTypeError: the value has a type that cannot be kept.
        """
        self._exchange.give_back(name, value)

    # -- collective calls --------------------------------------------------------------------

    def spu(self, name: str) -> SpuDevice:
        """An SPU device of the cluster file. Its link is made when it is first used.

        Args:
            name: the device's name in the cluster file.

        Raises:
            ConfigError: there is no such device.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        spec = self.cluster.device(name)
        with self._steps.step(f"spu({name})", spec.members):
            return self._device(name)

    def ensure_spu_env(self, *names: str) -> None:
        """Make the links and runtimes of devices now, all at once, instead of on first use.

        Args:
            names: the devices' names; without any, all devices of the cluster file.

        Raises:
            ConfigError: there is no such device.
            LinkError: a link cannot be made.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        wanted = names or tuple(self.cluster.devices)
        members = {member for name in wanted for member in self.cluster.device(name).members}
        with self._steps.step(f"ensure_spu_env({', '.join(wanted)})", tuple(members)) as step:
            devices = [self._device(name) for name in wanted]
            if devices and not step.is_past:
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
        """Intersect the tables of two parties: find the rows whose keys both parties have.

        Each of the two learns which of its own keys the other also has, and how many rows the
        other has. libpsi runs in its own process, which writes to a private directory: digests
        of the keys under a secret of this call, never the keys.

        Args:
            table: this party's table; ignored at all but the two parties. A dict of columns
                (lists, arrays or Series of one length), a pandas or polars DataFrame, a pyarrow
                Table, the path of a CSV file in UTF-8, or a function that returns one of these.
                Rows are counted by position; the labels of a pandas index do not matter.
            keys: the column or columns of this party's table by which rows are matched. Values are
                text or integers, none is empty, and no key occurs twice. Keys are equal if their
                text is the same, character by character. The columns may have other names at the
                other party.
            columns: the columns of its own table that this party wants; None means all. Those of a
                CSV file are lists of text: ``numpy.asarray(column, float)`` makes numbers of one.
            parties: the names of the two parties.
            protocol: ``RR22`` (fast), ``KKRT`` or ``ECDH`` (least traffic).

        Returns:
            At the two parties, their own columns with the common rows, in the same order at both
            (sorted by the keys as text): a list for a list, an array for anything else. None at
            the others.

        Raises:
            TableError, OSError: this party's table is not valid; the other party gets LoadFailed.
            UsageError: parties, keys, columns or protocol are not valid.
            IntersectionFailed: libpsi failed here. The session has ended for all.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        from redislink.spu.intersection import Query, intersect_tables

        pair = self._check_pair(parties)
        query = Query.check(self.party, table, keys, columns, protocol)
        return intersect_tables(self._steps, self._communicator, pair, query, self.abort)

    # -- the end -----------------------------------------------------------------------------

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell every peer that this party's run has failed, and leave. Call it from any thread.

        Args:
            reason: one line that the peers are shown, so it must hold no data.
            retryable: whether the cause may pass, so that all may start again.
        """
        with self._lock:
            self._closed = True
        self._blame(self._failure.error, self._steps.broken, self._raised)
        error = EndpointClosed(f"{self.party}: the session was aborted here: {reason}")
        error.retryable = retryable
        try:
            self._failure.set(error, reason)
            self._leave_steps()
        finally:
            self._close_files("aborted")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raised = error
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._raised = None

    def close(self) -> None:
        """Leave the session in good order. Safe to call twice; other calls raise EndpointClosed.

        Waits, for at most ``close_timeout``, until the other parties also come to the end, and
        then until they have received everything.

        Raises:
            ProgramDiverged: another party made a different call instead.
            PeerAborted: another party's run failed.
            AuditError: the audit record's last line cannot be written.
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
                if self._journal is not None:
                    _ended_well.add(self._journal.path)
        except RedisLinkError as error:
            self._blame(error)
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
                    if self._failure.error is not None or self._steps.broken is not None:
                        self._blame(self._failure.error, self._steps.broken)
                    self._close_files("closed")

    def die_in_child(self) -> None:
        """In the child of a fork: every call raises `UsedAfterFork`, and leaving does nothing."""
        self._lock = threading.Lock()
        self._closed = self._left = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"open, at step {self._steps.number}"
        return f"<Session {self.name} at {self.party} (rank {self.rank}), {state}>"

    # -- shared ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin the session's own chain, after the journals have met.

        Raises:
            JournalError: the parties' journals cannot meet.
            AuditError: the audit record cannot be written.
        """
        place = self._communicator.sub("main")
        journals: Communicator | None = self._communicator.sub(JOURNALS)
        chain = None
        try:
            if self._journal is not None and journals is not None:
                self._journal.meet(journals)
                chain, journals = self._journal.chain("", place), None
            if self._audit is not None:
                resumed = None if chain is None else chain.resume
                self._audit.begin(resumed, versions_here(), self._communicator.stats)
            self._steps = Steps(
                place,
                self._failure,
                journal=chain,
                journals=journals,
                audit=self._audit,
                note_step=self._note_step,
            )
            with _open_lock:
                _open_sessions.add(self)
        except BaseException as error:  # that of a signal may come anywhere in here
            self._communicator.abort(reason_for_peers(error), retryable=may_pass(error))
            self._blame(error)
            with contextlib.suppress(AuditError):  # the first error matters more
                self._close_files("aborted")
            raise

    def _close_files(self, how: How) -> None:
        """Close the journal, and end the audit record.

        Args:
            how: how the session has ended, as the record has it.

        Raises:
            AuditError: the record cannot be written, and the session has ended well.
        """
        try:
            if self._journal is not None:
                self._journal.close()
            if self._audit is not None:
                self._audit.end(how)
        except AuditError as error:
            if self._failure.error is None:
                raise
            PartyLogger(self.name, self.party).warning("%s: %s", self.party, error)
        finally:
            self._left = True

    def _blame(self, *errors: BaseException | None) -> None:
        """Note for the audit record why the session ends.

        Args:
            errors: the first that there is counts; if there is none, it is aborted without one.
        """
        if self._audit is not None:
            self._audit.blame(next((error for error in errors if error is not None), None))

    def _device(self, name: str) -> SpuDevice:
        from redislink.spu.device import SpuDevice, Surroundings
        from redislink.spu.log import limit_log

        if name not in self._devices:
            spec = self.cluster.device(name)
            members = tuple(self.party_names[rank] for rank in self.cluster.mask(name))
            limit_log(self._spu_log_level)  # now: the owner of values makes shares before the link
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


def open_journal(
    cluster: ClusterSpec,
    party: str | None,
    settings: RedisLinkSettings,
    directory: str | Path | None = None,
    identity: Identity | None = None,
) -> Journal | None:
    """Open this party's journal of a session, or begin one, as the settings say.

    Args:
        cluster: the cluster file's content.
        party: the name of this party.
        settings: say where the journal is, whether it begins anew, and whether the run needs it.
        directory: the directory of the journals; None means ``REDISLINK_JOURNAL_DIR``.
        identity: this party's key pair; None reads ``REDISLINK_IDENTITY_FILE``.

    Returns:
        The journal; None if neither names a directory.

    Raises:
        ConfigError: there is no identity, from which a journal's keys are made.
        UsageError: the session has ended well in this process, with this journal.
        JournalError: see `Journal.open`.
    """
    place = settings.journal_dir if directory is None else Path(directory)
    if place is None:
        return None
    if party is None:
        raise ConfigError("no party: pass one, or set REDISLINK_PARTY")
    if identity is None and settings.identity_file is None:
        raise ConfigError(
            f"{party}: a journal is encrypted with this party's key: set REDISLINK_IDENTITY_FILE "
            f"to the file that redislink keygen {party} wrote"
        )
    path = Journal.path_of(place, cluster.session, party)
    if path in _ended_well and path.exists():
        raise UsageError(
            f"{party}: this process joins {cluster.session} once more with the journal {path}, "
            "which would answer with the values of the first time: give each its own directory, "
            "join(journal=…)"
        )
    return Journal.open(
        place,
        cluster.session,
        party,
        cluster.digest(),
        identity or Identity.load(settings.identity_file_of(party) or ""),
        versions_here(),
        fresh=settings.journal_fresh,
        required=settings.journal_required,
    )


def open_audit(
    cluster: ClusterSpec,
    party: str | None,
    settings: RedisLinkSettings,
    file: str | Path | None = None,
    identity: Identity | None = None,
) -> AuditLog | None:
    """Open this party's audit record, or begin one, as the settings say.

    Args:
        cluster: the cluster file's content.
        party: the name of this party.
        settings: say where the record is.
        file: the record; None means ``REDISLINK_AUDIT_FILE``. ``{session}`` and ``{party}`` in it
            are replaced by their names.
        identity: this party's key pair; None reads ``REDISLINK_IDENTITY_FILE``. Without either
            the record is not signed.

    Returns:
        The record; None if neither names one.

    Raises:
        ConfigError: the cluster file has another signing key of this party.
        AuditError: see `AuditLog.open`.
    """
    named = settings.audit_file if file is None else Path(file)
    if named is None:
        return None
    if party is None:
        raise ConfigError("no party: pass one, or set REDISLINK_PARTY")
    if identity is None and settings.identity_file is not None:
        identity = Identity.load(settings.identity_file_of(party) or "")
    check_signing_key(party, cluster.parties[cluster.rank(party)].signing_key, identity)
    if identity is None:
        log = PartyLogger(cluster.session, party)
        log.warning("%s: the audit record is not signed, because there is no identity", party)
    from redislink.audit import AuditLog  # which no session without a record needs

    path = str(named).replace("{session}", cluster.session).replace("{party}", party)
    return AuditLog.open(path, party, identity)


def audit_into(
    log: AuditLog | None, cluster: ClusterSpec, epochs: Mapping[str, str] | None = None
) -> SessionAudit | None:
    """What writes about a run of a session into a record; None if there is no record."""
    if log is None:
        return None
    from redislink.session.recording import SessionAudit

    return SessionAudit(log, cluster, epochs)


def open_sessions() -> list[Session]:
    """The sessions of this process that are open or still closing."""
    with _open_lock:
        return [session for session in _open_sessions if not session._left]


def _log_missing(session: str, party: str | None) -> Progress:
    log = PartyLogger(session, party, "redislink.progress")

    def say(missing: list[str], waited_seconds: float) -> None:
        if supervisor.here is not None:
            supervisor.here.tell_missing(missing, waited_seconds)
        if round(waited_seconds) % _REPORT_INTERVAL == 1:
            log.info("waiting for %s to join", ", ".join(missing))

    return say
