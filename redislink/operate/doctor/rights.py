"""Checks of what the broker lets this party's user do: what it needs, and no more.

The checks really run each command, on lists that belong to this examination and are then removed.
The claim is the exception, because a session uses the same key: there, commands get an argument
that no server accepts. The server rejects it only after checking permissions, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redislink.broker.error_map import UNKNOWN_COMMAND
from redislink.errors import (
    BrokerBusy,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
)
from redislink.operate.doctor.examination import LEFTOVER_MS, Argument, Ask, Examination, NotTried
from redislink.operate.doctor.finding import (
    Blame,
    Verdict,
    failed,
    failed_with,
    mebibytes,
    passed,
    warned,
)
from redislink.protocol import list_names
from redislink.transport.core import largest_chunk

_BLPOP_SECONDS: Final = b"0.010"
_FRAME_OVERHEAD: Final = 2048
"""The most bytes that a frame adds to its chunk of a message: header, tag, seal."""
_FOR_COMMAND: Final = re.compile(r"\(NOPERM[^)]* command\b").search


@dataclass(frozen=True, slots=True)
class _Try:
    """One command that a session needs.

    Attributes:
        inbox: the party that owns the inbox with the key.
        command: the command with its arguments.
        where: the keys on which a session needs the command, in words.
        rule: the ACL rule that allows it.
        complaint: text of the error reply that shows that it is allowed; empty if none does.
    """

    inbox: str
    command: tuple[Argument, ...]
    where: str
    rule: str
    complaint: str = ""

    @property
    def name(self) -> str:
        words = self.command[:2] if self.command[0] == b"CLUSTER" else self.command[:1]
        return " ".join(str(word, "ascii") for word in words if isinstance(word, bytes))


def commands(exam: Examination) -> Verdict:
    """Try each command from docs/broker.md on the keys where a session needs it.

    DEL of the claim is not among them: trying it would do it, and a claim that is not removed
    expires after 6 seconds.

    Raises:
        BrokerBusy: the broker is full, or cannot serve now.
        BrokerError: see `Examination.ask_all`.
    """
    try:
        tries = _tries(exam)
    except BrokerPermissionError as error:  # all nodes refuse CLUSTER SLOTS
        return _refused(exam, failed_with(error, Blame.BROKER).text, ["+cluster|slots"])
    replies = exam.ask_all([(tried.inbox, tried.command) for tried in tries])
    missing = [
        (tried, reply)
        for tried, reply in zip(tries, replies, strict=True)
        if not _allowed(reply, tried.complaint)
    ]
    if not missing:
        names = dict.fromkeys(tried.name for tried in tries)
        return passed(f"{', '.join(names)} are allowed where a session needs them")
    said = "; ".join(f"{tried.name} on {tried.where} ({why(reply)})" for tried, reply in missing)
    forbidden = [tried for tried, reply in missing if isinstance(reply, BrokerPermissionError)]
    others = [reply for _, reply in missing if not isinstance(reply, BrokerPermissionError)]
    if others:
        known = [reply for reply in others if not _is_unknown(reply)]
        remedy = (
            failed_with(known[0], Blame.BROKER).remedy
            if known
            else "use a broker, or a plan of the service, that has these commands"
        )
        return failed(f"refused to user {exam.user}: {said}", remedy)
    return _refused(exam, said, [tried.rule for tried in forbidden])


def _refused(exam: Examination, said: str, rules: Sequence[str]) -> Verdict:
    where = ", on every server of the broker" if exam.has_several else ""
    return failed(
        f"refused to user {exam.user}: {said}",
        f"as an admin{where}, ACL SETUSER {exam.user} {' '.join(dict.fromkeys(rules))}; or make "
        "all users again with redislink acl",
    )


def _tries(exam: Examination) -> list[_Try]:
    session, me = exam.case.spec.session, exam.case.party
    own, claim = exam.key(me, exam.case.peers[0]), list_names.claim_key(session, me)
    pop = f"%RW~{list_names.party_prefix(session, me).decode()}*"
    inbox, claims = "lists of its own inbox", "its own claim"
    tries = [_Try(me, (b"PING",), "no key", "+ping")]
    if exam.broker.is_cluster:
        tries += [
            _Try(place.inbox, (b"CLUSTER", b"SLOTS"), f"no key at {place.label}", "+cluster|slots")
            for place in exam.places()
        ]
    for place, peer in exam.far_ends():
        out = exam.key(peer, me)
        push = f"%W~{list_names.sender_prefix(session, peer, me).decode()}*"
        where = f"lists to peers at {place.label}" if place.label else "lists to peers"
        tries += [
            _Try(peer, (b"RPUSH", out, b"doctor"), where, f"{push} +rpush"),
            _Try(peer, (b"PEXPIRE", out, LEFTOVER_MS), where, f"{push} +pexpire"),
            _Try(peer, (b"DEL", out), where, f"{push} +del"),
        ]
    return [
        *tries,
        _Try(me, (b"BLPOP", own, _BLPOP_SECONDS), inbox, f"({pop} +blpop)"),
        _Try(me, (b"LPOP", own), inbox, f"({pop} +lpop)"),
        _Try(me, (b"DEL", own), inbox, f"({pop} +del)"),
        _Try(me, (b"GET", claim), claims, f"(%RW~{claim.decode()} +get)"),
        _Try(me, (b"PTTL", claim), claims, f"(%RW~{claim.decode()} +pttl)"),
        _Try(
            me,
            (b"SET", claim, b"doctor", b"PX", 0, b"NX"),
            claims,
            f"(%RW~{claim.decode()} +set)",
            "invalid expire",
        ),
        _Try(
            me,
            (b"PEXPIRE", claim, b"never"),
            claims,
            f"(%RW~{claim.decode()} +pexpire)",
            "not an integer",
        ),
    ]


def _allowed(reply: Any, complaint: str = "") -> bool:
    if isinstance(reply, BrokerBusy):
        raise reply
    if isinstance(reply, BrokerPermissionError):
        return False
    return not isinstance(reply, BrokerRefused) or (complaint != "" and complaint in str(reply))


def why(reply: Any) -> str:
    """Return what is missing or wrong, as an error reply says."""
    if _is_unknown(reply):
        return "this broker does not have it"
    if not isinstance(reply, BrokerPermissionError):
        return str(reply.refusal)
    return f"permission missing for the {'command' if _FOR_COMMAND(str(reply)) else 'key'}"


def _is_unknown(reply: Any) -> bool:
    return bool(reply.refusal == UNKNOWN_COMMAND.called)


def own_lists(exam: Examination) -> Verdict:
    """Check that this party can push to every peer as itself.

    Raises: see `commands`.
    """
    me, peers = exam.case.party, exam.case.peers
    pushed = _push_and_remove(exam, [(peer, me) for peer in peers])
    refused = [peer for peer, done in zip(peers, pushed, strict=True) if not done]
    if not refused:
        return passed(f"can push as {me} to {', '.join(peers)}")
    session = exam.case.spec.session
    rules = (f"%W~{list_names.sender_prefix(session, peer, me).decode()}*" for peer in refused)
    return failed(
        f"user {exam.user} cannot push as {me} to {', '.join(refused)}",
        f"as an admin, ACL SETUSER {exam.user} {' '.join(rules)} +rpush +pexpire +del; or, if the "
        "user belongs to another party or session, set REDISLINK_BROKER_URL to this party's",
    )


def others_lists(exam: Examination) -> Verdict:
    """Check that this party can neither push as another nor pop from another's inbox.

    Raises: see `commands`.
    """
    me, peers, names = exam.case.party, exam.case.peers, exam.case.spec.party_names
    # To each peer as somebody else, a third party if there is one; and to itself as each peer.
    forged = [
        (peer, next((name for name in names if name not in (me, peer)), peer)) for peer in peers
    ]
    forged += [(me, peer) for peer in peers]
    pushed = _push_and_remove(exam, forged)
    popped = exam.ask_all([(peer, (b"LPOP", exam.key(peer, me))) for peer in peers])
    can = [
        f"push as {src} to {dst}" for (dst, src), done in zip(forged, pushed, strict=True) if done
    ] + [
        f"pop {peer}'s inbox" for peer, reply in zip(peers, popped, strict=True) if _allowed(reply)
    ]
    if not can:
        return passed(f"cannot push as another party, or pop another's inbox (user {exam.user})")
    return warned(
        f"user {exam.user} can {', '.join(can[:4])}{' and more' if can[4:] else ''}: the broker "
        "has no users per party, so any party, or anybody with its password, can remove messages "
        "between others (in sealed sessions it can neither read nor change them)",
        f"as an administrator: redislink acl --cluster {exam.case.settings.cluster_file or 'FILE'} "
        f"--apply {exam.broker.label} --passwords passwords --admin admin; give each party its own "
        "user and password; and turn the default user off, with the command that this prints",
    )


def _push_and_remove(exam: Examination, lists: Sequence[tuple[str, str]]) -> list[bool]:
    """Return for each (receiver, sender) if a push was allowed; nothing stays on the broker."""
    asks: list[Ask] = []
    for dst, src in lists:
        key = exam.key(dst, src)
        asks += [
            (dst, (b"RPUSH", key, b"doctor")),
            (dst, (b"PEXPIRE", key, LEFTOVER_MS)),
            (dst, (b"DEL", key)),
        ]
    replies = exam.ask_all(asks)
    return [_allowed(reply) for reply in replies[::3]]


def largest_element(exam: Examination) -> Verdict:
    """Check that the broker accepts an element as large as a session's largest.

    Raises: see `commands`.
    """
    chunk = largest_chunk(exam.seen.round_trip, exam.case.settings)
    size = chunk + _FRAME_OVERHEAD
    remedy = (
        "raise the broker's proto-max-bulk-len, or the service's limit on the size of a request; "
        "or lower REDISLINK_CHUNK_BYTES"
    )
    ends = exam.far_ends()
    limits = [exam.config(place, "proto-max-bulk-len") for place, _ in ends]
    known = [int(limit) for limit in limits if limit is not None and limit.isdecimal()]
    if known and min(known) < size:
        limit = min(known)
        return failed(
            f"proto-max-bulk-len is {mebibytes(limit)} ({limit} bytes), but with "
            f"chunks of {chunk} bytes, elements have up to {size} bytes",
            remedy,
        )
    if exam.seen.rate and len(ends) * size / exam.seen.rate > exam.patience() / 2:
        raise NotTried(f"{mebibytes(size)} would take too long on this line")
    pushed: Any = None
    try:
        for _, peer in ends:
            key = exam.key(peer, exam.case.party)
            (pushed, _, _) = exam.ask_all(
                [
                    (peer, (b"RPUSH", key, bytes(size))),
                    (peer, (b"PEXPIRE", key, LEFTOVER_MS)),
                    (peer, (b"DEL", key)),
                ]
            )
            if not _allowed(pushed):
                break
    except BrokerUnreachable as error:
        return failed(
            f"an element of {mebibytes(size)} ended the connection "
            f"({failed_with(error, Blame.BROKER).text})",
            remedy,
        )
    if not _allowed(pushed):
        return failed(f"an element of {mebibytes(size)} was refused ({why(pushed)})", remedy)
    return passed(f"accepted {mebibytes(size)}, the most that a session pushes at once")
