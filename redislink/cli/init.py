"""``redislink init``: the files of a session, for a trial or for one organisation of several.

Rules: it asks for what options do not say, if somebody is there to answer. Between organisations
it makes one private key, this party's own; it never writes over a file. Run again, it goes on from
what it finds.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from redislink.cli.errors import ExitCode, Verbose, say, show
from redislink.cli.operator import shown_url
from redislink.cluster import ClusterSpec, load_cluster
from redislink.cluster.introduction import Introduction
from redislink.cluster.trial import DEVICE, trial_devices, write_trial
from redislink.cluster.trust import whom_it_trusts
from redislink.errors import ConfigError
from redislink.files import EVERYBODY_READS, OWNER_ONLY, open_new
from redislink.identity.keypair import (
    Identity,
    fingerprint,
    format_public_key,
    parse_public_key,
)
from redislink.identity.signing import SigningKey, format_signing_key
from redislink.protocol.list_names import check_name
from redislink.settings import SESSION_DIR, RedisLinkSettings

_TRIAL_COMMENT: Final = """\
A trial on one machine, made by redislink init, which also made all private keys. Between
organisations, each party runs `redislink init --as NAME …` on its own machine and shares only the
file that it names; nobody makes or sees another's private key."""
_COMMENT: Final = """\
# Made by redislink init from the parties' introductions. Every party has the same file: compare
# the digest that `redislink fingerprint` prints.
"""
_SETTINGS: Final = """\
# Made by redislink init. redislink reads this file in the directory above it; lines in .env there,
# and variables of the environment, take precedence.
"""
_POLICY: Final = """\
# Made by redislink init: by which rules does redislink agent decide about jobs? The first rule that
# matches decides. So far nothing runs by itself: a person decides about each job with
# redislink jobs list --work {work}, jobs show, approve, refuse.
# The page "Decide which jobs run here" says how to write rules; redislink policy check tries them.
rules:
- name: ask about everything
  action: ask
# Data sets that jobs may name:
#data:
#  patients: /srv/data/patients.csv
"""
_BROKER_LINES: Final = """\
# Where the broker is. Of `redislink broker`, for a trial: redis://127.0.0.1:6379/0
#REDISLINK_BROKER_URL=rediss://{session}~{party}@BROKER:6379/0
# To keep an audit record of each run:
#REDISLINK_AUDIT_FILE={directory}/{{session}}.{{party}}.audit.jsonl
# From the broker's administrator; the paths begin at the directory above this one:
#REDISLINK_BROKER_PASSWORD_FILE={directory}/broker.password
#REDISLINK_BROKER_TLS_CA={directory}/ca.crt
#REDISLINK_BROKER_TLS_CERT={directory}/client.crt
#REDISLINK_BROKER_TLS_KEY={directory}/client.key
"""
_LOOPBACK: Final = r"redis://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/\d*)?"
_TRIAL_BROKER: Final = "redis://127.0.0.1:6379/0"
_TRIAL: Final = "trial"


