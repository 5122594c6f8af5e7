"""`Delivery`: exactly once, in order per tag, with one peer, over a broker that loses.

Sans-IO. Times are monotonic seconds that the caller passes in. The caller

- gives `send` what the application sends, `receive_data` and `receive_control` what came;
- calls `wait` and `unwait` around a receive that blocks;
- calls `tick` when `next_timeout` is due, `reconnected` after its own reconnect, `refused` and
  `confirm` with the broker's replies, `listened` whenever it has looked at the control list;
- after any of these does on the broker what `pushes` gives, in order, each once.

Rules that every line below obeys:
- A frame is kept until the peer acks it, and is pushed again as the very same frame.
- A number is delivered once; what comes again is dropped.
- Bytes on the broker are bounded by the window, twice: once for what is sent ahead, once for
  tags that the peer says it waits for. What is over it waits here; `send` never waits.
- Whatever the peer may wait for can get onto the broker, although other things fill it.
- The broker may lose, double, reorder or invent anything at any time without an error.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Final

from redislink.errors import (
    FrameError,
    PeerAborted,
    PeerClosed,
    PeerError,
    PeerLost,
    PeerProtocolError,
    PeerRestarted,
    UsageError,
)
from redislink.protocol import chunking
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Encoding,
    Fin,
    Frame,
    Heartbeat,
    Probe,
    Whole,
)
from redislink.protocol.received import ReceivedNumbers
from redislink.protocol.states import TABLE, Event, State

_FRAME_OVERHEAD: Final = chunking.OVERHEAD
_LONGEST_SILENCE: Final = 86_400.0
_MOST_DOUBLINGS: Final = 4
_OF_A_STREAM: Final = 2
"""Messages like this one that are on their way already when it is one of a stream. One is where two
parties exchange messages: what the peer sent meanwhile does not ack it yet."""
_OFTEN_LOST: Final = 3
_LONG_AGO: Final = float("-inf")
_NEVER_TOLD: Final = sys.maxsize
_OPEN, _CLOSING, _CLOSED, _FAILED = State.OPEN, State.CLOSING, State.CLOSED, State.FAILED
_RAW: Final = Encoding.RAW
_new: Final = object.__new__  # a class called as usual costs five times as much


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, and bytes, that steer a conversation.

    Attributes:
        ack_delay: an ack goes over the control list so long after what it is for came, or twice
            as long, unless one that rode on data has reached the peer by then.
        chunk_bytes: of a message that travel as one frame, at most.
        least_chunk_bytes: what a message is not cut finer than; see `chunking.choose`.
        peer_memory_bytes: that the peer may have us keep, of messages that came and that nothing
            has taken.
        resend_after: a frame that the broker has had for so long, and that the peer still asks
            for, was lost; doubled (up to 16 times) for a frame each time that it was.
    """

    window_bytes: int = 32 << 20
    chunk_bytes: int = 1 << 20
    least_chunk_bytes: int = 1 << 20
    peer_memory_bytes: int = 8 << 30
    peer_timeout: float = 30.0
    ack_delay: float = 0.1
    probe_interval: float = 1.0
    resend_after: float = 0.5
    fin_interval: float = 0.5
    refused_pause: float = 0.1

    @property
    def heartbeat_interval(self) -> float:
        return self.peer_timeout / 6

    @property
    def ack_bytes(self) -> int:
        """Received bytes after which an ack does not wait for ``ack_delay``."""
        return self.window_bytes // 4


class Push:
    """One frame to append to a list.

    Attributes:
        tag: of the data list; None is the control list.
        body: what follows the frame's header.
        clear: remove what the list holds first, as it is all sent again.
        message_bytes: size of the whole message, where the body is a part of one; 0 elsewhere.
    """

    tag: str | None = None
    body: bytes | memoryview = b""
    clear: bool = False
    message_bytes: int = 0

    @property
    def frame(self) -> Frame:
        """The frame; always the same one."""
        raise NotImplementedError


class _ControlPush(Push):
    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    @property
    def frame(self) -> Frame:
        return self._frame


@dataclass(frozen=True, slots=True)
class Leftover:
    """A data list to remove: what it may still hold is not wanted, or will be pushed again."""

    tag: str


@dataclass(slots=True, eq=False)
class _Account:
    """Bytes that may be on the broker."""

    bytes: int = 0

    def admits(self, size: int, window: int) -> bool:
        return not self.bytes or self.bytes + size <= window


