"""Redis users with least privilege: a party pushes only as itself, and pops only its own inbox.

An operator watches a session and clears up after it; the operator's user cannot read messages.

Rules:
- Each command is granted only on the keys where it is used, with only the permission it needs
  there (a party: `PUSH`, `POP`, `CLAIM`, `STATUS`; an operator: `FIND`, `WATCH`, `SAID`, `PURGE`).
  No other command is granted.
- A pattern is fixed text with one ``*`` at its end. Names contain no glob characters, and the text
  ends with the ``:`` after a name, so it fits only that name. Patterns of jobs' sessions have a
  ``?`` for each character of a job's id, too.
- A driver pushes offers and pops answers, each on lists of their own, and nothing else.
- Passwords are made here, from the operating system's randomness. The server gets their SHA-256.

Needs Redis 7 or Valkey, for ``%W~`` and selectors.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from redislink.broker.broker import Broker
from redislink.broker.error_map import ANY_OTHER, UNKNOWN_COMMAND
from redislink.broker.url import parse_url, split_urls
from redislink.broker.users import user_name
from redislink.errors import BrokerPermissionError, BrokerRefused, ConfigError
from redislink.identity.secret_files import read_private, write_private
from redislink.protocol import list_names

ANSWERS: Final = ("ping",)
"""Needs no key. Each new connection sends it to see whether the server answers."""
HUSH: Final = ("client|reply",)
"""Needs no key. A party tells the server not to answer pushes; it works without this too."""
PUSH: Final = ("rpush", "pexpire", "del")
"""Commands on the lists to the other parties. All of them only write (``%W~``)."""
POP: Final = ("blpop", "lpop", "del")
"""Commands on the lists of the party's own inbox (``%RW~``)."""
CLAIM: Final = ("set", "get", "pttl", "pexpire", "del")
"""Commands on the party's own claim, and on that of its agent, one key each (``%RW~``)."""
STATUS: Final = ("set",)
"""Commands on the party's own status, one key. They only write (``%W~``)."""
FIND: Final = ("scan",)
"""Needs no key. An operator finds the names of all keys in the database."""
WATCH: Final = ("type", "llen", "pttl", "memory|usage")
"""An operator's commands on all keys of the session. None returns an element (``%R~``)."""
SAID: Final = ("get",)
"""An operator's commands on each party's claim and status (``%R~``)."""
TAKE: Final = ("blpop",)
"""A driver's command on its own inbox (``%RW~``)."""
PURGE: Final = ("unlink", "del")
"""An operator's commands for removing any key of the session (``%W~``)."""

EVERYTHING: Final = ("~*", "&*", "+@all")
"""An administrator's rules."""

SLOTS: Final = ("cluster|slots",)
"""Needs no key. Asks a Redis Cluster which node has which inbox."""

_OF_A_JOB: Final = ".j????????????"
"""What a job's id adds to the session's name: `redislink.jobs.offer.job_session`, as a pattern."""
_PASSWORD_BYTES: Final = 32
_WHAT: Final = "password file"
_DEFAULT_OFF: Final = "user default off"


@dataclass(frozen=True, slots=True)
class PartyUser:
    """The Redis user of one party, of a driver, of an operator, or of an administrator.

    Attributes:
        party: the party's or driver's name in the cluster file, or the operator's or
            administrator's name.
        name: the Redis user's name. Two sessions on one broker never share a party's user.
        rules: the arguments of ``ACL SETUSER``, in order, without the password.
    """

    party: str
    name: str
    rules: tuple[str, ...]