def init(
    parties: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PARTY",
            help="Names of all parties, in the same order at each: it numbers them, and of more "
            "than three the first three compute.",
            show_default=False,
        ),
    ] = None,
    as_party: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Which of them this organisation is. Without it: a trial of all of them on this "
            "machine.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the session; otherwise trial, or with --as the parties' names.",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Where to write. Other commands find the default by themselves.",
            show_default=True,
        ),
    ] = SESSION_DIR,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Protocol of the device {DEVICE}, which then has all parties. Otherwise CHEETAH "
            "for two parties, ABY3 for the first three of more.",
            show_default=False,
        ),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the broker, without password, for the cluster file; with --as it may "
            "come later.",
            show_default=False,
        ),
    ] = None,
    driver: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --as: somebody who submits jobs and computes nothing, and runs redislink "
            "init --as NAME too; you may repeat this option.",
            show_default=False,
        ),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --as or --rekey: a key file that this party has already, instead of a new "
            "one.",
            show_default=False,
        ),
    ] = None,
    rekey: Annotated[
        bool,
        typer.Option(
            "--rekey",
            help="Change this party's key, between two runs: make a new one, a new file for the "
            "others and a new cluster file, and move the old ones aside.",
        ),
    ] = False,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Make the cluster file anew, after another party has changed its key and its new "
            "file is in place; the old one is moved aside.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make the files of a session, and say what to do next. Asks for what you leave out.

    For a trial on this machine, with a key for every party:

        redislink init alice bob carol

    Between organisations, each runs this on its own machine, with its own name:

        redislink init --as alice alice bob carol

    It makes this party's key, and a file for the others that holds nothing secret. With theirs
    beside it, redislink init alone makes the cluster file, the same at every party.
    """
    begun = _begun(directory)
    if rekey or renew:
        _check_change(begun, directory, "--rekey" if rekey else "--renew", parties, as_party)
    if begun is not None and _is_same(begun, as_party, parties, session, protocol, driver):
        if rekey:
            begun, broker = _rekey(directory, begun, identity, broker)
        elif identity is not None:
            _check_same_key(begun, identity)
        if renew:
            broker = broker or _broker_so_far(directory)
            _move_aside([directory / "cluster.yaml"])
        _go_on(directory, begun, broker, first=rekey, again=rekey or renew)
        return
    if not parties:
        parties, as_party = _ask(as_party)
    if len(parties) < 2:
        raise ConfigError("a session has at least two parties: name all of them")
    _check_distinct([*parties, *(driver or ())])
    devices = trial_devices(parties, protocol)
    if as_party is None:
        if identity is not None:
            raise ConfigError("--identity is one party's: give --as NAME too")
        if driver:
            raise ConfigError("--driver: in a trial a party submits the jobs; or give --as NAME")
        content = {
            "session": session or _TRIAL,
            "broker": broker or _TRIAL_BROKER,
            "parties": parties,
            "devices": devices,
        }
        _make_trial(directory, content, protocol)
        return
    own = {
        "session": session or _session_of(parties),
        "parties": tuple(parties),
        "devices": devices,
        "drivers": tuple(driver or ()),
    }
    _introduce(directory, as_party, own, protocol, identity)
    _go_on(directory, Introduction.read(_introduction(directory, as_party)), broker, first=True)


# -- asking ----------------------------------------------------------------------------------------


def _ask(as_party: str | None) -> tuple[list[str], str | None]:
    if not _can_ask():
        raise ConfigError(
            "who takes part? Name all parties: redislink init alice bob carol for a trial on this "
            "machine, redislink init --as alice alice bob carol at the organisation alice"
        )
    answer = typer.prompt(
        "Who takes part? Names with spaces between them, in the same order at each party, as it "
        "numbers them, and of more than three the first three compute",
        err=True,
    )
    parties = answer.replace(",", " ").split()
    if as_party is None:
        said = typer.prompt(
            f"Which of them are you? (Enter: all of them, a {_TRIAL} on this machine)",
            default="", show_default=False, err=True,
        )  # fmt: skip
        as_party = said.strip() or None
    return parties, as_party


def _check_distinct(names: list[str]) -> None:
    """Refuse names that people, or file systems, take for each other."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(f"{other} and {name} differ only in case: choose another name")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _session_of(parties: list[str]) -> str:
    """A name that all parties come to by themselves; drivers leave room for 50 characters."""
    joined = "-".join(parties)
    return joined if len(joined) <= 50 else "session"


def _why(devices: dict[str, Any], parties: list[str], protocol: str | None) -> str:
    """Why the first device has this protocol."""
    chosen = devices[DEVICE]["config"]["protocol"]
    if protocol is not None:
        return f"{chosen}, as you asked"
    if len(parties) == 2:
        return (
            f"{chosen}, because two parties compute, and neither has to trust the other; with a "
            "third party that helps to compute, ABY3 would be much faster"
        )
    if len(parties) == 3:
        return f"{chosen}, because three parties compute, and it is the fastest between three"
    members = devices[DEVICE]["members"]
    return (
        f"{chosen} between {', '.join(members)}, because it is the fastest; the others put in data "
        "and get results, and need not trust any one of these"
    )


# -- a trial ---------------------------------------------------------------------------------------


def _make_trial(directory: Path, content: dict[str, Any], protocol: str | None) -> None:
    cluster = directory / "cluster.yaml"
    settings = _settings_file(directory)
    if settings is not None and settings.exists():
        raise ConfigError(
            f"{settings}: a session was begun here already: go on with it, or use another "
            f"directory, or move {directory} away to begin anew"
        )
    key_files = {name: directory / f"{name}.key" for name in content["parties"]}
    spec = write_trial(content, cluster, key_files, _TRIAL_COMMENT)
    show(str(cluster))
    files = ", ".join(str(path) for path in key_files.values())
    say(f"wrote {cluster} (device {DEVICE}) and {files}: for a trial on this machine only")
    say(f"{DEVICE}: {_why(content['devices'], content['parties'], protocol)}")
    say(f"{DEVICE}: {whom_it_trusts(spec, DEVICE)}")
    first = spec.party_names[0]
    options = f"--cluster {cluster} --party {first} --identity {key_files[first]}"
    for_agent = _make_for_agent(directory)
    if settings is not None:
        _write_settings(
            settings,
            REDISLINK_CLUSTER_FILE=str(cluster),
            REDISLINK_IDENTITY_FILE=str(directory / "{party}.key"),
            REDISLINK_JOBS_DIR=str(directory / "jobs"),
            **for_agent,
        )
        options = f"--party {first}"
    say(f"next: redislink broker, and for each party redislink run {options} PROGRAM")


