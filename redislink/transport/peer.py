"""`Peer`: an endpoint's state for one other party."""

from __future__ import annotations

from collections.abc import Callable

from redislink.protocol import list_names
from redislink.protocol.delivery import Delivery, Leftover
from redislink.protocol.fragments import Fragments
from redislink.protocol.frame import Frame
from redislink.protocol.seal import AnyEdition, Codec
from redislink.transport.lanes import Lanes
from redislink.transport.rests import Rests

Encode = Callable[[bytes, Frame, bytes | memoryview], tuple[bytes, bytes | memoryview]]
Party = str | int
"""A party's name or its rank."""
_CONTROL: bytes = list_names.CONTROL_TAG.encode()
_REST: bytes = list_names.REST_TAG.encode()


class Peer:
    """One other party: its conversation, its keys, and the names of its lists.

    Attributes:
        name: the party's name.
        codec: seals elements for the peer, and opens elements from it.
        delivery: the conversation. Only `Core.talk` and the fast paths touch it, with the lock.
        kept: the tags for which ``delivery`` holds a message, or a part of one. ``tag in kept``
            needs no lock, because it is one step of the interpreter. A receive sets the purpose
            of its wait before it looks, so a message that arrives later interrupts the wait.
        lanes: the BLPOPs for the peer's next messages.
        rests: the BLPOPs for the rests of its mid-sized messages.
        fragments: collects the fragments of elements that the peer had to split.
        out_prefix, in_prefix: the prefixes of the names of the data lists to and from the peer,
            of the editions that are in use. Only `follow` changes them.
        control_out, control_in: the names of the control lists to the peer and from it.
    """

    def __init__(
        self,
        name: str,
        prefixes: tuple[bytes, bytes],
        delivery: Delivery,
        codec: Codec,
        make_lanes: Callable[[bytes], Lanes],
        make_rests: Callable[[bytes], Rests],
        most_in_fragments: int,
    ) -> None:
        """Not for users.

        Args:
            name, delivery, codec: see the attributes.
            prefixes: the prefixes of the names of the lists to the peer and from it.
            make_lanes: given such a prefix, makes the lanes for those lists.
            make_rests: given the name of the list of rests, makes what reads it.
            most_in_fragments: how many bytes of the peer's fragments to keep at most.
        """
        self.name = name
        self.codec = codec
        self.out_prefix, self.in_prefix = self._first_prefixes = prefixes
        self.delivery = delivery
        self.kept = delivery.kept
        self.lanes = make_lanes(self.in_prefix)
        self.rests = make_rests(self.rests_in)
        self.fragments = Fragments(most_in_fragments)
        self.control_out = self.out_prefix + _CONTROL
        self.control_in = self.in_prefix + _CONTROL

    def in_list(self, tag: str) -> bytes:
        """Return the name of the list from the peer for messages with this tag."""
        return self.in_prefix + list_names.encode_tag(tag)

    def out_list(self, tag: str) -> bytes:
        """Return the name of the list to the peer for messages with this tag."""
        return self.out_prefix + list_names.encode_tag(tag)

    @property
    def rests_out(self) -> bytes:
        """The name of the list of rests to the peer."""
        return self.out_prefix + _REST

    @property
    def rests_in(self) -> bytes:
        """The name of the list of rests from the peer."""
        return self.in_prefix + _REST

    def to_list(self, tag: str) -> tuple[bytes, Encode]:
        """Return the name of the list to the peer for this tag, and what encodes frames for it.

        See `follow` for the order of the two.
        """
        name = self.out_list(tag)
        return name, self.codec.encode_parts

    def left_list(self, leftover: Leftover) -> bytes:
        """Return the name of a list to remove."""
        prefix = list_names.of_edition(self._first_prefixes[0], leftover.edition)
        return prefix + (_REST if leftover.tag is None else list_names.encode_tag(leftover.tag))

    def follow(self) -> bool:
        """Use the editions of the data lists that the delivery says. Needs the core's lock.

        Whoever sends takes the name of a list first, and the codec after that; here the codec
        changes first. So no name of a later edition meets the codec that would authenticate it.

        Returns:
            Whether we read another edition than before.
        """
        first_out, first_in = self._first_prefixes
        out_prefix = list_names.of_edition(first_out, self.delivery.edition_out)
        in_prefix = list_names.of_edition(first_in, self.delivery.edition_in)
        in_before = self.in_prefix
        if (out_prefix, in_prefix) != (self.out_prefix, in_before):
            if not isinstance(self.codec, AnyEdition):
                self.codec = AnyEdition(self.codec, len(first_out))
            self.out_prefix, self.in_prefix = out_prefix, in_prefix
        return in_prefix != in_before
