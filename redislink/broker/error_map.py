"""Explains each error reply of a server: one table for all commands and all kinds of brokers.

Rules:
- The first row with a beginning that fits the reply counts; the last row fits every reply.
- Waiting may cure a retryable error: redislink retries, with pauses, for
  `REDISLINK_BROKER_TIMEOUT`. Any other error ends the operation at once.
- Messages show only the server's own words from the reply: what it quotes from a command may be a
  password or a message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redislink.errors import (
    BrokerAuthError,
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
)
from redislink.text import one_line

_MOST_SHOWN: Final = 200
_QUOTES: Final = (", with args beginning with", " with args beginning with")
"""After these words a server quotes the command that it refuses."""


@dataclass(frozen=True, slots=True)
class ServerError:
    """A row of `SERVER_ERRORS`.

    Attributes:
        begins: beginnings of such replies, in capitals; a reply fits if it has one of them.
        kind: the exception's class, which says whether the error is retryable.
        called: the error's name in messages.
        remedy: what to do about it.
        is_elsewhere: True if our lists are on another server now: the connection is useless, and
            the lists must be looked up again.
        is_partial: True if the server refuses only some commands; see `BrokerBusy`.
        is_full: True if the server is out of memory.
    """

    begins: tuple[str, ...]
    kind: type[BrokerError]
    called: str
    remedy: str
    is_elsewhere: bool = False
    is_partial: bool = False
    is_full: bool = False

    @property
    def retryable(self) -> bool:
        """True if waiting may cure it."""
        return self.kind.retryable


_CHECK_LOGIN: Final = (
    "check the user and password in REDISLINK_BROKER_URL, or REDISLINK_BROKER_PASSWORD_FILE"
)

PROTOCOL_ERROR: Final = ServerError(
    ("ERR PROTOCOL ERROR",),
    BrokerUnreachable,
    "it ended the connection because of what was pushed",
    "see its log, and check its proto-max-bulk-len",
)
UNKNOWN_COMMAND: Final = ServerError(
    ("ERR UNKNOWN COMMAND", "ERR UNKNOWN SUBCOMMAND", "NOPROTO"),
    BrokerRefused,
    "it does not have a command that redislink sends",
    "use a Redis or Valkey server, or a service that has the command",
)
WRONG_TYPE: Final = ServerError(
    ("WRONGTYPE",),
    BrokerRefused,
    "a key of redislink's holds something else",
    "use a database of its own for redislink, or remove that key",
)
ANY_OTHER: Final = ServerError(("",), BrokerRefused, "refused a command", "see its log")

SERVER_ERRORS: Final = (
    # -- who we are ------------------------------------------------------------------------------
    ServerError(
        ("NOPERM",),
        BrokerPermissionError,
        "permission denied",
        "give this party's user the rules that redislink acl prints",
    ),
    ServerError(
        ("ERR AUTH <PASSWORD> CALLED WITHOUT", "ERR CLIENT SENT AUTH, BUT NO PASSWORD"),
        BrokerAuthError,
        "it has no password, but was given one",
        "set one on the server, or remove it from REDISLINK_BROKER_URL",
    ),
    ServerError(
        ("WRONGPASS", "ERR INVALID PASSWORD", "ERR INVALID USERNAME-PASSWORD PAIR"),
        BrokerAuthError,
        "user or password not accepted",
        _CHECK_LOGIN,
    ),
    ServerError(
        ("NOAUTH", "ERR OPERATION NOT PERMITTED", "AUTHENTICATION REQUIRED"),
        BrokerAuthError,
        "user or password not accepted, because none was given",
        _CHECK_LOGIN,
    ),
    ServerError(
        ("ERR AUTH", "ERR WRONG NUMBER OF ARGUMENTS FOR 'AUTH'"),
        BrokerAuthError,
        "user or password not accepted",
        _CHECK_LOGIN,
    ),
    ServerError(
        ("DENIED",),
        BrokerRefused,
        "it is in protected mode, which lets nobody in from outside",
        "set a password on the server, and add it to REDISLINK_BROKER_URL",
    ),
    # -- what is retryable -----------------------------------------------------------------------
    ServerError(
        ("ERR MAX NUMBER OF CLIENTS", "MAX NUMBER OF CLIENTS", "ERR MAX CONCURRENT CONNECTIONS"),
        BrokerBusy,
        "it has as many connections as it takes",
        "wait for some to end, or raise its maxclients (10 for each party)",
    ),
    ServerError(
        ("OOM",),
        BrokerBusy,
        "out of memory",
        "raise its maxmemory",
        is_partial=True,
        is_full=True,
    ),
    ServerError(("LOADING",), BrokerBusy, "it is loading its data", "wait, or see its log"),
    ServerError(
        ("BUSY ",),
        BrokerBusy,
        "it runs somebody's script, and serves nobody meanwhile",
        "wait, or see SCRIPT KILL",
    ),
    ServerError(
        ("MISCONF",),
        BrokerBusy,
        "it takes no writes, because it cannot save to its disk",
        'see its log, and set save "", because nothing on it needs saving',
    ),
    ServerError(
        ("NOREPLICAS",),
        BrokerBusy,
        "it takes no writes without enough replicas",
        "wait for them, or lower its min-replicas-to-write",
    ),
    ServerError(
        ("MASTERDOWN",),
        BrokerBusy,
        "it is a replica that has lost its master",
        "wait for a failover to end, or see its log",
    ),
    ServerError(
        ("CLUSTERDOWN",),
        BrokerBusy,
        "its Redis Cluster is down",
        "wait for a failover to end, or see CLUSTER INFO",
    ),
    ServerError(
        ("ASK ", "TRYAGAIN"),
        BrokerBusy,
        "this slot is being moved to another node",
        "wait for the move to end, or see CLUSTER NODES",
        is_partial=True,
    ),
    ServerError(
        ("IOERR", "NO UPSTREAM HOST", "UPSTREAM FAILURE"),
        BrokerBusy,
        "a proxy in front of it does not reach it",
        "wait, or see the proxy's log",
    ),
    PROTOCOL_ERROR,
    # -- elsewhere -------------------------------------------------------------------------------
    ServerError(
        ("MOVED",),
        BrokerRefused,
        "another node of its Redis Cluster has this list",
        "write redis+cluster://HOST:PORT,HOST:PORT, or rediss+cluster://… with TLS",
        is_elsewhere=True,
    ),
    ServerError(
        ("READONLY", "UNBLOCKED", "REDIRECT"),
        BrokerUnreachable,
        "it is a replica now",
        "its URL must lead to the master",
        is_elsewhere=True,
    ),
    # -- what is not -----------------------------------------------------------------------------
    ServerError(
        ("ERR DB INDEX IS OUT OF RANGE", "ERR INVALID DB INDEX", "ERR SELECT IS NOT ALLOWED"),
        BrokerRefused,
        "it has no database of this number",
        "end the URL with /0, or with a number below the server's setting databases",
    ),
    ServerError(
        ("ERR THIS INSTANCE HAS CLUSTER SUPPORT DISABLED",),
        BrokerRefused,
        "it is not a node of a Redis Cluster",
        "check the URL",
    ),
    ServerError(
        ("CROSSSLOT",),
        BrokerRefused,
        "it is a node of a Redis Cluster, and the lists are in several slots",
        "write redis+cluster://HOST:PORT,HOST:PORT, or rediss+cluster://… with TLS",
    ),
    UNKNOWN_COMMAND,
    WRONG_TYPE,
    ANY_OTHER,
)
"""The order matters: a longer beginning comes before a shorter one that fits the same reply."""


def classify(text: str) -> ServerError:
    """Return the row for an error reply, which is given without its leading ``-``."""
    capitals = text.lstrip().upper()
    return next(row for row in SERVER_ERRORS if capitals.startswith(row.begins))


def own_words(text: str) -> str:
    """Return an error reply as one line, without what it quotes from our command."""
    for quote in _QUOTES:
        text = text.partition(quote)[0]
    return one_line(text, _MOST_SHOWN)


def translate_error_reply(
    label: str, text: str, hide: Callable[[str], str] = str, *, to_auth: bool = False
) -> BrokerError:
    """Return the `BrokerError` for an error reply.

    Args:
        label: the broker's name, for the message.
        text: the reply; the message shows only the server's own words from it.
        hide: removes secrets from the reply.
        to_auth: True if it answers AUTH; then an unknown reply is cut to its first word.
    """
    row = classify(text)
    said = own_words(hide(text))
    if to_auth and row is ANY_OTHER:
        said = said.partition(" ")[0]
    error = row.kind(f"broker {label}: {row.called} ({said}): {row.remedy}")
    error.refusal = row.called
    if isinstance(error, BrokerBusy):
        error.is_partial, error.is_full = row.is_partial, row.is_full
    return error
