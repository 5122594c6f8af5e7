"""`Client`: submits jobs as a driver, and follows what becomes of them.

Rules:
- A job is on disk before it is offered, and every client of a driver repeats what has not been
  seen. So a client may end, or be killed, at any time.
- A client takes letters about all of the driver's jobs, also those that another process submitted
  with the same directory: what it learns is on disk before it is acknowledged.
- What agents say is checked, bounded, and safe to print.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from redislink.broker.broker import Broker
from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import ConfigError, FrameError, JobError, PeerError
from redislink.identity.keypair import Identity
from redislink.jobs.drawer import Drawer
from redislink.jobs.driver import DriverJob
from redislink.jobs.machine import KEEP, Letter
from redislink.jobs.mailbox import Received, driver_sources, open_mailbox
from redislink.jobs.offer import Offer, job_session, new_job_id
from redislink.jobs.replication import Note, Repeats
from redislink.jobs.requests import About, Answer, Ask
from redislink.jobs.spec import JobSpec
from redislink.jobs.status import State, Status, Whole
from redislink.protocol.list_names import OFFERS_TAG
from redislink.settings import RedisLinkSettings
from redislink.values import decode_value_untrusted

_TURN: Final = 0.5
"""Seconds between two looks at the files, which other processes change too."""
_QUIET: Final = 0.3
"""Seconds without a letter after which those that waited have been taken."""
_LAST_WORDS: Final = 5.0
"""Seconds for agents to say that they know that a job has ended."""
_ASK_AGAIN: Final = 2.0
_ANSWER_TIMEOUT: Final = 30.0
_MOST_RESULT: Final = 4 << 30
"""Bytes of one result."""


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job is, as far as its driver knows.

    Attributes:
        id: its id.
        offer: what was offered.
        whole: where it is as a whole: state, who ended it and why, whom it waits for, and of whom
            nothing has been heard.
        statuses: what each agent has told, by party.
        unseen: parties that have not said that they know of the offer, or that it was cancelled.
    """

    id: str
    offer: Offer
    whole: Whole
    statuses: Mapping[str, Status]
    unseen: tuple[str, ...]

    @property
    def state(self) -> State:
        """Where it is as a whole."""
        return self.whole.state

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens, as far as is known."""
        return self.whole.state.has_ended

    @property
    def results(self) -> dict[str, tuple[str, ...]]:
        """By party, the names of the results that the driver may have."""
        told = {party: self.statuses.get(party) for party in self.offer.parties}
        return {
            party: status.results for party, status in told.items() if status and status.results
        }

    @property
    def is_settled(self) -> bool:
        """Whether it has ended, and all its agents have said so."""
        return self.has_ended and all(
            party in self.statuses and self.statuses[party].state.has_ended
            for party in self.offer.parties
        )


class Client:
    """A driver's way to its jobs. Use it as a context manager, from one thread."""

    def __init__(
        self,
        cluster: str | Path | ClusterSpec | None = None,
        driver: str | None = None,
        *,
        identity: str | Path | Identity | None = None,
        jobs_dir: str | Path | None = None,
        brokers: Sequence[Broker] | None = None,
        settings: RedisLinkSettings | None = None,
    ) -> None:
        """Connect to the broker as a party or driver. It need not be up yet.

        Args:
            cluster: the cluster file or its contents; None: that of the settings.
            driver: name of the driver or party; None: that of the settings.
            identity: its key file or key pair; None: the file of the settings.
            jobs_dir: where its jobs are kept; None: that of the settings.
            brokers: None: those of the settings, or of the cluster file.
            settings: None: from the environment.

        Raises:
            ConfigError: something of this is missing, or does not fit.
        """
        self._settings = RedisLinkSettings.load() if settings is None else settings
        self.cluster = _cluster(cluster, self._settings)
        """What the cluster file says."""
        self.driver = _driver(driver, self.cluster, self._settings)
        """Name of the driver or party."""
        job_session(self.cluster.session, new_job_id())  # raises if it is too long
        directory = self._settings.jobs_dir if jobs_dir is None else Path(jobs_dir)
        self._drawer = Drawer(directory, self.cluster.session, self.driver)
        self._mailbox = open_mailbox(
            self.cluster,
            self.driver,
            _identity(identity, self.driver, self._settings),
            self._settings,
            sources=driver_sources(self.cluster.party_names),
            brokers=brokers,
        )
        self._repeats = Repeats()
        self._answers: dict[str, tuple[str, Answer | None]] = {}
        """By the nonce of what was asked: of whom, and the answer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the broker. The jobs stay; twice is harmless."""
        self._mailbox.close()

    # -- what users call --------------------------------------------------------------------------

    def submit(self, job: str | Path | JobSpec | Offer) -> Job:
        """Offer a job to the agents of its parties.

        Returns once it is on disk and was pushed. What the broker loses is pushed again while a
        client of this driver runs.

        Args:
            job: a job file, its contents, or an offer of this driver.

        Raises:
            ConfigError: the job file is wrong, or the job is there already.
            BrokerError: the broker refuses this user for good.
        """
        offer = job if isinstance(job, Offer) else self._offer(job)
        if offer.driver != self.driver:
            raise ConfigError(f"{self.driver} cannot submit an offer of {offer.driver}")
        self._drawer.add(DriverJob(offer))
        self._repeat(time.time())
        self._raise_for_good()
        return self.show(offer.job)

    def _offer(self, job: str | Path | JobSpec) -> Offer:
        spec = job if isinstance(job, JobSpec) else JobSpec.load(job)
        return spec.offer(self.cluster, driver=self.driver, job=new_job_id(), now=time.time())

    def list(self) -> Sequence[Job]:
        """Return this driver's jobs, the oldest first. `refresh` brings them up to date."""
        now = time.time()
        return [_view(job, now) for job in self._drawer.jobs().values()]

    def show(self, job: str) -> Job:
        """Return one job. `refresh` brings it up to date.

        Raises:
            ConfigError: this driver has no such job here.
        """
        found = self._drawer.jobs().get(job)
        if found is None:
            raise ConfigError(
                f"job {job!r:.80}: {self.driver} has none with this id here: redislink jobs list "
                "shows them, and --jobs-dir says where they are kept"
            )
        return _view(found, time.time())

    def refresh(self, timeout: float = 2.0) -> None:
        """Take the letters that wait, and push what has not been seen.

        Args:
            timeout: the most seconds that this takes.

        Raises:
            BrokerError: the broker cannot be reached, or refuses this user.
        """
        give_up = time.monotonic() + timeout
        while self._turn(min(_QUIET, max(0.0, give_up - time.monotonic()))):
            if time.monotonic() >= give_up:
                break
        problems = self._mailbox.problems
        if problems and len(problems) == self._mailbox.brokers:
            raise problems[-1]

    def wait(
        self,
        job: str,
        timeout: float | None = None,
        *,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until a job has ended, and all its agents have said so.

        Once it has ended, an agent that is away is not waited for.

        Args:
            job: its id.
            timeout: the most seconds to wait; None: as long as it takes.
            on_change: called with what has become known.

        Returns:
            The job as it ended; or as it is, if the time is over: look at ``has_ended``.

        Raises:
            ConfigError: this driver has no such job here.
            BrokerError: the broker refuses this user for good. While it is away, this waits.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        last: Job | None = None
        ended: float | None = None
        while True:
            now = self.show(job)
            if on_change is not None and (last is None or _said(now) != _said(last)):
                on_change(now)
            last = now
            if now.is_settled:
                return now
            if now.has_ended:
                ended = ended or time.monotonic()
                if time.monotonic() > ended + _LAST_WORDS:
                    return now
            left = _TURN if give_up is None else min(_TURN, give_up - time.monotonic())
            if left <= 0:
                return now
            self._turn(left)
            self._raise_for_good()

    def cancel(self, job: str) -> bool:
        """Cancel a job; return whether it had not ended, nor been cancelled.

        Agents that have started it end it once they hear of this.

        Raises: as `submit`.
        """
        self.show(job)
        was_open = self._drawer.change(job, lambda each: each.cancel(time.time()))
        self._repeat(time.time())
        self._raise_for_good()
        return was_open

    def logs(
        self, job: str, party: str, *, follow: bool = False, timeout: float = _ANSWER_TIMEOUT
    ) -> Iterator[bytes]:
        """Yield the log of a job at a party, as far as its policy lets it out.

        It was written by the job's program: make it safe before you print it.

        Args:
            job: the job's id.
            party: whose log.
            follow: go on until the job has ended there.
            timeout: seconds to wait for each answer.

        Raises:
            ConfigError: this driver has no such job here, or it has no such party.
            JobError: the agent gives none, or does not answer; the message says why.
        """
        offset = 0
        while True:
            status = self.show(job).statuses.get(party)
            ended = status is not None and status.state.has_ended
            answer = self._ask(Ask(_nonce(), About.LOG, job, offset=offset), party, timeout)
            if answer.data:
                yield answer.data
            offset = answer.offset + len(answer.data)
            if offset < answer.total:
                continue
            if not follow or ended:
                return
            self._turn(_TURN)

    def result(
        self, job: str, name: str, party: str | None = None, *, timeout: float = _ANSWER_TIMEOUT
    ) -> Any:
        """Return a result of a job that has finished, as the program gave it.

        Args:
            job: the job's id.
            name: the result's name.
            party: who gives it; None: the first party that does.
            timeout: seconds to wait for each answer.

        Raises:
            ConfigError: this driver has no such job here, or it has no such party.
            JobError: no agent gives it, or one does not answer; the message says why.
            ValueDecodeError: what came is no value.
        """
        known = self.show(job)
        if party is None:
            party = next((who for who, names in known.results.items() if name in names), None)
        if party is None:
            given = ", ".join(f"{n} of {who}" for who, ns in known.results.items() for n in ns)
            raise JobError(
                f"job {job}: no agent has told of a result {name!r:.80} that its policy lets out: "
                f"{f'there is {given}' if given else f'the job is {known.state}'}"
            )
        parts, size = [], 0
        while True:
            ask = Ask(_nonce(), About.RESULT, job, name, size)
            answer = self._ask(ask, party, timeout)
            if answer.offset != size or answer.total > _MOST_RESULT:
                raise JobError(f"job {job}: {party} gives a result {name!r} of impossible size")
            parts.append(answer.data)
            size += len(answer.data)
            if size >= answer.total or not answer.data:
                return decode_value_untrusted(b"".join(parts))

    def ask_agents(self, timeout: float = 10.0) -> dict[str, tuple[tuple[Offer, Status], ...]]:
        """Ask the agents of all parties for this driver's jobs, for one that has lost its files.

        Args:
            timeout: seconds to wait for the answers.

        Returns:
            By party, those that answered.

        Raises:
            PeerError: no agent answered.
        """
        asks = {party: Ask(_nonce(), About.JOBS) for party in self.cluster.party_names}
        answers = self._answers_to(asks, timeout)
        if not answers:
            raise PeerError(f"no agent has answered within {timeout:.0f} s: check that they run")
        return {party: tuple(map(_listed_untrusted, got.jobs)) for party, got in answers.items()}

    # -- letters ----------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> bool:
        """Take letters, wait for the first if there is none; then push what is due.

        Returns:
            Whether a letter came.
        """
        self._repeat(time.time())
        received = self._mailbox.take(seconds)
        for each in received:
            try:
                self._heard(each)
            except FrameError:  # sealed by that agent, so it is another version of redislink
                continue
        return bool(received)

    def _heard(self, received: Received) -> None:
        body = received.body
        kind = body.get("kind") if type(body) is dict else None
        if kind == "answer":
            answer = Answer.from_value_untrusted(body)
            of, known = self._answers.get(answer.nonce, ("", None))
            if of == received.src and known is None:
                self._answers[answer.nonce] = of, answer
            return
        note = Note.from_value_untrusted(body)
        if note.job not in self._drawer.jobs():
            return  # perhaps another machine's of this driver, which it will tell itself
        self._drawer.change(note.job, lambda job: job.heard_untrusted(received.src, note))
        if note.wants:
            self._push(self._drawer.jobs()[note.job].letter(received.src, time.time()))

    def _repeat(self, now: float) -> None:
        """Push what is due of what has not been seen."""
        jobs = self._drawer.jobs()
        for name, job in list(jobs.items()):
            if job.has_ended(now) and now > job.offer.expires + 4 * KEEP:
                self._drawer.remove(name)
                del jobs[name]
                continue
            unseen = job.unseen(now)
            for party in job.offer.parties:
                key = (name, party, job.version)
                if party not in unseen:
                    self._repeats.stop(key)
                elif key not in self._repeats:
                    self._repeats.want(key, now)
        for name, party, version in self._repeats.due(now):
            if name in jobs and jobs[name].version == version:
                self._push(jobs[name].letter(party, now))
            else:
                self._repeats.stop((name, party, version))

    def _push(self, letter: Letter) -> None:
        error = self._mailbox.send(letter, time.time())
        if error is not None and not error.retryable:
            raise error.afresh()

    def _raise_for_good(self) -> None:
        """Raise what waiting does not mend."""
        problems = self._mailbox.problems
        lasting = [error for error in problems if not error.retryable]
        if lasting and len(problems) == self._mailbox.brokers:
            raise lasting[0].afresh()

    def _ask(self, ask: Ask, party: str, timeout: float) -> Answer:
        known = self.show(ask.job)
        if party not in known.offer.parties:
            raise ConfigError(
                f"job {ask.job}: {party!r:.80} does not take part: it has "
                f"{', '.join(known.offer.parties)}"
            )
        answer = self._answers_to({party: ask}, timeout).get(party)
        if answer is None:
            raise JobError(
                f"job {ask.job}: {party}'s agent has not answered within {timeout:.0f} s: check "
                "that it runs and reaches the broker"
            )
        if answer.problem:
            raise JobError(f"job {ask.job}: {answer.problem}")
        return answer

    def _answers_to(self, asks: Mapping[str, Ask], timeout: float) -> dict[str, Answer]:
        """Ask until all have answered, or the time is over; return the answers by party."""
        give_up = time.monotonic() + timeout
        again = 0.0
        for party, ask in asks.items():
            self._answers[ask.nonce] = party, None
        try:
            while True:
                open_asks = {p: a for p, a in asks.items() if self._answers[a.nonce][1] is None}
                now = time.monotonic()
                if not open_asks or now >= give_up:
                    found = ((p, self._answers[a.nonce][1]) for p, a in asks.items())
                    return {party: answer for party, answer in found if answer is not None}
                if now >= again:
                    again = now + _ASK_AGAIN
                    for party, ask in open_asks.items():
                        self._push(self._request(party, ask))
                self._raise_for_good()
                self._turn(min(give_up, again) - now)
        finally:
            for ask in asks.values():
                del self._answers[ask.nonce]

    def _request(self, party: str, ask: Ask) -> Letter:
        # On the list where offers may wait: it must live as long as they do.
        jobs = self._drawer.jobs().values()
        waiting = [job.offer.expires for job in jobs if party in job.offer.parties]
        expires = max([time.time() + 60, *map(float, waiting)])
        return Letter(party, OFFERS_TAG, ask.to_value(), expires)


def _nonce() -> str:
    return secrets.token_hex(16)


def _view(job: DriverJob, now: float) -> Job:
    return Job(job.offer.job, job.offer, job.whole(now), dict(job.statuses), job.unseen(now))


def _said(job: Job) -> tuple[Any, ...]:
    return job.whole, tuple(job.statuses.items()), job.unseen


def _listed_untrusted(value: Any) -> tuple[Offer, Status]:
    if type(value) is not dict or value.keys() != {"offer", "status"}:
        raise FrameError("a listed job with other fields")
    return Offer.from_value_untrusted(value["offer"]), Status.from_value_untrusted(value["status"])


def _cluster(cluster: str | Path | ClusterSpec | None, settings: RedisLinkSettings) -> ClusterSpec:
    if isinstance(cluster, ClusterSpec):
        return cluster
    return load_cluster(settings.cluster_file_to_use(cluster))


def _driver(driver: str | None, cluster: ClusterSpec, settings: RedisLinkSettings) -> str:
    name = driver or settings.party
    if name is None:
        raise ConfigError(
            "no driver: give --driver NAME, or set REDISLINK_PARTY; the cluster file has "
            f"{', '.join((*cluster.driver_names, *cluster.party_names))}"
        )
    return name


def _identity(
    identity: str | Path | Identity | None, driver: str, settings: RedisLinkSettings
) -> Identity:
    if isinstance(identity, Identity):
        return identity
    path = identity or settings.identity_file_of(driver)
    if path is None:
        raise ConfigError(
            f"{driver}: no key: give --identity FILE, or set REDISLINK_IDENTITY_FILE to the file "
            f"that redislink keygen {driver} wrote"
        )
    return Identity.load(path)
