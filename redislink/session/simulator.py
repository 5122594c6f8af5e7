"""`Simulator`: all parties of a program as threads of this process.

Rules:
- The program is the one that the parties run apart, unchanged. Only where its messages go is
  different: through memory, or through fakeredis or an embedded broker, then sealed as always.
- No port but the embedded broker's, no key file, no setting of this machine is needed.
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
from redislink.session.session import NAMESPACE, Session, _simulated
from redislink.settings import LinkMode, RedisLinkSettings

if TYPE_CHECKING:
    from redislink.spu.link import SpuLink

Program = Callable[..., Any]
Through = Literal["memory", "fakeredis", "embedded"]
NAMES: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
"""Of the parties, where only their number is given; party9 and so on after these."""

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
        cluster: a cluster or the path of its file, of which keys and broker are not looked at;
            or a number of parties, 2 or more: alice, bob, carol, … with the devices SP0 of the
            first three (ABY3; CHEETAH where there are two) and PSI0 of the first two (CHEETAH).
        through: where messages go: ``memory``; ``fakeredis``, which must be installed;
            ``embedded``, a real Valkey server on this machine.
        settings: timeouts and sizes; None takes the defaults and reads no environment.

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
        # In one process nobody is late: who does not come has failed.
        defaults = RedisLinkSettings.model_construct(connect_timeout=_CONNECT_TIMEOUT)
        self._settings = (settings or defaults).model_copy(
            update={"link_mode": LinkMode.CHANNELS, "psk_dir": None}
        )

    def run(self, program: Program, *arguments: Any) -> dict[str, Any]:
        """Run ``program(session, *arguments)`` as every party, each in a thread.

        Args:
            program: told its party by ``session.party``. A `Session.join` in it gives the same
                session.
            arguments: the same objects for all parties.

        Returns:
            What each returned, by party.

        Raises:
            Exception: the first that any party raised; a note says which party it was.
        """
        with self._sessions() as joins:
            return _Run(program, arguments, joins).results()

    @contextlib.contextmanager
    def _sessions(self) -> Iterator[Mapping[str, Callable[[], Session]]]:
        """For each party what joins the session, to be called in its thread."""
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
    """The cluster that `Simulator` takes.

    Raises:
        ConfigError: it is not valid.
    """
    if isinstance(cluster, ClusterSpec):
        return cluster
    if not isinstance(cluster, int):
        return load_cluster(cluster)
    if isinstance(cluster, bool) or cluster < 2:
        raise ConfigError(f"a simulation of {cluster} parties: take 2 or more")
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
        """In the child of a fork one party's thread is left."""
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
            # What went wrong first at a party itself is the cause of what its peers say.
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
) -> Session:
    links = communicator.sub("links")
    numbers: dict[str, int] = {}

    def make_link(name: str, members: Sequence[str]) -> SpuLink:
        from redislink.spu.memory import create_memory_link

        numbers[name] = numbers.get(name, 0) + 1
        place = links.sub(name).sub(str(numbers[name]))
        return create_memory_link(place, members)

    return Session(communicator, user, cluster, make_link, settings.close_timeout)