# -- one organisation ------------------------------------------------------------------------------


def _is_same(
    begun: Introduction,
    as_party: str | None,
    parties: list[str] | None,
    session: str | None,
    protocol: str | None,
    drivers: list[str] | None,
) -> bool:
    """Whether the command line says nothing else than what was begun."""
    return (
        as_party in (None, begun.party)
        and (as_party is not None or not parties)
        and tuple(parties or begun.parties) == begun.parties
        and tuple(drivers or begun.drivers) == begun.drivers
        and session in (None, begun.session)
        and (protocol is None or trial_devices(list(begun.parties), protocol) == begun.devices)
    )


def _introduction(directory: Path, party: str) -> Path:
    return directory / "introductions" / f"{party}.yaml"


def _begun(directory: Path) -> Introduction | None:
    """This party's own introduction, if there is one."""
    own = directory / "own"
    if not own.is_file():
        return None
    return Introduction.read(_introduction(directory, check_name(own.read_text().strip(), "party")))


def _introduce(
    directory: Path,
    party: str,
    own: dict[str, Any],
    protocol: str | None,
    identity: Path | None,
) -> None:
    """Make this party's key, and its introduction, which says all that ``own`` has."""
    path = _introduction(directory, check_name(party, "party"))
    if path.exists():
        raise ConfigError(
            f"{path}: exists already, and says something else: run redislink init alone to go on, "
            f"or move {directory} away to begin anew"
        )
    key_file = identity or directory / f"{party}.key"
    there = identity is not None or key_file.exists()
    made = Identity.load(key_file) if there else Identity.generate()
    introduction = Introduction(
        party=party,
        public_key=format_public_key(made.public_key),
        signing_key=format_signing_key(SigningKey(made).public_key),
        **own,
    )
    introduction.check("the session")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not there:
            made.save(key_file, f"private key of {party}, from redislink init: keep it to yourself")
        introduction.write(path)
        with open_new(directory / "own", OWNER_ONLY) as file:
            file.write(f"{party}\n")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}: choose another --dir") from None
    say(f"{'found' if there else 'wrote'} {key_file}: {party}'s private key, which stays here")
    say(f"{DEVICE}: {_why(introduction.devices, list(introduction.parties), protocol)}")
    for_agent = {} if party in introduction.drivers else _make_for_agent(directory)
    settings = _settings_file(directory)
    if settings is not None:
        _write_settings(
            settings,
            more=_BROKER_LINES.format(
                session=introduction.session, party=party, directory=SESSION_DIR
            ),
            REDISLINK_CLUSTER_FILE=str(directory / "cluster.yaml"),
            REDISLINK_PARTY=party,
            REDISLINK_IDENTITY_FILE=str(key_file),
            REDISLINK_JOBS_DIR=str(directory / "jobs"),
            **for_agent,
        )


