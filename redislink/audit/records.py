"""What the lines of an audit record say, and how they are written and read.

Rules:
- A line is a JSON object in ASCII. Its first keys are ``n``, ``time`` and ``kind``, its last ones
  ``prev`` (SHA-256 of the line before, in hex) and, if the party has a key, ``sig``.
- The signature is over the bytes of the line before ``,"sig":``. So no reader has to write a line
  anew to check it, and there is one way only to write each signed line.
- Names, shapes, digests, counts and times get into a line; no value ever does. What a kind may say
  stands here, and nothing else can be written.
- A record may come from another organisation, or from whoever has changed it: everything read is
  untrusted until it was verified.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from redislink.errors import AuditError, UsageError
from redislink.files import open_regular
from redislink.identity.signing import SIGNATURE_BYTES, SigningKey
from redislink.text import one_line

VERSION: Final = 1
MOST_LINE: Final = 4 << 20
"""Bytes; far more than a reveal of ten thousand arrays needs."""
_SIG: Final = b',"sig":"'
_SIG_CHARACTERS: Final = (SIGNATURE_BYTES + 2) // 3 * 4
_TAIL: Final = len(_SIG) + _SIG_CHARACTERS + len(b'"}')
_AROUND: Final = ("n", "time", "kind", "prev", "sig")


class Said(BaseModel):
    """What a line says, besides when and where it stands. Each kind has a class of its own."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)
    kind: ClassVar[str]


class FileSaid(Said):
    """The first line of a file.

    Attributes:
        version: of this format.
        party: whose record it is.
        key: the public half of the key that signs it, ``ed25519:…``; None if nothing does.
    """

    kind = "file"
    version: int
    party: str
    key: str | None = None


class MendedSaid(Said):
    """What was found wrong when the file was opened, and mended.

    Attributes:
        bytes: how many bytes after the last good line were removed.
        why: ``torn``: a crash tore them off, and nobody had relied on them; ``no head``: the head
            pointer was missing, so lines may be missing too.
    """

    kind = "mended"
    bytes: int
    why: Literal["torn", "no head"]


class Script(BaseModel):
    """The file that a process runs.

    Attributes:
        name: its name, without directories.
        sha256: digest of its contents, in hex.
    """

    model_config = Said.model_config
    name: str
    sha256: str


class Participant(BaseModel):
    """A party, as the cluster file describes it.

    Attributes:
        name: its name.
        fingerprint: that of its public key; None if it has none.
        signing_key: ``ed25519:…``; None if the cluster file has none.
    """

    model_config = Said.model_config
    name: str
    fingerprint: str | None = None
    signing_key: str | None = None


class BeginSaid(Said):
    """A session begins: this party has met all others.

    Attributes:
        session: its name.
        party: who writes this.
        parties: all of them, in rank order.
        cluster: digest of the cluster file, in hex.
        security: ``sealed`` or ``none``.
        versions: of what computes, as text.
        script: the file that the process runs; None if it runs none.
        epochs: for each peer 16 hex digits that only this run of these two has; empty if all
            parties are threads of one process.
        resumed_after: the number of the first steps that the journal answers; None without one.
    """

    kind = "begin"
    session: str
    party: str
    parties: list[Participant]
    cluster: str
    security: str
    versions: str
    script: Script | None = None
    epochs: dict[str, str] = {}
    resumed_after: int | None = None


class StepSaid(Said):
    """A step begins; nothing of it has left this party.

    Attributes:
        chain: the device that was spawned; "" for the session's own steps.
        number: from 1.
        text: the call.
        digest: that of the chain after it, in hex: it covers all calls so far, functions and
            public arguments.
        parts: for each part that is equal everywhere its name and a short digest, in hex.
        previous_seconds: what the chain's step before took; None for the first.
        from_journal: whether the journal answers it, so that nothing is computed or sent.
    """

    kind = "step"
    chain: str
    number: int
    text: str
    digest: str
    parts: list[tuple[str, str]] = []
    previous_seconds: float | None = None
    from_journal: bool = False


class RevealSaid(Said):
    """The step before is a reveal; no share has left this party yet.

    Attributes:
        chain, number: the step.
        device: the device.
        receivers: who learns the values.
        shapes, dtypes: those of each value.
        from_journal: as in `StepSaid`.
    """

    kind = "reveal"
    chain: str
    number: int
    device: str
    receivers: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    from_journal: bool = False