class _Chunk(Push):
    """A DATA frame, from `Delivery.send` until it is acked.

    Attributes:
        seq, part, parts, previous, encoding, acked: as in `Data`. The frame itself is made
            only for those that ask: most messages go the short way, which needs none.
        account: where it counts while it may be on the broker; None while it is not.
        confirmed_at: when the broker said that it has it.
        queued: it stands in the queue.
        launched: it was pushed before, so that the frame is fixed.
        refused: the broker had no room for it last time.
        times_lost: how often the peer asked for it although the broker had it.
    """

    # Defaults on the class: most chunks never need another value, and every message makes one.
    tag: str
    seq: int
    part: int = 0
    parts: int = 1
    previous: int = 0
    encoding: Encoding = Encoding.RAW
    acked: int = 0
    account: _Account | None = None
    confirmed_at: float | None = None
    queued: bool = False
    launched: bool = False
    refused: bool = False
    times_lost: int = 0

    @property
    def frame(self) -> Data:
        return Data(self.seq, self.part, self.parts, self.previous, self.encoding, self.acked)

    @property
    def size(self) -> int:
        return len(self.body) + _FRAME_OVERHEAD

    @property
    def message(self) -> int:
        """The number of the last chunk of its message."""
        return self.seq - self.part + self.parts - 1


class _Clearing(Push):
    """A chunk for a list that is to be emptied first.

    What is handed out does not change: the chunk itself may be launched again, and then without
    this, while another thread still has it to push.
    """

    clear = True

    def __init__(self, chunk: _Chunk) -> None:
        self.chunk = chunk
        self.tag, self.body, self.message_bytes = chunk.tag, chunk.body, chunk.message_bytes

    @property
    def frame(self) -> Data:
        return self.chunk.frame


@dataclass(slots=True)
class _Wait:
    next_probe: float
    threads: int = 1
    not_sent_at: float = _LONG_AGO


@dataclass(slots=True)
class DeliveryStats:
    """Counts of one conversation; bytes are of payloads."""

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_resent: int = 0
    duplicates_dropped: int = 0
    probes_sent: int = 0
    frames_refused: int = 0