def _go_on(
    directory: Path,
    own: Introduction,
    broker: str | None,
    *,
    first: bool = False,
    again: bool = False,
) -> None:
    """Make the cluster file if all introductions are there; otherwise say whose are missing.

    The first time, that is what has to happen next; later it is an error.

    Args:
        directory: of the session.
        own: this party's introduction.
        broker: the URL for the cluster file.
        first: whether the introduction was just made.
        again: whether there was a cluster file before, so that the broker has its users.
    """
    cluster = directory / "cluster.yaml"
    paths = {name: _introduction(directory, name) for name in own.everybody if name != own.party}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        show(str(_introduction(directory, own.party)))
        say(
            f"1. give {_introduction(directory, own.party)} to {', '.join(paths)}: it is not secret"
        )
        wanted = ", ".join(str(paths[name]) for name in missing)
        say(
            f"2. put their files beside it: {wanted} {'is' if len(missing) == 1 else 'are'} missing"
        )
        say("3. then run redislink init again, here: it makes the cluster file")
        if first:
            return
        s = "" if len(missing) == 1 else "s"
        say(
            f"no cluster file yet: the introduction{s} of {', '.join(missing)} "
            f"{'is' if not s else 'are'} missing in {directory / 'introductions'}",
            party=own.party,
            level=logging.ERROR,
        )
        raise SystemExit(int(ExitCode.PEER))
    others = {name: Introduction.read(path) for name, path in paths.items()}
    content = own.assemble(others, broker)
    if cluster.exists():
        _check_same(cluster, content)
        _check_broker(cluster, broker, _settings_file(directory))
    else:
        try:
            with open_new(cluster, EVERYBODY_READS) as file:
                text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
                file.write(_COMMENT + text)
        except OSError as error:
            raise ConfigError(f"{cluster}: {error.strerror}: check the directory") from None
    spec = load_cluster(cluster)
    show(str(cluster))
    keys = dict(spec.public_keys())
    keys |= {each.name: parse_public_key(each.public_key) for each in spec.drivers or ()}
    for name, key in keys.items():
        say(f"{name}  {fingerprint(key)}{'  own' if name == own.party else ''}")
    say(f"digest {spec.digest().hex()[:12]}")
    say(f"{DEVICE}: {whom_it_trusts(spec, DEVICE)}")
    say(
        "1. compare by telephone, each reading out its own fingerprint and the digest: whoever "
        "carried the files could have changed them"
    )
    if again:
        say("2. users and passwords at the broker stay as they are; so do settings")
        return
    where = _settings_file(directory) or Path(".env")
    drives = own.party in own.drivers
    if _is_on_this_machine(spec.broker):
        say(f"2. {spec.broker} is on this machine, for a trial: redislink broker runs it there")
    else:
        say(f"2. whoever runs the broker gets {cluster}, and makes users with redislink acl")
        then = "" if drives else ", then: redislink doctor"
        say(
            f"3. put the files that you get from them into {directory}, and their names and the "
            f"broker's URL into {where}{then}"
        )
    if drives:
        say("then, once agents wait at the parties: redislink submit JOB.yaml")
    else:
        say("then, at every party: redislink run PROGRAM, or redislink agent, which waits for jobs")


def _is_on_this_machine(broker: str | None) -> bool:
    """Whether it is such a broker as ``redislink broker`` runs: of loopback, and without users."""
    return broker is not None and re.fullmatch(_LOOPBACK, broker) is not None


def _check_same(cluster: Path, content: dict[str, Any]) -> None:
    if load_cluster(cluster).digest() != ClusterSpec.parse(content).digest():
        raise ConfigError(
            f"{cluster}: differs from the introductions beside it: if a party has changed its key, "
            "redislink init --renew makes the file anew; otherwise put its introduction back"
        )


def _check_broker(cluster: Path, broker: str | None, settings: Path | None) -> None:
    """Refuse a URL that the cluster file does not have: the file is never written over."""
    there = load_cluster(cluster).broker
    if broker in (None, there):
        return
    has = f"broker: {shown_url(there)}" if there else "no broker"
    raise ConfigError(
        f"--broker: {cluster} is there already, and has {has}: for this party alone, write "
        f"REDISLINK_BROKER_URL={shown_url(str(broker))} into {settings or '.env'}; for all, change "
        "the line broker: in the file"
    )


def _check_same_key(begun: Introduction, identity: Path) -> None:
    if format_public_key(Identity.load(identity).public_key) != begun.public_key:
        raise ConfigError(
            f"--identity {identity}: is not the key that {begun.party} has introduced itself with: "
            "to change the key, add --rekey; otherwise leave --identity out"
        )


def _check_change(
    begun: Introduction | None,
    directory: Path,
    option: str,
    parties: list[str] | None,
    as_party: str | None,
) -> None:
    """Refuse ``--rekey`` and ``--renew`` where there is nothing to change, or another party's."""
    if begun is None:
        inside = Path().absolute().name == SESSION_DIR.name
        where = (
            "go up one directory: cd .." if inside else "run it where redislink init --as was run"
        )
        raise ConfigError(
            f"{option}: no organisation has begun a session in {directory}: {where}; a trial is "
            "made anew in another directory"
        )
    if parties or as_party not in (None, begun.party):
        raise ConfigError(f"{option} takes no names: {directory} is {begun.party}'s")


