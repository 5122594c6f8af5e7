"""What each error reply of a server means: the one table, used wherever a server says no.

Rules:
- The first row fits whose beginning the reply has; the last fits all. So a server's error means
  the same on every kind of broker, in whichever command it comes.
- A retryable error is one that waiting may mend: what failed is tried again, with pauses, for
  `REDISLINK_BROKER_TIMEOUT`. Any other error ends what was asked for, at once.
- Of the reply's text only the part is shown that is the server's own: what it quotes of a command
  may be a password or a message.
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
"""Behind this a server quotes the command that it does not take."""


@dataclass(frozen=True, slots=True)
class ServerError:
    """A row of `SERVER_ERRORS`.

    Attributes:
        begins: how such replies begin, in capitals; a reply fits if one of them does.
        kind: what it is raised as; says whether it is retryable.
        called: what it is called in messages.
        remedy: what to do.
        is_elsewhere: our lists are on another server now: the connection is of no use any more,
            and where they are is found out anew.
    """

    begins: tuple[str, ...]
    kind: type[BrokerError]
    called: str
    remedy: str
    is_elsewhere: bool = False

    @property
    def retryable(self) -> bool:
        """True if waiting may mend it."""
        return self.kind.retryable


_CHECK_LOGIN: Final = (
    "check the user and password in REDISLINK_BROKER_URL, or REDISLINK_BROKER_PASSWORD_FILE"
)

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
        "it has no password, and got one",
        "set one on the server, or take it out of REDISLINK_BROKER_URL",
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
        "user or password not accepted, as none was given",
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
        "set a password on the server, and write it into REDISLINK_BROKER_URL",
    ),
    # -- what is retryable -----------------------------------------------------------------------
    ServerError(
        ("ERR MAX NUMBER OF CLIENTS", "MAX NUMBER OF CLIENTS", "ERR MAX CONCURRENT CONNECTIONS"),
        BrokerBusy,
        "it has as many connections as it takes",
        "wait for some to end, or raise its maxclients (10 for each party)",
    ),
    ServerError(("OOM",), BrokerBusy, "out of memory", "raise its maxmemory"),
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
        "it takes no writes, as it cannot save to its disk",
        'see its log, and set save "", as nothing on it needs saving',
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
    ),
    ServerError(
        ("IOERR", "NO UPSTREAM HOST", "UPSTREAM FAILURE"),
        BrokerBusy,
        "what stands before it does not reach it",
        "wait, or see the log of the proxy",
    ),
    ServerError(
        ("ERR PROTOCOL ERROR",),
        BrokerUnreachable,
        "it ended the connection at what was pushed",
        "see its log, and its proto-max-bulk-len",
    ),
    # -- elsewhere -------------------------------------------------------------------------------
    ServerError(
        ("MOVED",),
        BrokerRefused,
        "another node of its Redis Cluster has this list",
        "write redis+cluster://HOST:PORT,HOST:PORT",
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
        "it is no node of a Redis Cluster",
        "write redis://HOST:PORT",
    ),
    ServerError(
        ("ERR UNKNOWN COMMAND", "ERR UNKNOWN SUBCOMMAND", "NOPROTO"),
        BrokerRefused,
        "it does not have a command that redislink sends",
        "use a Redis or Valkey server, or a service that has the command",
    ),
    ServerError(
        ("WRONGTYPE",),
        BrokerRefused,
        "a key of redislink's holds something else",
        "use a database of its own for redislink, or remove that key",
    ),
    ServerError(("",), BrokerRefused, "refused a command", "see its log"),
)
"""In this order: a longer beginning stands before a shorter one that fits the same reply."""


def classify(text: str) -> ServerError:
    """The row for an error reply, without its leading ``-``."""
    capitals = text.lstrip().upper()
    return next(row for row in SERVER_ERRORS if capitals.startswith(row.begins))


def own_words(text: str) -> str:
    """An error reply in one line, without what it quotes of our command."""
    for quote in _QUOTES:
        text = text.partition(quote)[0]
    return one_line(text, _MOST_SHOWN)


def translate_error_reply(
    label: str, text: str, hide: Callable[[str], str] = str, *, to_auth: bool = False
) -> BrokerError:
    """The `BrokerError` for an error reply.

    Args:
        label: of the broker, for the message.
        text: the reply, of which the part that is the server's own is shown.
        hide: cuts out of it what must not be shown.
        to_auth: it answers AUTH; of a reply that no row knows the first word alone is shown then.
    """
    row = classify(text)
    said = own_words(hide(text))
    if to_auth and row is SERVER_ERRORS[-1]:
        said = said.partition(" ")[0]
    return row.kind(f"broker {label}: {row.called} ({said}): {row.remedy}")
