"""`Delivery`: exactly once, in order per tag, with one peer, over a broker that loses.

Sans-IO. Times are monotonic seconds that the caller passes in. The caller

- gives `send` what the application sends, `receive_data` and `receive_control` what came;
- calls `wait` and `unwait` around a receive that blocks;
- calls `tick` when `next_timeout` is due, `reconnected` after its own reconnect, `refused` and
  `confirm` with the broker's replies, `listened` whenever it has looked at the control list;
- after any of these does on the broker what `pushes` gives, in order, each once.

Rules of the whole:
- A frame is kept until the peer acks it, and is pushed again as the very same frame.
- A number is delivered once; what comes again is dropped.
- Bytes on the broker are bounded by the window; `send` never waits.
- Whatever the peer may wait for can get onto the broker, although other things fill it.
- The broker may lose, double, reorder or invent anything at any time without an error.

Each half states and keeps its own: `Sending` and `Receiving`, which do not know each other. Here is
what belongs to both: the state and its failure, whether the peer lives, how a conversation ends,
every control frame, and the timers. Only here is anything of one half told to the other.
"""

from __future__ import annotations

from collections.abc import Container
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
from redislink.protocol.conversation import LONG_AGO, DeliveryStats, Timing
from redislink.protocol.frame import (
    Abort,
    Ack,
    Data,
    Encoding,
    Fin,
    Frame,
    Heartbeat,
    Probe,
    Whole,
)
from redislink.protocol.pushes import Chunk, Clearing, ControlPush, Leftover, Push
from redislink.protocol.receiving import Receiving
from redislink.protocol.sending import Sending
from redislink.protocol.states import TABLE, Event, State

__all__ = ["Delivery", "DeliveryStats", "Leftover", "Push", "Timing"]

_LONGEST_SILENCE: Final = 86_400.0
_OPEN, _CLOSING, _CLOSED, _FAILED = State.OPEN, State.CLOSING, State.CLOSED, State.FAILED


