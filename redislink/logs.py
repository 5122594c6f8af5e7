"""`PartyLogger`, which says whose a log record is, and `JsonFormatter`, for log collectors.

Rules: a record of this package has the attributes ``session``, ``party`` and ``peer``, None
where there is none; it never holds a payload, a key or a password; and what it quotes is safe to
print, whatever handler the program has.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

from redislink.text import one_line

__all__ = ["JsonFormatter"]  # the rest is for redislink itself
NAME: Final = "redislink"
_FIELDS: Final = ("session", "party", "peer")


class PartyLogger(logging.LoggerAdapter[logging.Logger]):
    """The package's logger, for one party: ``log.info("…", extra={"peer": name})``."""

    def __init__(self, session: str | None, party: str | None, name: str = NAME) -> None:
        """Args:
        session: the session's name; None if unknown.
        party: this party's name; None if unknown.
        name: the logger that the records go to.
        """
        super().__init__(
            logging.getLogger(name), {"session": session, "party": party, "peer": None}
        )

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Add session and party; ``extra`` of the call takes precedence."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log like any logger, with each argument made one line that is safe to print."""
        if not self.isEnabledFor(level):
            return
        shown = (
            arg if isinstance(arg, int | float | Mapping) else one_line(str(arg)) for arg in args
        )
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        super().log(level, msg, *shown, **kwargs)


def is_power_of_two(count: int) -> bool:
    """Return whether to log the ``count``-th event, from 1, of a kind that others cause at will."""
    return not count & (count - 1)


class JsonFormatter(logging.Formatter):
    """One JSON object in one line per record.

    Keys: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, ``session``, ``party``,
    ``peer`` (null where there is none); ``exception`` with the traceback, where there is one.
    Other attributes of a record are left out. What is not ASCII is escaped, so that nothing in
    a message can begin a line or colour a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline."""
        time = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, Any] = {
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name, None) for name in _FIELDS}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
