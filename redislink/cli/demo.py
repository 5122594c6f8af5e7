"""``redislink demo``: three processes train a model together, and none of them listens.

Rules: every figure shown was measured in this run. The demo is ok only if the model is as good as
the one trained in plaintext, no party ever listened, and no party talked to anything but the
broker. Each party has its own private key and Redis user, and no access to those of others.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.url import Address
from redislink.cli import errors
from redislink.cli.errors import ExitCode, Verbose
from redislink.cli.examples import PROGRAM, find_examples
from redislink.cli.operator import shown_url
from redislink.cli.parties import PartyProcess, broker_addresses, need_psutil
from redislink.cli.termination import sigterm_interrupts
from redislink.cluster import ClusterSpec
from redislink.cluster.trial import trial_devices, write_trial
from redislink.errors import BrokerError, ConfigError, RedisLinkError
from redislink.identity.keypair import fingerprint
from redislink.observe.account import SUFFIX as STATS_SUFFIX
from redislink.operate import acl
from redislink.report import write_report
from redislink.report.gather import AUDIT_SUFFIX
from redislink.settings import LinkMode, RedisLinkSettings

PARTIES: Final = ("alice", "bob", "carol")
DATA_OWNERS: Final = ("alice", "bob")
LEARNS_MODEL: Final = "alice"
_FIRST: Final = """\
two hospitals, alice and bob, have different measurements of some of the same patients
bob also has the diagnoses; carol has no data, and computes with them
they find the patients in common, then train a logistic regression on secret shares
alice learns the model, and nobody learns another's data
three processes on this machine, through {broker}; this takes some seconds
"""
"""What is computed and by whom, before it starts."""
NEXT_PROGRAM: Final = "millionaire.py"
"""The example to try next."""
ACCURACY_TOLERANCE: Final = 0.02
"""How far the accuracy may differ between fixed-point and floating-point arithmetic."""
_LOOK_INTERVAL: Final = 0.1
_GRACE: Final = 5.0
"""Seconds that the others have, after one party failed, to end with their own error."""


@dataclass(frozen=True, slots=True)
class PartyResult:
    """One party's part of the ``--json`` object."""

    name: str
    fingerprint: str
    listening_sockets: int | None
    messages_sent: int | None
    bytes_sent: int | None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The ``--json`` object."""

    ok: bool
    accuracy: float | None
    plaintext_accuracy: float | None
    seconds: float
    broker: str
    security: str
    parties: tuple[PartyResult, ...]
    report: str | None


def demo(
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Use this broker, of any kind, instead of an embedded one.",
            show_default=False,
        ),
    ] = None,
    with_acl: Annotated[
        bool,
        typer.Option(
            "--acl",
            help="Make a Redis user for each party on --broker, and remove it afterwards; URL must "
            "be an administrator's. The embedded broker always has such users.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
    ] = False,
    jobs: Annotated[
        bool,
        typer.Option(
            "--jobs",
            help="As a job: three agents wait, a driver submits the training, and a person "
            "approves it at one of them.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --jobs: ask nobody, and approve.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="With --jobs: a new directory for keys, policies, logs and results, which stays.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Where to write the page about the run. Needs redislink[report]."
        ),
    ] = Path("demo-report.html"),
    verbose: Verbose = False,
) -> None:
    """Train a logistic regression between three processes, none of which listens on a port.

    Two hospitals hold different columns about overlapping patients; alice learns the weights. The
    processes' sockets are read from the operating system during the run and shown at the end.
    """
    need_psutil()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_interrupts())
        if jobs:
            _demo_jobs(directory, yes=yes)
        if broker is None:
            # With a password, so that nobody else on this machine is an admin there.
            password = secrets.token_urlsafe(32)
            url = stack.enter_context(EmbeddedBroker(password=password)).url
        else:
            url = broker
            errors.advise_doctor("--broker", shown_url(url))
        # The embedded broker is on this machine, where no proxy leads.
        proxy = {"broker_proxy": "none"} if broker is None else {}
        reached = _reach(url, proxy)
        program = find_examples() / PROGRAM
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redislink-demo-")))
        addresses = broker_addresses(url, reached.addresses(), reached.proxy_to)
        run = _Run(url, reached.label, program, directory, proxy)
        if with_acl or broker is None:
            stack.enter_context(_users(reached, run))
        if not as_json:
            for line in _FIRST.format(broker=reached.label).splitlines():
                errors.say(line)
        run.until_all_ended(addresses)
        run.report(report)
    if as_json:
        typer.echo(json.dumps(asdict(run.result())))
    else:
        _show(run.result(), run.looks, with_acl=bool(run.urls))
    for problem in run.problems:
        errors.say(problem)
    raise SystemExit(int(run.code))


def _demo_jobs(directory: Path | None, *, yes: bool) -> NoReturn:
    from redislink.cli.demo_jobs import demo_jobs

    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="redislink-demo-jobs-"))
    else:
        try:
            directory.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}: name a new one") from None
    demo_jobs(directory.absolute(), yes=yes)


def _reach(url: str, proxy: Mapping[str, str]) -> Broker:
    """Connect once, so that an error in the URL comes before three processes start."""
    settings = RedisLinkSettings.load(broker_url=url, **proxy)
    broker = Broker.from_settings(settings, None)
    if broker.in_process:
        raise ConfigError(
            "broker URL fakeredis://: it lives inside one process, and the demo runs three: "
            "leave --broker out, or write redis://HOST:PORT"
        )
    broker.open().close()
    return broker


@contextlib.contextmanager
def _users(broker: Broker, run: _Run) -> Iterator[None]:
    """Give each party its own Redis user while the demo runs."""
    users = acl.party_users(
        *(run.spec.session, PARTIES, acl.database(run.url)), cluster=acl.is_cluster(run.url)
    )
    passwords = {party: acl.make_password() for party in PARTIES}
    acl.apply_users(broker, users, passwords)
    run.urls = {u.party: acl.party_url(run.url, u.name, passwords[u.party]) for u in users}
    try:
        yield
    finally:
        try:
            acl.remove_users(broker, users)
        except BrokerError as error:
            errors.say(f"the users {', '.join(u.name for u in users)} are still there: {error}")


class _Run:
    """The three processes, from start to end, and the findings about them."""

    def __init__(
        self, url: str, label: str, program: Path, directory: Path, proxy: Mapping[str, str]
    ) -> None:
        self.problems: list[str] = []
        """Why the demo is not ok, one line each."""
        self.code = ExitCode.OK
        self.url = url
        self.urls: dict[str, str] = {}
        """The broker's URL for each party, if they differ."""
        self._label = label
        self._proxy = {f"REDISLINK_{name.upper()}": value for name, value in proxy.items()}
        self._program = program
        self._data = program.parent / "data"
        self._directory = directory
        self._results: dict[str, dict[str, Any]] = {}
        self._parties: list[PartyProcess] = []
        self._stopped: set[str] = set()
        self._seconds = 0.0
        self._plaintext_accuracy: float | None = None
        self._cluster = directory / "cluster.yaml"
        self._records = directory / "records"
        self._records.mkdir()
        self._report: Path | None = None
        self._keys = {name: directory / f"keys-{name}" / "identity.key" for name in PARTIES}
        self.spec = self._write_cluster()

    def until_all_ended(self, addresses: set[Address]) -> None:
        """Start the parties, show their progress, and judge what they did.

        Args:
            addresses: the addresses of the broker.
        """
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for name in PARTIES:
                party = PartyProcess(
                    name,
                    cluster=self._cluster,
                    program=self._program,
                    arguments=("--data", str(self._own_data(name))),
                    directory=self._directory,
                    environment={
                        "REDISLINK_BROKER_URL": self.urls.get(name, self.url),
                        "REDISLINK_LINK_MODE": LinkMode.CHANNELS.value,
                        "REDISLINK_IDENTITY_FILE": str(self._keys[name]),
                        "REDISLINK_PSK_DIR": str(self._keys[name].parent),  # holds none
                        "REDISLINK_AUDIT_FILE": str(self._records / f"{name}{AUDIT_SUFFIX}"),
                        "REDISLINK_STATS_FILE": str(self._records / f"{name}{STATS_SUFFIX}"),
                        **self._proxy,
                    },
                )
                self._parties.append(stack.enter_context(party))
            # Beside the parties, who often wait; afterwards it would take two seconds of its own.
            pool = stack.enter_context(ThreadPoolExecutor(1, "redislink-plaintext"))
            plaintext = pool.submit(_train_plaintext, self._program, self._data)
            self._watch()
            self._seconds = time.monotonic() - started
        self._judge(addresses, plaintext)

    def report(self, page: Path) -> None:
        """Write the page about the run; say so if that is not possible, and leave it at that.

        Args:
            page: the file.
        """
        keys = {party.name: party.signing_key for party in self.spec.parties}
        try:
            write_report([self._records], page, keys=keys)
            self._report = page.absolute()
        except RedisLinkError as error:
            if self.code == ExitCode.OK:  # else the parties may not even have met
                errors.say(f"no report of the run: {error}")

    def result(self) -> DemoResult:
        """The result, for the table and the ``--json`` object."""
        public_keys = self.spec.public_keys()
        return DemoResult(
            ok=self.code == ExitCode.OK,
            accuracy=self._results.get(LEARNS_MODEL, {}).get("accuracy"),
            plaintext_accuracy=self._plaintext_accuracy,
            seconds=round(self._seconds, 3),
            broker=self._label,
            security=self.spec.security,
            parties=tuple(
                PartyResult(
                    party.name,
                    fingerprint(public_keys[party.name]),
                    party.sockets.listening if party.sockets.looks else None,
                    self._results.get(party.name, {}).get("messages_sent"),
                    self._results.get(party.name, {}).get("bytes_sent"),
                )
                for party in self._parties
            ),
            report=None if self._report is None else str(self._report),
        )

    @property
    def looks(self) -> int:
        """How many times the sockets of each party were read, at least."""
        return min(party.sockets.looks for party in self._parties)

    def _own_data(self, party: str) -> Path:
        """A directory with this party's data only."""
        directory = self._directory / f"data-{party}"
        directory.mkdir()
        source = self._data / f"{party}.csv"
        if source.is_file():
            shutil.copy(source, directory)
        return directory

    def _write_cluster(self) -> ClusterSpec:
        content = {
            # A unique name, so that demos on one broker do not meet.
            "session": f"demo-{secrets.token_hex(4)}",
            "parties": list(PARTIES),
            "devices": trial_devices(list(PARTIES)),
        }
        return write_trial(content, self._cluster, self._keys, "of redislink demo")

    def _watch(self) -> None:
        """Watch sockets and reports until all have ended, or one failed and time is up."""
        give_up: float | None = None
        with _progress() as progress:
            bars = {
                p.name: progress.add_task(p.name, total=None, step="starts") for p in self._parties
            }
            while True:
                running = [p for p in self._parties if p.exit_code() is None]
                for party in self._parties:
                    party.sockets.look()
                    for event in party.events():
                        self._take(event, party.name, progress, bars[party.name])
                if not running:
                    return
                if give_up is None and any(p.exit_code() for p in self._parties):
                    give_up = time.monotonic() + _GRACE
                if give_up is not None and time.monotonic() > give_up:
                    self._stopped = {party.name for party in running}
                    return
                time.sleep(_LOOK_INTERVAL)

    def _take(self, event: dict[str, Any], party: str, progress: Progress, bar: TaskID) -> None:
        if event.get("event") == "result":
            self._results[party] = event
            progress.update(bar, step="done", completed=1, total=1)
        else:
            progress.update(bar, step=event["what"], completed=event["step"], total=event["of"])

    def _judge(self, addresses: set[Address], plaintext: Future[float]) -> None:
        """Set `problems`, and `code` to the code of the first problem."""
        failed = [p for p in self._parties if p.exit_code() and p.name not in self._stopped]
        # A party that failed because of a peer comes after that peer.
        for party in sorted(failed, key=lambda p: _code_of(p) == ExitCode.PEER):
            code = _code_of(party)
            if code == ExitCode.PROGRAM:
                errors.show_block(party.output())
            self._problem(errors.with_advice(_why(party), code), code)
        if failed:
            return
        for party in self._parties:
            elsewhere = sorted(party.sockets.remotes - addresses)
            if not party.sockets.looks:
                self._problem(f"{party.name}: its sockets could not be read: run as its user")
            if party.sockets.listening:
                self._problem(f"{party.name}: held {party.sockets.listening} listening sockets")
            if elsewhere:
                where = ", ".join(f"{host}:{port}" for host, port in elsewhere)
                self._problem(f"{party.name}: was connected to {where}, which is not the broker")
        self._plaintext_accuracy = plaintext.result()
        result = self.result()
        if result.accuracy is None or result.plaintext_accuracy is None:
            self._problem(f"{LEARNS_MODEL}: reported no accuracy")
        elif abs(result.accuracy - result.plaintext_accuracy) > ACCURACY_TOLERANCE:
            self._problem(
                f"accuracy {result.accuracy:.4f} is not within {ACCURACY_TOLERANCE} of "
                f"{result.plaintext_accuracy:.4f}, that of the same training in plaintext"
            )

    def _problem(self, text: str, code: ExitCode = ExitCode.PROGRAM) -> None:
        self.problems.append(text)
        if self.code == ExitCode.OK:
            self.code = code