class Delivery:
    """One party's half of the conversation with one peer. Not thread-safe."""

    def __init__(self, peer: str, timing: Timing, now: float) -> None:
        # At most 30 attributes: see `Sending`.
        self.peer = peer
        self.state = State.OPEN
        self.failure: PeerError | None = None
        """Why the conversation failed; set once, with the state FAILED."""
        self.stats = DeliveryStats()
        self.last_heard = now
        self.often_lost = 0
        """Bytes of a body that was lost several times, always after the broker had taken it."""
        self.unpushed: list[Push | Leftover] = []
        """What `pushes` will give."""
        self._timing = timing
        self._ack_bytes = timing.ack_bytes
        self._receiving = receiving = Receiving(timing, self.stats)
        self._sending = sending = Sending(timing, receiving.received, self.unpushed, self.stats)
        self.kept: Container[str] = receiving.kept
        """Tags of which a message, or a part of one, was received and not taken."""
        # What is called for every message, or every reply, leads straight to its half: a method
        # here that only passes it on would be one more Python call for each.
        self.send_at_once = sending.send_at_once
        self.confirm = sending.confirm
        self.take = receiving.take
        # Liveness and ending.
        self._silent_for = 0.0
        self._last_listened = now
        self._allowed_silence = timing.peer_timeout
        self._announced_until = LONG_AGO
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
            return chunk.seq
        self.check_can_send()
        return self._sending.send_in_turn(tag, body, encoding, now)

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
        return self._sending.is_acked(message)

    @property
    def all_acked(self) -> bool:
        """True if the peer has received all that was sent."""
        return self._sending.all_acked

    @property
    def unacked_bytes(self) -> int:
        """Bytes kept because the peer has not acked them, on the broker or still here."""
        return self._sending.unacked_bytes

    @property
    def in_flight_bytes(self) -> int:
        """Of these, the bytes that may be on the broker."""
        return self._sending.in_flight_bytes

    @property
    def largest_unanswered(self) -> int:
        """Bytes of the largest body that was pushed, and that the broker has not answered."""
        return self._sending.largest_unanswered

    def cut_finer(self, chunk_bytes: int) -> None:
        """Chunks of messages sent from now on have at most so many bytes."""
        self._sending.cut_finer(chunk_bytes)

    def pushes(self) -> list[Push | Leftover]:
        """What to do on the broker now; each is given once."""
        pushes = self.unpushed[:]
        self.unpushed.clear()  # the halves append to this very list
        return pushes

    def refused(self, push: Push, now: float) -> None:
        """The broker had no room for this push: it is kept, and sent again after a pause."""
        self._sending.refused(push, now)
        if not isinstance(push, Chunk | Clearing):  # it may have carried an ack
            self._receiving.ack_by(self._sending.paused_until)

    def ask_ack(self) -> None:
        """Somebody here waits for acks: ask the peer not to delay its next one."""
        if self._sending.awaits_acks:
            self._push_control(Ack(self._receiving.ack_state(), wanted=True))

    def reconnected(self, now: float) -> None:
        """Our connection to the broker was lost and is back: nothing pushed is certain."""
        self._sending.reconnected()
        self._receiving.probe_all_soon(now)
        self._next_heartbeat = self._next_fin = now
        if self._has_answered_fin and self.state is not State.FAILED:
            self._answer_fin()  # it may have been lost, and the peer waits for it
        self._sending.pump(now)

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
            self._sending.check_acked(frame.acked)
            if self._receiving.add(tag, frame, body, now):
                self._heard(now)  # as nobody else makes such a frame
                if self._receiving.kept_bytes > self._timing.peer_memory_bytes:
                    raise self._kept_too_much()
            self._heard_data(frame.acked, now)
        return self.take(tag) if take else None

    def receive_whole(self, tag: str, whole: Whole, now: float) -> tuple[bytes, Encoding] | None:
        """`receive_data` of what a codec found to be a whole message, and `take`.

        The short way for nearly every message; see `Receiving.add_whole`.

        Raises:
            FrameError: as `receive_data`.
        """
        seq, encoding, acked, body = whole
        if (
            self.state is not _OPEN
            or acked > self._sending.last_seq
            or not self._receiving.add_whole(tag, seq, len(body), now)
        ):
            frame = Data(seq, encoding=encoding, acked=acked)
            return self.receive_data(tag, frame, body, now, take=True)
        self.last_heard = self._last_listened = now  # as `_heard`
        self._silent_for = 0.0
        self._heard_data(acked, now)
        return body, encoding

    def _heard_data(self, acked: int, now: float) -> None:
        """A DATA frame came, perhaps again: then it may be the broker that says it."""
        sending, receiving = self._sending, self._receiving
        if receiving.ack_due is None:  # else it is due earlier
            receiving.owe_ack(now)
        if acked > sending.acked_cumulative:
            sending.take_acked(acked, now)
        # One ack answers one request for prompt acks; a sender that still waits asks again.
        if receiving.ack_eagerly or receiving.unreported_bytes >= self._ack_bytes:
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
        self._sending.check_ack(frame.ack)
        self._heard(now)
        self._step(Event.TRAFFIC)
        self._sending.take_ack(frame.ack, now)
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
            self._receiving.ack_eagerly = True
        self._finish_if_done()

    def _take_probe(self, probe: Probe, now: float) -> None:
        if probe.answer:
            self._receiving.not_sent(probe.tag, now)
        elif self._sending.keeps(probe.tag):
            self.often_lost = self._sending.take_probe(probe.tag, now) or self.often_lost
        else:
            self._push_control(Probe(probe.tag, self._receiving.ack_state(), answer=True))

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """As `take`, but the message stays."""
        return self._receiving.peek(tag)

    def missing(self, tag: str) -> tuple[int, int]:
        """Of the message that comes with this tag: (chunks to come, bytes of each), about.

        Both are 0 before the first.
        """
        return self._receiving.missing(tag)

    def wait(self, tag: str, now: float) -> None:
        """A receive is blocked on this tag from now on: the peer will be probed for it."""
        self._receiving.wait(tag, now)

    def came_in_part(self, tag: str, now: float) -> None:
        """Bytes of a frame of this tag have come: what is on its way is not probed for."""
        self._receiving.came_in_part(tag, now)

    def probe_soon(self, tag: str, now: float) -> None:
        """What was popped for this tag may have been lost on its way: probe at once."""
        self._receiving.probe_soon(tag, now)

    def unwait(self, tag: str) -> None:
        """The receive is no longer blocked."""
        self._receiving.unwait(tag)

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
        if self._receiving.received.cumulative >= self._peer_last:
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
        if self._receiving.is_not_sent(tag, now):
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
        due = self._receiving.timeouts()
        if (resumes_at := self._sending.resumes_at) is not None:
            due.append(resumes_at)
        if self.state is not State.PEER_CLOSED:
            due.append(self._next_heartbeat)
        if self.state is State.CLOSING:
            due.append(self._next_fin)
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Do what is due: acks, probes, heartbeats, FINs, what the window now admits."""
        if not self._peer_listens:
            return
        for tag in self._receiving.probes_due(now):
            self._push_control(Probe(tag, self._receiving.ack_state()))
        if self.state is State.CLOSING and self._next_fin <= now:
            self._push_fin(now)
        # A peer that is closing hears our answers to its FINs instead.
        if self.state is not State.PEER_CLOSED and self._next_heartbeat <= now:
            self._push_heartbeat(now)
        if self._receiving.must_ack(now, self._sending.told):
            self._push_ack()
        self._sending.pump(now)

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
            f"{self.peer} has sent {self._receiving.kept_bytes} bytes that nothing here has taken: "
            "check that both run the same program, or raise REDISLINK_PEER_MEMORY_BYTES "
            f"({self._timing.peer_memory_bytes})",
        )
        self._receiving.clear()
        self._step(Event.VIOLATION, failure)
        return self.failure or failure

    # -- inner workings --------------------------------------------------------------------

    @property
    def _peer_listens(self) -> bool:
        """False once one of the two has left; a peer that said FIN stays until we have all."""
        if self.state is State.PEER_CLOSED:
            return self._receiving.reported < self._peer_last
        return self.state in (State.OPEN, State.CLOSING)

    def _step(self, event: Event, failure: PeerError | None = None) -> None:
        state = TABLE[self.state][event]
        if state is self.state:
            return
        self.state = state
        self._sending.open = state is State.OPEN
        if state is State.FAILED:
            self.failure = failure
        if state is not State.CLOSING:
            self._sending.stop()

    def _heard(self, now: float) -> None:
        self.last_heard = self._last_listened = now
        self._silent_for = 0.0

    def _push_ack(self) -> None:
        self._push_control(Ack(self._receiving.ack_state()))
        self._receiving.ack_eagerly = False

    def _push_control(self, frame: Frame) -> None:
        self.unpushed.append(ControlPush(frame))

    def _push_heartbeat(self, now: float) -> None:
        self._next_heartbeat = now + self._timing.heartbeat_interval
        silence = max(0.0, self._announced_until - now)
        self._push_control(Heartbeat(self._receiving.ack_state(), int(silence * 1000)))

    def _push_fin(self, now: float) -> None:
        self._next_fin = now + self._timing.fin_interval
        self._push_control(Fin(self._sending.last_seq, self._receiving.ack_state()))

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
        stays = (
            self.state is not State.CLOSED or self._receiving.received.cumulative >= self._peer_last
        )
        self._push_control(Fin(0, self._receiving.ack_state(), answer=stays))

    def _finish_if_done(self) -> None:
        if self.state is State.CLOSING and self._fin_answered and self._sending.all_acked:
            self._step(Event.FIN_ANSWER)
