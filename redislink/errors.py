"""Every error that redislink raises, as one tree.

::

    RedisLinkError
    ├── ConfigError            the cluster file, a setting or a URL is wrong (yours to mend)
    ├── UsageError             a call that cannot be meant (yours to mend)
    │   ├── PayloadTypeError   the payload is of no kind that can be sent
    │   ├── UsedAfterFork      it belongs to the process from which this one was forked
    │   └── NotRevealed        a value was used that this party does not have
    ├── BrokerError            the broker is at fault, or out of reach
    │   ├── BrokerUnreachable  no connection, or it broke
    │   ├── BrokerAuthError    it does not accept our user or password
    │   ├── BrokerPermissionError  it knows us and forbids the command or the key
    │   ├── BrokerBusy         it cannot serve us just now (loading, failing over, full)
    │   └── BrokerRefused      it answered with any other error
    ├── PeerError              another party is at fault, or missing
    │   ├── HandshakeTimeout   not every party came
    │   ├── ClusterMismatch    a party runs with another cluster file or version
    │   │   └── SecurityMismatch  one side seals and the other does not
    │   ├── PartyTaken         another process already runs as this party
    │   ├── PeerAborted        a party's run failed, and it said why
    │   ├── PeerLost           a party is not heard any more
    │   ├── PeerRestarted      a party has started anew, and has forgotten this run
    │   ├── PeerClosed         a party has left the session in good order
    │   ├── PeerProtocolError  a party sent what the protocol forbids, or too much
    │   ├── LoadFailed         a party could not load what it was to put on a device
    │   ├── ProgramDiverged    two parties have called different things
    │   ├── RecvTimeout        what we wait for did not come
    │   ├── SendTimeout        what we sent was not taken
    │   └── ValueDecodeError   what a party sent as a value is none
    ├── SecurityError          somebody between the parties, or a party's key, is not as it must be
    │   └── BrokerTampered     too many frames did not open
    ├── FrameError             bytes from the broker that are not a frame of ours
    │   └── SealError          a frame that does not open
    ├── LinkError              the SPU link cannot be made in the mode asked for
    ├── EndpointClosed         this party has closed or aborted, before or during the call
    ├── RecvCancelled          this party cancelled the receive (``IChannel.Abort``)
    └── IntersectionFailed     libpsi failed at this party, or its process was ended

Each message is one line that is safe to print, and says who, what, how long, and what to do
next. No message holds a payload, a key or a password.
"""

from __future__ import annotations

from typing import Any

from redislink.text import MOST_IN_LINE, one_line


