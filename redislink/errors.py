"""Every error that redislink raises, as one tree.

::

    RedisLinkError
    ├── ConfigError            the cluster file, a setting or a URL is wrong: fix it
    ├── JournalError           the journal of a run cannot be used, or does not fit this run
    ├── AuditError             an audit record cannot be written or read, or was changed
    ├── UsageError             the program called redislink wrongly: fix the program
    │   ├── PayloadTypeError   the payload has a type that cannot be sent
    │   ├── TableError         a table for ``psi`` cannot be read, or its rows matched
    │   ├── UsedAfterFork      a forked process used an object of its parent
    │   └── NotRevealed        the program used a value that was not revealed to this party
    ├── BrokerError            the broker is at fault, or cannot be reached
    │   ├── BrokerUnreachable  no connection, or the connection broke
    │   ├── BrokerAuthError    the broker rejects our user or password
    │   ├── BrokerPermissionError  the broker forbids our user a command or a key
    │   ├── BrokerBusy         the broker refuses us for now (full, loading, a replica)
    │   ├── BrokerRefused      the broker answered with any other error
    │   └── ProxyRefused       the proxy on the way to the broker does not let us through
    ├── JobError               an agent does not answer a driver, or gives it nothing
    ├── PeerError              another party is at fault, or missing
    │   ├── HandshakeTimeout   not every party joined in time
    │   ├── ClusterMismatch    a party runs with another cluster file or version
    │   │   └── SecurityMismatch  one side seals its frames and the other does not
    │   ├── PartyTaken         another process already runs as this party
    │   ├── PeerAborted        a party's run failed, and it said why
    │   ├── PeerLost           a party has fallen silent
    │   ├── PeerRestarted      a party has restarted and has forgotten this run
    │   ├── PeerClosed         a party left the session in good order, too early
    │   ├── PeerProtocolError  a party broke the protocol, or sent too much
    │   ├── LoadFailed         a party could not load its data for a device
    │   ├── ProgramDiverged    two parties made different calls
    │   ├── RecvTimeout        a message did not arrive in time
    │   ├── SendTimeout        a peer did not receive a message in time
    │   └── ValueDecodeError   a party sent a value that cannot be decoded
    ├── SecurityError          the protection of the session has failed
    │   └── BrokerTampered     too many frames did not open
    ├── FrameError             bytes from the broker are not one of our frames
    │   └── SealError          a frame does not open
    ├── LinkError              the SPU link cannot be made in the requested mode
    ├── EndpointClosed         this party has closed or aborted, before or during the call
    ├── RecvCancelled          this party cancelled the receive (``IChannel.Abort``)
    └── IntersectionFailed     libpsi failed at this party, or its process was killed

Each message is one line that is safe to print, and says who, what, how long, and what to do
next. No message holds a payload, a key or a password.
"""

from __future__ import annotations

import copy
from typing import Any, Self

from redislink.text import MOST_IN_LINE, one_line


class RedisLinkError(Exception):
    """The root of the tree: ``except RedisLinkError`` catches every error of this package.

    Its message is one line that is safe to print, even where it quotes host names or what other
    machines said.
    """

    retryable = False
    """True if the cause may pass by itself: trying again, with nothing changed, may then work."""

    def __init__(self, *args: object) -> None:
        """Args:
        args: the message; `redislink.text.one_line` makes each text in it safe to print.
        """
        super().__init__(
            *(one_line(arg, MOST_IN_LINE) if isinstance(arg, str) else arg for arg in args)
        )

    def afresh(self) -> Self:
        """Return an equal error, to be raised instead of one that is kept.

        What is raised keeps all frames that it passes, and so all objects of the program. Whoever
        is kept by one of these objects, even through SPU's C++, would never go.
        """
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, not the call, because subclasses take others.

        A worker of a ``multiprocessing.Pool`` hands its error on as a pickle. If the pickle cannot
        be loaded, the program that owns the pool waits for ever.
        """
        return _restore, (type(self), self.args), self.__dict__ or None


def _restore(kind: type[RedisLinkError], args: tuple[object, ...]) -> RedisLinkError:
    error = kind.__new__(kind, *args)
    error.args = args  # TimeoutError's __new__ leaves them to __init__
    return error


class ConfigError(RedisLinkError):
    """The cluster file, a setting or a URL is wrong. The message names it and the remedy."""


class JournalError(RedisLinkError):
    """The journal of a run cannot be opened, read or written, or does not fit this run."""

    told_to_peers = "its journal cannot be used"
    """Paths stay here. An error that may be told whole has an attribute of its own."""
    reason = "it cannot be used"
    """What the disk said, without a path, so that the peers may be told."""


class AuditError(RedisLinkError):
    """An audit record cannot be opened, written or read, or is not as it was written."""

    told_to_peers = "its audit record cannot be written"
    """Paths stay here."""


class UsageError(RedisLinkError):
    """The program called redislink wrongly."""


class PayloadTypeError(UsageError, TypeError):
    """The payload is not bytes-like, or the value has a type that cannot be sent."""


class TableError(UsageError, ValueError):
    """A party's own table cannot be read, or its rows cannot be matched. It quotes no value."""