class PsiSaid(Said):
    """The step before is an intersection; nothing of it has left this party yet.

    Attributes:
        chain, number: the step.
        protocol: that of libpsi.
        parties: the two that learn which of their keys the other has.
        from_journal: as in `StepSaid`.
    """

    kind = "psi"
    chain: str
    number: int
    protocol: str
    parties: list[str]
    from_journal: bool = False


class Traffic(BaseModel):
    """What a party and one peer have exchanged: messages, and bytes of their payloads."""

    model_config = Said.model_config
    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int


How = Literal["closed", "failed", "aborted", "left"]


class EndSaid(Said):
    """The session has ended.

    Attributes:
        how: ``closed``: in good order; ``failed``; ``aborted``: by this party's program or by
            whoever ended its process; ``left``: the program ended without closing it.
        error: the type of the error; None if there was none.
        by: the peer whose failure it was; None if it was none.
        seconds: since it began.
        steps: how many steps the session's own chain had.
        previous_seconds: what the last of them took; None if there was none.
        peers: what was exchanged with each; empty if all parties are threads of one process.
    """

    kind = "end"
    how: How
    error: str | None = None
    by: str | None = None
    seconds: float
    steps: int
    previous_seconds: float | None = None
    peers: dict[str, Traffic] = {}


class OfferSaid(Said):
    """A driver offers a job.

    Attributes:
        job, driver, program, program_name, data, parties, devices, results: as in the offer.
        issued, expires: UTC seconds since 1970.
        attached: whether the offer carries the source of the program.
        arguments: ``sha256:…``, digest of the arguments.
        conflicts: whether another offer with this id was there before, so that this one is ignored.
    """

    kind = "offer"
    job: str
    driver: str
    issued: int
    expires: int
    program: str
    program_name: str = ""
    attached: bool = False
    arguments: str
    data: dict[str, list[str]] = {}
    parties: list[str]
    devices: list[str] = []
    results: list[str] = []
    conflicts: bool = False


class DecisionSaid(Said):
    """This organisation decides about a job.

    Attributes:
        job: its id.
        action: ``accept``, ``ask`` (a person is to decide), ``refuse`` or ``cancel``.
        by: ``policy``; ``person``; ``driver`` or ``peer`` for a cancel that came from there.
        rule: the name of the policy's rule; "" if none decided.
        who: the person's user name, or the peer's name; "" if neither.
        reason: one line.
    """

    kind = "decision"
    job: str
    action: Literal["accept", "ask", "refuse", "cancel"]
    by: Literal["policy", "person", "driver", "peer"]
    rule: str = ""
    who: str = ""
    reason: str = ""


class StartSaid(Said):
    """A job is about to start here.

    Attributes:
        job: its id.
        session: the name of its session.
        program: ``sha256:…``, checked again just now.
        program_name: what this organisation calls it.
        arguments: as in `OfferSaid`.
        data: this organisation's data sets by name, each with ``sha256:…`` of its file; None for
            one that was not read.
        parties, devices: as in the offer.
        attempt: from 1; a later one goes on after a crash.
    """

    kind = "start"
    job: str
    session: str
    program: str
    program_name: str = ""
    arguments: str
    data: dict[str, str | None] = {}
    parties: list[str]
    devices: list[str] = []
    attempt: int = 1


class ResultSaid(Said):
    """A result of a job leaves this organisation.

    Attributes:
        job: its id.
        name: what the program calls it.
        receiver: who gets it.
        bytes: its size.
    """

    kind = "result"
    job: str
    name: str
    receiver: str
    bytes: int


KINDS: Final[Mapping[str, type[Said]]] = {
    said.kind: said
    for said in (
        FileSaid,
        MendedSaid,
        OfferSaid,
        DecisionSaid,
        StartSaid,
        ResultSaid,
        BeginSaid,
        StepSaid,
        RevealSaid,
        PsiSaid,
        EndSaid,
    )
}


