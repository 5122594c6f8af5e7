"""``redislink acl``: one Redis user per party, each with no more rights than it needs.

Rules: passwords are made here and shown once, in files or on stdout; the server, and its users.acl,
get only their SHA-256 hashes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from redislink.broker import Broker
from redislink.broker.url import Address, parse_url, split_urls
from redislink.cli.errors import Verbose, say, show
from redislink.cli.operator import brokers_as, cluster_of
from redislink.errors import BrokerError, ConfigError
from redislink.identity.secret_files import update_file, write_private
from redislink.operate import acl as broker_acl


def acl(
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cluster file; otherwise REDISLINK_CLUSTER_FILE.",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Make the users on this broker, as the administrator in this URL; or on each of "
            "several, with passwords of their own. Other users of this machine can see a password "
            "in it: prefer --password-file.",
            show_default=False,
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File whose first line is the password of --apply's user; with several brokers, "
            "a line for each.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a new ACL file for the server's setting aclfile.",
            show_default=False,
        ),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Put the users into an existing ACL file, for example for a second session. Its "
            "other lines stay.",
            show_default=False,
        ),
    ] = None,
    passwords: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep each party's password in DIR/NAME.password (with several brokers in "
            "DIR/broker-N/NAME.password), and reuse existing ones. "
            "Otherwise new ones are made, and printed once.",
            show_default=False,
        ),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also make a user NAME that may watch the session (redislink top) and purge it, "
            "but not read a message.",
            show_default=False,
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also make a user NAME with all rights on the broker.",
            show_default=False,
        ),
    ] = None,
    database: Annotated[
        int | None,
        typer.Option(
            "--db",
            metavar="N",
            min=0,
            help="Database number in the parties' URL; otherwise that of the cluster file's "
            "broker, or 0.",
            show_default=False,
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Make one Redis user per party, which can push only as itself and pop only its own inbox.

    Prints each party's user, password and rules. Paste these into the console of a service without
    ACL SETUSER. Needs Redis 7 or Valkey.
    """
    if out is not None and update is not None:
        raise ConfigError("give --out for a new file, or --update for an existing one, not both")
    spec = cluster_of(cluster)
    brokers = [] if apply is None else brokers_as(apply, password_file)
    if len(brokers) > 1 and (out is not None or update is not None):
        raise ConfigError("an ACL file is one broker's: give --apply one URL")
    in_database = broker_acl.database(spec.broker or "") if database is None else database
    slots = any(broker_acl.is_cluster(url or "") for url in (spec.broker, apply))
    drivers = None if spec.drivers is None else spec.driver_names
    users = broker_acl.party_users(
        spec.session, spec.party_names, in_database, cluster=slots, drivers=drivers
    )
    if operator is not None:
        users.append(
            broker_acl.operator_user(
                spec.session,
                spec.party_names,
                operator,
                in_database,
                cluster=slots,
                drivers=drivers,
            )
        )
    if admin is not None:
        users.append(broker_acl.admin_user(admin, [user.party for user in users]))
    for number, broker in enumerate(brokers or [None], 1):
        kept = passwords
        if broker is not None and len(brokers) > 1:
            # Whoever runs one broker sees its passwords: they must not open another one.
            kept = None if passwords is None else passwords / f"broker-{number}"
            show(f"broker {broker.label}")
        secrets = _passwords(kept, [user.party for user in users])
        if out is not None:
            write_private(out, broker_acl.acl_file(users, secrets), "ACL file")
        if update is not None:
            _update(update, spec.session, users, secrets)
        if broker is not None:  # last: from then on the passwords are in force, and must be shown
            broker_acl.apply_users(broker, users, secrets)
        for user in users:
            show(user.party)
            show(f"  user      {user.name}")
            show(f"  password  {_told(kept, user.party, secrets[user.party])}")
            show(f"  rules     {' '.join(user.rules)}")
        _say_what_next(broker, out, update, admin)
        if broker is not None:
            again = _words(
                *("redislink", "acl", *(() if cluster is None else ("--cluster", cluster))),
                *("--apply", _as_user(broker)),
                *(() if password_file is None else ("--password-file", password_file)),
                *("--passwords", kept or "passwords", "--admin", "admin"),
            )
            _say_of_default_user(broker, admin, kept, again)
    if len(brokers) < 2 and spec.broker is not None and len(split_urls(spec.broker)) > 1:
        say(
            "the cluster file names several brokers: make the users on each, with passwords of "
            "their own (--apply URL,URL, or another --passwords DIR for each)"
        )


