"""What a dishonest broker can do to the elements that pass through it, as one catalogue.

`Attacker` decides, `hostile_session` plays whole sessions in memory against it, and
`hostile_proxy` puts it between real endpoints and a real server. It knows all that a broker
knows: every name and every byte, of this session and of older ones, and no key.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redislink.errors import FrameError
from redislink.protocol import list_names
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Fin,
    Frame,
    Heartbeat,
    Hello,
    Probe,
    Says,
    Sealed,
    decode_untrusted,
    encode,
    encode_header,
)

Pushed = tuple[bytes, bytes]
"""Name of a list, and an element."""

LOSSES: Final = ("drop", "delay", "flush")
"""What an honest broker may do as well."""
REPEATS: Final = ("double", "replay", "replay older", "replay hello")
CHANGES: Final = ("truncate", "extend", "flip", "flip each", "splice", "swap bodies")
MOVES: Final = ("move tag", "move peer", "move epoch", "move to control", "reflect")
FORGERIES: Final = ("forge control", "forge sealed", "forge data", "forge hello", "junk")
EVERY_KIND: Final = (*LOSSES, *REPEATS, *CHANGES, *MOVES, *FORGERIES)
OF_OLDER: Final = ("replay older", "replay hello", "move epoch")
"""They take what an older session had on its lists."""
ADDS_ONLY: Final = (*REPEATS, *FORGERIES, "flip each")
"""The true elements come as well, so that the right result must come too."""


class Attacker:
    """Changes what is pushed, and pushes on its own, while ``active``.

    Attributes:
        seen: everything that was pushed, oldest first.
        done: how often it has struck, by kind.
    """

    def __init__(
        self,
        rng: random.Random,
        kinds: Sequence[str],
        rate: float,
        older: Sequence[Pushed] = (),
    ) -> None:
        """Args: which attacks, how often (0 to 1), what older sessions had on their lists."""
        self._rng = rng
        self._rate = rate
        self._older = list(older)
        self._held: list[Pushed] = []
        self._on_push: dict[str, Callable[[bytes, bytes], list[Pushed]]] = {
            "drop": lambda _, __: [],
            "delay": self._delay,
            "double": lambda name, element: [(name, element)] * rng.randint(2, 4),
            "truncate": lambda name, element: [(name, element[: rng.randrange(len(element))])],
            "extend": lambda name, element: [(name, element + rng.randbytes(rng.randint(1, 40)))],
            "flip": lambda name, element: [(name, self._flipped(element))],
            "flip each": self._flip_each,
            "splice": self._splice,
            "swap bodies": self._swap_bodies,
            "move tag": self._move_tag,
            "move peer": self._move_peer,
            "move epoch": self._move_epoch,
            "move to control": self._move_to_control,
            "reflect": self._reflect,
        }
        self._on_tick: dict[str, Callable[[], list[Pushed]]] = {
            "flush": self._flush,
            "replay": lambda: self._some(self.seen),
            "replay older": self._replay_older,
            "replay hello": self._replay_hello,
            "forge control": self._forge_control,
            "forge sealed": self._forge_sealed,
            "forge data": self._forge_data,
            "forge hello": self._forge_hello,
            "junk": self._junk,
        }
        self._pushing = [kind for kind in kinds if kind in self._on_push]
        self._ticking = [kind for kind in kinds if kind in self._on_tick]
        self.active = True
        self.wants_flush = False
        """Set when all lists are to be emptied; whoever does it takes it back."""
        self.seen: list[Pushed] = []
        self.done: dict[str, int] = dict.fromkeys(kinds, 0)

    def on_push(self, name: bytes, element: bytes) -> list[Pushed]:
        """What to push instead."""
        self.seen.append((name, element))
        if not self.active or not self._pushing or self._rng.random() >= self._rate:
            return [(name, element)]
        kind = self._rng.choice(self._pushing)
        self.done[kind] += 1
        return self._on_push[kind](name, element)

    def on_tick(self) -> list[Pushed]:
        """What to push without being asked to; call it now and then."""
        released, self._held = self._held, []
        if not self.active:
            return released
        if self._rng.random() < 0.7:
            released, self._held = [], released
        if self._ticking and self.seen and self._rng.random() < self._rate:
            kind = self._rng.choice(self._ticking)
            self.done[kind] += 1
            released += self._on_tick[kind]()
        return released

    # -- on what is pushed -----------------------------------------------------------------

    def _delay(self, name: bytes, element: bytes) -> list[Pushed]:
        self._held.append((name, element))
        return []

    def _flipped(self, element: bytes) -> bytes:
        changed = bytearray(element)
        changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _flip_each(self, name: bytes, element: bytes) -> list[Pushed]:
        """Every byte in turn, and the true one at last."""
        if name.endswith(list_names.HELLO_TAG.encode()):
            return [(name, element)]  # such a list holds one element alone
        flipped = []
        for place in range(len(element)):
            changed = bytearray(element)
            changed[place] ^= self._rng.randint(1, 255)
            flipped.append((name, bytes(changed)))
        return [*flipped, (name, element)]

    def _splice(self, name: bytes, element: bytes) -> list[Pushed]:
        """This header with another's body, and the other way round."""
        _, other = self._rng.choice(self.seen)
        (head, body), (other_head, other_body) = _halves(element), _halves(other)
        return [(name, head + other_body), (name, other_head + body)]

    def _swap_bodies(self, name: bytes, element: bytes) -> list[Pushed]:
        same = [e for n, e in self.seen[-200:] if n == name and e != element]
        if not same:
            return [(name, element)]
        other = self._rng.choice(same)
        (head, body), (other_head, other_body) = _halves(element), _halves(other)
        return [(name, other_head + body), (name, head + other_body)]

    def _move_tag(self, name: bytes, element: bytes) -> list[Pushed]:
        return self._moved(name, element, lambda a, b: a[:4] == b[:4])

    def _move_peer(self, name: bytes, element: bytes) -> list[Pushed]:
        """To the list with the same tag of another source or destination."""
        return self._moved(name, element, lambda a, b: a[4] == b[4] and a[1:3] != b[1:3])

    def _move_epoch(self, name: bytes, element: bytes) -> list[Pushed]:
        """An old session's element with the same path, but for its epoch, in its place."""
        path = list_names.parse_list_untrusted(name)
        olds = [e for n, e in self._older if _but_epoch(list_names.parse_list_untrusted(n), path)]
        return [(name, self._rng.choice(olds or [element]))]

    def _move_to_control(self, name: bytes, element: bytes) -> list[Pushed]:
        """Data onto the control list and control frames onto a data list."""
        is_control = name.endswith(list_names.CONTROL_TAG.encode())
        wanted = b":t" if is_control else list_names.CONTROL_TAG.encode()
        return self._moved(name, element, lambda a, b: a[:4] == b[:4], wanted)

    def _moved(
        self,
        name: bytes,
        element: bytes,
        fits: Callable[[tuple[str, ...], tuple[str, ...]], bool],
        containing: bytes = b"",
    ) -> list[Pushed]:
        path = list_names.parse_list_untrusted(name)
        names = {n for n, _ in self.seen if n != name and containing in n}
        names = {n for n in names if fits(path, list_names.parse_list_untrusted(n))}
        return [(self._rng.choice(sorted(names) or [name]), element)]

    def _reflect(self, name: bytes, element: bytes) -> list[Pushed]:
        session, dst, src, epoch, tag = list_names.parse_list_untrusted(name)
        prefix = list_names.inbox_prefix(session, src, dst, epoch)
        encoded = tag.encode() if tag.startswith("!") else list_names.encode_tag(tag)
        return [(prefix + encoded, element)]

    # -- on its own ------------------------------------------------------------------------

    def _some(self, pushed: Sequence[Pushed]) -> list[Pushed]:
        return [self._rng.choice(pushed) for _ in range(self._rng.randint(1, 4))] if pushed else []

    def _flush(self) -> list[Pushed]:
        self.wants_flush = True
        self._held.clear()
        return []

    def _replay_older(self) -> list[Pushed]:
        """Elements of an older session, on the lists of this one."""
        replayed = []
        for name, element in self._some(self._older):
            path = list_names.parse_list_untrusted(name)
            now = {n for n, _ in self.seen if _but_epoch(list_names.parse_list_untrusted(n), path)}
            replayed += [(target, element) for target in sorted(now)]
        return replayed

    def _replay_hello(self) -> list[Pushed]:
        """A list of hellos holds one, so this replaces what is there."""
        hellos = [p for p in (*self._older, *self.seen) if list_names.HELLO_TAG.encode() in p[0]]
        return self._some(hellos)[:1]

    def _lists(self, containing: bytes) -> list[bytes]:
        return sorted({name for name, _ in self.seen if containing in name})

    def _onto_control(self, element: bytes) -> list[Pushed]:
        names = self._lists(list_names.CONTROL_TAG.encode())
        return [(self._rng.choice(names), element)] if names else []

    def _forge_control(self) -> list[Pushed]:
        ack = AckState(self._rng.choice([0, 1, 1000]), (), self._rng.choice([0, 1, 1000]))
        frames: list[Frame] = [Abort("forged"), Fin(0, ack), Fin(0, ack, True), Ack(ack)]
        frames += [Heartbeat(ack, 80_000_000), *(Probe(("t0",), ack, says) for says in Says)]
        frame = self._rng.choice(frames)
        return self._onto_control(encode(frame))

    def _forge_sealed(self) -> list[Pushed]:
        """As a peer that has other keys would: well formed, and with a likely number."""
        number = self._rng.choice([1, 2, self._rng.randint(1, 100), 1 << 62])
        header, inner = encode_header(Sealed(number)), encode(Abort("forged"))
        names = self._lists(list_names.CONTROL_TAG.encode())
        name = self._rng.choice(names) if names else b""
        return self._onto_control(header + _seal(self._rng, number, inner, name + header))

    def _forge_data(self) -> list[Pushed]:
        rest = list_names.REST_TAG.encode()
        names = [n for n in self._lists(b"") if n.endswith(rest) or not n.partition(b":!")[1]]
        if not names:
            return []
        name, seq = self._rng.choice(names), self._rng.randint(3, 40)
        frames = [Data(seq, acked=seq), *(Data(seq, part, 3, apart=True) for part in range(3))]
        header = encode_header(self._rng.choice(frames))
        sealed = header + _seal(self._rng, seq, b"a forged payload", name + header)
        return [(name, self._rng.choice([sealed, header + b"a forged payload"]))]

    def _forge_hello(self) -> list[Pushed]:
        """Headers that agree, so that it is no mismatch, with all else made up."""
        name = self._rng.choice(self._lists(list_names.HELLO_TAG.encode()))
        frames = [decode_untrusted(e)[0] for n, e in self.seen if n == name]
        theirs = self._rng.choice([frame for frame in frames if isinstance(frame, Hello)])
        instance = self._rng.choice([theirs.instance, self._rng.randbytes(8)])
        echo = self._rng.choice([theirs.echo, b"", self._rng.randbytes(8)])
        hello = Hello(theirs.digest, instance, echo, True, self._rng.randrange(4))
        return [(name, encode_header(hello) + self._rng.randbytes(self._rng.choice([0, 32, 65])))]

    def _junk(self) -> list[Pushed]:
        name = self._rng.choice(self._lists(b""))
        return [(name, self._rng.randbytes(self._rng.choice([0, 1, 3, 50, 500])))]


def _but_epoch(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one[:3] == other[:3] and one[4] == other[4]


def _halves(element: bytes) -> tuple[bytes, bytes]:
    """Header and body."""
    try:
        _, body = decode_untrusted(element)
    except FrameError:
        return element, b""
    return element[: len(element) - len(body)], bytes(body)


def _seal(rng: random.Random, number: int, plain: bytes, authenticated: bytes) -> bytes:
    return AESGCM(rng.randbytes(32)).encrypt(number.to_bytes(12, "big"), plain, authenticated)
