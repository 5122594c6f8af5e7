"""``redislink sessions``, ``inspect`` and ``purge``: show what is on a broker, and remove it.

Rules: purge removes only a session's own keys, after showing them and asking; message contents are
never read or shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redislink.cli.errors import Verbose, say
from redislink.cli.operator import (
    BrokerOption,
    PasswordFileOption,
    at_each,
    say_refused,
    surveys_of,
)
from redislink.cli.output import JsonOption, count, duration, size
from redislink.cli.who import ClusterOption
from redislink.errors import BrokerPermissionError, ConfigError, PartyTaken
from redislink.operate.survey import Key, Survey
from redislink.operate.watch import SessionView, sessions_of, total
from redislink.protocol.list_names import check_name
from redislink.text import one_line

_WIDTH: Final = 120
_SHOWN_ELEMENTS: Final = 10
_SHOWN_SESSIONS: Final = 10
_SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="Name of the session.", show_default=False)
]


def sessions(
    broker: BrokerOption = None,
    password_file: PasswordFileOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show the sessions on a broker: their parties, who is up, and the messages there."""

    def show(survey: Survey) -> None:
        views = sessions_of(survey.keys())
        if as_json:
            refused, rows = sorted(survey.refused), list(map(asdict, views))
            found = {"broker": survey.label, "sessions": rows, "refused": refused}
            typer.echo(json.dumps(found))
            return
        _show_sessions(views, f"sessions at {survey.label}")
        say_refused(survey.refused)

    at_each(surveys_of(cluster, broker, password_file), show)


def inspect(
    session: _SessionArgument,
    pair: Annotated[
        str | None,
        typer.Option(
            metavar="SRC:DST", help="Show only messages from SRC to DST.", show_default=False
        ),
    ] = None,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help=f"Also show kind and size of the first {_SHOWN_ELEMENTS} elements of each list. "
            "This fetches and discards their bodies.",
        ),
    ] = False,
    broker: BrokerOption = None,
    password_file: PasswordFileOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    verbose: Verbose = False,
) -> None:
    """Show a session's keys: lists, their lengths and memory, and when they expire.

    If the session has no keys, the command fails and names the sessions that have some.
    """
    check_name(session, "session")
    source, destination = _pair(pair)

    def show(survey: Survey) -> ConfigError | None:
        every = sorted(survey.keys(session), key=lambda key: key.name)
        if not every:
            return _no_such_session(survey, session)
        found = [
            key for key in every if source in (None, key.src) and destination in (None, key.dst)
        ]
        if not found:
            pairs = sorted({f"{key.src}:{key.dst}" for key in every})
            return ConfigError(
                f"session {session}: nothing goes from {source} to {destination}: it has "
                f"{', '.join(pairs)}"
            )
        shown = [_as_dict(key) for key in found]
        for key, row in zip(found, shown, strict=True):
            if frames and key.is_ours and key.depth is not None:
                row["elements"] = [asdict(e) for e in survey.elements(key, _SHOWN_ELEMENTS)]
        if as_json:
            refused = sorted(survey.refused)
            typer.echo(json.dumps({"session": session, "keys": shown, "refused": refused}))
            return None
        _show_keys(shown, f"session {session} at {survey.label}")
        say_refused(survey.refused)
        return None

    errors = at_each(surveys_of(cluster, broker, password_file), show)
    if None not in errors and errors[0] is not None:
        raise errors[0]


def _no_such_session(survey: Survey, session: str) -> ConfigError:
    there = survey.sessions()
    shown = ", ".join(there[:_SHOWN_SESSIONS]) + (", …" if len(there) > _SHOWN_SESSIONS else "")
    return ConfigError(
        f"session {session}: {survey.label} has no keys of it, so no party runs it there: "
        + (f"there are {shown}" if there else "nor is any other; check the broker and its database")
    )