def party_users(
    session: str,
    parties: Sequence[str],
    number: int = 0,
    *,
    cluster: bool = False,
    drivers: Sequence[str] | None = None,
) -> list[PartyUser]:
    """Return the users of a session: of the parties, in their order, then of the drivers.

    Args:
        session: the session's name.
        parties: the names of all parties.
        number: the number of the database that they use, see `database`.
        cluster: whether the broker is a Redis Cluster, see `is_cluster`.
        drivers: the names of all drivers; None if there are no jobs.
    """
    anywhere = (*ANSWERS, *(SLOTS if cluster else HUSH))
    of_drivers = (*ANSWERS, *(SLOTS if cluster else ()))
    rules = {
        party: _rules(session, party, parties, number, anywhere, drivers) for party in parties
    } | {
        driver: _driver_rules(session, driver, parties, number, of_drivers)
        for driver in drivers or ()
    }
    return [PartyUser(name, user_name(session, name), tuple(each)) for name, each in rules.items()]


def operator_user(
    session: str,
    parties: Sequence[str],
    operator: str,
    number: int = 0,
    *,
    cluster: bool = False,
    drivers: Sequence[str] | None = None,
) -> PartyUser:
    """Return the user of an operator, who watches and purges a session but reads no message.

    Args:
        session: the session's name.
        parties: the names of all parties.
        operator: the operator's name; must not be a party's or driver's.
        number: the number of the database, see `database`.
        cluster: whether the broker is a Redis Cluster, see `is_cluster`.
        drivers: the names of all drivers; None if there are no jobs.

    Raises:
        ConfigError: the name is not valid, or is a party's or driver's.
    """
    if list_names.check_name(operator, "operator") in (*parties, *(drivers or ())):
        raise ConfigError(
            f"operator {operator!r} is a party or driver of the session: take another name"
        )
    said = [
        key
        for party in parties
        for of in (list_names.claim_key, list_names.status_key)
        for key in _with_jobs(session, of(session, party).decode(), drivers)
    ]
    every = _with_jobs(session, f"{list_names.session_prefix(session).decode()}*", drivers)
    rules = ["resetchannels", "-@all", *_allow((*ANSWERS, *FIND))]
    if cluster:
        rules += _allow(SLOTS)
    rules += [*(f"%R~{keys}" for keys in every), *_allow(WATCH)]
    if number:
        rules.append(f"+select|{number}")
    rules.append(f"({' '.join([*(f'%R~{key}' for key in said), *_allow(SAID)])})")
    rules.append(f"({' '.join([*(f'%W~{keys}' for keys in every), *_allow(PURGE)])})")
    return PartyUser(operator, user_name(session, operator), tuple(rules))


def admin_user(name: str, others: Iterable[str]) -> PartyUser:
    """Return the user of the broker's administrator. It belongs to no session.

    Args:
        name: the user's name.
        others: the names of the parties and the operator: these are taken, because each password
            has a file with such a name.

    Raises:
        ConfigError: the name is not valid, is one of the others, or is the server's own user.
    """
    if list_names.check_name(name, "admin") in {"default", *others}:
        raise ConfigError(
            f"admin {name!r} is the server's own user, a party or the operator: take another name"
        )
    return PartyUser(name, name, EVERYTHING)


def _rules(
    session: str,
    me: str,
    parties: Sequence[str],
    number: int,
    anywhere: Sequence[str],
    drivers: Sequence[str] | None,
) -> Iterator[str]:
    yield from ("resetchannels", "-@all", *_allow(anywhere))
    for peer in parties:
        if peer != me:
            lists = f"{list_names.sender_prefix(session, peer, me).decode()}*"
            yield from (f"%W~{keys}" for keys in _with_jobs(session, lists, drivers))
    if drivers is not None:  # a party may be its own driver, and each agent answers drivers
        offers = list_names.letter_list(session, me, me, list_names.OFFERS_TAG)
        yield f"%W~{offers.decode()}"
        for driver in (me, *drivers):
            answers = list_names.letter_list(session, driver, me, list_names.ANSWERS_TAG)
            yield f"%W~{answers.decode()}"
    yield from _allow(PUSH)
    if number:
        yield f"+select|{number}"
    for access, keys, commands in (
        ("%RW~", f"{list_names.party_prefix(session, me).decode()}*", POP),
        ("%RW~", list_names.claim_key(session, me).decode(), CLAIM),
        ("%W~", list_names.status_key(session, me).decode(), STATUS),
    ):
        patterns = [f"{access}{each}" for each in _with_jobs(session, keys, drivers)]
        if commands is CLAIM and drivers is not None:  # the agent's, one for all its jobs
            patterns.append(f"{access}{list_names.agent_key(session, me).decode()}")
        yield f"({' '.join([*patterns, *_allow(commands)])})"


