"""Records for the tests of audit records."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from redislink.audit import AuditLog, Verification, verify_file
from redislink.audit.chain import head_path
from redislink.identity import Identity
from redislink.identity.signing import SigningKey, format_signing_key
from tests.conftest import IDENTITIES

PARTIES: Final = ("alice", "bob")
KEYS: Final = {
    name: format_signing_key(SigningKey(IDENTITIES[name]).public_key) for name in PARTIES
}
JOB: Final = "jabcdefghijkl"
PROGRAM: Final = f"sha256:{'ab' * 32}"
Line = tuple[str, dict[str, Any]]


def begin(party: str, **changes: Any) -> Line:
    other = PARTIES[1 - PARTIES.index(party)]
    return "begin", {
        "session": "trial",
        "party": party,
        "parties": [{"name": p, "fingerprint": p, "signing_key": KEYS[p]} for p in PARTIES],
        "cluster": "c1" * 32,
        "security": "sealed",
        "versions": "redislink 1",
        "script": {"name": "program.py", "sha256": "d" * 64},
        "epochs": {other: "0123456789abcdef"},
    } | changes  # fmt: skip


def step(number: int, text: str = "SP0.run(f)(f32[2])", **changes: Any) -> Line:
    told = {"chain": "", "number": number, "text": text, "digest": f"{number:032x}"}
    return "step", told | changes


def reveal(number: int, receivers: Sequence[str] = ("alice",), **changes: Any) -> Line:
    told = {"chain": "", "number": number, "device": "SP0", "receivers": list(receivers)}
    return "reveal", told | {"shapes": [[2]], "dtypes": ["float32"]} | changes


def end(party: str, how: str = "closed", steps: int = 4, **changes: Any) -> Line:
    other = PARTIES[1 - PARTIES.index(party)]
    traffic = dict.fromkeys(
        ("messages_sent", "bytes_sent", "messages_received", "bytes_received"), 3
    )
    told = {"how": how, "seconds": 1.5, "steps": steps, "peers": {other: traffic}}
    return "end", told | changes


def a_run(party: str) -> list[Line]:
    """The lines of a run of four steps, two of them reveals."""
    return [
        begin(party),
        step(1),
        step(2, "SP0.reveal(f32[2]; to=alice)", previous_seconds=0.25),
        reveal(2),
        step(3, parts=[["the function", "0a0b0c0d"], ["argument 1", "01020304"]]),
        step(4, "SP0.reveal(f32[2]; to=alice, bob)"),
        reveal(4, ("alice", "bob")),
        end(party),
    ]


def a_job(party: str, **changes: Any) -> list[Line]:
    """The lines about a job, up to its start."""
    offer = {
        "job": JOB, "driver": "dora", "issued": 1, "expires": 2, "program": PROGRAM,
        "arguments": PROGRAM, "parties": list(PARTIES),
    }  # fmt: skip
    start = {
        "job": JOB, "session": f"trial.{JOB}", "program": PROGRAM, "arguments": PROGRAM,
        "parties": list(PARTIES), "data": {"patients": PROGRAM},
    }  # fmt: skip
    return [
        ("offer", offer),
        ("decision", {"job": JOB, "action": "accept", "by": "person", "who": f"{party}s-admin"}),
        ("start", start | changes),
    ]


def write(
    path: Path,
    lines: Sequence[Line],
    party: str = "alice",
    identity: Identity | None = IDENTITIES["alice"],
    clock: Callable[[], float] | None = None,
) -> Path:
    """Write a record."""
    ticks = itertools.count(1_764_470_000)
    with AuditLog.open(path, party, identity, clock=clock or (lambda: float(next(ticks)))) as log:
        for kind, fields in lines:
            log.record(kind, **fields)
    return path


def written(directory: Path, party: str, lines: Sequence[Line]) -> Verification:
    """Write a record of a party, and verify it."""
    path = directory / f"{party}.jsonl"
    for old in (path, head_path(path)):
        old.unlink(missing_ok=True)
    return verify_file(write(path, lines, party, IDENTITIES[party]), KEYS)


def forged(path: Path, content: bytes, to: Path) -> Path:
    """Another content, with the head pointer of ``path``."""
    to.write_bytes(content)
    shutil.copy(head_path(path), head_path(to))
    return to
