"""Names of the Redis lists: ``rl:{<session>:<dst>}:<src>:<epoch>:<tag>``.

Rules:
- The hash tag ``{session:dst}`` keeps one party's whole inbox in one Cluster slot, so that a BLPOP
  of several lists is legal, and spreads the parties over the nodes.
- No encoded part contains any of ``{ } * ? [ ] \\`` or ``!``, and only the tag, which comes last,
  contains ``:``. So no two (session, src, dst, epoch, tag) share a list. Nor can a tag trick an
  ACL glob, whose ``*`` matches ``:`` and ``}`` too: its only ``*`` is at the end.
- The transport's own lists have a tag that begins with ``!``; no application tag encodes to that.
- The data lists of a pair have *editions*. Edition 0 has the bare epoch in its names; the others
  have ``<epoch>.<edition>``. A receiver moves on to the next edition when its broker may still
  serve BLPOPs of connections that it has lost: nobody pushes onto the lists that those wait for.
"""

from __future__ import annotations

import re
import string
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from redislink import native
from redislink.errors import ConfigError, FrameError, UsageError

PREFIX: Final = "rl"
HELLO_TAG: Final = "!hello"
CONTROL_TAG: Final = "!control"
CLAIM_TAG: Final = "!claim"
AGENT_TAG: Final = "!agent"
DOCTOR_TAG: Final = "!doctor"
STATUS_TAG: Final = "!status"
MARK_TAG: Final = "!mark"
MOVE_TAG: Final = "!move"
REST_TAG: Final = "!rest"
OFFERS_TAG: Final = "!offers"
JOBS_TAG: Final = "!jobs"
ANSWERS_TAG: Final = "!answers"
LETTER_TAGS: Final = (OFFERS_TAG, JOBS_TAG, ANSWERS_TAG)
"""Of the lists of letters about jobs: from a driver to an agent, between agents, to a driver."""
NO_EPOCH: Final = "0"
"""Takes the place of the epoch in names that have none, such as those of hellos and claims."""

MAX_TAG_BYTES: Final = 512
"""Longest tag, in UTF-8 bytes before encoding. yacl's grow by about 4 bytes per ``spawn``."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_EPOCH: Final = re.compile(r"0|[0-9a-f]{16}(?:\.[1-9][0-9]{0,9})?", re.ASCII)
_ENCODED_TAG: Final = re.compile(r"(?:[A-Za-z0-9_.~>,/:-]|%[0-9A-F]{2})*", re.ASCII)
_SAFE: Final = ">,/:"
_PLAIN: Final = (string.ascii_letters + string.digits + "_.~>,/:-").encode()
_CONTROL_TAGS: Final = frozenset(
    {
        *(HELLO_TAG, CONTROL_TAG, CLAIM_TAG, AGENT_TAG, DOCTOR_TAG, STATUS_TAG),
        *(MARK_TAG, MOVE_TAG, REST_TAG),
        *LETTER_TAGS,
    }
)


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it may name a party, a session or a device.

    Names become parts of file names and arguments of commands, so none is an option (``-rf``),
    a directory (``..``) or a hidden file (``.env``).

    Raises:
        ConfigError: it is not 1 to 64 characters of ``A-Z a-z 0-9 _ . -``, or does not begin with a
            letter or digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} name {name!r:.80} is not valid: use 1 to 64 characters of A-Z a-z 0-9 _ . -, "
            "and begin with a letter or digit"
        )
    return name


@native.leaf
def encode_tag(tag: str) -> bytes:
    """Return the tag as a list's name contains it: percent-encoded UTF-8.

    Raises:
        UsageError: it is empty, longer than ``MAX_TAG_BYTES``, or not encodable as UTF-8.
    """
    if not isinstance(tag, str):
        raise UsageError(f"a tag must be a str, not {type(tag).__name__}: pass tag=str(...)")
    try:
        raw = tag.encode()
    except UnicodeEncodeError:
        raise UsageError("a tag must be valid Unicode: it contains a lone surrogate") from None
    if not 1 <= len(raw) <= MAX_TAG_BYTES:
        raise UsageError(f"a tag must have 1 to {MAX_TAG_BYTES} bytes; this one has {len(raw)}")
    if not raw.translate(None, _PLAIN):  # only safe characters, as in all of yacl's tags
        return raw
    return quote(raw, safe=_SAFE).encode()


def decode_tag_untrusted(encoded: str) -> str:
    """The inverse of `encode_tag`.

    Raises:
        FrameError: `encode_tag` never returns this text.
    """
    if not _ENCODED_TAG.fullmatch(encoded):
        raise FrameError("a list name with a tag that redislink does not encode so")
    try:
        tag = unquote_to_bytes(encoded).decode()
        if encode_tag(tag).decode() != encoded:
            raise FrameError("a list name with a tag in a non-canonical encoding")
    except (UnicodeDecodeError, UsageError):
        raise FrameError("a list name with a tag that does not decode") from None
    return tag


def session_prefix(session: str) -> bytes:
    """Return the part before the receiver, which is the same in all names of a session's keys."""
    return f"{PREFIX}:{{{check_name(session, 'session')}:".encode()