def _driver_rules(
    session: str, me: str, parties: Sequence[str], number: int, anywhere: Sequence[str]
) -> Iterator[str]:
    yield from ("resetchannels", "-@all", *_allow(anywhere))
    for party in parties:
        offers = list_names.letter_list(session, party, me, list_names.OFFERS_TAG)
        yield f"%W~{offers.decode()}"
    yield from _allow(PUSH)
    if number:
        yield f"+select|{number}"
    inbox = f"%RW~{list_names.party_prefix(session, me).decode()}*"
    yield f"({' '.join([inbox, *_allow(TAKE)])})"


def _with_jobs(session: str, keys: str, drivers: Sequence[str] | None) -> list[str]:
    """Return the pattern, and if there are jobs also that of the same keys in their sessions."""
    if drivers is None:
        return [keys]
    start = f"{list_names.PREFIX}:{{{session}"
    return [keys, f"{start}{_OF_A_JOB}{keys.removeprefix(start)}"]


def _allow(commands: Iterable[str]) -> list[str]:
    return [f"+{command}" for command in commands]


def make_password() -> str:
    """Return a new password, which needs no quoting in a URL."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def hash_rule(password: str) -> str:
    """Return the rule that sets a password without revealing it."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def keep_passwords(directory: Path, parties: Iterable[str]) -> dict[str, str]:
    """Return a password for each party, and keep each in a file of its own.

    Existing files keep their passwords.

    Args:
        directory: for the files; created if it is missing.
        parties: the names of the parties.

    Raises:
        ConfigError: a file cannot be read or written, others may read it, or it is empty.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {directory}: {error.strerror}: take another") from None
    passwords = {}
    for party in parties:
        path = password_file(directory, party)
        if not path.exists():
            write_private(path, make_password() + "\n", _WHAT)
        passwords[party] = read_private(path, _WHAT, "run again").partition("\n")[0].strip()
        if not passwords[party]:
            raise ConfigError(f"{_WHAT} {path}: is empty: remove it, so that one is made")
    return passwords


def password_file(directory: Path, party: str) -> Path:
    """Return the path of the file in which `keep_passwords` keeps a party's password."""
    return directory / f"{party}.password"


def acl_file(users: Iterable[PartyUser], passwords: Mapping[str, str]) -> str:
    """Return the text of an ``aclfile`` with only these users, and the default user off."""
    return "\n".join([_DEFAULT_OFF, *_acl_lines(users, passwords).values()]) + "\n"