class UnknownSaid(Said):
    """A line of a kind that this version of redislink does not know."""

    kind = "unknown"


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        n: its number in the file, from 0.
        time: when it was written, UTC seconds since 1970.
        kind: what it is about, a key of `KINDS`; another text if this version does not know it.
        said: what it says.
        prev: SHA-256 of the line before, in hex; "" in the first line.
        sig: the signature, 64 bytes; None if there is none.
        line: its bytes, without the end of the line.
    """

    n: int
    time: float
    kind: str
    said: Said
    prev: str
    sig: bytes | None
    line: bytes

    @property
    def signed(self) -> bytes:
        """What the signature is over: the bytes before ``,"sig":``."""
        return self.line[:-_TAIL]

    @property
    def digest(self) -> str:
        """What the next line has as ``prev``."""
        return hashlib.sha256(self.line).hexdigest()


def make_said(kind: str, fields: Mapping[str, Any]) -> Said:
    """What a line is to say.

    Raises:
        UsageError: there is no such kind, or it has no such fields.
    """
    model = KINDS.get(kind)
    if model is None:
        raise UsageError(f"an audit record has no kind {kind!r:.40}: use {', '.join(KINDS)}")
    unknown = fields.keys() - model.model_fields.keys()
    if unknown:
        raise UsageError(f"the audit record's {kind} has no field {', '.join(sorted(unknown))}")
    try:
        return model.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"the audit record's {kind}.{place}: {first['msg']}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"the audit record's {kind}: {error}") from None


def encode_line(n: int, time: float, said: Said, prev: str) -> bytes:
    """A line without signature and without its end.

    Args:
        n, time, prev: as in `Record`.
        said: what it says.
    """
    at = datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds")
    whole = {
        "n": n,
        "time": at.replace("+00:00", "Z"),
        "kind": said.kind,
        **said.model_dump(mode="json", exclude_defaults=True),
        "prev": prev,
    }
    return json.dumps(whole, separators=(",", ":"), allow_nan=False).encode("ascii")


def with_signature(line: bytes, key: SigningKey) -> bytes:
    """A line with its signature; see `Record.signed`."""
    told = line[:-1]
    return told + _SIG + base64.b64encode(key.sign(told)) + b'"}'


def parse_line_untrusted(line: bytes) -> Record:
    """What a line says. It is not verified.

    Args:
        line: without its end.

    Raises:
        AuditError: it is no line of a record.
    """
    try:
        told = json.loads(line.decode("ascii"), object_pairs_hook=_once)
        time = datetime.fromisoformat(told["time"])
        n, kind, prev = told["n"], told["kind"], told["prev"]
        if type(n) is not int or type(kind) is not str or type(prev) is not str:
            raise ValueError("its frame")
        if time.utcoffset() is None:
            raise ValueError("its time")
        sig = None
        if "sig" in told:
            sig = base64.b64decode(told["sig"], validate=True)
            if line[-_TAIL:] != _SIG + base64.b64encode(sig) + b'"}':
                raise ValueError("its signature")
        model = KINDS.get(kind, UnknownSaid)
        # As JSON, because only there is a list as good as a tuple.
        said = model.model_validate_json(
            json.dumps({name: value for name, value in told.items() if name not in _AROUND})
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise AuditError(f"{_why(error)}") from None
    return Record(n, time.timestamp(), kind, said, prev, sig, line)


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return one_line(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 200)
    return "it is no line of an audit record"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def lines_of(path: str | Path) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file, without their ends, and for each whether its end is there.

    Raises:
        AuditError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            while line := file.readline(MOST_LINE + 1):
                yield line.removesuffix(b"\n"), line.endswith(b"\n")
    except OSError as error:
        raise AuditError(
            f"audit record {path}: cannot be read ({error.strerror or error}): check the path"
        ) from None


def read_records(path: str | Path) -> list[Record]:
    """The lines of a record, not verified; see `redislink.audit.verify_file`.

    A last line without its end is left out: a crash has torn it.

    Raises:
        AuditError: the file cannot be read, or a line is none of a record.
    """
    records = []
    for number, (line, is_whole) in enumerate(lines_of(path), 1):
        if not is_whole:
            break
        try:
            records.append(parse_line_untrusted(line))
        except AuditError as error:
            raise AuditError(f"audit record {path}: line {number}: {error}") from None
    if not records or not isinstance(records[0].said, FileSaid):
        raise AuditError(f"audit record {path}: is none: check the path")
    return records
