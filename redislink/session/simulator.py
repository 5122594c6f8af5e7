"""`Simulator`: all parties of a program as threads of this process.

Rules:
- The program is the same, unchanged, as on separate machines. Only its messages take another way:
  through memory, or sealed through fakeredis or an embedded broker.
- It needs no port but the embedded broker's, no key file and no settings of this machine.
- The first exception of any party ends all of them, and is raised.
- With ``kill``, parties keep journals in a temporary directory. What may pass ends an attempt, and
  all start again from there (`redislink.session.kills`).
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster import ClusterSpec, load_cluster
from redislink.cluster.trial import trial_devices
from redislink.communicator import DEFAULT_NAMESPACE, ThreadCommunicator
from redislink.errors import ConfigError, PeerError, UsageError
from redislink.forking import dies_in_child
from redislink.identity.keypair import Identity, format_public_key
from redislink.identity.signing import SigningKey, format_signing_key
from redislink.joining import connect_run
from redislink.session.exchange import Exchange
from redislink.session.journal import Journal
from redislink.session.kills import Attempts, Kill, MortalJournal, Plan, goes_on_after
from redislink.session.session import NAMESPACE, Session, _simulated, audit_into, open_audit
from redislink.session.steps import versions_here
from redislink.settings import LinkMode, RedisLinkSettings
from redislink.transport.claim import Run
from redislink.values import decode_value_untrusted

if TYPE_CHECKING:
    from redislink.session.recording import SessionAudit
    from redislink.spu.link import SpuLink

Program = Callable[..., Any]
Join = Callable[[int], Session]
"""Joins the session, in the attempt with this number."""
Through = Literal["memory", "fakeredis", "embedded"]
NAMES: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
"""Names of the parties if only their number is given; party9 and so on follow."""

_CONNECT_TIMEOUT: Final = 30.0


class Simulator:
    """Runs a program as every party at once:

        def program(session):
            x = session.spu("SP0").private(lambda: np.arange(3), owner="alice")
            ...

        Simulator(3).run(program)      # {"alice": …, "bob": …, "carol": …}

    Attributes:
        cluster: the parties and devices.
        results: what each party kept with `Session.result` in the last run, by party and name.
    """

    def __init__(
        self,
        cluster: ClusterSpec | str | Path | int = 3,
        *,
        through: Through = "memory",
        settings: RedisLinkSettings | None = None,
        kill: Kill | None = None,
        data: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Args:
        cluster: a cluster or the path of its file, whose keys and broker are ignored; or a number
            of parties, 2 or more: alice, bob, carol, … with the devices SP0 between the first
            three (ABY3; CHEETAH if there are only two) and PSI0 between the first two (CHEETAH).
        through: the way of the messages: ``memory``; ``fakeredis``, which must be installed; or
            ``embedded``, a real Valkey server on this machine.
        settings: timeouts and sizes; None means the defaults, whatever the environment says.
        kill: ``{"bob": [3, 7]}`` kills bob when he comes to the session's third step, and, once
            all have started again from their journals, at the seventh. The steps are those of the
            session's own chain, without those of spawned devices, also if a journal answers them.
        data: path of each data set by its name, in which ``{party}`` stands for the party's name;
            None means those of ``settings``.

        Raises:
            ConfigError: the cluster is not valid.
            UsageError: ``through`` is none of these, or ``kill`` names no party or no step.
        """
        if through not in ("memory", "fakeredis", "embedded"):
            raise UsageError(
                f"a simulator has no way through {through!r:.40}: use memory, fakeredis, embedded"
            )
        self.cluster = simulated_cluster(cluster)
        self._kill = dict(kill or {})
        Plan(self._kill, self.cluster.party_names)
        self._through: Through = through
        # In one process nobody is late: a party that does not join has failed.
        defaults = RedisLinkSettings.model_construct(connect_timeout=_CONNECT_TIMEOUT)
        self._settings = (settings or defaults).model_copy(
            update={
                "link_mode": LinkMode.CHANNELS,
                "psk_dir": None,
                **({} if data is None else {"data": {n: Path(p) for n, p in data.items()}}),
            }
        )
        self.results: dict[str, dict[str, Any]] = {}

    def __call__(
        self,
        *,
        through: Through | None = None,
        settings: RedisLinkSettings | None = None,
        kill: Kill | None = None,
        data: Mapping[str, str | Path] | None = None,
    ) -> Simulator:
        """Return another simulator of the same cluster. None leaves an option as it is here.

        Args:
            through, settings, kill, data: as for the class.
        """
        return Simulator(
            self.cluster,
            through=through or self._through,
            settings=settings or self._settings,
            kill=self._kill if kill is None else kill,
            data=self._settings.data if data is None else data,
        )

    def run(self, program: Program, *arguments: Any) -> dict[str, Any]:
        """Run ``program(session, *arguments)`` as every party, each in a thread.

        A party that is killed raises an exception in the program that only ``except BaseException``
        and ``finally`` see; whatever they do with the session has no effect.

        Args:
            program: the program. ``session.party`` tells it which party it is; `Session.join` in it
                returns the same session.
            arguments: further arguments; all parties get the same objects.

        Returns:
            The return value of each party, by name.

        Raises:
            Exception: the first exception that any party raised; a note names the party.
            UsageError: a party was to be killed at a step that the program does not make.
        """
        plan = Plan(self._kill, self.cluster.party_names)
        kept: dict[str, dict[str, bytes]] = {name: {} for name in self.cluster.party_names}
        self.results = {}
        with self._sessions(plan, kept) as joins:
            returned = _Run(program, arguments, joins, plan).results()
        plan.check_done()
        self.results = {
            party: {name: decode_value_untrusted(packed) for name, packed in mine.items()}
            for party, mine in kept.items()
        }
        return returned

    @contextlib.contextmanager
    def _sessions(
        self, plan: Plan, kept: Mapping[str, dict[str, bytes]]
    ) -> Iterator[Mapping[str, Join]]:
        """For each party a function that joins the session, to call in its thread."""
        names, session = self.cluster.party_names, self.cluster.session
        exchanges = {name: Exchange.of(self._settings, session, name, kept[name]) for name in names}
        with contextlib.ExitStack() as stack:
            directory = (
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="redislink-simulator-", ignore_cleanup_errors=True
                    )
                )
                if self._kill
                else None
            )
            if self._through == "memory":
                is_recorded = self._settings.audit_file is not None
                identities = {
                    name: Identity.generate() for name in names if self._kill or is_recorded
                }
                spec = _with_keys(self.cluster, identities) if is_recorded else self.cluster
                rooms = _Rooms(names, self._settings.recv_timeout)

                def enter(name: str, attempt: int) -> Session:
                    mine, user = rooms.enter(name, attempt)
                    vanish = partial(mine._hub.lose, mine.rank)
                    journal = _journal(directory, spec, identities, plan, name, vanish)
                    log = open_audit(spec, name, self._settings, None, identities.get(name))
                    audit = audit_into(log, spec)
                    return _in_memory(
                        mine, user, spec, self._settings, journal, exchanges[name], audit
                    )

                yield {name: partial(enter, name) for name in names}
                return
            if self._through == "embedded":
                url = stack.enter_context(EmbeddedBroker()).unix_url
            else:
                url = f"fakeredis://simulator-{secrets.token_hex(8)}"
            identities = {name: Identity.generate() for name in names}
            spec, broker = _with_keys(self.cluster, identities), Broker(url)

            def join(name: str, _attempt: int) -> Session:
                journal = _journal(directory, spec, identities, plan, name)
                endpoint = connect_run(
                    Run() if journal is None else journal.joins(),
                    spec,
                    name,
                    self._settings,
                    broker=broker,
                    identity=identities[name],
                )
                if journal is not None:
                    journal.vanish = endpoint.parts.closing.vanish
                log = open_audit(spec, name, self._settings, None, identities[name])
                return Session._over(endpoint, journal, log, exchanges[name])

            yield {name: partial(join, name) for name in names}