def party_prefix(session: str, dst: str) -> bytes:
    """Return the part before the sender, which is the same in all lists of ``dst``'s inbox."""
    return session_prefix(session) + f"{check_name(dst, 'party')}}}:".encode()


def sender_prefix(session: str, dst: str, src: str) -> bytes:
    """Return the part before the epoch in the names of the lists from ``src`` to ``dst``."""
    return party_prefix(session, dst) + f"{check_name(src, 'party')}:".encode()


def inbox_prefix(session: str, dst: str, src: str, epoch: str) -> bytes:
    """Return the part before the tag in the names of the lists from ``src`` to ``dst``."""
    if not _EPOCH.fullmatch(epoch):
        raise UsageError(f"an epoch is 16 hex digits, or {NO_EPOCH!r} for lists without one")
    return sender_prefix(session, dst, src) + f"{epoch}:".encode()


def of_edition(prefix: bytes, edition: int) -> bytes:
    """Return what stands before the tag in an edition's names.

    Args:
        prefix: the same for edition 0, from `inbox_prefix`.
        edition: the edition's number.
    """
    return b"%b.%d:" % (prefix[:-1], edition) if edition else prefix


def in_first_edition(name: bytes, prefix_bytes: int) -> bytes:
    """Return the name that a list would have in edition 0.

    Args:
        name: the list's name, in any edition.
        prefix_bytes: the length of what stands before the tag in edition 0.
    """
    return name[: prefix_bytes - 1] + name[name.find(b":", prefix_bytes - 1) :]


def inbox_of(name: bytes) -> bytes:
    """Return the beginning that the names of all lists of an inbox share, and no others."""
    return name[: name.find(b"}") + 1]


def data_list(session: str, dst: str, src: str, epoch: str, tag: str) -> bytes:
    """Return the name of the list of messages with ``tag`` from ``src`` to ``dst``."""
    return inbox_prefix(session, dst, src, epoch) + encode_tag(tag)


def control_list(session: str, dst: str, src: str, epoch: str) -> bytes:
    """Return the name of the list for control frames: acks, probes, heartbeats and aborts."""
    return inbox_prefix(session, dst, src, epoch) + CONTROL_TAG.encode()


def move_list(session: str, dst: str, src: str, epoch: str) -> bytes:
    """Name of the list on which ``src`` tells ``dst`` which of several brokers a run is on."""
    return inbox_prefix(session, dst, src, epoch) + MOVE_TAG.encode()


def hello_list(session: str, dst: str, src: str) -> bytes:
    """Return the name of the list for hellos from ``src`` to ``dst``, the same in every run."""
    return inbox_prefix(session, dst, src, NO_EPOCH) + HELLO_TAG.encode()


def claim_key(session: str, party: str) -> bytes:
    """Return the name of the string key with which one process claims to be ``party``."""
    return inbox_prefix(session, party, party, NO_EPOCH) + CLAIM_TAG.encode()


def agent_key(session: str, party: str) -> bytes:
    """Return the name of the string key with which one process claims to be ``party``'s agent."""
    return inbox_prefix(session, party, party, NO_EPOCH) + AGENT_TAG.encode()


def doctor_list(session: str, dst: str, src: str, epoch: str = NO_EPOCH) -> bytes:
    """Return the name of a list that ``redislink doctor`` of ``src`` uses for tests and notes."""
    return inbox_prefix(session, dst, src, epoch) + DOCTOR_TAG.encode()


def letter_list(session: str, dst: str, src: str, tag: str) -> bytes:
    """Return the name of the list for letters of one kind (`LETTER_TAGS`) about jobs."""
    return inbox_prefix(session, dst, src, NO_EPOCH) + tag.encode()


def mark_list(session: str, dst: str, src: str) -> bytes:
    """Return the name of the list that ``src`` pushes to and deletes, to test that pushes work."""
    return inbox_prefix(session, dst, src, NO_EPOCH) + MARK_TAG.encode()


def status_key(session: str, party: str) -> bytes:
    """Return the name of the string key with ``party``'s status document (`protocol.status`)."""
    return inbox_prefix(session, party, party, NO_EPOCH) + STATUS_TAG.encode()


def parse_list_untrusted(name: bytes) -> tuple[str, str, str, str, str]:
    """Parse a key's name into (session, dst, src, epoch, tag).

    The tags of the transport's own lists keep their ``!``.

    Raises:
        FrameError: no function above returns this name.
    """
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        raise FrameError("a list name is not ASCII") from None
    match = re.fullmatch(r"rl:\{([^:{}]*):([^:{}]*)\}:([^:{}]*):([^:{}]*):([^{}]*)", text)
    if match is None:
        raise FrameError("a list name does not have the form rl:{session:dst}:src:epoch:tag")
    session, dst, src, epoch, encoded = match.groups()
    if not all(_NAME.fullmatch(part) for part in (session, dst, src)):
        raise FrameError("a list name with a session or party name that is not valid")
    if not _EPOCH.fullmatch(epoch):
        raise FrameError("a list name with an epoch that is not valid")
    tag = encoded if encoded in _CONTROL_TAGS else decode_tag_untrusted(encoded)
    return session, dst, src, epoch, tag
