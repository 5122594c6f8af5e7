"""`Sending`: keeps the messages for one peer, from the call that sends them to the peer's ack.

Rules:
- A chunk is kept until it is acked. Its first push fixes its frame, and every later push is of that
  very frame.
- The window limits the bytes on the broker, in two accounts: one for chunks that are sent ahead,
  one for tags that the peer says it waits for. Chunks that do not fit wait in the queue.
- A chunk that may be on the broker counts in one account; any other chunk is in the queue.
- A message that the peer waits for can always get onto the broker: whatever fills the broker, or
  the window, is taken back for it.
- A tag is in `_by_tag` exactly while one of its chunks is unacked.
- The *rest* of a mid-sized message (`Data.apart`), all its chunks but the first, goes onto one list
  for the rests of all tags, so that the receiver can ask for it before it knows of the message.
  The list is not bound to what the receiver asks for, so only so much goes there at a time. What
  is pushed again goes onto its tag's list.

From the other half this one knows only the received numbers, which it sends along on data frames as
a hint. Of the state and the peer's liveness it knows only `open`. `Delivery` guards both.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from redislink.errors import FrameError
from redislink.protocol import chunking
from redislink.protocol.conversation import LONG_AGO, DeliveryStats, Timing
from redislink.protocol.frame import AckState, Encoding, Probe, Says
from redislink.protocol.pushes import Account, Chunk, Clearing, Leftover, Push
from redislink.protocol.received import ReceivedNumbers

_FRAME_OVERHEAD: Final = chunking.OVERHEAD
_MOST_DOUBLINGS: Final = 4
_OF_A_STREAM: Final = 2
"""Messages of this size that are in flight already when we treat the traffic as a stream. Parties
that exchange messages have one in flight: what the peer sent meanwhile does not ack it yet."""
_OFTEN_LOST: Final = 3
_SMALL: Final = 16 << 10
"""Elements of up to so many bytes reach the broker in the order of their numbers."""
_LOSS_MEMORY: Final = 10.0
"""Seconds for which a loss makes the next one look like more than a lost pop."""
_MOST_SINGLE: Final = 2
"""Losses in that time that may still be single ones."""
_RAW: Final = Encoding.RAW
_new: Final = object.__new__  # a class called as usual costs five times as much


@dataclass(slots=True)
class Answer:
    """What a probe has led to.

    Attributes:
        not_sent: tags of which nothing is unacked.
        sent: tags whose next chunk the broker has before what is pushed now.
        resent: likewise, but the chunk counted as lost and was pushed again.
        often_lost: the size of a tag's next chunk, if the peer's connection broke at it several
            times, each time after the broker took it; otherwise 0.
    """

    not_sent: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    resent: list[str] = field(default_factory=list)
    often_lost: int = 0


class Sending:
    """The half of a `Delivery` that sends. Not thread-safe."""

    def __init__(
        self,
        timing: Timing,
        received: ReceivedNumbers,
        unpushed: list[Push | Leftover],
        stats: DeliveryStats,
    ) -> None:
        """Args:
        timing: the times and sizes that control it.
        received: the numbers received from the peer; only read, to tell the peer.
        unpushed: the list to which it appends what to do on the broker, in order.
        stats: the counts to increase.
        """
        # At most 30 attributes: CPython writes to larger objects, and calls their methods, slower.
        self.open = True
        """Whether messages may be sent; `Delivery` sets it with its state."""
        self.last_seq = 0
        """The number of the last chunk that was sent or queued."""
        self.acked_cumulative = 0
        """The peer has acked every number up to this one."""
        self.told = 0
        """The peer knows that we have all numbers up to this: it acked the DATA that said so."""
        self.paused_until = LONG_AGO
        """The broker had no room: push nothing before this time."""
        self.edition = 0
        """The peer reads the data lists of this edition."""
        self._ahead = Account()
        self._asked_for = Account()
        self._timing = timing
        self._whole_bytes = _most_whole(timing)
        """Messages of up to so many bytes are never cut."""
        self._apart_bytes = 0
        """Bytes of unacked messages whose rest travels apart."""
        self._line_free_at = LONG_AGO
        """When the line will have carried the messages so far that might travel apart."""
        self._rest_pushed_twice = False
        """What is on the list of rests may be of no use any more; see `_acked`."""
        self._received = received
        self._unpushed = unpushed
        self._stats = stats
        self._queue: list[int] = []  # a heap: lost chunks go before those never pushed
        self._unacked: dict[int, Chunk] = {}
        self._by_tag: dict[str, dict[int, Chunk]] = {}
        self._chunks_left: dict[int, int] = {}  # by message; where one chunk is all, see _unacked
        self._window = timing.window_bytes
        self._acked_since_loss = 0
        self._waited_for: dict[str, float] = {}  # tags, and when they last were; next one first
        self._to_clear: set[str] = set()
        self._pushed_twice: set[str] = set()
        self._mute_since: float | None = None  # control frames are refused too
        self._losses: list[float] = []
        """When each tag was lost lately."""

    # -- a message -------------------------------------------------------------------------
    #
    # `send_at_once` does for nearly every message what `send_in_turn` and `_launch` do for all.
    # They share no code, which would cost every message one more Python call;
    # tests/protocol/test_short_ways.py keeps them equal.

    def send_at_once(
        self, tag: str, body: bytes, encoding: Encoding = Encoding.RAW
    ) -> Chunk | None:
        """Send a message if it is one chunk that nothing holds up, like nearly all messages.

        Returns:
            The chunk, which the caller must push; its ``seq`` is the message's number. None if the
            message must take the slow path; then nothing was done.
        """
        length = len(body)
        ahead = self._ahead
        in_flight = ahead.bytes + length + _FRAME_OVERHEAD
        if (
            not self.open
            or self._unpushed
            or self._queue
            or tag in self._by_tag
            or self.paused_until != LONG_AGO
            or length > self._whole_bytes
            or (in_flight > self._window and ahead.bytes)
        ):
            return None
        seq = self.last_seq = self.last_seq + 1
        chunk: Chunk = _new(Chunk)
        chunk.tag = tag
        chunk.seq = seq
        chunk.body = body
        chunk.account = ahead
        chunk.launched = True
        # Only a hint, because the peer may take this frame late: the ack stays due until it has.
        chunk.acked = self._received.cumulative
        if encoding is not _RAW:
            chunk.encoding = encoding
        ahead.bytes = in_flight
        self._unacked[seq] = chunk
        self._by_tag[tag] = {seq: chunk}
        stats = self._stats
        stats.messages_sent += 1
        stats.bytes_sent += length
        return chunk

    def send_in_turn(
        self, tag: str, body: bytes, encoding: Encoding, now: float, *, fine: bool = False
    ) -> int:
        """Queue a message, push as much of it as the window admits, and return its number.

        Args:
            tag, body, encoding: of the message.
            now: monotonic seconds.
            fine: whether to cut it finer, because small messages have to wait for large ones.

        Raises:
            UsageError: the message is too large; nothing was done.
        """
        part_bytes = self._part_bytes(len(body), now)
        bodies = list(chunking.split(body, part_bytes or self._chunk_bytes(len(body), fine=fine)))
        mine = self._by_tag.setdefault(tag, {})
        newest = mine[next(reversed(mine))] if mine else None
        previous = newest.seq - newest.part if newest is not None else 0
        for part, chunk_body in enumerate(bodies):
            self.last_seq += 1
            chunk = Chunk()
            chunk.tag, chunk.body, chunk.encoding = tag, chunk_body, encoding
            chunk.seq, chunk.part, chunk.parts = self.last_seq, part, len(bodies)
            chunk.previous, chunk.message_bytes = previous, len(body)
            if part_bytes:
                chunk.apart = True
                self._apart_bytes += len(chunk_body)
            self._unacked[self.last_seq] = mine[self.last_seq] = chunk
            self._enqueue(chunk)
        if len(bodies) > 1:
            self._chunks_left[self.last_seq] = len(bodies)
        self._push_ahead(now)
        self._stats.messages_sent += 1
        self._stats.bytes_sent += len(body)
        return self.last_seq

    def _part_bytes(self, size: int, now: float) -> int:
        """Return the chunk size for a message that is sent now, if its rest is to travel apart.

        Else, 0: also if it must wait its turn, as finer chunks gain nothing then. What is unacked
        does not tell that: a peer that sends us nothing acks late.
        """
        timing = self._timing
        part = chunking.choose_apart(size, timing.frame_cost, timing.part_bytes, timing.chunk_bytes)
        if not part:
            return 0
        seconds = size / timing.uplink
        busy_until = self._line_free_at
        self._line_free_at = max(busy_until, now) + seconds
        waits = self._queue or busy_until - now >= _OF_A_STREAM * seconds > 0
        return 0 if waits or self._apart_bytes + size > chunking.MOST_APART else part

    def _chunk_bytes(self, size: int, *, fine: bool) -> int:
        """Return the chunk size for a message that is sent now, if its rest does not."""
        timing = self._timing
        is_troubled = self._window < timing.window_bytes
        most = _fine_bytes(timing) if fine or is_troubled else timing.chunk_bytes
        if self._queue or self._ahead.bytes >= _OF_A_STREAM * size:
            # The message must wait its turn, so finer chunks gain nothing; and the line would be
            # idle while the receiver asks for the second chunk.
            return most
        return chunking.choose(size, timing.least_chunk_bytes, most)

    def cut_finer(self, chunk_bytes: int) -> None:
        """Limit the chunks of messages sent from now on to so many bytes."""
        timing = self._timing
        most = min(timing.chunk_bytes, chunk_bytes)
        least = min(timing.least_chunk_bytes, most)
        part = timing.part_bytes if timing.part_bytes <= most else 0
        self._timing = replace(timing, chunk_bytes=most, least_chunk_bytes=least, part_bytes=part)
        self._whole_bytes = _most_whole(self._timing)

    # -- what is unacked -------------------------------------------------------------------

    def is_acked(self, message: int) -> bool:
        """Return whether the peer has received the whole message with this number."""
        return (
            message <= self.last_seq
            and message not in self._unacked
            and message not in self._chunks_left
        )

    @property
    def all_acked(self) -> bool:
        """True if the peer has received everything that was sent."""
        return not self._unacked and not self._chunks_left

    @property
    def unacked_frames(self) -> int:
        """The number of chunks that the peer has not acked; 0 once the conversation is over."""
        return len(self._unacked)

    @property
    def unacked_bytes(self) -> int:
        """The bytes that the peer has not acked, whether on the broker or still here."""
        return sum(chunk.size for chunk in self._unacked.values())

    @property
    def in_flight_bytes(self) -> int:
        """The part of `unacked_bytes` that may be on the broker."""
        return self._ahead.bytes + self._asked_for.bytes

    @property
    def largest_unanswered(self) -> int:
        """The size of the largest body that was pushed and not yet answered by the broker."""
        return max(
            (len(chunk.body) for chunk in self._all_flying() if chunk.confirmed_at is None),
            default=0,
        )

    def check_acked(self, highest: int) -> None:
        """Check that an ack names no number that was never sent.

        Raises:
            FrameError: it does.
        """
        if highest > self.last_seq:
            raise FrameError("an ack for frames that were never sent")

    def check_ack(self, ack: AckState) -> None:
        """Like `check_acked`, for all the numbers in an ack."""
        self.check_acked(ack.ranges[-1][1] if ack.ranges else ack.cumulative)

    def take_ack(self, ack: AckState, now: float) -> None:
        """Forget the chunks that this ack names. Check the ack first."""
        before = len(self._unacked)
        for first, last in ack.ranges:
            for seq in self._numbers_unacked(first, last):
                self._acked(seq, now)
        if self._queue and len(self._unacked) < before:
            self.pump(now)
        self.take_acked(ack.cumulative, now)

    def take_acked(self, cumulative: int, now: float) -> None:
        """Forget the chunks up to this number. Check the number first."""
        if cumulative > self.acked_cumulative:
            for seq in range(self.acked_cumulative + 1, cumulative + 1):
                self._acked(seq, now)
            self.acked_cumulative = cumulative
            if self._queue:
                self.pump(now)

    def _numbers_unacked(self, first: int, last: int) -> Iterable[int]:
        if last - first > len(self._unacked):
            return [seq for seq in self._unacked if first <= seq <= last]
        return range(first, last + 1)

    def _acked(self, seq: int, now: float) -> None:
        chunk = self._unacked.pop(seq, None)
        if chunk is None:
            return
        if chunk.acked > self.told:
            self.told = chunk.acked
        size = len(chunk.body) + _FRAME_OVERHEAD
        account = chunk.account
        if account is not None:
            account.bytes -= size
            chunk.account = None
        if self._window < self._timing.window_bytes:
            self._grow_window(size)
        if chunk.parts > 1:
            if chunk.apart:
                self._apart_bytes -= len(chunk.body)
                if self._rest_pushed_twice and not self._apart_bytes:
                    self._rest_pushed_twice = False
                    self._unpushed.append(Leftover(None, self.edition))
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
            self._unpushed.append(Leftover(tag, self.edition))

    def stop(self) -> None:
        """Send and keep nothing any more: the conversation is over."""
        for chunk in self._unacked.values():
            self._chunks_left.setdefault(chunk.message, 1)  # never acked from now on
        for tag, chunks in self._by_tag.items():
            if any(chunk.launched for chunk in chunks.values()):
                self._unpushed.append(Leftover(tag, self.edition))
        if self._apart_bytes:
            self._unpushed.append(Leftover(None, self.edition))
            self._apart_bytes = 0
        self._queue.clear()
        self._unacked.clear()
        self._by_tag.clear()
        self._waited_for.clear()
        self._to_clear.clear()
        self._pushed_twice.clear()
        self._ahead = Account()
        self._asked_for = Account()

    # -- what the broker says --------------------------------------------------------------

    def confirm(self, push: Push, now: float) -> None:
        """Note that the broker has taken this push."""
        if isinstance(push, Chunk):
            if push.account is not None:
                push.confirmed_at = now
                push.refused = False
        elif isinstance(push, Clearing):
            self.confirm(push.chunk, now)
        else:
            self._mute_since = None

    @property
    def is_mute(self) -> bool:
        """True while the broker refuses even control frames."""
        return self._mute_since is not None

    def refused(self, push: Push, now: float) -> None:
        """Note that the broker had no room for this push; a chunk is sent again after a pause."""
        self._stats.frames_refused += 1
        if now >= self.paused_until:
            self._shrink_window()
        self.paused_until = now + self._timing.refused_pause
        chunk = push.chunk if isinstance(push, Clearing) else push
        if isinstance(chunk, Chunk):
            if chunk.account is not None and chunk.seq in self._unacked:
                self._land(chunk)
                chunk.refused = True
                if chunk.is_rest:  # next, it goes onto another list
                    self._pushed_twice.add(chunk.tag)
                self._enqueue(chunk)
        elif self._mute_since is None:
            self._mute_since = now
        elif now - self._mute_since >= self._timing.probe_interval:
            self._take_back_idle(now)  # if these fill the broker, no control frame can say so
            self._mute_since = now

    def reconnected(self) -> None:
        """Note that the connection was lost and is back: `pump` will push everything again."""
        flying = self._all_flying()
        self._to_clear.update(chunk.tag for chunk in flying)
        self._resend(flying)

    def move_on(self, edition: int, now: float) -> None:
        """The peer reads the lists of another edition: push there what is not acked.

        Args:
            edition: as an ack says; an older one than the present is ignored.
            now: monotonic seconds.
        """
        if edition <= self.edition:
            return
        flying = self._all_flying()
        tags = dict.fromkeys([*(chunk.tag for chunk in flying), *sorted(self._pushed_twice)])
        self._unpushed.extend(Leftover(tag, self.edition) for tag in tags)
        if self._apart_bytes:
            self._unpushed.append(Leftover(None, self.edition))
        self.edition = edition
        self._to_clear.clear()
        self._resend(flying)
        self.pump(now)

    # -- what the peer waits for -----------------------------------------------------------

    def unacked_tags(self) -> list[str]:
        """Return the tags of which the peer has not acked everything."""
        return list(self._by_tag)

    def take_probe(self, probe: Probe, now: float, *, in_order: bool) -> Answer:
        """Make sure that the peer gets the tags that it waits for.

        Args:
            probe: the peer's question. Its ack was taken before.
            now: monotonic seconds.
            in_order: whether what is pushed now reaches the broker after all earlier pushes.
        """
        answer, stuck = Answer(), []
        lost: list[tuple[str, Chunk]] = []
        for tag in probe.tags:
            chunks = self._by_tag.get(tag)
            if chunks is None:
                answer.not_sent.append(tag)
                continue
            first = next(iter(chunks.values()))
            if tag in self._waited_for and first.account is None:
                stuck.append(first)
            self._waited_for[tag] = now
            flying = self._first_flying(tag)
            if flying is None:
                continue
            had_by_broker = in_order or flying.confirmed_at is not None
            if probe.says is Says.MISSES and had_by_broker:
                flying.broke = True
                if flying.times_broke + 1 >= _OFTEN_LOST:
                    answer.often_lost = len(flying.body)
            if self._should_resend(flying, probe, now):
                lost.append((tag, flying))
            elif probe.says is Says.WAITS and had_by_broker:
                answer.sent.append(tag)
        if stuck:
            self._take_back_idle(now, only_asked_for=not any(chunk.refused for chunk in stuck))
        for tag, flying in lost:
            if probe.says is Says.LOST:
                flying.times_lost += 1
                self._resend([flying])
            else:
                self._lost(tag, now)
        self.pump(now)
        if in_order and probe.says is not Says.LOST:
            tags = (tag for tag, flying in lost if flying.account is not None)
            answer.resent.extend(tags)
        return answer

    def _should_resend(self, flying: Chunk, probe: Probe, now: float) -> bool:
        """Return whether a chunk that the peer should have had is to be pushed again.

        How long its line may take, only the peer knows. After a loss, only once the broker has had
        it again for a while, and longer each time.
        """
        if probe.says is Says.WAITS:
            # The peer has had something that was pushed later, and has waited for this one since.
            ranges = probe.ack.ranges
            return (
                not flying.times_lost
                and not flying.was_queued
                and len(flying.body) <= _SMALL
                and bool(ranges)
                and ranges[-1][1] > flying.seq
            )
        return not flying.times_lost or self._had_for_long(flying, flying.times_lost - 1, now)

    def _lost(self, tag: str, now: float) -> None:
        """Push a tag again that is lost.

        One lost pop costs one list. Losses in a row mean that the broker lost more than a pop:
        then everything that it has had for a while is pushed again, less at a time.
        """
        self._losses = [at for at in self._losses if now - at < _LOSS_MEMORY]
        lost = [tag]
        if len(self._losses) >= _MOST_SINGLE:
            self._shrink_window()
            lost += [
                other for other in self._by_tag if other != tag and self._seems_lost(other, now)
            ]
        self._losses.append(now)
        for each in lost:
            self._take_back(each, lost=True)

    def _all_flying(self) -> list[Chunk]:
        """Return the chunks that may be on the broker, in the order of their numbers."""
        return [chunk for chunk in self._unacked.values() if chunk.account is not None]

    def _first_flying(self, tag: str) -> Chunk | None:
        """Return a tag's first chunk that may be on the broker.

        A list is popped from its front, so this one decides, however long the rest takes.
        """
        chunks = self._by_tag[tag].values()
        return next((chunk for chunk in chunks if chunk.account is not None), None)

    def _had_for_long(self, chunk: Chunk, doublings: int, now: float) -> bool:
        """Return whether a waiting peer should have had this chunk long ago.

        Each doubling makes that twice as long.
        """
        patience = self._timing.resend_after * 2 ** min(doublings, _MOST_DOUBLINGS)
        return chunk.confirmed_at is not None and chunk.confirmed_at + patience <= now

    def _seems_lost(self, tag: str, now: float) -> bool:
        flying = self._first_flying(tag)
        return flying is not None and self._had_for_long(flying, flying.times_lost, now)

    def _take_back_idle(self, now: float, *, only_asked_for: bool = False) -> None:
        """Take tags back from the broker for which the peer has not waited lately.

        This makes room for a chunk that must be pushed, when others fill the broker's memory or
        the account of tags that the peer waits for.
        """
        lately = now - 3 * self._timing.probe_interval
        for tag, chunks in self._by_tag.items():
            if self._waited_for.get(tag, LONG_AGO) <= lately:
                accounts = {chunk.account for chunk in chunks.values()}
                if self._asked_for in accounts or (self._ahead in accounts and not only_asked_for):
                    self._waited_for.pop(tag, None)
                    self._take_back(tag)

    def _take_back(self, tag: str, *, lost: bool = False) -> None:
        """Remove a tag's list from the broker, and queue its chunks again."""
        flying = [chunk for chunk in self._by_tag[tag].values() if chunk.account is not None]
        for chunk in flying:
            chunk.times_lost += lost
        self._unpushed.append(Leftover(tag, self.edition))
        self._to_clear.discard(tag)
        self._resend(flying)

    def _resend(self, chunks: list[Chunk]) -> None:
        """Put chunks that may be on the broker back into the queue."""
        self._stats.frames_resent += len(chunks)
        for chunk in chunks:
            self._land(chunk)
            chunk.times_broke += chunk.broke
            chunk.broke = False
            self._pushed_twice.add(chunk.tag)
            self._rest_pushed_twice |= chunk.is_rest
            self._enqueue(chunk)

    # -- the queue and the windows ---------------------------------------------------------

    @property
    def resumes_at(self) -> float | None:
        """When the pause ends that queued chunks wait for; None if none wait."""
        return self.paused_until if self._queue and self.paused_until > LONG_AGO else None

    def pump(self, now: float) -> None:
        """Push what the windows admit, beginning with tags that the peer waits for."""
        if self._queue and now >= self.paused_until:
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
        if now < self.paused_until:
            return
        self.paused_until = LONG_AGO
        while self._queue:
            chunk = self._unacked.get(self._queue[0])
            if chunk is not None:
                if chunk.account is None:
                    if not self._ahead.admits(chunk.size, self._window):
                        return
                    self._launch(chunk, self._ahead)
                chunk.queued = False
            heapq.heappop(self._queue)

    def _enqueue(self, chunk: Chunk) -> None:
        if not chunk.queued:
            chunk.queued = chunk.was_queued = True
            heapq.heappush(self._queue, chunk.seq)

    def _launch(self, chunk: Chunk, account: Account) -> None:
        chunk.account = account
        account.bytes += chunk.size
        if chunk.launched:
            chunk.again = True
        else:
            chunk.acked = self._received.cumulative
            chunk.launched = True
        if chunk.tag in self._to_clear:
            self._to_clear.discard(chunk.tag)
            self._unpushed.append(Clearing(chunk))
        else:
            self._unpushed.append(chunk)

    def _land(self, chunk: Chunk) -> None:
        """Remove the chunk from its account: it no longer counts as on the broker."""
        if chunk.account is not None:
            chunk.account.bytes -= chunk.size
            chunk.account = None
        chunk.confirmed_at = None

    def _shrink_window(self) -> None:
        smallest = min(_fine_bytes(self._timing), self._timing.window_bytes)
        self._window = max(smallest, self._window // 2)
        self._acked_since_loss = 0

    def _grow_window(self, acked: int) -> None:
        """Grow the window by a chunk after each full window that got through without a loss."""
        self._acked_since_loss += acked
        if self._acked_since_loss >= self._window:
            self._acked_since_loss = 0
            self._window = min(self._timing.window_bytes, self._window + self._timing.chunk_bytes)


def _fine_bytes(timing: Timing) -> int:
    return min(timing.chunk_bytes, timing.fine_chunk_bytes)


def _most_whole(timing: Timing) -> int:
    """Return the size in bytes up to which no message is ever cut."""
    whole = chunking.most_uncut(timing.least_chunk_bytes, _fine_bytes(timing))
    if timing.part_bytes:
        whole = min(whole, max(2 * timing.part_bytes, 4 * (timing.frame_cost - 2)) - 1)
    return whole