class RedisLinkError(Exception):
    """The root: ``except RedisLinkError`` catches all that this package raises.

    Its message is one line that is safe to print, whatever hosts, names and replies of others
    are quoted in it.
    """

    def __init__(self, *args: object) -> None:
        """Args: args: the message; texts in it are made safe by `redislink.text.one_line`."""
        super().__init__(
            *(one_line(arg, MOST_IN_LINE) if isinstance(arg, str) else arg for arg in args)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """By text and attributes, and not by a call of the class, whose arguments differ.

        A worker of a ``multiprocessing.Pool`` hands its error on as a pickle; where that cannot
        be read, the pool's program waits for ever.
        """
        return _restore, (type(self), self.args), self.__dict__ or None


def _restore(kind: type[RedisLinkError], args: tuple[object, ...]) -> RedisLinkError:
    error = kind.__new__(kind, *args)
    error.args = args  # of a TimeoutError, __new__ leaves them to __init__
    return error


class ConfigError(RedisLinkError):
    """The cluster file, a setting or a URL is wrong; the message names it and the remedy."""


class UsageError(RedisLinkError):
    """The calling program asked for something that cannot be meant."""


class PayloadTypeError(UsageError, TypeError):
    """A payload that is not bytes-like, or a value of a type that does not travel."""


class UsedAfterFork(UsageError):
    """What only the process that joined may use was used in a child that it forked."""


class NotRevealed(UsageError, TypeError):
    """A value was used as one that this party has, and it was not revealed to it."""


class BrokerError(RedisLinkError):
    """The broker is out of reach, or refused what we asked."""

    retryable = False
    """True if waiting may mend it, so that trying again is right."""


class BrokerUnreachable(BrokerError):
    """No connection to the broker, or an existing one broke."""

    retryable = True


class BrokerAuthError(BrokerError):
    """The broker does not accept our user name or password."""


class BrokerPermissionError(BrokerError):
    """The broker knows us, and forbids a command or a key that we need."""


class BrokerBusy(BrokerError):
    """The broker cannot serve us just now: it loads, fails over, or is out of memory."""

    retryable = True


class BrokerRefused(BrokerError):
    """The broker answered with an error that waiting does not mend."""


class PeerError(RedisLinkError):
    """Another party is missing, late, or does not match."""


class HandshakeTimeout(PeerError):
    """Not every party said hello in time; the message names those that are missing."""


class ClusterMismatch(PeerError):
    """A party runs with another cluster file, session or protocol version."""


class SecurityMismatch(ClusterMismatch):
    """One side wants a sealed session and the other none."""


class PartyTaken(PeerError):
    """Another process already runs as this party in this session."""


def reason_for_peers(error: BaseException) -> str:
    """What the peers are told when this error ends a party's part.

    Of a broker's error, or of one in this party's settings, they get the class alone: its text
    may have what the broker said, hosts and paths. The same of an error that is not ours, which
    might hold data of this party. An error that is made to end a program, or of which the peers
    know more, says so in an attribute ``told_to_peers``.
    """
    told = getattr(error, "told_to_peers", None)
    if isinstance(told, str):
        return told
    if isinstance(error, BrokerError):
        return f"{type(error).__name__} at its broker"
    if isinstance(error, RedisLinkError) and not isinstance(error, ConfigError):
        return str(error)
    return f"{type(error).__name__} in its program"


class _NamedPeerError(PeerError):
    """A PeerError that knows which peer it is about."""

    def __init__(self, peer: str, message: str) -> None:
        super().__init__(message)
        self.peer = peer
        """Name of the party."""


class PeerAborted(_NamedPeerError):
    """A party's run failed; ``reason`` is what it said, one line."""

    def __init__(self, peer: str, reason: str) -> None:
        self.reason = one_line(reason)
        super().__init__(
            peer, f"{peer} aborted the session ({self.reason}): see its log, then start all again"
        )


class PeerLost(_NamedPeerError):
    """A party has fallen silent; ``last_heard_seconds`` says how long ago it was last heard."""

    def __init__(self, peer: str, last_heard_seconds: float) -> None:
        self.last_heard_seconds = last_heard_seconds
        super().__init__(
            peer,
            f"{peer} was last heard {last_heard_seconds:.1f} s ago and counts as lost: check that "
            "it runs and reaches the broker, then start all again, or raise REDISLINK_PEER_TIMEOUT",
        )


class PeerRestarted(_NamedPeerError):
    """A party has started anew; it has forgotten this run, which cannot go on."""

    def __init__(self, peer: str) -> None:
        super().__init__(
            peer, f"{peer} has started again and has forgotten this run: start all parties again"
        )


class PeerClosed(_NamedPeerError):
    """A party has left the session in good order, and something was still expected of it."""


class PeerProtocolError(_NamedPeerError):
    """A party sent what the protocol forbids, or more than this party may be made to keep.

    It was that party: in a sealed session nobody else can send a frame that opens.
    """


class LoadFailed(_NamedPeerError):
    """A party's ``load`` raised; ``kind`` is the type of what it raised, never its text.

    Every other party raises this in the same step, so the session goes on if all catch it.
    """

    def __init__(self, peer: str, call: str, kind: str) -> None:
        self.kind = one_line(kind, 80)
        super().__init__(peer, f"{peer} {self.what(call, self.kind)}: see its log")

    @staticmethod
    def what(call: str, kind: str) -> str:
        """What happened to the party, for the peers."""
        return f"could not load its data for {call} ({kind})"


class ProgramDiverged(PeerError):
    """Two parties have called different things; the message names both, the step and the calls."""

    OPENING = "programs diverge at step "


class RecvTimeout(PeerError, TimeoutError):
    """A message did not come in time."""


class SendTimeout(PeerError, TimeoutError):
    """A peer did not take a message in time."""


class ValueDecodeError(PeerError):
    """A party sent, as a value, what is none, or what only its own program knows.

    The only thing that ``decode_value_untrusted`` raises.
    """


class SecurityError(RedisLinkError):
    """What protects the session does not hold."""


class BrokerTampered(SecurityError):
    """Too many frames that no party sent, or not as they were sent: the session has ended."""


class FrameError(RedisLinkError):
    """Bytes that are not a frame. The only thing that a ``*_untrusted`` parser raises."""


class SealError(FrameError):
    """A frame that does not open: no party sent it so. It counts as never received."""


class LinkError(RedisLinkError):
    """An SPU link cannot be made in the mode asked for; the message says what to change."""


class EndpointClosed(RedisLinkError):
    """This party has closed or aborted, before the call or while it waited.

    No mistake by itself: another thread may close while a receive waits.
    """


class RecvCancelled(RedisLinkError):
    """This party cancelled the receive (``IChannel.Abort``)."""


class IntersectionFailed(RedisLinkError):
    """libpsi failed at this party, or the process in which it ran was ended (``Session.psi``)."""

    told_to_peers = "its private set intersection failed"

    def __init__(self, party: str, why: str) -> None:
        super().__init__(
            f"{party}: the private set intersection failed in its own process ({why}): check "
            "memory and space for temporary files here, and that both parties run the same "
            "version of spu, then start all again"
        )