class UsedAfterFork(UsageError):
    """A forked process used an object that only its parent, which joined, may use."""


class NotRevealed(UsageError, TypeError):
    """The program used a value that was not revealed to this party."""


class BrokerError(RedisLinkError):
    """The broker cannot be reached, or refused a command."""

    refusal = ""
    """What the broker answered, in redislink's words, such as ``out of memory``; empty if it did
    not answer."""
    is_silent = False
    """True if the connection went silent: the broker may not know, and still serve its BLPOPs."""

    def restated(self, message: str) -> Self:
        """Return an error of the same class, with the same attributes and another message."""
        error = type(self)(message)
        error.__dict__.update(self.__dict__)
        return error


class BrokerUnreachable(BrokerError):
    """A connection to the broker cannot be made, or broke."""

    retryable = True


class BrokerAuthError(BrokerError):
    """The broker rejects our user name or password."""


class BrokerPermissionError(BrokerError):
    """The broker accepts our user, but forbids it a command or a key that redislink needs."""


class BrokerBusy(BrokerError):
    """The broker refuses us for now: it is out of memory, loading, failing over, or a replica.

    It ends a session once it has lasted for ``REDISLINK_BROKER_TIMEOUT``.
    """

    retryable = True
    is_partial = False
    """True if it refuses only some commands: a full broker still pops and removes, and a node of a
    Cluster still serves the slots that are not being moved."""
    is_full = False
    """True if the broker is out of memory."""
    used_memory: int | None = None
    """Bytes of memory that a full broker uses; None if it does not say."""
    memory_limit: int | None = None
    """Bytes that its ``maxmemory`` allows; None if it does not say."""
    figures = ""
    """Both as text; empty if it does not say."""

    def with_memory(self, used: int, limit: int) -> Self:
        """Return this error with the memory that a full broker uses and may use, in bytes."""
        said, _, remedy = str(self).rpartition(": ")
        figures = f"{used / 2**20:.1f} MiB used of {limit / 2**20:.1f} MiB"
        error = self.restated(f"{said}, {figures}: {remedy}")
        error.used_memory, error.memory_limit, error.figures = used, limit, figures
        return error


class BrokerRefused(BrokerError):
    """The broker answered with an error that waiting does not mend."""


class ProxyRefused(BrokerError):
    """The proxy on the way to the broker does not let us through, and waiting does not mend that.

    It wants another user or password, does not allow the broker's host and port, or is no proxy.
    """


class PeerError(RedisLinkError):
    """Another party is missing, late, or does not match."""


class JobError(RedisLinkError):
    """An agent does not answer a driver, or does not give it what it asks for."""


class HandshakeTimeout(PeerError):
    """Not every party joined in time. The message names those that are missing."""

    retryable = True


class ClusterMismatch(PeerError):
    """A party runs with another cluster file, session or protocol version than this one."""


class SecurityMismatch(ClusterMismatch):
    """One side wants a sealed session and the other does not."""


class PartyTaken(PeerError):
    """Another process already runs as this party in this session."""


def reason_for_peers(error: BaseException) -> str:
    """What to tell the peers when this error ends this party's run.

    For an error of the broker or in this party's settings, the peers get only its class and what
    redislink calls the broker's refusal, because its text may hold host names, paths and what the
    broker said. For an error that is not ours
    they get only its class, because its text might hold this party's data. An error with an
    attribute ``told_to_peers`` decides itself what they get.
    """
    told = getattr(error, "told_to_peers", None)
    if isinstance(told, str):
        return told
    if isinstance(error, BrokerError):
        return f"{type(error).__name__} at its broker{error.refusal and f': {error.refusal}'}"
    if isinstance(error, RedisLinkError) and not isinstance(error, ConfigError):
        return str(error)
    return f"{type(error).__name__} in its program"


