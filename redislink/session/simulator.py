"""`Simulator`: all parties of a program as threads of this process.

Rules:
- The program is the same, unchanged, as on separate machines. Only its messages take another way:
  through memory, or sealed through fakeredis or an embedded broker.
- It needs no port but the embedded broker's, no key file and no settings of this machine.
- The first exception of any party ends all of them, and is raised.
"""

from __future__ import annotations

import contextlib
import secrets
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
from redislink.joining import connect
from redislink.session.journal import Journal
from redislink.session.session import NAMESPACE, Session, _simulated
from redislink.settings import LinkMode, RedisLinkSettings

if TYPE_CHECKING:
    from redislink.spu.link import SpuLink

Program = Callable[..., Any]
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
    """

    def __init__(
        self,
        cluster: ClusterSpec | str | Path | int = 3,
        *,
        through: Through = "memory",
        settings: RedisLinkSettings | None = None,
    ) -> None:
        """Args:
        cluster: a cluster or the path of its file, whose keys and broker are ignored; or a number
            of parties, 2 or more: alice, bob, carol, … with the devices SP0 between the first
            three (ABY3; CHEETAH if there are only two) and PSI0 between the first two (CHEETAH).
        through: the way of the messages: ``memory``; ``fakeredis``, which must be installed; or
            ``embedded``, a real Valkey server on this machine.
        settings: timeouts and sizes; None means the defaults, whatever the environment says.

        Raises:
            ConfigError: the cluster is not valid.
            UsageError: ``through`` is none of these.
        """
        if through not in ("memory", "fakeredis", "embedded"):
            raise UsageError(
                f"a simulator has no way through {through!r:.40}: use memory, fakeredis, embedded"
            )
        self.cluster = simulated_cluster(cluster)
        self._through = through
        # In one process nobody is late: a party that does not join has failed.
        defaults = RedisLinkSettings.model_construct(connect_timeout=_CONNECT_TIMEOUT)
        self._settings = (settings or defaults).model_copy(
            update={"link_mode": LinkMode.CHANNELS, "psk_dir": None}
        )

    def run(self, program: Program, *arguments: Any) -> dict[str, Any]:
        """Run ``program(session, *arguments)`` as every party, each in a thread.

        Args:
            program: the program. ``session.party`` tells it which party it is; `Session.join` in it
                returns the same session.
            arguments: further arguments; all parties get the same objects.

        Returns:
            The return value of each party, by name.

        Raises:
            Exception: the first exception that any party raised; a note names the party.
        """
        with self._sessions() as joins:
            return _Run(program, arguments, joins).results()

    @contextlib.contextmanager
    def _sessions(self) -> Iterator[Mapping[str, Callable[[], Session]]]:
        """For each party a function that joins the session, to call in its thread."""
        names = self.cluster.party_names
        if self._through == "memory":
            timeout = self._settings.recv_timeout
            mine = ThreadCommunicator.make(names, namespace=NAMESPACE, recv_timeout=timeout)
            theirs = [ThreadCommunicator(c._hub, c.rank, DEFAULT_NAMESPACE) for c in mine]
            yield {
                c.party: partial(_in_memory, c, user, self.cluster, self._settings)
                for c, user in zip(mine, theirs, strict=True)
            }
            return
        with contextlib.ExitStack() as stack:
            if self._through == "embedded":
                url = stack.enter_context(EmbeddedBroker()).unix_url
            else:
                url = f"fakeredis://simulator-{secrets.token_hex(8)}"
            identities = {name: Identity.generate() for name in names}
            content = self.cluster.model_dump(mode="json", exclude_none=True)
            content |= {
                "security": "sealed",
                "parties": [
                    {"name": name, "public_key": format_public_key(identity.public_key)}
                    for name, identity in identities.items()
                ],
            }
            spec, broker = ClusterSpec.parse(content), Broker(url)

            def join(name: str) -> Session:
                identity = identities[name]
                return Session.from_endpoint(
                    connect(spec, name, self._settings, broker=broker, identity=identity)
                )

            yield {name: partial(join, name) for name in names}


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
        self, program: Program, arguments: Sequence[Any], joins: Mapping[str, Callable[[], Session]]
    ) -> None:
        self._program = program
        self._arguments = arguments
        self._results: dict[str, Any] = {}
        self._errors: list[BaseException] = []
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._play, args=(party, join), name=f"simulated-{party}", daemon=True
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

    def _play(self, party: str, join: Callable[[], Session]) -> None:
        try:
            session = join()
            with self._lock:
                self._sessions.append(session)
            with session:
                try:
                    _simulated.set(session)
                    result = self._program(session, *self._arguments)
                except BaseException as error:
                    self._failed(error, party)  # before the others hear of it
                    raise
            self._results[party] = result
        except BaseException as error:  # noqa: BLE001 - raised by results()
            self._failed(error, party)

    def _failed(self, error: BaseException, party: str) -> None:
        with self._lock:
            if not any(known is error for known in self._errors):
                error.add_note(f"at {party}, in a simulator")
                self._errors.append(error)


def _in_memory(
    communicator: ThreadCommunicator,
    user: ThreadCommunicator,
    cluster: ClusterSpec,
    settings: RedisLinkSettings,
    journal: Journal | None = None,
) -> Session:
    links = communicator.sub("links")
    numbers: dict[str, int] = {}

    def make_link(name: str, members: Sequence[str]) -> SpuLink:
        from redislink.spu.memory import create_memory_link

        numbers[name] = numbers.get(name, 0) + 1
        place = links.sub(name).sub(str(numbers[name]))
        return create_memory_link(place, members)

    return Session(communicator, user, cluster, make_link, settings.close_timeout, journal)
