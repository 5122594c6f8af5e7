"""Shared by the commands for operators: the broker and the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from redislink.broker import Broker
from redislink.broker.credentials import read_password
from redislink.broker.url import labels, parse_url, split_urls
from redislink.cli import errors
from redislink.cli.errors import say
from redislink.cluster import ClusterSpec, load_cluster
from redislink.errors import BrokerError, ConfigError
from redislink.operate.survey import Survey
from redislink.settings import PROXY_SETTING, RedisLinkSettings

_T = TypeVar("_T")
BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="The broker, or several, as an operator or administrator; otherwise "
        "REDISLINK_BROKER_URL, then the cluster file's.",
        show_default=False,
    ),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="File whose first line is the password of that URL's user; with several brokers, a "
        "line for each. It is sent only to a broker that --broker or the environment names.",
        show_default=False,
    ),
]


def brokers_as(url: str, password_file: Path | None) -> list[Broker]:
    """Each of the brokers that the command line names, with the user in its URL.

    Args:
        url: the broker's URL, or those of several.
        password_file: a file whose first line is the password, or with a line for each of
            several; None means the URLs' passwords.

    Raises:
        ConfigError: a URL or the file is wrong.
    """
    return Broker.all_from_settings(settings_as(url, password_file), None)


def settings_as(url: str, password_file: Path | None) -> RedisLinkSettings:
    """The settings of the brokers that `brokers_as` returns."""
    errors.advise_doctor("--broker", shown_url(url), "--password-file", password_file)
    labels(url)  # so that an error in it comes first
    _check_readable(password_file)
    settings = RedisLinkSettings.load(broker_url=url, broker_password_file=password_file)
    if password_file is not None:
        _check_proxy(settings, url)
    return settings


def shown_url(url: str) -> str:
    """A broker's URL for a command line; the word ``URL`` if it may hold a password."""
    return "URL" if "@" in url or "?" in url else url


def _check_readable(password_file: Path | None) -> None:
    """Check the file before asking or connecting anything."""
    if password_file is not None:
        read_password(password_file)


def cluster_of(cluster: Path | None) -> ClusterSpec:
    """The contents of the cluster file that the option or the setting names.

    Raises:
        ConfigError: neither names a file, or the file is wrong.
    """
    return load_cluster(RedisLinkSettings.load().cluster_file_to_use(cluster))


def surveys_of(
    cluster: Path | None, broker: str | None, password_file: Path | None
) -> list[Survey]:
    """A survey of each of the brokers that the options, the settings or the cluster file name.

    Raises:
        ConfigError: none of them names a broker, or one of them is wrong.
    """
    if broker is not None:
        return [Survey(each) for each in brokers_as(broker, password_file)]
    settings = RedisLinkSettings.load()
    path = cluster or settings.cluster_file
    spec = None if path is None else load_cluster(path)
    url = None if spec is None else spec.broker
    named = shown_url(url or "") if settings.broker_url is None else "$REDISLINK_BROKER_URL"
    errors.advise_doctor("--broker", named, "--password-file", password_file)
    if password_file is not None:
        _check_readable(password_file)
        _check_named_by_user(settings, url)
        if settings.broker_url is not None:
            _check_proxy(settings, settings.broker_url.get_secret_value())
        settings = settings.model_copy(update={"broker_password_file": password_file})
    return [Survey(each) for each in Broker.all_from_settings(settings, url)]


def at_each(surveys: Sequence[Survey], work: Callable[[Survey], _T]) -> list[_T]:
    """Return what ``work`` gives for each broker, and close the surveys.

    Of several brokers, those that are away are named on stderr.

    Raises:
        BrokerError: the last broker's, if none of them can be used.
    """
    results = []
    try:
        for survey in surveys:
            try:
                results.append(work(survey))
            except BrokerError as error:
                if survey is surveys[-1] and not results:
                    raise
                say(str(error))
    finally:
        for survey in surveys:
            survey.close()
    return results


def _check_proxy(settings: RedisLinkSettings, urls: str) -> None:
    """Refuse to send a password from the command line in clear to a proxy that others may name."""
    in_clear = [u for u in map(parse_url, split_urls(urls)) if u.addresses and not u.tls]
    if in_clear and settings.is_from_env_file("broker_proxy") and settings.proxy_choice():
        raise ConfigError(
            f"--password-file: the .env here names the proxy ({PROXY_SETTING}), which would get "
            f"the password, as {in_clear[0].label} is without TLS: use rediss://, or set "
            f"{PROXY_SETTING} in the environment"
        )


def _check_named_by_user(settings: RedisLinkSettings, cluster_url: str | None) -> None:
    """Refuse to send a password from the command line to a broker that others may have named."""
    if settings.broker_url is None:
        source, url = "the cluster file", cluster_url
    elif settings.is_from_env_file("broker_url"):
        source, url = "the .env here", settings.broker_url.get_secret_value()
    else:
        return
    if url:
        raise ConfigError(
            f"--password-file: the broker {labels(url)} is named by {source}, but a "
            "password given on the command line goes only to a broker named there too, or in "
            "the environment: give --broker URL, or set REDISLINK_BROKER_URL"
        )


def say_refused(refused: Iterable[str]) -> None:
    """Print on stderr what this user may not see."""
    if text := refused_text(refused):
        say(text)


def refused_text(refused: Iterable[str]) -> str:
    """What is missing, and how to get it; "" if nothing is."""
    names = ", ".join(sorted(refused))
    if not names:
        return ""
    return (
        f"this user may not run {names} on all keys here, so some figures are unknown: log in as "
        "an admin, or as a user that redislink acl --operator NAME makes for the session"
    )