def may_pass(error: BaseException) -> bool:
    """Whether starting all parties again, with nothing changed, may work after this error.

    What a program raises itself, it raises again. An error that stopped it from outside
    (Ctrl-C, SIGTERM) does not come back.
    """
    if isinstance(error, RedisLinkError | SystemExit):
        return getattr(error, "retryable", False) is True
    return isinstance(error, KeyboardInterrupt)


class _NamedPeerError(PeerError):
    """A PeerError about one peer, named by its attribute ``peer``."""

    def __init__(self, peer: str, message: str) -> None:
        super().__init__(message)
        self.peer = peer
        """Name of that party."""


class PeerAborted(_NamedPeerError):
    """A party's run failed. ``reason`` is what it said about it, in one line.

    ``retryable`` is what that party said too: whether its own error may pass.
    """

    def __init__(self, peer: str, reason: str, *, retryable: bool = False) -> None:
        self.reason = one_line(reason)
        self.retryable = retryable
        super().__init__(
            peer, f"{peer} aborted the session ({self.reason}): see its log, then start all again"
        )


class PeerLost(_NamedPeerError):
    """A party has fallen silent; ``last_heard_seconds`` says how long ago it was last heard."""

    retryable = True

    def __init__(self, peer: str, last_heard_seconds: float) -> None:
        self.last_heard_seconds = last_heard_seconds
        super().__init__(
            peer,
            f"{peer} was last heard {last_heard_seconds:.1f} s ago and counts as lost: check that "
            "it runs and reaches the broker, then start all again, or raise REDISLINK_PEER_TIMEOUT",
        )


class PeerRestarted(_NamedPeerError):
    """A party has restarted and has forgotten this run, which cannot go on."""

    retryable = True

    def __init__(self, peer: str) -> None:
        super().__init__(
            peer, f"{peer} has started again and has forgotten this run: start all parties again"
        )


class PeerClosed(_NamedPeerError):
    """A party left the session in good order, although this party still needed it."""


class PeerProtocolError(_NamedPeerError):
    """A party broke the protocol, or sent more than this party agrees to hold.

    In a sealed session it must have been that party: nobody else can make a frame that opens.
    """


class LoadFailed(_NamedPeerError):
    """A party's ``load`` raised. ``kind`` is the type of that error; its text stays there.

    Every other party raises this in the same step, so the session goes on if all catch it.
    """

    def __init__(self, peer: str, call: str, kind: str) -> None:
        self.call = call
        self.kind = one_line(kind, 80)
        super().__init__(peer, f"{peer} {self.what(call, self.kind)}: see its log")

    @staticmethod
    def what(call: str, kind: str) -> str:
        """What happened, as the peers are told."""
        return f"could not load its data for {call} ({kind})"


class ProgramDiverged(PeerError):
    """Two parties made different calls. The message names the parties, the step and the calls."""

    OPENING = "programs diverge at step "


class RecvTimeout(PeerError, TimeoutError):
    """A message did not arrive in time."""

    retryable = True


class SendTimeout(PeerError, TimeoutError):
    """A peer did not receive a message in time."""

    retryable = True


class ValueDecodeError(PeerError):
    """A party sent a value that cannot be decoded, or whose dataclass is not registered here.

    ``decode_value_untrusted`` raises nothing else.
    """


class SecurityError(RedisLinkError):
    """The protection of the session has failed."""


class BrokerTampered(SecurityError):
    """The session has ended because too many frames were forged or changed on the way."""


class FrameError(RedisLinkError):
    """Bytes that are not a frame. Parsers named ``*_untrusted`` raise nothing else."""


class SealError(FrameError):
    """A frame that does not open: no party sent it in this form. It counts as never received."""


class LinkError(RedisLinkError):
    """The SPU link cannot be made in the requested mode. The message says what to change."""


class EndpointClosed(RedisLinkError):
    """This party closed or aborted the session before the call, or while the call waited.

    That need not be a mistake: another thread may close while a receive waits.
    """


class RecvCancelled(RedisLinkError):
    """This party cancelled the receive (``IChannel.Abort``)."""


class IntersectionFailed(RedisLinkError):
    """libpsi failed at this party, or its process was killed (``Session.psi``)."""

    told_to_peers = "its private set intersection failed"

    def __init__(self, party: str, why: str) -> None:
        super().__init__(
            f"{party}: the private set intersection failed in its own process ({why}): check "
            "memory and space for temporary files here, and that both parties run the same "
            "version of spu, then start all again"
        )