def updated_acl_file(
    text: str, users: Iterable[PartyUser], passwords: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Add these users to the text of an ``aclfile``, or replace those with the same names.

    Every other line stays unchanged.

    Args:
        text: the file's present text.
        users: the users to add or replace.
        passwords: the passwords, by party.

    Returns:
        The new text, and the names of all users in it, in order.
    """
    new = _acl_lines(users, passwords)
    lines = []
    names = []
    for line in text.splitlines():
        words = line.split(maxsplit=2)
        if len(words) > 1 and words[0] == "user":
            names.append(words[1])
            line = new.pop(words[1], line)
        lines.append(line)
    return "\n".join([*lines, *new.values()]) + "\n", [*names, *new]


def _acl_lines(users: Iterable[PartyUser], passwords: Mapping[str, str]) -> dict[str, str]:
    """Return each user's line for an ``aclfile``, by the user's name."""
    return {
        user.name: " ".join(
            ["user", user.name, "on", hash_rule(passwords[user.party]), *user.rules]
        )
        for user in users
    }


def party_url(url: str, user: str, password: str) -> str:
    """Return ``url`` with this user and password instead of its own.

    Raises: see `database`.
    """
    parse_url(url)  # if this raises nothing, it is safe to put the URL together again
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    credentials = f"{quote(user, safe='~')}:{quote(password, safe='')}"
    return f"{scheme}://{credentials}@{authority.rpartition('@')[2]}{slash}{path}"


def database(urls: str) -> int:
    """Return the number of the database at the end of a broker's URL; 0 if there is none.

    Args:
        urls: the URL, or those of several brokers.

    Raises:
        ConfigError: this is not a broker's URL, or the brokers' numbers differ.
    """
    numbers = {parse_url(url).database for url in split_urls(urls)} if urls else {0}
    if len(numbers) > 1:
        raise ConfigError(
            "the brokers' URLs end with different databases: give --db N and the URL of one broker "
            "at a time, or use the same number on all"
        )
    return numbers.pop()


def is_cluster(url: str) -> bool:
    """Return whether this is the URL of a Redis Cluster.

    Raises: see `database`.
    """
    return bool(url) and any(parse_url(each).kind == "cluster" for each in split_urls(url))


def apply_users(broker: Broker, users: Iterable[PartyUser], passwords: Mapping[str, str]) -> None:
    """Create the users on a server, or give existing users these rules and passwords.

    Open connections stay open, and the new rules apply to them at once.

    Args:
        broker: the broker, with a user that may run ACL SETUSER.
        users: the users to create.
        passwords: the passwords, by party.

    Raises:
        BrokerError: the broker is out of reach, too old, or does not let this user run ACL.
    """
    start = ("ACL", "SETUSER")
    _run_acl(
        broker,
        [
            (*start, user.name, "reset", "on", hash_rule(passwords[user.party]), *user.rules)
            for user in users
        ],
    )


def remove_users(broker: Broker, users: Iterable[PartyUser]) -> None:
    """Remove the users, and close their connections.

    Raises: see `apply_users`.
    """
    _run_acl(broker, [("ACL", "DELUSER", *(user.name for user in users))])


def default_user_is_on(broker: Broker) -> bool:
    """Return whether the ``default`` user may log in; then the parties' users protect little.

    Raises: see `apply_users`.
    """
    (reply,) = _run_acl(broker, [("ACL", "GETUSER", "default")])
    # RESP2: name, value, name, value, …
    properties = dict(zip(reply[::2], reply[1::2], strict=False))
    return b"on" in properties.get(b"flags", [])


def _run_acl(broker: Broker, commands: Sequence[Sequence[bytes | int | str]]) -> list[Any]:
    """Run the commands on every server, because no server tells the others.

    Returns:
        The replies of the first server.
    """
    servers = [broker.on(address) for address in broker.addresses()] or [broker]
    replies = [_run_acl_on(server, commands) for server in servers]
    return replies[0]


def _run_acl_on(broker: Broker, commands: Sequence[Sequence[bytes | int | str]]) -> list[Any]:
    with contextlib.closing(broker.open()) as connection:
        try:
            return [connection.execute(*command, timeout=broker.timeout) for command in commands]
        except BrokerPermissionError:
            raise BrokerPermissionError(
                f"broker {broker.label}: this user may not run ACL: log in as an administrator, "
                f"--apply {broker.label_of_user('ADMIN')} --password-file FILE, or "
                "paste what redislink acl prints without --apply into the service's console"
            ) from None
        except BrokerRefused as error:
            if error.refusal not in (UNKNOWN_COMMAND.called, ANY_OTHER.called):
                raise
            raise error.restated(
                f"{error}: ACL needs Redis 7 or Valkey, and a service that lets its users run it"
            ) from None
