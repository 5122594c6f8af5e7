"""`SealedHandshake`: two parties authenticate each other and agree on keys over a hostile broker.

The party of lower rank initiates. The steps, each a HELLO frame:

0. either party: "this run of mine is here, and has heard that run of yours"; proves nothing
1. initiator: first KK message; its sealed payload names both runs
2. responder: second KK message; its sealed payload says whether it is free for a session
3. initiator: confirmation, with a key that only this exchange yields

The handshake is complete for the initiator at step 2, and for the responder at step 3: until then,
step 1 might come from a dead run of the initiator. Steps 0 to 2 are sent again until answered. The
initiator sends step 3 again whenever the responder shows that it lacks it.

Rules:
- A message that does not open changes nothing. Nor does one that a dead run or the broker replays:
  step 1 is valid for one run of the responder only, steps 2 and 3 for one exchange only.
- A header is a hint. A mismatch in it becomes an error only after `MismatchGrace`.
- If the headers agree, but for `_UNOPENED_SECONDS` messages keep failing to open and none opens,
  both parties raise an error: that is how different pre-shared keys show. The initiator notices
  that the peer hears this run and does not answer. A pause of `_UNOPENED_GAP` restarts the count,
  as an outage of the broker looks the same.
- Of two exchanges with runs of one peer, the one begun later wins, because the other run is dead.
  So finishing an exchange forgets all that began before it.
- Until `settle`, a new run of a peer simply replaces the old one; afterwards the peer counts as
  restarted. Only an exchange that the new run has finished proves this, never a hint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redislink.errors import FrameError, SealError, SecurityMismatch
from redislink.protocol.frame import PROTOCOL_VERSION, Frame, Hello
from redislink.protocol.handshake import Message, MismatchGrace
from redislink.protocol.noise_kk import KkInitiator, KkResponder, KkSecrets
from redislink.protocol.noise_state import NoiseConfig
from redislink.protocol.seal import Codec, SealedCodec

_NAME_BYTES: Final = 16
_MOST_UNDER_WAY: Final = 16
_UNANSWERED: Final = 2
_UNOPENED_SECONDS: Final = 10.0
_UNOPENED_GAP: Final = 3.0
_CONFIRM_NONCE: Final = bytes(12)
_FREE: Final = b"\0"
_ENGAGED: Final = b"\1"


def prologue(session: str, initiator: str, responder: str, digest: bytes) -> bytes:
    """Return what must be the same at both parties; otherwise nothing opens."""
    packed: bytes = msgpack.packb(
        ["redislink", PROTOCOL_VERSION, session, initiator, responder, digest], use_bin_type=True
    )
    return packed


@dataclass(frozen=True, slots=True, repr=False)
class _Exchange:
    """The result of an exchange that the initiator has finished, or the responder has answered."""

    name: bytes
    peer_instance: bytes
    secrets: KkSecrets
    answer: bytes = b""

    def confirmation(self) -> bytes:
        return AESGCM(self.secrets.confirm_key).encrypt(_CONFIRM_NONCE, b"", self.name)

    def confirms_untrusted(self, confirmation: bytes) -> bool:
        try:
            AESGCM(self.secrets.confirm_key).decrypt(_CONFIRM_NONCE, confirmation, self.name)
        except InvalidTag:
            return False
        return True


@dataclass(slots=True, repr=False)
class _Pair:
    """The handshake with one peer.

    Attributes:
        heard: the instance in the header of the peer's last hello; a hint.
        done: the exchange whose keys are used.
        begun: the initiator's exchanges, by the peer's instance, oldest first.
        answered: the responder's exchanges, by name, oldest first.
        not_opened: number of messages that did not open.
        unanswered: how often the peer has heard us and did not answer step 1.
        unopened_since: time of the first of these failures since something last opened.
        unopened_last: time of the latest of these failures.
    """

    config: NoiseConfig
    initiates: bool
    mismatch: MismatchGrace
    heard: bytes = b""
    done: _Exchange | None = None
    codec: SealedCodec | None = None
    restarted: bool = False
    begun: dict[bytes, KkInitiator] = field(default_factory=dict)
    answered: dict[bytes, _Exchange] = field(default_factory=dict)
    not_opened: int = 0
    unanswered: int = 0
    unopened_since: float | None = None
    unopened_last: float = 0.0


class SealedHandshake:
    """One party's sealed handshakes with all its peers; see `Handshake`."""

    def __init__(
        self,
        session: str,
        party: str,
        peers: Iterable[str],
        digest: bytes,
        instance: bytes,
        *,
        ranks: dict[str, int],
        private_key: bytes,
        public_keys: dict[str, bytes],
        random_bytes: Callable[[int], bytes],
        psks: dict[str, bytes] | None = None,
    ) -> None:
        """Args:
        session: the session's name.
        party: this party's name.
        peers: the other parties' names, in rank order.
        digest: digest of the cluster file, 32 bytes.
        instance: this run, 8 random bytes.
        ranks: the rank of every party, by name.
        private_key: this party's X25519 private key, 32 bytes.
        public_keys: the peers' public keys by name, 32 bytes each.
        random_bytes: returns the given number of fresh random bytes, for ephemeral keys.
        psks: pre-shared keys by peer, 32 bytes each; None for no such keys.
        """
        self._party = party
        self._digest = digest
        self._instance = instance
        self._random_bytes = random_bytes
        self._settled = False
        self._pairs: dict[str, _Pair] = {}
        for peer in peers:
            initiates = ranks[party] < ranks[peer]
            roles = (party, peer) if initiates else (peer, party)
            self._pairs[peer] = _Pair(
                NoiseConfig(
                    private_key,
                    public_keys[peer],
                    prologue(session, *roles, digest),
                    (psks or {}).get(peer),
                ),
                initiates,
                MismatchGrace(session, party, peer),
            )

    @property
    def missing(self) -> list[str]:
        return [peer for peer, pair in self._pairs.items() if pair.done is None]

    def runs(self) -> dict[str, bytes]:
        done = {peer: pair.done for peer, pair in self._pairs.items()}
        met = {peer: exchange.peer_instance for peer, exchange in done.items() if exchange}
        return {self._party: self._instance} | met

    @property
    def not_opened(self) -> int:
        return sum(pair.not_opened for pair in self._pairs.values())

    def settle(self) -> None:
        self._settled = True

    def hello_for(self, peer: str) -> Message:
        pair = self._pairs[peer]
        if pair.initiates:
            return self._initiate(pair)
        if pair.done is None and pair.answered:
            return self._hello(pair, 2, next(reversed(pair.answered.values())).answer)
        return self._hello(pair, 0)

    def receive_untrusted(self, peer: str, frame: Frame, body: bytes, now: float) -> Message | None:
        if not isinstance(frame, Hello):
            raise FrameError(f"a {frame.kind.name} frame where a HELLO belongs")
        if frame.instance == self._instance:
            raise FrameError("a hello that this party sent itself")
        pair = self._pairs[peer]
        if pair.restarted:
            return None  # this run is ending: the peer is to meet our next one
        if pair.done is None:
            pair.mismatch.check(frame, self._hello(pair, 0)[0], now)
        pair.heard = frame.instance
        hears_us = frame.echo == self._instance
        if pair.initiates:
            if frame.step == 0:
                if hears_us and frame.instance in pair.begun:
                    pair.unanswered += 1
                    self._check_opens(peer, pair, now)
                return self._initiate(pair)
            return self._finish(pair, body) if frame.step == 2 else None
        if frame.step == 3:
            self._take_confirmation(pair, body)
            return None
        if not hears_us:
            return self._hello(pair, 0)  # step 1 must name this run, so announce it
        if frame.step != 1:
            return None
        failures = pair.not_opened
        try:
            return self._answer_first(pair, body)
        except SealError:
            if pair.not_opened > failures:
                self._check_opens(peer, pair, now)
            raise

    def has_restarted(self, peer: str) -> bool:
        return self._pairs[peer].restarted

    def epoch(self, peer: str) -> str:
        exchange = self._done(peer)
        named = hashlib.sha256(b"redislink epoch 1\0" + exchange.secrets.handshake_hash)
        return named.hexdigest()[:16]

    def codec(self, peer: str) -> Codec:
        pair = self._pairs[peer]
        if pair.codec is None:
            # Only ever one: a second codec with the same keys would reuse its nonces.
            pair.codec = SealedCodec(self._done(peer).secrets.keys)
        return pair.codec

    def trouble(self, peer: str) -> str:
        pair = self._pairs[peer]
        if pair.mismatch.text:
            return pair.mismatch.text
        has = "none" if pair.config.psk is None else "one"
        remedy = (
            "check both key files (redislink fingerprint), and that both parties have the same "
            f"pre-shared key for each other, or none (this party has {has} for {peer})"
        )
        if pair.not_opened:
            return f"{peer}'s hellos do not open with its public key in the cluster file: {remedy}"
        if pair.unanswered >= _UNANSWERED:
            return f"{peer} is running but does not answer the key exchange: {remedy}"
        return ""

    # -- internals -------------------------------------------------------------------------

    def _done(self, peer: str) -> _Exchange:
        exchange = self._pairs[peer].done
        if exchange is None or not self._settled:
            raise KeyError(f"{peer} has not said hello, or settle was not called")
        return exchange

    def _check_opens(self, peer: str, pair: _Pair, now: float) -> None:
        """Note that a message did not open, here or at the peer; raise after too long a time."""
        if pair.done is not None or pair.answered:
            return
        if pair.unopened_since is None or now - pair.unopened_last > _UNOPENED_GAP:
            pair.unopened_since = now
        pair.unopened_last = now
        if now - pair.unopened_since >= _UNOPENED_SECONDS:
            raise SecurityMismatch(f"{self._party}: {self.trouble(peer)}")

    def _hello(self, pair: _Pair, step: int, body: bytes = b"") -> Message:
        return Hello(self._digest, self._instance, pair.heard, sealed=True, step=step), body

    def _initiate(self, pair: _Pair) -> Message:
        """Return what an initiator sends to the responder's run that it last heard of."""
        if pair.done is not None and pair.heard == pair.done.peer_instance:
            return self._confirm(pair, pair.done)
        if not pair.heard:
            return self._hello(pair, 0)
        begun = pair.begun.get(pair.heard)
        if begun is None:
            # A new ephemeral key for each payload, so that no key seals two payloads.
            payload = self._instance + pair.heard
            begun = KkInitiator(pair.config, self._random_bytes(32), payload)
            _add(pair.begun, pair.heard, begun)
        return self._hello(pair, 1, begun.first)

    def _confirm(self, pair: _Pair, exchange: _Exchange) -> Message:
        return self._hello(pair, 3, exchange.name + exchange.confirmation())

    def _finish(self, pair: _Pair, body: bytes) -> Message | None:
        name = body[:_NAME_BYTES]
        if pair.done is not None and name == pair.done.name:
            return self._confirm(pair, pair.done)
        begun = next((item for item in pair.begun.items() if item[1].name == name), None)
        if begun is None:
            return self._initiate(pair)  # it answers a dead run, or an exchange that we forgot
        instance, attempt = begun
        try:
            payload, secrets = attempt.finish_untrusted(body[_NAME_BYTES:])
        except SealError:
            pair.not_opened += 1
            raise
        if payload not in (_FREE, _ENGAGED):
            raise SealError("an answer that is neither free nor engaged")
        pair.unopened_since = None
        _forget_until(pair.begun, instance)
        exchange = _Exchange(name, instance, secrets)
        if self._settled:
            pair.restarted = pair.done is not None and pair.done.peer_instance != instance
        elif payload == _FREE:
            pair.done = exchange
        if payload == _FREE and self._settled:
            return None  # without our confirmation, it keeps waiting for our next run
        # Confirm even if the peer is still in a session with an earlier run of this party: it
        # proves to the peer that this run is new, so it ends that session.
        return self._confirm(pair, exchange)

    def _answer_first(self, pair: _Pair, first: bytes) -> Message | None:
        name = hashlib.sha256(first).digest()[:_NAME_BYTES]
        if pair.done is not None and pair.done.name == name:
            return None
        known = pair.answered.get(name)
        if known is None:
            try:
                responder = KkResponder(pair.config, self._random_bytes(32), first)
            except SealError:
                pair.not_opened += 1
                raise
            size = len(self._instance)
            instance, echo = responder.payload[:size], responder.payload[size:]
            if echo != self._instance or len(instance) != size:
                raise SealError("a first message for another run of this party")
            engaged = (
                self._settled and pair.done is not None and pair.done.peer_instance != instance
            )
            second, secrets = responder.answer(_ENGAGED if engaged else _FREE)
            known = _Exchange(name, instance, secrets, name + second)
            pair.unopened_since = None
            _add(pair.answered, name, known)
        return self._hello(pair, 2, known.answer)

    def _take_confirmation(self, pair: _Pair, body: bytes) -> None:
        name, confirmation = body[:_NAME_BYTES], body[_NAME_BYTES:]
        if pair.done is not None and pair.done.name == name:
            return
        exchange = pair.answered.get(name)
        if exchange is None:
            raise SealError("a confirmation of an exchange that is not under way")
        if not exchange.confirms_untrusted(confirmation):
            pair.not_opened += 1
            raise SealError("a confirmation that does not open")
        _forget_until(pair.answered, name)
        if not self._settled:
            pair.done = exchange
        elif pair.done is not None and pair.done.peer_instance != exchange.peer_instance:
            pair.restarted = True


def _add(under_way: dict[bytes, Any], key: bytes, value: object) -> None:
    """Add an exchange; the number is limited, as the broker can make a party begin any number."""
    while len(under_way) >= _MOST_UNDER_WAY:
        del under_way[next(iter(under_way))]
    under_way[key] = value


def _forget_until(under_way: dict[bytes, Any], key: bytes) -> None:
    """Forget this exchange, and all that began before it."""
    for older in list(under_way):
        del under_way[older]
        if older == key:
            return
