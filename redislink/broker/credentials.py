"""`Credentials`: supplies user and password for each new connection.

Rules:
- Sources that can change while a session runs (a file, a callable) are read again for each
  connection. So a rotated password works from the next connection on.
- Used credentials are remembered, so that they can be removed from the servers' words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from redislink.errors import (
    BrokerError,
    BrokerUnreachable,
    ConfigError,
    RedisLinkError,
    UsageError,
)
from redislink.identity.secret_files import read_private

CredentialsCallable = Callable[[], str | Sequence[str]]
"""Returns a password, or user and password. Called for each connection, from any thread."""

_HIDDEN: Final = "***"
_KEPT: Final = 8
"""How many pairs to remember: those in use, and some from before a rotation."""
_SURE: Final = 4
"""A password of at least so many characters is removed even from the middle of a word."""
_MOST: Final = 64 << 10
"""Characters; tokens of clouds have some thousands."""
_NO_SECRETS: Final = frozenset({"", "default"})


class Credentials:
    """The source of user and password for the connections to one broker. Thread-safe."""

    def __init__(
        self,
        user: str = "",
        password: str = "",
        *,
        password_file: str | Path | None = None,
        line: int | None = None,
        ask: CredentialsCallable | None = None,
    ) -> None:
        """Args:
        user, password: the ones in the URL.
        password_file: its first line replaces the URL's password.
        line: of several brokers' password file, the line of this broker, from 0; if that is empty,
            the URL's password stays. None takes the file for one broker's.
        ask: returns a password, or user and password, and replaces all of the above.

        Raises:
            UsageError: ``ask`` cannot be called.
        """
        if ask is not None and not callable(ask):
            raise UsageError(
                "credentials: not a callable: give a function that returns the password, such as "
                "lambda: password"
            )
        self._user = user
        self._password = password
        self._file = password_file
        self._line = line
        self._ask = ask
        self._used: list[tuple[str, str]] = []
        self.may_change = password_file is not None or ask is not None
        """True if another try may have other credentials."""
        self.were_accepted = False
        """True once a server has let us in with them."""

    @property
    def user(self) -> str:
        """The user of the last connection, or of the next if there was none yet."""
        return (self._used[-1][0] if self._used else self._user) or "default"

    def current(self) -> tuple[str, ...]:
        """Return the arguments of AUTH; empty if there are no credentials.

        Raises:
            ConfigError: the file or callable gives no credentials, and never has.
            BrokerUnreachable: it gave some before, so trying again may help.
        """
        try:
            user, password = self._read()
        except RedisLinkError as error:
            if not self.were_accepted or isinstance(error, BrokerError):
                raise
            raise BrokerUnreachable(str(error)) from None
        if (user, password) not in self._used[-1:]:
            self._used = [*self._used, (user, password)][-_KEPT:]
        if user:
            return user, password
        return (password,) if password else ()

    def hide(self, text: str) -> str:
        """Return ``text`` without any user or password that was used here."""
        for user, password in self._used or [(self._user, self._password)]:
            for form in dict.fromkeys((password, quote(password, safe=""), quote(password))):
                text = _without(text, form, anywhere=len(form) >= _SURE)
            text = _without(text, user, anywhere=False)
        return text

    def _read(self) -> tuple[str, str]:
        if self._ask is not None:
            return self._ask_program(self._ask)
        if self._file is not None:
            if self._line is None:
                return self._user, read_password(self._file)
            return self._user, _read_line(self._file, self._line) or self._password
        return self._user, self._password

    def _ask_program(self, ask: CredentialsCallable) -> tuple[str, str]:
        try:
            given: Any = ask()
        # It is the program's error; its text may contain a secret. And we may call this in a thread
        # of ours, which sys.exit would end silently.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise BrokerUnreachable(
                f"the callable given as credentials raised {type(error).__name__}: see what it asks"
            ) from None
        match [given] if isinstance(given, str) else given:
            case [str() as password]:
                user = self._user
            case [str() as user, str() as password]:
                pass
            case _:
                raise ConfigError(
                    f"the callable given as credentials returned a {type(given).__name__}: let it "
                    "give a password, or user and password"
                )
        if not _is_text(user + password):
            raise ConfigError(
                "the callable given as credentials returned half a surrogate pair, or more than "
                f"{_MOST} characters: let it give a password that is text"
            )
        return user, password


def read_password(path: str | Path) -> str:
    """Return the first line of a password file, which only its owner and a group may read.

    Raises:
        ConfigError: the file cannot be read, is empty, or others may read it.
    """
    text = read_private(path, "password file", "check the path", group_may_read=True)
    text = text.removeprefix("\ufeff").partition("\n")[0].rstrip("\r")
    if not text:
        raise ConfigError(
            f"password file {path}: is empty, or is not UTF-8 text: write the password into its "
            "first line"
        )
    return text


def _read_line(path: str | Path, line: int) -> str:
    """Return one line of a password file that has one for each of several brokers.

    So that no broker gets another one's password.

    Raises:
        ConfigError: the file cannot be read, has fewer lines, or others may read it.
    """
    text = read_private(path, "password file", "check the path", group_may_read=True)
    lines = text.removeprefix("\ufeff").splitlines()
    if line >= len(lines):
        raise ConfigError(
            f"password file {path}: has no line {line + 1}: with several brokers, write one "
            "password in each line, in the order of the brokers (an empty line keeps the URL's)"
        )
    return lines[line]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return len(text) <= _MOST


def _without(text: str, secret: str, *, anywhere: bool) -> str:
    if secret in _NO_SECRETS:
        return text
    pattern = re.escape(secret)
    return re.sub(pattern if anywhere else rf"(?<!\w){pattern}(?!\w)", _HIDDEN, text)
