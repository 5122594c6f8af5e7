"""`Peer`: what an endpoint knows of one other party."""

from __future__ import annotations

from collections.abc import Callable

from redislink.protocol import list_names
from redislink.protocol.delivery import Delivery
from redislink.protocol.fragments import Fragments
from redislink.protocol.seal import Codec
from redislink.transport.lanes import Lanes

Party = str | int
"""A party's name or its rank."""
_CONTROL: bytes = list_names.CONTROL_TAG.encode()


class Peer:
    """One other party: its conversation, its keys, and the names of its lists.

    Attributes:
        name: of the party.
        codec: seals what goes to the peer and opens what comes from it.
        delivery: the conversation. Only `Core.talk` and the short ways touch it, with the lock.
        kept: tags of which delivery has a message, or a part of one. Looking whether a tag is in
            it takes no lock, as that is one step of the interpreter: whoever asks has set the
            purpose of its wait before, so that whatever comes later interrupts it.
        lanes: BLPOPs for the peer's next messages.
        fragments: of the peer's elements that had to be cut.
        out_prefix, in_prefix: what the names of the lists to and from the peer begin with.
        control_in: the control list from the peer.
    """

    def __init__(
        self,
        name: str,
        prefixes: tuple[bytes, bytes],
        delivery: Delivery,
        codec: Codec,
        make_lanes: Callable[[bytes], Lanes],
        most_in_fragments: int,
    ) -> None:
        """Not for users.

        Args:
            name, delivery, codec: as the attributes.
            prefixes: of the names of the lists to the peer and from it.
            make_lanes: makes the lanes for lists with this prefix.
            most_in_fragments: bytes of the peer's fragments that are kept.
        """
        self.name = name
        self.codec = codec
        self.out_prefix, self.in_prefix = prefixes
        self.delivery = delivery
        self.kept = delivery.kept
        self.lanes = make_lanes(self.in_prefix)
        self.fragments = Fragments(most_in_fragments)
        self.control_in = self.in_prefix + _CONTROL

    def in_list(self, tag: str) -> bytes:
        """Name of the list on which messages with this tag come."""
        return self.in_prefix + list_names.encode_tag(tag)

    def out_list(self, tag: str | None) -> bytes:
        """Name of the list for messages with this tag; None is the control list."""
        return self.out_prefix + (_CONTROL if tag is None else list_names.encode_tag(tag))
