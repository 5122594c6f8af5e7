"""`Credentials`: as whom connections log in, asked anew for each of them.

Rules:
- Whatever can change while a session runs (a file, a callable) is read again for each connection,
  so a password that is rotated works from the next connection on.
- What was used is remembered, so that it can be cut out of what servers say.
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
"""Gives a password, or user and password; called for each connection, from any thread."""

_HIDDEN: Final = "***"
_KEPT: Final = 8
"""Pairs that are remembered: those in use, and some from before they were rotated."""
_SURE: Final = 4
"""Characters from which on a password is cut out of the middle of words, too."""
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
        ask: CredentialsCallable | None = None,
    ) -> None:
        """Args:
        user, password: as the URL has them.
        password_file: its first line is the password, instead of the URL's.
        ask: gives the password, or user and password, instead of all of these.

        Raises:
            UsageError: ``ask`` cannot be called.
        """
        if ask is not None and not callable(ask):
            raise UsageError(
                "credentials: not a callable: give a function that gives the password, as with "
                "lambda: password"
            )
        self._user = user
        self._password = password
        self._file = password_file
        self._ask = ask
        self._used: list[tuple[str, str]] = []
        self.may_change = password_file is not None or ask is not None
        """True if another try may have other credentials."""
        self.were_accepted = False
        """True once a server has let us in with them."""

    @property
    def user(self) -> str:
        """As whom the last connection logged in, or the next will."""
        return (self._used[-1][0] if self._used else self._user) or "default"

    def current(self) -> tuple[str, ...]:
        """The arguments of AUTH; none to log in without.

        Raises:
            ConfigError: the file or callable does not give any, and never has.
            BrokerUnreachable: it gave some before; trying again may help.
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
        """``text`` without any user or password that was used here."""
        for user, password in self._used or [(self._user, self._password)]:
            for form in dict.fromkeys((password, quote(password, safe=""), quote(password))):
                text = _without(text, form, anywhere=len(form) >= _SURE)
            text = _without(text, user, anywhere=False)
        return text

    def _read(self) -> tuple[str, str]:
        if self._ask is not None:
            return self._ask_program(self._ask)
        if self._file is not None:
            return self._user, read_password(self._file)
        return self._user, self._password

    def _ask_program(self, ask: CredentialsCallable) -> tuple[str, str]:
        try:
            given: Any = ask()
        # The program's; its text may hold a secret. And it may be called from a thread of ours,
        # which sys.exit would end without a word.
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
                    f"the callable given as credentials gave a {type(given).__name__}: let it give "
                    "a password, or user and password"
                )
        if not _is_text(user + password):
            raise ConfigError(
                "the callable given as credentials gave half a surrogate pair, or more than "
                f"{_MOST} characters: let it give a password that is text"
            )
        return user, password


def read_password(path: str | Path) -> str:
    """The first line of a password file that only its owner, and perhaps a group, can read.

    Raises:
        ConfigError: it cannot be read, is empty, or others may read it.
    """
    text = read_private(path, "password file", "check the path", group_may_read=True)
    text = text.removeprefix("\ufeff").partition("\n")[0].rstrip("\r")
    if not text:
        raise ConfigError(
            f"password file {path}: is empty, or no UTF-8 text: write the password into its first "
            "line"
        )
    return text


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