def _passwords(directory: Path | None, names: Sequence[str]) -> dict[str, str]:
    if directory is None:
        return {name: broker_acl.make_password() for name in names}
    return broker_acl.keep_passwords(directory, names)


def _update(
    path: Path, session: str, users: Sequence[broker_acl.PartyUser], secrets: Mapping[str, str]
) -> None:
    """Put the users into an ACL file, and report who else of this session it admits."""
    names: list[str] = []

    def change(text: str) -> str:
        changed, names[:] = broker_acl.updated_acl_file(text, users, secrets)
        return changed

    update_file(path, change, "ACL file")
    made = {user.name for user in users}
    rest = [name for name in names if name.startswith(f"{session}~") and name not in made]
    owners = {user.party for user in users}
    elsewhere = [
        name
        for name in names
        if not name.startswith(f"{session}~") and name.partition("~")[2] in owners
    ]
    if elsewhere:
        say(
            f"{path} also has {', '.join(elsewhere)}, as before: if you changed a password, run "
            "this with the cluster files of these sessions too, or the old one stays valid there"
        )
    if rest:
        say(
            f"{path} still has {', '.join(rest)} of session {session}, as before: name operators "
            "with --operator and admins with --admin to change them too; remove the lines of those "
            "who no longer take part"
        )


def _told(directory: Path | None, party: str, password: str) -> str:
    return password if directory is None else f"in {broker_acl.password_file(directory, party)}"


def _say_what_next(
    broker: Broker | None, out: Path | None, update: Path | None, admin: str | None
) -> None:
    say(
        "a party's REDISLINK_BROKER_URL: redis://USER:PASSWORD@HOST:PORT/DB, rediss:// with TLS; "
        "send it the password by a safe way"
    )
    if out is not None:
        who = "no admin (--admin NAME makes one)" if admin is None else f"the admin {admin}"
        say(f"wrote {out}, with the default user off and {who}; set the server's aclfile to it")
    if update is not None:
        say(f"{update} has these users now; the server reads it when it starts, or at ACL LOAD")
    if broker is not None:
        say(f"broker {broker.label} has these users now")
        if update is None:
            say("it forgets them when it restarts, unless its aclfile has them: give --update FILE")
    elif out is None and update is None:
        say("turn the server's default user off once there is an admin of another name")


def _say_of_default_user(
    broker: Broker, admin: str | None, passwords: Path | None, again: str
) -> None:
    """Say how to turn the default user off, if it is on.

    Args:
        broker: which broker.
        admin: the administrator that was made, if one was.
        passwords: where its password is.
        again: the command that makes one.
    """
    try:
        if not broker_acl.default_user_is_on(broker):
            return
    except BrokerError as error:
        say(f"cannot tell whether the default user is on ({error})")
        return
    say(
        f"broker {broker.label}: its default user is on, and may do everything: turn it off once "
        "there is an administrator of another name"
    )
    if admin is None:
        say(f"to make one: {again}")
        if passwords is None:
            say("that makes new passwords for the parties, too, and keeps them in a directory")
    secret = broker_acl.password_file(passwords or Path("passwords"), admin or "admin")
    url = parse_url(broker.label)
    servers: Sequence[Address | None] = broker.addresses() or url.addresses or (None,)
    for address in servers:
        dialled = ("-s", url.path) if address is None else ("-h", address[0], "-p", address[1])
        off = _words("redis-cli", *dialled, *_tls(broker), "--user", admin or "admin")
        say(f'then: REDISCLI_AUTH="$(cat {_words(secret)})" {off} ACL SETUSER default off')


def _as_user(broker: Broker) -> str:
    """The broker's URL with its user, if it has a name of its own, and no password."""
    return broker.label if broker.user == "default" else broker.label_of_user(broker.user)


def _tls(broker: Broker) -> list[object]:
    """The options of redis-cli for a broker's TLS files."""
    files = broker.tls_files
    if files is None:
        return []
    named = (("--cacert", files.ca), ("--cert", files.certificate), ("--key", files.key))
    return ["--tls", *(word for pair in named if pair[1] is not None for word in pair)]


def _words(*words: object) -> str:
    """A command line for a shell."""
    return shlex.join(str(word) for word in words)