def _with_keys(cluster: ClusterSpec, identities: Mapping[str, Identity]) -> ClusterSpec:
    """The cluster, sealed with these keys."""
    content = cluster.model_dump(mode="json", exclude_none=True)
    content |= {
        "security": "sealed",
        "parties": [
            {
                "name": name,
                "public_key": format_public_key(identity.public_key),
                "signing_key": format_signing_key(SigningKey(identity).public_key),
            }
            for name, identity in identities.items()
        ],
    }
    return ClusterSpec.parse(content)


def simulated_cluster(cluster: ClusterSpec | str | Path | int) -> ClusterSpec:
    """The cluster that a `Simulator` runs, from its argument.

    Args:
        cluster: a cluster, the path of its file, or a number of parties.

    Raises:
        ConfigError: the cluster is not valid.
    """
    if isinstance(cluster, ClusterSpec):
        return cluster
    if not isinstance(cluster, int):
        return load_cluster(cluster)
    if isinstance(cluster, bool) or cluster < 2:
        raise ConfigError(
            f"a simulation needs 2 parties or more, not {cluster}: use a larger number"
        )
    names = [*NAMES, *(f"party{number}" for number in range(len(NAMES) + 1, cluster + 1))]
    names = names[:cluster]
    return ClusterSpec.parse(
        {"session": "simulator", "parties": names, "devices": trial_devices(names)}
    )