def _train_plaintext(program: Path, data: Path) -> float:
    """The accuracy of the same training in NumPy, which the example also has."""
    sys.path.insert(0, str(program.parent))
    try:
        functions = runpy.run_path(str(program))
    finally:
        sys.path.remove(str(program.parent))
    return float(functions["plaintext_accuracy"](data))


def _why(party: PartyProcess) -> str:
    code = party.exit_code() or 0
    if code < 0:
        return f"{party.name}: ended by signal {-code}"
    return errors.with_party(
        errors.without_advice(party.last_line().removeprefix("redislink: ")), party.name
    )


def _code_of(party: PartyProcess) -> ExitCode:
    try:
        return ExitCode(party.exit_code() or 0)
    except ValueError:
        return ExitCode.PROGRAM


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _show(result: DemoResult, looks: int, *, with_acl: bool) -> None:
    console = Console()
    title = (
        f"Logistic regression between {len(PARTIES)} processes, via {result.broker}, "
        f"{result.security}"
    )
    table = Table(title=Text(title))  # no markup: [::1] is a host
    table.add_column("party")
    for heading in ("listening\nsockets", "messages\nsent", "bytes\nsent"):
        table.add_column(heading, justify="right")
    table.add_column("fingerprint of its key", overflow="fold")
    for party in result.parties:
        table.add_row(
            party.name,
            _figure(party.listening_sockets),
            _figure(party.messages_sent),
            _figure(party.bytes_sent),
            party.fingerprint,
        )
    console.print(table)
    if result.accuracy is not None and result.plaintext_accuracy is not None:
        console.print(
            f"accuracy {result.accuracy:.4f}; the same training in plaintext "
            f"{result.plaintext_accuracy:.4f}; {result.seconds:.1f} s in all"
        )
    if result.ok:
        console.print(
            f"Sockets were read from the operating system, {looks} times or more per party: no "
            "party listened, and every connection went to the broker."
        )
        console.print(
            "The parties of each pair proved their identity with these keys, and sealed all "
            "messages: the broker saw only names, tags, sizes and times."
            + (" Each party had its own Redis user and its own inbox." if with_acl else "")
        )
    if result.report is not None:
        console.print(
            f"A page about the run, with what was revealed to whom: {result.report}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    if result.ok:
        _say_what_next()


def _say_what_next() -> None:
    """Print the commands that run another program, ready to type."""
    errors.show("")
    errors.show(f"Next, three parties in three terminals. In {Path.cwd()}, type:")
    errors.show("")
    for line in next_commands():
        errors.show(f"  {line}")


def next_commands() -> list[str]:
    """The commands that run a program in one terminal per party."""
    commands = []
    if sys.prefix != sys.base_prefix:
        activate = shlex.quote(_from_here(Path(sys.prefix) / "bin" / "activate"))
        commands.append(f"source {activate}  # in each terminal: puts redislink on its PATH")
    program = shlex.quote(_from_here(find_examples() / NEXT_PROGRAM))
    commands += [
        f"redislink init {' '.join(PARTIES)}",
        "redislink broker  # keeps running: open other terminals for the parties",
    ]
    commands += [
        f"redislink run --party {party} {program} --wealth {wealth}"
        for party, wealth in zip(PARTIES, (3, 5, 4), strict=True)
    ]
    return commands


def _from_here(path: Path) -> str:
    """A path in the shortest form to type here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _figure(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"