def _broker_so_far(directory: Path) -> str | None:
    cluster = directory / "cluster.yaml"
    return load_cluster(cluster).broker if cluster.exists() else None


def _rekey(
    directory: Path, begun: Introduction, identity: Path | None, broker: str | None
) -> tuple[Introduction, str | None]:
    """Give this party another key, and move aside what was made with the old one.

    Args:
        directory: of the session.
        begun: this party's introduction so far.
        identity: the file of the new key; None to make one.
        broker: the URL for the new cluster file; None for the old one's.

    Returns:
        The new introduction, and that URL.
    """
    party = begun.party
    own_key, path = directory / f"{party}.key", _introduction(directory, party)
    if identity is None and not own_key.exists():
        raise ConfigError(
            f"{own_key}: is not there, so {party}'s key came with --identity: give the new one "
            "with --identity FILE too"
        )
    new = Identity.generate() if identity is None else Identity.load(identity)
    introduction = begun.model_copy(
        update={
            "public_key": format_public_key(new.public_key),
            "signing_key": format_signing_key(SigningKey(new).public_key),
        }
    )
    broker = broker or _broker_so_far(directory)
    for name in begun.everybody:
        known = _introduction(directory, name)
        if known.exists() and Introduction.read(known).public_key == introduction.public_key:
            raise ConfigError(f"--identity {identity}: is the key that {name} has already")
    records = _records_of(directory, party, begun.session)
    try:
        _move_aside(
            [path, directory / "cluster.yaml", *([own_key] if identity is None else []), *records]
        )
        if identity is None:
            new.save(own_key, f"private key of {party}, from redislink init: keep it to yourself")
        introduction.write(path)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}: check the directory") from None
    if identity is None:
        say(f"wrote {own_key}: {party}'s new key; only journals of the old one need that still")
    else:
        settings = _settings_file(directory) or Path(".env")
        say(f"write into {settings}: REDISLINK_IDENTITY_FILE={identity}")
    say(f"the others put {path} in place of the one that they have: redislink init --renew there")
    return introduction, broker


def _records_of(directory: Path, party: str, session: str) -> list[Path]:
    """The audit records that the old key has signed, with their head pointers."""
    found = [directory / "work" / party / "audit" / "agent.jsonl"]
    named = RedisLinkSettings.load().audit_file
    if named is not None:
        text = str(named).replace("{party}", party).replace("{session}", session)
        found.append(Path(text).expanduser())
    return [part for record in found for part in (record, Path(f"{record}.head"))]


def _move_aside(paths: list[Path]) -> None:
    """Rename the files that are there: ``alice.key`` becomes ``alice.key.20261201-101500.old``."""
    there = [path for path in paths if path.exists()]
    now = time.strftime("%Y%m%d-%H%M%S")
    stamps = (now if number == 1 else f"{now}-{number}" for number in itertools.count(1))
    stamp = next(s for s in stamps if not any(_aside(path, s).exists() for path in there))
    for path in there:
        path.rename(_aside(path, stamp))
        say(f"moved {path} to {_aside(path, stamp).name}")


def _aside(path: Path, stamp: str) -> Path:
    """Where a file goes. A record and its head pointer stay a pair: ``x.old``, ``x.old.head``."""
    if path.suffix == ".head":
        return path.with_name(f"{path.stem}.{stamp}.old.head")
    return path.with_name(f"{path.name}.{stamp}.old")


def _make_for_agent(directory: Path) -> dict[str, str]:
    """Make what ``redislink agent`` needs besides; the settings that name it."""
    policy, programs, work = (directory / name for name in ("policy.yaml", "programs", "work"))
    try:
        for path in (programs, work):
            path.mkdir(mode=0o700, exist_ok=True)
        if not policy.exists():
            with open_new(policy, OWNER_ONLY) as file:
                file.write(_POLICY.format(work=work / "PARTY"))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}: move it away first") from None
    return {
        "REDISLINK_POLICY_FILE": str(policy),
        "REDISLINK_PROGRAMS_DIR": str(programs),
        "REDISLINK_WORK_DIR": str(work / "{party}"),
    }


# -- what other commands find ----------------------------------------------------------------------


def _settings_file(directory: Path) -> Path | None:
    """Where the settings go that every command reads; None where none would look."""
    return directory / ".env" if directory == SESSION_DIR else None


def _write_settings(path: Path, more: str = "", **settings: str) -> None:
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    try:
        with open_new(path, OWNER_ONLY) as file:
            file.write(_SETTINGS + lines + more)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: move it away first") from None
