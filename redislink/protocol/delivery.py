"""`Delivery`: exactly-once delivery, in order per tag, with one peer, over a lossy broker.

Sans-IO. The caller passes in all times, as monotonic seconds. The caller

- passes the application's messages to `send`, and incoming frames to `receive_data` and
  `receive_control`;
- calls `wait` and `unwait` around a receive that blocks;
- calls `tick` and `overdue` when `next_timeout` is due, `reconnected` after its own reconnect,
  `refused` and `confirm` with the broker's replies, `listened` whenever it has looked at the
  control list;
- after each of these, carries out `pushes` on the broker, in order, each once.

Rules:
- A frame is kept until the peer acks it. Every push of it is the very same frame.
- Each number is delivered once; duplicates are dropped.
- The window limits the bytes on the broker; `send` never waits.
- A message that the peer waits for can always get onto the broker, even if other messages fill it.
- The broker may lose, duplicate, reorder or invent anything at any time, without an error.

`Sending` and `Receiving` are the two halves; each states its own rules, and they do not know each
other. This module has what concerns both: the state and its failure, whether the peer is alive, how
a conversation ends, all control frames, and the timers. Only here does one half learn of the other.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
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
from redislink.protocol.ack_requests import AckRequests
from redislink.protocol.chunking import Missing
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
    Says,
    Whole,
    tags_by_probe,
)
from redislink.protocol.pushes import ControlPush, DataPush, Leftover, Push
from redislink.protocol.receiving import Receiving
from redislink.protocol.sending import Sending
from redislink.protocol.states import TABLE, Event, State

__all__ = ["DataPush", "Delivery", "DeliveryStats", "Leftover", "Push", "Timing"]

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
        """The size of a body at which the peer's connection broke again and again."""
        self.unpushed: list[Push | Leftover] = []
        """What `pushes` will return."""
        self._timing = timing
        self._ack_bytes = timing.ack_bytes
        self._receiving = receiving = Receiving(timing, self.stats)
        self._sending = sending = Sending(timing, receiving.received, self.unpushed, self.stats)
        self.kept: Container[str] = receiving.kept
        """The tags for which a message, or a part of one, was received and not yet taken."""
        self._waits = receiving.waits
        self._ack_requests = AckRequests(timing.round_trip)
        # These are called for every message, or every reply, so they lead straight to their half:
        # a method here that only forwards would cost one more Python call each time.
        self.send_at_once = sending.send_at_once
        self.confirm = sending.confirm
        self.take = receiving.take
        self.lend = receiving.lend
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
        self._replaces_control = False
        """The next control frame takes the place of those that the peer has not taken."""

    # -- sending ---------------------------------------------------------------------------

    def send(
        self,
        tag: str,
        body: bytes,
        now: float,
        encoding: Encoding = Encoding.RAW,
        *,
        fine: bool = False,
    ) -> int:
        """Queue a message, and return its number, for `is_acked`.

        Args:
            tag, body, encoding: of the message.
            now: monotonic seconds.
            fine: see `Sending.send_in_turn`.

        Raises:
            UsageError: the message is too large, or this party has left.
            PeerError: the conversation is over.
        """
        chunk = self.send_at_once(tag, body, encoding)
        if chunk is not None:
            self.unpushed.append(chunk)
            return chunk.seq
        self.check_can_send()
        return self._sending.send_in_turn(tag, body, encoding, now, fine=fine)

    def check_can_send(self) -> None:
        """Raise the reason why nothing can be sent, if there is one."""
        if self.failure is not None:
            raise self.failure.afresh()
        if self.state is State.PEER_CLOSED:
            raise PeerClosed(
                self.peer, f"{self.peer} has left the session: send to it before it closes"
            )
        if self.state is not State.OPEN:
            raise UsageError("this party has left the session: send before close()")

    def is_acked(self, message: int) -> bool:
        """Return whether the peer has received the whole message with this number."""
        return self._sending.is_acked(message)

    @property
    def all_acked(self) -> bool:
        """True if the peer has received everything that was sent."""
        return self._sending.all_acked

    @property
    def unacked_bytes(self) -> int:
        """The bytes that the peer has not acked, whether on the broker or still here."""
        return self._sending.unacked_bytes

    @property
    def in_flight_bytes(self) -> int:
        """The part of `unacked_bytes` that may be on the broker."""
        return self._sending.in_flight_bytes

    @property
    def largest_unanswered(self) -> int:
        """The size of the largest body that was pushed and not yet answered by the broker."""
        return self._sending.largest_unanswered

    def unacked_tags(self) -> list[str]:
        """Return the tags of which the peer has not acked everything."""
        return self._sending.unacked_tags()

    def cut_finer(self, chunk_bytes: int) -> None:
        """Limit the chunks of messages sent from now on to so many bytes."""
        self._sending.cut_finer(chunk_bytes)

    def pushes(self) -> list[Push | Leftover]:
        """Return what to do on the broker now. Each push is returned once."""
        pushes = self.unpushed[:]
        self.unpushed.clear()  # the halves append to this very list
        return pushes

    def refused(self, push: Push, now: float) -> None:
        """Note that the broker had no room for this push; it is sent again after a pause."""
        self._sending.refused(push, now)
        if not isinstance(push, DataPush):  # it may have carried an ack
            self._receiving.ack_by(self._sending.paused_until)
            # A peer that is gone, or is suspended, takes no control frames: they may be what fills
            # the broker. While it refuses them, no silence counts, so they would hide that the
            # peer is gone. Whatever a peer still needs of them is said again.
            if now - self.last_heard > 2 * self._timing.heartbeat_interval:
                self._replaces_control = True

    def ask_ack(self, now: float) -> float:
        """Ask the peer for prompt acks, because somebody here waits for one.

        Returns:
            The seconds until it makes sense to call this again. An earlier call is harmless:
            whether a question goes out depends on when the last one did.
        """
        under_way = self._sending.unacked_frames
        if under_way and (every := self._ack_requests.due(under_way, now)):
            self._push_control(Ack(self._receiving.ack_state(), every))
        return self._ack_requests.pause(now)

    def reconnected(self, now: float) -> None:
        """Note that our connection to the broker was lost and is back: any push may be lost."""
        self._sending.reconnected()
        self._waits.ask_all(now)
        self._next_heartbeat = self._next_fin = now
        if self._has_answered_fin and self.state is not State.FAILED:
            self._answer_fin()  # it may have been lost, and the peer waits for it
        self._sending.pump(now)

    # -- receiving -------------------------------------------------------------------------

    def receive_data(
        self,
        tag: str | None,
        frame: Frame,
        body: bytes | memoryview,
        now: float,
        *,
        take: bool = False,
    ) -> tuple[bytes, Encoding] | None:
        """Process a frame from the data list of ``tag``, or from the list of rests.

        Args:
            tag: the list's tag; None for the list of rests.
            frame, body: the frame and its body, or the place that `lend` returned for the body.
            now: monotonic seconds.
            take: whether to `take` the tag's next message too.

        Returns:
            What `take` returns; None without ``take``.

        Raises:
            FrameError: the frame does not belong there; nothing has changed.
            PeerProtocolError: the peer has sent more than it may make us keep; the conversation
                has ended.
        """
        if type(frame) is not Data:
            raise FrameError(f"a {frame.kind.name} frame on a data list")
        if tag is None and not frame.is_rest:
            raise FrameError("a frame on the list of rests that is no rest")
        if self.state is not _FAILED and self.state is not _CLOSED:
            self._sending.check_acked(frame.acked)
            if self._receiving.add(tag, frame, body, now):
                self._heard(now)  # as nobody else makes such a frame
                if self._receiving.kept_bytes > self._timing.peer_memory_bytes:
                    raise self._kept_too_much().afresh()
            self._heard_data(frame.acked, now)
        return self.take(tag) if take and tag is not None else None

    def receive_whole(self, tag: str, whole: Whole, now: float) -> tuple[bytes, Encoding] | None:
        """Process a whole message from the data list of ``tag``, and `take` the next one.

        The fast path for nearly every message; see `Receiving.add_whole`.

        Raises:
            FrameError: as for `receive_data`.
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
        """Note that a DATA frame came. A duplicate may come from the broker, not the peer."""
        sending, receiving = self._sending, self._receiving
        if receiving.ack_due is None:  # else it is due earlier
            receiving.owe_ack(now)
        if acked > sending.acked_cumulative:
            sending.take_acked(acked, now)
        if receiving.ack_eagerly or receiving.unreported_bytes >= self._ack_bytes:
            self._ack_soon(now)
        if self.state is _CLOSING:
            self._finish_if_done()

    def _ack_soon(self, now: float) -> None:
        receiving = self._receiving
        if receiving.unreported_bytes >= self._ack_bytes or receiving.owes_eager_ack(now):
            self._push_ack()

    def receive_control(self, frame: Frame, now: float, *, in_order: bool = True) -> None:
        """Process a frame from the control list.

        Args:
            frame: the frame.
            now: monotonic seconds.
            in_order: False if what is pushed now may overtake earlier pushes.

        Raises:
            FrameError: the frame does not belong there; nothing has changed.
        """
        if not isinstance(frame, Ack | Probe | Heartbeat | Abort | Fin):
            raise FrameError(f"a {frame.kind.name} frame on a control list")
        if self.state is State.FAILED:
            return
        if isinstance(frame, Abort):
            self._step(Event.ABORT, PeerAborted(self.peer, frame.reason, retryable=frame.retryable))
            return
        self._sending.check_ack(frame.ack)
        self._heard(now)
        self._step(Event.TRAFFIC)
        self._sending.take_ack(frame.ack, now)
        self._sending.move_on(frame.ack.edition, now)
        if isinstance(frame, Fin):
            self._take_fin(frame)
        elif self.state is State.CLOSED:
            return
        elif isinstance(frame, Heartbeat):
            self._allowed_silence = self._timing.peer_timeout + frame.silence_ms / 1000
        elif isinstance(frame, Probe):
            self._take_probe(frame, now, in_order=in_order)
        else:
            self._ack_requests.answered()
            if frame.every:
                self._push_ack()
                self._receiving.be_eager(frame.every, now)
        self._finish_if_done()

    def _take_probe(self, probe: Probe, now: float, *, in_order: bool) -> None:
        if probe.says is Says.NOT_SENT:
            self._waits.not_sent(probe.tags, now)
        elif probe.says in (Says.SENT, Says.RESENT):
            was_lost = self._waits.sent(probe.tags, now)
            if probe.says is Says.RESENT and self._waits.lost_again(was_lost, now):
                self.read_anew(now)
        else:
            answer = self._sending.take_probe(probe, now, in_order=in_order)
            self.often_lost = answer.often_lost or self.often_lost
            self._push_probes(Says.NOT_SENT, answer.not_sent)
            self._push_probes(Says.SENT, answer.sent)
            self._push_probes(Says.RESENT, answer.resent)

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """Like `take`, but leave the message there."""
        return self._receiving.peek(tag)

    def missing(self, tag: str) -> Missing:
        """Return what is missing of the message now arriving with this tag."""
        return self._receiving.missing(tag)

    def tag_of(self, frame: Data) -> str | None:
        """Return the tag of the message to which this chunk of a rest belongs, if it is known."""
        return self._receiving.tag_of(frame)

    def wait(self, tag: str, since: float) -> None:
        """Note that a receive has blocked on this tag, so the peer will be probed for it."""
        self._waits.wait(tag, since)

    def came_again(self, tag: str) -> None:
        """Note that what comes next of this tag was pushed again. Call it before `receive_data`."""
        self._waits.came_again(tag)

    def came_in_part(self, tag: str, now: float) -> None:
        """Note that part of a frame of this tag has come: it is on its way, so do not probe yet."""
        self._waits.came(tag, now, whole=False)

    def lost(self, tag: str, now: float) -> None:
        """Have the peer push an element of this tag again: the one that came is of no use."""
        self._complain(Says.LOST, tag, now)

    def misses(self, tag: str, now: float) -> None:
        """Have the peer push this tag again: the connection broke that may have popped some."""
        self._complain(Says.MISSES, tag, now)

    def overdue(self, now: float) -> list[str]:
        """Return the tags whose messages the broker has taken, but has not given to us.

        Either they were lost, or the connection was on which we wait for them. Each tag is named
        once for each answer of the peer. If anything has come on the connection, call
        `came_in_part`, else `missed_in_vain`.
        """
        return self._waits.overdue(now)

    def missed_in_vain(self, tag: str, now: float, *, can_leave: bool = True) -> bool:
        """Have the peer push an overdue tag again.

        Args:
            tag: the tag.
            now: monotonic seconds.
            can_leave: whether the connection may be dead on which the message should come.

        Returns:
            True if that was done before and did not help. Then that connection seems dead: call
            `read_anew`.
        """
        wait = self._waits.by_tag.get(tag)
        if wait is None or not self._peer_listens:
            return False
        if wait.missed and can_leave:
            wait.missed = False
            return True
        self._complain(Says.OVERDUE, tag, now)
        self._waits.missed(wait, now)
        return False

    def read_anew(self, now: float) -> None:
        """Read the next edition of the peer's data lists, and have the peer push onto that.

        Call it after losing a connection of which the broker may not know: its BLPOPs wait on the
        lists of the present edition, and would swallow what is pushed there. `receive_control` does
        it too: look at `edition_in` after that.
        """
        if self._peer_listens:
            self._receiving.edition += 1
            self._waits.ask_all(now)
            self._push_ack()

    @property
    def edition_in(self) -> int:
        """The edition of the data lists that we read."""
        return self._receiving.edition

    @property
    def edition_out(self) -> int:
        """The edition of the data lists that the peer reads."""
        return self._sending.edition

    def unwait(self, tag: str) -> None:
        """Note that the receive no longer blocks."""
        self._waits.unwait(tag)

    def check_can_receive(self, tag: str, now: float) -> None:
        """Raise the reason why nothing more can come, if there is one.

        Call it after finding the data list empty.
        """
        if self.failure is not None:
            raise self.failure.afresh()
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
        """Say when the peer was last heard, and what it said, for a RecvTimeout."""
        heard = f"{self.peer} was last heard {max(0.0, now - self.last_heard):.1f} s ago"
        if self._waits.is_not_sent(tag, now):
            return f"{heard} and says that it has not sent it yet"
        return heard

    @property
    def is_silent(self) -> bool:
        """True if the peer has not left, but was not heard for longer than it should be.

        As in `listened`, only time spent listening counts.
        """
        return self._silent_for > 2 * self._timing.heartbeat_interval and self._peer_listens

    def describe_silence(self, now: float) -> str:
        """Return text such as ``bob not heard for 12 s``; "" if the peer is heard, or has left."""
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
        due = self._waits.timeouts()
        if self._receiving.ack_due is not None:
            due.append(self._receiving.ack_due)
        if (resumes_at := self._sending.resumes_at) is not None:
            due.append(resumes_at)
        if self.state is not State.PEER_CLOSED:
            due.append(self._next_heartbeat)
        if self.state is State.CLOSING:
            due.append(self._next_fin)
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Queue what is due: acks, probes, heartbeats, FINs, and chunks that now fit the window."""
        if not self._peer_listens:
            return
        self.stats.probes_sent += self._push_probes(Says.WAITS, self._waits.due(now))
        if self.state is State.CLOSING and self._next_fin <= now:
            self._push_fin(now)
        # A peer that is closing hears our answers to its FINs instead.
        if self.state is not State.PEER_CLOSED and self._next_heartbeat <= now:
            self._push_heartbeat(now)
        if self._receiving.must_ack(now, self._sending.told):
            self._push_ack()
        self._sending.pump(now)

    def listened(self, now: float) -> None:
        """Note that the control list was just found empty: the peer has been silent until now.

        Only time spent listening counts against the peer. So a pause of our own (the GIL held, the
        broker away) never makes a living peer look dead. Nor does a broker that refuses our control
        frames, because it refuses the peer's too. Listen at least every ``heartbeat_interval``.
        """
        if self._sending.is_mute:
            self._last_listened = now
            return
        pause = max(0.0, now - self._last_listened)
        self._silent_for += min(pause, self._timing.heartbeat_interval)
        self._last_listened = now
        if self._silent_for <= self._allowed_silence:
            return
        before, silence = self.state, now - self.last_heard
        self._step(Event.SILENCE, PeerLost(self.peer, silence))
        if self.state is not before:
            # It may only have been suspended: this is what it finds when it goes on.
            self._push_abort(f"you were silent for {silence:.0f} s", retryable=True)

    def not_listening(self, now: float) -> None:
        """Note that the control list could not be read until now: that time does not count."""
        self._last_listened = now

    def announce_silence(self, seconds: float, now: float) -> None:
        """Tell the peer not to declare us lost for so many seconds; 0 revokes that."""
        self._announced_until = now + min(max(0.0, seconds), _LONGEST_SILENCE)
        if self._peer_listens:
            self._push_heartbeat(now)

    # -- ending ----------------------------------------------------------------------------

    def close(self, now: float) -> None:
        """Say FIN. The conversation is over when `state` is CLOSED or FAILED."""
        if self.state is State.OPEN or (self.state is State.PEER_CLOSED and self._peer_listens):
            self._push_fin(now)
        self._step(Event.CLOSE)

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell the peer that this party's run has failed, and end the conversation.

        Args:
            reason: one line for the peer.
            retryable: whether the cause may pass.
        """
        peer_listens = self._peer_listens
        self._step(Event.ABORT)
        if peer_listens:
            self._push_abort(reason, retryable=retryable)

    def restarted(self) -> None:
        """Fail the conversation: the peer said HELLO as another run."""
        self._step(Event.RESTART, PeerRestarted(self.peer))

    def broke_rules(self, what: str) -> None:
        """Fail the conversation: the peer, and nobody else, broke the protocol in this way."""
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
        """False once either side has left. A peer that said FIN stays until we have everything."""
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

    def _push_probes(self, says: Says, tags: Iterable[str]) -> int:
        """Push as few probes as these tags need; return how many that were."""
        batches = list(tags_by_probe(tags))
        for batch in batches:
            self._push_control(Probe(batch, self._receiving.ack_state(), says))
        return len(batches)

    def _complain(self, says: Says, tag: str, now: float) -> None:
        if self._peer_listens:
            self.stats.probes_sent += self._push_probes(says, (tag,))
            self._waits.complained(tag, now)

    def _push_control(self, frame: Frame, *, clear: bool = False) -> None:
        self.unpushed.append(ControlPush(frame, clear=clear or self._replaces_control))
        self._replaces_control = False

    def _push_abort(self, reason: str, *, retryable: bool) -> None:
        # Twice, so that one lost pop does not cost the peer its peer_timeout. Nothing that waits
        # on the list matters any more, and the peer is to find this first.
        frame = Abort(reason, retryable)
        self._push_control(frame, clear=True)
        self._push_control(frame)

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
