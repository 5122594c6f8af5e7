"""Checks of the other parties: who is running, and whether all have the same cluster file.

The checks only read what a running session uses: claims with PTTL, hellos with LRANGE, if this user
may. They remove only the notes that the parties' doctors leave for each other, which nothing else
uses.
"""

from __future__ import annotations

from typing import Any

from redislink.errors import ConfigError, FrameError
from redislink.identity.keypair import Identity, fingerprint
from redislink.operate.doctor.examination import Ask, Examination
from redislink.operate.doctor.finding import Blame, Verdict, failed, fingerprints, passed, skipped
from redislink.operate.doctor.note import COPIES, TTL_MS, Note, decode_note_untrusted
from redislink.operate.doctor.own import DIGEST_DIGITS
from redislink.protocol import list_names
from redislink.protocol.frame import Hello, decode_untrusted


def who_is_there(exam: Examination) -> Verdict:
    """Check which parties are running, as far as this user may see.

    Raises: see `Examination.ask_all`.
    """
    spec, me = exam.case.spec, exam.case.party
    replies = exam.ask_all(
        [(name, (b"PTTL", list_names.claim_key(spec.session, name))) for name in spec.party_names]
    )
    left = dict(zip(spec.party_names, replies, strict=True))
    runs = [name for name, reply in left.items() if isinstance(reply, int) and reply > 0]
    hidden = [name for name, reply in left.items() if not isinstance(reply, int) and name != me]
    said = [f"running: {', '.join(runs) or 'nobody'}"]
    if me in runs:
        said.append(f"{me} is already running, so another process as {me} would be refused")
    if hidden:
        said.append(
            f"not allowed to see {', '.join(hidden)} (permission missing: PTTL on their claims), "
            "which is right for a party's user"
        )
    if hidden:
        return skipped("; ".join(said), f"ask {', '.join(hidden)}, or check as an admin")
    return passed("; ".join(said))


def same_cluster_file(exam: Examination) -> Verdict:
    """Compare what the peers say about their cluster file and key with ours; leave notes of ours.

    Raises: see `Examination.ask_all`.
    """
    peers = exam.case.peers
    notes, hellos = _notes(exam), _hellos(exam)
    wrong = [
        text
        for peer in peers
        if (text := _differs(exam, peer, notes.get(peer), hellos.get(peer))) is not None
    ]
    untold = _leave_notes(exam)
    own = exam.case.spec.digest().hex()[:DIGEST_DIGITS]
    if wrong:
        return failed(
            f"{'; '.join(wrong)}; ours has digest {own}",
            "give every party the same file; redislink fingerprint --cluster FILE shows what it "
            "contains",
            Blame.PEER,
        )
    said = []
    heard = [
        _heard(exam, peer, notes.get(peer)) for peer in peers if peer in notes or peer in hellos
    ]
    if heard:
        said.append(f"the same digest {own} at {', '.join(heard)} (as they say; not proved)")
    unheard = ", ".join(peer for peer in peers if peer not in notes and peer not in hellos)
    if unheard:
        said.append(f"nothing heard from {unheard}")
    if untold:
        said.append(f"could not leave a note for {', '.join(untold)}")
    if unheard:
        return skipped(
            "; ".join(said),
            f"run redislink doctor at {unheard}, then here again; or compare the digest {own} by "
            "telephone",
        )
    return passed("; ".join(said))


def _heard(exam: Examination, peer: str, note: Note | None) -> str:
    if note is None:
        return f"{peer} (its hello)"
    return f"{peer} (its doctor, {max(0.0, exam.case.clock() - note.at):.0f} s ago)"


def _differs(exam: Examination, peer: str, note: Note | None, hello: Hello | None) -> str | None:
    spec = exam.case.spec
    own = spec.digest().hex()
    if note is not None and note.digest != own:
        return (
            f"{peer}'s doctor says that its cluster file has digest {note.digest[:DIGEST_DIGITS]}"
        )
    if note is not None and note.fingerprint not in ("", fingerprints(spec)[peer] or ""):
        return (
            f"{peer}'s doctor says that its key is {note.fingerprint}, but the cluster file has "
            f"{fingerprints(spec)[peer]}"
        )
    if note is None and hello is not None and hello.digest.hex() != own:
        return (
            f"{peer} said hello within the last minute, with a cluster file that has digest "
            f"{hello.digest.hex()[:DIGEST_DIGITS]}"
        )
    return None


def _notes(exam: Examination) -> dict[str, Note]:
    """Take the notes that the peers' doctors left for this party."""
    session, me, peers = exam.case.spec.session, exam.case.party, exam.case.peers
    replies = exam.ask_all([(me, (b"LPOP", list_names.doctor_list(session, me, p))) for p in peers])
    found = {}
    for peer, reply in zip(peers, replies, strict=True):
        if isinstance(reply, bytes):
            try:
                found[peer] = decode_note_untrusted(reply)
            except FrameError:
                continue
    return found


def _hellos(exam: Examination) -> dict[str, Hello]:
    """Return the peers' last hellos that are still on the broker, if this user may read them."""
    session, me, peers = exam.case.spec.session, exam.case.party, exam.case.peers
    replies = exam.ask_all(
        [(me, (b"LRANGE", list_names.hello_list(session, me, peer), -1, -1)) for peer in peers]
    )
    found = {}
    for peer, reply in zip(peers, replies, strict=True):
        if isinstance(reply, list) and len(reply) == 1:
            hello = _hello_untrusted(reply[0])
            if hello is not None:
                found[peer] = hello
    return found


def _hello_untrusted(element: Any) -> Hello | None:
    try:
        frame, _ = decode_untrusted(bytes(element))
    except (FrameError, TypeError):
        return None
    return frame if isinstance(frame, Hello) else None


def _leave_notes(exam: Examination) -> list[str]:
    """Leave a note for each peer's doctor; return the peers for which that was refused."""
    case = exam.case
    note = Note(case.spec.digest().hex(), case.spec.security, _own_fingerprint(exam), case.clock())
    asks: list[Ask] = []
    for peer in case.peers:
        key = list_names.doctor_list(case.spec.session, peer, case.party)
        asks += [
            (peer, (b"DEL", key)),
            (peer, (b"RPUSH", key, *[note.encode()] * COPIES)),
            (peer, (b"PEXPIRE", key, TTL_MS)),
        ]
    replies = exam.ask_all(asks)
    return [p for p, pushed in zip(case.peers, replies[1::3], strict=True) if pushed != COPIES]


def _own_fingerprint(exam: Examination) -> str:
    path = exam.case.settings.identity_file_of(exam.case.party)
    if path is None:
        return ""
    try:
        return fingerprint(Identity.load(path).public_key)
    except ConfigError:
        return ""  # the check of the keys says what is wrong with it