def purge(
    session: Annotated[
        str | None,
        typer.Argument(metavar="[SESSION]", help="Name of the session.", show_default=False),
    ] = None,
    expired: Annotated[
        bool,
        typer.Option("--expired", help="Purge every session that no party runs, instead of one."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Purge even if parties run the session: they send again."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    broker: BrokerOption = None,
    password_file: PasswordFileOption = None,
    cluster: ClusterOption = None,
    verbose: Verbose = False,
) -> None:
    """Remove what a session has left on the broker, after showing it and asking.

    Removes keys that redislink made for this session, and no others. They would also expire by
    themselves, REDISLINK_LIST_TTL seconds after the last push.
    """
    if (session is None) == (not expired):
        raise ConfigError("give the name of a SESSION, or --expired")
    if session is not None:
        check_name(session, "session")
    surveys = surveys_of(cluster, broker, password_file)
    at_each(surveys, partial(_purge, session=session, expired=expired, force=force, yes=yes))


def _purge(survey: Survey, *, session: str | None, expired: bool, force: bool, yes: bool) -> None:
    found = _removable(survey, session)
    views = sessions_of(found)
    if expired:
        views = [view for view in views if not view.up]
    if not views:
        say(f"broker {survey.label}: nothing to remove")
        return
    if not force:
        _refuse_live(views)
    _show_sessions(views, f"to remove from {survey.label}")
    if not yes and not _confirmed(views):
        say("nothing removed")
        raise typer.Abort
    for view in views:
        _remove(survey, view.name, force=force)


def _removable(survey: Survey, session: str | None) -> list[Key]:
    found = survey.keys(session)
    if "TYPE" in survey.refused and not any(key.kind for key in found):
        raise BrokerPermissionError(
            f"broker {survey.label}: this user may not run TYPE, which purge needs: "
            "log in as an admin, or as a user that redislink acl --operator NAME makes"
        )
    if others := sum(not key.is_ours for key in found):
        say(f"broker {survey.label}: leaves {others} keys that are not redislink's")
    return [key for key in found if key.is_ours]


def _refuse_live(views: Iterable[SessionView]) -> None:
    for view in views:
        if view.up:
            raise PartyTaken(
                f"session {view.name!r} is run by {', '.join(view.up)}: end them first, or let it "
                "fail with --force"
            )


def _confirmed(views: Sequence[SessionView]) -> bool:
    names = ", ".join(view.name for view in views)
    keys_and = f"{len(views)} sessions ({names})" if len(views) > 1 else f"session {names}"
    return typer.confirm(f"Remove all of {keys_and}?", default=False, err=True)


def _remove(survey: Survey, session: str, *, force: bool) -> None:
    """Remove what is there now: a party may have joined since the question."""
    found = _removable(survey, session)
    if not force:
        _refuse_live(sessions_of(found))
    removed = survey.remove(session, found)
    say(f"session {session}: removed {removed} keys")


def _pair(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    source, colon, destination = text.partition(":")
    if not colon:
        raise ConfigError(f"--pair {text!r:.80}: write SRC:DST, the names of two parties")
    return check_name(source, "party"), check_name(destination, "party")


def _as_dict(key: Key) -> dict[str, Any]:
    row = asdict(key)
    del row["value"]  # `top` shows what it says
    return row | {"name": key.name.decode("ascii", "replace"), "ours": key.is_ours}


def _show_sessions(views: Sequence[SessionView], title: str) -> None:
    table = Table(title=Text(title))
    for heading in ("session", "parties", "up"):
        table.add_column(heading)
    for heading in ("for", "lists", "messages", "memory", "gone in"):
        table.add_column(heading, justify="right", no_wrap=True)
    for view in views:
        table.add_row(
            Text(view.name),
            Text(", ".join(view.parties)),
            Text(", ".join(view.up) or "nobody"),
            duration(view.running_seconds) if view.up else "",
            count(view.lists),
            count(view.messages),
            size(view.memory_bytes),
            "" if view.up else duration(view.expires_seconds),
        )
    _console().print(table)


def _show_keys(rows: Sequence[dict[str, Any]], title: str) -> None:
    messages = total(row["depth"] for row in rows if not row["tag"].startswith("!"))
    memory = total(row["memory_bytes"] for row in rows)
    caption = f"{len(rows)} keys, {count(messages)} messages, {size(memory)}"
    table = Table(title=Text(title), caption=Text(caption))
    for heading in ("from → to", "epoch"):
        table.add_column(heading, no_wrap=True)
    table.add_column("tag", overflow="fold")
    for heading in ("elements", "memory", "expires in"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        tag = one_line(row["tag"])
        if not row["ours"]:
            tag += f" (not redislink's: a {one_line(row['kind']) or 'key of unknown type'})"
        table.add_row(
            Text(f"{row['src']} → {row['dst']}"),
            Text(row["epoch"]),
            Text(tag),
            "" if row["tag"] in ("!claim", "!status") else count(row["depth"]),
            size(row["memory_bytes"]),
            duration(row["expires_seconds"]),
        )
        for number, element in enumerate(row.get("elements", ())):
            table.add_row("", "", Text(f"  {number}: {_element_text(element)}", "dim"))
    _console().print(table)


def _element_text(element: dict[str, Any]) -> str:
    text = f"{element['kind'] or 'no frame of ours'}, {size(element['size_bytes'])}"
    if element["number"] is not None:
        text += f", number {element['number']}"
    if element["parts"] > 1:
        text += f", chunk {element['part'] + 1} of {element['parts']}"
    return text


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH)