class _Run:
    """The threads of one run."""

    def __init__(
        self, program: Program, arguments: Sequence[Any], joins: Mapping[str, Join], plan: Plan
    ) -> None:
        self._program = program
        self._arguments = arguments
        self._most_attempts = plan.most_attempts
        self._attempts = Attempts(tuple(joins))
        self._results: dict[str, Any] = {}
        self._errors: list[BaseException] = []
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._play_on, args=(party, join), name=f"simulated-{party}", daemon=True
            )
            for party, join in joins.items()
        ]
        self._order = tuple(joins)
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork only one party's thread is left."""
        self._lock = threading.Lock()

    def results(self) -> dict[str, Any]:
        for thread in self._threads:
            thread.start()
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self._attempts.give_up()
            with self._lock:
                sessions = list(self._sessions)
            for session in sessions:
                session.abort("the simulator was interrupted")
            raise
        if self._errors:
            # A party's own first error is the cause of the errors of its peers.
            causes = [error for error in self._errors if not isinstance(error, PeerError)]
            raise (causes or self._errors)[0]
        return {party: self._results[party] for party in self._order}

    def _play_on(self, party: str, join: Join) -> None:
        attempt: int | None = 1
        while attempt is not None:
            attempt = self._play(party, join, attempt)

    def _play(self, party: str, join: Join, attempt: int) -> int | None:
        """Make one attempt; return the next one, None if there is none."""
        is_last = attempt >= self._most_attempts
        try:
            session = join(attempt)
            with self._lock:
                self._sessions.append(session)
            with session:
                try:
                    _simulated.set(session)
                    result = self._program(session, *self._arguments)
                except BaseException as error:
                    if is_last or not goes_on_after(error):
                        self._failed(error, party)  # before the others hear of it
                    raise
            self._results[party] = result
        except BaseException as error:  # noqa: BLE001 - raised by results()
            if is_last or not goes_on_after(error):
                self._failed(error, party)
                return None
            return self._attempts.failed(attempt)
        return None if is_last else self._attempts.ended_well(party, attempt)

    def _failed(self, error: BaseException, party: str) -> None:
        self._attempts.give_up()
        with self._lock:
            if not any(known is error for known in self._errors):
                error.add_note(f"at {party}, in a simulator")
                self._errors.append(error)


class _Rooms:
    """Where the parties meet in memory: another place for each attempt."""

    def __init__(self, names: Sequence[str], recv_timeout: float) -> None:
        self._names = names
        self._recv_timeout = recv_timeout
        self._lock = threading.Lock()
        self._made: dict[int, dict[str, tuple[ThreadCommunicator, ThreadCommunicator]]] = {}
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork only one party's thread is left."""
        self._lock = threading.Lock()

    def enter(self, name: str, attempt: int) -> tuple[ThreadCommunicator, ThreadCommunicator]:
        """A party's communicators for an attempt: the session's, and the program's."""
        with self._lock:
            if attempt not in self._made:
                made = ThreadCommunicator.make(
                    self._names, namespace=NAMESPACE, recv_timeout=self._recv_timeout
                )
                self._made[attempt] = {
                    c.party: (c, ThreadCommunicator(c._hub, c.rank, DEFAULT_NAMESPACE))
                    for c in made
                }
            return self._made[attempt][name]


def _journal(
    directory: str | None,
    cluster: ClusterSpec,
    identities: Mapping[str, Identity],
    plan: Plan,
    party: str,
    vanish: Callable[[], None] = lambda: None,
) -> MortalJournal | None:
    """Open a party's journal; None if nobody keeps one."""
    if directory is None:
        return None
    journal = MortalJournal.open(
        Path(directory),
        cluster.session,
        party,
        cluster.digest(),
        identities[party],
        versions_here(),
    )
    journal.plan, journal.vanish = plan, vanish
    return journal


def _in_memory(
    communicator: ThreadCommunicator,
    user: ThreadCommunicator,
    cluster: ClusterSpec,
    settings: RedisLinkSettings,
    journal: Journal | None = None,
    exchange: Exchange | None = None,
    audit: SessionAudit | None = None,
) -> Session:
    links = communicator.sub("links")
    numbers: dict[str, int] = {}

    def make_link(name: str, members: Sequence[str]) -> SpuLink:
        from redislink.spu.log import limit_log
        from redislink.spu.memory import create_memory_link

        limit_log(settings.spu_log_level)
        numbers[name] = numbers.get(name, 0) + 1
        place = links.sub(name).sub(str(numbers[name]))
        return create_memory_link(place, members)

    timeout = settings.close_timeout
    return Session(communicator, user, cluster, make_link, timeout, journal, exchange, audit)