class Delivery:
    """One party's half of the conversation with one peer. Not thread-safe."""

    def __init__(self, peer: str, timing: Timing, now: float) -> None:
        self.peer = peer
        self.state = State.OPEN
        self.failure: PeerError | None = None
        """Why the conversation failed; set once, with the state FAILED."""
        self.stats = DeliveryStats()
        self.last_heard = now
        self._timing = timing
        self._ack_bytes = timing.ack_bytes
        self._whole_bytes = chunking.most_uncut(timing.least_chunk_bytes, timing.chunk_bytes)
        """Messages up to this are never cut."""
        self._ack_delay = timing.ack_delay
        self.often_lost = 0
        """Bytes of a body that was lost several times, always after the broker had taken it."""
        self.unpushed: list[Push | Leftover] = []
        """What `pushes` will give."""
        # Sending.
        self._last_seq = 0
        self._queue: list[int] = []  # a heap: what was lost goes before what was never pushed
        self._unacked: dict[int, _Chunk] = {}
        self._by_tag: dict[str, dict[int, _Chunk]] = {}
        self._chunks_left: dict[int, int] = {}  # by message; where one chunk is all, see _unacked
        self._acked_cumulative = 0
        self._window = timing.window_bytes
        self._acked_since_loss = 0
        self._ahead = _Account()
        self._asked_for = _Account()
        self._waited_for: dict[str, float] = {}  # tags, and when they last were; next one first
        self._to_clear: set[str] = set()
        self._pushed_twice: set[str] = set()
        self._paused_until = _LONG_AGO
        self._mute_since: float | None = None  # control frames are refused too
        self._last_loss_at = _LONG_AGO
        # Receiving.
        self._received = ReceivedNumbers()
        self._reassembly = chunking.Reassembly()
        self.kept: Container[str] = self._reassembly.tags
        """Tags of which a message, or a part of one, was received and not taken."""
        self._waits: dict[str, _Wait] = {}
        self._ack_due: float | None = None
        self._ack_owed = 0
        """With `_ack_due`: it need not be said once the peer knows that all up to this came."""
        self._told = 0
        """The peer is known to know that all up to this came: it acked the DATA that said so."""
        self._ack_eagerly = False
        self._unreported_bytes = 0
        self._reported = 0
        # Liveness and ending.
        self._silent_for = 0.0
        self._last_listened = now
        self._allowed_silence = timing.peer_timeout
        self._announced_until = _LONG_AGO
        self._next_heartbeat = now + timing.heartbeat_interval
        self._peer_last = 0
        self._fin_answered = False
        self._has_answered_fin = False
        self._next_fin = now

    # -- sending ---------------------------------------------------------------------------

    def send(self, tag: str, body: bytes, now: float, encoding: Encoding = Encoding.RAW) -> int:
        """Queue a message; returns its number, for `is_acked`.

        Raises:
            UsageError: it is too large, or this party has left.
            PeerError: the conversation is over.
        """
        chunk = self.send_at_once(tag, body, encoding)
        if chunk is not None:
            self.unpushed.append(chunk)
            return self._last_seq
        self.check_can_send()
        self._send_in_turn(tag, body, encoding)
        self._push_ahead(now)
        self.stats.messages_sent += 1
        self.stats.bytes_sent += len(body)
        return self._last_seq

    def send_at_once(
        self, tag: str, body: bytes, encoding: Encoding = Encoding.RAW
    ) -> _Chunk | None:
        """As `send`, if the message is one chunk that nothing holds up, as nearly all are.

        Returns:
            What the caller is to push; its ``seq`` is the message's number. None if the message
            is to go the long way: nothing was done.
        """
        length = len(body)
        ahead = self._ahead
        in_flight = ahead.bytes + length + _FRAME_OVERHEAD
        if (
            self.state is not _OPEN
            or self.unpushed
            or self._queue
            or tag in self._by_tag
            or self._paused_until != _LONG_AGO
            or length > self._whole_bytes
            or (in_flight > self._window and ahead.bytes)
        ):
            return None
        seq = self._last_seq = self._last_seq + 1
        chunk: _Chunk = _new(_Chunk)
        chunk.tag = tag
        chunk.seq = seq
        chunk.body = body
        chunk.account = ahead
        chunk.launched = True
        # A hint only, as the peer may take this frame late: the ack stays due until it has.
        chunk.acked = self._received.cumulative
        if encoding is not _RAW:
            chunk.encoding = encoding
        ahead.bytes = in_flight
        self._unacked[seq] = chunk
        self._by_tag[tag] = {seq: chunk}
        stats = self.stats
        stats.messages_sent += 1
        stats.bytes_sent += length
        return chunk

    def check_can_send(self) -> None:
        """Raise the error that says why nothing can be sent; nothing if it can."""
        if self.failure is not None:
            raise self.failure
        if self.state is State.PEER_CLOSED:
            raise PeerClosed(
                self.peer, f"{self.peer} has left the session: send to it before it closes"
            )
        if self.state is not State.OPEN:
            raise UsageError("this party has left the session: send before close()")

    def is_acked(self, message: int) -> bool:
        """True once the peer has received the whole message with this number."""
        return (
            message <= self._last_seq
            and message not in self._unacked
            and message not in self._chunks_left
        )

    @property
    def all_acked(self) -> bool:
        """True if the peer has received all that was sent."""
        return not self._unacked and not self._chunks_left

    @property
    def unacked_bytes(self) -> int:
        """Bytes kept because the peer has not acked them, on the broker or still here."""
        return sum(chunk.size for chunk in self._unacked.values())

    @property
    def in_flight_bytes(self) -> int:
        """Of these, the bytes that may be on the broker."""
        return self._ahead.bytes + self._asked_for.bytes

    @property
    def largest_unanswered(self) -> int:
        """Bytes of the largest body that was pushed, and that the broker has not answered."""
        return max(
            (
                len(chunk.body)
                for chunk in self._unacked.values()
                if chunk.account is not None and chunk.confirmed_at is None
            ),
            default=0,
        )

    def cut_finer(self, chunk_bytes: int) -> None:
        """Chunks of messages sent from now on have at most so many bytes."""
        timing = self._timing
        most = min(timing.chunk_bytes, chunk_bytes)
        least = min(timing.least_chunk_bytes, most)
        self._timing = replace(timing, chunk_bytes=most, least_chunk_bytes=least)
        self._whole_bytes = chunking.most_uncut(least, most)

    def pushes(self) -> list[Push | Leftover]:
        """What to do on the broker now; each is given once."""
        pushes, self.unpushed = self.unpushed, []
        return pushes

    def confirm(self, push: Push, now: float) -> None:
        """The broker has taken this push."""
        if isinstance(push, _Chunk):
            if push.account is not None:
                push.confirmed_at = now
                push.refused = False
        elif isinstance(push, _Clearing):
            self.confirm(push.chunk, now)
        else:
            self._mute_since = None

    def refused(self, push: Push, now: float) -> None:
        """The broker had no room for this push: it is kept, and sent again after a pause."""
        self.stats.frames_refused += 1
        if isinstance(push, _Clearing):
            push = push.chunk
        if now >= self._paused_until:
            self._shrink_window()
        self._paused_until = now + self._timing.refused_pause
        if isinstance(push, _Chunk):
            if push.account is not None and push.seq in self._unacked:
                self._land(push)
                push.refused = True
                self._enqueue(push)
            return
        self._ack_by(self._paused_until)  # it may have carried one
        if self._mute_since is None:
            self._mute_since = now
        elif now - self._mute_since >= self._timing.probe_interval:
            self._take_back_idle(now)  # if this is what fills the broker, nobody can say so
            self._mute_since = now

    def ask_ack(self) -> None:
        """Somebody here waits for acks: ask the peer not to delay its next one."""
        if self._unacked:
            self._push_control(Ack(self._ack_state(), wanted=True))

    def reconnected(self, now: float) -> None:
        """Our connection to the broker was lost and is back: nothing pushed is certain."""
        flying = [chunk for chunk in self._unacked.values() if chunk.account is not None]
        self._to_clear.update(chunk.tag for chunk in flying)
        self._resend(flying)
        for wait in self._waits.values():
            wait.next_probe = now
        self._next_heartbeat = self._next_fin = now
        if self._has_answered_fin and self.state is not State.FAILED:
            self._answer_fin()  # it may have been lost, and the peer waits for it
        self._pump(now)

    # -- receiving -------------------------------------------------------------------------

    def receive_data(
        self, tag: str, frame: Frame, body: bytes, now: float, *, take: bool = False
    ) -> tuple[bytes, Encoding] | None:
        """Take in what came off the data list of ``tag``.

        Args:
            take: `take` the next message of the tag too.

        Returns:
            What `take` gives; None without ``take``.

        Raises:
            FrameError: not a frame that belongs there; nothing has changed.
            PeerProtocolError: it is more than the peer may have us keep; that has ended the
                conversation.
        """
        if type(frame) is not Data:
            raise FrameError(f"a {frame.kind.name} frame on a data list")
        if self.state is not _FAILED and self.state is not _CLOSED:
            self._check_acked(frame.acked)
            if frame.seq in self._received:
                self.stats.duplicates_dropped += 1
            else:
                self._reassembly.add(tag, frame, body, self._received)
                self._count_data(tag, len(body), now)
                if self._reassembly.bytes > self._timing.peer_memory_bytes:
                    raise self._kept_too_much()
            self._heard_data(frame.acked, now)
        return self.take(tag) if take else None

    def receive_whole(self, tag: str, whole: Whole, now: float) -> tuple[bytes, Encoding] | None:
        """`receive_data` of what a codec found to be a whole message, and `take`.

        The short way for nearly every message: there is nothing to put together or to keep.

        Raises:
            FrameError: as `receive_data`.
        """
        seq, encoding, acked, body = whole
        if (
            tag in self.kept
            or self.state is not _OPEN
            or acked > self._last_seq
            or not self._received.add(seq)
        ):
            frame = Data(seq, encoding=encoding, acked=acked)
            return self.receive_data(tag, frame, body, now, take=True)
        length = len(body)
        stats = self.stats
        stats.messages_received += 1
        stats.bytes_received += length
        self._count_data(tag, length, now)
        self._heard_data(acked, now)
        return body, encoding

    def _count_data(self, tag: str, length: int, now: float) -> None:
        """A DATA frame came that had not come before: the peer lives, as nobody else makes one."""
        self.last_heard = self._last_listened = now
        self._silent_for = 0.0
        self._unreported_bytes += length + _FRAME_OVERHEAD
        if self._waits and (wait := self._waits.get(tag)) is not None:
            wait.next_probe = now + self._timing.probe_interval
            wait.not_sent_at = _LONG_AGO

    def _heard_data(self, acked: int, now: float) -> None:
        """A DATA frame came, perhaps again: then it may be the broker that says it."""
        if self._ack_due is None:  # else it is due earlier
            self._owe_ack(now)
        if acked > self._acked_cumulative:
            self._take_acked(acked, now)
        # One ack answers one request for prompt acks; a sender that still waits asks again.
        if self._ack_eagerly or self._unreported_bytes >= self._ack_bytes:
            self._push_ack()
        if self.state is _CLOSING:
            self._finish_if_done()

    def receive_control(self, frame: Frame, now: float) -> None:
        """Take in what came off the control list.

        Raises:
            FrameError: not a frame that belongs there; nothing has changed.
        """
        if not isinstance(frame, Ack | Probe | Heartbeat | Abort | Fin):
            raise FrameError(f"a {frame.kind.name} frame on a control list")
        if self.state is State.FAILED:
            return
        if isinstance(frame, Abort):
            self._step(Event.ABORT, PeerAborted(self.peer, frame.reason))
            return
        self._check_ack(frame.ack)
        self._heard(now)
        self._step(Event.TRAFFIC)
        self._take_ack(frame.ack, now)
        if isinstance(frame, Fin):
            self._take_fin(frame)
        elif self.state is State.CLOSED:
            return
        elif isinstance(frame, Heartbeat):
            self._allowed_silence = self._timing.peer_timeout + frame.silence_ms / 1000
        elif isinstance(frame, Probe):
            self._take_probe(frame, now)
        elif frame.wanted:
            self._push_ack()
            self._ack_eagerly = True
        self._finish_if_done()

    def take(self, tag: str) -> tuple[bytes, Encoding] | None:
        """The next whole message of a tag, or None."""
        message = self._reassembly.take(tag)
        if message is not None:
            self.stats.messages_received += 1
            self.stats.bytes_received += len(message[0])
        return message

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """As `take`, but the message stays."""
        return self._reassembly.peek(tag)

    def missing(self, tag: str) -> tuple[int, int]:
        """Of the message that comes with this tag: (chunks to come, bytes of each), about.

        Both are 0 before the first.
        """
        return self._reassembly.missing(tag)

    def wait(self, tag: str, now: float) -> None:
        """A receive is blocked on this tag from now on: the peer will be probed for it."""
        wait = self._waits.get(tag)
        if wait is None:
            self._waits[tag] = _Wait(now + self._timing.probe_interval)
        else:
            wait.threads += 1

    def came_in_part(self, tag: str, now: float) -> None:
        """Bytes of a frame of this tag have come: what is on its way is not probed for."""
        if (wait := self._waits.get(tag)) is not None:
            wait.next_probe = now + self._timing.probe_interval

    def probe_soon(self, tag: str, now: float) -> None:
        """What was popped for this tag may have been lost on its way: probe at once."""
        self._waits[tag].next_probe = now

    def unwait(self, tag: str) -> None:
        """The receive is no longer blocked."""
        wait = self._waits[tag]
        wait.threads -= 1
        if not wait.threads:
            del self._waits[tag]

    def check_can_receive(self, tag: str, now: float) -> None:
        """Raise the error that says why nothing more comes; nothing if something may.

        Call it after the data list was found empty.
        """
        if self.failure is not None:
            raise self.failure
        if self.state in (State.FAILED, State.CLOSED):
            raise UsageError("this party has left the session: receive before close()")
        if self.state is not State.PEER_CLOSED:
            return
        if self._received.cumulative >= self._peer_last:
            raise PeerClosed(
                self.peer,
                f"{self.peer} has left the session without sending tag {tag!r:.120}: "
                "check that both run the same program",
            )
        if self._silent_for > self._allowed_silence:
            raise PeerLost(self.peer, now - self.last_heard)

    def describe_wait(self, tag: str, now: float) -> str:
        """For the error of a receive that timed out: when the peer was heard, what it said."""
        heard = f"{self.peer} was last heard {max(0.0, now - self.last_heard):.1f} s ago"
        wait = self._waits.get(tag)
        if wait is not None and now - wait.not_sent_at <= 2 * self._timing.probe_interval:
            return f"{heard} and says that it has not sent it yet"
        return heard

    @property
    def is_silent(self) -> bool:
        """True for a peer that is there and has not been heard for longer than it should be.

        As in `listened`, only time spent listening counts.
        """
        return self._silent_for > 2 * self._timing.heartbeat_interval and self._peer_listens

    def describe_silence(self, now: float) -> str:
        """Such as ``bob not heard for 12 s``; "" for a peer that is heard, or has left."""
        if not self.is_silent:
            return ""
        announced = self._allowed_silence > self._timing.peer_timeout
        why = ", as it has announced" if announced else ""
        return f"{self.peer} not heard for {now - self.last_heard:.0f} s{why}"

    # -- time ------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When `tick` is due; None if no timer runs."""
        if not self._peer_listens:
            return None
        due = [wait.next_probe for wait in self._waits.values()]
        if self._ack_due is not None:
            due.append(self._ack_due)
        if self._queue and self._paused_until > _LONG_AGO:
            due.append(self._paused_until)
        if self.state is not State.PEER_CLOSED:
            due.append(self._next_heartbeat)
        if self.state is State.CLOSING:
            due.append(self._next_fin)
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Do what is due: acks, probes, heartbeats, FINs, what the window now admits."""
        if not self._peer_listens:
            return
        for tag, wait in self._waits.items():
            if wait.next_probe <= now:
                wait.next_probe = now + self._timing.probe_interval
                self.stats.probes_sent += 1
                self._push_control(Probe(tag, self._ack_state()))
        if self.state is State.CLOSING and self._next_fin <= now:
            self._push_fin(now)
        # A peer that is closing hears our answers to its FINs instead.
        if self.state is not State.PEER_CLOSED and self._next_heartbeat <= now:
            self._push_heartbeat(now)
        if self._ack_due is not None and self._ack_due <= now:
            if self._told < self._ack_owed:
                self._push_ack()
            elif self._told < self._received.cumulative or self._received.has_gaps:
                self._owe_ack(now)  # for what came since
            else:
                self._ack_due = None
        self._pump(now)

    def listened(self, now: float) -> None:
        """The control list was found empty just now: the peer has been silent so far.

        Only time spent listening counts against the peer, so a pause of our own (the GIL
        held, the broker away) never makes a living peer look dead. Listen at least every
        ``heartbeat_interval``.
        """
        pause = max(0.0, now - self._last_listened)
        self._silent_for += min(pause, self._timing.heartbeat_interval)
        self._last_listened = now
        if self._silent_for > self._allowed_silence:
            self._step(Event.SILENCE, PeerLost(self.peer, now - self.last_heard))

    def not_listening(self, now: float) -> None:
        """The control list could not be read until now: the time before does not count."""
        self._last_listened = now

    def announce_silence(self, seconds: float, now: float) -> None:
        """Tell the peer not to take us for dead for so long; 0 takes it back."""
        self._announced_until = now + min(max(0.0, seconds), _LONGEST_SILENCE)
        if self._peer_listens:
            self._push_heartbeat(now)

    # -- ending ----------------------------------------------------------------------------

    def close(self, now: float) -> None:
        """Say FIN. The conversation is over when `state` is CLOSED or FAILED."""
        if self.state is State.OPEN or (self.state is State.PEER_CLOSED and self._peer_listens):
            self._push_fin(now)
        self._step(Event.CLOSE)

    def abort(self, reason: str) -> None:
        """Tell the peer that this party's run has failed; ends the conversation."""
        peer_listens = self._peer_listens
        self._step(Event.ABORT)
        if peer_listens:
            for _ in range(2):  # one lost pop shall not cost the peer its peer_timeout
                self._push_control(Abort(reason))

    def restarted(self) -> None:
        """The peer said HELLO as another run."""
        self._step(Event.RESTART, PeerRestarted(self.peer))

    def broke_rules(self, what: str) -> None:
        """The peer, and nobody else, sent what the protocol forbids; says what."""
        self._step(
            Event.VIOLATION,
            PeerProtocolError(
                self.peer,
                f"{self.peer} sent what the protocol forbids ({what}): check what runs there, and "
                "that it is the same version of redislink as here, then start all again",
            ),
        )

    def _kept_too_much(self) -> PeerError:
        failure = PeerProtocolError(
            self.peer,
            f"{self.peer} has sent {self._reassembly.bytes} bytes that nothing here has taken: "
            "check that both run the same program, or raise REDISLINK_PEER_MEMORY_BYTES "
            f"({self._timing.peer_memory_bytes})",
        )
        self._reassembly.clear()
        self._step(Event.VIOLATION, failure)
        return self.failure or failure

    # -- inner workings --------------------------------------------------------------------

    @property
    def _peer_listens(self) -> bool:
        """False once one of the two has left; a peer that said FIN stays until we have all."""
        if self.state is State.PEER_CLOSED:
            return self._reported < self._peer_last
        return self.state in (State.OPEN, State.CLOSING)

    def _step(self, event: Event, failure: PeerError | None = None) -> None:
        state = TABLE[self.state][event]
        if state is self.state:
            return
        self.state = state
        if state is State.FAILED:
            self.failure = failure
        if state is not State.CLOSING:
            self._stop_sending()

    def _send_in_turn(self, tag: str, body: bytes, encoding: Encoding) -> None:
        bodies = list(chunking.split(body, self._chunk_bytes(len(body))))
        mine = self._by_tag.setdefault(tag, {})
        newest = mine[next(reversed(mine))] if mine else None
        previous = newest.seq - newest.part if newest is not None else 0
        for part, chunk_body in enumerate(bodies):
            self._last_seq += 1
            chunk = _Chunk()
            chunk.tag, chunk.body, chunk.encoding = tag, chunk_body, encoding
            chunk.seq, chunk.part, chunk.parts = self._last_seq, part, len(bodies)
            chunk.previous, chunk.message_bytes = previous, len(body)
            self._unacked[self._last_seq] = mine[self._last_seq] = chunk
            self._enqueue(chunk)
        if len(bodies) > 1:
            self._chunks_left[self._last_seq] = len(bodies)

    def _chunk_bytes(self, size: int) -> int:
        """How large the chunks of a message are that is sent now."""
        timing = self._timing
        if self._queue or self._ahead.bytes >= _OF_A_STREAM * size:
            # It does not begin at once, so that nothing is gained by cutting it finer; and a
            # receiver that asks for its second chunk would let the line lie idle meanwhile.
            return timing.chunk_bytes
        return chunking.choose(size, timing.least_chunk_bytes, timing.chunk_bytes)

    def _stop_sending(self) -> None:
        for chunk in self._unacked.values():
            self._chunks_left.setdefault(chunk.message, 1)  # never acked from now on
        for tag, chunks in self._by_tag.items():
            if any(chunk.launched for chunk in chunks.values()):
                self.unpushed.append(Leftover(tag))
        self._queue.clear()
        self._unacked.clear()
        self._by_tag.clear()
        self._waited_for.clear()
        self._to_clear.clear()
        self._pushed_twice.clear()
        self._ahead = _Account()
        self._asked_for = _Account()

    def _heard(self, now: float) -> None:
        self.last_heard = self._last_listened = now
        self._silent_for = 0.0

    def _check_ack(self, ack: AckState) -> None:
        self._check_acked(ack.ranges[-1][1] if ack.ranges else ack.cumulative)

    def _check_acked(self, highest: int) -> None:
        if highest > self._last_seq:
            raise FrameError("an ack for frames that were never sent")

    def _take_ack(self, ack: AckState, now: float) -> None:
        before = len(self._unacked)
        for first, last in ack.ranges:
            for seq in self._numbers_unacked(first, last):
                self._acked(seq, now)
        if self._queue and len(self._unacked) < before:
            self._pump(now)
        self._take_acked(ack.cumulative, now)

    def _take_acked(self, cumulative: int, now: float) -> None:
        if cumulative > self._acked_cumulative:
            for seq in range(self._acked_cumulative + 1, cumulative + 1):
                self._acked(seq, now)
            self._acked_cumulative = cumulative
            if self._queue:
                self._pump(now)

    def _numbers_unacked(self, first: int, last: int) -> Iterable[int]:
        if last - first > len(self._unacked):
            return [seq for seq in self._unacked if first <= seq <= last]
        return range(first, last + 1)

    def _acked(self, seq: int, now: float) -> None:
        chunk = self._unacked.pop(seq, None)
        if chunk is None:
            return
        if chunk.acked > self._told:
            self._told = chunk.acked
        size = len(chunk.body) + _FRAME_OVERHEAD
        account = chunk.account
        if account is not None:
            account.bytes -= size
            chunk.account = None
        if self._window < self._timing.window_bytes:
            self._grow_window(size)
        if chunk.parts > 1:
            self._chunks_left[chunk.message] -= 1
            if not self._chunks_left[chunk.message]:
                del self._chunks_left[chunk.message]
        tag = chunk.tag
        mine = self._by_tag[tag]
        del mine[seq]
        if mine:
            if tag in self._waited_for:
                self._waited_for[tag] = now
            return
        del self._by_tag[tag]
        if self._waited_for:
            self._waited_for.pop(tag, None)
        if self._to_clear:
            self._to_clear.discard(tag)
        if tag in self._pushed_twice:
            self._pushed_twice.discard(tag)
            self.unpushed.append(Leftover(tag))

    def _take_probe(self, probe: Probe, now: float) -> None:
        if probe.answer:
            if (wait := self._waits.get(probe.tag)) is not None:
                wait.not_sent_at = now
            return
        mine = self._by_tag.get(probe.tag)
        if not mine:
            self._push_control(Probe(probe.tag, self._ack_state(), answer=True))
            return
        wanted = next(iter(mine.values()))
        asked_before = probe.tag in self._waited_for
        self._waited_for[probe.tag] = now
        if asked_before and wanted.account is None:
            self._take_back_idle(now, only_asked_for=not wanted.refused)
        if self._seems_lost(probe.tag, now):
            # One lost pop costs one list. A second loss soon after means that the broker lost
            # more than a pop: everything it has had for a while is sent again, less at a time.
            lost = [probe.tag]
            if now - self._last_loss_at < 10 * self._timing.probe_interval:
                self._shrink_window()
                lost = [tag for tag in self._by_tag if self._seems_lost(tag, now)]
            self._last_loss_at = now
            for tag in lost:
                self._take_back(tag, lost=True)
            if wanted.times_lost >= _OFTEN_LOST:
                self.often_lost = len(wanted.body)
        self._pump(now)

    def _seems_lost(self, tag: str, now: float) -> bool:
        """Whether the broker has had a tag for so long that a peer that waits would have it.

        A list is taken from its front, so its first chunk decides, however long the rest takes.
        """
        for chunk in self._by_tag[tag].values():
            if chunk.account is not None:
                patience = self._timing.resend_after * 2 ** min(chunk.times_lost, _MOST_DOUBLINGS)
                return chunk.confirmed_at is not None and chunk.confirmed_at + patience <= now
        return False

    def _take_back_idle(self, now: float, only_asked_for: bool = False) -> None:
        """Take back from the broker what the peer has not waited for lately.

        For what cannot be pushed although it must, since other things fill the window for what
        the peer asked for, or the broker's memory.
        """
        lately = now - 3 * self._timing.probe_interval
        for tag, chunks in self._by_tag.items():
            if self._waited_for.get(tag, _LONG_AGO) <= lately:
                accounts = {chunk.account for chunk in chunks.values()}
                if self._asked_for in accounts or (self._ahead in accounts and not only_asked_for):
                    self._waited_for.pop(tag, None)
                    self._take_back(tag)

    def _take_back(self, tag: str, lost: bool = False) -> None:
        """Remove what the broker has of a tag, to push it again."""
        flying = [chunk for chunk in self._by_tag[tag].values() if chunk.account is not None]
        for chunk in flying:
            chunk.times_lost += lost
        self.unpushed.append(Leftover(tag))
        self._to_clear.discard(tag)
        self._resend(flying)

    def _resend(self, chunks: list[_Chunk]) -> None:
        """Put chunks that may be on the broker back into the queue."""
        self.stats.frames_resent += len(chunks)
        for chunk in chunks:
            self._land(chunk)
            self._pushed_twice.add(chunk.tag)
            self._enqueue(chunk)

    def _enqueue(self, chunk: _Chunk) -> None:
        if not chunk.queued:
            chunk.queued = True
            heapq.heappush(self._queue, chunk.seq)

    def _pump(self, now: float) -> None:
        """Hand out what the windows admit; tags that the peer waits for first."""
        if self._queue and now >= self._paused_until:
            self._push_waited_for()
            self._push_ahead(now)

    def _push_waited_for(self) -> None:
        for tag in list(self._waited_for):
            for chunk in self._by_tag[tag].values():
                if chunk.account is None:
                    if not self._asked_for.admits(chunk.size, self._window):
                        return
                    self._launch(chunk, self._asked_for)
                    self._waited_for[tag] = self._waited_for.pop(tag)  # others are next

    def _push_ahead(self, now: float) -> None:
        if now < self._paused_until:
            return
        self._paused_until = _LONG_AGO
        while self._queue:
            chunk = self._unacked.get(self._queue[0])
            if chunk is not None:
                if chunk.account is None:
                    if not self._ahead.admits(chunk.size, self._window):
                        return
                    self._launch(chunk, self._ahead)
                chunk.queued = False
            heapq.heappop(self._queue)

    def _launch(self, chunk: _Chunk, account: _Account) -> None:
        chunk.account = account
        account.bytes += chunk.size
        if not chunk.launched:
            chunk.acked = self._received.cumulative
            chunk.launched = True
        if chunk.tag in self._to_clear:
            self._to_clear.discard(chunk.tag)
            self.unpushed.append(_Clearing(chunk))
        else:
            self.unpushed.append(chunk)

    def _land(self, chunk: _Chunk) -> None:
        """The chunk is no longer on the broker, as far as the windows go."""
        if chunk.account is not None:
            chunk.account.bytes -= chunk.size
            chunk.account = None
        chunk.confirmed_at = None

    def _shrink_window(self) -> None:
        smallest = min(self._timing.chunk_bytes, self._timing.window_bytes)
        self._window = max(smallest, self._window // 2)
        self._acked_since_loss = 0

    def _grow_window(self, acked: int) -> None:
        """Each window that went through without a loss makes it a chunk larger again."""
        self._acked_since_loss += acked
        if self._acked_since_loss >= self._window:
            self._acked_since_loss = 0
            self._window = min(self._timing.window_bytes, self._window + self._timing.chunk_bytes)

    def _owe_ack(self, now: float) -> None:
        self._ack_due = now + self._ack_delay
        received = self._received
        # What rides on data tells nothing of what came out of its turn.
        self._ack_owed = _NEVER_TOLD if received.has_gaps else received.cumulative

    def _ack_by(self, due: float) -> None:
        """Say it by then, whatever the peer knows."""
        self._ack_owed = _NEVER_TOLD
        if self._ack_due is None or due < self._ack_due:
            self._ack_due = due

    def _ack_state(self) -> AckState:
        """For the control list, where the peer always listens: no other ack is due then."""
        self._ack_due = None
        self._unreported_bytes = 0
        self._reported = self._received.cumulative
        return self._received.ack_state()

    def _push_ack(self) -> None:
        self._push_control(Ack(self._ack_state()))
        self._ack_eagerly = False

    def _push_control(self, frame: Frame) -> None:
        self.unpushed.append(_ControlPush(frame))

    def _push_heartbeat(self, now: float) -> None:
        self._next_heartbeat = now + self._timing.heartbeat_interval
        silence = max(0.0, self._announced_until - now)
        self._push_control(Heartbeat(self._ack_state(), int(silence * 1000)))

    def _push_fin(self, now: float) -> None:
        self._next_fin = now + self._timing.fin_interval
        self._push_control(Fin(self._last_seq, self._ack_state()))

    def _take_fin(self, fin: Fin) -> None:
        if fin.answer:
            self._fin_answered = self.state is State.CLOSING
            return
        self._peer_last = fin.last
        if self.state is not State.CLOSING:  # else our own FIN says it
            self._has_answered_fin = True
            self._answer_fin()
        self._step(Event.FIN)

    def _answer_fin(self) -> None:
        # Once we have left, a peer must not wait for us to take the rest.
        stays = self.state is not State.CLOSED or self._received.cumulative >= self._peer_last
        self._push_control(Fin(0, self._ack_state(), answer=stays))

    def _finish_if_done(self) -> None:
        if self.state is State.CLOSING and self._fin_answered and self.all_acked:
            self._step(Event.FIN_ANSWER)
